"""A picture as PNG, as an SVG file, and as SVG inside a page that follows the reader's light or dark mode."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

from handgrad.plots import DOTS_PER_INCH, FAINT, INK, STYLE

Draw = Callable[[Any, bool], None]  # (figure, narrow): draws on a figure of the size that it was made with

# Colours of the pictures, and the names under which a page may change them.
AXIS = "#777777"
COLOURS = {
    INK: "--ink",
    FAINT: "--faint",
    AXIS: "--axis",
    "#c44e00": "--series-0",
    "#4c72b0": "--series-1",
    "#7f9fd6": "--series-2",
    "#2a9d6f": "--series-3",
    "#8a5fb0": "--series-4",
    "#b8860b": "--series-5",
    "#8c8c8c": "--series-6",
}
SERIES = tuple(colour for colour, name in COLOURS.items() if name.startswith("--series"))
FONTS = ["DejaVu Sans", "Verdana", "sans-serif"]  # of one width, so that labels fit in browsers as well

OURS: dict[str, Any] = {
    **STYLE,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.edgecolor": AXIS,
    "svg.fonttype": "none",  # letters stay letters
    "svg.hashsalt": "handgrad",
    "font.family": "sans-serif",
}


def png(draw: Draw, inches: tuple[float, float], title: str) -> bytes:
    """The picture on white, with its title."""
    return _save(draw, inches, narrow=False, kind="png", title=title)


def svg_file(draw: Draw, inches: tuple[float, float], title: str) -> str:
    """The picture on white, with its title, to stand alone."""
    return _save(draw, inches, narrow=False, kind="svg", title=title).decode()


def inline(draw: Draw, inches: tuple[float, float], *, name: str, words: str, narrow: bool) -> str:
    """An ``<svg>`` element for a page: transparent, ids that begin with ``name``, colours as CSS variables.

    ``words`` describe it to those who do not see it.
    """
    text = _save(draw, inches, narrow=narrow, kind="svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style type=\"text/css\">.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#{name}-\1"', text)
    for colour, variable in COLOURS.items():
        text = text.replace(colour, f"var({variable})")
    view = re.search(r'viewBox="[^"]+"', text)
    assert view is not None, "matplotlib gives every picture a viewBox"
    width = "narrow" if narrow else "wide"
    opening = (
        f'<svg {view[0]} class="{width}" role="img" aria-label="{_attribute(words)}" '
        'xmlns="http://www.w3.org/2000/svg">'
    )
    return opening + text[text.index(">") + 1 :].strip()


def _attribute(words: str) -> str:
    return words.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def _save(draw: Draw, inches: tuple[float, float], *, narrow: bool, kind: str, title: str = "") -> bytes:
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context(["default", OURS, {"font.sans-serif": FONTS}]):
        figure = Figure(figsize=inches, dpi=DOTS_PER_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        if title:
            figure.suptitle(title, fontsize=11, x=0.01, ha="left")
        draw(figure, narrow)
        content = io.BytesIO()
        nothing = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
        figure.savefig(content, format=kind, metadata=nothing, transparent=not title)
    return content.getvalue()
