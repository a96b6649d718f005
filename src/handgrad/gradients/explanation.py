"""One explanation of an attempt, and the comparison of two arrays that it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from handgrad.gradients.mistakes import Words
from handgrad.gradients.staged import Floats


@dataclass(frozen=True)
class Explanation:
    """Mistakes that together give the person's values, and what they leave unexplained."""

    words: tuple[Words, ...]
    stages: tuple[tuple[str, ...], ...]  # the given stages that each of them changes
    residual: float
    cost: float

    @property
    def ids(self) -> tuple[str, ...]:
        """The mistakes' names."""
        return tuple(words.id for words in self.words)


def aligned(stage: str, given: Floats, value: Floats, width: int) -> tuple[Floats, Floats] | None:
    """Both in one shape, or None where the shapes do not fit.

    (H,), (1, H) and (H, 1) are one for a bias; a vector will do for a matrix with one row or column; a single
    number that a mistake puts in place of a bias's gradient may stand in each of its ``width`` components.
    """
    if given.shape == value.shape:
        return given, value
    if stage.startswith("db"):
        if value.ndim == 0:
            return (given, np.broadcast_to(value, given.shape)) if given.size in (1, width) else None
        long = [tuple(n for n in array.shape if n != 1) for array in (given, value)]
        return (given.reshape(value.shape), value) if long[0] == long[1] else None
    if given.ndim <= 1 < value.ndim and given.size == value.size and min(value.shape) == 1:
        return given.reshape(value.shape), value
    return None


def distance(given: Floats, value: Floats) -> float:
    """‖given - value‖ / ‖given‖; 0 where both are zero."""
    difference = float(np.linalg.norm(given - value))
    return difference / (float(np.linalg.norm(given)) or float(np.linalg.norm(value))) if difference else 0.0


def distinct(found: Sequence[Explanation]) -> list[Explanation]:
    """The cheapest of each set of mistakes, cheapest first; no set that holds a cheaper one."""
    kept: list[Explanation] = []
    for explanation in sorted(found, key=lambda e: (round(e.cost, 6), len(e.words))):
        if not any(set(other.ids) <= set(explanation.ids) for other in kept):
            kept.append(explanation)
    return kept
