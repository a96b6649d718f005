"""A network's training step as the problem that the paths know."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from handgrad.emulator.settings import SHARED_BYTES_PER_BLOCK
from handgrad.gpus import Gpu
from handgrad.kernel import device_limits
from handgrad.ops.two_layer import Problem

if TYPE_CHECKING:
    from handgrad.network import MLP


def nearest_architecture(arch: str) -> str:
    """The newest architecture that the paths know and that is no newer than ``arch``: sm_121 -> sm_120.

    ``ValueError`` for one older than all of them.
    """
    known = {int(name.removeprefix("sm_")): name for name in SHARED_BYTES_PER_BLOCK}
    number = int(arch.removeprefix("sm_"))
    older = [one for one in known if one <= number]
    if not older:
        raise ValueError(f"device: expected a GPU of {known[min(known)]} or newer, got {arch}")
    return known[max(older)]


def problem_of(net: MLP, N: int, *, rule: str, inputs: str | None = None, gpu: Gpu | None = None) -> Problem:
    """For ``gpu``, or for the device that the network is on.  ``ValueError`` for another depth than 2."""
    if net.layers != 2:
        raise ValueError(
            f"plan: expected a network of two layers, as MLP([D, H, C]), got {net.layers}: other depths run "
            "layer by layer"
        )
    if gpu is not None:
        arch, sms = gpu.arch, gpu.sms
    else:
        limits = device_limits(net.xp)
        arch, sms = nearest_architecture(limits.arch), limits.sms
    D, H, C = net.sizes
    return Problem(
        N, D, H, C,
        activation=net.activation, output=net.output, loss=net.loss_name, reduction=net.reduction,
        bias=net.bias, dtype=net.dtype.name, precision=net.precision,
        inputs=net.dtype.name if inputs is None else inputs, rule=rule, arch=arch, sms=sms,
    )  # fmt: skip


def count_of(name: str, value: Any) -> int:
    """A whole number of 1 or more; ``ValueError`` with its ``name`` for anything else."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"{name}: expected a whole number, 1 or more, got {value!r}")
    return number
