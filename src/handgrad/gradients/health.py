"""What trains badly: warnings about a forward and a backward pass, each with what to try.

======================  ===============================================================================
``not-finite``          a NaN or an infinity anywhere
``unscaled-inputs``     root mean square of X above 10 or below 1e-3, or of one feature above 100 times the
                        median feature's
``unscaled-targets``    root mean square of y above 100, with mse
``dead-units``          more than 10 % of a ReLU layer's units are 0 for every sample (beyond the 2^-N that
                        chance makes of N samples)
``saturated-units``     more than 25 % of the outputs of a sigmoid or tanh layer are saturated: f' is below
                        4 % of its greatest value (sigmoid within 0.0101 of 0 or 1, tanh within 0.0202 of ±1)
``vanishing-gradient``  ‖dZ_l‖ is below 1e-2 of the last layer's, or the last layer's is 0
``exploding-gradient``  it is above 1e2 times the last layer's, or ‖dW_l‖ is above 10 ‖W_l‖: a step with a
                        learning rate of 0.1 would change W_l by more than its own size
======================  ===============================================================================

Layers are compared by norms: a ReLU network with He's initialization keeps the norm of dZ from layer to
layer, whatever its widths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from handgrad.gradients.formulas import backward_formulas, forward_formulas

if TYPE_CHECKING:
    from handgrad.network import MLP

Floats = NDArray[Any]

LEAST_INPUT_RMS, GREATEST_INPUT_RMS = 1e-3, 10.0
FEATURE_RATIO = 100.0
TARGET_RMS = 100.0
DEAD_UNITS = 0.10
SATURATED_SLOPE = 0.04  # of the steepest
SATURATED_SHARE = 0.25
VANISHING, EXPLODING = 1e-2, 1e2  # of the norm of the last layer's dZ
GRADIENT_OF_WEIGHTS = 10.0  # ‖dW‖ / ‖W‖

STEEPEST = {"sigmoid": 0.25, "tanh": 1.0}


@dataclass(frozen=True)
class HealthWarning:
    """Something that trains badly: what and where, the number against its threshold, and what to try."""

    id: str
    where: str
    message: str
    remedy: str
    value: float
    threshold: float


def inactive(function: str, A: Floats) -> NDArray[np.bool_]:
    """Where an output passes (nearly) no gradient back: dead, or saturated."""
    if function == "relu":
        return np.asarray(~(A > 0))
    if function not in STEEPEST:
        return np.zeros(A.shape, dtype=bool)
    slope = A * (1 - A) if function == "sigmoid" else (1 - A) * (1 + A)
    return np.asarray(slope < SATURATED_SLOPE * STEEPEST[function])


def rms(array: Floats, axis: int | None = None) -> Any:
    """The root mean square."""
    return np.sqrt(np.square(array.astype(np.float64)).mean(axis=axis))


def warnings_of(net: MLP, arrays: Mapping[str, Floats], y: Floats) -> Iterator[HealthWarning]:
    """Warnings about the parameters, intermediates and gradients in ``arrays`` (by name, dW1 and so on)."""
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        yield _not_finite(net, bad)
        return
    yield from _about_data(net, arrays["X"], y)
    for layer in range(1, net.layers + 1):
        last = layer == net.layers
        name, function = ("Y_hat", net.output) if last else (f"A{layer}", net.activation)
        yield from _about_activations(name, function, arrays[name])
    yield from _about_gradients(net, arrays)


def _not_finite(net: MLP, bad: list[str]) -> HealthWarning:
    first = min(bad, key=[*forward_formulas(net), *backward_formulas(net)].index)
    others = f", and so do {len(bad) - 1} arrays after it" if len(bad) > 1 else ""
    remedy = "scale the inputs, lower the learning rate, clip_norm=; weights with a NaN are lost: start again"
    message = f"{first} holds a NaN or an infinity{others}"
    return HealthWarning("not-finite", first, message, remedy, float(len(bad)), 0.0)


def _about_data(net: MLP, X: Floats, y: Floats) -> Iterator[HealthWarning]:
    remedy = "standardise each feature, (X - mean) / deviation; divide pixels by 255"
    size, features = float(rms(X)), rms(X, axis=0)
    used = features[features > 0]
    ratio = float(features.max() / np.median(used)) if used.size else 0.0
    if size > GREATEST_INPUT_RMS or 0 < size < LEAST_INPUT_RMS:
        message = f"the root mean square of X is {size:.3g}; the gradient of W1 is proportional to it"
        threshold = GREATEST_INPUT_RMS if size > GREATEST_INPUT_RMS else LEAST_INPUT_RMS
        yield HealthWarning("unscaled-inputs", "X", message, remedy, size, threshold)
    elif ratio > FEATURE_RATIO:
        feature = int(features.argmax())
        message = f"feature {feature} is {ratio:.3g} times the median feature, and so is its part of dW1"
        yield HealthWarning("unscaled-inputs", "X", message, remedy, ratio, FEATURE_RATIO)
    if net.loss_name == "mse" and rms(y) > TARGET_RMS:
        message = f"the root mean square of y is {rms(y):.3g}; with mse the gradients are proportional to it"
        remedy = "standardise the targets, and undo it on the predictions"
        yield HealthWarning("unscaled-targets", "y", message, remedy, float(rms(y)), TARGET_RMS)


def _about_activations(name: str, function: str, A: Floats) -> Iterator[HealthWarning]:
    off = inactive(function, A)
    N, H = A.shape
    dead = np.all(off, axis=0)
    threshold = DEAD_UNITS + 0.5**N
    if function == "relu" and dead.mean() > threshold:
        everywhere = "the only sample" if N == 1 else f"all {N} samples"
        message = f"{dead.sum()} of {H} ReLU units are 0 for {everywhere}: no gradient reaches them"
        remedy = "lower the learning rate, init='he' with biases of 0, softplus or tanh"
        yield HealthWarning("dead-units", name, message, remedy, float(dead.mean()), threshold)
    share = float(off.mean())
    if function in STEEPEST and share > SATURATED_SHARE:
        message = f"{share:.0%} of the {function} outputs are saturated: their slope is nearly 0"
        remedy = "init='glorot', scale the inputs, lower the learning rate, or relu"
        if name == "Y_hat":
            remedy = "loss='bce' on the logits, whose gradient does not vanish there; scale the inputs"
        yield HealthWarning("saturated-units", name, message, remedy, share, SATURATED_SHARE)


def _about_gradients(net: MLP, arrays: Mapping[str, Floats]) -> Iterator[HealthWarning]:
    norms = {layer: float(np.linalg.norm(arrays[f"dZ{layer}"])) for layer in range(1, net.layers + 1)}
    top, last = f"dZ{net.layers}", norms.pop(net.layers)
    if last == 0:
        message = f"{top} is 0: every sample is fitted, or the output passes nothing back"
        remedy = "nothing where the loss is 0; else look whether the output is dead or saturated"
        yield HealthWarning("vanishing-gradient", top, message, remedy, 0.0, VANISHING)
        return
    least, most = min(norms, key=norms.__getitem__, default=0), max(norms, key=norms.__getitem__, default=0)
    if norms and norms[least] < VANISHING * last:
        ratio = norms[least] / last
        message = f"the norm of dZ{least} is {ratio:.2g} of that of {top}: the lower layers hardly learn"
        if ratio == 0:
            message = f"dZ{least} is 0: no gradient reaches the lower layers"
        remedy = "init='he' with relu, init='glorot' with tanh; fewer layers; no sigmoid in hidden layers"
        yield HealthWarning("vanishing-gradient", f"dZ{least}", message, remedy, ratio, VANISHING)
    if norms and norms[most] > EXPLODING * last:
        ratio = norms[most] / last
        message = (
            f"the norm of dZ{most} is {ratio:.3g} times that of {top}: layers on the way back enlarge it"
        )
        remedy = "smaller initial weights (init='he', init='glorot'), clip_norm=, fewer layers"
        yield HealthWarning("exploding-gradient", f"dZ{most}", message, remedy, ratio, EXPLODING)
        return
    for layer in range(1, net.layers + 1):
        weight, gradient = (float(np.linalg.norm(arrays[f"{d}W{layer}"])) for d in ("", "d"))
        if weight > 0 and gradient > GRADIENT_OF_WEIGHTS * weight:
            ratio = gradient / weight
            message = (
                f"dW{layer} is {ratio:.3g} times as large as W{layer}: a step of 0.1 throws W{layer} away"
            )
            remedy = "scale inputs and targets, lower the learning rate, clip_norm="
            yield HealthWarning(
                "exploding-gradient", f"dW{layer}", message, remedy, ratio, GRADIENT_OF_WEIGHTS
            )
