"""A mini-batch picked out of the data by index and scaled: ``out = X[order] * scale + shift``.

X (N, D) or (N,) of uint8, int32 or a float; order (rows,) of integers; out of ``dtype``.  On a device one
warp copies one row.  Kernel: ``kernels/batch.cu``.  Test: ``tests/test_batch.py``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from handgrad.arrays import Array, get_array_module, on_device_of
from handgrad.kernel import Entry, Kernel
from handgrad.ops import checks
from handgrad.ops.checks import DType

THREADS = 256
ROWS_PER_BLOCK = THREADS // 32
PAIRS = (
    ("uint8", "float32"),
    ("uint8", "float64"),
    ("float32", "float32"),
    ("float32", "float64"),
    ("float64", "float32"),
    ("float64", "float64"),
    ("int32", "int32"),
)


def gather(
    X: Array,
    order: Array,
    out: Array | None = None,
    scale: float = 1.0,
    shift: float = 0.0,
    dtype: DTypeLike | None = None,
) -> Array:
    """``X[order] * scale + shift`` as ``dtype`` (that of X where None); on X's device.

    ``order`` holds row numbers 0 .. N-1: out of range raises ``IndexError`` on the CPU and the emulator; on a
    GPU, where looking would wait for the device, it is the caller's to see to.  On a device, ``order`` is an
    int32 array there.
    """
    op = "batch.gather"
    xp = get_array_module(X, order)
    target: DType = np.dtype(X.dtype if dtype is None else dtype)
    if (np.dtype(X.dtype).name, target.name) not in PAIRS and xp is not np:
        raise TypeError(f"{op}: X of {X.dtype} into {target} is not one of {PAIRS}")
    shape = (int(order.shape[0]), *X.shape[1:])
    out = checks.require_output(op, "out", out, shape, target, xp)
    if isinstance(order, np.ndarray) and order.size and not 0 <= order.min() <= order.max() < X.shape[0]:
        raise IndexError(f"{op}: order has row numbers outside 0 .. {X.shape[0] - 1}")
    if xp is np:
        np.copyto(out, X[order], casting="unsafe")
        if scale != 1.0:
            out *= target.type(scale)
        if shift != 0.0:
            out += target.type(shift)
        return out
    if out.size == 0:
        return out
    if order.dtype != np.int32:
        raise TypeError(f"{op}: order must be int32 on a device, got {order.dtype}")
    checks.require_int_sized(op, X=X, order=order)
    if not X.flags.c_contiguous:
        raise ValueError(f"{op}: X must be C-contiguous on a device")
    D = out.size // shape[0]
    kernel = gather_kernel(np.dtype(X.dtype), target, _width(D, X, out))
    with on_device_of(X):
        kernel(
            (-(-shape[0] // ROWS_PER_BLOCK),),
            (THREADS,),
            *(X, checks.contiguous(xp, order), out, np.int32(shape[0]), np.int32(D)),
            *(target.type(scale), target.type(shift)),
        )
    return out


def gather_kernel(source: DType, target: DType, width: int) -> Kernel:
    """``gather_rows`` from ``source`` into ``target`` with accesses of ``width`` elements."""
    names = f"{checks.CPP_NAMES[source.name]}, {checks.CPP_NAMES[target.name]}"
    return Kernel("batch.cu", f"gather_rows<{names}, {width}>")


def _width(D: int, X: Array, out: Array) -> int:
    """Elements an access: what fits in 16 bytes of the wider type, where rows and addresses allow it."""
    width = 16 // max(X.dtype.itemsize, out.dtype.itemsize)
    aligned = all(checks.address(array) % (width * array.dtype.itemsize) == 0 for array in (X, out))
    return width if D % width == 0 and aligned else 1


def _bytes(rows: int, D: int, source_itemsize: int = 1, itemsize: int = 4) -> dict[str, int]:
    return {"X": rows * D * source_itemsize, "order": rows * 4, "out": rows * D * itemsize}


CATALOGUE = (
    Entry(
        "batch.gather",
        "batch.cu",
        tuple(
            gather_kernel(np.dtype(source), np.dtype(target), width).expression
            for source, target in PAIRS
            for width in (1, 16 // max(np.dtype(source).itemsize, np.dtype(target).itemsize))
        ),
        f"grid ⌈rows / {ROWS_PER_BLOCK}⌉, block {THREADS}",
        _bytes,
    ),
)
