"""Arrays of the emulated device: NumPy arrays of another type, so that the array decides which code runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

ALIGNMENT = 256  # bytes; what CUDA's allocators promise

Shape = int | tuple[int, ...]


class EmulatedArray(np.ndarray[Any, Any]):
    """An array on the emulated device.

    Views, slices, copies and results of NumPy arithmetic are emulated arrays again.  It is host memory:
    ``handgrad.to_numpy(a)`` gives the same memory as a base ``numpy.ndarray``.
    """

    __slots__ = ()

    def copy(self, order: Any = "C") -> EmulatedArray:
        """A copy in memory of its own, aligned like every new array (C order, whatever ``order``)."""
        return _filled(np.asarray(self))

    def __deepcopy__(self, memo: Any) -> EmulatedArray:
        return self.copy()


ndarray = EmulatedArray


def _allocate(shape: Shape, dtype: DTypeLike) -> EmulatedArray:
    dtype = np.dtype(dtype)
    if dtype.hasobject:
        raise TypeError(f"dtype: expected numbers, got {dtype}")
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape).view(EmulatedArray)


def _filled(values: Any, dtype: DTypeLike | None = None) -> EmulatedArray:
    array = _allocate(values.shape, values.dtype if dtype is None else dtype)
    array[...] = values
    return array


def empty(shape: Shape, dtype: DTypeLike = np.float32) -> EmulatedArray:
    """An array that holds poison: NaN in floats, bytes 0xCD in integers, so that a read of it shows."""
    array = _allocate(shape, dtype)
    if array.dtype.kind in "fc":
        array.fill(np.nan)
    elif array.dtype.kind == "b":
        array.fill(True)
    else:
        array.reshape(-1).view(np.uint8).fill(0xCD)
    return array


def full(shape: Shape, fill_value: Any, dtype: DTypeLike | None = None) -> EmulatedArray:
    """An array of ``fill_value``, of its dtype where none is given."""
    array = _allocate(shape, np.asarray(fill_value).dtype if dtype is None else dtype)
    array[...] = fill_value
    return array


def zeros(shape: Shape, dtype: DTypeLike = np.float32) -> EmulatedArray:
    """An array of zeros."""
    return full(shape, 0, dtype)


def ones(shape: Shape, dtype: DTypeLike = np.float32) -> EmulatedArray:
    """An array of ones."""
    return full(shape, 1, dtype)


def empty_like(prototype: Any, dtype: DTypeLike | None = None) -> EmulatedArray:
    """A poisoned array (see :func:`empty`) of the shape and dtype of ``prototype``."""
    return empty(prototype.shape, prototype.dtype if dtype is None else dtype)


def zeros_like(prototype: Any, dtype: DTypeLike | None = None) -> EmulatedArray:
    """An array of zeros of the shape and dtype of ``prototype``."""
    return zeros(prototype.shape, prototype.dtype if dtype is None else dtype)


def asarray(a: ArrayLike, dtype: DTypeLike | None = None) -> EmulatedArray:
    """``a`` on the emulated device: itself where it is there with this dtype already, else a copy."""
    if isinstance(a, EmulatedArray) and (dtype is None or a.dtype == np.dtype(dtype)):
        return a
    return _filled(np.asarray(a), dtype)


def ascontiguousarray(a: ArrayLike, dtype: DTypeLike | None = None) -> EmulatedArray:
    """:func:`asarray`, copied where it is not C-contiguous."""
    array = asarray(a, dtype)
    return array if array.flags.c_contiguous else array.copy()


def arange(*args: Any, dtype: DTypeLike | None = None) -> EmulatedArray:
    """``numpy.arange`` on the emulated device."""
    return asarray(np.arange(*args, dtype=dtype))
