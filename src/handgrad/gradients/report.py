"""What :func:`handgrad.diagnose` returns, and how it prints."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
WIDTH = 96


@dataclass(frozen=True)
class Comparison:
    """One given array beside the right one.

    ``relative_error`` is ‖given - right‖ / ‖right‖, inf where the shapes differ or an entry is not finite.
    ``ratio`` is the constant c that brings c · right nearest to the given array.  ``wrong`` marks the entries
    that differ by more than rounding explains, in the right array's shape; None where the shapes differ.
    """

    name: str
    correct: bool
    relative_error: float
    shape: tuple[int, ...]
    expected_shape: tuple[int, ...]
    ratio: float | None
    given: Floats = field(repr=False)
    right: Floats = field(repr=False)
    wrong: NDArray[np.bool_] | None = field(repr=False)

    @property
    def wrong_entries(self) -> int | None:
        """How many entries are wrong; None where the shapes differ."""
        return None if self.wrong is None else int(self.wrong.sum())

    def to_dict(self) -> dict[str, Any]:
        """For JSON: numbers that JSON does not know are None."""
        return {
            "correct": self.correct,
            "relative_error": _finite(self.relative_error),
            "ratio": _finite(self.ratio),
            "wrong_entries": self.wrong_entries,
            "entries": int(self.right.size),
            "shape": list(self.shape),
            "expected_shape": list(self.expected_shape),
        }


@dataclass(frozen=True)
class Cause:
    """A mistake that explains the attempt, alone or ``together_with`` others.

    ``id`` is a name from the table of mistakes, or "unknown".  ``residual`` is what it leaves unexplained, as
    a share of the given gradient; ``confidence`` lies between 0 and 1.  ``explanation`` has the wrong line in
    it, ``correction`` the right one.  ``experiment`` tells it from causes that give the same numbers.
    """

    id: str
    parameters: tuple[str, ...]
    residual: float
    confidence: float
    explanation: str
    correction: str
    experiment: str = ""
    together_with: tuple[str, ...] = ()
    alternative: bool = False  # not part of the likeliest explanation

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "id": self.id,
            "confidence": round(self.confidence, 4),
            "residual": _finite(self.residual),
            "explanation": self.explanation + (f" To tell: {self.experiment}." if self.experiment else ""),
            "correction": self.correction,
            "parameters": list(self.parameters),
        }


@dataclass(frozen=True)
class Diagnosis:
    """The finding: ``print`` it.

    ``correct``: every given array is right within rounding.  ``parameters``: name (W1, b1, …) → comparison.
    ``intermediates``: the same for Z1, A1, …, dZ1 where they were given; ``first_wrong`` is then the first
    value, in the order of computation, that differs.  ``causes``: likeliest first.  ``notes``: what was
    assumed.
    """

    correct: bool
    parameters: Mapping[str, Comparison]
    causes: Sequence[Cause]
    intermediates: Mapping[str, Comparison] = field(default_factory=dict)
    first_wrong: str | None = None
    notes: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON: correct, parameters, causes; intermediates and first_wrong where any were given."""
        report: dict[str, Any] = {
            "correct": self.correct,
            "parameters": {name: comparison.to_dict() for name, comparison in self.parameters.items()},
            "causes": [cause.to_dict() for cause in self.causes],
        }
        if self.intermediates:
            report["intermediates"] = {name: item.to_dict() for name, item in self.intermediates.items()}
            report["first_wrong"] = self.first_wrong
        return report

    def plot(self, path: str | Path) -> None:
        """Write a picture of each parameter's ratio and error map (see :mod:`handgrad.gradients.picture`)."""
        from handgrad.gradients import picture

        picture.draw(self, path)

    def __str__(self) -> str:
        lines = [_headline(self)]
        items = [*self.parameters.values(), *self.intermediates.values()]
        if items:
            lines += ["", *_table(items)]
        if self.first_wrong is not None:
            lines += ["", f"The first wrong value on the way is {self.first_wrong}."]
        for place, cause in enumerate(self.causes, 1):
            lines += ["", *_cause(place, cause)]
        if self.notes:
            lines += ["", *(line for note in self.notes for line in _wrapped(f"Note: {note}", "  "))]
        return "\n".join(lines)


def _headline(diagnosis: Diagnosis) -> str:
    if diagnosis.correct:
        return "The gradient is right."
    if not diagnosis.parameters and not diagnosis.intermediates:
        return "There is no gradient to compare."
    wrong = [name for name, item in diagnosis.parameters.items() if not item.correct]
    right = [name for name, item in diagnosis.parameters.items() if item.correct]
    if not wrong:
        return "The gradient is right, but something else is not: see below."
    return f"Wrong: {', '.join(wrong)}." + (f" Right: {', '.join(right)}." if right else "")


def _table(items: Sequence[Comparison]) -> list[str]:
    rows = [("", "shape", "relative error", "ratio", "wrong entries")]
    for item in items:
        shape = _shape(item.shape)
        if item.wrong is None:
            rows.append((item.name, f"{shape}, expected {_shape(item.expected_shape)}", "", "", "all"))
            continue
        of = f"{item.wrong_entries} of {item.right.size}" if not item.correct else "none"
        ratio = "" if item.ratio is None else f"{item.ratio:.6g}"
        rows.append((item.name, shape, f"{item.relative_error:.3g}", ratio, of))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return [
        "  "
        + "  ".join(
            cell.ljust(widths[i]) if i < 2 else cell.rjust(widths[i]) for i, cell in enumerate(row)
        ).rstrip()
        for row in rows
    ]


def _shape(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def _cause(place: int, cause: Cause) -> list[str]:
    head = f"{place}. {'or ' if cause.alternative else ''}{cause.id}"
    if cause.parameters:
        head += f"  ({', '.join(cause.parameters)})"
    figures = f"confidence {cause.confidence:.2f}"
    if math.isfinite(cause.residual):
        figures += f", residual {cause.residual:.1e}"
    if cause.together_with:
        figures += f", together with {', '.join(cause.together_with)}"
    lines = [f"{head}: {figures}", *_wrapped(cause.explanation, "   ")]
    if cause.correction:
        lines += _wrapped(f"Correct: {cause.correction}", "   ")
    if cause.experiment:
        lines += _wrapped(f"To tell: {cause.experiment}.", "   ")
    return lines


def _wrapped(text: str, indent: str) -> list[str]:
    lines = []
    for paragraph in text.splitlines():
        lines += textwrap.wrap(
            paragraph, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False
        ) or [""]
    return lines


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
