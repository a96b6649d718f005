"""Path R3 of the two-layer training step: two launches, for hidden layers of up to 128 units.

::

    pair_forward    A1 = f(X W1 + b1), Z2 = A1 W2 + b2, loss, dZ2, dZ1 = (dZ2 W2ᵀ) ∘ f'(A1);  dW2 and db2
                    by partition of the samples
    pair_backward   dW1 = Xᵀ dZ1 and db1 = Σ dZ1 by split of the samples; the sums of all in rising order,
                    and the optimizer's rule on them

X (N, D) and dZ1 (N, H) are read by both; A1 stays on chip.  Any N and D; H up to 128, C up to 64, float32 and
float64.  Partitions and chunks depend on the shape alone, unless a tiling says how: the same bits on every
GPU.

Kernels: ``kernels/two_layer_pair.cu``.  Test: ``tests/test_two_layer_pair.py``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import partial

import numpy as np

from handgrad.arrays import Array, get_array_module, on_device_of
from handgrad.kernel import Entry, Kernel
from handgrad.ops import activation as activation_op
from handgrad.ops import checks, linear
from handgrad.ops import loss as loss_op
from handgrad.ops.checks import DType
from handgrad.ops.linear import Tile
from handgrad.ops.optimizer import STATES
from handgrad.ops.tilings import Tiling, differing, pick, worth_trying
from handgrad.ops.two_layer import RULES, Launch, Layout, Problem, StepArrays
from handgrad.ops.two_layer_step import loss_functor, shared_limit

FILE = "two_layer_pair.cu"
MOST_H, MOST_C = 128, 64
MOST_PARTITIONS = 264  # two blocks on every multiprocessor of a large GPU
FORWARD_TILES = (Tile(64, 32, 16, 4, 2), Tile(64, 64, 16, 4, 4), Tile(64, 128, 8, 4, 8))  # by H: BN ≥ H
# Of the same width.  With more rows, those of A1 would not begin at whole vectors.
OTHER_FORWARD_TILES = (Tile(32, 32, 16, 2, 2), Tile(32, 64, 16, 2, 4), Tile(32, 128, 8, 4, 4))
OTHER_PARTITIONS = (132, 528)
OTHER_BLOCKS = (128, 512, 1024)  # of dW1, that a split aims at


@dataclass(frozen=True)
class PairTiling(Tiling):
    """R3's: tile and most partitions of pair_forward; tile of dW1 and the blocks that its split aims at."""

    forward: Tile
    partitions: int
    backward: Tile
    blocks: int


@dataclass(frozen=True)
class Geometry:
    """How the two kernels are laid out for a problem."""

    forward: Tile
    shared: int  # bytes of dynamic shared memory of pair_forward
    partitions: int
    chunk: int  # samples of a partition
    backward: Tile
    tiles: int  # of dW1
    splits: int
    split: int  # samples of a split
    stride: int  # elements from one split's dW1 and db1 to the next
    output_blocks: int


def refusal(problem: Problem) -> str:
    """ "" where R3 can do the problem, else the reason in one line."""
    p = problem
    if p.precision != p.dtype:
        return f"R3 computes in {p.dtype}, not in {p.precision}"
    if p.inputs != p.dtype:
        return f"R3 takes X of {p.dtype}, not of {p.inputs}"
    if p.H > MOST_H:
        return f"H = {p.H} is above {MOST_H}"
    if p.C > MOST_C:
        return f"C = {p.C} is above {MOST_C}"
    if max(p.N, p.D * p.H + p.H) >= checks.INT_LIMIT:
        return f"N = {p.N} or D H = {p.D * p.H} is above {checks.INT_LIMIT - 1}"
    tile = _forward_tile(p.H)
    needed, there = _shared_bytes(p, tile) + _slab_bytes(tile, p.itemsize), shared_limit(p.arch)
    if needed > there:
        return f"H = {p.H}, C = {p.C} takes {needed} bytes of shared memory; {p.arch} has {there}"
    return ""


def _forward_tile(H: int) -> Tile:
    return next(tile for tile in FORWARD_TILES if tile.BN >= H)


def _shared_bytes(p: Problem, tile: Tile) -> int:
    """Dynamic shared memory of pair_forward, array by array."""
    lanes = tile.threads // tile.BM
    pitch = -(-max(p.H - lanes, 0) // 32) * 32 + lanes
    output = 2 * p.C * p.H + p.C + 2 * tile.BM * p.C + -(-p.H // lanes) * lanes + tile.threads // 32
    return (tile.BM * pitch + output) * p.itemsize


def _slab_bytes(tile: Tile, itemsize: int) -> int:
    """At least the static shared memory of the tile product: two slabs of either operand, with padding."""
    return 2 * tile.BK * (tile.BM + tile.BN + 64) * itemsize


@functools.lru_cache(maxsize=64)
def tilings(problem: Problem) -> tuple[PairTiling, ...]:
    """Tiles that fit the shape, by partitions and splits that differ; the rule's first.

    ``ValueError`` with the reason where R3 cannot.
    """
    reason = refusal(problem)
    if reason:
        raise ValueError(f"path R3: {reason}")
    p, limit = problem, shared_limit(problem.arch)
    rule = _forward_tile(p.H)
    forward = [
        tile
        for tile in (rule, *OTHER_FORWARD_TILES)
        if tile.BN == rule.BN and _shared_bytes(p, tile) + _slab_bytes(tile, p.itemsize) <= limit
    ]
    backward = [linear.choose_tile(p.D, p.H)]
    backward += [tile for tile in (linear.WIDE, linear.MEDIUM, linear.NARROW) if tile != backward[0]]

    def blocks_of(tile: Tile) -> int:
        return -(-p.N // _split(p, tile, linear.SPLIT_BLOCKS)) * -(-p.D // tile.BM) * -(-p.H // tile.BN)

    return tuple(
        PairTiling(first, most, second, blocks)
        for first in worth_trying(forward, p.N, p.H, lambda tile: -(-p.N // tile.BM))
        for second in worth_trying(backward, p.D, p.H, blocks_of, linear.SPLIT_BLOCKS // 2)
        for most in differing((MOST_PARTITIONS, *OTHER_PARTITIONS), partial(_chunk, p, first))
        for blocks in differing((linear.SPLIT_BLOCKS, *OTHER_BLOCKS), partial(_split, p, second))
    )


def _chunk(p: Problem, tile: Tile, most: int) -> int:
    """Samples of one of at most ``most`` partitions, whole tiles."""
    row_tiles = -(-p.N // tile.BM)
    return tile.BM * max(1, -(-row_tiles // most))


def _split(p: Problem, tile: Tile, blocks: int) -> int:
    """Samples of a split of dW1."""
    return linear.split_samples(p.N, p.D, p.H, tile, blocks)[1]


@functools.lru_cache(maxsize=64)
def geometry(problem: Problem, tiling: Tiling | None = None) -> Geometry:
    """The kernels', by the rule where ``tiling`` is None; ``ValueError`` where R3 cannot."""
    p, chosen = problem, pick("R3", tilings(problem), tiling)
    forward, backward = chosen.forward, chosen.backward
    chunk = _chunk(p, forward, chosen.partitions)
    splits, split = linear.split_samples(p.N, p.D, p.H, backward, chosen.blocks)
    return Geometry(
        forward=forward,
        shared=_shared_bytes(p, forward),
        partitions=-(-p.N // chunk),
        chunk=chunk,
        backward=backward,
        tiles=-(-p.D // backward.BM) * -(-p.H // backward.BN),
        splits=splits,
        split=split,
        stride=-(-(p.D * p.H + p.H) // 64) * 64,
        output_blocks=-(-(p.H * p.C + p.C) // backward.threads),
    )


def forward_kernel(problem: Problem, tile: Tile, vd: int) -> Kernel:
    """``pair_forward`` with loads of ``vd`` elements of X."""
    cpp, f = checks.CPP_NAMES[problem.dtype], activation_op.functor_of(problem.activation)
    vh = _width(tile.BN, np.dtype(problem.dtype), problem.H)
    L = loss_functor(problem.loss, problem.output)
    return Kernel(FILE, f"pair_forward<{cpp}, {tile.cpp}, {f}, {L}, {vd}, {vh}>")


def backward_kernel(problem: Problem, tile: Tile, vd: int) -> Kernel:
    """``pair_backward`` with loads of ``vd`` elements of X."""
    cpp, vh = checks.CPP_NAMES[problem.dtype], _width(tile.BN, np.dtype(problem.dtype), problem.H)
    return Kernel(FILE, f"pair_backward<{problem.rule}<{cpp}>, {tile.cpp}, {vd}, {vh}>")


def _width(tile_side: int, dtype: DType, side: int, *arrays: Array) -> int:
    width = checks.vector_width(dtype, side, *arrays)
    return width if tile_side % width == 0 else 1


def lay_out(problem: Problem, tiling: Tiling | None = None) -> Layout:
    """Two launches; for X whose rows are as aligned as their length allows."""
    p, chosen = problem, pick("R3", tilings(problem), tiling)
    g = geometry(problem, chosen)
    dtype, size = np.dtype(p.dtype), p.itemsize
    forward = forward_kernel(p, g.forward, _width(g.forward.BK, dtype, p.D))
    backward = backward_kernel(p, g.backward, _width(g.backward.BM, dtype, p.D))
    launches = []
    if g.partitions:
        launches.append(Launch("pair_forward", forward, (g.partitions,), (g.forward.threads,), g.shared))
    blocks = g.output_blocks + g.tiles * g.splits
    launches.append(Launch("pair_backward", backward, (blocks,), (g.backward.threads,)))
    P = sum(p.sizes.values())
    states = len(STATES.get(p.rule, ()))
    updated = {"parameters": 2 * P * size, "state": 2 * states * P * size}
    if p.rule == "Store":
        updated = {"gradient": P * size}
    return Layout(
        path="R3",
        problem=p,
        tiling=chosen,
        launches=tuple(launches),
        partitions=g.splits,
        workspace={name: int(np.prod(shape)) * of.itemsize for name, shape, of in _buffers(p, g)},
        compulsory={"X": p.N * p.D * size, "y": p.target_bytes, **updated, "loss": size},
        requested=_requested(p, g),
        operations=4 * p.N * p.D * p.H + 6 * p.N * p.H * p.C,
        note=f"forward {g.forward.cpp}, {g.partitions} partitions of {g.chunk} samples; "
        f"dW1 {g.backward.cpp}, {g.splits} splits of {g.split}",
    )


def _requested(p: Problem, g: Geometry) -> dict[str, int]:
    """Bytes that the two launches ask for, nothing frozen."""
    size = p.itemsize
    D_tiles, H_tiles = -(-p.D // g.backward.BM), -(-p.H // g.backward.BN)
    row_tiles = -(-p.N // g.forward.BM)
    weights, output = p.D * p.H + p.sizes["b1"], p.sizes["W2"] + p.sizes["b2"]
    row = p.H * p.C + p.C
    found = {
        "X": p.N * p.D * size * (1 + H_tiles),
        "y": p.target_bytes,
        "W1": row_tiles * p.D * p.H * size,
        "b1": g.partitions * p.sizes["b1"] * size,
        "W2": g.partitions * p.sizes["W2"] * size,
        "b2": g.partitions * p.sizes["b2"] * size,
        "dZ1": p.N * p.H * size * (1 + D_tiles),
        "output_partials": g.partitions * (row + output) * size,
        "loss_partials": 2 * g.partitions * size,
        "weight_partials": 2 * g.splits * weights * size,
        "loss": size,
    }
    finishing, blocks = g.tiles + g.output_blocks, g.tiles * g.splits
    tickets = 4 * (blocks + g.tiles)
    if p.rule == "Store":
        return found | {"gradient": p.flat_size * size, "tickets": tickets}
    P = sum(p.sizes.values())
    found |= {"parameters": 2 * P * size, "trainable": P, "steps": 4 * finishing * (p.rule == "Adam") + 8}
    return found | {"tickets": tickets + 4 * (finishing + 1)} | dict.fromkeys(STATES[p.rule], 2 * P * size)


def _buffers(p: Problem, g: Geometry) -> tuple[tuple[str, tuple[int, ...], DType], ...]:
    """Name, shape and type of what the workspace holds."""
    dtype = np.dtype(p.dtype)
    return (
        ("two_layer.dZ1", (p.N, p.H), dtype),
        ("two_layer.output_partials", (g.partitions, p.H * p.C + p.C), dtype),
        ("two_layer.loss_partials", (g.partitions,), dtype),
        ("two_layer.weight_partials", (g.splits, g.stride), dtype),
        ("two_layer.tickets", (g.tiles + 1,), np.dtype(np.int32)),
    )


def run(layout: Layout, arrays: StepArrays) -> None:
    """The launches of one step; nothing is allocated after the first."""
    p, g = layout.problem, geometry(layout.problem, layout.tiling)
    xp, dtype = get_array_module(arrays.X, arrays.y, arrays.parameters.flat), np.dtype(p.dtype)
    X, y = arrays.X, arrays.y
    checks.require_shape("path R3", "X", X, (p.N, p.D), "(N, D)")
    if X.dtype != dtype:
        raise TypeError(f"path R3: X must be {dtype}, got {X.dtype}")
    if (arrays.scale, arrays.shift) != (1.0, 0.0):
        raise ValueError("path R3: scale and shift are for X of uint8, which R3 does not take")
    if not X.flags.c_contiguous:
        X = xp.ascontiguousarray(X)
    if not y.flags.c_contiguous:
        y = xp.ascontiguousarray(y)
    if p.loss not in loss_op.ELEMENTWISE:
        y = loss_op.as_int32(y, p.C)
    *buffers, (name, shape, _) = _buffers(p, g)
    dZ1, outputs, losses, weights = (arrays.workspace.get(*buffer, xp) for buffer in buffers)
    tickets = arrays.workspace.zeroed_once(name, shape, np.int32, xp)
    views, offsets = arrays.parameters.views, p.offsets
    scale = dtype.type(p.loss_scale)
    with on_device_of(X):
        if g.partitions:
            launch = layout.launches[0]
            forward_kernel(p, g.forward, _width(g.forward.BK, dtype, p.D, X))(
                launch.grid,
                launch.block,
                *(X, y, views["W1"], views.get("b1"), views["W2"], views.get("b2"), dZ1, outputs, losses),
                *(np.int32(value) for value in (p.N, p.D, p.H, p.C, g.chunk, g.partitions)),
                scale,
                shared=launch.shared,
            )
        launch = layout.launches[-1]
        backward_kernel(p, g.backward, _width(g.backward.BM, dtype, p.D, X))(
            launch.grid,
            launch.block,
            *(X, dZ1, outputs, losses),
            *_updated(p, arrays, weights, tickets),
            *(np.int32(value) for value in (p.N, p.D, p.H, p.C, g.split, g.splits)),
            np.int64(g.stride),
            *(np.int32(value) for value in (g.partitions, g.output_blocks)),
            *(np.int32(offsets[name]) for name in ("b1", "W2", "b2")),
            *(np.int32(p.flat_size), np.int32(p.bias), scale),
        )


def _updated(p: Problem, arrays: StepArrays, weights: Array, tickets: Array) -> tuple[Array | None, ...]:
    """What pair_backward writes, and reads of the optimizer: its arguments from trainable to tickets."""
    if p.rule == "Store":
        assert arrays.gradient is not None, "with Store, the gradient is what is written"
        return (None, None, weights, arrays.gradient, None, None, arrays.loss, None, tickets)
    assert arrays.optimizer is not None, "a rule has an optimizer"
    assert arrays.optimizer.rule == p.rule, "the problem was made for another optimizer"
    hyperparameters, state1, state2, steps, _ = arrays.optimizer.kernel_arguments(arrays.parameters)
    flat, trainable = arrays.parameters.flat, arrays.parameters.trainable
    return (trainable, hyperparameters, weights, flat, state1, state2, arrays.loss, steps, tickets)


# ---- catalogue -------------------------------------------------------------------------------------------


def _forward_instances() -> tuple[str, ...]:
    """Every tile, activation and loss, in both types, with wide and narrow loads."""
    losses = [("mse", name) for name in activation_op.NAMES]
    losses += [(name, "identity") for name in ("bce", "cross_entropy", "hinge")]
    found = []
    for i, (loss, output) in enumerate(losses):
        H, f = (20, 64, 128)[i % 3], activation_op.NAMES[i % 5]
        for dtype in ("float32", "float64"):
            types = {"dtype": dtype, "precision": dtype, "inputs": dtype}
            problem = Problem(1000, 784, H, 10, f, output, loss, **types)  # type: ignore[arg-type]
            tile = _forward_tile(H)
            found += [forward_kernel(problem, tile, vd).expression for vd in (16 // problem.itemsize, 1)]
    return tuple(dict.fromkeys(found))


def _backward_instances() -> tuple[str, ...]:
    """Every rule in both types, every tile."""
    found = []
    for dtype in ("float32", "float64"):
        types = {"dtype": dtype, "precision": dtype, "inputs": dtype}
        for rule in RULES:
            problem = Problem(1000, 784, 128, 10, rule=rule, **types)  # type: ignore[arg-type]
            found.append(backward_kernel(problem, linear.MEDIUM, 16 // problem.itemsize).expression)
        for tile in linear.TILES:
            problem = Problem(1000, 784, min(tile.BN, 128), 10, rule="Sgd", **types)  # type: ignore[arg-type]
            found.append(backward_kernel(problem, tile, 16 // problem.itemsize).expression)
            found.append(backward_kernel(problem, tile, 1).expression)
    return tuple(dict.fromkeys(found))


def _forward_bytes(N: int, D: int, H: int, C: int, itemsize: int = 4) -> dict[str, int]:
    sizes = {"X": N * D, "y": N * C, "W1": D * H, "b1": H, "W2": H * C, "b2": C, "dZ1": N * H}
    return {name: size * itemsize for name, size in sizes.items()}


def _backward_bytes(N: int, D: int, H: int, itemsize: int = 4) -> dict[str, int]:
    return {"X": N * D * itemsize, "dZ1": N * H * itemsize, "w": 2 * (D * H + H) * itemsize}


CATALOGUE = (
    Entry(
        "two_layer.pair_forward",
        FILE,
        _forward_instances(),
        "grid S ≤ 264 partitions, block (BM / TM)(BN / TN), the tile by H",
        _forward_bytes,
    ),
    Entry(
        "two_layer.pair_backward",
        FILE,
        _backward_instances(),
        "grid ⌈(H C + C) / block⌉ + tiles · splits, block (BM / TM)(BN / TN); as linear.backward_weight",
        _backward_bytes,
    ),
)
