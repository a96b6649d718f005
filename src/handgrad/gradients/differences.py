"""The slope of a function along a line by differences, and the kinks that spoil it.

==========  ======================================  =====================================================
central     (φ(h) - φ(-h)) / 2h                     error h² φ'''/6 and rounding u |φ| / h; h = ∛u balances
one side    ±(-3 φ(0) + 4 φ(±h/2) - φ(±h)) / h      where only the other side crosses a kink
complex     Im φ(ih) / h, h = 1e-30                 exact to rounding (Squire and Trapp 1998), for functions
                                                    whose code is analytic: no abs, no comparison, no cast
==========  ======================================  =====================================================

A kink between -h and h makes the central difference a mean of two slopes.  Where the function says how far it
is from its kinks (:class:`Point`), a crossing is seen, named, and avoided with a smaller step or one side.
Where it does not, a difference that disagrees is taken again with smaller steps: the jump of the slope
(φ(h) - 2 φ(0) + φ(-h)) / h shrinks like h where φ is smooth and stays where it has a kink.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

SHRINK = 8.0  # each further try has a step smaller by this
TRIES = 5
COMPLEX_STEP = 1e-30
NOISE = 16.0  # u |φ| / h: what the rounding of φ may add to a slope


@dataclass(frozen=True)
class Point:
    """The value of a function at a point, and its distances from its kinks by name: active where > 0."""

    value: float
    kinks: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


Line = Callable[[float], Point]


@dataclass(frozen=True)
class Slope:
    """A slope, the rounding error to expect in it, the step that gave it, and the kink that it met.

    ``ends`` holds the slopes on the two sides where the point lies on a kink and has no slope of its own.
    """

    value: float
    noise: float
    step: float
    kink: str = ""
    ends: tuple[float, float] | None = None

    def contains(self, value: float, tolerance: float) -> bool:
        """Whether ``value`` is the slope, or lies between the two of a kink."""
        if self.ends is None:
            return abs(value - self.value) <= tolerance + self.noise
        low, high = min(self.ends), max(self.ends)
        return low - tolerance - self.noise <= value <= high + tolerance + self.noise


def step_for(unit: float, size: float) -> float:
    """The step of central differences at a coordinate of this size, in arithmetic of spacing ``unit``."""
    return float(np.cbrt(unit) * max(1.0, abs(size)))


def central(line: Line, step: float, unit: float) -> Slope:
    """The central difference."""
    plus, minus = line(step), line(-step)
    return Slope((plus.value - minus.value) / (2 * step), _noise(unit, step, plus.value, minus.value), step)


def examine(line: Line, first: Slope, expected: float, tolerance: float, unit: float) -> Slope:
    """A closer look at a slope that is not ``expected``: kinks are avoided, or named where they cannot be."""
    base = line(0.0)
    return (_avoid_known if base.kinks else _look_for_kink)(line, base, first, expected, tolerance, unit)


def _avoid_known(
    line: Line, base: Point, first: Slope, expected: float, tolerance: float, unit: float
) -> Slope:
    step, met = first.step, ""
    for _ in range(TRIES):
        plus, minus = line(step), line(-step)
        crossed_plus, crossed_minus = crossing(base, plus), crossing(base, minus)
        met = met or crossed_plus or crossed_minus
        noise = _noise(unit, step, base.value, plus.value, minus.value)
        if not crossed_plus and not crossed_minus:
            return Slope((plus.value - minus.value) / (2 * step), noise, step, met)
        sign, end = (1.0, plus) if not crossed_plus else (-1.0, minus)
        if not (crossed_plus and crossed_minus):
            middle = line(sign * step / 2)
            if not crossing(base, middle):
                slope = sign * (-3 * base.value + 4 * middle.value - end.value) / step
                return Slope(slope, 4 * noise, step, met)
        ends = (base.value - minus.value) / step, (plus.value - base.value) / step
        step /= SHRINK
    return Slope((ends[0] + ends[1]) / 2, noise, step * SHRINK, met, ends)


def crossing(base: Point, other: Point) -> str:
    """The kink between two points that is nearest to the first, as "Z1[17, 2] = 3.1e-07 (relu)"; or ""."""
    nearest, found = np.inf, ""
    for name, distance in base.kinks.items():
        crossed = (distance > 0) != (other.kinks[name] > 0)
        if crossed.any():
            away = np.where(crossed, np.abs(distance), np.inf)
            place = np.unravel_index(int(np.argmin(away)), away.shape)
            if away[place] < nearest:
                nearest = float(away[place])
                array, _, function = name.partition(" ")
                index = ", ".join(str(int(i)) for i in place)
                found = f"{array}[{index}] = {distance[place]:.1e} ({function})"
    return found


def _look_for_kink(
    line: Line, base: Point, first: Slope, expected: float, tolerance: float, unit: float
) -> Slope:
    step = first.step
    jumps: list[float] = []
    slopes: list[Slope] = []
    ends = (0.0, 0.0)
    for _ in range(TRIES):
        plus, minus = line(step), line(-step)
        noise = _noise(unit, step, base.value, plus.value, minus.value)
        jump = abs(plus.value - 2 * base.value + minus.value) / step
        if slopes and noise > 0.1 * max(abs(first.value - expected), jumps[-1]):
            break  # rounding would hide what is looked for
        ends = (base.value - minus.value) / step, (plus.value - base.value) / step
        slopes.append(Slope((ends[0] + ends[1]) / 2, noise, step))
        jumps.append(jump)
        step /= SHRINK
    last = slopes[-1]
    if len(slopes) > 1 and jumps[-1] > 0.5 * jumps[0] and jumps[-1] > 10 * last.noise:
        where = f"a kink here: slope {ends[0]:.6g} below, {ends[1]:.6g} above"
        return Slope(last.value, last.noise, last.step, where, ends)
    if abs(last.value - first.value) <= tolerance + first.noise + last.noise:
        return first
    fell = any(a > 4 * SHRINK * b for a, b in pairwise(jumps))  # by more than the SHRINK of a smooth function
    return Slope(last.value, last.noise, last.step, f"a kink within {first.step:.1e}" if fell else "")


def _noise(unit: float, step: float, *values: float) -> float:
    return NOISE * unit * max(abs(value) for value in values) / step
