"""Pictures of scaling: time over rows, hidden units and threads, with the fitted exponent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from handgrad.benchmark import pictures as drawing
from handgrad.benchmark.report import ms, paired
from handgrad.benchmark.svg import AXIS, SERIES
from handgrad.plots import in_thousands

TITLES = {"rows": "Time by rows", "hidden": "Time by hidden units", "threads": "Time by threads"}
AXES = {"rows": "rows", "hidden": "hidden units", "threads": "threads"}

Row = Mapping[str, Any]


def pictures(document: Row) -> list[drawing.Picture]:
    """A picture for each quantity over which at least two points were measured."""
    found = []
    for over, title in TITLES.items():
        curves = [
            curve for curve in document["scaling"] if curve["over"] == over and len(curve["points"]) > 1
        ]
        if curves:
            found.append(_picture(over, title, curves))
    return found


def exponent_words(curve: Row) -> str:
    """As "t ∝ N^0.98 ± 0.01 from 10,000 on"."""
    fit = curve["fit"]
    letter = {"rows": "N", "hidden": "H"}.get(curve["over"], "x")
    return (
        f"t ∝ {letter}^{fit['exponent']:.2f} ± {fit['standard_error']:.2f} from {fit['from']:,.0f} on"
        if fit
        else ""
    )


def in_memory_words(curve: Row) -> str:
    """Mapped rows against rows in memory, of the same epoch; "" where that was not measured."""
    found = curve.get("in_memory")
    if not found or not found["mapped"] or not found["in_memory"]:
        return ""
    ratio = paired(found["in_memory"], found["mapped"])
    return (
        f"{found['rows']:,} rows mapped from a disk take {ratio['median']:.2f} times "
        f"({ratio['low']:.2f} – {ratio['high']:.2f}) as long as in memory"
    )


def _picture(over: str, title: str, curves: list[Row]) -> drawing.Picture:
    def draw(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        names = []
        for number, curve in enumerate(curves):
            colour = SERIES[(0, 1, 3)[number % 3]]
            x = np.array([point["x"] for point in curve["points"]], dtype=float)
            y = np.array([point["milliseconds"]["median"] for point in curve["points"]])
            low = [point["milliseconds"]["low"] for point in curve["points"]]
            high = [point["milliseconds"]["high"] for point in curve["points"]]
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(x, y, color=colour, linewidth=2.0, marker="o", markersize=4)
            if curve["fit"]:
                fit = curve["fit"]
                axes.plot(
                    x,
                    1e3 * fit["factor"] * x ** fit["exponent"],
                    color=AXIS,
                    linewidth=1.1,
                    linestyle=(0, (4, 2)),
                )
            if over == "threads":
                axes.plot(x, y[0] * x[0] / x, color=AXIS, linewidth=1.1, linestyle=(0, (4, 2)))
            names.append((curve["what"].removeprefix("a step of "), colour))
        axes.set_xscale("log", base=2 if over != "rows" else 10)
        axes.set_yscale("log")
        values = sorted({int(point["x"]) for curve in curves for point in curve["points"]})
        axes.set_xticks(values, [in_thousands(value) if over == "rows" else f"{value:,}" for value in values])
        axes.minorticks_off()
        drawing.thousands(axes.yaxis, axes.get_ylim())
        axes.grid(axis="y")
        axes.set_xlabel(AXES[over])
        words = exponent_words(curves[0])
        axes.set_title(
            "milliseconds (logarithmic)" + (f"; {words}" if words and not narrow else ""), fontsize=9
        )
        if words and narrow:
            axes.annotate(words, (0.02, 0.97), xycoords="axes fraction", va="top", fontsize=8, color=AXIS)
        if len(names) > 1:
            for number, (name, colour) in enumerate(names):
                axes.annotate(
                    name, (0.98, 0.97 - 0.09 * number), xycoords="axes fraction", va="top", ha="right",
                    color=colour, fontsize=8, fontweight="bold",
                )  # fmt: skip

    words = "; ".join(
        f"{curve['what']}: "
        + ", ".join(f"{point['x']:,}: {ms(point['milliseconds']['median'])} ms" for point in curve["points"])
        for curve in curves
    )
    return drawing.Picture(
        f"scaling-{over}", title, f"Lines: milliseconds over {AXES[over]}. {words}", draw, 3.3, 3.1
    )
