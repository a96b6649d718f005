"""What training and ``plan`` take of the measurements: the choice for steps, and for whole epochs.

A step's winner is a path with a tiling, or "cublas"; an epoch's is R2 with a tiling, or "steps", which are
then the step's winner.  Both hold for a GPU and a problem (:mod:`handgrad.plans.remembered`), and where no
path was asked for.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from handgrad.ops.tilings import Tiling
from handgrad.ops.two_layer import Problem
from handgrad.plans import paths, remembered
from handgrad.plans.choice import Choice, choose, lay_out, refusal_of, tilings_of

if TYPE_CHECKING:
    from handgrad.network import MLP

CUBLAS = "cublas"
STEPS = "steps"  # an epoch of them


@dataclass(frozen=True)
class Candidate:
    """What can run a step or an epoch: a path with its tiling; "cublas" or "steps", which have none."""

    path: str
    tiling: Tiling | None = None

    @property
    def name(self) -> str:
        """As "R4 (hidden 64x64x16/8x4, ...)"."""
        return self.path if self.tiling is None else f"{self.path} ({self.tiling.name})"


@dataclass(frozen=True)
class Decision:
    """The kernels' choice.  ``cublas``: that was measured to be faster than it; ``steps``: R2 was measured to
    be slower than steps."""

    choice: Choice
    cublas: bool = False
    steps: bool = False


def decide(net: MLP, problem: Problem, asked: str | None = None, epoch: bool = False) -> Decision:
    """For steps of the problem, or whole epochs of them: what was asked for, else what was measured, else
    :func:`handgrad.plans.choice.choose`, whose errors it raises."""
    if asked is not None:
        return Decision(choose(problem, asked, epoch))
    of_epoch = winner(net, problem, epoch=True) if epoch else None
    if of_epoch is not None and of_epoch.tiling is not None:
        return Decision(choice_of(problem, of_epoch))
    steps, measured = of_epoch is not None, winner(net, problem)
    if measured is not None and measured.tiling is not None:
        choice = choice_of(problem, measured)
    else:
        choice = choose(problem, None, epoch and not steps)
    cublas = measured == Candidate(CUBLAS)
    reason = f"{CUBLAS} was measured to be the fastest on this GPU" if cublas else choice.reason
    if steps:
        reason += "; an epoch of R2 was measured to be slower"
    return Decision(dataclasses.replace(choice, reason=reason), cublas, steps)


def winner(net: MLP, problem: Problem, epoch: bool = False) -> Candidate | None:
    """The remembered winner for steps of this problem, or for epochs, on the network's GPU.

    None where nothing was measured, and where what is remembered is no path or no tiling that this version
    knows for the problem.  A row without a tiling, as older versions wrote it, stands for the rule's.
    """
    if net.device.kind != "cuda":
        return None
    row = remembered.find(device_name(net), problem, epoch)
    path, name = str(row.get("winner")), row.get("tiling")
    if epoch and path == STEPS:
        return None if row.get("steps") == CUBLAS and net.matmul != "auto" else Candidate(STEPS)
    if not epoch and path == CUBLAS:
        return Candidate(CUBLAS) if net.matmul == "auto" else None
    known = (paths.EPOCH,) if epoch else paths.STEP_ORDER
    if path not in known or refusal_of(problem, path):
        return None
    offered = tilings_of(problem, path)
    if name is None:
        return Candidate(path, offered[0])
    return next((Candidate(path, one) for one in offered if one.name == name), None)


def choice_of(problem: Problem, measured: Candidate) -> Choice:
    """The choice of a path and tiling that :func:`winner` gives."""
    assert measured.tiling is not None, "it is a path"
    of_what = "for whole epochs " if measured.path == paths.EPOCH else ""
    reason = (
        f"{measured.path} with {measured.tiling.name} was measured to be the fastest {of_what}on this GPU"
    )
    return Choice(lay_out(problem, measured.path, measured.tiling), reason, measured=True)


def device_name(net: MLP) -> str:
    """The GPU's name, as its driver has it."""
    return _gpu_name(net.device.index)


@functools.cache
def _gpu_name(index: int) -> str:
    import cupy

    name = cupy.cuda.runtime.getDeviceProperties(index)["name"]
    return name.decode() if isinstance(name, bytes) else str(name)
