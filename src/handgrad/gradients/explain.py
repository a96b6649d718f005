"""Every intermediate of a forward and a backward pass: formula, shape, size, and how healthy it looks.

``explain(net, X, y)`` runs one pass and returns an :class:`Explanation`: a row for each quantity with its
gradient, warnings with what to try (their thresholds: :mod:`handgrad.gradients.health`), and a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from handgrad.arrays import to_device, to_numpy
from handgrad.gradients.formulas import backward_formulas, forward_formulas, loss_formula
from handgrad.gradients.health import STEEPEST, HealthWarning, inactive, rms, warnings_of
from handgrad.samples import prepare

if TYPE_CHECKING:
    from handgrad.network import MLP

Floats = NDArray[Any]

COLUMNS = ("", "forward", "shape", "norm", "rms", "dead or saturated", "backward", "norm", "rms")


@dataclass(frozen=True)
class Quantity:
    """An array of the forward pass and its gradient; norms are Frobenius, rms is the root mean square.

    ``dead``: share of a ReLU's outputs that are 0; ``dead_units``: share of its units that are 0 for every
    sample; ``saturated``: share of a sigmoid's or tanh's outputs with a slope near 0; None where they do not
    apply
    """

    name: str
    formula: str
    shape: tuple[int, ...]
    norm: float
    rms: float
    least: float
    greatest: float
    dead: float | None = None
    dead_units: float | None = None
    saturated: float | None = None
    gradient_formula: str = ""
    gradient_norm: float | None = None
    gradient_rms: float | None = None

    @property
    def inactive(self) -> str:
        """The share that passes no gradient back, in words; "" where that means nothing."""
        if self.dead is not None:
            units = f", {self.dead_units:.0%} of units" if self.dead_units else ""
            return f"{self.dead:.0%} dead{units}"
        return "" if self.saturated is None else f"{self.saturated:.0%} saturated"


@dataclass(frozen=True)
class Layer:
    """What the picture shows of a layer of units."""

    name: str
    function: str
    values: Floats  # (H,) root mean square over the samples; the value itself where there is one sample
    gradients: Floats  # (H,) the same
    off: NDArray[np.bool_]  # (H,) dead or saturated for every sample


@dataclass(frozen=True)
class Explanation:
    """One pass, explained.  ``str()`` is a table; :meth:`draw` writes the picture."""

    network: str
    samples: int
    loss: float
    quantities: tuple[Quantity, ...]
    warnings: tuple[HealthWarning, ...]
    layers: tuple[Layer, ...] = field(repr=False)
    weights: tuple[tuple[Floats, Floats], ...] = field(repr=False)  # (W_l, dW_l)

    def __getitem__(self, name: str) -> Quantity:
        for quantity in self.quantities:
            if quantity.name == name:
                return quantity
        raise KeyError(f"{name}; there are {', '.join(quantity.name for quantity in self.quantities)}")

    def draw(self, path: str | Path) -> None:
        """Write the picture of the network, values in green and gradients in red, as PNG."""
        from handgrad.gradients.explain_drawing import draw

        draw(self, path)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {
            "network": self.network,
            "samples": self.samples,
            "loss": self.loss,
            "quantities": [asdict(quantity) for quantity in self.quantities],
            "warnings": [asdict(warning) for warning in self.warnings],
        }

    def rows(self) -> list[tuple[str, ...]]:
        """The table's cells under :data:`COLUMNS`: down for the forward pass, up for the backward pass."""
        return [_cells(quantity) for quantity in self.quantities]

    def __str__(self) -> str:
        rows = [COLUMNS, *self.rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"{self.network}; {self.samples:,} samples; loss {self.loss:.6g}"]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append("  ".join(cells).rstrip())
        lines += [f"{w.id} ({w.where}): {w.message}\n    try: {w.remedy}" for w in self.warnings]
        return "\n".join(lines)


def explain(net: MLP, X: Any, y: Any = None) -> Explanation:
    """Run ``net`` forward and backward on arrays X (N, D) and y, or on a data set X, and say what happens.

    Every intermediate is kept meanwhile, so give it some hundred samples, not millions.  Raises
    ``ValueError`` for data that do not fit the network.
    """
    samples = prepare(net, X, y)
    inputs = to_numpy(samples.X).astype(net.dtype) * net.dtype.type(samples.scale)
    inputs += net.dtype.type(samples.shift)
    with np.errstate(all="ignore"):  # an overflow is one of the findings
        loss, gradients = net.loss_and_grad(
            to_device(inputs, net.device), samples.y, intermediates=True, input_grad=True
        )
    arrays = {name: to_numpy(value) for name, value in gradients.intermediates.items()}
    arrays |= {name: to_numpy(value) for name, value in net.parameters.items()}
    arrays |= {f"d{name}": to_numpy(value) for name, value in gradients.items()}
    with np.errstate(all="ignore"):
        return Explanation(
            network=describe(net),
            samples=len(samples),
            loss=float(to_numpy(loss)),
            quantities=_quantities(net, arrays, float(to_numpy(loss))),
            warnings=tuple(warnings_of(net, arrays, to_numpy(samples.y))),
            layers=_layers(net, arrays),
            weights=tuple((arrays[f"W{n}"], arrays[f"dW{n}"]) for n in range(1, net.layers + 1)),
        )


def describe(net: MLP) -> str:
    """The network in a line: "784 → 50 relu → 10, cross_entropy (mean)"."""
    hidden = [f"{size} {net.activation}" for size in net.sizes[1:-1]]
    last = str(net.sizes[-1]) if net.output == "identity" else f"{net.sizes[-1]} {net.output}"
    return f"{' → '.join([str(net.sizes[0]), *hidden, last])}, {net.loss_name} ({net.reduction})"


def _quantities(net: MLP, arrays: Mapping[str, Floats], loss: float) -> tuple[Quantity, ...]:
    backward = backward_formulas(net)
    found = []
    for name, formula in forward_formulas(net).items():
        array, gradient = arrays[name].astype(np.float64), arrays.get(f"d{name}")
        found.append(
            Quantity(
                name,
                formula,
                array.shape,
                norm=float(np.linalg.norm(array)),
                rms=float(rms(array)),
                least=float(array.min()),
                greatest=float(array.max()),
                **_shares(_function_of(net, name), array),
                gradient_formula=backward.get(f"d{name}", ""),
                gradient_norm=None if gradient is None else float(np.linalg.norm(gradient.astype(float))),
                gradient_rms=None if gradient is None else float(rms(gradient)),
            )
        )
    size = abs(loss)
    return (*found, Quantity("loss", loss_formula(net), (), norm=size, rms=size, least=loss, greatest=loss))


def _function_of(net: MLP, name: str) -> str:
    """The activation whose output ``name`` is; "" for everything else."""
    return net.output if name == "Y_hat" else net.activation if name[0] == "A" else ""


def _shares(function: str, A: Floats) -> dict[str, float]:
    off = inactive(function, A)
    if function == "relu":
        return {"dead": float(off.mean()), "dead_units": float(np.all(off, axis=0).mean())}
    return {"saturated": float(off.mean())} if function in STEEPEST else {}


def _cells(quantity: Quantity) -> tuple[str, ...]:
    if quantity.name == "loss":
        return ("loss", quantity.formula, "", f"{quantity.greatest:.4g}", "", "", "", "", "")
    return (
        quantity.name,
        quantity.formula,
        " × ".join(map(str, quantity.shape)),
        f"{quantity.norm:.4g}",
        f"{quantity.rms:.4g}",
        quantity.inactive,
        quantity.gradient_formula,
        "" if quantity.gradient_norm is None else f"{quantity.gradient_norm:.4g}",
        "" if quantity.gradient_rms is None else f"{quantity.gradient_rms:.4g}",
    )


def _layers(net: MLP, arrays: Mapping[str, Floats]) -> tuple[Layer, ...]:
    names = [("X", "dX"), *((f"A{n}", f"dA{n}") for n in range(1, net.layers)), ("Y_hat", f"dZ{net.layers}")]
    found = []
    for name, gradient in names:
        function = _function_of(net, name)
        array, d = (arrays[key].astype(np.float64) for key in (name, gradient))
        one = len(array) == 1
        values, gradients = (array[0], d[0]) if one else (rms(array, axis=0), rms(d, axis=0))
        found.append(Layer(name, function, values, gradients, np.all(inactive(function, array), axis=0)))
    return tuple(found)
