"""What every kernel should compute: the formulas once more, in a wider type, with the bound on the error.

Written from the documentation of the kernels alone; nothing here calls or copies the code of the ops.  Inputs
are arrays of the kernel's type, so they are rounded already.  Every function answers with
:class:`~handgrad.proof.roundoff.Bounded` numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.proof.roundoff import PRECISIONS, Bounded

Floats = NDArray[Any]
Bools = NDArray[np.bool_]


def exact(values: Floats | Bounded) -> Bounded:
    """Inputs of a kernel: without error, but that a subnormal one may be taken as 0; a Bounded stays."""
    if isinstance(values, Bounded):
        return values
    precision = PRECISIONS[values.dtype.name]
    wide = values.astype(precision.wide)
    return Bounded(wide, np.where(abs(wide) < precision.smallest_normal, abs(wide), 0), precision)


# ---- activation ------------------------------------------------------------------------------------------


def _softplus(z: Bounded) -> Bounded:
    return z.positive() + (-abs(z)).exp().log1p()


ACTIVATIONS: dict[str, Callable[[Bounded], Bounded]] = {
    "identity": lambda z: z,
    "relu": Bounded.positive,
    "sigmoid": lambda z: 1 / (1 + (-z).exp()),
    "tanh": Bounded.tanh,
    "softplus": _softplus,
}

# da ∘ f'(z), from a = f(z).  The derivative of relu selects: 0 wherever a > 0 does not hold.
DERIVATIVES: dict[str, Callable[[Bounded, Bounded], Bounded]] = {
    "identity": lambda a, da: da,
    "relu": lambda a, da: da.where(a.value > 0),
    "sigmoid": lambda a, da: da * (a * (1 - a)),
    "tanh": lambda a, da: da * ((1 - a) * (1 + a)),
    "softplus": lambda a, da: da * -(-a).expm1(),
}


def activation_forward(z: Floats, name: str) -> Bounded:
    """a = f(z)."""
    return ACTIVATIONS[name](exact(z))


def activation_backward(a: Floats, da: Floats, name: str) -> Bounded:
    """dz = da ∘ f'(z)."""
    return DERIVATIVES[name](exact(a), exact(da))


# ---- linear ----------------------------------------------------------------------------------------------


def linear_forward(X: Floats, W: Floats, b: Floats | None, activation: str) -> Bounded:
    """f(X W + b)."""
    z = exact(X) @ exact(W)
    return ACTIVATIONS[activation](z if b is None else z + exact(b))


def linear_backward_input(dZ: Floats, W: Floats, A: Floats | None, activation: str) -> Bounded:
    """(dZ Wᵀ) ∘ f'(A)."""
    dA = exact(dZ) @ exact(W).T
    return dA if A is None else DERIVATIVES[activation](exact(A), dA)


def linear_backward_weight(X: Floats, dZ: Floats) -> tuple[Bounded, Bounded]:
    """Xᵀ dZ and the sum of dZ over the samples."""
    return exact(X).T @ exact(dZ), exact(dZ).sum(axis=0)


def reduce_partials(partials: Floats) -> Bounded:
    """The sum of S partial results, (S, elements)."""
    return exact(partials).sum(axis=0)


# ---- loss ------------------------------------------------------------------------------------------------


def loss(
    Z: Floats | Bounded, y: NDArray[Any], name: str, output: str, reduction: str
) -> tuple[Bounded, Bounded]:
    """The loss and dZ."""
    z = Z if isinstance(Z, Bounded) else exact(Z)
    precision = z.precision
    count = z.value.size if name in ("mse", "bce") else z.value.shape[0]
    scale = Bounded.exact(1.0, precision)
    if reduction == "mean":
        scale = Bounded.constant(1.0 / count, precision) if count else Bounded.exact(math.nan, precision)
    total, dZ = (
        _mse(z, exact(y), output, scale)
        if name == "mse"
        else _bce(z, exact(y), scale)
        if name == "bce"
        else _of_rows(z, y, _cross_entropy if name == "cross_entropy" else _hinge, scale)
    )
    return total * scale, dZ


def _mse(z: Bounded, y: Bounded, output: str, scale: Bounded) -> tuple[Bounded, Bounded]:
    predicted = ACTIVATIONS[output](z)
    residual = predicted - y
    return (residual * residual).sum(), DERIVATIVES[output](predicted, 2 * residual * scale)


def _bce(z: Bounded, y: Bounded, scale: Bounded) -> tuple[Bounded, Bounded]:
    terms = z.positive() - z * y + (-abs(z)).exp().log1p()
    return terms.sum(), (ACTIVATIONS["sigmoid"](z) - y) * scale


Rows = Callable[[Bounded, Bools, Bounded], tuple[Bounded, Bounded]]


def _of_rows(z: Bounded, labels: NDArray[Any], rows: Rows, scale: Bounded) -> tuple[Bounded, Bounded]:
    """The loss of each row with its label, summed; a label outside 0 .. C-1 makes its row NaN."""
    C = z.value.shape[1]
    known = (labels >= 0) & (labels < C)
    is_label = np.arange(C) == np.where(known, labels, 0)[:, None]  # (N, C)
    losses, dZ = rows(z, is_label, scale)
    losses.value[~known] = math.nan
    dZ.value[~known] = math.nan
    return losses.sum(), dZ


def _cross_entropy(z: Bounded, is_label: Bools, scale: Bounded) -> tuple[Bounded, Bounded]:
    p = z.precision
    largest = Bounded.exact(z.value.max(axis=1, keepdims=True), p)  # whatever it is, it cancels
    weights = (z - largest).exp()
    denominator = weights.sum(axis=1, keepdims=True)
    of_label = Bounded(z.value[is_label][:, None], z.error[is_label][:, None], p)
    losses = denominator.log() + (largest - of_label)
    probability = weights / denominator
    less_one = probability - 1
    value = np.where(is_label, less_one.value, probability.value)
    error = np.where(is_label, less_one.error, probability.error)
    return losses, Bounded(value, error, p) * scale


def _hinge(z: Bounded, is_label: Bools, scale: Bounded) -> tuple[Bounded, Bounded]:
    p = z.precision
    margin = z - Bounded(z.value[is_label][:, None], z.error[is_label][:, None], p) + 1
    violated = ~(margin.value <= 0) & ~is_label  # a NaN margin counts
    uncertain = (abs(margin.value) <= margin.error) & ~is_label  # rounding may decide either way
    losses = margin.where(violated | uncertain).positive().sum(axis=1)
    value, error = (
        np.where(is_label, sign * mask.sum(axis=1, keepdims=True), mask).astype(p.wide)
        for mask, sign in ((violated, -1), (uncertain, 1))
    )
    return losses, Bounded(value, error, p) * scale


# ---- batch -----------------------------------------------------------------------------------------------


def gather(X: NDArray[Any], order: NDArray[Any], scale: float, shift: float, dtype: np.dtype[Any]) -> Bounded:
    """X[order] scale + shift, in ``dtype``."""
    p = PRECISIONS[dtype.name]
    rows = Bounded.exact(X[order].astype(np.longdouble), p)
    if X.dtype.itemsize > dtype.itemsize:
        rows = rows.rounded()
    return rows * Bounded.constant(scale, p) + Bounded.constant(shift, p)


# ---- optimizer -------------------------------------------------------------------------------------------


def squares(g: Floats, owner: NDArray[np.intp], blocks: int) -> Bounded:
    """The sums of g² in float64; element i belongs to block owner[i], or to none where that is below 0."""
    terms = np.square(g.astype(np.longdouble))
    mine = [terms[owner == block] for block in range(blocks)]
    parts = [Bounded.exact(part, PRECISIONS["float64"]).rounded().sum() for part in mine]
    value, error = (np.array([getattr(part, of) for part in parts]) for of in ("value", "error"))
    return Bounded(value, error, PRECISIONS["float64"])


def clip_factor(g: Floats, clip_norm: float | None) -> Bounded:
    """min(1, clip_norm / (‖g‖ + 1e-6)), computed in float64 and rounded; ``g`` without what is frozen."""
    own, double = PRECISIONS[g.dtype.name], PRECISIONS["float64"]
    if clip_norm is None:
        return Bounded.exact(1.0, own)
    norm = Bounded.exact(np.square(g.astype(double.wide)), double).rounded().sum().sqrt()
    factor = clip_norm / (norm + 1e-6)
    if factor.value > 1:
        return Bounded.exact(1.0, own)
    return Bounded(factor.value.astype(own.wide), factor.error, own).rounded()


def optimizer_update(
    settings: Mapping[str, Any],
    w: Floats | Bounded,
    g: Floats | Bounded,
    states: Mapping[str, Floats | Bounded],
    t: int,
    factor: Bounded | None = None,
) -> tuple[Bounded, dict[str, Bounded]]:
    """Step number ``t`` (from 1) of the optimizer that ``settings`` describes: the new w and state.

    ``settings``: the ``config()`` of the optimizer; ``factor``: of :func:`clip_factor`, if clipped.
    """
    weight, gradient = exact(w), exact(g)
    own, double = weight.precision, PRECISIONS["float64"]

    def constant(number: float | Bounded) -> Bounded:
        """A hyperparameter: prepared in float64, then rounded."""
        prepared = number if isinstance(number, Bounded) else Bounded.exact(number, double)
        return Bounded(prepared.value.astype(own.wide), prepared.error, own).rounded()

    def correction(beta: float) -> Bounded:
        """1 - betaᵗ without cancellation."""
        return -(Bounded.exact(beta, double).log() * t).expm1()

    gradient = gradient if factor is None else gradient * factor
    lr, decay = settings["lr"], settings["weight_decay"]
    if settings["optimizer"] == "AdamW":
        weight = weight * constant(1 - Bounded.exact(lr, double) * decay)
    elif decay:
        gradient = gradient + constant(decay) * weight
    if settings["optimizer"] == "SGD":
        if not settings["momentum"]:
            return weight - constant(lr) * gradient, {}
        mu = constant(settings["momentum"])
        velocity = mu * exact(states["momentum"]) + gradient
        direction = gradient + mu * velocity if settings["nesterov"] else velocity
        return weight - constant(lr) * direction, {"momentum": velocity}
    beta1, beta2 = settings["beta1"], settings["beta2"]
    m = exact(states["first_moment"])
    m = m + constant(1 - beta1) * (gradient - m)
    v = constant(beta2) * exact(states["second_moment"]) + constant(1 - beta2) * (gradient * gradient)
    denominator = v.sqrt() / constant(correction(beta2).sqrt()) + constant(settings["eps"])
    step = constant(lr / correction(beta1)) * (m / denominator)
    return weight - step, {"first_moment": m, "second_moment": v}
