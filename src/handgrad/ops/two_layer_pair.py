"""Path R3 of the two-layer training step: two launches, for hidden layers of up to 128 units.

::

    pair_forward    A1 = f(X W1 + b1), Z2 = A1 W2 + b2, loss, dZ2, dZ1 = (dZ2 W2ᵀ) ∘ f'(A1);  dW2 and db2
                    by partition of the samples
    pair_backward   dW1 = Xᵀ dZ1 and db1 = Σ dZ1 by split of the samples; the sums of all in rising order,
                    and the optimizer's rule on them

X (N, D) is read by both, dZ1 (N, H) by the second; A1 stays on chip.  Any N and D; H up to 128, C up to 64;
X of the parameters' type or uint8, which is scaled and shifted on chip.  Precision: "tf32", "3xtf32" and
"bfloat16" take tensor cores for the products with X; the others, and all sums, are float32, or float64 with
float64 parameters.  Partitions and chunks depend on the shape alone, unless a tiling says how: the same bits
on any number of multiprocessors.

Kernels: ``kernels/two_layer_pair.cu``.  Test: ``tests/test_two_layer_pair.py``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from handgrad.arrays import Array, get_array_module, on_device_of
from handgrad.kernel import Entry, Kernel
from handgrad.ops import activation as activation_op
from handgrad.ops import checks
from handgrad.ops import loss as loss_op
from handgrad.ops.checks import DType
from handgrad.ops.optimizer_kernels import STATES
from handgrad.ops.tilings import Tiling, pick
from handgrad.ops.two_layer import RULES, Launch, Layout, Problem, StepArrays
from handgrad.ops.two_layer_general_tiles import TENSOR, AnyTile, chunk_of, refusal_of_precision, tiles_of
from handgrad.ops.two_layer_pair_tiles import (
    MOST_PARTITIONS,
    THREADS,
    PairTiling,
    backward_tiles,
    choose_forward_tile,
    chunk_forward,
    forward_tiles,
    shared_bytes,
)
from handgrad.ops.two_layer_pair_tiles import tilings as tiles_and_splits
from handgrad.ops.two_layer_step import shared_limit

FILE = "two_layer_pair.cu"
MOST_H, MOST_C = 128, 64


@dataclass(frozen=True)
class Geometry:
    """How the two kernels are laid out for a problem."""

    forward: AnyTile
    shared: int  # bytes of dynamic shared memory of pair_forward
    partitions: int
    chunk: int  # samples of a partition
    backward: AnyTile
    tiles: int  # of dW1
    splits: int
    split: int  # samples of a split
    stride: int  # elements from one split's dW1 and db1 to the next
    output_blocks: int


def refusal(problem: Problem) -> str:
    """ "" where R3 can do the problem, else the reason in one line."""
    p = problem
    reason = refusal_of_precision(p)
    if reason:
        return reason
    if p.H > MOST_H:
        return f"H = {p.H} is above {MOST_H}"
    if p.C > MOST_C:
        return f"C = {p.C} is above {MOST_C}"
    if max(p.N, p.D * p.H + p.H) >= checks.INT_LIMIT:
        return f"N = {p.N} or D H = {p.D * p.H} is above {checks.INT_LIMIT - 1}"
    needed, there = shared_bytes(p, choose_forward_tile(p)), shared_limit(p.arch)
    if needed > there:
        return f"H = {p.H}, C = {p.C} takes {needed} bytes of shared memory; {p.arch} has {there}"
    return ""


def tilings(problem: Problem) -> tuple[PairTiling, ...]:
    """The rule's first; ``ValueError`` with the reason where R3 cannot."""
    reason = refusal(problem)
    if reason:
        raise ValueError(f"path R3: {reason}")
    return tiles_and_splits(problem)


@functools.lru_cache(maxsize=64)
def geometry(problem: Problem, tiling: Tiling | None = None) -> Geometry:
    """The kernels', by the rule where ``tiling`` is None; ``ValueError`` where R3 cannot."""
    p, chosen = problem, pick("R3", tilings(problem), tiling)
    forward, backward = chosen.forward, chosen.backward
    chunk = chunk_forward(p, forward, chosen.partitions)
    split = chunk_of(p, backward, chosen.blocks)
    return Geometry(
        forward=forward,
        shared=shared_bytes(p, forward),
        partitions=tiles_of(p.N, chunk),
        chunk=chunk,
        backward=backward,
        tiles=tiles_of(p.D, backward.BM) * tiles_of(p.H, backward.BN),
        splits=max(1, tiles_of(p.N, split)),
        split=split,
        stride=tiles_of(p.D * p.H + p.H, 64) * 64,
        output_blocks=tiles_of(p.H * p.C + p.C, THREADS),
    )


def input_width(problem: Problem, *X: Array) -> int:
    """Elements that a load of X moves: of this X, or of one that is aligned."""
    width = 4 if problem.inputs == "uint8" else 16 // problem.itemsize
    whole = all(checks.address(one) % (width * problem.input_itemsize) == 0 for one in X)
    return width if whole and problem.D % width == 0 else 1


def _types(problem: Problem) -> tuple[str, str, int]:
    """C++ types of the parameters and of X; elements that a load along H moves."""
    width = checks.vector_width(np.dtype(problem.dtype), problem.H)
    return checks.CPP_NAMES[problem.dtype], checks.CPP_NAMES[problem.inputs], width


def forward_kernel(problem: Problem, tile: AnyTile, vd: int) -> Kernel:
    """``pair_forward`` with loads of ``vd`` elements of X."""
    (T, X, vh), f = _types(problem), activation_op.functor_of(problem.activation)
    L = loss_op.functor_of(problem.loss, problem.output)
    return Kernel(FILE, f"pair_forward<{T}, {X}, {tile.cpp}, {f}, {L}, {vd}, {vh}>")


def backward_kernel(problem: Problem, tile: AnyTile, vd: int) -> Kernel:
    """``pair_backward`` with loads of ``vd`` elements of X."""
    T, X, vh = _types(problem)
    return Kernel(FILE, f"pair_backward<{problem.rule}<{T}>, {X}, {tile.cpp}, {vd}, {vh}>")


def lay_out(problem: Problem, tiling: Tiling | None = None) -> Layout:
    """Two launches; for X whose rows are as aligned as their length allows."""
    p, chosen = problem, pick("R3", tilings(problem), tiling)
    g = geometry(problem, chosen)
    size, vd = p.itemsize, input_width(p)
    forward, backward = forward_kernel(p, g.forward, vd), backward_kernel(p, g.backward, vd)
    launches, of_X = [], 2 * p.N * p.D * p.H  # operations of a product with X
    if g.partitions:
        operations = of_X + 6 * p.N * p.H * p.C
        launches.append(
            Launch("pair_forward", forward, (g.partitions,), (THREADS,), g.shared, operations=operations)
        )
    blocks = g.output_blocks + g.tiles * g.splits
    launches.append(Launch("pair_backward", backward, (blocks,), (THREADS,), operations=of_X))
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
        compulsory={"X": p.N * p.D * p.input_itemsize, "y": p.target_bytes, **updated, "loss": size},
        requested=_requested(p, g),
        note=f"forward {g.forward}, {g.partitions} partitions of {g.chunk} samples; "
        f"dW1 {g.backward}, {g.splits} splits of {g.split}",
    )


def _requested(p: Problem, g: Geometry) -> dict[str, int]:
    """Bytes that the two launches ask for, nothing frozen."""
    size = p.itemsize
    D_tiles, H_tiles = -(-p.D // g.backward.BM), -(-p.H // g.backward.BN)
    row_tiles = -(-p.N // g.forward.BM)
    weights, output = p.D * p.H + p.sizes["b1"], p.sizes["W2"] + p.sizes["b2"]
    row = p.H * p.C + p.C
    found = {
        "X": p.N * p.D * p.input_itemsize * (1 + H_tiles),
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
    flags = P - p.sizes["W1"] + p.sizes["W1"] // _types(p)[2]  # one for each load of W1
    found |= {"parameters": 2 * P * size, "trainable": flags, "steps": 4 * finishing * (p.rule == "Adam") + 8}
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
    if X.dtype != np.dtype(p.inputs):
        raise TypeError(f"path R3: X must be {p.inputs}, got {X.dtype}")
    if p.inputs != "uint8" and (arrays.scale, arrays.shift) != (1.0, 0.0):
        raise ValueError("path R3: scale and shift are for X of uint8")
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
    scales = tuple(dtype.type(value) for value in (p.loss_scale, arrays.scale, arrays.shift))
    vd = input_width(p, X)
    with on_device_of(X):
        if g.partitions:
            launch = layout.launches[0]
            forward_kernel(p, g.forward, vd)(
                launch.grid,
                launch.block,
                *(X, y, views["W1"], views.get("b1"), views["W2"], views.get("b2"), dZ1, outputs, losses),
                *(np.int32(value) for value in (p.N, p.D, p.H, p.C, g.chunk, g.partitions)),
                *scales,
                shared=launch.shared,
            )
        launch = layout.launches[-1]
        backward_kernel(p, g.backward, vd)(
            launch.grid,
            launch.block,
            *(X, dZ1, outputs, losses),
            *_updated(p, arrays, weights, tickets),
            *(np.int32(value) for value in (p.N, p.D, p.H, p.C, g.split, g.splits)),
            np.int64(g.stride),
            *(np.int32(value) for value in (g.partitions, g.output_blocks)),
            *(np.int32(offsets[name]) for name in ("b1", "W2", "b2")),
            *(np.int32(p.flat_size), np.int32(p.bias), *scales),
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


def _problem(N: int, H: int, precision: str, **more: Any) -> Problem:
    dtype = "float64" if precision == "float64" else "float32"
    return Problem(N, 784, H, 10, **{"dtype": dtype, "precision": precision, "inputs": dtype, **more})


def _forward_instances() -> tuple[str, ...]:
    """Every tile, activation, loss, precision and type of X, with wide and narrow loads."""
    losses = [("mse", name) for name in activation_op.NAMES]
    losses += [(name, "identity") for name in ("bce", "cross_entropy", "hinge")]
    found: list[str] = []
    for precision in ("float32", "float64", *TENSOR):
        tiles = [(H, tile) for H in (20, 64, 128) for tile in forward_tiles(_problem(1, H, precision))]
        for i, (H, tile) in enumerate(tiles):
            loss, output = losses[(len(found) + i) % len(losses)]
            names = {
                "activation": activation_op.NAMES[(len(found) + 2 * i) % 5],
                "loss": loss,
                "output": output,
            }
            pixels = {"inputs": "uint8"} if i % 3 == 2 else {}
            problem = _problem(1000, H, precision, **names, **pixels)
            found.append(forward_kernel(problem, tile, 1 if i % 4 == 1 else input_width(problem)).expression)
    return tuple(dict.fromkeys(found))


def _backward_instances() -> tuple[str, ...]:
    """Every rule in both types, every tile of every precision, both types of X."""
    found = []
    for dtype in ("float32", "float64"):
        for rule in RULES:
            problem = _problem(1000, 128, dtype, rule=rule)
            found.append(backward_kernel(problem, backward_tiles(dtype)[-2], input_width(problem)).expression)
    for precision in ("float32", "float64", *TENSOR):
        for i, tile in enumerate(backward_tiles(precision)):
            pixels = {"inputs": "uint8"} if i % 3 == 2 else {}
            problem = _problem(1000, tile.BN, precision, rule="Sgd", **pixels)
            found.append(backward_kernel(problem, tile, 1 if i % 4 == 1 else input_width(problem)).expression)
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
        f"grid S ≤ {MOST_PARTITIONS} partitions by the rule, block {THREADS}; the tile by H, N, C, precision",
        _forward_bytes,
    ),
    Entry(
        "two_layer.pair_backward",
        FILE,
        _backward_instances(),
        f"grid ⌈(H C + C) / {THREADS}⌉ + tiles · splits, block {THREADS}; splits from the shape",
        _backward_bytes,
    ),
)
