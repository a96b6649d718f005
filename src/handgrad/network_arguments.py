"""The arguments of a network, checked: each function returns its argument as the network keeps it."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.arrays import Array, to_numpy
from handgrad.ops.checks import FLOATS
from handgrad.ops.two_layer import PRECISIONS


def widths_of(sizes: Sequence[int]) -> tuple[int, ...]:
    """Whole numbers, two or more, each 1 or above; ``ValueError`` otherwise."""
    try:
        widths = tuple(operator.index(size) for size in sizes)
    except TypeError:  # not a sequence, or not of whole numbers
        widths = ()
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"sizes: expected at least two whole numbers of 1 or more, got {sizes!r}")
    return widths


def float_dtype(dtype: Any) -> np.dtype[Any]:
    """float32 or float64, however it is named; ``ValueError`` otherwise."""
    found: np.dtype[Any] | None = None
    if dtype is not None:  # numpy would take it for float64
        with contextlib.suppress(TypeError):
            found = np.dtype(dtype)
    if found is None or found not in FLOATS:
        raise ValueError(f"dtype: expected float32 or float64, got {dtype!r}")
    return found


def precision_of(precision: str | None, dtype: np.dtype[Any]) -> str:
    """That of the products, ``dtype``'s own where None; ``ValueError`` where ``dtype`` has no such."""
    known = PRECISIONS[dtype.name]
    if precision is None:
        return dtype.name
    if precision not in known:
        raise ValueError(f"precision: with dtype {dtype}, expected {' or '.join(known)}, got {precision!r}")
    return precision


def row_numbers(order: Array, rows: int) -> NDArray[np.int32]:
    """``order`` on the host; ``TypeError`` for no integers (n,), ``IndexError`` outside 0 .. rows - 1."""
    numbers = to_numpy(order)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        got = f"{numbers.dtype} of shape {numbers.shape}"
        raise TypeError(f"order: expected row numbers, integers (n,), got {got}")
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < rows:
        bad = numbers[(numbers < 0) | (numbers >= rows)][0]
        raise IndexError(f"order: expected row numbers 0 .. {rows - 1}, got {bad}")
    return numbers.astype(np.int32)
