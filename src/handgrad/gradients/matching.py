"""The search for the mistakes that turn the right gradient into the person's.

Each mistake, and each pair, is run as a backward pass (:mod:`handgrad.gradients.staged`) and compared with
the person's values, stage by stage.  A combination explains an attempt when every given value lies within the
rounding error of what the combination computes.  A stage that a combination does not touch must agree by
itself, so what is right restricts the search, and most pairs are refused by what is known of single mistakes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from handgrad.gradients import rounding
from handgrad.gradients.explanation import Explanation, aligned, distance, distinct
from handgrad.gradients.mistakes import Mistake, Reading, Words, mistakes_of, readings
from handgrad.gradients.staged import Floats, Hook, Pass, Problem
from handgrad.gradients.summary import summarized
from handgrad.gradients.table import Table

SAFETY = 4.0  # a value agrees within so many times its rounding bound
NEAR_DOUBLE, NEAR_SINGLE = 1e-5, 1e-2  # relative distance at which the rounding bound is looked at
CLEAR = 2.2  # an explanation that costs no more is not weighed against larger combinations
RESHAPED = 0.03  # what a fit costs that needs another shape, as (N,) for (N, 1)
PAIR_WORK, LEAST_PAIRS = 2e10, 300  # entries gone through in trying pairs, likely ones first
HELPFUL = 8  # single mistakes from which combinations of three are tried

Constants = dict[int, float]  # mistake → its constant; 1 for those without


class Search:
    """One attempt's given stages against every combination of mistakes."""

    def __init__(self, problem: Problem, given: Mapping[str, Floats], unit: float) -> None:
        self.rounded = replace(problem, unit=unit)
        self.unit = unit
        self.given = {stage: given[stage] for stage in problem.backward_names if stage in given}
        self.plain, self._summary = summarized(replace(problem, unit=0.0), self.given)
        self.mistakes: Sequence[Mistake] = mistakes_of(self.plain)
        self.near_within = NEAR_DOUBLE if unit < 1e-12 else NEAR_SINGLE
        right = self.rounded.right
        with np.errstate(all="ignore"):
            self.agrees = {stage: self._within(stage, right.computed(stage)) for stage in self.given}
            self._noise = {
                stage: 300 * float(np.max(rounding.errors(right.computed(stage)), initial=0.0))
                for stage in self.given
            }

    @property
    def wrong(self) -> list[str]:
        """Given stages that do not agree with what went into them."""
        return [stage for stage, agrees in self.agrees.items() if not agrees]

    def explanations(self) -> list[Explanation]:
        """Combinations that explain every given stage, likeliest first; none where nothing does."""
        with np.errstate(all="ignore"):
            found = self._singles({}, self._every)
            if not found or min(e.cost for e in found) > CLEAR:
                found += self._pairs({})
            if not found:
                for i in self._helpful[:HELPFUL]:
                    for constants in self._solved({i: None}, [s for s in self.given if self._helps(i, s)]):
                        found += self._pairs(constants)
        return distinct(found)

    def partial(self) -> tuple[list[list[Explanation]], list[str]]:
        """Mistakes that each explain some wrong stages alone and spoil no right one, and the stages left."""
        found: list[list[Explanation]] = []
        left = self.wrong
        with np.errstate(all="ignore"):
            for i in self._helpful:
                touched = [stage for stage in self.wrong if self._touches(i, stage)]
                if all(stage in left and self._helps(i, stage) for stage in touched):
                    readings_of = [
                        e for c in self._solved({i: None}, touched) for e in self._confirmed(c, touched)
                    ]
                    if readings_of:
                        found.append(distinct(readings_of))
                        left = [stage for stage in left if stage not in touched]
        return found, left

    # ---- which stages a combination touches

    @property
    def _every(self) -> range:
        return range(len(self.mistakes))

    @cached_property
    def _touched(self) -> list[frozenset[str]]:
        return [
            frozenset(s for s in self.given if self.mistakes[i].stages & self.plain.ancestors[s])
            for i in self._every
        ]

    def _touches(self, i: int, stage: str) -> bool:
        return stage in self._touched[i]

    def _relevant(self, stage: str, combination: Iterable[int]) -> list[int]:
        """The mistakes of a combination that change the stage, also through what others of it read."""
        combination = list(combination)
        closure = set(self.plain.ancestors[stage])
        for j in combination:
            if self.mistakes[j].stages & closure:
                for read in self.mistakes[j].reads:
                    closure |= self.plain.ancestors[read]
        return [i for i in combination if self.mistakes[i].stages & closure]

    # ---- values

    def _hooks(self, constants: Constants) -> list[tuple[Hook, float]]:
        return [(hook, c) for i, c in constants.items() for hook in self.mistakes[i].hooks]

    def _pass(self, constants: Constants, rounded: bool = False) -> Pass:
        return Pass(self.rounded if rounded else self.plain, self._hooks(constants))

    def _value(self, run: Pass, stage: str) -> Any:
        """The stage's value under the mistakes; None where the shapes would not have allowed it."""
        try:
            return run.computed(stage)
        except ValueError:
            return None

    def _aligned(self, stage: str, value: Floats, whole: bool = False) -> tuple[Floats, Floats] | None:
        """The given stage (``whole``, or its summary) and a value in one shape."""
        width = self.plain.sizes[int(stage[2:])] if stage.startswith("db") else 1
        return aligned(stage, (self.given if whole else self._summary)[stage], value, width)

    def _near(self, stage: str, value: Any) -> float | None:
        """The distance from the given stage, or None where it is not near."""
        pair = None if value is None else self._aligned(stage, np.asarray(value))
        if pair is None:
            return None
        apart = distance(*pair)
        if apart <= self.near_within:
            return apart
        if float(np.max(np.abs(pair[0] - pair[1]), initial=0.0)) <= self._noise[stage]:
            return apart
        return None

    def _within(self, stage: str, value: Any, slack: float = 0.0) -> bool:
        """Whether the given stage lies within the rounding error of a rounded value."""
        if value is None:
            return False
        plain = np.asarray(rounding.values(value))
        pair = self._aligned(stage, plain, whole=True)
        if pair is None:
            return False
        bound = SAFETY * rounding.errors(value) + slack * np.abs(plain)
        if plain.ndim == 0:
            return bool(np.all(np.abs(pair[0] - pair[1]) <= bound))
        return bool(np.all(np.abs(pair[0] - pair[1]) <= bound.reshape(pair[1].shape)))

    # ---- single mistakes

    @cached_property
    def _alone(self) -> Table:
        return self._table({})

    def _table(self, base: Constants) -> Table:
        stages = list(self.given)
        table = Table.of(len(self.mistakes), len(stages))
        for i in self._every:
            if i in base or any(self.mistakes[i].excludes(self.mistakes[j]) for j in base):
                continue
            run = None if self.mistakes[i].constant else self._pass({**base, i: 1.0})
            for column, stage in enumerate(stages):
                if i not in self._relevant(stage, [*base, i]):
                    continue
                table.touches[i, column] = True
                if run is None:
                    table.near[i, column] = next(self._solved({**base, i: None}, [stage]), None) is not None
                    continue
                value = self._value(run, stage)
                table.near[i, column] = self._near(stage, value) is not None
                table.reshapes[i, column] = np.shape(value) != self._right_shape(stage) or value is None
                table.fits[i, column] = (
                    value is not None and self._aligned(stage, np.asarray(value)) is not None
                )
        return table

    def _right_shape(self, stage: str) -> tuple[int, ...]:
        return np.shape(self.plain.right.computed(stage))

    @cached_property
    def _helpful(self) -> list[int]:
        """Mistakes that mend a wrong stage and spoil no right one, those that mend most first."""
        mended = {i: sum(self._helps(i, stage) for stage in self.wrong) for i in self._every}
        spoils = {
            i: any(self._touches(i, s) and not self._helps(i, s) for s in self.given if self.agrees[s])
            for i in self._every
        }
        kept = [i for i in self._every if mended[i] and not spoils[i]]
        return sorted(kept, key=lambda i: (-mended[i], self.mistakes[i].words.cost))

    def _helps(self, i: int, stage: str) -> bool:
        return bool(self._alone.near[i, list(self.given).index(stage)])

    def _singles(self, base: Constants, candidates: Iterable[int]) -> list[Explanation]:
        found: list[Explanation] = []
        for i in candidates:
            if all(self._touches(i, stage) for stage in self.wrong):
                found += self._explained({**base, i: None})
        return found

    # ---- combinations

    def _pairs(self, base: Constants) -> list[Explanation]:
        table = self._table(base) if base else self._alone
        agrees = np.array([self._base_agrees(base, stage) for stage in self.given])
        right = [self._aligned(s, np.asarray(self.plain.right.computed(s))) is not None for s in self.given]
        reads = np.array([bool(mistake.reads) for mistake in self.mistakes])
        possible = table.pairs(agrees, np.array(right), reads)
        found: list[Explanation] = []
        pairs = sorted(np.argwhere(np.triu(possible, k=1)).tolist(), key=self._cost)
        work = self.plain.N * sum(self.plain.sizes)
        for i, j in pairs[: max(LEAST_PAIRS, int(PAIR_WORK / work))]:
            first, second = self.mistakes[i], self.mistakes[j]
            if i in base or j in base or first.excludes(second):
                continue
            if any(m.excludes(self.mistakes[b]) for b in base for m in (first, second)):
                continue
            found += self._explained({**base, i: None, j: None})
        return found

    def _cost(self, combination: Sequence[int]) -> float:
        return sum(self.mistakes[i].words.cost for i in combination)

    def _base_agrees(self, base: Constants, stage: str) -> bool:
        if not base or not self._relevant(stage, base):
            return self.agrees[stage]
        return self._near(stage, self._value(self._pass(base), stage)) is not None

    def _explained(self, constants: Mapping[int, float | None]) -> list[Explanation]:
        """The combination's explanations of every given stage: one for each meaning of its constants."""
        stages = list(self.given)
        found: list[Explanation] = []
        for solved in self._solved(constants, stages):
            run = self._pass(solved)
            if all(
                self._near(s, self._value(run, s)) is not None
                if self._relevant(s, solved)
                else self.agrees[s]
                for s in stages
            ):
                found += self._confirmed(solved, stages)
        return found

    # ---- constants

    def _solved(self, constants: Mapping[int, float | None], stages: Sequence[str]) -> Iterator[Constants]:
        """The combination with its free constants (None) read from the given stages."""
        known = {i: c for i, c in constants.items() if c is not None}
        known |= {i: 1.0 for i, c in constants.items() if c is None and not self.mistakes[i].constant}
        unknown = [i for i in constants if i not in known]
        if not unknown:
            yield known
            return
        if self.plain.lr and any(self.mistakes[i].constant == "lr" for i in unknown):
            stated = {i: self.plain.lr for i in unknown if self.mistakes[i].constant == "lr"}
            yield from self._solved({**dict.fromkeys(unknown), **known, **stated}, stages)
        order = {stage: place for place, stage in enumerate(self.plain.backward_names)}
        choices = []
        for stage in stages:
            relevant = self._relevant(stage, constants)
            at = [i for i in relevant if i in unknown]
            if at:
                layer = int(stage[2:]) if stage[2:].isdigit() else self.plain.L + 1
                choices.append(
                    (len(at), -layer, len(relevant), -self.given[stage].size, order[stage], stage, at)
                )
        if not choices:
            return
        *_, stage, at = min(choices)
        for solution in self._fitted(stage, at, known):
            yield from self._solved({**dict.fromkeys(unknown), **known, **solution}, stages)

    def _fitted(self, stage: str, at: Sequence[int], known: Constants) -> Iterator[Constants]:
        """Least squares for the constants ``at``, in which the stage is affine; named ones made exact."""
        for base in (1.0, -1.0):  # a mask of the gradient's sign is affine on either side of 0 only
            zero = dict.fromkeys(at, 0.0)
            points = [
                self._value(self._pass({**known, **zero, **p}), stage) for p in [{}, *({i: base} for i in at)]
            ]
            if any(point is None for point in points):
                return
            pairs = [self._aligned(stage, np.asarray(point)) for point in points]
            if any(pair is None for pair in pairs):
                return
            g = pairs[0][0].ravel()  # type: ignore[index]
            flat = [pair[1].ravel() for pair in pairs if pair is not None]
            slopes = np.stack([(point - flat[0]) / base for point in flat[1:]], axis=1)
            if not np.all(np.isfinite(slopes)) or not np.any(slopes):
                return
            fitted, _, rank, _ = np.linalg.lstsq(slopes, g - flat[0], rcond=None)
            if rank < len(at):
                return
            apart = float(np.linalg.norm(g - flat[0] - slopes @ fitted))
            if apart > self.near_within * float(np.linalg.norm(g)):
                continue
            options = []
            for column, i in enumerate(at):
                c = float(fitted[column])
                size = float(np.linalg.norm(slopes[:, column])) * abs(c)
                tolerance = 3 * apart / size + 30 * self.unit if size else np.inf
                found = {reading.constant for reading in self._readings(i, c, tolerance)}
                options.append([(i, value) for value in sorted(found)])
            for choice in product(*options):
                yield dict(choice)
            return

    def _readings(self, i: int, c: float, tolerance: float) -> list[Reading]:
        return readings(self.mistakes[i], c, tolerance, self.plain)

    # ---- confirmation

    def _confirmed(self, constants: Constants, stages: Sequence[str]) -> list[Explanation]:
        """Explanations, if every stage lies within the rounding bound of the combination's own value."""
        meanings: list[list[tuple[Words, ...]]] = []
        slack = 0.0
        for i, c in constants.items():
            mistake = self.mistakes[i]
            if mistake.constant:
                meant = self._readings(i, c, 100 * self.unit)
                meanings.append([reading.words for reading in meant])
                slack = max(slack, 0.0 if any(reading.exact for reading in meant) else 100 * self.unit)
            else:
                meanings.append([(words,) for words in (mistake.words, *mistake.also)])
        run = self._pass(constants, rounded=True)
        for stage in stages:
            if self._relevant(stage, constants) and not self._within(stage, self._value(run, stage), slack):
                return []
        residual = reshaped = 0.0
        for stage in stages:
            value = np.asarray(rounding.values(run.computed(stage)))
            pair = self._aligned(stage, value, whole=True)
            residual = max(residual, distance(*pair) if pair else 0.0)
            reshaped += RESHAPED * (value.ndim > 0 and value.shape != self.given[stage].shape)
        touched = [
            tuple(s for s in self.given if i in self._relevant(s, constants) and s in stages)
            for i in constants
        ]
        found = []
        for choice in product(*meanings):
            words = tuple(word for part in choice for word in part)
            where = tuple(touched[k] for k, part in enumerate(choice) for _ in part)
            in_order = sorted(range(len(words)), key=lambda k: words[k].cost)
            found.append(
                Explanation(
                    tuple(words[k] for k in in_order),
                    tuple(where[k] for k in in_order),
                    residual,
                    sum(word.cost for word in words) + reshaped,
                )
            )
        return found
