"""The calls of one training step on the emulator, with what each launch must move and compute.

Every kernel of the catalogue is launched by one of them, through the ops' own launch code, but those of the
fused steps ("two_layer..."), whose plans say what they move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from handgrad import emulator
from handgrad.kernel import catalogue
from handgrad.ops import activation, batch, linear, loss, optimizer, optimizer_kernels
from handgrad.parameters import FlatParameters
from handgrad.proof import operations

# What the catalogue calls the arguments of the optimizer's kernels.
OPTIMIZER_BUFFERS = {"g": "gradients", "trainable": "trainable", "w": "parameters"}


@dataclass(frozen=True)
class Expected:
    """What a launch of kernel ``op`` of the catalogue must do: bytes by argument, operations by formula.

    ``row_bytes``: of the matrices whose rows the kernel goes along.
    """

    op: str
    shape: dict[str, int]
    compulsory: dict[str, int]
    operations: int
    row_bytes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Call:
    """A call of an op; ``launches`` has what each kernel that it launches must do, by the kernel's name."""

    run: Callable[[], object]
    launches: dict[str, Expected]


def calls(N: int, D: int, H: int, C: int, loss_name: str, rule: str) -> list[Call]:
    """The calls of a step of D → H (relu) → C with N samples, ``loss_name`` and the optimizer's ``rule``.

    ``loss_name``: one of ``loss.NAMES``; ``rule``: "Sgd", "Momentum" or "Adam".  float32, images of uint8.
    """
    random = np.random.default_rng(0)

    def floats(*shape: int) -> emulator.EmulatedArray:
        return emulator.asarray(random.normal(size=shape).astype(np.float32))

    images = emulator.asarray(random.integers(0, 256, (N, D), dtype=np.uint8))
    order = emulator.asarray(random.permutation(N).astype(np.int32))
    X, W1, b1, W2, b2 = floats(N, D), floats(D, H), floats(H), floats(H, C), floats(C)
    A1, dZ1, Z2, dZ2 = floats(N, H), floats(N, H), floats(N, C), floats(N, C)
    elementwise = loss_name in loss.ELEMENTWISE
    y = floats(N, C) if elementwise else emulator.asarray(random.integers(0, C, N).astype(np.int32))
    loss_operations = operations.loss_elementwise if elementwise else operations.loss_rows
    return [
        Call(
            lambda: batch.gather(images, order, scale=1 / 255, dtype=np.float32),
            _expected("batch.gather", operations.gather(N, D), (D, 4 * D), rows=N, D=D),
        ),
        _forward(X, W1, b1, "relu"),
        _forward(A1, W2, b2, "identity"),
        Call(
            lambda: loss.forward_backward(Z2, y, loss_name),
            _expected(
                "loss.elementwise" if elementwise else "loss.rows",
                loss_operations(N, C, loss_name),
                () if elementwise else (4 * C,),
                N=N,
                C=C,
            ),
        ),
        _backward_weight(A1, dZ2),
        Call(
            lambda: linear.backward_input(dZ2, W2, A1, "relu"),
            _expected(
                "linear.backward_input",
                operations.linear_backward_input(N, C, H, "relu"),
                (4 * C, 4 * H),
                N=N,
                C=C,
                H=H,
            ),
        ),
        _backward_weight(X, dZ1),
        _update(D, H, C, rule),
        Call(
            lambda: activation.forward(A1, "sigmoid"),
            _expected("activation.forward", operations.activation_forward(N * H, "sigmoid"), n=N * H),
        ),
        Call(
            lambda: activation.backward(A1, dZ1, "sigmoid"),
            _expected("activation.backward", operations.activation_backward(N * H, "sigmoid"), n=N * H),
        ),
    ]


Array = emulator.EmulatedArray


def _forward(X: Array, W: Array, b: Array, name: str) -> Call:
    (N, D), H = X.shape, W.shape[1]
    expected = _expected(
        "linear.forward", operations.linear_forward(N, D, H, name), (4 * D, 4 * H), N=N, D=D, H=H
    )
    return Call(lambda: linear.forward(X, W, b, name), expected)


def _backward_weight(X: Array, dZ: Array) -> Call:
    (N, D), H = X.shape, dZ.shape[1]
    S, _ = linear.split_samples(N, D, H, linear.choose_tile(D, H))
    product = _expected(
        "linear.backward_weight", operations.linear_backward_weight(N, D, H), (4 * D, 4 * H), N=N, D=D, H=H
    )
    sums = _expected(
        "linear.reduce_partials", operations.reduce_partials(S, D, H), (4 * D * H, 4 * H), S=S, D=D, H=H
    )
    return Call(lambda: linear.backward_weight(X, dZ), product | (sums if S > 1 else {}))


def _update(D: int, H: int, C: int, rule: str) -> Call:
    shapes = {"W1": (D, H), "b1": (H,), "W2": (H, C), "b2": (C,)}
    parameters = FlatParameters(shapes, np.float32, emulator)
    gradients = parameters.like()
    chosen = optimizer.Adam() if rule == "Adam" else optimizer.SGD(0.1, momentum=0.9 * (rule == "Momentum"))
    size = int(parameters.flat.size)
    states = {f"state{i}": slot for i, slot in enumerate(optimizer_kernels.STATES[rule], start=1)}
    squares = _expected(
        "optimizer.squares", operations.gradient_squares(size), renamed=OPTIMIZER_BUFFERS, size=size
    )
    entry = next(entry for entry in catalogue() if entry.op == "optimizer.update")
    moved = entry.compulsory_bytes(size=size, rule=rule)
    update = Expected(
        "optimizer.update",
        {"size": size},
        {argument: moved[name] for argument, name in (OPTIMIZER_BUFFERS | states).items()},
        operations.optimizer_update(size, rule),
    )
    return Call(lambda: chosen.update(parameters, gradients, clip_norm=1.0), squares | {entry.name: update})


def _expected(
    op: str,
    operations: int,
    row_bytes: tuple[int, ...] = (),
    renamed: Mapping[str, str] | None = None,
    **shape: int,
) -> dict[str, Expected]:
    """By the kernel's name, with the catalogue's compulsory bytes; ``renamed``: argument → its name there."""
    entry = next(entry for entry in catalogue() if entry.op == op)
    moved = entry.compulsory_bytes(**shape)
    names: Iterable[tuple[str, str]] = (renamed or {name: name for name in moved}).items()
    compulsory = {argument: moved[name] for argument, name in names if name in moved}
    return {entry.name: Expected(op, shape, compulsory, operations, row_bytes)}
