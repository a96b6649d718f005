"""Values with a bound on the error of computing them in a kernel's precision.

A :class:`Bounded` is what a formula gives in a wider type, and how far a kernel that evaluates this formula
may be from it: running error analysis (Higham, Accuracy and Stability of Numerical Algorithms, section 3.3).
So every bound follows from the formula itself, element by element, and none is set by hand:

==========================  ==============================================================================
step                        error that it adds, u being the unit roundoff
==========================  ==============================================================================
+ - × ÷ and sqrt            u |result|: CUDA and IEEE round them correctly, fused multiply-adds err less
exp log log1p expm1 tanh    4 u |result|: two units in the last place, the most that the CUDA C++
                            Programming Guide states for them; the C libraries' are below that
sum of K terms, product     4 √K u Σ|terms|: roundings are as good as random, so their sum grows as √K (Higham
                            & Mary, SIAM J. Sci. Comput. 41(5), 2019), whatever the order
any step                    the smallest normal number: what lies below is flushed to zero on a GPU, since
                            CuPy compiles with -ftz=true
==========================  ==============================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Wide = NDArray[Any]  # of Precision.wide

SUM_CONSTANT = 4.0  # the c of c √K u (|A| |B|)
FUNCTION_ERROR = 4.0  # in u


@dataclass(frozen=True)
class Precision:
    """What a kernel computes in, and the wider type of its reference."""

    u: float  # unit roundoff: half the distance from 1 to the next number
    smallest_normal: float
    wide: type[np.floating[Any]]


PRECISIONS = {
    "float32": Precision(2.0**-24, 2.0**-126, np.float64),
    "float64": Precision(2.0**-53, 2.0**-1022, np.longdouble),  # float64 itself where there is no wider type
}


# Bits of the significand that an operand keeps, and where halves go; 3xtf32 loses what its small parts give.
OPERAND_BITS = {"tf32": (11, "away"), "bfloat16": (8, "even"), "3xtf32": (23, "")}


class Bounded:
    """``value`` in the wider type, and ``error``: how far the kernel's number may lie from it.

    Where a value is infinite or NaN the error is 0: the kernel's has to be the same.
    """

    __slots__ = ("error", "precision", "value")

    def __init__(self, value: Wide, error: Wide, precision: Precision) -> None:
        self.value = value
        self.error = np.where(np.isfinite(value), error, 0)
        self.precision = precision

    @classmethod
    def exact(cls, values: NDArray[Any] | float, precision: Precision) -> Bounded:
        """Numbers that the kernel has without error."""
        wide = np.asarray(values, dtype=precision.wide)
        return cls(wide, np.zeros_like(wide), precision)

    @classmethod
    def constant(cls, value: float, precision: Precision) -> Bounded:
        """A number that is rounded once on its way into the kernel."""
        return cls.exact(value, precision).rounded()

    def _computed(self, value: Wide, error: Wide, units: float = 1.0) -> Bounded:
        own = units * self.precision.u * abs(value) + self.precision.smallest_normal
        return Bounded(value, error + own, self.precision)

    def _operand(self, other: Bounded | float) -> Bounded:
        return other if isinstance(other, Bounded) else Bounded.exact(other, self.precision)

    def rounded(self) -> Bounded:
        """Converted to the kernel's type."""
        return self._computed(self.value, self.error)

    def operand(self, precision: str) -> Bounded:
        """As a product on tensor cores takes it: rounded to "tf32" or "bfloat16", or in two parts of tf32.

        What is known without error is rounded itself; else the rounding adds to the error.
        """
        if precision not in OPERAND_BITS:
            return self
        bits, ties = OPERAND_BITS[precision]
        if precision == "3xtf32" or self.error.any():
            # nothing between a subnormal number and 0 is told apart, as on a GPU
            error = self.error + 2.0**-bits * (abs(self.value) + self.error)
            return Bounded(self.value, error, self.precision)
        fraction, exponent = np.frexp(abs(self.value))
        scaled = np.ldexp(fraction, bits)
        nearest = np.floor(scaled + 0.5) if ties == "away" else np.rint(scaled)
        return Bounded(
            np.copysign(np.ldexp(nearest, exponent - bits), self.value), self.error, self.precision
        )

    def __neg__(self) -> Bounded:
        return Bounded(-self.value, self.error, self.precision)

    def __abs__(self) -> Bounded:
        return Bounded(abs(self.value), self.error, self.precision)

    def __add__(self, other: Bounded | float) -> Bounded:
        b = self._operand(other)
        return self._computed(self.value + b.value, self.error + b.error)

    def __sub__(self, other: Bounded | float) -> Bounded:
        return self + -self._operand(other)

    def __rsub__(self, other: float) -> Bounded:
        return -self + other

    def __mul__(self, other: Bounded | float) -> Bounded:
        b = self._operand(other)
        error = abs(self.value) * b.error + (abs(b.value) + b.error) * self.error
        return self._computed(self.value * b.value, error)

    def __truediv__(self, other: Bounded | float) -> Bounded:
        b = self._operand(other)
        quotient = self.value / b.value
        margin = abs(b.value) - b.error
        error = np.where(margin > 0, (self.error + abs(quotient) * b.error) / margin, np.inf)
        return self._computed(quotient, error)

    __radd__ = __add__
    __rmul__ = __mul__

    def __rtruediv__(self, other: float) -> Bounded:
        return self._operand(other) / self

    def _function(self, value: Wide, error: Wide) -> Bounded:
        return self._computed(value, error, FUNCTION_ERROR)

    def exp(self) -> Bounded:
        """e to this."""
        value = np.exp(self.value)
        return self._function(value, value * np.expm1(self.error))

    def expm1(self) -> Bounded:
        """e to this, less 1, without cancellation."""
        return self._function(np.expm1(self.value), np.exp(self.value) * np.expm1(self.error))

    def log(self) -> Bounded:
        """The natural logarithm of a number well above its error."""
        return self._function(np.log(self.value), self.error / (self.value - self.error))

    def log1p(self) -> Bounded:
        """log(1 + this) of a number that is not below 0."""
        return self._function(np.log1p(self.value), self.error / (1 + self.value - self.error))

    def tanh(self) -> Bounded:
        """The hyperbolic tangent."""
        steepest = 1 - np.tanh(np.maximum(abs(self.value) - self.error, 0)) ** 2
        return self._function(np.tanh(self.value), steepest * self.error)

    def sqrt(self) -> Bounded:
        """The square root of a number that is not below 0."""
        root = np.sqrt(self.value)
        linear = self.error / (2 * np.sqrt(np.maximum(self.value - self.error, 0)))
        return self._computed(root, np.where(self.value > self.error, linear, np.sqrt(self.error)))

    def positive(self) -> Bounded:
        """max(this, 0); a NaN stays."""
        return Bounded(np.maximum(self.value, 0), self.error, self.precision)

    def where(self, mask: NDArray[np.bool_]) -> Bounded:
        """This where ``mask`` holds, else an exact 0."""
        return Bounded(np.where(mask, self.value, 0), np.where(mask, self.error, 0), self.precision)

    def __getitem__(self, part: slice) -> Bounded:
        return Bounded(self.value[part], self.error[part], self.precision)

    def sum(self, axis: int | None = None, keepdims: bool = False) -> Bounded:
        """The sum along ``axis``, in any order."""
        terms = self.value.size if axis is None else self.value.shape[axis]
        value, magnitude, error = (
            np.asarray(x.sum(axis=axis, keepdims=keepdims)) for x in (self.value, abs(self.value), self.error)
        )
        return Bounded(value, error + self._error_of_sum(magnitude, terms), self.precision)

    def __matmul__(self, other: Bounded) -> Bounded:
        """The matrix product: 4 √K u (|A| |B|), and what the operands' own errors make of it.

        In float64 for every type, by BLAS: what it rounds itself is far inside the constant.
        """
        a, b = self.value.astype(np.float64), other.value.astype(np.float64)
        error = self._error_of_sum(abs(a) @ abs(b), a.shape[1])
        if self.error.any() or other.error.any():
            of_a, of_b = self.error.astype(np.float64), other.error.astype(np.float64)
            error = error + (of_a @ (abs(b) + of_b) + abs(a) @ of_b)
        return Bounded((a @ b).astype(self.precision.wide), error, self.precision)

    def _error_of_sum(self, magnitude: Wide, terms: int) -> Wide:
        p = self.precision
        return np.asarray(SUM_CONSTANT * np.sqrt(terms) * p.u * magnitude + terms * p.smallest_normal)

    @property
    def T(self) -> Bounded:
        """The transpose."""
        return Bounded(self.value.T, self.error.T, self.precision)
