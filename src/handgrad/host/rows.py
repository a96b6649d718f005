"""The rows that a step works on, block by block: as they lie where BLAS reads them so, else through a buffer.

A buffer is filled where X has another dtype (uint8 images, scaled there), is strided in a way that BLAS does
not take, or is visited in an order; so neither a copy nor a scaled version of all of X is ever made, and a
memory-mapped X is read as it is needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.host.block import Memory

Floats = NDArray[Any]


class Rows:
    """``X[order] * scale + shift`` and ``y[order]``; without ``order``, all rows."""

    def __init__(
        self,
        X: NDArray[Any],
        y: NDArray[Any],
        dtype: np.dtype[Any],
        order: NDArray[np.int64] | None = None,
        scale: float = 1.0,
        shift: float = 0.0,
    ) -> None:
        self.X, self.y, self.order = X, y, order
        self.scale = None if scale == 1.0 else dtype.type(scale)
        self.shift = None if shift == 0.0 else dtype.type(shift)
        converted = X.dtype != dtype or self.scale is not None or self.shift is not None
        self.direct = order is None and not converted and _blas_reads(X)

    def __len__(self) -> int:
        return len(self.X) if self.order is None else len(self.order)

    def block(self, start: int, stop: int, memory: Memory) -> tuple[Floats, NDArray[Any]]:
        """Rows start .. stop-1 of X, in the dtype of the products, and their targets."""
        if self.direct:
            return self.X[start:stop], self.y[start:stop]
        n = stop - start
        out = memory.take("X", n, self.X.shape[1])
        if self.order is None:
            np.copyto(out, self.X[start:stop], casting="unsafe")
            targets = self.y[start:stop]
        else:
            rows = self.order[start:stop]
            _gather(self.X, rows, out, memory)
            targets = memory.take("y", n, self.y.size // len(self.y), self.y.dtype)
            targets = targets.reshape(n, *self.y.shape[1:])
            _gather(self.y, rows, targets, memory)
        if self.scale is not None:
            out *= self.scale
        if self.shift is not None:
            out += self.shift
        return out, targets


def _gather(source: NDArray[Any], rows: NDArray[np.int64], out: NDArray[Any], memory: Memory) -> None:
    if not (source.flags.c_contiguous and source.flags.aligned and source.dtype.isnative):
        np.copyto(out, source[rows], casting="unsafe")  # take would first make all of it contiguous
        return
    picked = out
    if source.dtype != out.dtype:
        picked = memory.take("picked", len(rows), source.shape[1], source.dtype)
    source.take(rows, axis=0, out=picked, mode="clip")  # any other mode would make a copy
    if picked is not out:
        np.copyto(out, picked, casting="unsafe")


def _blas_reads(X: NDArray[Any]) -> bool:
    """One axis without gaps, the other with a stride that covers it."""
    rows, columns = X.strides
    return bool(
        X.flags.aligned
        and X.dtype.isnative
        and (
            (columns == X.itemsize and rows % X.itemsize == 0 and rows >= X.shape[1] * X.itemsize)
            or X.flags.f_contiguous
        )
    )
