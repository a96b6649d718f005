"""What the kernels of a two-layer training step should compute: loss and gradients, with bounds on the error.

The whole step in a wider type, errors passed on from one product to the next (``proof/roundoff.py``).  Where
rounding may decide on which side of a kink an element falls, its derivative may be 0 or 1, and the bound
says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.proof import reference
from handgrad.proof.roundoff import PRECISIONS, SUM_CONSTANT, Bounded

Floats = NDArray[Any]


@dataclass(frozen=True)
class Step:
    """Loss, gradients by parameter, and what lies between them."""

    loss: Bounded
    gradients: dict[str, Bounded]
    A1: Bounded
    dZ1: Bounded


@np.errstate(all="ignore")  # infinities and NaNs go the way that they go in the kernel
def step(
    X: Bounded,
    y: NDArray[Any],
    parameters: Mapping[str, Floats | Bounded],
    activation: str,
    output: str,
    loss: str,
    reduction: str,
    precision: str = "",
    second: str = "",
) -> Step:
    """One step; ``parameters``: W1, W2, and b1, b2 where there is a bias.

    ``precision``: "tf32", "3xtf32" or "bfloat16" where X W1 and Xᵀ dZ1 are products of operands so rounded;
    ``second``: the same of A1 W2, A1ᵀ dZ2 and dZ2 W2ᵀ.
    """
    exact = {name: reference.exact(value) for name, value in parameters.items()}
    p = X.precision
    X = operand(X, precision)
    Z1 = product(X, operand(exact["W1"], precision))
    if "b1" in exact:
        Z1 = Z1 + exact["b1"]
    A1 = _forward(Z1, activation)
    W2 = operand(exact["W2"], second)
    Z2 = product(operand(A1, second), W2)
    if "b2" in exact:
        Z2 = Z2 + exact["b2"]
    N, C = Z2.value.shape
    count = N * C if loss in ("mse", "bce") else N
    scale = Bounded.exact(1.0, p)
    if reduction == "mean":
        scale = Bounded.constant(1.0 / count, p) if count else Bounded.exact(math.nan, p)
    total, dZ2 = _loss(Z2, y, loss, output, scale)
    dZ1 = _backward(Z1, A1, product(operand(dZ2, second), W2.T), activation)
    gradients = {"W1": product(X.T, operand(dZ1, precision)), "b1": dZ1.sum(axis=0)}
    gradients |= {"W2": product(operand(A1, second).T, operand(dZ2, second)), "b2": dZ2.sum(axis=0)}
    return Step(total * scale, {name: gradients[name] for name in parameters}, A1, dZ1)


# Bits of the significand that an operand keeps; 3xtf32 loses what the small parts give with each other.
OPERAND_BITS = {"tf32": 11, "3xtf32": 23, "bfloat16": 8}


def operand(x: Bounded, precision: str) -> Bounded:
    """x as a product on tensor cores takes it: what has no error is rounded itself, else the error grows."""
    if precision not in OPERAND_BITS:
        return x
    bits = OPERAND_BITS[precision]
    if precision == "3xtf32" or x.error.any():
        return Bounded(x.value, x.error + 2.0**-bits * (abs(x.value) + x.error), x.precision)
    fraction, exponent = np.frexp(abs(x.value))
    scaled = np.ldexp(fraction, bits)
    nearest = (
        np.floor(scaled + 0.5) if precision == "tf32" else np.rint(scaled)
    )  # halves: away from 0, to even
    return Bounded(np.copysign(np.ldexp(nearest, exponent - bits), x.value), x.error, x.precision)


def product(a: Bounded, b: Bounded) -> Bounded:
    """The matrix product of numbers with errors: those passed on, and 4 √K u (|A| |B|) of its own."""
    p = a.precision
    A, B, eA, eB = (part.astype(np.float64) for part in (a.value, b.value, a.error, b.error))
    K = A.shape[1]
    magnitude = abs(A) @ abs(B)
    passed = eA @ abs(B) + abs(A) @ eB + eA @ eB
    own = SUM_CONSTANT * math.sqrt(K) * p.u * magnitude + K * p.smallest_normal
    return Bounded((A @ B).astype(p.wide), passed + own, p)


def _forward(z: Bounded, name: str) -> Bounded:
    a = reference.ACTIVATIONS[name](z)
    if name != "relu":
        return a
    return Bounded(a.value, np.where(z.value < -z.error, 0, a.error), a.precision)  # surely 0


def _backward(z: Bounded, a: Bounded, da: Bounded, name: str) -> Bounded:
    dz = reference.DERIVATIVES[name](a, da)
    if name != "relu":
        return dz
    uncertain = abs(z.value) <= z.error
    return Bounded(dz.value, dz.error + np.where(uncertain, abs(da.value) + da.error, 0), dz.precision)


def _loss(z: Bounded, y: NDArray[Any], name: str, output: str, scale: Bounded) -> tuple[Bounded, Bounded]:
    if name == "mse":
        predicted = _forward(z, output)
        residual = predicted - reference.exact(y)
        return (residual * residual).sum(), _backward(z, predicted, 2 * residual * scale, output)
    if name == "bce":
        return reference._bce(z, reference.exact(y), scale)
    rows = reference._cross_entropy if name == "cross_entropy" else reference._hinge
    return reference._of_rows(z, y, rows, scale)


def inputs(X: NDArray[Any], dtype: str, scale: float, shift: float) -> Bounded:
    """X as the products take it: ``X * scale + shift`` where it is stored as uint8."""
    p = PRECISIONS[dtype]
    if X.dtype != np.uint8:
        return reference.exact(X)
    return Bounded.exact(X.astype(p.wide), p) * Bounded.constant(scale, p) + Bounded.constant(shift, p)
