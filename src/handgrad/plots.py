"""Pictures of a training and of a classifier's mistakes; PNG, no display needed.

Lines and bars carry their names themselves: there is no legend to decode, and colours are only a second cue.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

TRAINING, VALIDATION = "#4c72b0", "#c44e00"  # told apart by colour-blind eyes, and by lightness in print
INK, FAINT = "#222222", "#d8d8d8"
DOTS_PER_INCH = 150
MOST_CELLS_WITH_COUNTS = 20  # classes; above this a confusion matrix is colours alone
LOGARITHMIC_FROM = 20.0  # greatest value over least

STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#777777",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
}


def curves(
    rows: Sequence[Mapping[str, Any]],
    path: str | Path,
    *,
    validation: str = "validation",
    best_epoch: int | None = None,
) -> None:
    """Loss, and accuracy where it is known, by epoch.

    ``rows``: one mapping an epoch with ``epoch`` and ``train_loss``, and perhaps ``validation_loss``,
    ``train_accuracy``, ``validation_accuracy`` (0 to 1); None and NaN leave a gap.  ``validation`` names the
    validation lines in the picture; ``best_epoch`` is marked.  A loss that changes by more than 20 times gets
    a logarithmic axis.
    """
    if not rows:
        raise ValueError("rows: expected at least one epoch, got none; train for an epoch first")
    epochs = np.array([row["epoch"] for row in rows], dtype=float)
    panels = []
    for figure_of, title in (("loss", "Loss"), ("accuracy", "Accuracy (%)")):
        lines = {}
        for part, name, colour in (
            ("validation", validation, VALIDATION),
            ("train", "training", TRAINING),  # thin and dashed, so it lies above
        ):
            values = _values(rows, f"{part}_{figure_of}") * (100.0 if figure_of == "accuracy" else 1.0)
            if np.isfinite(values).any():
                lines[name] = (values, colour)
        if lines or figure_of == "loss":
            panels.append((title, lines))
    with figure_at((4.6 * len(panels) + 0.6, 3.5), path) as figure:
        for axes, (title, lines) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            _draw_lines(axes, epochs, lines, title, best_epoch)


def _values(rows: Sequence[Mapping[str, Any]], key: str) -> Any:
    values = [row.get(key) for row in rows]
    return np.array([np.nan if value is None or not np.isfinite(value) else value for value in values], float)


def _draw_lines(
    axes: Any, epochs: Any, lines: Mapping[str, tuple[Any, str]], title: str, best_epoch: int | None
) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    axes.set_title(title)
    axes.set_xlabel("epoch")
    margin = max(1.0, epochs[-1] - epochs[0]) * 0.04 if len(epochs) > 1 else 1.0
    axes.set_xlim(epochs[0] - margin, epochs[-1] + margin)
    axes.grid(axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    marker = "o" if len(epochs) <= 20 else None
    for name, (values, colour) in lines.items():
        thin = name == "training"
        axes.plot(
            epochs,
            values,
            color=colour,
            linewidth=1.6 if thin else 2.4,
            linestyle=(0, (4, 1.5)) if thin and len(epochs) > 1 else "solid",
            marker=marker,
            markersize=3.5 if thin else 4.5,
        )
    if not lines:
        axes.text(0.5, 0.5, "not finite in any epoch", ha="center", transform=axes.transAxes)
        axes.set_yticks([])
        return
    every = np.concatenate([values[np.isfinite(values)] for values, _ in lines.values()])
    if title == "Loss" and every.min() > 0 and every.max() / every.min() > LOGARITHMIC_FROM:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if every.max() / every.min() < 500 else (1,)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title(f"{title} (logarithmic)")
    if len(epochs) == 1:
        axes.set_xticks(epochs)
    if title != "Loss":
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -2.0), min(high, 101.0))
    if best_epoch is not None:
        axes.axvline(best_epoch, color="#999999", linewidth=1.0, linestyle=(0, (2, 2)), zorder=1)
        left = best_epoch > np.mean(axes.get_xlim())
        top = title == "Loss"  # curves of the loss leave room at the top, those of the accuracy below
        axes.annotate(
            f"best: epoch {best_epoch}",
            (best_epoch, 1.0 if top else 0.0),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if left else 4, -2 if top else 3),
            textcoords="offset points",
            ha="right" if left else "left",
            va="top" if top else "bottom",
            fontsize=9,
            color="#666666",
        )
    _name_lines(axes, epochs, lines, ".3g" if title == "Loss" else ".2f")


def _name_lines(axes: Any, epochs: Any, lines: Mapping[str, tuple[Any, str]], digits: str) -> None:
    """Each line's name and last value to the right of the axes, moved apart where they would overlap."""
    last = {name: np.flatnonzero(np.isfinite(values))[-1] for name, (values, _) in lines.items()}
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = {
        name: float(to_axes.transform((epochs[last[name]], values[last[name]]))[1])
        for name, (values, _) in lines.items()
    }
    for name, height in spread(heights, gap=0.2).items():
        values, colour = lines[name]
        at_end = "" if last[name] == len(epochs) - 1 else f" (epoch {epochs[last[name]]:.0f})"
        axes.annotate(
            f"{name}\n{values[last[name]]:{digits}}{at_end}",
            (1.02, height),
            xycoords="axes fraction",
            color=colour,
            va="center",
            fontsize=10,
            linespacing=1.1,
            annotation_clip=False,
        )


def spread(heights: Mapping[str, float], gap: float) -> dict[str, float]:
    """``heights`` (0 to 1) in their order, moved as little as it takes to stand ``gap`` apart and inside."""
    names = sorted(heights, key=lambda name: heights[name])
    placed: dict[str, float] = {}
    floor = gap / 2
    for position, name in enumerate(names):
        room_above = gap * (len(names) - 1 - position)
        placed[name] = max(floor, min(heights[name], 1.0 - gap / 2 - room_above))
        floor = placed[name] + gap
    if len(names) == 2:  # share the move between the two, where there is room
        low, high = (heights[name] for name in names)
        if high - low < gap:
            middle = min(max((low + high) / 2, gap), 1.0 - gap)
            placed = {names[0]: middle - gap / 2, names[1]: middle + gap / 2}
    return placed


def confusion_matrix(counts: ArrayLike, path: str | Path, labels: Sequence[str] | None = None) -> None:
    """``counts`` (C, C): row = true class, column = predicted class, with each class's share right beside it.

    Right answers are blue, mistakes orange, the darker the greater their share of the true class; mistakes
    have a scale of their own, since a few in a hundred would not be seen on that of the right answers.
    """
    matrix = np.asarray(counts)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ValueError(f"counts: expected (C, C), got shape {matrix.shape}; rows are true classes")
    if matrix.dtype.kind not in "iu" or matrix.min() < 0:
        raise ValueError(
            f"counts: expected whole numbers of at least 0, got {matrix.dtype} with {matrix.min()}"
        )
    size = len(matrix)
    names = [str(i) for i in range(size)] if labels is None else [str(label) for label in labels]
    if len(names) != size:
        raise ValueError(f"labels: expected {size}, one a class, got {len(names)}")
    totals = matrix.sum(axis=1)
    shares = matrix / np.maximum(totals, 1)[:, None]
    right = np.eye(size, dtype=bool)
    worst = float(np.where(right, 0.0, shares).max()) or 1.0
    side = 1.9 + 0.46 * min(max(size, 5), 14)
    with figure_at((side + 0.9, side + 0.3), path) as figure:
        from matplotlib import colormaps
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots()
        cells = np.where(
            right[:, :, None],
            colormaps["Blues"](0.08 + 0.72 * shares),
            colormaps["Oranges"](np.where(matrix > 0, 0.08 + 0.62 * shares / worst, 0.0)),
        )
        cells[matrix == 0] = (0.975, 0.975, 0.975, 1.0)
        axes.imshow(cells, aspect="equal", interpolation="nearest")
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(length=0)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        total = int(matrix.sum())
        correct = int(np.trace(matrix))
        share = f"{100 * correct / total:.2f} % right" if total else "no samples"
        axes.set_title(f"{share} ({correct:,} of {total:,})", pad=10)
        if size > MOST_CELLS_WITH_COUNTS:
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(integer=True))
                axis.set_major_formatter(lambda value, _: names[int(value)] if 0 <= value < size else "")
            return
        turned = max(map(len, names)) * size > 11 * side  # letters that fit side by side
        axes.set_xticks(range(size), names, rotation=45 if turned else 0, ha="right" if turned else "center")
        axes.set_yticks(range(size), names)
        axes.set_xticks(np.arange(size - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(size - 1) + 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="minor", length=0)
        longest = len(f"{matrix.max():,}")
        for row, column in zip(*np.nonzero(matrix), strict=True):
            dark = row == column and shares[row, column] > 0.55
            dark = dark or (row != column and shares[row, column] / worst > 0.85)
            axes.text(
                column,
                row,
                f"{matrix[row, column]:,}",
                ha="center",
                va="center",
                fontsize=10 if longest < 5 else 8,
                color="white" if dark else INK,
                fontweight="bold" if row == column else "normal",
            )
        beside = {"textcoords": "offset points", "fontsize": 10, "color": TRAINING, "annotation_clip": False}
        axes.annotate("right", (1, 1), (7, 5), xycoords="axes fraction", va="bottom", **beside)
        for row in range(size):
            text = f"{100 * shares[row, row]:.1f} %" if totals[row] else "none"
            axes.annotate(text, (1, row), (7, 0), xycoords=("axes fraction", "data"), va="center", **beside)


def in_thousands(value: float) -> str:
    """Three digits with k, M or G: 1234567 → "1.23 M"."""
    for step, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= step * 0.9995:
            return f"{value / step:.3g}{unit}"
    return f"{value:.3g}"


@contextmanager
def figure_at(inches: tuple[float, float], path: str | Path) -> Iterator[Any]:
    """A figure in the house style, written to ``path`` as PNG when the block ends; pyplot is not involved."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    target = Path(path)
    if target.suffix.lower() != ".png":
        raise ValueError(f"path: expected a name that ends in .png, got {str(target)!r}")
    with style.context(["default", STYLE]):
        figure = Figure(figsize=inches, dpi=DOTS_PER_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        content = io.BytesIO()
        figure.savefig(
            content, format="png", metadata={"Software": None}, bbox_inches="tight", pad_inches=0.12
        )
    target.write_bytes(content.getvalue())
