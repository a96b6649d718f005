"""Trials of kernels/two_layer_pair.cu: path R3.  Either kernel's trials run both of them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from handgrad.ops import activation as activation_op
from handgrad.ops import two_layer_pair, two_layer_pair_tiles
from handgrad.ops.two_layer import PRECISIONS, Problem, StepArrays
from handgrad.parameters import FlatParameters
from handgrad.proof import reference, two_layer_reference
from handgrad.proof.guarded import Memory, Output
from handgrad.proof.roundoff import Bounded
from handgrad.proof.trials.optimizer import FROZEN, SETTINGS, _flat, _guard, _masks, _where
from handgrad.proof.trials.trial import Trial
from handgrad.proof.trials.two_layer_paths import path_trials, tensor_core_rows
from handgrad.proof.trials.two_layer_tilings import LOSSES, tiling_trials

SHAPES = (  # N, D, H, C: every tile of either kernel; ragged sides; several splits
    (0, 3, 50, 2),
    (1, 1, 1, 1),
    (31, 3, 63, 17),
    (70, 65, 65, 2),
    (300, 785, 50, 10),
    (33, 784, 128, 10),
    (1000, 20, 3, 10),
    (127, 130, 17, 1),
    (5, 8200, 128, 2),
)
QUICK_SHAPES = SHAPES[:4]
TENSOR_CORE_SHAPES = ((33, 20, 10, 3), (70, 68, 65, 2), (300, 301, 50, 10), (67, 132, 17, 17))


def forward_trials(dtype: str, quick: bool) -> list[Trial]:
    """Of the catalogue's two_layer.pair_forward, in ``dtype``."""
    types = {"dtype": dtype, "precision": dtype, "inputs": dtype}
    rows: list[dict[str, Any]] = []
    for i, shape in enumerate(QUICK_SHAPES if quick else SHAPES):
        loss, output = LOSSES[(3 * i + 5) % len(LOSSES)]
        rows.append(
            {**dict(zip("NDHC", shape, strict=True)), "activation": activation_op.NAMES[i % 5]}
            | {"output": output, "loss": loss, "reduction": ("mean", "sum")[i % 2], "bias": i % 3 != 2}
            | {"x": ("aligned", "misaligned")[i // 2 % 2]}
        )
    small = {"N": 150, "D": 33, "H": 17, "C": 3}
    for i, (loss, output) in enumerate(LOSSES[::3] if quick else LOSSES):
        rows.append({**small, "activation": activation_op.NAMES[-1 - i % 5], "loss": loss, "output": output})
    rows += [
        {**small, "loss": loss, "reduction": "sum", "kind": "integers", "activation": f}
        for loss, f in (("mse", "identity"), ("hinge", "relu"))
    ]
    kinds = ("special", "huge", "dead", "unknown label")
    rows += [{**small, "loss": "cross_entropy", "kind": kind} for kind in kinds]
    rows.append({**small, "loss": "cross_entropy", "x": "strided", "y": "strided"})
    rows.append({**small, "loss": "cross_entropy", "schedules": True})
    several_tiles = two_layer_pair_tiles.MOST_PARTITIONS * 128 + 100  # samples with which a partition has two
    rows.append({"N": several_tiles, "D": 3, "H": 5, "C": 2, "loss": "cross_entropy", "activation": "tanh"})
    pixels = {**small, "inputs": "uint8", "loss": "cross_entropy"}
    rows.append({**pixels, "D": 32, "activation": "tanh", "schedules": True})
    rows.append({**pixels, "D": 35, "x": "misaligned"})
    if dtype == "float32":
        rows += tensor_core_rows(TENSOR_CORE_SHAPES[:2] if quick else TENSOR_CORE_SHAPES)
    others = [] if quick else tiling_trials("two_layer.pair_forward", two_layer_pair, "R3", dtype)
    return path_trials("two_layer.pair_forward", two_layer_pair, [{**types, **row} for row in rows]) + others


def update(
    m: Memory, dtype: str, N: int, D: int, H: int, C: int, *,
    setting: str, frozen: str = "", bias: bool = True, step: int = 1,
) -> list[Output]:  # fmt: skip
    """One step of R3 with an optimizer, from a state that earlier steps might have left."""
    chosen = SETTINGS[setting]()
    problem = Problem(
        N, D, H, C, "tanh", loss="cross_entropy", bias=bias, dtype=dtype, precision=dtype, inputs=dtype,
        rule=chosen.rule,
    )  # fmt: skip
    shapes = {"W1": (D, H), "b1": (H,), "W2": (H, C), "b2": (C,)}
    shapes = {name: shape for name, shape in shapes.items() if bias or name[0] == "W"}
    parameters = FlatParameters(shapes, dtype, m.xp)
    parameters.freeze(*(name for name in FROZEN[frozen] if name in shapes))
    used, trainable = _masks(parameters)
    w = (_flat(m, parameters, used) / 4).astype(dtype)
    _guard(m, parameters, w, "parameters")
    chosen.bind(parameters)
    before = {}
    for slot, state in chosen._state.items():
        values = _flat(m, parameters, used)
        before[slot] = abs(values) if slot == "second_moment" else values
        _guard(m, state, before[slot], slot)
    chosen._steps[...] = m.xp.asarray(np.array([step - 1], np.int32))
    X, y = m.normal((N, D), dtype), m.integers(0, C - 1, (N,), np.int32)
    loss = m.output((1,), dtype, name="loss")
    arrays = StepArrays(
        m.input(X, name="X"), m.input(y, name="y"), 1.0, 0.0, parameters, None, chosen, loss, m.workspace
    )
    two_layer_pair.run(two_layer_pair.lay_out(problem), arrays)

    @functools.cache
    def expected() -> two_layer_reference.Step:
        given = two_layer_reference.inputs(X, dtype, 1.0, 0.0)
        return two_layer_reference.step(
            given, y, parameters.split(w), "tanh", "identity", "cross_entropy", "mean"
        )

    @functools.cache
    def after() -> tuple[Bounded, dict[str, Bounded]]:
        value, error = (np.zeros(w.size, of) for of in (expected().loss.value.dtype, np.float64))
        for name, part in expected().gradients.items():
            parameters.split(value)[name][...] = part.value
            parameters.split(error)[name][...] = part.error
        gradient = Bounded(value, error, expected().loss.precision)
        return reference.optimizer_update(chosen.config(), w, gradient, before, step)

    outputs = [
        Output("parameters", parameters.flat, lambda: _where(trainable & used, used, after()[0], w)),
        Output("steps", chosen._steps, lambda: np.array([step], np.int32), exact=True),
    ]
    for slot, state in chosen._state.items():
        of_slot = functools.partial(
            lambda slot: _where(trainable & used, used, after()[1][slot], before[slot]), slot
        )
        outputs.append(Output(slot, state.flat, of_slot))
    return outputs


def backward_trials(dtype: str, quick: bool) -> list[Trial]:
    """Of the catalogue's two_layer.pair_backward, in ``dtype``: the rules, and the tiles of dW1."""
    op = "two_layer.pair_backward"
    sizes = (
        ((300, 20, 12, 3), (33, 33, 1, 2)) if quick else ((300, 20, 12, 3), (33, 33, 1, 1), (70, 65, 65, 2))
    )
    trials = []
    for i, setting in enumerate(SETTINGS):
        for j, (N, D, H, C) in enumerate(sizes):
            if setting == "adam, beta 0" and j == 2:
                continue  # some gradients are below their rounding, where g / |g| has no bound
            frozen = list(FROZEN)[(i + j) % len(FROZEN)]
            keywords: dict[str, Any] = {
                "setting": setting,
                "frozen": frozen,
                "bias": (i + j) % 3 != 2,
                "step": (1, 2, 10_000)[i % 3],
            }
            run = functools.partial(update, dtype=dtype, N=N, D=D, H=H, C=C, **keywords)
            text = ", ".join(f"{name} {value}" for name, value in keywords.items() if value != "")
            shape = {"N": N, "D": D, "H": H, "C": C}
            trials.append(Trial(op, dtype, shape, text, run, schedules=j == 0 and i in (0, 4)))
    types = {"dtype": dtype, "precision": dtype, "inputs": dtype, "loss": "hinge", "reduction": "sum"}
    shapes = (
        ((300, 20, 12, 3), (300, 35, 3, 2))
        if quick
        else ((300, 20, 12, 3), (300, 35, 3, 2), (520, 70, 90, 2))
    )
    rows = [
        {**types, **dict(zip("NDHC", shape, strict=True)), "kind": kind}
        for shape in shapes
        for kind in ("normal", "integers")
    ]
    for precision in PRECISIONS[dtype]:  # every one exactly
        if precision != dtype:
            rows.append({**rows[1], "precision": precision})
        rows.append({**rows[3], "precision": precision, "inputs": "uint8"})
    return [*trials, *path_trials(op, two_layer_pair, rows)]
