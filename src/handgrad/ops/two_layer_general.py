"""R4, the general path: a training step of any shape and alignment in four launches.

==============================  ==========================================================================
general_hidden                  A1 = f(X W1 + b1)
general_output                  Z2 = A1 W2 + b2, loss, dZ2, partial db2                        C up to 16
general_output_wide             the same, and dZ1 = (dZ2 W2ᵀ) ∘ f'(A1)                         C above 16
general_weight                  partial dW1 = Xᵀ dZ1, db1 = Σ dZ1, dW2 = A1ᵀ dZ2; up to C = 16 each slab of
                                dZ1 is computed on its way: once for every tile along D, and never stored
reduce_and_update               the partial gradients summed in order, and the optimizer (two_layer_reduce)
==============================  ==========================================================================

Up to C = 16 computing dZ1 takes C multiply-adds where the product that it feeds takes as many as a tile has
rows; above, that is dearer than writing dZ1 once and reading it for every tile along D.

Precision: "tf32", "3xtf32" and "bfloat16" take tensor cores for the products with X, and where C is above 16
for the others; up to 16 memory bounds the second layer, whose products are then float32.  With "3xtf32" an
infinite operand gives NaN.  Sums are float32, or float64 with float64 parameters.

Partitions of the samples, and so the bits, follow from the shape and the tiling alone.  Kernels:
``kernels/two_layer_general.cu``.  Test: ``tests/test_two_layer_general.py``.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from handgrad.arrays import Array, get_array_module, on_device_of
from handgrad.kernel import Entry
from handgrad.ops import activation as activation_op
from handgrad.ops import checks, two_layer_reduce
from handgrad.ops import loss as loss_op
from handgrad.ops.tilings import Tiling
from handgrad.ops.two_layer import Layout, Problem, StepArrays
from handgrad.ops.two_layer_general_geometry import FILE, OUTPUT_PARTITIONS, THREADS, Geometry
from handgrad.ops.two_layer_general_tiles import FEW, GeneralTiling, refusal_of_precision
from handgrad.ops.two_layer_general_tiles import tilings as tiles_and_splits
from handgrad.ops.two_layer_general_traffic import compulsory, requested

# ---- the path --------------------------------------------------------------------------------------------


def refusal(problem: Problem) -> str:
    """Empty: every shape is taken; but sm_75 has no tensor cores for tf32 and bfloat16."""
    return refusal_of_precision(problem)


def tilings(problem: Problem) -> tuple[GeneralTiling, ...]:
    """The rule's first; ``ValueError`` with the reason where it is refused."""
    reason = refusal(problem)
    if reason:
        raise ValueError(f"R4: {reason}")
    return tiles_and_splits(problem)


def lay_out(problem: Problem, tiling: Tiling | None = None) -> Layout:
    """Four launches, one where there are no samples; ``ValueError`` with the reason where it is refused."""
    reason = refusal(problem)
    if reason:
        raise ValueError(f"R4: {reason}")
    g, size = Geometry(problem, tiling), problem.itemsize
    N, H, C = problem.N, problem.H, problem.C
    S, losses = g.partitions, g.output_partitions
    workspace = {
        "A1": N * H,
        "dZ2": N * C,
        "partials": S * problem.flat_size,
        "loss_partials": losses,
        "b2_partials": losses * b2_stride(problem),
    }
    if g.stores_dZ1:
        workspace |= {"Z2": N * C, "dZ1": N * H}
    return Layout(
        path="R4",
        problem=problem,
        tiling=g.chosen,
        launches=g.launches,
        partitions=S,
        workspace={f"general.{name}": count * size for name, count in workspace.items() if count},
        compulsory=compulsory(problem),
        requested=requested(g),
        note=(
            f"tiles {g.hidden} of A1, {g.weight} of dW1, {g.chunk} samples a partition; "
            f"dZ1 is {'stored' if g.stores_dZ1 else 'computed for every tile along D'}"
        ),
    )


def b2_stride(problem: Problem) -> int:
    """Elements from one partial db2 to the next."""
    return problem.flat_size - problem.offsets["b2"]


def run(layout: Layout, arrays: StepArrays) -> None:
    """The launches of one step, on the device of ``arrays``; allocates nothing after the first call.

    ``TypeError`` and ``ValueError`` where X or y is not what the problem says.
    """
    p, g = layout.problem, Geometry(layout.problem, layout.tiling)
    xp = get_array_module(arrays.X, arrays.y)
    checks.require_shape("R4", "X", arrays.X, (p.N, p.D), "(N, D)")
    if arrays.X.dtype != p.inputs:
        raise TypeError(f"R4: X must be {p.inputs}, as the problem says, got {arrays.X.dtype}")
    if p.inputs != "uint8" and (arrays.scale, arrays.shift) != (1.0, 0.0):
        raise ValueError(f"R4: X is {p.inputs}, so scale and shift must be 1 and 0; scale it beforehand")
    elementwise = p.loss in loss_op.ELEMENTWISE
    checks.require_shape("R4", "y", arrays.y, (p.N, p.C) if elementwise else (p.N,), "(N, C) or (N,)")
    if arrays.y.dtype != (p.dtype if elementwise else "int32"):
        raise TypeError(f"R4: y must be {p.dtype if elementwise else 'int32'}, got {arrays.y.dtype}")
    X, y = checks.contiguous(xp, arrays.X), checks.contiguous(xp, arrays.y)
    dtype = np.dtype(p.dtype)

    def scratch(name: str, *shape: int) -> Array:
        return arrays.workspace.get(f"general.{name}", shape, dtype, xp)

    A1, dZ2 = scratch("A1", p.N, p.H), scratch("dZ2", p.N, p.C)
    partials = scratch("partials", g.partitions, p.flat_size)
    loss_partials = scratch("loss_partials", g.output_partitions)
    b2_partials = scratch("b2_partials", g.output_partitions, b2_stride(p)) if p.bias else None
    Z2, dZ1 = (scratch("Z2", p.N, p.C), scratch("dZ1", p.N, p.H)) if g.stores_dZ1 else (None, None)
    W1, W2 = arrays.parameters.views["W1"], arrays.parameters.views["W2"]
    b1, b2 = (arrays.parameters.views[name] if p.bias else None for name in ("b1", "b2"))
    with on_device_of(X):
        if p.N:
            hidden(g, X, arrays.scale, arrays.shift, W1, b1, A1)
            output(g, A1, W2, b2, y, dZ2, loss_partials, b2_partials, Z2, dZ1)
            weight(g, X, arrays.scale, arrays.shift, A1, dZ2, W2, partials, dZ1)
    two_layer_reduce.reduce(p, arrays, partials, loss_partials, b2_partials)


def hidden(g: Geometry, X: Array, scale: float, shift: float, W1: Array, b1: Array | None, A1: Array) -> None:
    """Launch ``general_hidden``: writes A1 (N, H).  b1 is None without bias."""
    p, launch = g.problem, g.for_input(X).launches[0]
    T = np.dtype(p.dtype).type
    sizes = (np.int32(size) for size in (p.N, p.D, p.H))
    launch.kernel(launch.grid, launch.block, X, W1, b1, A1, *sizes, T(scale), T(shift))


def output(
    g: Geometry,
    A1: Array,
    W2: Array,
    b2: Array | None,
    y: Array,
    dZ2: Array,
    loss_partials: Array,
    b2_partials: Array | None,
    Z2: Array | None = None,
    dZ1: Array | None = None,
) -> None:
    """Launch ``general_output`` or ``general_output_wide``.

    Writes dZ2 (N, C) and, for each partition, the loss and db2; Z2 and dZ1 too where C is above 16.
    b2 and b2_partials are None without bias.
    """
    p, launch = g.problem, g.launches[1]
    stored = (Z2, dZ2, dZ1) if g.stores_dZ1 else (dZ2,)
    launch.kernel(
        *(launch.grid, launch.block, A1, W2, b2, y, *stored, loss_partials, b2_partials),
        *(np.int32(size) for size in (p.N, p.H, p.C)),
        *(np.int32(g.output_rows), np.int32(g.output_partitions), np.int32(b2_stride(p))),
        np.dtype(p.dtype).type(p.loss_scale),
    )


def weight(
    g: Geometry,
    X: Array,
    scale: float,
    shift: float,
    A1: Array,
    dZ2: Array,
    W2: Array,
    partials: Array,
    dZ1: Array | None = None,
) -> None:
    """Launch ``general_weight``: writes all of partials (S, P) but what belongs to b2, and padding.

    dZ1 is None where it is computed.
    """
    p, launch = g.problem, g.for_input(X).launches[2]
    T = np.dtype(p.dtype).type
    launch.kernel(
        *(launch.grid, launch.block, X, A1, dZ1, dZ2, W2, partials),
        *(np.int32(size) for size in (p.N, p.D, p.H, p.C)),
        *(np.int32(g.chunk), np.int32(g.partitions), np.int32(g.weight_tiles[0])),
        *(np.int32(p.offsets["b1"] if p.bias else -1), np.int32(p.offsets["W2"])),
        *(np.int64(p.flat_size), T(scale), T(shift)),
    )


# ---- catalogue -------------------------------------------------------------------------------------------


def representative() -> list[Problem]:
    """Of every tile, precision, type of X, activation and loss, and of both widths of loads; small ones."""
    wide, deep, odd, small = (1000, 36, 1024), (70, 100, 132), (40, 19, 33), (40, 36, 32)  # N, D, H
    shapes = {
        "float32": ((wide, 10), (deep, 10), (deep, 20), (odd, 17), (small, 4)),
        "tf32": ((wide, 10), (deep, 20), (small, 4)),
        "3xtf32": ((wide, 10), (deep, 10), (odd, 17)),
        "bfloat16": ((wide, 10), (deep, 20), (odd, 17)),
    }
    pixels = (("hinge", 35, 10), ("bce", 36, 40), ("bce", 36, 3), ("hinge", 36, 33))  # loss, D, C
    found = [
        Problem(*shape, C, loss="cross_entropy", precision=precision)
        for precision, chosen in shapes.items()
        for shape, C in chosen
    ]
    for dtype, names, losses in (
        ("float32", activation_op.NAMES, pixels),
        ("float64", ("relu", "softplus"), pixels[:2]),
    ):
        make = partial(Problem, dtype=dtype, precision=dtype)
        for name in names:
            found.append(make(65, 36, 64, 16, activation=name, output=name, inputs=dtype))
        for loss, D, C in losses:
            found.append(make(65, D, 64, C, loss=loss, inputs="uint8"))
    make = partial(Problem, dtype="float64", precision="float64", inputs="float64", loss="cross_entropy")
    return [*found, make(*odd, 17), make(*small, 4)]


def _expressions(which: str) -> tuple[str, ...]:
    kernels = [getattr(Geometry(problem), which).expression for problem in representative()]
    return tuple(dict.fromkeys(kernels))


def _bytes_of_hidden(N: int, D: int, H: int, itemsize: int = 4) -> dict[str, int]:
    return {"x": N * D * itemsize, "W1": D * H * itemsize, "b1": H * itemsize, "A1": N * H * itemsize}


def _bytes_of_output(N: int, H: int, C: int, itemsize: int = 4) -> dict[str, int]:
    sizes = {"A1": N * H, "W2": H * C, "b2": C, "y": N * C, "dZ2": N * C}
    return {name: size * itemsize for name, size in sizes.items()}


def _bytes_of_weight(N: int, D: int, H: int, C: int, S: int, itemsize: int = 4) -> dict[str, int]:
    sizes = {"x": N * D, "A1": N * H, "dZ2": N * C, "W2": H * C, "partials": S * (D * H + H + H * C)}
    return {name: size * itemsize for name, size in sizes.items()}


_OUTPUT = tuple(one for one in _expressions("output_kernel") if one.startswith("general_output<"))
_OUTPUT_WIDE = tuple(one for one in _expressions("output_kernel") if one not in _OUTPUT)

CATALOGUE = (
    Entry(
        "two_layer.general_hidden",
        FILE,
        _expressions("hidden_kernel"),
        f"grid (⌈N / BM⌉, ⌈H / BN⌉), block {THREADS}; tile from choose_tile(N, H, precision)",
        _bytes_of_hidden,
    ),
    Entry(
        "two_layer.general_output",
        FILE,
        _OUTPUT,
        f"grid the partitions of the samples, at most {OUTPUT_PARTITIONS}, block {THREADS}; C up to {FEW}",
        _bytes_of_output,
    ),
    Entry(
        "two_layer.general_output_wide",
        FILE,
        _OUTPUT_WIDE,
        f"grid the partitions of the samples, at most {OUTPUT_PARTITIONS}, block {THREADS}; any C",
        _bytes_of_output,
    ),
    Entry(
        "two_layer.general_weight",
        FILE,
        _expressions("weight_kernel"),
        f"grid (tiles of dW1 and dW2, S), block {THREADS}; S from the shape",
        _bytes_of_weight,
    ),
)
