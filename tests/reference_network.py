"""A reference of the network in float64 NumPy, with a bound of the error that rounding may make.

It shares nothing with handgrad: the formulas stand here a second time, written from PyTorch's definitions
(the golden data holds them to it).  Beside every value goes an elementwise bound for arithmetic with unit
roundoff u (2^-24 for float32, 2^-53 for float64) whose inputs are exact.  This is the one place of tolerances
for whole networks; nothing is measured and then widened.

The bound: what one operation adds, and how it passes on the bound e of what it is given, to first order in u.

  products    C √K u (|A| |B|) for sums of K terms, in any order, with or without fused multiply-add, C = 4:
              the bound that every kernel must keep.  Passed on: e_A |B| + |A| e_B.
  sums        the same, C √K u Σ|x|.
  arithmetic  u |result| for each rounding.
  functions   exp, log1p, expm1, tanh: 4 units in the last place, so 8 u |result|; that is what NumPy promises
              for its own and more than CUDA's tables give.  Passed on: |f'| e, where |f'| is the largest on
              the line; f' itself, taken from the output A, passes on |d f' / dA| e.
  masks       where |Z| <= e the rounded Z may fall on the other side of the kink: the derivative of the ReLU
              is then uncertain by 1, and an active margin of the hinge may count or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

C = 4.0  # the constant that `handgrad kernels check` allows a product
FUNCTION = 8.0  # u: 4 units in the last place, each at most 2 u of the result
ROUNDOFF = {"float32": 2.0**-24, "float64": 2.0**-53}


@dataclass(frozen=True)
class Bounded:
    """Exact values (in float64) and the bound of the error of a rounded computation of them."""

    value: Floats
    error: Floats

    @classmethod
    def exact(cls, value: Any) -> Bounded:
        """An input, which is what it is."""
        array = np.asarray(value, dtype=np.float64)
        return cls(array, np.zeros_like(array))

    @property
    def T(self) -> Bounded:
        """The transpose."""
        return Bounded(self.value.T, self.error.T)


def product(A: Bounded, B: Bounded, u: float, plus: Bounded | None = None) -> Bounded:
    """``A B + plus``, with the bound of one sum of K products (and ``plus``)."""
    K = A.value.shape[1] + (plus is not None)
    value = A.value @ B.value
    magnitude = np.abs(A.value) @ np.abs(B.value)
    error = A.error @ np.abs(B.value) + np.abs(A.value) @ B.error
    if plus is not None:
        value, magnitude, error = value + plus.value, magnitude + np.abs(plus.value), error + plus.error
    return Bounded(value, error + C * np.sqrt(K) * u * magnitude)


def column_sums(A: Bounded, u: float) -> Bounded:
    """``Σ_n A``."""
    rounding = C * np.sqrt(len(A.value)) * u * np.abs(A.value).sum(axis=0)
    return Bounded(A.value.sum(axis=0), A.error.sum(axis=0) + rounding)


def total(terms: Bounded, u: float, scale: float) -> Bounded:
    """``scale Σ terms``, one number; the scale and the product with it are rounded too."""
    value = scale * terms.value.sum()
    rounding = C * np.sqrt(terms.value.size) * u * np.abs(terms.value).sum()
    return Bounded(value, np.asarray(scale * (terms.error.sum() + rounding) + 2 * u * abs(value)))


# ---- activations -----------------------------------------------------------------------------------------


def activate(Z: Bounded, name: str, u: float) -> Bounded:
    """``f(Z)``."""
    z = Z.value
    if name == "identity":
        return Z
    if name == "relu":
        return Bounded(np.where(z > 0, z, 0.0), np.where(z > -Z.error, Z.error, 0.0))
    if name == "tanh":
        a = np.tanh(z)
        return Bounded(a, Z.error + FUNCTION * u * np.abs(a))
    q = np.exp(-np.abs(z))
    if name == "sigmoid":  # 1 / (1 + e^-z): the error of the power, damped by s (1 - s), and two roundings
        a = np.where(z > 0, 1.0, q) / (1 + q)
        return Bounded(a, Z.error / 4 + (FUNCTION * a * (1 - a) + 2 * a) * u)
    assert name == "softplus"  # max(z, 0) + log1p(q): errors of both functions and of the sum
    log = np.log1p(q)
    a = np.maximum(z, 0) + log
    return Bounded(a, Z.error + (FUNCTION * (q / (1 + q) + log) + a) * u)


def derivative(Z: Bounded, A: Bounded, name: str, u: float) -> Bounded:
    """``f'(Z)`` as computed from A, with the bounds of that way."""
    a = A.value
    if name == "identity":
        return Bounded.exact(np.ones_like(a))
    if name == "relu":
        uncertain = (np.abs(Z.value) <= Z.error) & (Z.error > 0)
        return Bounded((Z.value > 0).astype(np.float64), uncertain.astype(np.float64))
    if name == "sigmoid":  # a (1 - a)
        return Bounded(a * (1 - a), np.abs(1 - 2 * a) * A.error + 2 * u * a * (1 - a))
    if name == "tanh":  # (1 - a) (1 + a)
        slope = (1 - a) * (1 + a)
        return Bounded(slope, 2 * np.abs(a) * A.error + 3 * u * slope)
    slope = -np.expm1(-a)  # softplus
    return Bounded(slope, np.exp(-a) * A.error + FUNCTION * u * slope)


def times(A: Bounded, B: Bounded, u: float) -> Bounded:
    """``A ∘ B``."""
    value = A.value * B.value
    return Bounded(value, A.error * np.abs(B.value) + np.abs(A.value) * B.error + u * np.abs(value))


# ---- losses: the terms of the sum, and the gradient of the sum with respect to the logits ----------------


def mean_squared_error(Z: Bounded, y: Any, output: str, u: float) -> tuple[Bounded, Bounded]:
    """Σ (g(Z) - y)²."""
    Y_hat = activate(Z, output, u)
    r = Y_hat.value - y
    residual = Bounded(r, Y_hat.error + u * np.abs(r))
    terms = Bounded(r * r, 2 * np.abs(r) * residual.error + u * r * r)
    twice = Bounded(2 * r, 2 * residual.error)
    return terms, twice if output == "identity" else times(twice, derivative(Z, Y_hat, output, u), u)


def binary_cross_entropy(Z: Bounded, y: Any, u: float) -> tuple[Bounded, Bounded]:
    """Σ max(z, 0) - z y + log(1 + e^-|z|)."""
    z, probability = Z.value, activate(Z, "sigmoid", u)
    softplus = activate(Bounded.exact(z), "softplus", u)
    terms = softplus.value - z * y
    rounding = softplus.error + u * (2 * np.abs(z * y) + np.abs(terms))
    gradient = probability.value - y
    slope = np.abs(gradient) * Z.error
    return Bounded(terms, slope + rounding), Bounded(gradient, probability.error + u * np.abs(gradient))


def cross_entropy(Z: Bounded, labels: Any, u: float) -> tuple[Bounded, Bounded]:
    """Σ_n log Σ_j e^(z_j - m) - (z_y - m); a shift by the rounded maximum m cancels."""
    z, rows = Z.value, np.arange(len(labels))
    shifted = z - z.max(axis=1, keepdims=True)
    power = np.exp(shifted)
    denominator = power.sum(axis=1, keepdims=True)
    P = power / denominator
    exponent = Z.error + u * np.abs(shifted)  # also the relative error of the power, beside the function's
    mean_exponent = (P * exponent).sum(axis=1, keepdims=True)
    sum_rounding = (FUNCTION + C * np.sqrt(z.shape[1])) * u
    P_error = P * (exponent + mean_exponent + FUNCTION * u + sum_rounding + u)
    one_hot = np.zeros_like(z)
    one_hot[rows, labels] = 1
    gradient = P - one_hot
    log, at_label = np.log(denominator[:, 0]), shifted[rows, labels]
    terms = log - at_label
    error = mean_exponent[:, 0] + sum_rounding + FUNCTION * u * log + exponent[rows, labels] + u * terms
    return Bounded(terms, error), Bounded(gradient, P_error + u * np.abs(gradient))


def hinge(Z: Bounded, labels: Any, u: float) -> tuple[Bounded, Bounded]:
    """Σ_n Σ_{j≠y} max(0, z_j - z_y + 1)."""
    z, rows = Z.value, np.arange(len(labels))
    difference = z - z[rows, labels][:, None]
    margins = difference + 1
    error = Z.error + Z.error[rows, labels][:, None] + u * (np.abs(difference) + np.abs(margins))
    margins[rows, labels] = -1.0
    error[rows, labels] = 0.0
    active = (margins > 0).astype(np.float64)
    uncertain = (np.abs(margins) <= error).astype(np.float64)
    gradient, gradient_error = active.copy(), uncertain.copy()
    gradient[rows, labels] = -active.sum(axis=1)
    gradient_error[rows, labels] = uncertain.sum(axis=1)
    return Bounded(margins * active, np.where(margins > -error, error, 0.0)), Bounded(
        gradient, gradient_error
    )


# ---- the network -----------------------------------------------------------------------------------------


def network(
    config: dict[str, Any],
    X: Any,
    y: Any,
    parameters: dict[str, Any],
    dtype: str = "float64",
    input_grad: bool = True,
) -> dict[str, Bounded]:
    """The loss, every intermediate and every gradient by name, with bounds for arithmetic in ``dtype``.

    ``config``: the arguments of ``MLP``; X, y and parameters: numbers that ``dtype`` holds exactly.
    """
    u = ROUNDOFF[dtype]
    W = {name: Bounded.exact(value) for name, value in parameters.items()}
    layers = len(config["sizes"]) - 1
    found = {"X": Bounded.exact(X)}
    A = found["X"]
    for layer in range(1, layers + 1):
        Z = found[f"Z{layer}"] = product(A, W[f"W{layer}"], u, W.get(f"b{layer}"))
        if layer < layers:
            A = found[f"A{layer}"] = activate(Z, config["activation"], u)
    found["Y_hat"] = activate(Z, config["output"], u)
    if config["loss"] == "mse":
        terms, dZ = mean_squared_error(Z, np.asarray(y, dtype=np.float64), config["output"], u)
    elif config["loss"] == "bce":
        terms, dZ = binary_cross_entropy(Z, np.asarray(y, dtype=np.float64), u)
    else:
        terms, dZ = {"cross_entropy": cross_entropy, "hinge": hinge}[config["loss"]](Z, y, u)
    count = Z.value.size if config["loss"] in ("mse", "bce") else len(Z.value)
    scale = 1.0 / count if config["reduction"] == "mean" else 1.0
    found["loss"] = total(terms, u, scale)
    dZ = Bounded(scale * dZ.value, scale * (dZ.error + 2 * u * np.abs(dZ.value)))
    for layer in range(layers, 0, -1):
        found[f"dZ{layer}"] = dZ
        below = found[f"A{layer - 1}"] if layer > 1 else found["X"]
        found[f"dW{layer}"] = product(below.T, dZ, u)
        if f"b{layer}" in W:
            found[f"db{layer}"] = column_sums(dZ, u)
        if layer > 1:
            dA = found[f"dA{layer - 1}"] = product(dZ, W[f"W{layer}"].T, u)
            dZ = times(dA, derivative(found[f"Z{layer - 1}"], below, config["activation"], u), u)
    if input_grad:
        found["dX"] = product(dZ, W["W1"].T, u)
    return found


# ---- comparisons, which a NaN fails ----------------------------------------------------------------------


def assert_within(actual: Any, expected: Bounded, name: str) -> None:
    """Every element of ``actual`` lies within the bound of ``expected``."""
    values = np.asarray(actual, dtype=np.float64)
    assert values.shape == expected.value.shape, f"{name}: shape {values.shape}, not {expected.value.shape}"
    error = np.abs(values - expected.value)
    inside = error <= expected.error
    if not np.all(inside):
        at = np.unravel_index(np.argmin(inside), inside.shape)
        raise AssertionError(
            f"{name}{[int(i) for i in at]}: {values[at]!r} is {error[at]:.3e} from {expected.value[at]!r}, "
            f"the bound is {expected.error[at]:.3e}; {np.sum(~inside)} of {inside.size} elements outside"
        )


def assert_norm(actual: Any, expected: Any, tolerance: float, name: str) -> None:
    """``‖actual - expected‖ <= tolerance ‖expected‖`` (Frobenius)."""
    values, right = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert values.shape == right.shape, f"{name}: shape {values.shape}, not {right.shape}"
    difference, norm = np.linalg.norm(np.ravel(values - right)), np.linalg.norm(np.ravel(right))
    assert difference <= tolerance * norm, (
        f"{name}: relative difference {difference / norm if norm else np.inf:.3e}, allowed {tolerance:.0e}"
    )
