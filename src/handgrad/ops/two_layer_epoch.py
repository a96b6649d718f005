"""Path R2: an epoch of mini-batches in one persistent cooperative launch.

::

    for every batch of ``order``:   Z1 = X W1 + b1,  A1 = f(Z1),  Z2 = A1 W2 + b2,  loss, dZ2,
                                    dW2, db2, dZ1, dW1, db1, and the optimizer's rule

The parameters are cut into cells, SD columns of X by SH hidden units each; a block keeps a cell's slice of
W1, with its state, in shared memory for the whole epoch, and a copy of the few parameters that its units
need besides.  A step takes two barriers of the grid and exchanges the partial sums of Z1 and of the logits.
With fewer multiprocessors than cells, or too little shared memory, the slices lie in global memory and a
block goes through several cells: the same sums in the same order.  The bits follow from the cells, and these
from the shape, unless a tiling says how.

Kernel: ``kernels/two_layer_epoch.cu``.  Tests: ``tests/test_two_layer_epoch.py``,
``tests/test_two_layer_epoch_cells.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from handgrad.arrays import Array, on_device_of
from handgrad.kernel import Entry, Kernel
from handgrad.ops import activation as activation_op
from handgrad.ops import checks
from handgrad.ops import loss as loss_op
from handgrad.ops.optimizer_kernels import STATES
from handgrad.ops.tilings import Tiling, pick
from handgrad.ops.two_layer import Launch, Layout, Problem, StepArrays
from handgrad.ops.two_layer_epoch_cells import (
    THREADS,
    VECTOR_BYTES,
    Cells,
    of_rows,
    resident_blocks,
    shared_bytes,
    slice_elements,
)
from handgrad.ops.two_layer_epoch_cells import refusal as refusal
from handgrad.ops.two_layer_epoch_cells import tilings as tilings

FILE = "two_layer_epoch.cu"


def kernel_of(problem: Problem, width: int, kept: bool) -> Kernel:
    """``two_layer_epoch`` that reads ``width`` elements of X at once and keeps its slices, or does not."""
    lanes = loss_op.lanes_of(problem.C) if of_rows(problem) else 0
    cpp = checks.CPP_NAMES
    f, L = activation_op.functor_of(problem.activation), loss_op.functor_of(problem.loss, problem.output)
    return Kernel(
        FILE,
        f"two_layer_epoch<{problem.rule}<{cpp[problem.dtype]}>, {cpp[problem.inputs]}, {f}, {L}, "
        f"{lanes}, {width}, {'true' if kept else 'false'}>",
    )


def input_width(problem: Problem) -> int:
    """Elements of X in one load, where X starts at a multiple of 16 bytes."""
    width = VECTOR_BYTES // problem.itemsize
    return width if problem.D % width == 0 else 1


def lay_out(problem: Problem, tiling: Tiling | None = None) -> Layout:
    """The launch of an epoch; traffic and operations of one step.  ``ValueError`` where it is refused."""
    chosen = pick("R2", tilings(problem), tiling)
    cells = chosen.cells
    size, N = problem.itemsize, problem.N
    kept = cells.count <= resident_blocks(problem, shared_bytes(problem, cells, True))
    shared = shared_bytes(problem, cells, kept)
    launch = Launch(
        "two_layer_epoch",
        kernel_of(problem, input_width(problem), kept),
        (min(cells.count, resident_blocks(problem, shared)),),
        (THREADS,),
        shared,
        cooperative=True,
        operations=4 * N * problem.D * problem.H + 6 * N * problem.H * problem.C,
    )
    workspace = {
        "epoch.partial_Z1": cells.count * N * cells.SH * size * (1 if kept else 2),  # steps take turns
        "epoch.partial_Z2": cells.across * N * problem.C * size,
        "epoch.barrier": 4,
    }
    if not kept:
        each = slice_elements(problem.C, len(STATES[problem.rule]), cells)
        workspace["epoch.slices"] = cells.count * each * size
    compulsory = {
        "X": N * problem.D * problem.input_itemsize,
        "y": problem.target_bytes,
        "order": 4 * N,
        "losses": size,
    }
    return Layout(
        "R2",
        problem,
        chosen,
        (launch,),
        cells.down,
        workspace,
        compulsory,
        requested(problem, cells, launch.grid[0], kept),
        f"{cells.down} x {cells.across} cells of {cells.SD} columns by {cells.SH} units, "
        f"{'in shared memory' if kept else 'in global memory'}; 2 grid barriers a step",
    )


def requested(problem: Problem, cells: Cells, blocks: int, kept: bool) -> dict[str, int]:
    """Bytes that the launch asks for in a step of N rows, per buffer; without the slices, which lie in shared
    memory where ``kept``, and without the parameters, which move once an epoch."""
    N, C, size, width = problem.N, problem.C, problem.itemsize, input_width(problem)
    passes = 1 if kept else 2  # over X, and over the parts of Z1
    x_loads = problem.D // width * N * cells.across * passes
    parts = cells.down * N * cells.SH * cells.across * size  # of Z1, one from each cell
    found = {
        "X": x_loads * width * problem.input_itemsize,
        "partial_Z1": parts + cells.down * parts * passes,
        "partial_Z2": (1 + blocks) * cells.across * N * C * size,
        "losses": size,
    }
    if of_rows(problem):  # lanes past the batch's end go through its last row
        lanes = loss_op.lanes_of(C)
        rows = -(-N // (THREADS // lanes)) * (THREADS // lanes)
        return found | {"y": 4 * rows * lanes * blocks, "order": 4 * (x_loads + rows * lanes * blocks)}
    return found | {"y": N * C * size * blocks, "order": 4 * (x_loads + N * C * blocks)}


@dataclass(frozen=True)
class Pieces:
    """What the time of a step is made of: ``barriers`` of the grid, and of the block that has most to do
    ``l2_bytes`` to and from L2, ``multiply_adds``, and ``passes`` over its cells (1 where it has one)."""

    barriers: int
    l2_bytes: int
    multiply_adds: int
    passes: int


def pieces(layout: Layout) -> Pieces:
    """Those of a step of ``layout``."""
    problem = layout.problem
    cells = pick("R2", tilings(problem), layout.tiling).cells
    blocks, N, C = layout.launches[0].grid[0], problem.N, problem.C
    kept = "epoch.slices" not in layout.workspace
    passes = -(-cells.count // blocks)
    of_cell = N * cells.SD * problem.input_itemsize * (1 if kept else 2)
    of_cell += N * cells.SH * problem.itemsize * (1 + cells.down * (1 if kept else 2))
    of_cell += -(-N // cells.down) * C * problem.itemsize
    products = N * (2 * cells.SD * cells.SH + 3 * cells.SH * C)
    if not kept:  # W1 twice read and once written, the states both
        of_cell += (3 + 2 * len(STATES[problem.rule])) * cells.SD * cells.SH * problem.itemsize
    logits = N * C * cells.across * problem.itemsize
    return Pieces(2, passes * of_cell + logits, passes * products + N * C * cells.across, passes)


def run(layout: Layout, arrays: StepArrays, order: Array, batch_size: int, losses: Array) -> None:
    """An epoch over the rows ``order`` (int32, on the device) of ``arrays.X`` and ``arrays.y``.

    ``losses``: one element a batch, written.  ``arrays.parameters`` and the optimizer's state are updated in
    place; ``arrays.loss`` and ``arrays.gradient`` take no part.  The rows are the caller's to check.
    """
    op, problem = "two_layer.epoch", layout.problem
    optimizer, parameters, X, xp = arrays.optimizer, arrays.parameters, arrays.X, arrays.parameters.xp
    assert optimizer is not None, "a rule has an optimizer"
    assert optimizer.rule == problem.rule, "the problem was made for another optimizer"
    if batch_size != problem.N:
        raise ValueError(f"{op}: batch_size must be the layout's N = {problem.N}, got {batch_size}")
    if order.dtype != np.int32 or order.ndim != 1:
        raise TypeError(f"{op}: order must be int32 (count,), got {order.dtype} {tuple(order.shape)}")
    if X.dtype != problem.inputs or X.ndim != 2 or X.shape[1] != problem.D:
        raise TypeError(
            f"{op}: X must be {problem.inputs} (rows, {problem.D}), got {X.dtype} {tuple(X.shape)}"
        )
    checks.require_int_sized(op, X=X, order=order)
    count = int(order.shape[0])
    batches = -(-count // batch_size)
    checks.require_output(op, "losses", losses, (batches,), np.dtype(problem.dtype), xp)
    if count == 0:
        return
    launch, cells = layout.launches[0], pick("R2", tilings(problem), layout.tiling).cells
    kept = "epoch.slices" not in layout.workspace
    kernel, width = launch.kernel, input_width(problem)
    if checks.address(X) % (width * X.dtype.itemsize):
        kernel = kernel_of(problem, 1, kept)
    buffers = _buffers(layout, arrays)
    hyperparameters, state1, state2, steps, _ = optimizer.kernel_arguments(parameters)
    dtype, offsets = np.dtype(problem.dtype), problem.offsets
    b1, b2 = (offsets[name] if problem.bias else -1 for name in ("b1", "b2"))
    scales = (loss_scale(problem, batch_size), loss_scale(problem, count - (batches - 1) * batch_size))
    with on_device_of(X):
        try:
            kernel(
                launch.grid,
                launch.block,
                *(checks.contiguous(xp, X), checks.contiguous(xp, arrays.y), checks.contiguous(xp, order)),
                *(parameters.trainable, hyperparameters, parameters.flat, state1, state2, steps, losses),
                *(buffers["epoch.partial_Z1"], buffers["epoch.partial_Z2"], buffers.get("epoch.slices")),
                buffers["epoch.barrier"],
                *(
                    np.int32(n)
                    for n in (count, problem.N, problem.D, problem.H, problem.C, cells.SD, cells.SH)
                ),
                *(np.int32(place) for place in (b1, offsets["W2"], b2)),
                *(dtype.type(number) for number in (arrays.scale, arrays.shift, *scales)),
                shared=launch.shared,
                cooperative=True,
            )
        except RuntimeError:  # a launch that ended early leaves the barrier's counter anywhere
            if xp.__name__ != "cupy":
                buffers["epoch.barrier"][...] = 0
            raise


def loss_scale(problem: Problem, rows: int) -> float:
    """What a batch's sum of losses is multiplied by."""
    if problem.reduction == "sum":
        return 1.0
    return 1.0 / (rows if of_rows(problem) else rows * problem.C)


def _buffers(layout: Layout, arrays: StepArrays) -> dict[str, Array]:
    """The workspace by name."""
    dtype, xp = np.dtype(layout.problem.dtype), arrays.parameters.xp
    found = {}
    for name, nbytes in layout.workspace.items():
        if name == "epoch.barrier":
            found[name] = arrays.workspace.zeroed_once(name, (1,), np.uint32, xp)
        else:
            found[name] = arrays.workspace.get(name, (nbytes // dtype.itemsize,), dtype, xp)
    return found


# ---- catalogue -------------------------------------------------------------------------------------------


# Every rule, loss and activation; both kinds of X, of loads and of places of the slices.
INSTANCES: tuple[dict[str, Any], ...] = (
    {"C": 10, "loss": "cross_entropy"},
    {"C": 10, "loss": "cross_entropy", "rule": "Momentum", "inputs": "uint8"},
    {"C": 10, "loss": "cross_entropy", "rule": "Adam", "inputs": "uint8", "activation": "tanh"},
    {"C": 1, "loss": "mse"},
    {"C": 1, "loss": "mse", "output": "sigmoid", "rule": "Adam", "activation": "sigmoid"},
    {"C": 1, "loss": "bce", "rule": "Momentum", "activation": "softplus"},
    {"C": 3, "loss": "hinge", "activation": "identity"},
)


def is_wide(number: int) -> bool:
    """Whether instance ``number`` reads X by 16 bytes of the parameters' type."""
    return number % 3 != 2


def is_kept(number: int) -> bool:
    """Whether instance ``number`` has its slices in shared memory."""
    return number % 2 == 0


def _instances() -> tuple[str, ...]:
    found = []
    for dtype in checks.FLOATS:
        wide = VECTOR_BYTES // dtype.itemsize
        for number, settings in enumerate(INSTANCES):
            given = {"N": 64, "D": 784, "H": 128, "inputs": dtype.name, **settings}
            problem = Problem(**given, dtype=dtype.name, precision=dtype.name)
            found.append(kernel_of(problem, wide if is_wide(number) else 1, is_kept(number)).expression)
    return tuple(found)


def _bytes(count: int, D: int, H: int, C: int, itemsize: int = 4, rule: str = "Sgd") -> dict[str, int]:
    """Of an epoch of ``count`` rows of float X and labels: X, y, order once, parameters and state twice."""
    size = (D * H + H + H * C + C) * itemsize
    moved = {"X": count * D * itemsize, "y": 4 * count, "order": 4 * count}
    return moved | dict.fromkeys(("parameters", *STATES[rule]), 2 * size)


CATALOGUE = (
    Entry(
        "two_layer.epoch",
        FILE,
        _instances(),
        f"cooperative; grid min(cells, multiprocessors), block {THREADS}; cells from lay_out(problem)",
        _bytes,
    ),
)
