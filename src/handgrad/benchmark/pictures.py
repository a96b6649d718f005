"""The pictures of a report, drawn from its JSON document; each in a wide form and in one for a phone.

Only measured figures are drawn; a predicted one would be hollow and say so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from handgrad.benchmark.report import OWN, ms
from handgrad.benchmark.stages import STAGES
from handgrad.benchmark.svg import AXIS, SERIES, Draw
from handgrad.plots import FAINT, INK, in_thousands, spread

WIDE, NARROW = 7.4, 3.75  # inches

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """A picture: file stem, title, what it shows in words, how to draw it, and its two heights in inches."""

    name: str
    title: str
    words: str
    draw: Draw
    wide_height: float
    narrow_height: float

    @property
    def wide(self) -> tuple[float, float]:
        return WIDE, self.wide_height

    @property
    def narrow(self) -> tuple[float, float]:
        return NARROW, self.narrow_height


def pictures(document: Row) -> list[Picture]:
    """Every picture for which the document has figures."""
    from handgrad.benchmark import scaling_pictures

    found = [
        _shapes(document),
        _sweep(document, "batch", "samples", "Throughput by batch size", "rows in a batch"),
        _sweep(document, "hidden", "hidden", "Throughput by hidden units", "hidden units"),
        _roofline(document),
        _stages(document),
    ]
    return [picture for picture in found if picture is not None] + scaling_pictures.pictures(document)


def colour_of(peer: str, device: str) -> str:
    """One colour a library; this one's GPUs have a colour of their own."""
    order = ("handgrad", "torch-eager", "torch-compiled", "jax")
    if peer == OWN and device != "cpu":
        return SERIES[4]
    if device != "cpu":
        return SERIES[5]
    return SERIES[order.index(peer)] if peer in order else SERIES[6]


def label(row: Row, rows: Iterable[Row]) -> str:
    """The library's name, and the device where there are several."""
    several = len({other["device"] for other in rows}) > 1
    return f"{row['name']}, {row['device']}" if several else str(row["name"])


# ---- samples a second of every network -----------------------------------------------------------------


def _shapes(document: Row) -> Picture | None:
    rows = [row for row in document["results"] if row["group"] in ("shapes", "epoch")]
    if not rows:
        return None
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["workload"], []).append(row)
    lines = [len(members) for members in groups.values()]

    def draw(figure: Any, narrow: bool) -> None:
        columns = 1 if narrow or len(groups) == 1 else 2
        count = -(-len(groups) // columns)
        axes = figure.subplots(count, columns, squeeze=False, gridspec_kw={"hspace": 0.08})
        flat = list(axes.T.ravel() if columns == 1 else axes.ravel())
        for panel, (name, members) in zip(flat, groups.items(), strict=False):
            _bars(panel, name, sorted(members, key=lambda row: row["milliseconds"]["median"]), rows)
        for panel in flat[len(groups) :]:
            panel.set_visible(False)

    height = 0.62 + 0.21 * max(lines)
    return Picture(
        "throughput",
        "Samples a second",
        "Bars: samples a second of every library on every network, medians with quartiles. "
        + "; ".join(
            f"{row['workload']}, {row['name']} on {row['device']}: {row['samples_per_second']['median']:,.0f}"
            for row in rows
        ),
        draw,
        height * -(-len(groups) // 2) + 0.1,
        height * len(groups) + 0.1,
    )


def _bars(axes: Any, name: str, members: Sequence[Row], rows: Sequence[Row]) -> None:
    largest = max(row["samples_per_second"]["high"] for row in members)
    for y, row in enumerate(members):
        found = row["samples_per_second"]
        median, own = found["median"], row["peer"] == OWN
        axes.barh(y, median, height=0.7, color=colour_of(row["peer"], row["device"]))
        axes.plot([found["low"], found["high"]], [y, y], color=INK, linewidth=1.1, solid_capstyle="butt")
        axes.annotate(
            in_thousands(median),
            (max(median, found["high"]), y),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            fontweight="bold" if own else "normal",
            color=INK,
        )
    axes.set_title(re.sub(r" of [0-9,]+ rows$", "", name), fontsize=9)
    axes.set_yticks(range(len(members)), [label(row, rows) for row in members], fontsize=8)
    axes.set_ylim(len(members) - 0.45, -0.55)
    axes.set_xlim(0, largest * 1.28)
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0)
    axes.spines["bottom"].set_visible(False)


# ---- sweeps --------------------------------------------------------------------------------------------


def _sweep(document: Row, group: str, key: str, title: str, axis: str) -> Picture | None:
    rows = [row for row in document["results"] if row["group"] == group]
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        lines.setdefault((row["peer"], row["device"]), []).append(row)
    if not any(len(members) > 1 for members in lines.values()):
        return None
    shape = rows[0]
    fixed = (
        f"{shape['inputs']}→{shape['hidden']}→{shape['outputs']}"
        if key == "samples"
        else f"{shape['samples']:,}×{shape['inputs']}→H→{shape['outputs']}"
    )

    def draw(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        ends = {}
        for (peer, device), members in lines.items():
            ordered = sorted(members, key=lambda row: row[key])
            x = [row[key] for row in ordered]
            y = [row["samples_per_second"]["median"] for row in ordered]
            low = [row["samples_per_second"]["low"] for row in ordered]
            high = [row["samples_per_second"]["high"] for row in ordered]
            colour, own = colour_of(peer, device), peer == OWN
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(
                x, y, color=colour, linewidth=2.4 if own else 1.5, marker="o", markersize=4 if own else 3
            )
            ends[label(ordered[0], rows)] = (y[-1], colour, own)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        values = sorted({row[key] for row in rows})
        shown = values[:: 2 if narrow and len(values) > 5 else 1]
        axes.set_xticks(shown, [f"{value:,}" for value in shown])
        axes.minorticks_off()
        thousands(axes.yaxis, rows_limits=axes.get_ylim())
        axes.grid(axis="y")
        axes.set_xlabel(axis)
        axes.set_title(f"{fixed}, samples a second" + ("" if narrow else " (logarithmic)"), fontsize=9)
        name_ends(figure, axes, ends, gap=0.085 if narrow else 0.07)

    return Picture(
        group,
        title,
        f"Lines: samples a second of {fixed} by {axis}, median and quartiles. "
        + "; ".join(
            f"{row['name']} on {row['device']} at {row[key]}: {row['samples_per_second']['median']:,.0f}"
            for row in rows
        ),
        draw,
        3.5,
        3.3,
    )


def thousands(axis: Any, rows_limits: tuple[float, float]) -> None:
    """Ticks at 1, 2 and 5 of every power of ten, or fewer over a wide range, as 20 k."""
    from matplotlib.ticker import LogLocator, NullFormatter

    wide = rows_limits[1] / rows_limits[0] > 500
    axis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    axis.set_major_formatter(lambda value, _: in_thousands(value))
    axis.set_minor_formatter(NullFormatter())


def name_ends(figure: Any, axes: Any, ends: Mapping[str, tuple[float, str, bool]], gap: float) -> None:
    """Each line's name at the right of the axes at the height of its last value, moved apart."""
    figure.canvas.draw()  # limits are known now
    heights = {
        name: float(axes.transAxes.inverted().transform(axes.transData.transform((1.0, value)))[1])
        for name, (value, _, _) in ends.items()
    }
    for name, height in spread(heights, gap=gap).items():
        _, colour, own = ends[name]
        axes.annotate(
            name, (1.02, height), xycoords="axes fraction", color=colour, va="center", fontsize=8,
            fontweight="bold" if own else "normal", annotation_clip=False,
        )  # fmt: skip


# ---- roofline ------------------------------------------------------------------------------------------


def _roofline(document: Row) -> Picture | None:
    """Operations a second over operations a compulsory byte, under the measured ceilings."""
    rows = [row for row in document["results"] if row["group"] == "shapes" and row["peer"] == OWN]
    roofs = {}
    for one in document["contestants"]:
        square, bandwidth = one.get("square_product"), document["bandwidth"].get(one["device"])
        if one["peer"] == OWN and square and bandwidth:
            roofs[one["device"]] = (square["best"], bandwidth["read"] / 1e9)
    rows = [row for row in rows if row["device"] in roofs]
    if not rows:
        return None

    def draw(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        intensity = [row["flops"] / row["compulsory_bytes"] for row in rows]
        knees = [rate / bandwidth for rate, bandwidth in roofs.values()]
        left, right = min(intensity + knees) / 2, max(intensity + knees) * (2.2 if narrow else 1.8)
        for device, (rate, bandwidth) in roofs.items():
            knee = rate / bandwidth
            x = np.array([min(left, knee / 2), knee, max(right, knee * 2)])
            axes.plot(x, np.minimum(rate, bandwidth * x), color=AXIS, linewidth=1.4)
            axes.annotate(
                f"{device}: own SGEMM, at best {rate:,.0f} GFLOP/s",
                (right, rate), (-2, 3), textcoords="offset points", ha="right", fontsize=8, color=AXIS,
            )  # fmt: skip
            axes.annotate(
                f"read {bandwidth:,.1f} GB/s", (left * 1.15, bandwidth * left * 1.15), (6, -2),
                textcoords="offset points", fontsize=8, color=AXIS, va="top",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(left, right)
        lowest = min(row["gflops"] for row in rows)
        highest = max([row["gflops"] for row in rows] + [rate for rate, _ in roofs.values()])
        axes.set_ylim(
            min(lowest / 2.2, min(bandwidth * left for _, bandwidth in roofs.values())), highest * 1.6
        )
        for axis in (axes.xaxis, axes.yaxis):
            thousands(axis, (1.0, 100.0))
        axes.grid(color=FAINT)
        figure.canvas.draw()
        _points(axes, rows, intensity, narrow)
        axes.set_xlabel("operations a compulsory byte (logarithmic)")
        axes.set_title("GFLOP/s of a step (logarithmic)", fontsize=9)

    return Picture(
        "roofline",
        "Roofline",
        "Points: operations a second of each step over its operations a compulsory byte, below the lines of "
        "memory bandwidth and of the square matrix product, both measured in the same run. "
        + "; ".join(
            f"{row['workload']} on {row['device']}: {row['gflops']:.1f} GFLOP/s at "
            f"{row['flops'] / row['compulsory_bytes']:.1f} operations a byte"
            for row in rows
        ),
        draw,
        3.9,
        4.2,
    )


def _points(axes: Any, rows: Sequence[Row], intensity: Sequence[float], narrow: bool) -> None:
    """A dot each, named by a number on it whose meaning stands below the axes."""
    placed: list[tuple[float, float]] = []
    names = []
    for number, (row, x) in enumerate(zip(rows, intensity, strict=True), 1):
        axes.plot([x], [row["gflops"]], "o", color=colour_of(OWN, row["device"]), markersize=5)
        here = axes.transData.transform((x, row["gflops"]))
        offset = next(
            (dx, dy)
            for dx, dy in ((6, 4), (6, -10), (-12, 4), (-12, -10), (6, 14), (6, -20))
            if all(math.hypot(here[0] + 2 * dx - a, here[1] + 2 * dy - b) > 22 for a, b in placed)
            or (dx, dy) == (6, -20)
        )
        placed.append((here[0] + 2 * offset[0], here[1] + 2 * offset[1]))
        axes.annotate(
            str(number), (x, row["gflops"]), offset, textcoords="offset points", fontsize=9, fontweight="bold"
        )
        device = "" if row["device"] == "cpu" else f", {row['device']}"
        names.append(f"{number}  {row['workload']}{' ' + row['regime'] if row['regime'] else ''}{device}")
    columns = 1 if narrow else 2
    each = -(-len(names) // columns)
    for column in range(columns):
        axes.annotate(
            "\n".join(names[column * each : (column + 1) * each]),
            (column / columns, 0.0), (0, -34), xycoords="axes fraction", textcoords="offset points",
            va="top", fontsize=8, linespacing=1.35, annotation_clip=False,
        )  # fmt: skip


# ---- stages --------------------------------------------------------------------------------------------


def _stages(document: Row) -> Picture | None:
    rows = [row for row in document["stages"] if row["stages"]]
    if not rows:
        return None
    steps = {
        (row["workload"], row["device"]): row["milliseconds"]["median"]
        for row in document["results"]
        if row["peer"] == OWN and row["group"] == "shapes"
    }

    def draw(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        several = len({row["device"] for row in rows}) > 1
        for y, row in enumerate(rows):
            taken = {s["name"]: float(np.median(s["seconds"])) * 1e3 for s in row["stages"]}
            together, left = sum(taken.values()), 0.0
            for number, name in enumerate(STAGES):
                width = 100.0 * taken.get(name, 0.0) / together
                axes.barh(y, width, left=left, height=0.5, color=SERIES[number % len(SERIES)])
                left += width
            step = steps.get((row["workload"], row["device"]))
            words = f"{row['workload']}{', ' + row['device'] if several else ''}"
            times = f"stages {ms(together)} ms" + ("" if step is None else f", step {ms(step)} ms")
            axes.text(0, y - 0.34, words, fontsize=8, fontweight="bold", va="bottom")
            axes.text(100, y - 0.34, times, fontsize=8, va="bottom", ha="right")
        axes.set_ylim(len(rows) - 0.6, -0.75)
        axes.set_xlim(0, 100)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f} %")
        from matplotlib.patches import Patch

        keys = [Patch(color=SERIES[i % len(SERIES)], label=name) for i, name in enumerate(STAGES)]
        figure.legend(
            handles=keys, loc="outside lower center", ncols=4 if narrow else 7, frameon=False, fontsize=8,
            handlelength=1.0, columnspacing=1.1,
        )  # fmt: skip

    return Picture(
        "stages",
        "Time by stage",
        "Stacked bars: the share of each stage, each timed alone over the whole batch. "
        + "; ".join(
            f"{row['workload']} on {row['device']}: "
            + ", ".join(f"{s['name']} {ms(float(np.median(s['seconds'])) * 1e3)} ms" for s in row["stages"])
            for row in rows
        ),
        draw,
        0.75 + 0.52 * len(rows),
        0.95 + 0.55 * len(rows),
    )
