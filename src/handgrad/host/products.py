"""Matrix products ``out = A B``, whole or in tiles of rows.

A tile of a few rows times all of B is so small a product that some BLAS do it straight from the operands,
without copying them into packed panels first, which costs more than it gains where a side is short (H = 50).
One call of ``np.matmul`` on a stack of tiles runs them all in C.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
Call = tuple[Callable[..., Any], tuple[Any, ...]]


class Product:
    """``out = A B`` for one B (K, N) and out (M, N) and changing A (M, K), in tiles of ``rows`` rows.

    ``rows`` = 0 takes the product whole.  Every array may be strided, but each has one axis without gaps.
    """

    def __init__(self, B: Floats, out: Floats, rows: int = 0) -> None:
        M, K = out.shape[0], B.shape[0]
        self.function: Callable[..., Any] = np.multiply if K == 1 else np.matmul  # K = 1: an outer product
        self.parts: list[tuple[slice, tuple[int, ...], Floats, Floats]] = []
        if K == 1 or not 0 < rows < M:
            rows = 0
        self.whole = rows == 0
        self.B, self.out = B, out
        if rows:
            tiles, rest = divmod(M, rows)
            self._add(slice(0, tiles * rows), tiles, rows)
            if rest:
                self._add(slice(tiles * rows, M), 1, rest)

    def _add(self, part: slice, tiles: int, rows: int) -> None:
        out = self.out[part].reshape(tiles, rows, self.out.shape[1])
        assert np.shares_memory(out, self.out)
        self.parts.append((part, (tiles, rows, self.B.shape[0]), self.B, out))

    def run(self, A: Floats) -> None:
        """Compute it for this A."""
        if self.whole:
            self.function(A, self.B, self.out)
            return
        for part, shape, B, out in self.parts:
            np.matmul(A[part].reshape(shape), B, out)

    def calls(self, A: Floats) -> list[Call]:
        """The calls that :meth:`run` makes, for an A that stays."""
        if self.whole:
            return [(self.function, (A, self.B, self.out))]
        return [(np.matmul, (A[part].reshape(shape), B, out)) for part, shape, B, out in self.parts]
