"""How a batch is cut into shards, and the tree in which their gradients are added.

Shard s of S of a batch of n rows has the rows ``n s // S .. n (s + 1) // S``: sizes differ by one at most,
and of a batch with fewer rows than shards some are empty.

The tree adds, at distance d = 1, 2, 4, …, shard a + d to shard a for a = 0, 2d, 4d, … where a + d < S::

    S = 6:   0+1   2+3   4+5        d = 1
             01+23       45         d = 2
             0123+45                d = 4

Of R ranks, rank r has the shards ``S r // R .. S (r + 1) // R``.  It does the additions whose shards are all
its own; what is left are *roots*, which the ranks exchange, and then every rank does the other additions.
The order of additions is the tree's, whatever R.
"""

from __future__ import annotations

from dataclasses import dataclass

Addition = tuple[int, int]  # (a, b): add what stands at b to what stands at a


def cut(rows: int, shards: int) -> list[slice]:
    """The rows of each shard of a batch of ``rows`` rows."""
    return [slice(rows * s // shards, rows * (s + 1) // shards) for s in range(shards)]


def owned(shards: int, rank: int, ranks: int) -> range:
    """The shards of ``rank``."""
    return range(shards * rank // ranks, shards * (rank + 1) // ranks)


@dataclass(frozen=True)
class Tree:
    """The additions of S shards on R ranks.

    inside: for each rank, the additions that it does before the exchange
    roots: for each rank, the shards at which its sums then stand
    outside: the additions after the exchange, which every rank does
    """

    inside: tuple[tuple[Addition, ...], ...]
    roots: tuple[tuple[int, ...], ...]
    outside: tuple[Addition, ...]


def tree(shards: int, ranks: int) -> Tree:
    """The additions of ``shards`` shards; ``ValueError`` for more ranks than shards."""
    if not 1 <= ranks <= shards:
        raise ValueError(f"shards: expected at least {ranks}, one for each rank, got {shards}")
    stretches = [owned(shards, rank, ranks) for rank in range(ranks)]
    inside: list[list[Addition]] = [[] for _ in stretches]
    roots = [list(stretch) for stretch in stretches]
    outside: list[Addition] = []
    distance = 1
    while distance < shards:
        for a in range(0, shards - distance, 2 * distance):
            last = min(a + 2 * distance, shards) - 1  # of the shards that this addition covers
            home = [rank for rank, stretch in enumerate(stretches) if a in stretch and last in stretch]
            if home:
                inside[home[0]].append((a, a + distance))
                roots[home[0]].remove(a + distance)
            else:
                outside.append((a, a + distance))
        distance *= 2
    return Tree(tuple(map(tuple, inside)), tuple(map(tuple, roots)), tuple(outside))
