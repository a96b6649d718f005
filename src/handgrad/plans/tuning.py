"""Measured winners: which path, or cuBLAS, takes the least time for a shape on this GPU.

``tune(net, batch_size)`` times every candidate on the GPU and remembers the winner in ``plans.json`` of the
cache folder, by device, shape, types and precision; training and ``plan`` then take it where no path was
asked for.  Without a measurement the choice follows the total order and the model.

The winner decides the order of sums, so the bits of a result depend on it; ``path=`` fixes it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from handgrad.arrays import synchronize, to_device
from handgrad.ops import loss as loss_op
from handgrad.ops.two_layer import Problem
from handgrad.plans import paths
from handgrad.plans.choice import refusal_of
from handgrad.plans.problems import problem_of

if TYPE_CHECKING:
    from handgrad.network import MLP
    from handgrad.ops.optimizer import Optimizer

CUBLAS = "cublas"
FILE = "plans.json"
ROUNDS, SECONDS = 7, 0.2  # of each candidate; each round fills its part of the seconds

Measure = Callable[[Callable[[], object], Any], float]


@dataclass(frozen=True)
class Tuned:
    """``winner``: a path's name or "cublas"; ``seconds``: of a step, by candidate; measured on ``device``."""

    device: str
    winner: str
    seconds: dict[str, float]

    def __str__(self) -> str:
        times = ", ".join(f"{name} {value * 1e6:.1f} µs" for name, value in self.seconds.items())
        return f"{self.winner} is the fastest on {self.device} (measured: {times})"


def tune(net: MLP, batch_size: int, *, optimizer: Optimizer | None = None) -> Tuned:
    """Measure every candidate for steps of ``batch_size`` and remember the fastest; ``net`` is left as it is.

    Raises ``ValueError`` without a GPU: there, the choice follows the model.
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
    from handgrad.network import MLP
    from handgrad.ops.optimizer import SGD, from_config

    rule = SGD(1e-3, momentum=0.9) if optimizer is None else optimizer
    problem = problem_of(net, batch_size, rule=rule.rule)
    seconds: dict[str, float] = {}
    X, y = (to_device(array, net.device) for array in _data(problem))
    for name in candidates(problem, net):
        matmul = CUBLAS if name == CUBLAS else "kernels"
        words: dict[str, Any] = {**net.config(), "device": net.device, "matmul": matmul}
        twin = MLP(**words, path=None if name == CUBLAS else name)
        own_rule = from_config(rule.config())
        seconds[name] = measure(lambda twin=twin, own_rule=own_rule: twin.train_step(X, y, own_rule), net.xp)  # type: ignore[misc]
    tuned = Tuned(device, min(seconds, key=seconds.__getitem__), seconds)
    _remember(tuned, problem)
    return tuned


def candidates(problem: Problem, net: MLP) -> list[str]:
    """The paths that can take a step of the problem, and cuBLAS on a GPU in the precision of the dtype."""
    found = [name for name in paths.STEP_ORDER if not refusal_of(problem, name)]
    if net.device.kind == "cuda" and problem.precision == problem.dtype and net.matmul != "kernels":
        found.append(CUBLAS)
    return found


def winner(net: MLP, problem: Problem) -> str | None:
    """The remembered winner for this problem on the network's GPU; None where nothing was measured."""
    if net.device.kind != "cuda":
        return None
    row = _read(_stamp()).get(device_name(net), {}).get(key_of(problem), {})
    name = row.get("winner")
    known = name in paths.STEP_ORDER and not refusal_of(problem, name)
    return name if known or (name == CUBLAS and net.matmul == "auto") else None


def device_name(net: MLP) -> str:
    """The GPU's name, as its driver has it."""
    return _gpu_name(net.device.index)


@functools.cache
def _gpu_name(index: int) -> str:
    import cupy

    name = cupy.cuda.runtime.getDeviceProperties(index)["name"]
    return name.decode() if isinstance(name, bytes) else str(name)


def key_of(problem: Problem) -> str:
    """What a measurement holds for: all that the kernels depend on."""
    p = problem
    bias = "bias" if p.bias else "no bias"
    words = (p.activation, p.output, p.loss, bias, p.dtype, p.precision, p.inputs, p.rule)
    return " ".join((f"{p.N}x{p.D}x{p.H}x{p.C}", *words))


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


# ---- remembering -----------------------------------------------------------------------------------------


def file() -> Path | None:
    """``plans.json`` in ``$HANDGRAD_CACHE``, else ``$XDG_CACHE_HOME/handgrad``, else ``~/.cache/handgrad``;
    None without a home."""
    chosen, xdg = os.environ.get("HANDGRAD_CACHE", ""), os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(chosen) if chosen else (Path(xdg) if xdg else Path.home() / ".cache") / "handgrad"
    except RuntimeError:
        return None
    return base.absolute() / FILE


def _stamp() -> tuple[str, int]:
    """Changes with the file."""
    place = file()
    with contextlib.suppress(OSError):
        if place is not None:
            return str(place), place.stat().st_mtime_ns
    return "", 0


@functools.lru_cache(maxsize=4)
def _read(stamp: tuple[str, int]) -> dict[str, dict[str, dict[str, Any]]]:
    """What is remembered; nothing where the file is missing or is none of ours."""
    try:
        found = json.loads(Path(stamp[0]).read_text(encoding="utf-8"))
        assert all(isinstance(row, dict) for rows in found.values() for row in rows.values())
    except (OSError, ValueError, AttributeError, AssertionError):
        return {}
    return dict(found)


def _remember(tuned: Tuned, problem: Problem) -> None:
    """Add the measurement to the file, whole or not at all; a folder that cannot be written is no error."""
    place = file()
    if place is None:
        return
    known = json.loads(json.dumps(_read(_stamp())))
    row = {"winner": tuned.winner, "seconds": tuned.seconds}
    known.setdefault(tuned.device, {})[key_of(problem)] = row
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False, encoding="utf-8") as out:
            json.dump(known, out, indent=1, sort_keys=True)
        Path(out.name).replace(place)
