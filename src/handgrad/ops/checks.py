"""What every op asks of its arguments: one kind of array, a float dtype, matching shapes, contiguity.

Mistakes of the caller raise ``TypeError`` or ``ValueError`` with the argument, what was expected and what
came.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from handgrad.arrays import Array, get_array_module

DType = np.dtype[Any]

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
INT_LIMIT = 2**31 - 2**21  # kernels index with int and step past the end by less than 2**21
CPP_NAMES = {"float32": "float", "float64": "double", "uint8": "unsigned char", "int32": "int"}


def require_floats(op: str, **arrays: Array) -> tuple[ModuleType, DType]:
    """The array module and the float dtype that all ``arrays`` (``None`` aside) share."""
    given = {name: array for name, array in arrays.items() if array is not None}
    xp = get_array_module(*given.values())
    first, reference = next(iter(given.items()))
    for name, array in given.items():
        if array.dtype not in FLOATS:
            raise TypeError(f"{op}: {name} must be float32 or float64, got {array.dtype}")
        if array.dtype != reference.dtype:
            raise TypeError(
                f"{op}: {name} is {array.dtype} but {first} is {reference.dtype}; use one of them for both"
            )
    return xp, np.dtype(reference.dtype)


def require_shape(op: str, name: str, array: Array, expected: tuple[int, ...], meaning: str) -> None:
    """``array.shape == expected``, where ``meaning`` says it in letters, as "(N, H)"."""
    if tuple(array.shape) != expected:
        raise ValueError(f"{op}: {name} must have shape {meaning} = {expected}, got {tuple(array.shape)}")


def require_matrix(op: str, name: str, array: Array, meaning: str) -> None:
    """``array`` has two dimensions."""
    if array.ndim != 2:
        raise ValueError(f"{op}: {name} must be a matrix {meaning}, got {array.ndim} dimensions")


def require_output(
    op: str, name: str, out: Array | None, shape: tuple[int, ...], dtype: DType, xp: ModuleType
) -> Array:
    """``out`` itself, checked, or a new array of that shape and dtype."""
    if out is None:
        return xp.empty(shape, dtype=dtype)
    if get_array_module(out) is not xp:
        raise TypeError(f"{op}: {name} is not the same kind of array as the inputs")
    require_shape(op, name, out, shape, "of the result")
    if out.dtype != dtype:
        raise TypeError(f"{op}: {name} must be {dtype}, got {out.dtype}")
    if not out.flags.c_contiguous:
        raise ValueError(f"{op}: {name} must be C-contiguous")
    return out


def require_int_sized(op: str, **arrays: Array) -> None:
    """Every array has fewer elements than the kernels' ``int`` indices reach along one side."""
    for name, array in arrays.items():
        if array is not None and max((*array.shape, 0)) >= INT_LIMIT:
            raise ValueError(
                f"{op}: {name} has a side of {max(array.shape)}; the kernels take up to {INT_LIMIT}"
            )


def contiguous(xp: ModuleType, array: Array | None) -> Array | None:
    """``array``, copied where it is not C-contiguous."""
    return array if array is None or array.flags.c_contiguous else xp.ascontiguousarray(array)


def vector_width(dtype: DType, side: int, *arrays: Array | None) -> int:
    """Elements in 16 bytes if ``side`` and the arrays' addresses are multiples of that, else 1."""
    width = 16 // dtype.itemsize
    aligned = all(address(array) % 16 == 0 for array in arrays if array is not None)
    return width if side % width == 0 and aligned else 1


def address(array: Array) -> int:
    """The address of the first element, on whatever device."""
    return int(array.ctypes.data) if isinstance(array, np.ndarray) else int(array.data.ptr)
