"""Mistakes in the bias's gradient: dbl = Σ_n dZl."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from handgrad.gradients.mistakes.mistake import Mistake, Words, bias_layers, layer_sets, value_name
from handgrad.gradients.staged import Hook, Pass, Problem

_Value = Callable[[Pass, int], Any]


def _dZ(s: Pass, layer: int) -> Any:
    return s[f"dZ{layer}"]


def _product(s: Pass, layer: int) -> Any:
    return s.A(layer - 1).T @ _dZ(s, layer)


def _elementwise(s: Pass, layer: int) -> Any:
    below, dZ = s.A(layer - 1), _dZ(s, layer)
    if below.shape[1] != dZ.shape[1]:
        raise ValueError("not of one shape")
    return (below * dZ).sum(axis=0)


# id, what is said, the wrong right-hand side of db{l} = …, its value, cost
_VARIANTS: tuple[tuple[str, str, str, _Value, float], ...] = (
    (
        "bias-not-summed",
        "the bias is shared by all samples, so its gradient is the sum over them; it was left per sample",
        "dZ{l}",
        _dZ,
        1.0,
    ),
    (
        "bias-averaged",
        "the mean over the samples is taken for the sum; the 1/N of the loss is in dZ{l} already",
        "dZ{l}.mean(axis=0)",
        lambda s, layer: _dZ(s, layer).mean(axis=0),
        1.0,
    ),
    (
        "bias-summed-over-everything",
        "the sum goes over the units too, so every component is the same number",
        "dZ{l}.sum()",
        lambda s, layer: _dZ(s, layer).sum(),
        1.0,
    ),
    (
        "bias-summed-over-axis-1",
        "the sum goes over the units (axis 1) instead of the samples (axis 0)",
        "dZ{l}.sum(axis=1)",
        lambda s, layer: _dZ(s, layer).sum(axis=1),
        1.0,
    ),
    (
        "bias-times-input",
        "the bias's input is 1, not {A}: the gradient was multiplied by {A}",
        "{A}.T @ dZ{l}",
        _product,
        1.0,
    ),
    (
        "bias-times-input",
        "the bias's input is 1, not {A}: the gradient was multiplied by {A}",
        "({A}.T @ dZ{l}).sum(axis=0)",
        lambda s, layer: _product(s, layer).sum(axis=0),
        1.05,
    ),
    (
        "bias-times-input",
        "the bias's input is 1, not {A}: the gradient was multiplied by {A}",
        "({A}.T @ dZ{l}).mean(axis=0)",
        lambda s, layer: (
            _product(s, layer).sum(axis=0) * (1 / (s.problem.D if layer == 1 else len(s.W(layer))))
        ),
        1.1,
    ),
    (
        "bias-times-input",
        "the bias's input is 1, not {A}: the gradient was multiplied by {A}",
        "({A} * dZ{l}).sum(axis=0)",
        _elementwise,
        1.1,
    ),
    (
        "bias-missing",
        "the bias's gradient was never set: it is exactly 0",
        "0",
        lambda s, layer: np.zeros(s.W(layer).shape[1]),
        0.9,
    ),
)


def mistakes(problem: Problem) -> list[Mistake]:
    """Every mistake in one bias or in all."""
    return [
        _made(problem, layers, *variant)
        for layers in layer_sets(bias_layers(problem))
        for variant in _VARIANTS
    ]


def _made(
    problem: Problem, layers: tuple[int, ...], id: str, says: str, wrong: str, value: _Value, cost: float
) -> Mistake:
    first = layers[0]
    A = value_name(problem, first - 1)
    where = f"layer {first}" if len(layers) == 1 else f"layers {', '.join(map(str, layers))}"
    words = Words(
        id,
        f"{where}: {says.format(l=first, A=A)}",
        f"db{first} = {wrong.format(l=first, A=A)}",
        f"db{first} = dZ{first}.sum(axis=0)",
        cost=cost + (0.02 if len(layers) > 1 else 0.0),
    )
    hooks = tuple(
        Hook(f"db{layer}", lambda s, v, c, at=layer: value(s, at), replaces=True)  # type: ignore[misc]
        for layer in layers
    )
    return Mistake(words, hooks)
