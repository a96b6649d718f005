"""NaN and inf in a gradient: an exponential that overflowed, or something else."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from handgrad.gradients.causes import name_of
from handgrad.gradients.report import Cause
from handgrad.gradients.staged import Floats, Hook, Pass, Problem


def cause_of(problem: Problem, given: Mapping[str, Floats], unit: float) -> Cause | None:
    """The cause of the entries that are not finite; None where all are."""
    bad = {stage: ~np.isfinite(array) for stage, array in given.items() if not np.all(np.isfinite(array))}
    if not bad:
        return None
    parameters = tuple(name_of(stage) for stage in given if stage in bad)
    counts = ", ".join(f"{int(where.sum())} of {where.size} in {stage}" for stage, where in bad.items())
    dtype, limit = _precision(unit)
    at_outputs = float(np.max(problem.forward[f"Z{problem.L}"]))
    if problem.loss == "cross_entropy" and at_outputs > limit:
        residual = _unlike_naive(problem, given, dtype)
        return Cause(
            "overflow",
            parameters,
            residual,
            0.99 if residual < 0.05 else 0.8,
            f"NaN or inf ({counts}): exp overflows in {dtype.name} above {limit:.4g}, and the greatest logit "
            f"is {at_outputs:.4g}. As written: P = exp(Z) / exp(Z).sum(axis=1, keepdims=True)",
            "Z = Z - Z.max(axis=1, keepdims=True) before the exp; the softmax is the same",
        )
    where = _overflowing(problem, limit)
    if where:
        return Cause(
            "overflow",
            parameters,
            float("nan"),
            0.8,
            f"NaN or inf ({counts}): exp overflows in {dtype.name} above {limit:.4g}, and {where}",
            "exponentiate negative numbers alone: sigmoid(z) = 1 / (1 + exp(-z)) for z > 0 and "
            "exp(z) / (1 + exp(z)) below, softplus(z) = max(z, 0) + log1p(exp(-|z|))",
        )
    return Cause(
        "unknown",
        parameters,
        float("nan"),
        0.9,
        f"NaN or inf ({counts}), and no exponential overflows for this batch (greatest |logit| "
        f"{float(np.max(np.abs(problem.forward[f'Z{problem.L}']))):.4g}): look for 0/0, log(0), a division "
        "by a probability that became 0, or NaN in the input of your own pass",
        "print np.isfinite(v).all() after each line of the backward pass; the first False is the line",
    )


def _precision(unit: float) -> tuple[np.dtype[np.floating], float]:
    """The dtype of that spacing, and the logarithm of its greatest number (bfloat16: as float32)."""
    for name in ("float64", "float32", "float16"):
        info = np.finfo(name)
        if unit <= float(info.eps):
            return np.dtype(name), float(np.log(float(info.max)))
    return np.dtype("float32"), float(np.log(float(np.finfo("float32").max)))


def _overflowing(problem: Problem, limit: float) -> str:
    """Which argument of a sigmoid, tanh or softplus lies beyond the limit."""
    functions = {f"Z{layer}": problem.activation for layer in range(1, problem.L)}
    functions[f"Z{problem.L}"] = "sigmoid" if problem.loss == "bce" else problem.output
    for name, function in functions.items():
        greatest = float(np.max(np.abs(problem.forward[name])))
        if function in ("sigmoid", "softplus", "tanh") and greatest > (
            limit / 2 if function == "tanh" else limit
        ):
            return f"|{name}| reaches {greatest:.4g} before the {function}"
    return ""


def _unlike_naive(problem: Problem, given: Mapping[str, Floats], dtype: np.dtype[np.floating]) -> float:
    """The share of entries that a softmax without the maximum subtracted does not give."""
    L = problem.L

    def naive(s: Pass, value: object, c: float) -> Floats:
        powers = np.exp(np.asarray(s.Z(L)).astype(dtype))
        P = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float64)
        return np.asarray((P - problem.one_hot) * (1.0 / problem.count))

    unlike = total = 0
    with np.errstate(all="ignore"):
        run = Pass(problem, [(Hook(f"dZ{L}", naive, replaces=True), 1.0)])
        for stage, array in given.items():
            if stage not in problem.backward_names:
                continue
            value = np.asarray(run.computed(stage))
            if value.shape != array.shape:
                return 1.0
            unlike += int((np.isfinite(value) != np.isfinite(array)).sum())
            total += array.size
    return unlike / total if total else 1.0
