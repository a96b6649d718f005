"""Which path runs a problem: one for each, by a total order.

1. A path that was asked for by name, where it can.
2. For whole epochs, R2 where it can and the model predicts it faster than the captured launches of a step, on
   the named GPU of the architecture.
3. The first of R1, R3, R4 that can.  Where the model predicts that a later one is much faster, the reason
   says so; the model knows peaks alone, and measuring (:mod:`handgrad.plans.tuning`) decides.

A precision that none of them can do on this architecture gives way to float32, and the reason says so.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

from handgrad.gpus import LABEL, Gpu, find_gpu
from handgrad.ops.tilings import Tiling
from handgrad.ops.two_layer import Layout, Problem
from handgrad.plans import model, paths

# Architecture -> the named GPU that predictions are compared on.
STAND_FOR = {
    **dict.fromkeys(("sm_75", "sm_86", "sm_89", "sm_120"), "RTX 4090"),
    **{"sm_80": "A100", "sm_90": "H100", "sm_100": "H100"},
}


FASTER = 1.25  # times, from which on a prediction that favours a later path is worth a word


@dataclass(frozen=True)
class Choice:
    """A path's layout, why it is this one, and what was asked for but cannot be, in one line ("" else).

    ``measured``: path and tiling, on this GPU.
    """

    layout: Layout
    reason: str
    instead: str = ""
    measured: bool = False


class NoPath(ValueError):
    """No path takes the problem; the message names each with its reason."""


@functools.lru_cache(maxsize=256)
def choose(problem: Problem, path: str | None = None, epoch: bool = False) -> Choice:
    """The choice for one step of ``problem``, or for whole epochs of such steps.

    ``path``: "R1" ... "R4", taken where it can; ``ValueError`` for another name, :class:`NoPath` where no
    path can.
    """
    if path is not None:
        refusal = refusal_of(problem, path) if epoch or path != paths.EPOCH else "it takes whole epochs"
        if not refusal:
            return Choice(lay_out(problem, path), f"{path} was asked for")
        other = choose(problem, None, epoch)
        instead = f"{path} was asked for, but {refusal}; {other.layout.path} runs instead"
        return dataclasses.replace(other, instead="; ".join(filter(None, (instead, other.instead))))
    if problem.precision not in ("float32", "float64") and all(
        refusal_of(problem, name) for name in paths.STEP_ORDER
    ):
        last = refusal_of(problem, paths.STEP_ORDER[-1])
        other = choose(dataclasses.replace(problem, precision="float32"), None, epoch)
        instead = f"precision {problem.precision} was asked for, but {last}; float32 runs instead"
        return dataclasses.replace(other, instead=instead)
    step = _first_that_can(problem)
    if not epoch:
        return step
    refusal = refusal_of(problem, paths.EPOCH)
    if refusal:
        return dataclasses.replace(step, reason=f"{step.reason}; R2 cannot: {refusal}")
    named = _on_named_gpu(problem)
    if refusal_of(named, paths.EPOCH):
        return step
    fast, slow = (predicted_seconds(named, name) for name in (paths.EPOCH, step.layout.path))
    slow += model.GATHERS * model.CAPTURED_LAUNCH_SECONDS
    times = f"{fast * 1e6:.1f} against {slow * 1e6:.1f} µs"
    compared = f"{times} a step of {step.layout.path} with its gathers, captured, {_where(problem)}"
    if fast < slow:
        return Choice(lay_out(problem, paths.EPOCH), f"predicted faster: {compared} ({LABEL})")
    return dataclasses.replace(step, reason=f"{step.reason}; R2 is predicted slower: {compared}")


def _first_that_can(problem: Problem) -> Choice:
    refusals: list[str] = []
    for name in paths.STEP_ORDER:
        refusal = refusal_of(problem, name)
        if not refusal:
            reason = (*refusals, f"{name} is the first that can", _faster_later(problem, name))
            return Choice(lay_out(problem, name), "; ".join(filter(None, reason)))
        refusals.append(f"{name} cannot: {refusal}")
    raise NoPath("path: " + "; ".join(refusals))


def _faster_later(problem: Problem, path: str) -> str:
    """Which later path the model predicts :data:`FASTER` times as fast as ``path``; "" where none."""
    named = _on_named_gpu(problem)
    later = paths.STEP_ORDER[paths.STEP_ORDER.index(path) + 1 :]
    times = {name: predicted_seconds(named, name) for name in (path, *later) if not refusal_of(named, name)}
    best = min(times, key=times.__getitem__, default=path)
    if path not in times or times[path] < FASTER * times[best]:
        return ""
    compared = f"{times[best] * 1e6:.1f} against {times[path] * 1e6:.1f} µs {_where(problem)}"
    return f"{best} is predicted faster, {compared} ({LABEL}; handgrad.tune measures)"


def _on_named_gpu(problem: Problem) -> Problem:
    """With the multiprocessors of the named GPU, not of this very one: a choice decides the bits."""
    return dataclasses.replace(problem, sms=gpu_like(problem).sms)


def _where(problem: Problem) -> str:
    return f"on {gpu_like(problem).name}, which stands for {problem.arch}"


def predicted_seconds(named: Problem, path: str) -> float:
    """Of a step, on the named GPU of the architecture."""
    return model.predict(lay_out(named, path), gpu_like(named)).seconds


def refusal_of(problem: Problem, path: str) -> str:
    """Why ``path`` cannot do the problem; "" where it can."""
    if path in paths.NAMES and path not in paths.MODULES:
        return "it is not part of this version"
    return paths.module_of(path).refusal(problem)


def tilings_of(problem: Problem, path: str) -> tuple[Tiling, ...]:
    """What the path offers, the rule's first."""
    return paths.module_of(path).tilings(problem)


@functools.lru_cache(maxsize=256)
def lay_out(problem: Problem, path: str, tiling: Tiling | None = None) -> Layout:
    """The path's own layout, with the rule's tiling where None."""
    return paths.module_of(path).lay_out(problem, tiling)


def gpu_like(problem: Problem) -> Gpu:
    """The named GPU that stands for the problem's architecture."""
    return find_gpu(STAND_FOR[problem.arch])
