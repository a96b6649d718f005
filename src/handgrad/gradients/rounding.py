"""Arrays that carry a bound on their own rounding error.

A formula written with operators runs on plain arrays and on :class:`Rounded` ones alike.  With the unit
``ε`` of a dtype (the spacing of the numbers at 1), every operation adds its own error to its operands':

    c = a ∘ b        |δc| ≤ first-order propagation of |δa|, |δb|  +  ε |c|
    C = A @ B        |δC| ≤ (|δA| + γ_n |A|) (|B| + |δB|) + |A| |δB|,   γ_n = ε · growth(n)

``growth(n)`` is n, the worst case of n additions in any order, up to 256, and 16 √n above, where errors of
random sign add up like their root (Higham, Accuracy and Stability of Numerical Algorithms, 2002, ch. 3 and
Higham and Mary 2019).  ``step`` is 0 or 1 and wholly uncertain where its argument may have either sign: so
kinks and ties are taken into account without a rule of their own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
Number = Any  # a NumPy array, a Python number or a Rounded


def growth(n: int) -> float:
    """How the rounding error of a sum grows with the number of its terms."""
    return float(n) if n <= 256 else 16.0 * math.sqrt(n)


def underflow(unit: float) -> float:
    """The absolute error of a result too small for the dtype of that spacing: float64, float32 and bfloat16
    with subnormals flushed to zero, float16 with them."""
    if unit < 1e-12:
        return float(np.finfo(np.float64).tiny)
    half = float(np.finfo(np.float16).eps)
    return float(np.finfo(np.float16).smallest_subnormal if unit == half else np.finfo(np.float32).tiny)


class Rounded:
    """``value`` within ``error`` (elementwise; None is exact), in a precision of spacing ``unit``."""

    __slots__ = ("error", "unit", "value")
    __array_ufunc__ = None  # array ∘ Rounded comes here instead of being spread over the elements

    def __init__(self, value: Floats, error: Floats | None, unit: float) -> None:
        self.value, self.error, self.unit = value, error, unit

    # ---- form

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value."""
        return self.value.shape

    @property
    def ndim(self) -> int:
        """The dimensions of the value."""
        return self.value.ndim

    @property
    def T(self) -> Rounded:
        """The transpose."""
        return Rounded(self.value.T, None if self.error is None else self.error.T, self.unit)

    def __getitem__(self, index: Any) -> Rounded:
        return Rounded(self.value[index], None if self.error is None else self.error[index], self.unit)

    # ---- arithmetic

    def _of(self, other: Number) -> Rounded:
        return other if isinstance(other, Rounded) else Rounded(np.asarray(other), None, self.unit)

    def _made(self, value: Floats, error: Floats | float) -> Rounded:
        return Rounded(value, error + (self.unit * np.abs(value) + underflow(self.unit)), self.unit)

    def __neg__(self) -> Rounded:
        return Rounded(-self.value, self.error, self.unit)

    def __add__(self, other: Number) -> Rounded:
        b = self._of(other)
        return self._made(self.value + b.value, _errors(self) + _errors(b))

    __radd__ = __add__

    def __sub__(self, other: Number) -> Rounded:
        return self + (-self._of(other))

    def __rsub__(self, other: Number) -> Rounded:
        return self._of(other) + (-self)

    def __mul__(self, other: Number) -> Rounded:
        b = self._of(other)
        ea, eb = _errors(self), _errors(b)
        error = np.abs(self.value) * eb + (np.abs(b.value) + eb) * ea
        return self._made(self.value * b.value, error)

    __rmul__ = __mul__

    def __truediv__(self, other: Number) -> Rounded:
        b = self._of(other)
        value = self.value / b.value
        eb = _errors(b)
        return self._made(
            value, (_errors(self) + np.abs(value) * eb) / np.maximum(np.abs(b.value) - eb, 1e-300)
        )

    def __rtruediv__(self, other: Number) -> Rounded:
        return self._of(other) / self

    def __matmul__(self, other: Number) -> Rounded:
        b = self._of(other)
        gamma = self.unit * growth(self.shape[-1])
        magnitude = np.abs(self.value)
        if self.error is None:
            error = magnitude @ (np.abs(b.value) * gamma + _errors(b))
        else:
            error = (self.error + gamma * magnitude) @ (np.abs(b.value) + _errors(b))
            if b.error is not None:
                error = error + magnitude @ b.error
        error += self.shape[-1] * underflow(self.unit)
        return Rounded(self.value @ b.value, error, self.unit)

    def __rmatmul__(self, other: Number) -> Rounded:
        return self._of(other) @ self

    # ---- reductions

    def sum(self, axis: int | None = None, keepdims: bool = False) -> Rounded:
        """The sum over one axis or all."""
        value = self.value.sum(axis=axis, keepdims=keepdims)
        terms = self.value.size if axis is None else self.value.shape[axis]
        error = np.abs(self.value) * (self.unit * growth(terms)) + _errors(self)
        return Rounded(np.asarray(value), np.asarray(error.sum(axis=axis, keepdims=keepdims)), self.unit)

    def mean(self, axis: int | None = None, keepdims: bool = False) -> Rounded:
        """The mean over one axis or all."""
        return self.sum(axis, keepdims) / (self.value.size if axis is None else self.value.shape[axis])


def _errors(x: Rounded) -> Floats | float:
    return 0.0 if x.error is None else x.error


# ---- functions of plain and of rounded arrays --------------------------------------------------------------


def values(x: Number) -> Floats:
    """The plain values."""
    return x.value if isinstance(x, Rounded) else np.asarray(x)


def errors(x: Number) -> Floats:
    """The bounds, of the values' shape; 0 for a plain array."""
    if isinstance(x, Rounded) and x.error is not None:
        return np.broadcast_to(x.error, x.value.shape)
    return np.zeros(np.shape(values(x)))


def step(x: Number) -> Number:
    """1 where x > 0, else 0; uncertain by 1 where x is within its error of 0."""
    if not isinstance(x, Rounded):
        return (np.asarray(x) > 0).astype(np.float64)
    uncertain = np.abs(x.value) <= _errors(x)
    return Rounded((x.value > 0).astype(np.float64), uncertain.astype(np.float64), x.unit)


def absolute(x: Number) -> Number:
    """|x|."""
    return Rounded(np.abs(x.value), x.error, x.unit) if isinstance(x, Rounded) else np.abs(x)


def maximum_of_rows(x: Number) -> Floats:
    """The greatest value of every row, (N, 1), exact: what a stable softmax subtracts."""
    return np.asarray(values(x).max(axis=1, keepdims=True))


def exp(x: Number) -> Number:
    """e^x."""
    if not isinstance(x, Rounded):
        return np.exp(x)
    value = np.exp(x.value)
    return Rounded(value, value * (np.expm1(_errors(x)) + 4 * x.unit) + underflow(x.unit), x.unit)


def expm1(x: Number) -> Number:
    """e^x - 1."""
    if not isinstance(x, Rounded):
        return np.expm1(x)
    value = np.expm1(x.value)
    return Rounded(value, np.exp(x.value) * np.expm1(_errors(x)) + 4 * x.unit * np.abs(value), x.unit)


def relu(x: Number) -> Number:
    """max(x, 0)."""
    if not isinstance(x, Rounded):
        return np.maximum(x, 0)
    return Rounded(np.maximum(x.value, 0), x.error, x.unit)


def sigmoid(x: Number) -> Number:
    """1 / (1 + e^-x)."""
    plain = _sigmoid(values(x))
    return _smooth(x, plain, plain * (1 - plain), 0.05)


def tanh(x: Number) -> Number:
    """tanh x."""
    plain = np.tanh(values(x))
    return _smooth(x, plain, 1 - plain * plain, 0.39)


def softplus(x: Number) -> Number:
    """log(1 + e^x)."""
    return _smooth(x, np.logaddexp(0, values(x)), _sigmoid(values(x)), 0.125)


def _sigmoid(z: Floats) -> Floats:
    small = np.exp(-np.abs(z))
    return np.asarray(np.where(z >= 0, 1, small) / (1 + small))


def _smooth(x: Number, value: Floats, slope: Floats, half_curvature: float) -> Number:
    """f(x) with the error slope |δx| + half_curvature δx², and that of a plain formula as log(1 + e^x)."""
    if not isinstance(x, Rounded):
        return value
    e = _errors(x)
    return Rounded(value, slope * e + half_curvature * e * e + x.unit * (4 * np.abs(value) + 2), x.unit)
