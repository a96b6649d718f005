"""What ``MLP`` does on the CPU: its loss, gradients, steps and epochs through the engine.

The arguments are checked already; X may have another dtype than the network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from handgrad.arrays import to_numpy
from handgrad.host.block import Layout
from handgrad.host.engine import Engine
from handgrad.host.rows import Rows
from handgrad.ops.checks import require_shape
from handgrad.ops.loss import ELEMENTWISE

if TYPE_CHECKING:
    from handgrad.network import MLP
    from handgrad.ops.optimizer import Optimizer
    from handgrad.parameters import Gradients

Numbers = NDArray[Any]


def engine_of(net: MLP) -> Engine:
    """The network's engine, made when it is first needed."""
    engine = net._engine
    if engine is None or engine.parameters is not net.flat_parameters:
        layout = Layout(net.sizes, net.activation, net.output, net.loss_name, net.bias, net.dtype)
        engine = net._engine = Engine(layout, net.reduction, net.flat_parameters)
    return engine


def loss(net: MLP, X: Numbers, y: Numbers) -> Numbers:
    """The loss alone."""
    return engine_of(net).run(_rows(net, X, y), backward=False)


def loss_and_grad(net: MLP, X: Numbers, y: Numbers, out: Gradients, input_grad: bool) -> Numbers:
    """The loss; gradients go to ``out``, and dX to its intermediates."""
    engine = engine_of(net)
    dX = np.empty(X.shape, dtype=net.dtype) if input_grad else None
    value = engine.run(_rows(net, X, y), dX=dX)
    np.copyto(out.flat, engine.gradients.flat)
    if dX is not None:
        out.intermediates["dX"] = dX
    return value


def train_step(net: MLP, X: Numbers, y: Numbers, optimizer: Optimizer, clip_norm: float | None) -> Numbers:
    """One step; the loss before it."""
    return engine_of(net).step(_rows(net, X, y), optimizer, clip_norm)


def train_epoch(
    net: MLP,
    X: Numbers,
    y: Numbers,
    order: Numbers,
    batch_size: int,
    optimizer: Optimizer,
    clip_norm: float | None,
    scale: float,
    shift: float,
) -> Numbers:
    """A step for every ``batch_size`` rows of ``order``; every step's loss."""
    engine = engine_of(net)
    X, y = to_numpy(X), to_numpy(y)
    _check_targets(net, y, len(X))
    order = order.astype(np.int64)
    losses = np.empty(-(-len(order) // batch_size), dtype=net.dtype)
    for step in range(len(losses)):
        part = order[step * batch_size : (step + 1) * batch_size]
        losses[step] = engine.step(Rows(X, y, net.dtype, part, scale, shift), optimizer, clip_norm)
    return losses


def _rows(net: MLP, X: Numbers, y: Numbers) -> Rows:
    X, y = to_numpy(X), to_numpy(y)  # slices of a memory-mapped array are slow, those of its base are not
    _check_targets(net, y, len(X))
    return Rows(X, y, net.dtype)


def _check_targets(net: MLP, y: Numbers, N: int) -> None:
    if net.loss_name in ELEMENTWISE:
        require_shape(f"loss {net.loss_name}", "y", y, (N, net.sizes[-1]), "(N, C) like the output")
    else:
        require_shape(f"loss {net.loss_name}", "y", y, (N,), "(N,), one label a sample,")
