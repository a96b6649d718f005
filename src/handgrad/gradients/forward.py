"""A wrong value in the forward pass: what it is instead."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from handgrad.gradients import rounding
from handgrad.gradients.explanation import distance
from handgrad.gradients.matching import NEAR_DOUBLE, NEAR_SINGLE
from handgrad.gradients.report import Cause
from handgrad.gradients.staged import Floats, Problem, activation
from handgrad.ops.activation import NAMES

_ADVICE = "compare it with net.loss_and_grad(X, y, intermediates=True) entry by entry"


def causes_of(problem: Problem, wrong: Mapping[str, Floats], unit: float) -> list[Cause]:
    """A cause for each forward value that does not follow from those before it (as given)."""
    return [
        _cause(problem, name, array, NEAR_DOUBLE if unit < 1e-12 else NEAR_SINGLE)
        for name, array in wrong.items()
    ]


def _cause(problem: Problem, name: str, given: Floats, within: float) -> Cause:
    right = np.asarray(rounding.values(problem.computed_forward[name]))
    residual = distance(given, right) if given.shape == right.shape else float("inf")
    layer = problem.L if name == "Y_hat" else int(name[1:])
    id, says, correction, left = (
        "unknown",
        f"{name} does not follow from what went into it",
        _ADVICE,
        residual,
    )
    if given.shape != right.shape:
        says = f"{name} has shape {given.shape}, expected {right.shape}"
    elif name.startswith("Z"):
        if f"b{layer}" in problem.parameters:
            without = distance(given, right - problem.parameters[f"b{layer}"])
            if without <= within:
                id, left = "bias-missing", without
                says = f"the bias is not added in layer {layer}. As written: {name} = A{layer - 1} @ W{layer}"
                correction = f"{name} = A{layer - 1} @ W{layer} + b{layer}"
    else:
        Z = np.asarray(rounding.values(problem.forward[f"Z{layer}"]))
        function = problem.output if layer == problem.L else problem.activation
        if name == "Y_hat" and problem.loss in ("bce", "cross_entropy"):
            id, says, correction, left = _probabilities(
                problem, given, Z, within, (id, says, correction, left)
            )
        for other in NAMES:
            apart = distance(given, np.asarray(activation(other, Z)))
            if other != function and apart <= within:
                left = apart
                says = f"{name} is {other}(Z{layer}), but the network given has {function} there"
                correction = f"{name} = {function}(Z{layer}), or give diagnose a network with {other!r}"
    return Cause(id, (), left, 0.9, says[:1].upper() + says[1:] + ".", correction)


def _probabilities(
    problem: Problem, given: Floats, Z: Floats, within: float, otherwise: tuple[str, str, str, float]
) -> tuple[str, str, str, float]:
    if problem.loss != "cross_entropy":
        return otherwise
    powers = np.exp(Z - Z.max())
    variants = (
        ("softmax-axis", "exp(Z).sum(axis=0)", "over the samples", powers / powers.sum(axis=0)),
        ("softmax-over-everything", "exp(Z).sum()", "over all samples and classes", powers / powers.sum()),
    )
    for id, total, over, value in variants:
        apart = distance(given, value)
        if apart <= within:
            says = f"the softmax is normalised {over}. As written: P = exp(Z) / {total}"
            return id, says, "P = exp(Z) / exp(Z).sum(axis=1, keepdims=True)", apart
    return otherwise
