"""Trials of kernels/two_layer_general.cu, a kernel at a time, on inputs as the others leave them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.arrays import Array
from handgrad.ops import activation as activation_op
from handgrad.ops import loss as loss_op
from handgrad.ops import two_layer_general as path
from handgrad.ops.two_layer import Problem
from handgrad.ops.two_layer_general_geometry import Geometry
from handgrad.ops.two_layer_general_tiles import FEW, TENSOR
from handgrad.proof import reference
from handgrad.proof.covering import pairwise
from handgrad.proof.guarded import POISON, Memory, Output, bits_of
from handgrad.proof.roundoff import PRECISIONS, Bounded
from handgrad.proof.trials.trial import HIDDEN, INPUTS, OUTPUTS, SAMPLES, Trial
from handgrad.proof.trials.two_layer_tilings import tiling_trials

Host = NDArray[Any]
Run = Callable[..., list[Output]]

PIXELS = (1 / 128, -1.0)  # scale and shift of uint8: exact, so that integers stay such
# Precision and C of the representative problems that the quick check takes
QUICK = {("float32", 4), ("float32", 17), ("tf32", 4), ("3xtf32", 17), ("bfloat16", 17), ("float64", 17)}


def _values(m: Memory, kind: str, shape: tuple[int, ...], dtype: str, most: int = 4) -> Host:
    """Normal numbers; "integers": small ones, whose products and sums are exact in every precision."""
    if kind == "integers":
        return m.integers(-most, most, shape, dtype)
    return m.normal(shape, dtype)


def _samples(m: Memory, kind: str, p: Problem, x: str) -> tuple[Array, Bounded, tuple[float, float]]:
    """X on the device, X as the products take it, and its scale and shift."""
    if p.inputs == "uint8":
        X = m.integers(0, 255, (p.N, p.D), np.uint8)
        if kind == "integers":
            X &= 128
        precision = PRECISIONS[p.dtype]
        exact = Bounded.exact(X.astype(precision.wide), precision)
        scaled = exact * PIXELS[0] + PIXELS[1]
        return m.input(X, x, "X"), scaled.operand(p.precision), PIXELS
    X = _values(m, kind, (p.N, p.D), p.dtype)
    if kind == "special":
        X[0, -1], X[p.N // 2, 0], X[-1, p.D // 2] = np.nan, np.inf, -np.inf
    return m.input(X, x, "X"), reference.exact(X).operand(p.precision), (1.0, 0.0)


def _second(p: Problem) -> str:
    """The precision of the second layer's products."""
    return p.precision if p.C > FEW else p.dtype


# ---- one kernel --------------------------------------------------------------------------------------------


def hidden(m: Memory, p: Problem, kind: str, x: str) -> list[Output]:
    """``general_hidden``."""
    X, given, (scale, shift) = _samples(m, kind, p, x)
    W1 = _values(m, "normal" if kind == "special" else kind, (p.D, p.H), p.dtype)
    b1 = _values(m, kind, (p.H,), p.dtype) if p.bias else None
    A1 = m.output((p.N, p.H), p.dtype, name="A1")
    b1_given = None if b1 is None else m.input(b1, name="b1")
    path.hidden(Geometry(p), X, scale, shift, m.input(W1, name="W1"), b1_given, A1)

    def expected() -> Bounded:
        z = given @ reference.exact(W1).operand(p.precision)
        return reference.ACTIVATIONS[p.activation](z if b1 is None else z + reference.exact(b1))

    return [Output("A1", A1, expected, kind == "integers" and p.activation in ("relu", "identity"))]


def _activated(m: Memory, kind: str, p: Problem) -> Host:
    if kind == "integers":
        return m.integers(-1, 2, (p.N, p.H), p.dtype).clip(0 if p.activation == "relu" else -1, 2)
    return reference.activation_forward(m.normal((p.N, p.H), p.dtype), p.activation).value.astype(p.dtype)


def output(m: Memory, p: Problem, kind: str, x: str) -> list[Output]:
    """``general_output`` or ``general_output_wide``; ``x``: the layout of y."""
    g, A1 = Geometry(p), _activated(m, kind, p)
    W2, b2 = _values(m, kind, (p.H, p.C), p.dtype, 2), _values(m, kind, (p.C,), p.dtype) if p.bias else None
    if kind == "special":
        A1[-1, 0], W2[0, 0] = np.inf, 1
    if p.loss in loss_op.ELEMENTWISE:
        y = m.integers(0, 1, (p.N, p.C), p.dtype)
    else:
        y = m.integers(0, p.C - 1, (p.N,), np.int32)
        if kind == "special":
            y[0], y[-1] = -1, p.C
    dZ2 = m.output((p.N, p.C), p.dtype, name="dZ2")
    losses = m.output((g.output_partitions,), p.dtype, name="loss_partials")
    # What lies past b2 in a row of its partials is padding, which nobody writes.
    sums = m.state(_unwritten((g.output_partitions, path.b2_stride(p)), p.dtype), "b2_partials")
    stored: dict[str, Array] = {}
    if g.stores_dZ1:
        stored = {
            "Z2": m.output((p.N, p.C), p.dtype, name="Z2"),
            "dZ1": m.output((p.N, p.H), p.dtype, name="dZ1"),
        }
    b2_given = None if b2 is None else m.input(b2, name="b2")
    given = (m.input(A1, name="A1"), m.input(W2, name="W2"), b2_given, m.input(y, x, "y"))
    path.output(g, *given, dZ2, losses, sums if p.bias else None, **stored)
    rows = [slice(n, n + g.output_rows) for n in range(0, p.N, g.output_rows)]

    @functools.cache
    def logits() -> Bounded:
        Z2 = reference.exact(A1).operand(_second(p)) @ reference.exact(W2).operand(_second(p))
        return Z2 if b2 is None else Z2 + reference.exact(b2)

    @functools.cache
    def gradient() -> Bounded:
        return reference.loss(logits(), y, p.loss, p.output, p.reduction)[1]

    def total() -> Bounded:
        parts = [reference.loss(logits()[part], y[part], p.loss, p.output, "sum")[0] for part in rows]
        return _stacked(parts, losses.shape)

    def column_sums() -> Bounded:
        unwritten = _unwritten(sums.shape, p.dtype)
        found = Bounded(unwritten.astype(PRECISIONS[p.dtype].wide), np.zeros(sums.shape), PRECISIONS[p.dtype])
        for s, part in enumerate(rows if p.bias else ()):
            of_part = gradient()[part].sum(axis=0)
            found.value[s, : p.C], found.error[s, : p.C] = of_part.value, of_part.error
        return found

    def hidden_gradient() -> Bounded:
        dA = gradient().operand(_second(p)) @ reference.exact(W2).operand(_second(p)).T
        return reference.DERIVATIVES[p.activation](reference.exact(A1), dA)

    exact = kind == "integers" and p.reduction == "sum"  # of a mean, the scale rounds
    exact = exact and (p.loss, p.output) in (("mse", "identity"), ("hinge", "identity"))
    found = [
        Output("dZ2", dZ2, gradient, exact),
        Output("loss_partials", losses, total, exact),
        Output("b2_partials", sums, column_sums, exact),
    ]
    if stored:
        found += [Output("Z2", stored["Z2"], logits, exact), Output("dZ1", stored["dZ1"], hidden_gradient)]
    return found


def weight(m: Memory, p: Problem, kind: str, x: str) -> list[Output]:
    """``general_weight``."""
    g = Geometry(p)
    X, given, (scale, shift) = _samples(m, kind, p, x)
    A1, W2 = _activated(m, kind, p), _values(m, kind, (p.H, p.C), p.dtype, 2)
    dZ2 = _values(m, kind, (p.N, p.C), p.dtype, 2)
    if kind == "special":
        W2[-1, -1] = np.inf  # which meets no 0 but of a dead unit
    dZ1 = _values(m, kind, (p.N, p.H), p.dtype) if g.stores_dZ1 else None
    shape = (g.partitions, p.flat_size)
    partials = m.state(_unwritten(shape, p.dtype), "partials")
    given_dZ1 = None if dZ1 is None else m.input(dZ1, name="dZ1")
    others = (m.input(A1, name="A1"), m.input(dZ2, name="dZ2"), m.input(W2, name="W2"))
    path.weight(g, X, scale, shift, *others, partials, given_dZ1)

    def expected() -> Bounded:
        a, dz = reference.exact(A1), reference.exact(dZ2)
        hidden_gradient = (
            reference.DERIVATIVES[p.activation](a, dz @ reference.exact(W2).T)
            if dZ1 is None
            else reference.exact(dZ1)
        )
        precision = PRECISIONS[p.dtype]
        found = Bounded(_unwritten(shape, p.dtype).astype(precision.wide), np.zeros(shape), precision)
        for s, n in enumerate(range(0, p.N, g.chunk)):
            part = slice(n, n + g.chunk)
            gradients = {
                "W1": given[part].T @ hidden_gradient[part].operand(p.precision),
                "W2": a[part].operand(_second(p)).T @ dz[part].operand(_second(p)),
            }
            if p.bias:
                gradients["b1"] = hidden_gradient[part].sum(axis=0)
            for name, one in gradients.items():
                place = slice(p.offsets[name], p.offsets[name] + p.sizes[name])
                if name == "b1":
                    place = slice(p.offsets[name], p.offsets[name] + p.H)
                found.value[s, place], found.error[s, place] = one.value.reshape(-1), one.error.reshape(-1)
        return found

    return [
        Output("partials", partials, expected, kind == "integers" and p.activation in ("relu", "identity"))
    ]


def _unwritten(shape: tuple[int, ...], dtype: str) -> Host:
    """Poison: what is left of it was not written."""
    values = np.empty(shape, dtype)
    bits_of(values)[...] = POISON[values.dtype.itemsize]
    return values


def _stacked(parts: list[Bounded], shape: tuple[int, ...]) -> Bounded:
    p = parts[0].precision
    value, error = (
        np.array([getattr(part, of) for part in parts]).reshape(shape) for of in ("value", "error")
    )
    return Bounded(value, error, p)


# ---- grids -----------------------------------------------------------------------------------------------


def hidden_trials(dtype: str, quick: bool) -> list[Trial]:
    """Of the catalogue's two_layer.general_hidden."""
    return _trials("two_layer.general_hidden", hidden, "hidden_kernel", dtype, quick)


def output_trials(dtype: str, quick: bool) -> list[Trial]:
    """Of the catalogue's two_layer.general_output."""
    return _trials("two_layer.general_output", output, "output_kernel", dtype, quick)


def output_wide_trials(dtype: str, quick: bool) -> list[Trial]:
    """Of the catalogue's two_layer.general_output_wide."""
    return _trials("two_layer.general_output_wide", output, "output_kernel", dtype, quick)


def weight_trials(dtype: str, quick: bool) -> list[Trial]:
    """Of the catalogue's two_layer.general_weight; and whole steps by other tilings than the rule's."""
    op = "two_layer.general_weight"
    others = [] if quick else tiling_trials(op, path, "R4", dtype)
    return _trials(op, weight, "weight_kernel", dtype, quick) + others


def _trials(op: str, run: Run, kernel: str, dtype: str, quick: bool) -> list[Trial]:
    found = [*_instances(op, run, kernel, dtype, quick), *_grid(op, run, dtype, quick)]
    return [trial for trial in found if trial is not None]


def _trial(
    op: str, run: Run, problem: Problem, kind: str, x: str = "aligned", schedules: bool = False
) -> Trial | None:
    """None where the problem is another kernel's."""
    if op.endswith("_wide") != (problem.C > FEW) and run is output:
        return None
    settings = {
        field.name: getattr(problem, field.name)
        for field in dataclasses.fields(problem)
        if field.name not in ("N", "D", "H", "C", "dtype", "rule", "arch", "sms", "bias")
        and getattr(problem, field.name) != field.default
    }
    words = [kind, *map(str, settings.values()), *(() if problem.bias else ("no bias",)), x]
    shape = {name: getattr(problem, name) for name in "NDHC"}
    bound = functools.partial(run, p=problem, kind=kind, x=x)
    return Trial(op, problem.dtype, shape, ", ".join(words), bound, schedules)


def _instances(op: str, run: Run, kernel: str, dtype: str, quick: bool) -> Iterator[Trial | None]:
    """Every instantiation of the catalogue, exactly where that is possible."""
    seen = set()
    for problem in path.representative():
        if problem.dtype != dtype or getattr(Geometry(problem), kernel).expression in seen:
            continue
        seen.add(getattr(Geometry(problem), kernel).expression)
        if not quick or _is_quick(problem, run):
            yield _trial(op, run, dataclasses.replace(problem, reduction="sum"), "integers")
            if problem.N < 100:
                yield _trial(op, run, problem, "normal")


def _is_quick(problem: Problem, run: Run) -> bool:
    """Few of them: each is a kernel to compile."""
    if problem.inputs == "uint8":
        return problem.loss == "hinge" or run is output
    return (problem.precision, problem.C) in QUICK and problem.activation == "relu"


def _grid(op: str, run: Run, dtype: str, quick: bool) -> Iterator[Trial | None]:
    precisions = ("float32", *TENSOR) if dtype == "float32" else ("float64",)
    columns = (17, 33, 65) if op.endswith("_wide") else OUTPUTS[:3] if run is output else OUTPUTS
    make = functools.partial(Problem, dtype=dtype)
    if not quick:
        rows = pairwise(
            {
                "N": SAMPLES[1:], "D": INPUTS if run is not output else (3,), "H": HIDDEN, "C": columns,
                "activation": activation_op.NAMES if run is not output else ("relu", "tanh"),
                "loss": loss_op.NAMES if run is output else ("mse",),
                "reduction": loss_op.REDUCTIONS if run is output else ("mean",),
                "bias": (True, False), "precision": precisions,
                "inputs": (dtype, "uint8") if run is not output else (dtype,),
                "x": ("aligned", "misaligned"),
            }
        )  # fmt: skip
        for row in rows:
            x = row.pop("x")
            yield _trial(op, run, make(**row), "normal", x)
    few = columns[1]
    # Small enough for the sanitizers, with a second tile of samples; D is nothing to the second layer.
    N, D = (70, 9) if op.endswith("_wide") else (150, 9 if run is output else 37)
    for precision in precisions if not quick else precisions[:1]:
        scheduled = make(N, D, 33, few, precision=precision, inputs=dtype, loss="hinge")
        yield _trial(op, run, scheduled, "normal", "misaligned", schedules=True)
    for loss in ("hinge", "cross_entropy") if run is output else ("mse",):
        special = make(33, D, 50, few, precision=dtype, inputs=dtype, loss=loss, reduction="sum")
        yield _trial(op, run, special, "special")
        yield _trial(op, run, dataclasses.replace(special, N=300, bias=False), "normal")
