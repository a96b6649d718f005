"""Measured winners: which path with which tiles, or cuBLAS, takes the least time for a shape on this GPU.

``tune(net, batch_size)`` times every path on the GPU with the tiling by rule.  Of each path that comes near
the fastest, it goes through the tiling's parts one by one: with the best tile of A1, say, through those of
dW1, with that through the partitions.  With ``samples`` it then times an epoch of the fastest steps, as
``fit`` runs them, and one of R2 with its rule's cells and with others.  Winners are remembered
(:mod:`handgrad.plans.remembered`), the step's and the epoch's; training and ``plan`` then take them where no
path was asked for (:mod:`handgrad.plans.winners`).  Without a measurement the choice follows the total order
and the model, and tiles follow the path's rule.

The winner decides the order of sums, so the bits of a result depend on it; ``path=`` fixes them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from handgrad.arrays import Array, synchronize, to_device
from handgrad.ops import loss as loss_op
from handgrad.ops.two_layer import Problem
from handgrad.plans import paths, remembered
from handgrad.plans.choice import Choice, lay_out, refusal_of, tilings_of
from handgrad.plans.problems import count_of, problem_of
from handgrad.plans.winners import CUBLAS, STEPS, Candidate, device_name

if TYPE_CHECKING:
    from handgrad.network import MLP
    from handgrad.ops.optimizer import Optimizer

ROUNDS, SECONDS = 7, 0.2  # of each candidate; each round fills its part of the seconds
WORTH = 1.5  # times the fastest path's seconds: up to there, a path's other tilings are measured
GAIN = 0.98  # of the best tiling's seconds so far, that another has to stay below: noise changes nothing
PIXELS = {"scale": 1 / 255, "shift": 0.0}  # of uint8

Measure = Callable[[Callable[[], object], Any], float]
Seconds = Callable[[Candidate], float]


@dataclass(frozen=True)
class TunedEpoch:
    """Of an epoch of ``samples``: ``winner`` "R2", with its cells in ``tiling``, or "steps", with "";
    ``seconds`` by candidate, in the order in which they were measured; ``refusal``: why R2 cannot, or ""."""

    samples: int
    winner: str
    tiling: str
    seconds: dict[str, float]
    refusal: str = ""

    def __str__(self) -> str:
        of_what = f"an epoch of {self.samples} samples"
        if self.refusal:
            return f"{of_what} is one of steps: R2 cannot, {self.refusal}"
        fastest = f"{self.winner} ({self.tiling})" if self.tiling else f"one of {self.winner}"
        return "\n".join([f"{of_what}: the fastest is {fastest}; measured:", *_rows(self.seconds)])


@dataclass(frozen=True)
class Tuned:
    """``winner``: a path's name or "cublas"; ``tiling``: the winner's by name, "" for cuBLAS; ``seconds``: of
    a step, by candidate, in the order in which they were measured on ``device``; ``inputs``: X as stored;
    ``epoch``: None where only steps were measured."""

    device: str
    winner: str
    tiling: str
    seconds: dict[str, float]
    inputs: str = ""
    epoch: TunedEpoch | None = None

    def __str__(self) -> str:
        fastest = f"{self.winner} ({self.tiling})" if self.tiling else self.winner
        stored = " of uint8" if self.inputs == "uint8" else ""
        lines = [f"{fastest} is the fastest on {self.device}; measured, a step{stored}:"]
        lines += _rows(self.seconds)
        return "\n".join([*lines, *([] if self.epoch is None else [str(self.epoch)])])


def _rows(seconds: dict[str, float]) -> list[str]:
    return [f"  {value * 1e6:>10.1f} µs  {name}" for name, value in seconds.items()]


def tune(
    net: MLP,
    batch_size: int,
    *,
    optimizer: Optimizer | None = None,
    samples: int | None = None,
    inputs: str | None = None,
) -> Tuned:
    """Measure paths and tilings for steps of ``batch_size``, remember the fastest, leave ``net`` as it is.

    Parameters
    ----------
    optimizer: whose rule is applied; SGD with momentum where None
    samples: measure epochs of so many samples too, of the fastest steps and of R2; steps alone where None
    inputs: X as it is stored, "uint8" or dtype's name, which is the default

    Raises ``ValueError`` in one line for wrong arguments, and without a GPU: there, the choice follows the
    model.
    """
    if net.device.kind != "cuda":
        raise ValueError(
            f"tune: expected a network on a GPU, got {net.device}; without one the choice follows the model"
        )
    with net.device:
        name = device_name(net)
        tuned = measure_candidates(net, batch_size, optimizer, name, _seconds, samples, inputs)
    if net._planned is not None:
        net._planned.forget()
    return tuned


def measure_candidates(
    net: MLP,
    batch_size: int,
    optimizer: Optimizer | None,
    device: str,
    measure: Measure,
    samples: int | None = None,
    inputs: str | None = None,
) -> Tuned:
    """:func:`tune` with the measuring left to ``measure(run, xp)``, of a step or an epoch."""
    from handgrad.ops.optimizer import SGD

    N = count_of("batch_size", batch_size)
    if samples is not None and count_of("samples", samples) < N:
        raise ValueError(f"samples: expected {N} or more, a batch, got {samples}")
    rule = SGD(1e-3, momentum=0.9) if optimizer is None else optimizer
    problem = problem_of(net, N, rule=rule.rule, inputs=inputs)
    found = candidates(problem, net)
    if not any(one.tiling for one in found):
        raise ValueError(f"tune: {refusal_of(problem, paths.STEP_ORDER[-1])}")
    data = _on_device(net, _data(problem, N))

    def seconds_of(one: Candidate) -> float:
        return measure(_step(net, problem, one, rule, *data), net.xp)

    best, seconds = _fastest(problem, found, seconds_of)
    row = {"winner": best.path, "tiling": _tiling(best), "seconds": _named(seconds)}
    remembered.remember(device, problem, row)
    epoch = None if samples is None else _tune_epoch(net, problem, best, rule, device, measure, samples)
    return Tuned(device, best.path, _tiling(best), _named(seconds), problem.inputs, epoch)


def candidates(problem: Problem, net: MLP) -> list[Candidate]:
    """The paths that can take a step of the problem, each with the tiling by its rule, and cuBLAS on a GPU in
    the precision of the dtype."""
    names = [name for name in paths.STEP_ORDER if not refusal_of(problem, name)]
    found = [Candidate(name, tilings_of(problem, name)[0]) for name in names]
    if net.device.kind == "cuda" and problem.precision == problem.dtype and net.matmul != "kernels":
        found.append(Candidate(CUBLAS))
    return found


def _tune_epoch(
    net: MLP,
    problem: Problem,
    steps: Candidate,
    rule: Optimizer,
    device: str,
    measure: Measure,
    samples: int,
) -> TunedEpoch:
    """Epochs of R2 against that of ``steps``, the fastest; the winner is remembered."""
    refusal = refusal_of(problem, paths.EPOCH)
    if refusal:
        return TunedEpoch(samples, STEPS, "", {}, refusal)
    data = _on_device(net, _data(problem, samples))

    def seconds_of(one: Candidate) -> float:
        return measure(_epoch(net, problem, steps if one.path == STEPS else one, rule, *data), net.xp)

    found = [Candidate(STEPS), Candidate(paths.EPOCH, tilings_of(problem, paths.EPOCH)[0])]
    best, seconds = _fastest(problem, found, seconds_of)
    named = {
        f"{STEPS} of {steps.name}" if one.path == STEPS else one.name: value for one, value in seconds.items()
    }
    tuned = TunedEpoch(samples, best.path, _tiling(best), named)
    row = {"winner": tuned.winner, "tiling": tuned.tiling, "steps": steps.path, "seconds": named}
    remembered.remember(device, problem, row, epoch=True)
    return tuned


def _fastest(
    problem: Problem, found: list[Candidate], seconds_of: Seconds
) -> tuple[Candidate, dict[Candidate, float]]:
    """The first of the fastest, with the best of its path's tilings, and what was measured."""
    seconds: dict[Candidate, float] = {}

    def time_of(one: Candidate) -> float:
        if one not in seconds:
            seconds[one] = seconds_of(one)
        return seconds[one]

    worth = WORTH * min([time_of(one) for one in found if one.path != CUBLAS])
    found = [_descend(problem, one, time_of) if time_of(one) <= worth else one for one in found]
    return min(found, key=time_of), seconds


def _descend(problem: Problem, rule: Candidate, time_of: Seconds) -> Candidate:
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


def _tiling(one: Candidate) -> str:
    return "" if one.tiling is None else one.tiling.name


def _named(seconds: dict[Candidate, float]) -> dict[str, float]:
    return {one.name: value for one, value in seconds.items()}


# ---- what is measured ------------------------------------------------------------------------------------


def _step(
    net: MLP, problem: Problem, one: Candidate, rule: Optimizer, X: Array, y: Array
) -> Callable[[], object]:
    """A training step of a twin of ``net`` by this candidate.  cuBLAS takes uint8 converted, as it has to."""
    from handgrad.plans.training import PlannedTraining

    twin, own_rule = _twin(net, problem, one), _copy(rule)
    planned = twin._planned
    if problem.inputs != "uint8" or not isinstance(planned, PlannedTraining):
        return lambda: twin.train_step(X, y, own_rule)
    choice, loss = _choice(problem, one), net.xp.empty((1,), dtype=net.dtype)
    return lambda: planned.step_by(choice, X, y, own_rule, loss, **PIXELS)


def _epoch(
    net: MLP, problem: Problem, one: Candidate, rule: Optimizer, X: Array, y: Array
) -> Callable[[], object]:
    """An epoch of a twin of ``net`` by this candidate, shuffled, as ``fit`` runs it."""
    twin, own_rule = _twin(net, problem, one), _copy(rule)
    order = np.random.default_rng(0).permutation(int(X.shape[0])).astype(np.int32)
    factors = PIXELS if problem.inputs == "uint8" else {}
    return lambda: twin.train_epoch(X, y, order, problem.N, own_rule, **factors)


def _twin(net: MLP, problem: Problem, one: Candidate) -> MLP:
    """A network like ``net`` that runs its batches by this candidate."""
    from handgrad.network import MLP
    from handgrad.plans.training import PlannedTraining

    matmul = CUBLAS if one.path == CUBLAS else "kernels" if net.matmul == "kernels" else "auto"
    words: dict[str, Any] = {**net.config(), "device": net.device, "matmul": matmul}
    twin = MLP(**words)
    if isinstance(twin._planned, PlannedTraining):
        twin._planned.take(_choice(problem, one))
    return twin


def _choice(problem: Problem, one: Candidate) -> Choice:
    return Choice(lay_out(problem, one.path, one.tiling), "it is being measured")


def _copy(rule: Optimizer) -> Optimizer:
    from handgrad.ops.optimizer import from_config

    return from_config(rule.config())


def _data(problem: Problem, rows: int) -> tuple[Any, Any]:
    """X and y, for the CPU."""
    random = np.random.default_rng(0)
    if problem.inputs == "uint8":
        X: Any = random.integers(0, 256, (rows, problem.D), dtype=np.uint8)
    else:
        X = random.standard_normal((rows, problem.D), dtype=np.dtype(problem.dtype))
    if problem.loss in loss_op.ELEMENTWISE:
        return X, random.random((rows, problem.C)).astype(problem.dtype)
    return X, random.integers(0, problem.C, rows).astype(np.int32)


def _on_device(net: MLP, data: tuple[Any, Any]) -> tuple[Array, Array]:
    X, y = (to_device(array, net.device) for array in data)
    return X, y


def _seconds(run: Callable[[], object], xp: Any) -> float:
    """The median of several rounds; the first runs compile, allocate and capture."""
    for _ in range(3):
        run()
    synchronize(xp)
    begin = time.perf_counter()
    run()
    synchronize(xp)
    runs = max(1, int(SECONDS / ROUNDS / max(time.perf_counter() - begin, 1e-7)))
    found = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(runs):
            run()
        synchronize(xp)
        found.append((time.perf_counter() - begin) / runs)
    return float(np.median(found))
