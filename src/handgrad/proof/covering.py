"""Pairwise covering arrays: few rows in which every pair of values of any two factors stands together.

A fault of an index computation seldom needs more than two particular sizes at once (Kuhn, Wallace & Gallo,
IEEE Trans. Software Eng. 30(6), 2004), so a grid of some sixty rows stands for one of thousands.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

SEED = 20260
CANDIDATES = 24  # rows tried for each row kept

Pair = tuple[int, int, int, int]  # value number b of factor a, value number d of factor c; a < c


def pairwise(factors: Mapping[str, Sequence[Any]], seed: int = SEED) -> list[dict[str, Any]]:
    """Rows ``{factor: value}`` that cover every pair of values of every two factors.

    Greedy (Cohen et al., IEEE Trans. Software Eng. 23(7), 1997): of some random rows, each grown value by
    value so that it covers most, the best is kept.  The same factors and seed give the same rows.
    """
    names, sizes = list(factors), [len(values) for values in factors.values()]
    chosen = random.Random(seed)
    open_pairs: dict[Pair, None] = {
        (a, b, c, d): None
        for a, c in itertools.combinations(range(len(names)), 2)
        for b in range(sizes[a])
        for d in range(sizes[c])
    }
    if len(names) == 1:
        return [{names[0]: value} for value in factors[names[0]]]
    rows = []
    while open_pairs:
        waiting = list(open_pairs)
        candidates = [_grow(chosen, sizes, open_pairs, waiting) for _ in range(CANDIDATES)]
        row = max(candidates, key=lambda candidate: len(_covered(candidate, open_pairs)))
        for pair in _covered(row, open_pairs):
            del open_pairs[pair]
        rows.append({name: factors[name][row[i]] for i, name in enumerate(names)})
    return rows


def _grow(
    chosen: random.Random, sizes: Sequence[int], open_pairs: Mapping[Pair, None], waiting: Sequence[Pair]
) -> dict[int, int]:
    """A row that covers one open pair, drawn at random, and as many others as comes of itself."""
    a, b, c, d = waiting[int(chosen.random() * len(waiting))]
    row = {a: b, c: d}
    others = [factor for factor in range(len(sizes)) if factor not in row]
    for factor in sorted(others, key=lambda _: chosen.random()):
        gains = [
            (
                sum(_pair(factor, value, other, row[other]) in open_pairs for other in row),
                chosen.random(),
                value,
            )
            for value in range(sizes[factor])
        ]
        row[factor] = max(gains)[2]
    return row


def _pair(factor: int, value: int, other: int, other_value: int) -> Pair:
    if factor < other:
        return factor, value, other, other_value
    return other, other_value, factor, value


def _covered(row: Mapping[int, int], open_pairs: Mapping[Pair, None]) -> list[Pair]:
    pairs = (_pair(a, row[a], c, row[c]) for a, c in itertools.combinations(sorted(row), 2))
    return [pair for pair in pairs if pair in open_pairs]
