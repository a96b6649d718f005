"""The dense layer with bias and activation, forward and backward.

=================  =================================  ====================================================
forward            Y = f(X W + b)                     X (N, D), W (D, H), b (H,) or None → Y (N, H)
backward_input     dZ1 = (dZ Wᵀ) ∘ f'(A)              dZ (N, C), W (H, C), A (N, H) → dZ1 (N, H)
backward_weight    dW = Xᵀ dZ,  db = Σ_n dZ           X (N, D), dZ (N, H) → dW (D, H), db (H,)
=================  =================================  ====================================================

float32 or float64, all arrays of one kind.  Weights are (in, out).  On a device, bias, activation and mask
are applied inside the matrix product; the weight product is split over the samples into partitions that
depend on the shape alone and are summed in order, so the bits are the same on every run, whatever the
number of multiprocessors.

Kernels: ``kernels/linear.cu`` (naive twin: ``kernels/linear_naive.cu``).  Test: ``tests/test_linear.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np

from handgrad.arrays import Array, on_device_of
from handgrad.kernel import Entry, Kernel
from handgrad.ops import activation as activation_op
from handgrad.ops import checks
from handgrad.ops.checks import DType
from handgrad.ops.workspace import Workspace

FILE = "linear.cu"
REDUCE_THREADS = 256
MAX_GRID_Y = 65_535


@dataclass(frozen=True)
class Tile:
    """A tile of the result: BM x BN elements, in slabs of BK, TM x TN elements a thread."""

    BM: int
    BN: int
    BK: int
    TM: int
    TN: int

    def __str__(self) -> str:
        return f"{self.BM}x{self.BN}x{self.BK}/{self.TM}x{self.TN}"

    @property
    def threads(self) -> int:
        """Threads of the block that computes the tile."""
        return self.BM // self.TM * (self.BN // self.TN)

    @property
    def cpp(self) -> str:
        """The C++ type."""
        return f"Tile<{self.BM}, {self.BN}, {self.BK}, {self.TM}, {self.TN}>"


WIDE = Tile(128, 128, 8, 8, 8)
MEDIUM = Tile(64, 64, 16, 4, 4)
NARROW = Tile(128, 32, 16, 4, 4)  # up to 32 columns
SKINNY = Tile(128, 16, 16, 4, 2)  # up to 16
SLIM = Tile(128, 4, 16, 2, 1)  # up to 4
COLUMN = Tile(128, 1, 16, 1, 1)  # 1
TILES = (WIDE, MEDIUM, NARROW, SKINNY, SLIM, COLUMN)

WIDE_TILES_LEAST = 64  # below as many 128 x 128 tiles, smaller ones spread the work over more of a GPU
SPLIT_BLOCKS = 256  # blocks that the weight product aims at: about two on each multiprocessor of a large GPU
CHUNK_LEAST = 128  # samples in a partition, at least


def choose_tile(rows: int, columns: int) -> Tile:
    """The tile for a result of ``rows`` x ``columns``: depends on these two numbers alone."""
    for tile in (COLUMN, SLIM, SKINNY, NARROW):
        if columns <= tile.BN:
            return tile
    wide_tiles = -(-rows // WIDE.BM) * -(-columns // WIDE.BN)
    return WIDE if columns > MEDIUM.BN and wide_tiles >= WIDE_TILES_LEAST else MEDIUM


def split_samples(N: int, D: int, H: int, tile: Tile) -> tuple[int, int]:
    """(S, chunk): partitions of the weight product and samples in each, for about SPLIT_BLOCKS blocks; never
    from the device."""
    tiles = -(-D // tile.BM) * -(-H // tile.BN)
    wanted = -(-SPLIT_BLOCKS // tiles)
    chunk = max(-(-N // wanted), CHUNK_LEAST)
    chunk = -(-chunk // tile.BK) * tile.BK
    return max(1, -(-N // chunk)), chunk


# ---- forward ---------------------------------------------------------------------------------------------


def forward(
    X: Array,
    W: Array,
    b: Array | None = None,
    activation: str = "identity",
    out: Array | None = None,
    workspace: Workspace | None = None,
) -> Array:
    """``Y = f(X W + b)``: X (N, D), W (D, H), b (H,) or None → (N, H).

    Raises ``TypeError`` for mixed dtypes or kinds of array, ``ValueError`` for shapes that do not fit.
    ``workspace`` is accepted for symmetry with :func:`backward_weight`; nothing is needed here.
    """
    op = "linear.forward"
    activation_op.functor_of(activation)
    xp, dtype = checks.require_floats(op, X=X, W=W, b=b)
    checks.require_matrix(op, "X", X, "(N, D)")
    checks.require_matrix(op, "W", W, "(D, H)")
    N, D = X.shape
    H = W.shape[1]
    checks.require_shape(op, "W", W, (D, H), "(D, H), D being the columns of X,")
    if b is not None:
        checks.require_shape(op, "b", b, (H,), "(H,)")
    out = checks.require_output(op, "out", out, (N, H), dtype, xp)
    if xp is np:
        np.matmul(X, W, out=out)
        if b is not None:
            out += b
        if activation != "identity":
            activation_op.forward(out, activation, out=out)
        return out
    if N == 0 or H == 0:
        return out
    checks.require_int_sized(op, X=X, W=W)
    X, W, b = (checks.contiguous(xp, array) for array in (X, W, b))
    tile = choose_tile(N, H)
    kernel = forward_kernel(
        tile,
        activation,
        dtype,
        _width(tile.BK, dtype, D, X),
        _width(tile.BN, dtype, H, W, b, out),
    )
    with on_device_of(X):
        kernel(_grid(tile, N, H, op), (tile.threads,), X, W, b, out, np.int32(N), np.int32(D), np.int32(H))
    return out


def forward_kernel(tile: Tile, activation: str, dtype: DType, vd: int, vh: int) -> Kernel:
    """``linear_forward`` with loads of ``vd`` elements along D and ``vh`` along H."""
    functor = activation_op.functor_of(activation)
    return Kernel(FILE, f"linear_forward<{checks.CPP_NAMES[dtype.name]}, {tile.cpp}, {functor}, {vd}, {vh}>")


# ---- backward --------------------------------------------------------------------------------------------


def backward_input(
    dZ: Array,
    W: Array,
    A: Array | None = None,
    activation: str = "identity",
    out: Array | None = None,
    workspace: Workspace | None = None,
) -> Array:
    """``dZ1 = (dZ Wᵀ) ∘ f'(A)``: dZ (N, C), W (H, C), A (N, H) → (N, H); A may be None for the identity.

    Raises as :func:`forward`.
    """
    op = "linear.backward_input"
    activation_op.functor_of(activation)
    xp, dtype = checks.require_floats(op, dZ=dZ, W=W, A=A)
    checks.require_matrix(op, "dZ", dZ, "(N, C)")
    checks.require_matrix(op, "W", W, "(H, C)")
    N, C = dZ.shape
    H = W.shape[0]
    checks.require_shape(op, "W", W, (H, C), "(H, C), C being the columns of dZ,")
    if A is None and activation != "identity":
        raise ValueError(f"{op}: A (the output of the {activation}) is needed for its derivative, got None")
    if A is not None:
        checks.require_shape(op, "A", A, (N, H), "(N, H)")
    out = checks.require_output(op, "out", out, (N, H), dtype, xp)
    if xp is np:
        np.matmul(dZ, W.T, out=out)
        if activation != "identity":
            activation_op.backward(A, out, activation, out=out)
        return out
    if N == 0 or H == 0:
        return out
    checks.require_int_sized(op, dZ=dZ, W=W)
    dZ, W, A = (checks.contiguous(xp, array) for array in (dZ, W, A if activation != "identity" else None))
    tile = choose_tile(N, H)
    kernel = backward_input_kernel(
        tile,
        activation,
        dtype,
        _width(tile.BK, dtype, C, dZ, W),
        _width(tile.BN, dtype, H, A, out),
    )
    with on_device_of(dZ):
        kernel(_grid(tile, N, H, op), (tile.threads,), dZ, W, A, out, np.int32(N), np.int32(C), np.int32(H))
    return out


def backward_input_kernel(tile: Tile, activation: str, dtype: DType, vc: int, vh: int) -> Kernel:
    """``linear_backward_input`` with loads of ``vc`` elements along C and ``vh`` along H."""
    functor = activation_op.functor_of(activation)
    cpp = checks.CPP_NAMES[dtype.name]
    return Kernel(FILE, f"linear_backward_input<{cpp}, {tile.cpp}, {functor}, {vc}, {vh}>")


def backward_weight(
    X: Array,
    dZ: Array,
    dW: Array | None = None,
    db: Array | None = None,
    bias: bool = True,
    workspace: Workspace | None = None,
) -> tuple[Array, Array | None]:
    """``dW = Xᵀ dZ`` (D, H) and ``db = Σ_n dZ`` (H,), or None without ``bias``, in one pass over X and dZ.

    ``dW`` and ``db`` take the results where given.  The partial sums live in ``workspace`` (a new one where
    None).  Raises as :func:`forward`.
    """
    op = "linear.backward_weight"
    xp, dtype = checks.require_floats(op, X=X, dZ=dZ)
    checks.require_matrix(op, "X", X, "(N, D)")
    checks.require_matrix(op, "dZ", dZ, "(N, H)")
    N, D = X.shape
    H = dZ.shape[1]
    checks.require_shape(op, "dZ", dZ, (N, H), "(N, H), N being the rows of X,")
    dW = checks.require_output(op, "dW", dW, (D, H), dtype, xp)
    db = checks.require_output(op, "db", db, (H,), dtype, xp) if bias else None
    if xp is np:
        np.matmul(X.T, dZ, out=dW)
        if db is not None:
            np.sum(dZ, axis=0, out=db)
        return dW, db
    if D == 0 or H == 0:
        if db is not None and H:
            db[...] = dZ.sum(axis=0)
        return dW, db
    checks.require_int_sized(op, X=X, dZ=dZ)
    if D * H + H >= checks.INT_LIMIT:
        raise ValueError(f"{op}: dW has {D * H} elements; the kernel takes up to {checks.INT_LIMIT}")
    _backward_weight_on_device(xp, checks.contiguous(xp, X), checks.contiguous(xp, dZ), dW, db, workspace)
    return dW, db


def _backward_weight_on_device(
    xp: ModuleType, X: Array, dZ: Array, dW: Array, db: Array | None, workspace: Workspace | None
) -> None:
    (N, D), H, dtype = X.shape, dZ.shape[1], dW.dtype
    tile = choose_tile(D, H)
    S, chunk = split_samples(N, D, H, tile)
    offset = -(-D * H // 64) * 64  # where the partial db starts: aligned, like every partition
    biases = 0 if db is None else H
    stride = -(-(offset + biases) // 64) * 64
    if S == 1:
        target_W, target_b = dW, db
    else:
        partials = (workspace or Workspace()).get("linear.partials", (S * stride,), dtype, xp)
        target_W, target_b = partials, None if db is None else partials[offset:]
    x_width = _width(tile.BM, dtype, D, X)
    kernel = backward_weight_kernel(tile, dtype, x_width, _width(tile.BN, dtype, H, dZ, target_W))
    sizes = (np.int32(N), np.int32(D), np.int32(H), np.int32(chunk), np.int64(stride))
    with on_device_of(X):
        grid = (*_grid(tile, D, H, "linear.backward_weight"), S)
        kernel(grid, (tile.threads,), X, dZ, target_W, target_b, *sizes)
        if S > 1:
            weights = D * H
            reduce_kernel(dtype)(
                (-(-(weights + biases) // REDUCE_THREADS),),
                (REDUCE_THREADS,),
                *(partials, dW, db),
                *(np.int32(S), np.int64(stride), np.int32(weights), np.int32(offset), np.int32(biases)),
            )


def backward_weight_kernel(tile: Tile, dtype: DType, vd: int, vh: int) -> Kernel:
    """``linear_backward_weight`` with loads of ``vd`` elements along D and ``vh`` along H."""
    return Kernel(FILE, f"linear_backward_weight<{checks.CPP_NAMES[dtype.name]}, {tile.cpp}, {vd}, {vh}>")


def reduce_kernel(dtype: DType) -> Kernel:
    """``reduce_partials``: the partitions' sums, added in rising order."""
    return Kernel(FILE, f"reduce_partials<{checks.CPP_NAMES[dtype.name]}>")


def _width(tile_side: int, dtype: DType, side: int, *arrays: Array | None) -> int:
    width = checks.vector_width(dtype, side, *arrays)
    return width if tile_side % width == 0 else 1


def _grid(tile: Tile, rows: int, columns: int, op: str) -> tuple[int, int]:
    grid = -(-rows // tile.BM), -(-columns // tile.BN)
    if grid[1] > MAX_GRID_Y:
        raise ValueError(f"{op}: {columns} columns; the kernel takes up to {MAX_GRID_Y * tile.BN}")
    return grid


# ---- catalogue -------------------------------------------------------------------------------------------


def _instances(make: str) -> tuple[str, ...]:
    """Every tile x dtype with wide and narrow loads, and every activation on one tile."""
    found: list[str] = []
    for dtype in checks.FLOATS:
        wide = 16 // dtype.itemsize
        for tile in TILES:
            along_h = wide if tile.BN % wide == 0 else 1
            for v, vh in ((wide, along_h), (wide, 1), (1, along_h), (1, 1)):
                found.append(_expression(make, tile, "relu", dtype, v, vh))
        found += [_expression(make, MEDIUM, name, dtype, wide, wide) for name in activation_op.NAMES]
    return tuple(dict.fromkeys(found))


def _expression(make: str, tile: Tile, name: str, dtype: DType, v: int, vh: int) -> str:
    if make == "forward":
        return forward_kernel(tile, name, dtype, v, vh).expression
    if make == "backward_input":
        return backward_input_kernel(tile, name, dtype, v, vh).expression
    return backward_weight_kernel(tile, dtype, v, vh).expression


def _forward_bytes(N: int, D: int, H: int, itemsize: int = 4) -> dict[str, int]:
    return {"x": N * D * itemsize, "W": D * H * itemsize, "b": H * itemsize, "y": N * H * itemsize}


def _input_bytes(N: int, C: int, H: int, itemsize: int = 4) -> dict[str, int]:
    return {"dZ": N * C * itemsize, "W": H * C * itemsize, "A": N * H * itemsize, "dZ1": N * H * itemsize}


def _weight_bytes(N: int, D: int, H: int, itemsize: int = 4) -> dict[str, int]:
    sizes = {"x": N * D, "dZ": N * H, "dW": D * H, "db": H}
    return {name: size * itemsize for name, size in sizes.items()}


def _reduce_bytes(S: int, D: int, H: int, itemsize: int = 4) -> dict[str, int]:
    return {"partials": S * (D * H + H) * itemsize, "dW": D * H * itemsize, "db": H * itemsize}


_TILED = (
    "grid (⌈rows / BM⌉, ⌈columns / BN⌉{}), block (BM / TM)(BN / TN); tile from choose_tile(rows, columns)"
)

CATALOGUE = (
    Entry("linear.forward", FILE, _instances("forward"), _TILED.format(""), _forward_bytes),
    Entry("linear.backward_input", FILE, _instances("backward_input"), _TILED.format(""), _input_bytes),
    Entry(
        "linear.backward_weight",
        FILE,
        _instances("backward_weight"),
        _TILED.format(", S") + "; S from split_samples(N, D, H, tile)",
        _weight_bytes,
    ),
    Entry(
        "linear.reduce_partials",
        FILE,
        tuple(reduce_kernel(dtype).expression for dtype in checks.FLOATS),
        f"grid ⌈(D H + H) / {REDUCE_THREADS}⌉, block {REDUCE_THREADS}",
        _reduce_bytes,
    ),
)
