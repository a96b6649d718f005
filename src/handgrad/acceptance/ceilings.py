"""What a card does at best: bytes a second of a copy, operations a second of a matrix product."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from handgrad.arrays import Device, synchronize

ROUNDS = 7


@dataclass(frozen=True)
class Ceilings:
    """Measured on ``device``: medians.  ``copy``: bytes read and written a second; ``product``: operations a
    second of the library's float32 matrix product, by precision."""

    device: str
    copy: float
    product: dict[str, float]

    def bound(self, bytes: int, operations: int, precision: str) -> float:
        """The least seconds for this traffic and arithmetic, by the measured ceilings."""
        rate = self.product.get(precision, self.product["float32"])
        return max(bytes / self.copy, operations / rate)


def measure(device: Device, megabytes: int, side: int) -> Ceilings:
    """Copies of ``megabytes``, and products of square matrices of ``side``."""
    with device:
        xp = device.array_module
        source = xp.zeros((megabytes * 2**18,), dtype=np.float32)
        target = xp.zeros((megabytes * 2**18,), dtype=np.float32)

        def copy() -> None:
            target[...] = source

        rates = {name: 2 * side**3 / _median(product(xp, side, name), xp) for name in ("float32", "float64")}
        return Ceilings(str(device), 2 * source.nbytes / _median(copy, xp), rates)


def product(xp: Any, side: int, dtype: str) -> Callable[[], None]:
    """The library's product of two square matrices."""
    a, b, c = (xp.zeros((side, side), dtype=dtype) for _ in range(3))
    multiply = xp.matmul if xp.__name__ == "cupy" else np.matmul

    def run() -> None:
        multiply(a, b, out=c)

    return run


def _median(run: Callable[[], None], xp: Any) -> float:
    """Seconds of one run; several between two synchronisations where they are short."""
    run()
    synchronize(xp)
    found = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(4):
            run()
        synchronize(xp)
        found.append((time.perf_counter() - begin) / 4)
    return float(np.median(found))
