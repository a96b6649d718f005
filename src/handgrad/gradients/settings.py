"""The network of an attempt that comes as arrays: sizes and layout from the shapes, the rest as stated."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.network import MLP
from handgrad.ops import activation as activation_op
from handgrad.ops import loss as loss_op

Floats = NDArray[Any]
DEFAULTS = {"activation": "relu", "output": "identity", "reduction": "mean"}
MOST_WORK = 5e7  # N times the weights: above this, other settings are not tried


@dataclass(frozen=True)
class Settings:
    """What the arrays do not say; None is not stated."""

    activation: str | None = None
    output: str | None = None
    loss: str | None = None
    reduction: str | None = None

    def check(self) -> None:
        """``ValueError`` for a stated word that is unknown, or an output that the loss does not take."""
        known = {
            "activation": activation_op.NAMES,
            "output": activation_op.NAMES,
            "loss": loss_op.NAMES,
            "reduction": loss_op.REDUCTIONS,
        }
        for name, words in known.items():
            stated = getattr(self, name)
            if stated is not None and stated not in words:
                raise ValueError(f"{name}: expected one of {', '.join(words)}, got {stated!r}")
        if self.loss is not None and self.output is not None:
            loss_op.check_names(self.loss, self.output, self.reduction or DEFAULTS["reduction"])

    def completed(self, y: Floats, C: int) -> Settings:
        """Every field set: relu, identity, mean; cross_entropy for labels of several classes, else mse."""
        labels = y.dtype.kind in "iu" and y.ndim == 1 and C > 1
        loss = self.loss or ("cross_entropy" if labels else "mse")
        return Settings(
            self.activation or DEFAULTS["activation"],
            self.output or DEFAULTS["output"],
            loss,
            self.reduction or DEFAULTS["reduction"],
        )

    def assumed(self, complete: Settings) -> str:
        """The fields that were not stated, with what was taken for them; "" if there is none."""
        names = [field.name for field in fields(self) if getattr(self, field.name) is None]
        if complete.loss != "mse" and "output" in names:
            names.remove("output")
        return ", ".join(f"{name} {getattr(complete, name)}" for name in names)

    def others(self, complete: Settings, y: Floats, C: int) -> Iterator[Settings]:
        """Every other setting of the fields that were not stated."""
        one_hot = y.ndim == 2 and C > 1 and bool(np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all())
        losses = [self.loss] if self.loss is not None else list(loss_op.NAMES)
        if self.loss is None and y.dtype.kind in "iu" and y.ndim == 1 and C > 1:
            losses = [name for name in losses if name not in loss_op.ELEMENTWISE]
        elif self.loss is None and not one_hot:
            losses = list(loss_op.ELEMENTWISE)
        activations = activation_op.NAMES if self.activation is None else (self.activation,)
        outputs = activation_op.NAMES if self.output is None else (self.output,)
        reductions = loss_op.REDUCTIONS if self.reduction is None else (self.reduction,)
        for activation, output, loss, reduction in product(activations, outputs, losses, reductions):
            other = Settings(activation, output, loss, reduction)
            if other != complete and (loss == "mse" or output == "identity"):
                yield other

    def differing(self, other: Settings) -> str:
        """The options that make ``other`` of these: ``--activation tanh --reduction sum``."""
        changed = [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]
        return " ".join(f"--{name} {getattr(other, name)}" for name in changed)

    def over(self, other: Settings) -> Settings:
        """These, and ``other`` where these are not stated."""
        stated = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(other, **stated)


def check_numbers(lr: float | None, weight_decay: float | None) -> None:
    """``ValueError`` for a learning rate or a weight decay that is none; None is not stated."""
    numbers = (int, float, np.number)
    if lr is not None and not (isinstance(lr, numbers) and 0 < lr < np.inf):
        raise ValueError(f"lr: expected a finite number above 0, got {lr!r}")
    if weight_decay is not None and not (isinstance(weight_decay, numbers) and 0 <= weight_decay < np.inf):
        raise ValueError(f"weight_decay: expected a finite number, 0 or above, got {weight_decay!r}")


def layout_of_weights(parameters: Mapping[str, Floats], inputs: int | None) -> str:
    """ "in,out" or "out,in", whichever chains from the inputs (None: any) through every W, the first if both.

    Raises ``ValueError`` where neither does.
    """
    layers = sorted(int(name[1:]) for name in parameters if re.fullmatch(r"W[1-9]\d*", name))
    if not layers or layers != list(range(1, len(layers) + 1)):
        got = ", ".join(parameters) or "none"
        raise ValueError(f"parameters: expected W1, b1, W2, b2, … without a gap, got {got}")
    for layer in layers:
        if parameters[f"W{layer}"].ndim != 2:
            raise ValueError(f"W{layer}: expected a matrix, got shape {parameters[f'W{layer}'].shape}")
    for layout, axis in (("in,out", 0), ("out,in", 1)):
        width = parameters["W1"].shape[axis] if inputs is None else inputs
        for layer in layers:
            W = parameters[f"W{layer}"]
            if W.shape[axis] != width:
                break
            width = W.shape[1 - axis]
        else:
            return layout
    shapes = ", ".join(f"W{layer} {parameters[f'W{layer}'].shape}" for layer in layers)
    start = "" if inputs is None else f" from X's {inputs} inputs"
    raise ValueError(f"parameters: expected weights that chain{start}, got {shapes}")


def network(parameters: Mapping[str, Floats], layout: str, settings: Settings) -> MLP:
    """A float64 network on the CPU with these parameters; a missing or None b is no bias."""
    weights = {
        name: W.T if layout == "out,in" else W
        for name, W in parameters.items()
        if re.fullmatch(r"W\d+", name)
    }
    sizes = [weights["W1"].shape[0], *(weights[f"W{layer}"].shape[1] for layer in range(1, len(weights) + 1))]
    biases = {name: b for name, b in parameters.items() if re.fullmatch(r"b\d+", name)}
    if biases and len(biases) != len(weights):
        raise ValueError(f"parameters: expected a bias for every layer or for none, got {', '.join(biases)}")
    for name, b in biases.items():
        width = sizes[int(name[1:])] if int(name[1:]) < len(sizes) else 0
        if b.size != width:
            raise ValueError(f"{name}: expected {width} numbers, got shape {b.shape}")
    net = MLP(
        sizes,
        activation=settings.activation or DEFAULTS["activation"],
        output=settings.output or DEFAULTS["output"],
        loss=settings.loss or "mse",
        reduction=settings.reduction or DEFAULTS["reduction"],
        bias=bool(biases),
        dtype="float64",
        device="cpu",
    )
    net.load_parameters({**weights, **{name: b.reshape(-1) for name, b in biases.items()}})
    return net
