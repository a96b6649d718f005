"""Tilings: what a path of the two-layer step leaves open of its tiles and partitions, and how few are tried.

A path offers the tilings of a problem as a tuple, the rule's first.  They are a function of the shape, the
types and the architecture's limits, and the bits of a result follow from the one that runs; the number of
multiprocessors changes neither.  Test: ``tests/test_tilings.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, TypeVar

ONE_ROUND = 58  # blocks: the multiprocessors of the smallest named GPU, an L4
MANY_ROUNDS = 8 * 132  # blocks: on the largest, an H100, the last round is then an eighth at most


@dataclass(frozen=True)
class Tiling:
    """A path's choice of tiles and partitions; its fields in the order in which they are tuned.

    ``name``, as "forward 64x64x16/4x4, partitions 264", is what a measurement is remembered by.
    """

    @property
    def name(self) -> str:
        """Every field with its value."""
        return ", ".join(f"{field.name} {getattr(self, field.name)}" for field in fields(self))

    def changes(self, other: Tiling) -> tuple[str, ...]:
        """The fields in which ``other``, of the same path, has another value."""
        names = (field.name for field in fields(self))
        return tuple(name for name in names if getattr(self, name) != getattr(other, name))


AnyTiling = TypeVar("AnyTiling", bound=Tiling)


def pick(path: str, offered: tuple[AnyTiling, ...], tiling: Tiling | None) -> AnyTiling:
    """``tiling`` where it is offered, the first where None; ``ValueError`` for any other."""
    if tiling is None:
        return offered[0]
    if tiling not in offered:
        raise ValueError(f"path {path}: {tiling.name} is none of its tilings for this problem")
    return offered[offered.index(tiling)]


class Sides(Protocol):
    """A tile of BM x BN elements of the result."""

    @property
    def BM(self) -> int:
        """Rows."""

    @property
    def BN(self) -> int:
        """Columns."""


AnySides = TypeVar("AnySides", bound=Sides)


def worth_trying(
    tiles: Sequence[AnySides],
    rows: int,
    columns: int,
    blocks: Callable[[AnySides], int],
    enough: int = MANY_ROUNDS,
) -> tuple[AnySides, ...]:
    """The first tile, which is the rule's, and those others that may beat it on some GPU.

    ``blocks(tile)``: of the whole launch.  Left out is a tile that is longer than the result where a shorter
    one covers it; one that makes a single round of blocks everywhere where a smaller one does too; and one
    for which another of at least four times its elements still makes ``enough`` blocks.
    """

    def loses(tile: AnySides) -> bool:
        size, few = tile.BM * tile.BN, blocks(tile) <= ONE_ROUND
        for other in tiles:
            other_size = other.BM * other.BN
            if rows <= other.BM < tile.BM or columns <= other.BN < tile.BN:
                return True
            if few and other_size < size and blocks(other) <= ONE_ROUND:
                return True
            if other_size >= 4 * size and blocks(other) >= enough:
                return True
        return False

    return (*tiles[:1], *(tile for tile in tiles[1:] if not loses(tile)))


Value = TypeVar("Value")


def differing(values: Iterable[Value], effect: Callable[[Value], Hashable]) -> tuple[Value, ...]:
    """The first of the values that have each effect."""
    found: dict[Hashable, Value] = {}
    for value in values:
        found.setdefault(effect(value), value)
    return tuple(found.values())
