"""Tiles and tilings of R3, the two-kernel path of a two-layer step: from the shape and the types alone.

A tile of the forward kernel holds all hidden units, so its width follows from H; it has as many samples as
the shape gives enough tiles for, and as fit in the shared memory that every architecture has.

Used by :mod:`handgrad.ops.two_layer_pair`.  Test: ``tests/test_two_layer_pair.py``,
``tests/test_tilings.py``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import partial

from handgrad.ops.tilings import Tiling, differing, worth_trying
from handgrad.ops.two_layer import Problem
from handgrad.ops.two_layer_general_tiles import (
    BROAD,
    BROAD_WARPS,
    LONG_WARPS,
    MEDIUM,
    MEDIUM_DOUBLE,
    MEDIUM_WARPS,
    NARROW,
    NARROW_DOUBLE,
    NARROW_WARPS,
    OTHER_BLOCKS,
    SMALL,
    SMALL_DOUBLE,
    SMALL_WARPS,
    SPLIT_BLOCKS,
    TENSOR,
    WIDE,
    AnyTile,
    FmaTile,
    MmaTile,
    chunk_of,
    tiles_of,
)
from handgrad.ops.two_layer_step import shared_limit

THREADS = 128  # of every tile
WIDTHS = (32, 64, 128)  # of a tile of the forward kernel
MOST_PARTITIONS = 264  # two blocks on every multiprocessor of a large GPU
OTHER_PARTITIONS = (132, 528)
ROW_TILES_LEAST = 64  # with fewer, tiles of fewer samples spread the work over more of a GPU
SHARED_EVERYWHERE = 64 * 1024  # bytes of shared memory that a block has on every architecture
RING_BYTES, MOST_STAGES = 36 * 1024, 4  # of pair_forward's slabs

DEEP = FmaTile(64, 128, 16, 8, 8)  # as R4's LONG, with deeper slabs
# Of the forward kernel by width, the largest first; and of dW1, from D x H down.
FMA_FORWARD = {
    32: (NARROW, SMALL, FmaTile(32, 32, 16, 8, 4, 4)),
    64: (BROAD, MEDIUM, FmaTile(32, 64, 16, 8, 8, 4)),
    128: (DEEP, FmaTile(32, 128, 16, 8, 8, 2)),
}
DOUBLE_FORWARD = {
    32: (SMALL_DOUBLE, FmaTile(32, 32, 16, 2, 4)),
    64: (MEDIUM_DOUBLE, FmaTile(32, 64, 16, 4, 4)),
    128: (FmaTile(32, 128, 8, 4, 8),),
}
WARP_FORWARD = {  # BM, BN, BK, WM, WN
    32: (NARROW_WARPS, SMALL_WARPS, (32, 32, 16, 16, 16)),
    64: (BROAD_WARPS, MEDIUM_WARPS, (32, 64, 16, 16, 32)),
    128: (LONG_WARPS, (32, 128, 16, 32, 32)),
}
FMA_BACKWARD = {
    "float32": (WIDE, BROAD, DEEP, MEDIUM, NARROW, SMALL),
    "float64": (MEDIUM_DOUBLE, NARROW_DOUBLE, SMALL_DOUBLE),
}
WARP_BACKWARD = (LONG_WARPS, BROAD_WARPS, MEDIUM_WARPS, NARROW_WARPS, SMALL_WARPS)


@dataclass(frozen=True)
class PairTiling(Tiling):
    """R3's: tile and most partitions of pair_forward; tile of dW1 and the blocks that its split aims at."""

    forward: AnyTile
    partitions: int
    backward: AnyTile
    blocks: int


def forward_tiles(p: Problem) -> tuple[AnyTile, ...]:
    """Those of the problem's width and precision, the one with most samples first."""
    width = next(width for width in WIDTHS if width >= p.H)
    if p.precision in TENSOR:
        return tuple(MmaTile(p.precision, *one) for one in WARP_FORWARD[width])
    return (DOUBLE_FORWARD if p.precision == "float64" else FMA_FORWARD)[width]


def choose_forward_tile(p: Problem) -> AnyTile:
    """The first that makes enough tiles and fits everywhere, else the last."""
    tiles = forward_tiles(p)
    for tile in tiles:
        if tiles_of(p.N, tile.BM) >= ROW_TILES_LEAST and shared_bytes(p, tile) <= SHARED_EVERYWHERE:
            return tile
    return tiles[-1]


def shared_bytes(p: Problem, tile: AnyTile) -> int:
    """Shared memory of pair_forward, all of it dynamic, array by array."""
    banks = THREADS // tile.BM + 8  # from one row of A1 to the next
    pitch = -(-max(p.H - banks, 0) // 32) * 32 + banks
    slab = (tile.BM + tile.BN) * tile.BK
    ring = min(MOST_STAGES, RING_BYTES // (slab * p.itemsize)) * slab
    output = p.H + 2 * p.C * p.H + p.C + 2 * tile.BM * p.C + THREADS // 32
    return (max(ring, tile.BM * pitch) + output) * p.itemsize


def backward_tiles(precision: str) -> tuple[AnyTile, ...]:
    """Those of dW1, the largest first."""
    if precision not in TENSOR:
        return FMA_BACKWARD[precision]
    largest = 1 if precision == "3xtf32" else 0  # the one before spills
    return tuple(MmaTile(precision, *one) for one in WARP_BACKWARD[largest:])


def choose_backward_tile(D: int, H: int, precision: str) -> AnyTile:
    """The tile of dW1; not the widest, since one block alone adds up the splits of a tile."""
    if precision in TENSOR:
        if H <= NARROW.BN:
            return MmaTile(precision, *NARROW_WARPS)
        if D <= MEDIUM.BM or H <= MEDIUM.BN:
            return MmaTile(precision, *MEDIUM_WARPS)
        return MmaTile(precision, *BROAD_WARPS)
    if precision == "float64":
        return NARROW_DOUBLE if H <= NARROW_DOUBLE.BN else MEDIUM_DOUBLE
    if H <= NARROW.BN:
        return NARROW
    if D <= MEDIUM.BM:
        return DEEP if H > MEDIUM.BN else MEDIUM
    return BROAD


def chunk_forward(p: Problem, tile: AnyTile, most: int) -> int:
    """Samples of one of at most ``most`` partitions, whole tiles."""
    return tile.BM * max(1, tiles_of(tiles_of(p.N, tile.BM), most))


@functools.lru_cache(maxsize=64)
def tilings(problem: Problem) -> tuple[PairTiling, ...]:
    """Tiles that fit the shape and the architecture, by partitions and splits; the rule's first."""
    p, limit = problem, shared_limit(problem.arch)
    rule = choose_forward_tile(p)
    forward = [tile for tile in forward_tiles(p) if tile != rule and shared_bytes(p, tile) <= limit]
    backward = dict.fromkeys((choose_backward_tile(p.D, p.H, p.precision), *backward_tiles(p.precision)))

    def blocks_of(tile: AnyTile) -> int:
        splits = tiles_of(p.N, chunk_of(p, tile, SPLIT_BLOCKS))
        return splits * tiles_of(p.D, tile.BM) * tiles_of(p.H, tile.BN)

    return tuple(
        PairTiling(first, most, second, blocks)
        for first in worth_trying((rule, *forward), p.N, p.H, lambda tile: tiles_of(p.N, tile.BM))
        for second in worth_trying(tuple(backward), p.D, p.H, blocks_of, SPLIT_BLOCKS // 2)
        for most in differing((MOST_PARTITIONS, *OTHER_PARTITIONS), partial(chunk_forward, p, first))
        for blocks in differing((SPLIT_BLOCKS, *OTHER_BLOCKS), partial(chunk_of, p, second))
    )
