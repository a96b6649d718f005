"""A picture of a diagnosis: for each parameter the ratio to the right gradient and the size of the error.

Left: given / right, white where it is 1: a constant factor is one flat colour, a missing mask is speckled.
Right: |given - right| as a share of the greatest right entry, logarithmic, blank where it is right.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from handgrad.gradients.report import Comparison, Diagnosis

LEAST_ERROR = 1e-4  # errors below this share of the greatest entry share the palest colour
FLAT = 1e-3  # share of the gradient that a constant factor may leave
RIGHT, WRONG, UNDEFINED = "#2a7f4f", "#b03030", "#c8c8c8"


def draw(diagnosis: Diagnosis, path: str | Path) -> None:
    """Write the picture to ``path`` (PNG, PDF or SVG by its ending); no display is needed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    items = [*diagnosis.parameters.values()] or [*diagnosis.intermediates.values()]
    if not items:
        raise ValueError("picture: there is no gradient to draw; the code raised before it gave one")
    heights = [_height(item) for item in items]
    figure = Figure(figsize=(11, 1.6 + sum(heights)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(items), 2, squeeze=False, gridspec_kw={"height_ratios": heights})
    figure.suptitle(_headline(diagnosis), fontsize=13, fontweight="bold", x=0.01, ha="left")
    ratio_image = error_image = None
    for (left, right), item in zip(rows, items, strict=True):
        for axes in (left, right):
            axes.set_xticks([])
            axes.set_yticks([])
        colour = RIGHT if item.correct else WRONG
        left.set_title(f"{item.name} {_shape(item)}: {_verdict(item)}", loc="left", fontsize=11, color=colour)
        if item.wrong is None:
            _write(left, f"shape {item.shape} instead of {item.expected_shape}")
            right.axis("off")
            continue
        ratio_image = _ratio(left, item)
        right.set_title(_size(item), loc="left", fontsize=11, color=colour)
        error_image = _error(right, item)
        for axes in (left, right):
            _label(axes, item)
    if ratio_image is not None and error_image is not None:
        bar = figure.colorbar(
            ratio_image, ax=rows[:, 0], location="bottom", shrink=0.7, aspect=40, extend="both"
        )
        bar.set_ticks([-1, 0, 1, 2, 3], labels=["-1", "0", "1 (right)", "2", "3"])
        bar.set_label("ratio given / right (grey: the right one is 0)")
        bar = figure.colorbar(
            error_image, ax=rows[:, 1], location="bottom", shrink=0.7, aspect=40, extend="both"
        )
        bar.set_label("error, as a share of the greatest right entry (blank: right)")
    figure.savefig(path)


def _headline(diagnosis: Diagnosis) -> str:
    if diagnosis.correct:
        return "The gradient is right"
    top = [cause.id for cause in diagnosis.causes if not cause.alternative]
    return "The gradient is wrong" + (f": {', '.join(top)}" if top else "")


def _height(item: Comparison) -> float:
    if item.wrong is None:
        return 0.7
    return 2.4 if min(_grid(item.right).shape) > 1 else 0.55


def _shape(item: Comparison) -> str:
    return "×".join(map(str, item.expected_shape))


def _verdict(item: Comparison) -> str:
    if item.correct:
        return "right"
    if item.wrong is None or item.ratio is None:
        return "wrong"
    off = float(np.linalg.norm(item.given - item.ratio * item.right))
    flat = off <= FLAT * float(np.linalg.norm(item.given))
    return f"wrong, {item.ratio:.4g} times the right one" if flat else "wrong, by no constant factor"


def _size(item: Comparison) -> str:
    if item.correct:
        return "no error beyond rounding"
    return (
        f"{item.wrong_entries} of {item.right.size} entries wrong, relative error {item.relative_error:.2g}"
    )


def _write(axes: Any, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=WRONG, fontsize=11)
    for spine in axes.spines.values():
        spine.set_color(WRONG)


def _grid(array: Any) -> Any:
    """As a matrix: a vector is one row."""
    return array.reshape(1, -1) if array.ndim < 2 else array if array.shape[1] > 1 else array.T


def _ratio(axes: Any, item: Comparison) -> Any:
    from matplotlib import colormaps

    right, given = _grid(item.right), _grid(item.given)
    scale = float(np.max(np.abs(right), initial=0.0))
    with np.errstate(all="ignore"):
        ratio = np.where(np.abs(right) > 1e-9 * scale, given / right, np.nan)
    colours = colormaps["PuOr"].with_extremes(bad=UNDEFINED)
    return axes.imshow(
        np.ma.masked_invalid(ratio), cmap=colours, vmin=-1, vmax=3, aspect="auto", interpolation="nearest"
    )


def _error(axes: Any, item: Comparison) -> Any:
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    right, given = _grid(item.right), _grid(item.given)
    scale = float(np.max(np.abs(right), initial=0.0)) or 1.0
    with np.errstate(all="ignore"):
        error = np.abs(given - right) / scale
    error = np.where(np.isfinite(error), np.maximum(error, LEAST_ERROR), 10.0)
    colours = colormaps["YlOrRd"].with_extremes(bad="white")
    assert item.wrong is not None
    shown = np.ma.masked_where(~_grid(item.wrong), error)
    norm = LogNorm(vmin=LEAST_ERROR, vmax=10)
    return axes.imshow(shown, cmap=colours, norm=norm, aspect="auto", interpolation="nearest")


def _label(axes: Any, item: Comparison) -> None:
    """Which way the units lie."""
    matrix = item.right.ndim == 2
    if not matrix or item.right.shape[1] > 1:
        axes.set_xlabel("unit", fontsize=9)
        if matrix and item.right.shape[0] > 1:
            axes.set_ylabel("input" if item.name.startswith("W") else "sample", fontsize=9)
    else:
        axes.set_xlabel("input" if item.name.startswith("W") else "sample", fontsize=9)
