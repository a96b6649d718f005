"""Mistakes where the gradient enters: the loss's derivative, the softmax, the targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from handgrad.gradients import rounding
from handgrad.gradients.mistakes.mistake import Mistake, Words, require_few
from handgrad.gradients.staged import Hook, Pass, Problem, hinge_violations
from handgrad.ops.loss import ELEMENTWISE

_Value = Callable[[Pass], Any]


def mistakes(problem: Problem) -> list[Mistake]:
    """Every mistake of this loss."""
    found = []
    if problem.loss == "cross_entropy":
        found += _softmax(problem)
    if problem.loss == "bce":
        found.append(
            _made(
                problem,
                "softmax-derivative-twice",
                "sigmoid' is applied once more; in the derivative of binary cross-entropy with respect to "
                "the logits it has cancelled already",
                "(P - y) * P * (1 - P)",
                "P - y",
                lambda s: (_P(s) - s.problem.y) * _P(s) * (1 - _P(s)),
            )
        )
    found.append(_targets_missing(problem))
    if problem.loss in ELEMENTWISE and problem.C == 1:
        found += _targets_broadcast(problem)
    if problem.reduction == "mean" and problem.C <= 2:
        found += _shape_for_count(problem)
    return found


def right_line(problem: Problem) -> str:
    """The loss's derivative as one writes it."""
    if problem.loss == "mse":
        return f"dY_hat = 2 * (Y_hat - y){_count(problem)}"
    core = {
        "bce": "(P - y)",
        "cross_entropy": "(P - I_y)",
        "hinge": "(violated - violated.sum(1, keepdims=True) * I_y)",
    }[problem.loss]
    return f"dZ{problem.L} = {core}{_count(problem)}"


def _count(problem: Problem) -> str:
    if problem.reduction == "sum":
        return ""
    if problem.loss not in ELEMENTWISE:
        return " / N"
    return " / N" if problem.C == 1 else " / (N * K)"


def _made(
    problem: Problem, id: str, says: str, wrong: str, right: str, value: _Value, cost: float = 1.0
) -> Mistake:
    """A mistake in the core of the loss's derivative; the mean's division stays as it is."""
    scale = 1.0 / problem.count
    words = Words(
        id,
        says,
        f"{problem.source} = {wrong}{_count(problem)}",
        f"{problem.source} = {right}{_count(problem)}",
        cost=cost,
    )
    return Mistake(words, (Hook(problem.source, lambda s, v, c: value(s) * scale, replaces=True),))


def _P(s: Pass) -> Any:
    return s.problem.probabilities


def _Z(s: Pass) -> Any:
    return s.Z(s.problem.L)


def _softmax(problem: Problem) -> list[Mistake]:
    right = "(P - I_y)"

    def over(axis: int | None) -> _Value:
        def value(s: Pass) -> Any:
            Z = _Z(s)
            plain = rounding.values(Z)
            powers = rounding.exp(Z - plain.max(axis=axis, keepdims=True))
            total = powers.sum(axis=axis, keepdims=axis is not None)
            return powers / total - s.problem.one_hot

        return value

    return [
        _made(
            problem,
            "softmax-axis",
            "the softmax is normalised over the samples (axis 0) instead of over the classes: the rows of "
            f"dZ{problem.L} no longer sum to 0",
            "(exp(Z) / exp(Z).sum(axis=0) - I_y)",
            "(exp(Z) / exp(Z).sum(axis=1, keepdims=True) - I_y)",
            over(0),
        ),
        _made(
            problem,
            "softmax-over-everything",
            "the softmax is normalised by the sum over all samples and classes: the rows of "
            f"dZ{problem.L} no longer sum to 0",
            "(exp(Z) / exp(Z).sum() - I_y)",
            "(exp(Z) / exp(Z).sum(axis=1, keepdims=True) - I_y)",
            over(None),
        ),
        _made(
            problem,
            "softmax-derivative-twice",
            "the softmax's derivative P (1 - P) is applied once more; P - I_y has it in it already",
            "(P - I_y) * P * (1 - P)",
            right,
            lambda s: (_P(s) - s.problem.one_hot) * _P(s) * (1 - _P(s)),
        ),
        _made(
            problem,
            "softmax-diagonal-jacobian",
            "only the diagonal P (1 - P) of the softmax's Jacobian diag(P) - P Pᵀ is used: the other classes "
            "get no gradient",
            "-(I_y / P) * P * (1 - P)",
            right,
            lambda s: s.problem.one_hot * (_P(s) - 1),
        ),
    ]


def _targets_missing(problem: Problem) -> Mistake:
    id = "one-hot-missing"
    if problem.loss == "cross_entropy":
        says = "the one-hot targets I_y are not subtracted from the probabilities"
        return _made(problem, id, says, "P", "(P - I_y)", _P)
    if problem.loss == "hinge":
        says = "the true class gets no gradient: minus the number of violated margins belongs there"
        right = "(violated - violated.sum(1, keepdims=True) * I_y)"
        return _made(problem, id, says, "violated", right, hinge_violations)
    says = "the targets are not subtracted"
    if problem.loss == "bce":
        return _made(problem, id, says, "P", "(P - y)", _P)
    return _made(problem, id, says, "2 * Y_hat", "2 * (Y_hat - y)", lambda s: s.A(s.problem.L) * 2.0)


def _targets_broadcast(problem: Problem) -> list[Mistake]:
    """Variants of (N, 1) - (N,) = (N, N)."""
    mse = problem.loss == "mse"
    name, factor = ("Y_hat", 2.0) if mse else ("P", 1.0)

    def predicted(s: Pass) -> Any:
        return s.A(s.problem.L) if mse else _P(s)

    def mean_of_predictions(s: Pass) -> Any:
        return predicted(s).mean() - s.problem.y

    def mean_of_targets(s: Pass) -> Any:
        return predicted(s) - s.problem.y.mean()

    def matrix(s: Pass) -> Any:
        require_few(s.problem.N)
        return predicted(s) - s.problem.y.T

    says = f"(N, 1) - (N,) broadcasts to (N, N): {{}}. Give y the shape (N, 1) of {name} first"
    targets = says.format("every target counts as the mean of y")
    predictions = says.format(f"every prediction counts as the mean of {name}")
    N = problem.N
    two = "2 * " if mse else ""
    wrong = f"{two}({name} - y){{}}"
    right = f"{two}({name} - y[:, None])"
    variants: list[tuple[str, str, _Value, float]] = [
        (targets, ".mean(1, keepdims=True)", mean_of_targets, 1.0),
        (targets, ".sum(1, keepdims=True)", lambda s: mean_of_targets(s) * float(N), 1.1),
        (predictions, ".mean(0)[:, None]", mean_of_predictions, 1.0),
        (predictions, ".sum(0)[:, None]", lambda s: mean_of_predictions(s) * float(N), 1.1),
        (says.format("it stays (N, N)"), "", matrix, 1.0),
        (says.format("it stays (N, N)"), " / N", lambda s: matrix(s) * (1.0 / N), 1.1),
    ]
    return [
        _made(
            problem,
            "targets-broadcast",
            explanation,
            wrong.format(suffix),
            right,
            lambda s, value=value: value(s) * factor,  # type: ignore[misc]
            cost,
        )
        for explanation, suffix, value, cost in variants
    ]


def _shape_for_count(problem: Problem) -> list[Mistake]:
    """Division by ``x.shape`` where NumPy lets it pass: the tuple becomes an array of two numbers."""
    found = []
    widths = (("X", problem.D), ("A1", problem.sizes[1]))[: problem.L]
    for name, width in widths:
        per_column = np.array([1.0, problem.N / width])
        found.append(
            Mistake(
                Words(
                    "shape-for-count",
                    f"the division is by the tuple {name}.shape = ({problem.N}, {width}), not by its first "
                    "number: NumPy makes two columns of it, one divided by each",
                    f"{problem.source} = … / {name}.shape",
                    f"{problem.source} = … / {name}.shape[0]",
                ),
                (Hook(problem.source, lambda s, v, c, by=per_column: v * by, order=2),),  # type: ignore[misc]
            )
        )
    return found
