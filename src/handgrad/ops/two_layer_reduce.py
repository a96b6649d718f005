"""Partial gradients summed in fixed order, and the optimizer's rule on the sums: one launch.

::

    g[i] = sum over s = 0 ... S-1, in rising order, of partials[s, i]      i over the flat parameters
    parameters, state <- rule(g), as ops/optimizer.py has it;  with "Store": gradient <- g, its padding zero
    loss = scale * sum over s, in rising order, of loss_partials[s]

partials (S, P) is laid out as :class:`handgrad.parameters.FlatParameters`; its padding is never read.  Where
another launch left the partials of b2, they may be an array of their own, (S', C padded).  S = 0 gives g = 0.

It is the last launch of the fused training steps.  Kernel: ``kernels/two_layer_reduce.cu``.  Test:
``tests/test_two_layer_reduce.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from handgrad.arrays import Array, on_device_of
from handgrad.kernel import Entry, Kernel
from handgrad.ops import checks
from handgrad.ops.optimizer_kernels import STATES
from handgrad.ops.two_layer import Launch, Problem, StepArrays
from handgrad.parameters import ALIGNMENT

FILE = "two_layer_reduce.cu"
THREADS = 64  # REDUCE_THREADS
MAX_BLOCKS = 4096
VECTOR_BYTES = 16
HYPERPARAMETERS = {"Sgd": 2, "Momentum": 4, "Adam": 6}  # that a rule reads


def kernel_of(rule: str, dtype: np.dtype[Any]) -> Kernel:
    """``reduce_and_update`` by "Sgd", "Momentum", "Adam" or "Store"."""
    return Kernel(FILE, f"reduce_and_update<{rule}<{checks.CPP_NAMES[dtype.name]}>>")


def launch_of(problem: Problem) -> Launch:
    """The launch as a layout lists it."""
    vectors = problem.flat_size * problem.itemsize // VECTOR_BYTES
    kernel = kernel_of(problem.rule, np.dtype(problem.dtype))
    return Launch("reduce_and_update", kernel, (max(1, min(-(-vectors // THREADS), MAX_BLOCKS)),), (THREADS,))


def reduce(
    problem: Problem,
    arrays: StepArrays,
    partials: Array,
    loss_partials: Array,
    b2_partials: Array | None = None,
) -> None:
    """Launch it: partials (S, P), loss_partials (any number,), b2_partials (S', C padded) or None for those
    in ``partials``.  Reads and writes what ``arrays`` has: parameters and state, or gradient; loss."""
    dtype = np.dtype(problem.dtype)
    P, start = problem.flat_size, problem.offsets["b2"]
    checks.require_shape("two_layer.reduce", "partials", partials, (int(partials.shape[0]), P), "(S, P)")
    checks.require_int_sized("two_layer.reduce", parameters=arrays.parameters.flat)
    if b2_partials is None:  # the kernel counts its elements from b2's first one on
        b2, b2_count, b2_stride = (
            partials.reshape(-1)[start % P :] if len(partials) else partials,
            len(partials),
            P,
        )
    else:
        b2, b2_count, b2_stride = b2_partials, len(b2_partials), P - start
        checks.require_shape("two_layer.reduce", "b2_partials", b2, (b2_count, b2_stride), "(S', C padded)")
    optimizer = arrays.optimizer
    if problem.rule == "Store":
        assert arrays.gradient is not None, "with Store, the gradient is what is written"
        trainable, rest = None, (None, arrays.gradient, None, None, arrays.loss, None, None)
    else:
        assert optimizer is not None, "a rule has an optimizer"
        assert optimizer.rule == problem.rule, "the problem was made for another optimizer"
        trainable = arrays.parameters.trainable
        hyperparameters, state1, state2, steps, ticket = optimizer.kernel_arguments(arrays.parameters)
        rest = (hyperparameters, arrays.parameters.flat, state1, state2, arrays.loss, steps, ticket)
    launch = launch_of(problem)
    with on_device_of(partials):
        launch.kernel(
            launch.grid,
            launch.block,
            *(partials, b2, loss_partials, trainable, *rest),
            *(np.int32(size) for size in problem.sizes.values()),
            np.int32(P * dtype.itemsize // VECTOR_BYTES),
            *(np.int32(count) for count in (len(partials), b2_count, len(loss_partials))),
            *(np.int64(P), np.int64(b2_stride)),
            dtype.type(problem.loss_scale),
        )


def requested(problem: Problem, S: int, S_b2: int | None = None, losses: int = 0) -> dict[str, int]:
    """Bytes that the launch asks for, per buffer, nothing frozen: the tail of a parameter that fills no
    vector is read element by element in the partials, and with its padding elsewhere."""
    size, V = problem.itemsize, VECTOR_BYTES // problem.itemsize
    vectors = {name: -(-count // V) for name, count in problem.sizes.items()}
    touched = sum(vectors.values()) * VECTOR_BYTES
    sizes = problem.sizes
    own = sum(count for name, count in sizes.items() if name != "b2") * size * S
    tail = sizes["b2"] * size * (S if S_b2 is None else S_b2)
    found = {"partials": own + (tail if S_b2 is None else 0), "loss_partials": losses * size, "loss": size}
    if S_b2 is not None:
        found["b2_partials"] = tail
    if problem.rule == "Store":
        return found | {"gradient": problem.flat_size * size}
    blocks = launch_of(problem).grid[0]
    looked_at = problem.flat_size * size // VECTOR_BYTES  # a thread asks for the flag of every vector
    found |= {
        "parameters": 2 * touched,
        "trainable": looked_at,
        "hyperparameters": HYPERPARAMETERS[problem.rule] * 8 * blocks,
        "steps": 8 + 4 * blocks * (problem.rule == "Adam"),  # the other rules do not ask which step it is
        "ticket": 4 * blocks + 4,
    }
    return found | {"state": 2 * touched * len(STATES[problem.rule])}


def _bytes(size: int, S: int, losses: int, itemsize: int = 4, rule: str = "Sgd") -> dict[str, int]:
    """Read: partials, losses, flags; read and written: parameters and state.  ``size``: no padding."""
    moved = {"partials": S * size * itemsize, "loss_partials": losses * itemsize, "loss": itemsize}
    if rule == "Store":
        return moved | {"gradient": size * itemsize}
    states = dict.fromkeys(("parameters", *STATES[rule]), 2 * size * itemsize)
    return moved | {"trainable": -(-size * itemsize // ALIGNMENT)} | states


CATALOGUE = (
    Entry(
        "two_layer.reduce",
        FILE,
        tuple(kernel_of(rule, dtype).expression for dtype in checks.FLOATS for rule in (*STATES, "Store")),
        f"grid min(⌈vectors / {THREADS}⌉, {MAX_BLOCKS}), block {THREADS}; vectors of 16 bytes",
        _bytes,
    ),
)
