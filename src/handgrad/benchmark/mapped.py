"""An epoch over data on a disk, with a limit on the memory: what it takes in time and in resident size.

The rows are mapped a part at a time and let go after it, so that neither the number of rows nor the size of
the file shows in the resident size.  Every number here is of this process, which a session asks in a process
of its own.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np

from handgrad.network import MLP
from handgrad.ops.optimizer import SGD

INPUTS, HIDDEN, OUTPUTS, BATCH = 784, 50, 10, 1024
PART = 32 * BATCH  # rows mapped at a time, 25 MB of uint8


def write_rows(folder: Path, rows: int, seed: int = 0) -> int:
    """``X.u8`` (rows, 784), ``y.i4`` (rows,): random pixels and labels in ``folder``; the bytes written."""
    rng = np.random.default_rng(seed)
    with (folder / "X.u8").open("wb") as X, (folder / "y.i4").open("wb") as y:
        for start in range(0, rows, PART):
            count = min(PART, rows - start)
            X.write(rng.bytes(count * INPUTS))
            y.write(rng.integers(OUTPUTS, size=count, dtype=np.int32).tobytes())
        return X.tell() + y.tell()


def train(
    folder: str, rows: int, mapped: bool = True, limit: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """An epoch of 784→50→10 in batches of 1,024 over the first ``rows`` rows in ``folder``.

    Returns seconds, the last loss, and the growth of the resident size at its peak in bytes (None where the
    system does not tell).  ``mapped=False`` reads everything into memory first, untimed.  ``limit``: bytes
    that the process may allocate beyond what it has (RLIMIT_DATA); above it, ``MemoryError``.
    """
    net = MLP([INPUTS, HIDDEN, OUTPUTS], loss="cross_entropy", device="cpu", seed=seed)
    optimizer = SGD(lr=1e-3)
    order = np.arange(PART, dtype=np.int32)

    def part(start: int, count: int) -> tuple[Any, Any]:
        X = np.memmap(Path(folder) / "X.u8", np.uint8, "r", offset=start * INPUTS, shape=(count, INPUTS))
        y = np.memmap(Path(folder) / "y.i4", np.int32, "r", offset=start * 4, shape=(count,))
        return X, y

    def pass_over(read: Any, until: int) -> Any:
        losses: Any = np.zeros(1)
        for start in range(0, until, PART):
            count = min(PART, until - start)
            X, y = read(start, count)
            losses = net.train_epoch(X, y, order[:count], BATCH, optimizer, scale=1 / 255)
        return losses[-1]

    pass_over(part, min(rows, BATCH))  # buffers, threads, code
    _reset_peak()
    before = resident("VmRSS")
    if limit is not None:
        _limit_data(limit)
    kept = None if mapped else tuple(np.array(array) for array in part(0, rows))
    begin = time.perf_counter()
    if kept is None:
        loss = pass_over(part, rows)
    else:
        X, y = kept
        loss = pass_over(lambda start, count: (X[start : start + count], y[start : start + count]), rows)
    taken = time.perf_counter() - begin
    peak = resident("VmHWM")
    growth = None if before is None or peak is None else peak - before
    return {"seconds": taken, "loss": float(loss), "peak_growth": growth}


def resident(field: str) -> int | None:
    """VmRSS, VmHWM or VmData of this process in bytes, from /proc; None elsewhere."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _reset_peak() -> None:
    """Make the peak what is resident now, where the system allows."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _limit_data(limit: int) -> None:
    import resource

    now = resident("VmData")
    if now is None:
        raise RuntimeError("limit: needs /proc/self/status, which this system lacks; measure without a limit")
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (now + limit, hard))
