"""What a gradient check found: a truth value, the worst entries as a table, and the kinks that were met."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class GradientError(RuntimeError):
    """A gradient that does not agree with differences; ``result`` is the :class:`GradientCheck`."""

    def __init__(self, result: GradientCheck) -> None:
        super().__init__(str(result))
        self.result = result


@dataclass(frozen=True)
class Entry:
    """One comparison: ``index`` is the place in the array, or the number of a random direction."""

    parameter: str
    index: tuple[int, ...]
    analytic: float
    numeric: float
    error: float
    allowed: float
    kink: str = ""
    is_direction: bool = False

    @property
    def right(self) -> bool:
        """Whether the error is allowed; a NaN is not."""
        return self.error <= self.allowed


@dataclass(frozen=True)
class GradientCheck:
    """What a gradient check found; true if everything that was compared is right, and something was.

    ``worst``: the entries with the largest error for what is allowed, first the worst
    ``checked``, ``wrong``: how many entries were compared, and how many of them are wrong, by array
    ``kinks``: entries that lie on or near a kink, and how that was dealt with
    ``problems``: what is wrong beside numbers: a missing gradient, a wrong shape
    ``compared_whole``: names in ``checked`` that stand for one comparison: the loss, float32 gradients
    """

    method: str
    worst: tuple[Entry, ...]
    checked: Mapping[str, int]
    wrong: Mapping[str, int]
    kinks: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    fast_mode: bool = False
    total_kinks: int = 0
    compared_whole: tuple[str, ...] = ()
    is_network: bool = field(default=False, repr=False)

    @property
    def passed(self) -> bool:
        """Whether all is right."""
        return not self.problems and not any(self.wrong.values()) and sum(self.checked.values()) > 0

    def __bool__(self) -> bool:
        return self.passed

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {
            "passed": self.passed,
            "method": self.method,
            "checked": dict(self.checked),
            "wrong": dict(self.wrong),
            "worst": [
                vars(entry) | {"index": list(entry.index), "right": entry.right} for entry in self.worst
            ],
            "kinks": list(self.kinks),
            "problems": list(self.problems),
        }

    def __str__(self) -> str:
        what = "directions" if self.fast_mode else "entries"
        counts = {name: count for name, count in self.checked.items() if name not in self.compared_whole}
        bad = sum(self.wrong.values())
        if self.passed:
            also = f"; {', '.join(self.compared_whole)} too" if self.compared_whole else ""
            count = f"{sum(counts.values()):,} {what} of {', '.join(counts)}"
            head = f"gradient check passed: {count} by {self.method}{also}"
        elif bad:
            parts = ", ".join(f"{n} {bad:,} of {self.checked[n]:,}" for n, bad in self.wrong.items() if bad)
            head = f"gradient check FAILED by {self.method}: wrong {what}: {parts}"
        else:
            head = f"gradient check FAILED: {'; '.join(self.problems) or 'there was nothing to compare'}"
        lines = [head]
        if bad:
            lines += [f"  {problem}" for problem in self.problems]
        if self.worst:
            lines += ["the worst first:", *_table(self.worst, "direction" if self.fast_mode else "index")]
        if self.total_kinks:
            shown = [f"  {kink}" for kink in self.kinks]
            more = [f"  and {self.total_kinks - len(shown)} more"] if self.total_kinks > len(shown) else []
            lines += [f"kinks met: {self.total_kinks}", *shown, *more]
        if bad and self.is_network:
            lines.append("handgrad.diagnose(gradients, net, X, y) names the mistake")
        elif bad and self.fast_mode:
            lines.append("without fast_mode the entries are named")
        return "\n".join(lines)


def badness(entry: Entry) -> float:
    """The error in units of what is allowed: above 1 is wrong; infinite for a NaN."""
    if not math.isfinite(entry.error):
        return math.inf
    if entry.allowed:
        return entry.error / entry.allowed
    return math.inf if entry.error else 0.0


def _table(entries: tuple[Entry, ...], place: str) -> list[str]:
    head = ("", "parameter", place, "analytic", "numeric", "error", "allowed")
    rows: list[tuple[str, ...]] = [head]
    for entry in entries:
        numbers = (f"{value: .9g}" for value in (entry.analytic, entry.numeric))
        index = str(entry.index[0]) if entry.is_direction else str(list(entry.index)) if entry.index else ""
        mark = " " if entry.right else "x"
        rows.append((mark, entry.parameter, index, *numbers, f"{entry.error:.1e}", f"{entry.allowed:.1e}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
