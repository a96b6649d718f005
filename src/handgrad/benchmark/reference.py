"""Loss and gradients once more in float64, from the formulas alone: what every contestant must agree with.

Z1 = X W1 + b1, A1 = max(Z1, 0), Z2 = A1 W2 + b2; mse over all elements, or cross entropy over the samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.benchmark.workloads import Problem

AGREEMENT = 1e-4  # relative, norm-wise, float32 against float64: far above rounding, far below a mistake


def loss_and_grad(problem: Problem) -> tuple[float, dict[str, NDArray[np.float64]]]:
    """The loss of the problem's batch and the gradient of every parameter."""
    X, y = problem.batch
    X = X.astype(np.float64)
    W1, b1, W2, b2 = (problem.parameters[name].astype(np.float64) for name in ("W1", "b1", "W2", "b2"))
    N = len(X)
    A1 = np.maximum(X @ W1 + b1, 0.0)  # (N, H)
    Z2 = A1 @ W2 + b2  # (N, C)
    if problem.workload.shape.loss == "mse":
        difference = Z2 - y
        loss, dZ2 = np.mean(difference**2), 2.0 * difference / difference.size
    else:
        Z2 -= Z2.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(Z2).sum(axis=1))
        loss = np.mean(log_sum - Z2[np.arange(N), y])
        dZ2 = np.exp(Z2 - log_sum[:, None])
        dZ2[np.arange(N), y] -= 1.0
        dZ2 /= N
    dZ1 = np.where(A1 > 0, dZ2 @ W2.T, 0.0)  # (N, H)
    return float(loss), {
        "W1": X.T @ dZ1,
        "b1": dZ1.sum(axis=0),
        "W2": A1.T @ dZ2,
        "b2": dZ2.sum(axis=0),
    }


def disagreement(
    found: tuple[float, Mapping[str, NDArray[Any]]], wanted: tuple[float, Mapping[str, NDArray[Any]]]
) -> tuple[str, float]:
    """The name (loss, W1, …) with the largest relative error, norm-wise, and that error; nan is largest."""
    errors = {"loss": relative_error(np.asarray(found[0]), np.asarray(wanted[0]))}
    errors |= {name: relative_error(found[1][name], wanted[1][name]) for name in wanted[1]}
    name = max(errors, key=lambda key: np.inf if np.isnan(errors[key]) else errors[key])
    return name, errors[name]


def relative_error(value: NDArray[Any], wanted: NDArray[Any]) -> float:
    """‖value − wanted‖ / ‖wanted‖; nan where the shapes differ."""
    if np.shape(value) != np.shape(wanted):
        return float("nan")
    norm = float(np.linalg.norm(wanted))
    return float(np.linalg.norm(np.asarray(value, np.float64) - wanted)) / (norm or 1.0)
