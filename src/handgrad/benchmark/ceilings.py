"""What the machine can do at most, measured in the same run: copying and reading memory.

The rate of square matrix products is asked of every library's own BLAS (``Session.square_product``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from handgrad.arrays import resolve_device, synchronize

SQUARE = 1536  # 7.2 GFLOP: long against a thread's start, short against a run
BUFFER_BYTES = 256 * 2**20  # several times the largest cache
REPETITIONS = 5


def bandwidth(device: str, threads: int, buffer_bytes: int = BUFFER_BYTES) -> dict[str, float] | None:
    """``{"copy": …, "read": …}`` in bytes a second, the best of several; None on the emulator.

    Copying counts the bytes read and the bytes written (not those that a cache fetches before it writes).  On
    the CPU every thread works on its own part; reading is a dot product of a part with itself.
    """
    target = resolve_device(device)
    if target.kind == "emulator":
        return None
    if target.kind == "cuda":
        with target:
            return _of_gpu(target.array_module, buffer_bytes)
    import threadpoolctl

    source = np.ones(buffer_bytes // 4, dtype=np.float32)
    copy = np.zeros_like(source)
    sources, copies = np.array_split(source, threads), np.array_split(copy, threads)
    pairs = list(zip(sources, copies, strict=True))
    with ThreadPoolExecutor(threads) as pool, threadpoolctl.threadpool_limits(limits=1, user_api="blas"):
        return {
            "copy": 2 * source.nbytes / _best(lambda: list(pool.map(_copy, pairs))),
            "read": source.nbytes / _best(lambda: list(pool.map(_read, sources))),
        }


def _copy(pair: tuple[Any, Any]) -> None:
    np.copyto(pair[1], pair[0])


def _read(part: Any) -> float:
    return float(np.dot(part, part))


def _of_gpu(cupy: Any, buffer_bytes: int) -> dict[str, float]:
    source = cupy.ones(buffer_bytes // 4, dtype=cupy.float32)
    copy = cupy.zeros_like(source)

    def copy_all() -> None:
        copy[...] = source
        synchronize(cupy)

    def read_all() -> None:
        source.sum()
        synchronize(cupy)

    return {"copy": 2 * source.nbytes / _best(copy_all), "read": source.nbytes / _best(read_all)}


def _best(call: Callable[[], Any]) -> float:
    call()
    taken = []
    for _ in range(REPETITIONS):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return min(taken)
