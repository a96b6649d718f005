"""What a lesson leaves: its numbers beside the published ones, its checks, its pictures; it prints well."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from handgrad.circuits import Wire

MISPRINT = "misprint"


@dataclass(frozen=True)
class Row:
    """A number of the lesson; ``published`` is what its source prints ("" where it prints nothing)."""

    quantity: str
    here: float | str
    published: str = ""
    note: str = ""
    within: float = 0.0  # relative, for sources that compare so; else half a unit of the last printed digit

    @property
    def agrees(self) -> bool | None:
        """Whether the published digits are those of ``here``; None where there is nothing to compare."""
        digits = re.fullmatch(r"[−-]?\d+(?:\.(\d+))?", self.published)
        if digits is None or isinstance(self.here, str):
            return None
        published = float(self.published.replace("−", "-"))
        allowed = self.within * abs(published) or 0.5 * 10.0 ** -len(digits[1] or "") * (1 + 1e-9)
        return abs(self.here - published) <= allowed

    @property
    def is_misprint(self) -> bool:
        """Whether the published digits are wrong, and said to be."""
        return self.note.startswith(MISPRINT)


@dataclass(frozen=True)
class Check:
    """Something that the lesson claims and tries."""

    claim: str
    holds: bool


@dataclass
class Section:
    """A part of a lesson: words, a table of numbers, checks."""

    title: str
    text: str = ""
    rows: list[Row] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)


class Lesson:
    """A lesson that was run.

    ``lesson["slope at 0"]`` is the number of that row; ``passed`` says whether all checks hold and all
    published digits agree, but for those that are marked as misprints.
    """

    def __init__(self, name: str, title: str, source: str, link: str = "") -> None:
        self.name, self.title, self.source, self.link = name, title, source, link
        self.sections: list[Section] = []
        self.pictures: list[Path] = []
        self.numbers: dict[str, float | str] = {}

    # ---- telling it

    def section(self, title: str, text: str = "") -> None:
        """Begin a part; ``text`` may run over several lines."""
        self.sections.append(Section(title, " ".join(text.split())))

    def row(self, quantity: str, here: Any, published: str = "", note: str = "", within: float = 0.0) -> None:
        """A number (or a word) under a name of its own, beside what the source prints."""
        if quantity in self.numbers:
            raise ValueError(f"quantity: {quantity!r} is there already; give this one another name")
        value = here if isinstance(here, str) else float(here)
        self.numbers[quantity] = value
        self.sections[-1].rows.append(Row(quantity, value, published, note, within))

    def rows(self, quantity: str, values: Any, published: Sequence[str] = ()) -> None:
        """A row for each entry of a vector: "w[0]", "w[1]", …"""
        values = np.asarray(values).ravel()
        for i, value in enumerate(values):
            self.row(f"{quantity}[{i}]", value, published[i] if published else "")

    def check(self, claim: str, holds: Any) -> None:
        """A claim, and whether it held."""
        self.sections[-1].checks.append(Check(claim, bool(holds)))

    def draw_circuit(self, output: Wire, out: Path | None, file: str, title: str) -> None:
        """Draw a circuit into the folder ``out``, where there is one."""
        if out is not None:
            from handgrad.circuit_drawing import draw

            draw(output, out / file, title=title)
            self.pictures.append(out / file)

    # ---- what came of it

    def __getitem__(self, quantity: str) -> float | str:
        return self.numbers[quantity]

    @property
    def failures(self) -> list[str]:
        """Claims that do not hold, and published numbers that do not agree and are no known misprints."""
        found = [check.claim for section in self.sections for check in section.checks if not check.holds]
        for section in self.sections:
            for row in section.rows:
                if row.agrees is False and not row.is_misprint:
                    found.append(f"{row.quantity}: {shown(row.here)}, published {row.published}")
        return found

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {
            "name": self.name,
            "title": self.title,
            "source": self.source,
            "link": self.link,
            "passed": self.passed,
            "failures": self.failures,
            "sections": [
                {
                    "title": section.title,
                    "text": section.text,
                    "rows": [vars(row) | {"agrees": row.agrees} for row in section.rows],
                    "checks": [vars(check) for check in section.checks],
                }
                for section in self.sections
            ],
            "pictures": [str(path) for path in self.pictures],
        }

    def __str__(self) -> str:
        link = f" <{self.link}>" if self.link else ""
        lines = [self.title, "=" * len(self.title), f"after: {self.source}{link}"]
        for section in self.sections:
            lines += ["", section.title, "-" * len(section.title)]
            lines += _wrapped(section.text)
            lines += _table(section.rows)
            for check in section.checks:
                lines += _wrapped(f"  {'ok    ' if check.holds else 'FAILED'}  {check.claim}", " " * 10)
        lines += ["", *(f"picture: {path}" for path in self.pictures)] if self.pictures else []
        lines += ["", *(f"FAILED: {failure}" for failure in self.failures)] if self.failures else []
        return "\n".join(lines)


def shown(value: float | str) -> str:
    """A number with ten digits after the point or, if it is large or small, ten significant ones."""
    if isinstance(value, str):
        return value
    if value == 0 or not math.isfinite(value) or value == round(value):
        return f"{value:g}"
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:.10f}".rstrip("0").rstrip(".")
    return re.sub(r"\.?0*e", "e", f"{value:.9e}")


def _table(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    notes = any(row.note for row in rows)
    published = any(row.published for row in rows)
    cells = [("", "here", *(("published", "") if published else ()), *(("",) if notes else ()))]
    for row in rows:
        mark = {True: "=", False: "≠", None: ""}[row.agrees]
        beside = (row.published, mark) if published else ()
        cells.append((row.quantity, shown(row.here), *beside, *((row.note,) if notes else ())))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    found = []
    for line in cells:
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        found.append(("  " + "  ".join(padded)).rstrip())
    return found


def _wrapped(text: str, indent: str = "") -> list[str]:
    import textwrap

    return textwrap.wrap(text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
