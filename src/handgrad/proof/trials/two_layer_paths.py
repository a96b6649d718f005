"""Trials of a fused path of the two-layer step (R1, R3): all of its launches, by way of its ``run``."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.kernel import device_limits
from handgrad.ops import loss as loss_op
from handgrad.ops.two_layer import PRECISIONS, Problem, StepArrays
from handgrad.parameters import FlatParameters
from handgrad.proof import two_layer_reference
from handgrad.proof.guarded import Memory, Output
from handgrad.proof.roundoff import Bounded
from handgrad.proof.trials.optimizer import _guard
from handgrad.proof.trials.trial import Trial

Host = NDArray[Any]

PIXELS = (2 / 255, -1.0)  # scale and shift of uint8
WHOLE_PIXELS = (1.0, -128.0)  # the same where sums are exact: whole numbers that bfloat16 has too


def path_step(
    m: Memory, path: ModuleType, problem: Problem, *,
    kind: str = "normal", x: str = "aligned", y: str = "aligned", sms: int = 0,
    second: str = "", tiling: str = "",
) -> list[Output]:  # fmt: skip
    """One step with the rule Store: the gradient in its flat buffer, and the loss.

    ``kind``: "normal" numbers; "integers" whose products and sums are exact; "special" rows of X with NaN and
    infinities; "huge" logits; "dead" hidden units; "unknown label" in the first and the last row.
    ``second``: the precision of the second layer's products, where it is that of the first.
    ``sms``: laid out for as many multiprocessors, 0 for those of the device.  ``tiling``: by name, the
    rule's where empty.
    """
    device = device_limits(m.xp)
    p = dataclasses.replace(problem, rule="Store", arch=device.arch, sms=sms or device.sms)
    if path.refusal(p):  # for what this architecture lacks: there another path takes the problem
        return []
    offered = path.tilings(p)
    chosen = [one for one in offered if one.name == tiling] if tiling else offered[:1]
    if not chosen:  # for what this architecture has no room for
        return []
    shapes = {"W1": (p.D, p.H), "b1": (p.H,), "W2": (p.H, p.C), "b2": (p.C,)}
    values = {
        name: _values(m, kind, shape, p.dtype) for name, shape in shapes.items() if p.bias or name[0] == "W"
    }
    if kind == "huge":
        values["W2"] *= values["W2"].dtype.type(1e4)
    if kind == "dead":
        values["b1"][...] = -1e4
    parameters = FlatParameters({name: value.shape for name, value in values.items()}, p.dtype, m.xp)
    flat = np.zeros(p.flat_size, p.dtype)
    for name, view in parameters.split(flat).items():
        view[...] = values[name]
    _guard(m, parameters, flat, "parameters")
    pixels = p.inputs == "uint8"
    X = m.integers(0, 255, (p.N, p.D), np.uint8) if pixels else _samples(m, kind, p)
    scale, shift = (WHOLE_PIXELS if kind == "integers" else PIXELS) if pixels else (1.0, 0.0)
    targets = _targets(m, kind, p)
    gradient = m.output((p.flat_size,), p.dtype, name="gradient")
    loss = m.output((1,), p.dtype, name="loss")
    arrays = StepArrays(
        m.input(X, x, "X"),
        m.input(targets, y, "y"),
        scale,
        shift,
        parameters,
        gradient,
        None,
        loss,
        m.workspace,
    )
    path.run(path.lay_out(p, chosen[0]), arrays)

    @functools.cache
    def expected() -> two_layer_reference.Step:
        given = two_layer_reference.inputs(X, p.dtype, scale, shift)
        return two_layer_reference.step(
            given, targets, values, p.activation, p.output, p.loss, p.reduction, p.precision, second
        )

    def whole() -> Bounded:
        """The gradients in the layout of the flat buffer, its padding 0."""
        value, error = (
            np.zeros(p.flat_size, given_type) for given_type in (expected().loss.value.dtype, float)
        )
        for name, part in expected().gradients.items():
            parameters.split(value)[name][...] = part.value
            parameters.split(error)[name][...] = part.error
        return Bounded(value, error, expected().loss.precision)

    exact = kind == "integers"
    return [
        Output("gradient", gradient, whole, exact),
        Output("loss", loss, lambda: _one(expected().loss), exact),
    ]


def _one(loss: Bounded) -> Bounded:
    return Bounded(loss.value.reshape(1), np.asarray(loss.error).reshape(1), loss.precision)


def _values(m: Memory, kind: str, shape: tuple[int, ...], dtype: str) -> Host:
    if kind == "integers":
        return m.integers(-1, 1, shape, dtype)
    return m.normal(shape, dtype, float(shape[0]) ** -0.5)


def _samples(m: Memory, kind: str, p: Problem) -> Host:
    X = _values(m, kind, (p.N, p.D), p.dtype) if kind == "integers" else m.normal((p.N, p.D), p.dtype)
    if kind == "special":
        X[0, -1], X[p.N // 2, 0], X[-1, p.D // 2] = np.nan, np.inf, -np.inf
    return X


def _targets(m: Memory, kind: str, p: Problem) -> Host:
    if p.loss in loss_op.ELEMENTWISE:
        if kind == "integers":
            return m.integers(-2, 2, (p.N, p.C), p.dtype)
        return m.integers(0, 1, (p.N, p.C), p.dtype) if p.loss == "bce" else m.normal((p.N, p.C), p.dtype)
    labels = m.integers(0, p.C - 1, (p.N,), np.int32)
    if kind == "unknown label":
        labels[0], labels[-1] = -1, p.C
    return labels


def path_trials(op: str, path: ModuleType, rows: Iterable[dict[str, Any]]) -> list[Trial]:
    """A trial a row: fields of a Problem, and arguments of :func:`path_step`; refused ones are left out."""
    names = {field.name for field in dataclasses.fields(Problem)} - {"arch", "sms"}
    found = []
    for row in rows:
        row = dict(row)
        schedules = row.pop("schedules", False)
        problem = Problem(**{name: value for name, value in row.items() if name in names})
        if path.refusal(problem):
            continue
        arguments = {name: value for name, value in row.items() if name not in names}
        shape = {name: row.pop(name) for name in "NDHC"}
        setting = ", ".join(
            f"{value if isinstance(value, str) else f'{name}={value}'}" for name, value in row.items()
        )
        run = functools.partial(path_step, path=path, problem=problem, **arguments)
        found.append(Trial(op, problem.dtype, shape, setting, run, schedules))
    return found


def tensor_core_rows(shapes: Iterable[tuple[int, ...]]) -> list[dict[str, Any]]:
    """Problems in every tensor-core precision, against products of operands that are rounded first; kinks of
    the activation are left to float32, where rounding is small."""
    rows: list[dict[str, Any]] = []
    for i, precision in enumerate(PRECISIONS["float32"][1:]):
        for j, shape in enumerate(shapes):
            loss = ("mse", "cross_entropy", "bce")[(i + j) % 3]
            row = {**dict(zip("NDHC", shape, strict=True)), "precision": precision, "loss": loss}
            rows.append(
                {**row, "activation": ("tanh", "softplus")[j % 2], "x": ("aligned", "misaligned")[i % 2]}
            )
        small = {"N": 70, "D": 33, "H": 17, "C": 3, "precision": precision}
        rows.append({**small, "loss": "hinge", "reduction": "sum", "kind": "integers"})
        small |= {"activation": "tanh", "loss": "cross_entropy"}
        rows += [{**small, "schedules": True}, {**small, "inputs": "uint8"}]
        if precision != "3xtf32":  # which has no small part of an infinite number
            rows.append({**small, "kind": "special"})
    return rows
