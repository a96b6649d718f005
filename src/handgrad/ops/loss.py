"""Loss and its gradient with respect to the logits, in one pass.

=============  ===========================================  ================================  ============
loss           of Z (N, C)                                  dZ                                targets
=============  ===========================================  ================================  ============
mse            Σ (g(Z) - y)²                                2 (g(Z) - y) ∘ g'(Z)              float (N, C)
bce            Σ max(z, 0) - z y + log(1 + e^-|z|)          sigmoid(Z) - y                    float (N, C)
cross_entropy  Σ_n log Σ_j e^(z_j) - z_y                    softmax(Z) - 1_y                  int (N,)
hinge          Σ_n Σ_{j≠y} max(0, z_j - z_y + 1)            1 where violated, -count at y     int (N,)
=============  ===========================================  ================================  ============

``reduction="mean"`` divides mse and bce by N C, cross_entropy and hinge by N (as PyTorch and cs231n do);
``"sum"`` does not divide.  ``output`` is g, for mse only; the others take logits.  No exponential of a
positive number is taken: logits of ±1e4 are safe.  The mean over an empty batch is NaN, its sum 0.

Kernels: ``kernels/loss.cu``.  Test: ``tests/test_loss.py``.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.arrays import Array, on_device_of
from handgrad.kernel import Entry, Kernel
from handgrad.ops import activation as activation_op
from handgrad.ops import checks, loss_numpy
from handgrad.ops.checks import DType
from handgrad.ops.workspace import Workspace

Floats = NDArray[Any]

NAMES = ("mse", "bce", "cross_entropy", "hinge")
ELEMENTWISE = ("mse", "bce")  # float targets of the logits' shape; the others take one integer label a row
REDUCTIONS = ("mean", "sum")

FILE = "loss.cu"
THREADS = 256
MAX_BLOCKS = 1024


def forward_backward(
    Z: Array,
    y: Array,
    loss: str,
    output: str = "identity",
    reduction: str = "mean",
    out: Array | None = None,
    workspace: Workspace | None = None,
) -> tuple[Array, Array]:
    """The loss (0-d, on the device of Z) and ``dZ`` (N, C), which ``out`` takes where given.

    A label outside 0 .. C-1 raises ``ValueError`` on the CPU; on a device, where looking would wait for it,
    the loss and that row of dZ become NaN.  Raises ``TypeError`` and ``ValueError`` for arguments that do not
    fit.
    """
    check_names(loss, output, reduction)
    op = f"loss {loss}"
    targets = {"y": y} if loss in ELEMENTWISE else {}
    xp, dtype = checks.require_floats(op, Z=Z, **targets)
    checks.require_matrix(op, "Z", Z, "(N, C)")
    N, C = Z.shape
    if loss in ELEMENTWISE:
        checks.require_shape(op, "y", y, (N, C), "(N, C) like the output")
    else:
        checks.require_shape(op, "y", y, (N,), "(N,), one label a sample,")
        if y.dtype.kind not in "iu":
            raise TypeError(f"{op}: y must be integer labels, got {y.dtype}")
        if C == 0 and N:
            raise ValueError(f"{op}: Z has no columns, so no label fits")
    count = N * C if loss in ELEMENTWISE else N
    scale = 1.0 if reduction == "sum" else 1.0 / count if count else float("nan")
    dZ = checks.require_output(op, "out", out, (N, C), dtype, xp)
    if Z.size == 0:
        return xp.full((), 0.0 * scale, dtype=dtype), dZ
    if xp is np:
        Z = np.ascontiguousarray(Z)
        value = loss_numpy.BY_NAME[loss](Z, output)(Z, y, dZ)
        dZ *= dtype.type(scale)
        return np.asarray(value * scale, dtype=dtype), dZ
    value = xp.empty((), dtype=dtype)
    _launch(xp, loss, output, checks.contiguous(xp, Z), y, dZ, value, scale, workspace or Workspace())
    return value, dZ


def check_names(loss: str, output: str, reduction: str) -> None:
    """``ValueError`` for an unknown loss or reduction, or an output that the loss does not take."""
    if loss not in NAMES:
        raise ValueError(f"loss: expected one of {', '.join(NAMES)}, got {loss!r}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    activation_op.functor_of(output)
    if loss != "mse" and output != "identity":
        raise ValueError(
            f"output: {loss} is computed from the logits, so output must be 'identity', got {output!r}"
        )


# ---- on a device -----------------------------------------------------------------------------------------


def _launch(
    xp: ModuleType,
    loss: str,
    output: str,
    Z: Array,
    y: Array,
    dZ: Array,
    value: Array,
    scale: float,
    workspace: Workspace,
) -> None:
    N, C = Z.shape
    dtype = np.dtype(Z.dtype)
    checks.require_int_sized(f"loss {loss}", Z=Z.reshape(-1))
    ticket = workspace.zeroed_once("loss.ticket", (1,), np.int32, xp)
    if loss in ELEMENTWISE:
        kernel, blocks = elementwise_kernel(loss, output, dtype), -(-N * C // THREADS)
        y = checks.contiguous(xp, y)
        sizes: tuple[np.int32, ...] = (np.int32(N * C),)
    else:
        lanes = lanes_of(C)
        kernel, blocks = rows_kernel(loss, dtype, lanes), -(-N // (THREADS // lanes))
        y = checks.contiguous(xp, as_int32(y, C))
        sizes = (np.int32(N), np.int32(C))
    blocks = min(blocks, MAX_BLOCKS)
    partials = workspace.get("loss.partials", (MAX_BLOCKS,), dtype, xp)
    with on_device_of(Z):
        kernel((blocks,), (THREADS,), Z, y, dZ, value, partials, ticket, *sizes, dtype.type(scale))


def as_int32(labels: Array, C: int) -> Array:
    """Integer labels as the kernels take them; one that int32 cannot hold stays outside 0 .. C-1."""
    if labels.dtype == np.int32:
        return labels
    if labels.dtype.itemsize >= 4:
        labels = labels.clip(-1 if labels.dtype.kind == "i" else 0, C)
    return labels.astype(np.int32)


def elementwise_kernel(loss: str, output: str, dtype: DType) -> Kernel:
    """``loss_elementwise`` for mse with an output activation, or for bce."""
    return Kernel(FILE, f"loss_elementwise<{checks.CPP_NAMES[dtype.name]}, {functor_of(loss, output)}>")


def rows_kernel(loss: str, dtype: DType, lanes: int) -> Kernel:
    """``loss_rows`` for cross_entropy or hinge with ``lanes`` lanes a row."""
    return Kernel(FILE, f"loss_rows<{checks.CPP_NAMES[dtype.name]}, {functor_of(loss)}, {lanes}>")


def functor_of(loss: str, output: str = "identity") -> str:
    """The C++ type in ``kernels/loss.cuh``."""
    if loss == "mse":
        return f"MeanSquaredError<{activation_op.functor_of(output)}>"
    return {"bce": "BinaryCrossEntropy", "cross_entropy": "CrossEntropy", "hinge": "Hinge"}[loss]


def lanes_of(C: int) -> int:
    """Lanes that share a row of C logits: the least power of two that covers it, at most a warp."""
    return min(32, 1 << max(0, C - 1).bit_length())


# ---- catalogue -------------------------------------------------------------------------------------------


def _elementwise_bytes(N: int, C: int, itemsize: int = 4) -> dict[str, int]:
    return {"z": N * C * itemsize, "y": N * C * itemsize, "dz": N * C * itemsize, "loss": itemsize}


def _rows_bytes(N: int, C: int, itemsize: int = 4) -> dict[str, int]:
    return {"z": N * C * itemsize, "labels": N * 4, "dz": N * C * itemsize, "loss": itemsize}


CATALOGUE = (
    Entry(
        "loss.elementwise",
        FILE,
        tuple(
            elementwise_kernel(loss, output, dtype).expression
            for dtype in checks.FLOATS
            for loss, output in (*(("mse", name) for name in activation_op.NAMES), ("bce", "identity"))
        ),
        f"grid min(⌈N C / {THREADS}⌉, {MAX_BLOCKS}), block {THREADS}",
        _elementwise_bytes,
    ),
    Entry(
        "loss.rows",
        FILE,
        tuple(
            rows_kernel(loss, dtype, lanes).expression
            for dtype in checks.FLOATS
            for loss in ("cross_entropy", "hinge")
            for lanes in (1, 2, 4, 8, 16, 32)
        ),
        f"grid min(⌈N L / {THREADS}⌉, {MAX_BLOCKS}), block {THREADS}; L lanes a row, the power of two from C",
        _rows_bytes,
    ),
)
