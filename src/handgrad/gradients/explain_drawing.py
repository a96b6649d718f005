"""The network as a picture: values in green, gradients in red.

A layer of up to 8 units shows a circle for each, with its value above its gradient; a wider one a pair of
strips with a line for each unit, the darker the larger; inputs of 784 the image that they are.  Weights show
their norm, and where there are few of them each its own number.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from handgrad.circuit_drawing import GRADIENT, VALUE, number
from handgrad.plots import figure_at

if TYPE_CHECKING:
    from handgrad.gradients.explain import Explanation, Layer

CIRCLES = 8  # units; a wider layer is drawn as strips
NUMBERED = 12  # weights between two layers; more of them show no numbers
IMAGE = (28, 28)
PIXELS = IMAGE[0] * IMAGE[1]
SPACING, TALLEST, GAP, RADIUS, STRIP = 2.5, 3.6, 1.15, 0.34, 0.3  # inches
OFF, EDGE, FAINT, ALERT = "#d9d9d9", "#8a8a8a", "#eeeeee", "#a34700"
WARNINGS = 4  # lines below the picture


@dataclass(frozen=True)
class _Sheet:
    """Where it is drawn: axes in inches, and the height that the layers take, about 0."""

    axes: Any
    height: float

    @property
    def top(self) -> float:
        """The layers' upper end."""
        return self.height / 2


def draw(explained: Explanation, path: str | Path) -> None:
    """Write the picture to ``path`` as PNG."""
    layers = explained.layers
    most = max(len(layer.values) for layer in layers)
    height = TALLEST if most > CIRCLES else min(TALLEST, max(1.4, GAP * (most - 1) + 2 * RADIUS))
    shown = explained.warnings[:WARNINGS]
    left, right = -1.0, SPACING * (len(layers) - 1) + 2.2
    right = max(right, left + 7.6)
    bottom = -height / 2 - 0.95 - 0.24 * len(shown) - (0.24 if len(explained.warnings) > len(shown) else 0)
    top = height / 2 + 1.75
    with figure_at((right - left, top - bottom), path) as figure:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(left, right), ylim=(bottom, top))  # 1 is an inch
        axes.set_axis_off()
        sheet = _Sheet(axes, height)
        _draw_heading(axes, explained, left + 0.15, top)
        places = [_places(layer, height) for layer in layers]
        for n, (W, dW) in enumerate(explained.weights):
            _draw_weights(sheet, n, places, W, dW)
        for n, layer in enumerate(layers):
            _draw_layer(sheet, SPACING * n, layer, places[n], explained)
        _draw_loss(axes, SPACING * (len(layers) - 1), explained.loss)
        line = -height / 2 - 1.0
        for warning in shown:
            axes.text(left + 0.15, line, f"! {warning.where}: {warning.message}", color=ALERT, fontsize=9)
            line -= 0.24
        if len(explained.warnings) > len(shown):
            more = f"and {len(explained.warnings) - len(shown)} more"
            axes.text(left + 0.15, line, more, color=ALERT, fontsize=9)


def _draw_heading(axes: Any, explained: Explanation, x: float, top: float) -> None:
    samples = explained.samples
    counted = "1 sample" if samples == 1 else f"{samples:,} samples"
    axes.text(x, top - 0.27, f"{explained.network}; {counted}", fontsize=12, fontweight="bold")
    kind = "" if samples == 1 else ", root mean square over the samples"
    axes.text(x, top - 0.52, f"forward →  value{kind}", color=VALUE, fontsize=10)
    axes.text(x, top - 0.74, f"← backward  gradient of the loss{kind}", color=GRADIENT, fontsize=10)


def _places(layer: Layer, height: float) -> NDArray[np.float64] | None:
    """The heights of a layer's circles; None for strips."""
    count = len(layer.values)
    if count > CIRCLES:
        return None
    gap = min(GAP, (height - 2 * RADIUS) / max(count - 1, 1))
    return np.asarray((np.arange(count) - (count - 1) / 2) * -gap)


# ---- layers ----------------------------------------------------------------------------------------------


def _draw_layer(
    sheet: _Sheet, x: float, layer: Layer, places: NDArray[np.float64] | None, explained: Explanation
) -> None:
    axes = sheet.axes
    units = len(layer.values)
    kind = {"X": "input", "Y_hat": "output"}.get(layer.name, "unit")
    function = "" if layer.function in ("", "identity") else f"{layer.function}, "
    axes.text(x, sheet.top + 0.44, layer.name, fontsize=12, fontweight="bold", ha="center")
    words = f"{function}{units} {kind}{'s' if units > 1 else ''}"
    axes.text(x, sheet.top + 0.22, words, fontsize=9, ha="center", color="#555555")
    if places is not None:
        _draw_circles(axes, x, layer, places)
    elif layer.name == "X" and units == PIXELS:
        _draw_images(sheet, x, layer)
    else:
        _draw_strips(sheet, x, layer)
    quantity = explained[layer.name]
    gradient = explained[layer.name if layer.name != "Y_hat" else f"Z{len(explained.weights)}"]
    lines = [(f"rms {quantity.rms:.3g}", VALUE)]
    if gradient.gradient_rms is not None:
        of = "" if layer.name != "Y_hat" else f" (dZ{len(explained.weights)})"
        lines.append((f"rms {gradient.gradient_rms:.3g}{of}", GRADIENT))
    if quantity.dead or quantity.saturated:
        lines.append((quantity.inactive, "#555555"))
    for i, (text, colour) in enumerate(lines):
        axes.text(x, -sheet.top - 0.27 - 0.2 * i, text, color=colour, fontsize=9.5, ha="center")


def _draw_circles(axes: Any, x: float, layer: Layer, places: NDArray[np.float64]) -> None:
    from matplotlib.patches import Circle

    radius = min(RADIUS, 0.46 * abs(places[0] - places[1])) if len(places) > 1 else RADIUS
    size = 8.5 if radius == RADIUS else 7
    for y, value, gradient, off in zip(places, layer.values, layer.gradients, layer.off, strict=True):
        face = OFF if off else "white"
        axes.add_patch(Circle((x, y), radius, facecolor=face, edgecolor=EDGE, linewidth=1.3, zorder=3))
        text = {"fontsize": size, "ha": "center", "zorder": 4}
        axes.text(x, y + 0.03, number3(value), color=VALUE, va="bottom", **text)
        axes.text(x, y - 0.03, number3(gradient), color=GRADIENT, va="top", **text)


def _draw_strips(sheet: _Sheet, x: float, layer: Layer) -> None:
    axes, top = sheet.axes, sheet.top
    for side, values, colour in ((-1, layer.values, VALUE), (1, layer.gradients, GRADIENT)):
        start = x + (0 if side > 0 else -STRIP)
        _draw_shades(axes, np.abs(values)[:, None], (start, start + STRIP, -top, top), colour)
        edge = {"color": colour, "fontsize": 7, "ha": "left" if side > 0 else "right"}
        axes.text(x + 0.03 * side, top + 0.04, _greatest(values), **edge)
    line = sheet.height / len(layer.values)
    if layer.off.any() and line > 0.025:
        for unit in np.flatnonzero(layer.off):
            y = top - (unit + 0.5) * line
            axes.plot([x + STRIP + 0.03, x + STRIP + 0.12], [y, y], color="#333333", linewidth=1.2)
        word = "dead" if layer.function == "relu" else "saturated"
        first = top - (np.flatnonzero(layer.off)[0] + 0.5) * line
        axes.text(x + STRIP + 0.16, first, word, fontsize=8, va="center", color="#333333")


def _draw_images(sheet: _Sheet, x: float, layer: Layer) -> None:
    axes, half = sheet.axes, sheet.top - 0.12
    for values, y, colour in ((layer.values, 0.06, VALUE), (layer.gradients, -half - 0.06, GRADIENT)):
        extent = (x - half / 2, x + half / 2, y, y + half)
        _draw_shades(axes, np.abs(values).reshape(IMAGE), extent, colour)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        place = x + half / 2 - 0.05, y + half - 0.13
        axes.text(*place, _greatest(values), color=colour, fontsize=7, ha="right", bbox=box, zorder=5)


def _draw_shades(axes: Any, values: Any, extent: tuple[float, float, float, float], colour: str) -> None:
    """``values`` from white (0) to ``colour`` (the greatest), in a box."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    left, right, bottom, top = extent
    limits = axes.get_xlim(), axes.get_ylim()
    finite = np.where(np.isfinite(values), values, 0.0)
    axes.imshow(
        finite,
        cmap=LinearSegmentedColormap.from_list("shade", ["white", colour]),
        vmin=0.0,
        vmax=float(finite.max()) or 1.0,
        extent=extent,
        aspect="auto",
        interpolation="nearest",
        zorder=3,
    )
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])
    frame = Rectangle((left, bottom), right - left, top - bottom, fill=False, edgecolor=EDGE, linewidth=0.8)
    frame.set_zorder(4)
    axes.add_patch(frame)


def _greatest(values: Any) -> str:
    return f"≤ {number3(float(np.abs(values).max()))}"


# ---- weights and loss ------------------------------------------------------------------------------------


def _draw_weights(sheet: _Sheet, n: int, places: list[NDArray[np.float64] | None], W: Any, dW: Any) -> None:
    axes = sheet.axes
    x0, x1 = SPACING * n, SPACING * (n + 1)
    before, after = places[n], places[n + 1]
    if before is not None and after is not None:
        greatest = float(np.abs(W).max()) or 1.0
        for i, start in enumerate(before):
            for j, end in enumerate(after):
                width = 0.4 + 2.2 * abs(float(W[i, j])) / greatest
                axes.plot([x0, x1], [start, end], color="#c9ccd1", linewidth=width, zorder=1)
                if W.size <= NUMBERED:
                    _draw_weight(axes, (x0, x1), (start, end), i, W[i, j], dW[i, j])
        middle, height = (x0 + x1) / 2, sheet.top + 0.44
    else:
        middle, height = (
            _draw_fan(sheet, (x0, x1), (before, after), is_image=n == 0 and len(W) == PIXELS),
            0.3,
        )
    axes.text(middle, height, f"W{n + 1}", ha="center", fontsize=11, fontweight="bold")
    words = {"ha": "center", "fontsize": 9}
    if before is None or after is None:
        height -= 0.22
        axes.text(middle, height, f"{W.shape[0]} × {W.shape[1]}", color="#555555", **words)
    axes.text(middle, height - 0.22, f"norm {np.linalg.norm(W):.3g}", color=VALUE, **words)
    axes.text(middle, height - 0.42, f"norm {np.linalg.norm(dW):.3g}", color=GRADIENT, **words)


def _draw_fan(
    sheet: _Sheet,
    xs: tuple[float, float],
    places: tuple[NDArray[np.float64] | None, NDArray[np.float64] | None],
    is_image: bool,
) -> float:
    """A grey area from layer to layer for all the weights between them; its middle."""
    from matplotlib.patches import Polygon

    corners = []
    for x, heights, side in zip(xs, places, (1, -1), strict=True):
        inset = RADIUS if heights is not None else STRIP
        if is_image and side > 0:
            inset = (sheet.top - 0.12) / 2
        reach = sheet.top if heights is None else float(heights.max()) + RADIUS / 2
        corners.append((x + side * inset, reach))
    (a, high_a), (b, high_b) = corners
    fan = [(a, high_a), (b, high_b), (b, -high_b), (a, -high_a)]
    sheet.axes.add_patch(Polygon(fan, facecolor=FAINT, edgecolor="none", zorder=0))
    return (a + b) / 2


def _draw_weight(
    axes: Any, xs: tuple[float, float], ys: tuple[float, float], row: int, w: float, dw: float
) -> None:
    along = 0.32 if row % 2 == 0 else 0.56  # labels of neighbouring lines do not meet
    x = xs[0] + along * (xs[1] - xs[0])
    y = ys[0] + along * (ys[1] - ys[0])
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.9}
    axes.text(
        x, y + 0.07, number3(w), color=VALUE, fontsize=7.5, ha="center", va="center", bbox=box, zorder=2
    )
    axes.text(x, y - 0.07, number3(dw), color=GRADIENT, fontsize=7.5, ha="center", va="center", zorder=2.5)


def _draw_loss(axes: Any, x: float, loss: float) -> None:
    axes.annotate(
        "",
        (x + 1.15, 0.0),
        xytext=(x + RADIUS + 0.12, 0.0),
        arrowprops={"arrowstyle": "->", "color": EDGE, "linewidth": 1.4},
    )
    axes.text(x + 1.25, 0.03, "loss", fontsize=12, fontweight="bold", va="bottom")
    axes.text(x + 1.25, -0.03, number(loss), fontsize=11, color=VALUE, va="top")


def number3(value: float) -> str:
    """Three significant digits, with a true minus and a short exponent."""
    text = f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")
    return text.replace("-", "−")
