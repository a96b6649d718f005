"""Measured winners: which path with which tiles, or cuBLAS, takes the least time for a shape on this GPU.

``tune(net, batch_size)`` times every path on the GPU with the tiling by rule.  Of each path that comes near
the fastest, it goes through the tiling's parts one by one: with the best tile of A1, say, through those of
dW1, with that through the partitions.  The winner is remembered (:mod:`handgrad.plans.remembered`); training
and ``plan`` then take it where no path was asked for.  Without a measurement the choice follows the total
order and the model, and tiles follow the path's rule.

The winner decides the order of sums, so the bits of a result depend on it; ``path=`` fixes them.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from handgrad.arrays import Array, synchronize, to_device
from handgrad.ops import loss as loss_op
from handgrad.ops.tilings import Tiling
from handgrad.ops.two_layer import Problem
from handgrad.plans import paths, remembered
from handgrad.plans.choice import Choice, lay_out, refusal_of, tilings_of
from handgrad.plans.problems import problem_of

if TYPE_CHECKING:
    from handgrad.network import MLP
    from handgrad.ops.optimizer import Optimizer

CUBLAS = "cublas"
ROUNDS, SECONDS = 7, 0.2  # of each candidate; each round fills its part of the seconds
WORTH = 1.5  # times the fastest path's seconds: up to there, a path's other tilings are measured
GAIN = 0.98  # of the best tiling's seconds so far, that another has to stay below: noise changes nothing

Measure = Callable[[Callable[[], object], Any], float]


@dataclass(frozen=True)
class Candidate:
    """What can run a step: a path with its tiling, or "cublas", which has none."""

    path: str
    tiling: Tiling | None = None

    @property
    def name(self) -> str:
        """As "R4 (hidden 64x64x16/8x4, ...)"."""
        return self.path if self.tiling is None else f"{self.path} ({self.tiling.name})"


@dataclass(frozen=True)
class Tuned:
    """``winner``: a path's name or "cublas"; ``tiling``: the winner's by name, "" for cuBLAS; ``seconds``: of
    a step, by candidate, in the order in which they were measured on ``device``."""

    device: str
    winner: str
    tiling: str
    seconds: dict[str, float]

    def __str__(self) -> str:
        fastest = f"{self.winner} ({self.tiling})" if self.tiling else self.winner
        lines = [f"{fastest} is the fastest on {self.device}; measured, a step:"]
        lines += [f"  {value * 1e6:>10.1f} µs  {name}" for name, value in self.seconds.items()]
        return "\n".join(lines)


def tune(net: MLP, batch_size: int, *, optimizer: Optimizer | None = None) -> Tuned:
    """Measure paths and tilings for steps of ``batch_size``, remember the fastest, leave ``net`` as it is.

    ``optimizer``: whose rule is applied; SGD with momentum where None.  Raises ``ValueError`` without a GPU:
    there, the choice follows the model.
    """
    if net.device.kind != "cuda":
        raise ValueError(
            f"tune: expected a network on a GPU, got {net.device}; without one the choice follows the model"
        )
    with net.device:
        tuned = measure_candidates(net, batch_size, optimizer, device_name(net), _seconds_of_a_step)
    if net._planned is not None:
        net._planned.forget()
    return tuned


def measure_candidates(
    net: MLP, batch_size: int, optimizer: Optimizer | None, device: str, measure: Measure
) -> Tuned:
    """:func:`tune` with the measuring left to ``measure(step, xp)``."""
    from handgrad.ops.optimizer import SGD

    rule = SGD(1e-3, momentum=0.9) if optimizer is None else optimizer
    problem = problem_of(net, batch_size, rule=rule.rule)
    seconds: dict[Candidate, float] = {}
    X, y = (to_device(array, net.device) for array in _data(problem))

    def time_of(one: Candidate) -> float:
        if one not in seconds:
            seconds[one] = measure(_step(net, problem, one, rule, X, y), net.xp)
        return seconds[one]

    found = candidates(problem, net)
    worth = WORTH * min([time_of(one) for one in found if one.tiling is not None])
    found = [_descend(problem, one, time_of) if time_of(one) <= worth else one for one in found]
    best = min(found, key=time_of)
    tuned = Tuned(
        device,
        best.path,
        "" if best.tiling is None else best.tiling.name,
        {one.name: value for one, value in seconds.items()},
    )
    row = {"winner": tuned.winner, "tiling": tuned.tiling, "seconds": tuned.seconds}
    remembered.remember(device, problem, row)
    return tuned


def candidates(problem: Problem, net: MLP) -> list[Candidate]:
    """The paths that can take a step of the problem, each with the tiling by its rule, and cuBLAS on a GPU in
    the precision of the dtype."""
    names = [name for name in paths.STEP_ORDER if not refusal_of(problem, name)]
    found = [Candidate(name, tilings_of(problem, name)[0]) for name in names]
    if net.device.kind == "cuda" and problem.precision == problem.dtype and net.matmul != "kernels":
        found.append(Candidate(CUBLAS))
    return found


def _descend(problem: Problem, rule: Candidate, time_of: Callable[[Candidate], float]) -> Candidate:
    """The best of the path's tilings, gone through part by part, each with the best of the parts before."""
    best, start = rule, rule.tiling
    if start is None:
        return rule
    for part in (field.name for field in fields(start)):
        rivals = [one for one in tilings_of(problem, rule.path) if start.changes(one) == (part,)]
        for rival in (Candidate(rule.path, one) for one in rivals):
            if time_of(rival) < GAIN * time_of(best):
                best = rival
        start = best.tiling or start
    return best


def _step(
    net: MLP, problem: Problem, one: Candidate, rule: Optimizer, X: Array, y: Array
) -> Callable[[], object]:
    """A training step of a twin of ``net`` by this candidate."""
    from handgrad.network import MLP
    from handgrad.ops.optimizer import from_config
    from handgrad.plans.training import PlannedTraining

    matmul = CUBLAS if one.tiling is None else "kernels"
    words: dict[str, Any] = {**net.config(), "device": net.device, "matmul": matmul}
    twin, own_rule = MLP(**words), from_config(rule.config())
    if isinstance(twin._planned, PlannedTraining):
        twin._planned.take(Choice(lay_out(problem, one.path, one.tiling), "it is being measured"))
    return lambda: twin.train_step(X, y, own_rule)


# ---- the winner ------------------------------------------------------------------------------------------


def winner(net: MLP, problem: Problem) -> Candidate | None:
    """The remembered winner for this problem on the network's GPU.

    None where nothing was measured, and where what is remembered is no path or no tiling that this version
    knows for the problem.  A row without a tiling, as older versions wrote it, stands for the rule's.
    """
    if net.device.kind != "cuda":
        return None
    row = remembered.find(device_name(net), problem)
    path, name = row.get("winner"), row.get("tiling")
    if path == CUBLAS:
        return Candidate(CUBLAS) if net.matmul == "auto" else None
    if path not in paths.STEP_ORDER or refusal_of(problem, path):
        return None
    offered = tilings_of(problem, path)
    if name is None:
        return Candidate(path, offered[0])
    return next((Candidate(path, one) for one in offered if one.name == name), None)


def choice_of(problem: Problem, measured: Candidate) -> Choice:
    """The choice of a path and tiling that :func:`winner` gives."""
    assert measured.tiling is not None, "cuBLAS is no path"
    reason = f"{measured.path} with {measured.tiling.name} was measured to be the fastest on this GPU"
    return Choice(lay_out(problem, measured.path, measured.tiling), reason, measured=True)


def device_name(net: MLP) -> str:
    """The GPU's name, as its driver has it."""
    return _gpu_name(net.device.index)


@functools.cache
def _gpu_name(index: int) -> str:
    import cupy

    name = cupy.cuda.runtime.getDeviceProperties(index)["name"]
    return name.decode() if isinstance(name, bytes) else str(name)


# ---- measuring -------------------------------------------------------------------------------------------


def _data(problem: Problem) -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    X = random.standard_normal((problem.N, problem.D)).astype(problem.dtype)
    if problem.loss in loss_op.ELEMENTWISE:
        return X, random.random((problem.N, problem.C)).astype(problem.dtype)
    return X, random.integers(0, problem.C, problem.N).astype(np.int32)


def _seconds_of_a_step(step: Callable[[], object], xp: Any) -> float:
    """The median of several rounds; the first steps compile, allocate and capture."""
    for _ in range(3):
        step()
    synchronize(xp)
    begin = time.perf_counter()
    step()
    synchronize(xp)
    steps = max(1, int(SECONDS / ROUNDS / max(time.perf_counter() - begin, 1e-7)))
    found = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        synchronize(xp)
        found.append((time.perf_counter() - begin) / steps)
    return float(np.median(found))
