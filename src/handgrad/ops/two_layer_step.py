"""Path R1 of the two-layer training step: forward, loss and backward of a batch in one launch.

::

    A1 = f(X W1 + b1)         Z2 = A1 W2 + b2          loss, dZ2
    dZ1 = (dZ2 W2ᵀ) ∘ f'(A1)  dW1 = Xᵀ dZ1, db1 = Σ dZ1, dW2 = A1ᵀ dZ2, db2 = Σ dZ2

X (N, D) is read once, A1 never leaves the chip, dW1 grows in registers.  The samples are split into S
partitions by the shape alone, unless a tiling says how; each leaves its sums, which ``two_layer_reduce`` adds
in rising order before it applies the optimizer's rule: two launches a step, the same bits on any number of
multiprocessors.

A thread holds up to 16 x 10 elements of dW1, so R1 takes float32 with ⌈D/16⌉⌈H/10⌉ ≤ 256 (D H up to 40,960),
H up to 128, C up to 64, where a tile of 16 samples fits in the shared memory of a block.  In float64 it holds
half as many, and up to eight blocks share a partition, each with its own rows of dW1.  With tf32, 3xtf32 and
bfloat16 (X W1 and Xᵀ dZ1 on tensor cores, sums in float32): D up to 896 with H up to 56, D up to 1536 with H
up to 32.

Kernel: ``kernels/two_layer_step.cu``.  Test: ``tests/test_two_layer_step.py``.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np

from handgrad.arrays import get_array_module, on_device_of
from handgrad.kernel import Entry, Kernel
from handgrad.ops import activation as activation_op
from handgrad.ops import checks, two_layer_reduce
from handgrad.ops import loss as loss_op
from handgrad.ops.optimizer_kernels import STATES
from handgrad.ops.tilings import Tiling, pick
from handgrad.ops.two_layer import Launch, Layout, Problem, StepArrays
from handgrad.ops.two_layer_step_tiles import (
    STAGES,
    SUMS,
    THREADS,
    VECTOR_BYTES,
    WARPS,
    Tile,
    round_up,
    tiles_of,
)

FILE = "two_layer_step.cu"
MOST_H, MOST_C = 128, 64
PARTITIONS_LEAST = 132  # where there are as many tiles: one for every multiprocessor of a large GPU
PARTIALS_SHARE = 0.15  # partials, written and read, take at most 0.3 of the bytes of X: 8 S P ≤ 0.3 · 4 N D
SPREAD_OVER = (58, 108, 128, 132)  # multiprocessors of L4, A100, RTX 4090, H100


@dataclass(frozen=True)
class StepTiling(Tiling):
    """R1's: what a thread accumulates, and the samples of a partition."""

    tile: Tile
    chunk: int


@dataclass(frozen=True)
class Geometry:
    """How the kernel is laid out for a problem: what its launch needs besides the arrays."""

    tile: Tile
    pitch: int  # elements from one row of X to the next in shared memory
    buffers: int  # tiles of X in shared memory
    shared: int  # bytes
    chunk: int  # samples of a partition
    partitions: int


def refusal(problem: Problem) -> str:
    """ "" where R1 can do the problem, else the reason in one line."""
    p = problem
    if p.H > MOST_H:
        return f"H = {p.H} is above {MOST_H}"
    if p.C > MOST_C:
        return f"C = {p.C} is above {MOST_C}"
    if p.N >= checks.INT_LIMIT:
        return f"N = {p.N} is above {checks.INT_LIMIT - 1}"
    if p.precision != p.dtype and p.arch == "sm_75":
        return f"sm_75 has no tensor cores for {p.precision}"
    tiles = tiles_of(p)
    if not tiles:
        return f"dW1 of D = {p.D} by H = {p.H} is more than the registers hold in {p.precision}"
    needed, there = _shared_bytes(p, tiles[0], 1), shared_limit(p.arch)
    if needed > there:
        tile_of_X = f"a tile of D = {p.D}, H = {p.H}, C = {p.C}"
        return f"{tile_of_X} takes {needed} bytes of shared memory; {p.arch} has {there}"
    return ""


def shared_limit(arch: str) -> int:
    """Bytes of shared memory that a block may opt into."""
    from handgrad.emulator.settings import SHARED_BYTES_PER_BLOCK

    return SHARED_BYTES_PER_BLOCK[arch]


def _pitch(problem: Problem, tile: Tile) -> int:
    """An odd number of vectors: rows that are read together begin in different banks."""
    return (-(-tile.row(problem.D) // tile.vector) | 1) * tile.vector


def _shared_bytes(p: Problem, tile: Tile, buffers: int) -> int:
    """Dynamic shared memory, array by array as the kernel places them."""
    V = tile.vector
    ring = max(WARPS * STAGES * tile.slab(p.H), SUMS * tile.sums * 32)
    X = buffers * tile.ROWS * _pitch(p, tile)
    main = max(X + round_up(ring, V), round_up(tile.pass_rows * p.H, V))  # dW1 leaves over X and the rings
    a_pitch = 16 if p.H <= 16 else round_up(p.H - 16, 32) + 16
    hidden = tile.ROWS * (a_pitch + tile.z_pitch(p.H))
    output = 2 * p.C * p.H + p.C + 2 * tile.ROWS * p.C + p.H + WARPS
    elements = round_up(main + hidden + output, V)
    staged = tile.ROWS * round_up(p.D, VECTOR_BYTES) if p.inputs == "uint8" else 0
    return elements * p.itemsize + staged


def chunks(N: int, D: int, P: int, rows: int) -> tuple[int, ...]:
    """Samples of a partition, whole tiles of ``rows``, from the shape alone: the rule's first.

    Of the numbers of partitions whose partials stay within :data:`PARTIALS_SHARE`, the rule takes the one
    with which the slowest of :data:`SPREAD_OVER` loses least; each of these alone has another that suits it.
    """
    tiles = max(1, -(-N // rows))
    most = max(min(tiles, PARTITIONS_LEAST), min(tiles, int(PARTIALS_SHARE * N * D / P)))
    least = -(-tiles // most)

    def best(gpus: tuple[int, ...]) -> int:
        def worst(each: int) -> float:
            S = -(-tiles // each)
            return min(tiles / (sms * -(-S // sms) * each) for sms in gpus)

        return rows * max(range(least, 3 * least + 1), key=lambda each: (worst(each), -each))

    return tuple(dict.fromkeys((best(SPREAD_OVER), *(best((sms,)) for sms in SPREAD_OVER))))


@functools.lru_cache(maxsize=64)
def tilings(problem: Problem) -> tuple[StepTiling, ...]:
    """Tiles that hold dW1 and fit the shared memory, by partitions that suit some GPU; the rule's first.

    ``ValueError`` with the reason where R1 cannot.
    """
    reason = refusal(problem)
    if reason:
        raise ValueError(f"path R1: {reason}")
    p, limit = problem, shared_limit(problem.arch)
    return tuple(
        StepTiling(tile, chunk)
        for tile in tiles_of(p)
        if _shared_bytes(p, tile, 1) <= limit
        for chunk in chunks(p.N, p.D, sum(p.sizes.values()), tile.ROWS)
    )


@functools.lru_cache(maxsize=64)
def geometry(problem: Problem, tiling: Tiling | None = None) -> Geometry:
    """The kernel's, by the rule where ``tiling`` is None; ``ValueError`` where R1 cannot."""
    p, chosen = problem, pick("R1", tilings(problem), tiling)
    tile, chunk = chosen.tile, chosen.chunk
    buffers = 2 if p.inputs != "uint8" and _shared_bytes(p, tile, 2) <= shared_limit(p.arch) else 1
    return Geometry(tile, _pitch(p, tile), buffers, _shared_bytes(p, tile, buffers), chunk, -(-p.N // chunk))


def kernel_of(problem: Problem, tile: Tile, vx: int) -> Kernel:
    """``two_layer_step`` with copies of ``vx`` elements of X."""
    f, L = activation_op.functor_of(problem.activation), loss_op.functor_of(problem.loss, problem.output)
    types = f"{tile.cpp(problem.H)}, {checks.CPP_NAMES[problem.inputs]}, {f}, {L}"
    return Kernel(FILE, f"two_layer_step<{types}, {vx}>")


def lay_out(problem: Problem, tiling: Tiling | None = None) -> Layout:
    """Two launches; for X whose rows are as aligned as their length allows."""
    p, chosen = problem, pick("R1", tilings(problem), tiling)
    g = geometry(problem, chosen)
    resident = 1
    if g.tile.blocks > 1:  # an SM has 1 KB more than one block may have, and takes 1 KB a block itself
        resident = max(1, min(g.tile.blocks, (shared_limit(p.arch) + 1024) // (g.shared + 1024)))
    blocks = min(g.partitions * g.tile.slices, p.sms * resident)
    kernel = kernel_of(p, g.tile, checks.vector_width(np.dtype(p.inputs), p.D))
    operations = 4 * p.N * p.D * p.H + 6 * p.N * p.H * p.C
    launches = [two_layer_reduce.launch_of(p)]
    if blocks:
        launches.insert(
            0, Launch("two_layer_step", kernel, (blocks,), (THREADS,), g.shared, operations=operations)
        )
    S, size = g.partitions, p.itemsize
    states = len(STATES.get(p.rule, ()))
    P = sum(p.sizes.values())
    updated = (
        {"gradient": P * size}
        if p.rule == "Store"
        else {"parameters": 2 * P * size, "state": 2 * states * P * size}
    )
    reads_W1 = -(-p.N // g.tile.ROWS) * -(-p.H // g.tile.columns)
    requested = {
        "X": g.tile.slices * p.N * p.D * p.input_itemsize,
        "y": g.tile.slices * p.target_bytes,
        "W1": g.tile.slices * reads_W1 * p.D * p.H * size,
        "W2": g.tile.slices * S * p.H * p.C * size,
        "b1": g.tile.slices * S * p.sizes["b1"] * size,
        "b2": g.tile.slices * S * p.sizes["b2"] * size,
        "partials": S * P * size,
        "loss_partials": S * size,
    }
    for name, moved in two_layer_reduce.requested(p, S, losses=S).items():
        requested[name] = requested.get(name, 0) + moved
    return Layout(
        path="R1",
        problem=p,
        tiling=chosen,
        launches=tuple(launches),
        partitions=S,
        workspace={"two_layer.partials": S * p.flat_size * size, "two_layer.loss_partials": S * size},
        compulsory={"X": p.N * p.D * p.input_itemsize, "y": p.target_bytes, **updated, "loss": size},
        requested=requested,
        note=f"{g.tile.cpp(p.H)}, {g.chunk} samples a partition, {g.buffers} tile(s) of X in shared memory"
        + (f", {g.tile.slices} slices of D" if g.tile.slices > 1 else ""),
    )


def run(layout: Layout, arrays: StepArrays) -> None:
    """The launches of one step; nothing is allocated after the first."""
    p, g = layout.problem, geometry(layout.problem, layout.tiling)
    xp = get_array_module(arrays.X, arrays.y, arrays.parameters.flat)
    dtype = np.dtype(p.dtype)
    X, y = arrays.X, arrays.y
    if not X.flags.c_contiguous:
        X = xp.ascontiguousarray(X)
    if not y.flags.c_contiguous:
        y = xp.ascontiguousarray(y)
    checks.require_shape("path R1", "X", X, (p.N, p.D), "(N, D)")
    if X.dtype != np.dtype(p.inputs):
        raise TypeError(f"path R1: X must be {p.inputs}, got {X.dtype}")
    if p.inputs != "uint8" and (arrays.scale, arrays.shift) != (1.0, 0.0):
        raise ValueError("path R1: scale and shift are for X of uint8")
    if p.loss not in loss_op.ELEMENTWISE:
        y = loss_op.as_int32(y, p.C)
    S, P = g.partitions, p.flat_size
    partials = arrays.workspace.get("two_layer.partials", (S, P), dtype, xp)
    losses = arrays.workspace.get("two_layer.loss_partials", (S,), dtype, xp)
    if S:
        launch = layout.launches[0]
        views, offsets = arrays.parameters.views, p.offsets
        kernel = kernel_of(p, g.tile, checks.vector_width(np.dtype(p.inputs), p.D, X))
        sizes = (p.N, p.D, p.H, p.C, g.chunk, S, g.tile.slices, g.buffers, g.pitch, g.tile.d_groups)
        with on_device_of(X):
            kernel(
                launch.grid,
                launch.block,
                *(X, y, views["W1"], views.get("b1"), views["W2"], views.get("b2"), partials, losses),
                *(np.int32(size) for size in sizes),
                *(np.int32(offsets[name]) for name in ("b1", "W2", "b2")),
                *(np.int64(P), *(dtype.type(value) for value in (p.loss_scale, arrays.scale, arrays.shift))),
                shared=launch.shared,
            )
    two_layer_reduce.reduce(p, arrays, partials, losses)


# ---- catalogue -------------------------------------------------------------------------------------------


def _instances() -> tuple[str, ...]:
    """Every tile, every activation and every loss once; both types, uint8, and rows that are not aligned."""
    sides = ((784, 50), (64, 10), (112, 64), (512, 64), (783, 50), (300, 128))
    problems = [Problem(1000, D, H, 1) for D, H in sides]
    problems += [Problem(1000, 784, 50, 10, activation=f, loss="cross_entropy") for f in activation_op.NAMES]
    problems += [Problem(1000, 64, 50, 10, output=g) for g in activation_op.NAMES]
    problems += [Problem(1000, 64, 50, 10, loss=loss) for loss in ("bce", "hinge")]
    problems += [Problem(1000, D, 50, 10, loss="cross_entropy", inputs="uint8") for D in (784, 785)]
    for D, H, inputs in ((64, 10, "float64"), (784, 50, "float64"), (785, 65, "float64"), (784, 50, "uint8")):
        double = Problem(1000, D, H, 10, dtype="float64", precision="float64", inputs=inputs, arch="sm_90")
        problems.append(dataclasses.replace(double, loss="cross_entropy"))
    for precision in ("tf32", "3xtf32", "bfloat16"):
        for D, H in ((784, 50), (64, 10), (1000, 32)):
            narrow = Problem(1000, D, H, 10, loss="cross_entropy", precision=precision, arch="sm_90")
            problems.append(narrow)
    split = Problem(1000, 784, 50, 10, loss="cross_entropy", precision="3xtf32", inputs="uint8", arch="sm_90")
    found = [lay_out(problem).launches[0].kernel.expression for problem in (*problems, split)]
    return tuple(dict.fromkeys(found))


def _bytes(N: int, D: int, H: int, C: int, S: int, itemsize: int = 4) -> dict[str, int]:
    sizes = {"X": N * D, "y": N * C, "W1": D * H, "b1": H, "W2": H * C, "b2": C, "loss_partials": S}
    sizes["partials"] = S * (D * H + H + H * C + C)
    return {name: size * itemsize for name, size in sizes.items()}


CATALOGUE = (
    Entry(
        "two_layer.step",
        FILE,
        _instances(),
        f"grid min(S slices, multiprocessors · blocks), block {THREADS}; S = ⌈N / chunk⌉ from chunks",
        _bytes,
    ),
)
