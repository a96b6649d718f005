"""Plans: which kernels run a two-layer training step, how, and why.

``plan(net, batch_size)`` shows the plan, for a GPU, for the emulator, and for a network on the CPU too, since
no GPU is needed to plan.  Training takes the same choice.  docs/plans.md describes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from handgrad.gpus import Gpu, find_gpu
from handgrad.ops.optimizer_base import Optimizer, require
from handgrad.plans import paths, winners
from handgrad.plans.choice import choose
from handgrad.plans.description import Plan
from handgrad.plans.problems import count_of, problem_of
from handgrad.plans.tuning import Tuned, tune

if TYPE_CHECKING:
    from handgrad.network import MLP

__all__ = ["Plan", "Tuned", "plan", "tune"]

DEFAULT_GPU = "A100"


def plan(
    net: MLP,
    batch_size: int,
    *,
    samples: int | None = None,
    optimizer: Optimizer | None = None,
    path: str | None = None,
    gpu: str | Gpu | None = None,
    inputs: str | None = None,
    clip_norm: float | None = None,
    epoch: bool = True,
) -> Plan:
    """The plan of training ``net`` in batches of ``batch_size``.

    Parameters
    ----------
    samples: of an epoch; one batch where None
    optimizer: whose rule is applied; SGD without momentum where None
    path: "R1" ... "R4" where it can be, else the plan says in ``reason`` why another one runs;
        ``net.path`` where None
    gpu: plan for this named GPU ("A100", "H100", ...); by default for the network's own device, and for a
        network on the CPU for the A100
    inputs: X as it is stored, "uint8" or dtype's name, which is the default
    clip_norm: the gradient is clipped, which takes two launches more and no whole epoch
    epoch: False for single steps, as ``train_step`` takes them, for which there is no R2

    Raises ``ValueError`` in one line for a network of another depth, or of ``path="ops"``, which trains
    without a plan, and for names that there are not; ``TypeError`` for other kinds of arguments.
    """
    _check(net, optimizer)
    N = count_of("batch_size", batch_size)
    number = N if samples is None else count_of("samples", samples)
    rule = "Store" if clip_norm is not None else "Sgd" if optimizer is None else optimizer.rule
    named = gpu if gpu is not None or net.device.kind != "cpu" else DEFAULT_GPU
    problem = problem_of(net, N, rule=rule, inputs=inputs, gpu=None if named is None else find_gpu(named))
    asked = path or net.path
    if asked == paths.BY_OP:
        raise ValueError(
            "path: 'ops' runs the layer functions one after another, without a plan; "
            f"expected one of {', '.join(paths.NAMES)}"
        )
    if clip_norm is not None:
        require(clip_norm, "clip_norm", "a number above 0", lambda x: x > 0)
    whole = epoch and clip_norm is None
    named_gpu = gpu is not None  # nothing is measured on it
    choice = choose(problem, asked, whole) if named_gpu else winners.decide(net, problem, asked, whole).choice
    return Plan(choice, number, clipped=clip_norm is not None)


def _check(net: MLP, optimizer: Optimizer | None) -> None:
    from handgrad.network import MLP

    if not isinstance(net, MLP):
        raise TypeError(f"net: expected a network, as MLP([D, H, C]), got {net!r}")
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: expected an SGD, Adam or AdamW object, got {optimizer!r}")
