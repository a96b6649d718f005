"""A circuit as a picture: values in green above the wires, gradients in red below them.

Gates stand in columns, by the longest way from an input.  Within a column their order is that of the mean
height of their neighbours (the barycentre heuristic of Sugiyama, Tagawa and Toda 1981), and a wire that
passes a column has a place of its own there, so that it does not run through a gate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handgrad.circuits import Wire, flows, wires
from handgrad.plots import figure_at

VALUE, GRADIENT = "#1a7f37", "#c62828"
LINE, GATE = "#9a9a9a", "#eef1f6"
COLUMN, ROW = 1.75, 0.95  # inches
RADIUS = 0.24
SWEEPS, SETTLING = 12, 400


@dataclass(eq=False)
class _Place:
    """A wire's gate or input in the picture, or the point where it passes a column."""

    wire: Wire
    column: int
    left: list[_Place] = field(default_factory=list)
    right: list[_Place] = field(default_factory=list)
    y: float = 0.0

    @property
    def passes(self) -> bool:
        """A mere point on a long wire."""
        return bool(self.left) and self.left[0].wire is self.wire


def draw(output: Wire, path: str | Path, *, title: str | None = None) -> None:
    """Write the circuit of ``output`` to ``path`` as PNG; run :func:`handgrad.circuits.backward` before.

    Where a wire forks, each branch shows at its end, small, what it brings back to the sum.
    """
    columns = _columns(output)
    _arrange(columns)
    places = [place for column in columns for place in column]
    xs, ys = zip(*(_point(place) for place in places), strict=True)
    left, right = min(xs) - 0.55, max(xs) + RADIUS + 0.85
    bottom, top = min(ys) - 0.55, max(ys) + 0.85 + (0.3 if title else 0.0)
    with figure_at((right - left, top - bottom), path) as figure:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(left, right), ylim=(bottom, top))  # 1 is an inch
        axes.set_axis_off()
        if title:
            axes.text(left + 0.1, top - 0.22, title, fontsize=12, fontweight="bold")
        line = top - (0.52 if title else 0.22)
        axes.text(left + 0.1, line, "value", color=VALUE, fontsize=10)
        axes.text(left + 0.6, line, "gradient of the output", color=GRADIENT, fontsize=10)
        for place in places:
            for further in place.right:
                _draw_line(axes, place, further)
        for place in places:
            if not place.passes:
                _draw_place(axes, place, place.wire is output)


# ---- places ----------------------------------------------------------------------------------------------


def _columns(output: Wire) -> list[list[_Place]]:
    order = wires(output)
    column: dict[int, int] = {}
    for wire in order:
        column[wire.serial] = 1 + max((column[s.serial] for s in wire.sources), default=-1)
    for wire in order:  # an input stands just left of the first gate that takes it
        users = [column[user.serial] for user in order if wire in user.sources]
        if wire.gate is None and users:
            column[wire.serial] = min(users) - 1
    columns: list[list[_Place]] = [[] for _ in range(column[output.serial] + 1)]
    placed: dict[int, _Place] = {}
    for wire in order:
        placed[wire.serial] = place = _Place(wire, column[wire.serial])
        columns[place.column].append(place)
        for source in dict.fromkeys(wire.sources):
            near = placed[source.serial]
            while near.column < place.column - 1:  # one point in each column between, shared by branches
                further = next((p for p in near.right if p.wire is source), None)
                if further is None:
                    further = _Place(source, near.column + 1, [near])
                    near.right.append(further)
                    columns[further.column].append(further)
                near = further
            near.right.append(place)
            place.left.append(near)
    return columns


def _arrange(columns: list[list[_Place]]) -> None:
    """Set every y: few crossings first, then close to the neighbours, at least 1 apart."""
    for column in columns:
        _number(column)
    best, least = [list(column) for column in columns], _crossings(columns)
    for sweep in range(SWEEPS):
        forward = sweep % 2 == 0
        for column in columns if forward else columns[::-1]:
            column.sort(key=lambda place: _mean(place.left if forward else place.right, place.y))
            _number(column)
        if _crossings(columns) < least:
            best, least = [list(column) for column in columns], _crossings(columns)
    for column, order in zip(columns, best, strict=True):
        column[:] = order
        _number(column)
    for sweep in range(SETTLING):
        for column in columns if sweep % 2 else columns[::-1]:
            wanted = [_mean(5 * place.left + place.right, place.y) for place in column]  # straight ahead
            for place, y in zip(column, _apart(wanted), strict=True):
                place.y = y


def _number(column: list[_Place]) -> None:
    for i, place in enumerate(column):
        place.y = i - (len(column) - 1) / 2


def _mean(places: list[_Place], default: float) -> float:
    return sum(place.y for place in places) / len(places) if places else default


def _crossings(columns: list[list[_Place]]) -> int:
    lines = [[(p.y, q.y) for p in column for q in p.right] for column in columns]
    return sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for pairs in lines for a in pairs for b in pairs) // 2


def _apart(wanted: list[float]) -> list[float]:
    """The heights nearest to ``wanted`` (least squares), in this order and at least 1 apart."""
    blocks: list[list[float]] = []  # [sum of wanted - position in the block, count]
    for i, height in enumerate(wanted):
        blocks.append([height - i, 1.0])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            total, members = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += members
    heights = [total / members for total, members in blocks for _ in range(int(members))]
    return [height + i for i, height in enumerate(heights)]


# ---- drawing ---------------------------------------------------------------------------------------------


def _point(place: _Place) -> tuple[float, float]:
    return COLUMN * place.column, -ROW * place.y


def _draw_line(axes: Any, left: _Place, right: _Place) -> None:
    (x0, y0), (x1, y1) = _point(left), _point(right)
    x0 += 0.0 if left.passes else RADIUS + 0.62  # behind the label
    x1 -= 0.0 if right.passes else RADIUS
    axes.plot([x0, x1], [y0, y1], color=LINE, linewidth=1.4, zorder=1, solid_capstyle="round")
    if not left.passes:
        axes.plot([x0 - 0.62, x0], [y0, y0], color=LINE, linewidth=1.4, zorder=1)
    if not right.passes and len(_ends(_start(left))) > 1:  # the wire forks
        for source, flow in zip(right.wire.sources, flows(right.wire), strict=True):
            if source is left.wire:
                along = 0.62
                axes.text(
                    x0 + along * (x1 - x0),
                    y0 + along * (y1 - y0),
                    number(flow),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=GRADIENT,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
                    zorder=2,
                )


def _start(place: _Place) -> _Place:
    while place.passes:
        place = place.left[0]
    return place


def _ends(place: _Place) -> list[_Place]:
    found: list[_Place] = []
    for right in place.right:
        found += _ends(right) if right.passes and right.wire is place.wire else [right]
    return found


def _draw_place(axes: Any, place: _Place, is_output: bool) -> None:
    from matplotlib.patches import Circle

    x, y = _point(place)
    wire = place.wire
    text = {"ha": "center", "va": "center", "zorder": 4}
    if wire.gate is None:
        axes.text(x, y, wire.name, fontsize=13, fontstyle="italic", **text)
    else:
        axes.add_patch(Circle((x, y), RADIUS, facecolor=GATE, edgecolor="#555555", linewidth=1.2, zorder=3))
        symbol = wire.gate.symbol
        axes.text(x, y, symbol, fontsize=14 if len(symbol) == 1 else 9.5, **text)
        if wire.name:
            axes.text(
                x, y + RADIUS + 0.04, wire.name, fontsize=11, fontstyle="italic", ha="center", va="bottom"
            )
    beside = x + RADIUS + 0.31
    axes.text(beside, y + 0.05, number(wire.value), color=VALUE, fontsize=10, ha="center", va="bottom")
    axes.text(beside, y - 0.06, number(wire.gradient), color=GRADIENT, fontsize=10, ha="center", va="top")
    if is_output:
        axes.plot([x + RADIUS, x + RADIUS + 0.62], [y, y], color=LINE, linewidth=1.4, zorder=1)


def number(value: float) -> str:
    """Four significant digits, with a true minus."""
    return f"{value:.4g}".replace("-", "−")
