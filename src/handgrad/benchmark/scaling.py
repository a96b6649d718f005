"""How the time of a CPU training grows: with rows (on a disk past the memory), hidden units and threads.

Each curve keeps its raw samples; over rows and hidden units an exponent is fitted, the slope b of
log t = a + b log x over the upper part of the points, where the fixed costs are small.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from handgrad.benchmark import mapped
from handgrad.benchmark.process import Answering, Failed, SessionProcess, ask
from handgrad.benchmark.report import spread
from handgrad.benchmark.workloads import Workload
from handgrad.throughput import Shape

ROWS = (1_000, 10_000, 100_000, 1_000_000)
FIT_FROM_ROWS = 10_000
HIDDEN = (16, 32, 64, 128, 256, 512, 1024, 2048)
FIT_FROM_HIDDEN = 128
ROUNDS = 5
LIMIT = 64 * 2**20  # bytes that a training may allocate while it reads data of any size

Say = Callable[[str], None]
Start = Callable[[str, str, int, bool, int, str | None], Answering]


@dataclass(frozen=True)
class Plan:
    """What to measure: numbers of rows, of hidden units and of threads; the limit on the memory in bytes."""

    rows: tuple[int, ...] = ROWS
    hidden: tuple[int, ...] = HIDDEN
    threads: tuple[int, ...] = (1,)
    limit: int = LIMIT
    rounds: int = ROUNDS
    shapes: tuple[Shape, ...] = (Shape(8192, 784, 512, 10), Shape(1024, 784, 256, 10))
    batch: int = 4096  # rows of a step of the curve over hidden units
    seed: int = 0


def everything(threads: int, rows: int = ROWS[-1], limit: int = LIMIT) -> Plan:
    """Rows by powers of ten up to ``rows``, the usual hidden units, threads by powers of two."""
    counts = {1, threads} | {2**k for k in range(1, 10) if 2**k < threads}
    steps = [10**k for k in range(3, 12) if 10**k < rows]
    return Plan(rows=(*steps, rows), threads=tuple(sorted(counts)), limit=limit)


def measure(
    plan: Plan, curves: list[dict[str, Any]], note: Say, say: Say, start: Start | None = None
) -> list[dict[str, Any]]:
    """Add a curve over hidden units, threads and rows to ``curves``, point by point as they come."""
    begin = start or SessionProcess
    parts: dict[str, Callable[[], None]] = {}
    if plan.hidden:
        parts["hidden units"] = lambda: _over_hidden(plan, curves, say, begin)
    if len(plan.threads) > 1:
        parts["threads"] = lambda: _over_threads(plan, curves, say, begin)
    else:
        note("scaling with threads: not measured, there is one core")
    if plan.rows:
        parts["rows"] = lambda: _over_rows(plan, curves, note, say, begin)
    for name, part in parts.items():
        try:
            part()
        except Failed as error:  # the points until then stay
            note(f"scaling with {name}: stopped: {error}")
    return curves


def fit(points: Sequence[dict[str, Any]], lowest: float) -> dict[str, float] | None:
    """The exponent of the medians over x ≥ ``lowest``, its standard error and R²; None under three points."""
    chosen = [(one["x"], np.median(one["seconds"])) for one in points if one["x"] >= lowest]
    if len(chosen) < 3:
        return None
    x, y = np.log(np.array(chosen, dtype=float)).T
    slope, offset = np.polyfit(x, y, 1)
    left = y - (slope * x + offset)
    total = float(np.sum((y - y.mean()) ** 2))
    error = np.sqrt(np.sum(left**2) / (len(x) - 2) / np.sum((x - x.mean()) ** 2))
    return {
        "exponent": float(slope),
        "standard_error": float(error),
        "r_squared": 1.0 - float(np.sum(left**2)) / total if total else 1.0,
        "from": float(lowest),
        "factor": float(np.exp(offset)),
    }


def _curve(over: str, what: str, **more: Any) -> dict[str, Any]:
    return {"over": over, "what": what, "device": "cpu", "measured": True, "points": [], "fit": None, **more}


def _point(x: int, seconds: Sequence[float], **more: Any) -> dict[str, Any]:
    return {"x": x, "seconds": list(seconds), "milliseconds": spread(seconds, 1e3), **more}


def _over_hidden(plan: Plan, curves: list[dict[str, Any]], say: Say, start: Start) -> None:
    threads = max(plan.threads)
    curve = _curve("hidden", f"a step of {plan.batch:,}×784→H→10", threads=threads)
    curves.append(curve)
    with ExitStack() as stack:
        session = start("handgrad", "cpu", threads, True, plan.seed, None)
        stack.callback(session.close)
        session.receive()
        for hidden in plan.hidden:
            say(f"scaling: {hidden} hidden units")
            ask(session, "prepare", workload=Workload(Shape(plan.batch, 784, hidden, 10), "hidden"))
            once, _ = ask(session, "warm_up")
            repetitions = max(1, round(0.05 / once))
            taken = [ask(session, "sample", repetitions=repetitions) for _ in range(plan.rounds)]
            curve["points"].append(_point(hidden, taken))
            curve["fit"] = fit(curve["points"], FIT_FROM_HIDDEN)


def _over_threads(plan: Plan, curves: list[dict[str, Any]], say: Say, start: Start) -> None:
    with ExitStack() as stack:
        sessions = {}
        for count in plan.threads:
            sessions[count] = start("handgrad", "cpu", count, True, plan.seed, None)
            stack.callback(sessions[count].close)
            sessions[count].receive()
        for shape in plan.shapes:
            curve = _curve("threads", f"a step of {shape}")
            curves.append(curve)
            once: dict[int, float] = {}
            for count, session in sessions.items():
                say(f"scaling: {shape} with {count} threads")
                ask(session, "prepare", workload=Workload(shape))
                once[count], _ = ask(session, "warm_up")
            taken: dict[int, list[float]] = {count: [] for count in sessions}
            for _ in range(plan.rounds):
                for count, session in sessions.items():
                    repetitions = max(1, round(0.05 / once[count]))
                    taken[count].append(ask(session, "sample", repetitions=repetitions))
            curve["points"] += [_point(count, seconds) for count, seconds in taken.items()]


def _over_rows(plan: Plan, curves: list[dict[str, Any]], note: Say, say: Say, start: Start) -> None:
    need = max(plan.rows) * (mapped.INPUTS + 4)
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="handgrad-rows-"))
        except OSError as error:
            return note(f"scaling with rows: not measured, no folder for the data: {error}")
        free = shutil.disk_usage(folder).free
        if need > 0.9 * free:
            return note(
                f"scaling with rows: not measured, {need / 1e9:.1f} GB are needed in {folder} and "
                f"{free / 1e9:.1f} GB are free; fewer --rows, or set TMPDIR"
            )
        say(f"scaling: writing {max(plan.rows):,} rows ({need / 1e9:.1f} GB)")
        mapped.write_rows(Path(folder), max(plan.rows), plan.seed)
        threads = max(plan.threads)
        curve = _curve(
            "rows", "an epoch of 784→50→10 in batches of 1,024, uint8 rows mapped from a disk",
            threads=threads, limit=plan.limit, row_bytes=mapped.INPUTS,
            part_bytes=mapped.PART * mapped.INPUTS,
        )  # fmt: skip
        curves.append(curve)
        for rows in plan.rows:
            found = []
            for number in range(_repetitions(rows, plan.rounds)):
                say(f"scaling: {rows:,} rows, epoch {number + 1}")
                found.append(_epoch(start, threads, plan, folder, rows, True))
            growth = [one["peak_growth"] for one in found if one["peak_growth"] is not None]
            curve["points"].append(
                _point(rows, [one["seconds"] for one in found], peak_growth=max(growth, default=None))
            )
            curve["fit"] = fit(curve["points"], FIT_FROM_ROWS)
        _beside_memory(start, threads, plan, folder, curve, say)
    return None


def _repetitions(rows: int, rounds: int) -> int:
    """An epoch of many rows is repeated less often; its own batches average."""
    return max(1, rounds if rows <= 100_000 else min(rounds, 3_000_000 // rows))


def _epoch(start: Start, threads: int, plan: Plan, folder: str, rows: int, is_mapped: bool) -> dict[str, Any]:
    """In a new process each time: a limit on the memory cannot be lifted again, and peaks are its own."""
    session = start("handgrad", "cpu", threads, True, plan.seed, None)
    try:
        session.receive()
        limit = plan.limit if is_mapped else None
        found: dict[str, Any] = ask(
            session, "train_mapped", folder=folder, rows=rows, mapped=is_mapped, limit=limit
        )
        return found
    finally:
        session.close()


def _beside_memory(
    start: Start, threads: int, plan: Plan, folder: str, curve: dict[str, Any], say: Say
) -> None:
    """The most rows up to five times the limit, mapped (and cached by now) and in memory, in turns."""
    rows = max((r for r in plan.rows if r <= max(100_000, 5 * plan.limit // mapped.INPUTS)), default=None)
    if rows is None:
        return
    pairs: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(min(3, plan.rounds)):
        for is_mapped, taken in pairs.items():
            say(f"scaling: {rows:,} rows {'mapped' if is_mapped else 'in memory'}")
            taken.append(_epoch(start, threads, plan, folder, rows, is_mapped)["seconds"])
    curve["in_memory"] = {"rows": rows, "mapped": pairs[True], "in_memory": pairs[False]}
