"""The stages of the acceptance run, one after another, within a limit of time."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from handgrad.acceptance import ceilings, rivals, timing
from handgrad.arrays import resolve_device
from handgrad.kernel import device_limits
from handgrad.plans import paths
from handgrad.throughput import SHAPES, Shape

SCHEMA = "handgrad.acceptance/1"
PRECISIONS = ("float32", "tf32", "3xtf32", "bfloat16")


@dataclass(frozen=True)
class Limits:
    """How long and how large: ``seconds`` for everything, of which a figure takes ``figure_seconds`` in
    ``rounds``; ``checks``: "all", "quick" or "none" of the kernels' cases."""

    seconds: float = 540.0
    figure_seconds: float = 1.5
    rounds: int = 7
    checks: str = "all"
    megabytes: int = 512
    side: int = 8192
    shapes: tuple[Shape, ...] = SHAPES
    precisions: tuple[str, ...] = PRECISIONS
    rivals: tuple[str, ...] = rivals.NAMES
    rival_seconds: float = 60.0  # that one may take, its start included
    path_share: float = 0.5  # of the time, for the paths


SMALL = Limits(
    seconds=120.0,
    figure_seconds=0.02,
    rounds=2,
    checks="none",
    megabytes=1,
    side=64,
    shapes=(Shape(48, 20, 12, 3), Shape(32, 16, 8, 1)),
    precisions=("float32",),
)


def run(
    device: str, limits: Limits | None = None, progress: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """The whole run on ``device`` ("cuda", "cuda:N" or "emulator"); the report, JSON-able.

    Raises ``ValueError`` for the CPU.  A stage that fails or finds no time is listed in ``not_run``.
    """
    target = resolve_device(device)
    if target.kind == "cpu":
        raise ValueError("device: expected 'cuda', 'cuda:N' or 'emulator', got 'cpu', which runs no kernels")
    chosen = limits or (SMALL if target.kind == "emulator" else Limits())
    say = progress or (lambda text: None)
    begin = time.monotonic()

    def left() -> float:
        return chosen.seconds - (time.monotonic() - begin)

    not_run: list[dict[str, str]] = []
    with target:
        facts = device_limits(target.array_module)
    say("ceilings: copies and matrix products")
    top = ceilings.measure(target, chosen.megabytes, chosen.side)
    work = [
        (path, shape, precision)
        for shape in chosen.shapes
        for precision in chosen.precisions
        for path in paths.NAMES
    ]
    say(f"paths: {len(work)} figures")
    figures = timing.measure(
        work, str(target), top, chosen.figure_seconds, chosen.rounds, chosen.path_share * left()
    )
    for one in figures:
        if not one.seconds:
            not_run.append({"what": f"{one.name} {one.precision} {one.shape}", "why": one.note})
    for shape in chosen.shapes:
        for name in chosen.rivals:
            what = f"{name} {shape}"
            say(what)
            if left() <= 0:
                not_run.append({"what": what, "why": "out of time"})
                continue
            limit = min(chosen.rival_seconds, left())
            figure = rivals.measure(name, shape, str(target), chosen.figure_seconds, chosen.rounds, limit)
            same = [one.bound for one in figures if one.shape == figure.shape and one.bound]
            figure.bound = same[0] if same else None
            figures.append(figure)
            if not figure.seconds:
                not_run.append({"what": what, "why": figure.note})
    checks = _check(target, chosen, left(), not_run, say)
    return {
        "schema": SCHEMA,
        "device": str(target),
        "emulated": target.kind == "emulator",
        "machine": {"gpu": facts.__dict__, "host": platform.platform(), "python": platform.python_version()},
        "ceilings": {"copy_bytes_per_second": top.copy, "operations_per_second": top.product},
        "checks": checks,
        "figures": [one.as_dict() for one in figures],
        "not_run": not_run,
        "seconds": time.monotonic() - begin,
    }


def _check(
    target: Any, chosen: Limits, left: float, not_run: list[dict[str, str]], say: Callable[[str], None]
) -> dict[str, Any]:
    """Cases passed and failed, kernel by kernel until the time is over, the quick ones of each first."""
    from handgrad.proof import correctness

    found: dict[str, Any] = {"passed": 0, "failed": []}
    if chosen.checks == "none":
        not_run.append({"what": "checks", "why": "handgrad kernels check runs them"})
        return found
    end = time.monotonic() + left
    for quick in (True,) if chosen.checks == "quick" else (True, False):
        for op in correctness.chosen_ops(None):
            if time.monotonic() > end:
                not_run.append({"what": f"check {op}{' (quick)' * quick}", "why": "out of time"})
                continue
            say(f"checking {op}")
            cases = correctness.run(target, ops=[op], quick=quick)
            found["passed"] += sum(case.passed for case in cases)
            found["failed"] += [
                f"{case.op} {case.dtype} {case.shape}: {case.detail}" for case in cases if not case.passed
            ]
    return found
