"""Tiles and tilings of R4, the general path of a two-layer step: from the shape and the types alone.

Used by :mod:`handgrad.ops.two_layer_general_geometry`.  Test: ``tests/test_two_layer_general.py``,
``tests/test_tilings.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from handgrad.ops.linear import Tile
from handgrad.ops.tilings import Tiling, differing, worth_trying
from handgrad.ops.two_layer import Problem

FEW = 16  # columns of the output up to which one tile holds whole rows, and dZ1 is computed, not stored
WIDE_TILES_LEAST = 64  # below as many 128 x 128 tiles, smaller ones spread the work over more of a GPU
SPLIT_BLOCKS = 256  # blocks that the weight product aims at: about two on each multiprocessor of a large GPU
OTHER_BLOCKS = (128, 512, 1024)  # that tuning tries
CHUNK_LEAST = 128  # samples in one of its partitions, at least
TENSOR = {"tf32": "Tf32", "3xtf32": "ThreeTf32", "bfloat16": "Bfloat16"}


@dataclass(frozen=True)
class FmaTile(Tile):
    """A tile of fused multiply-adds."""

    @property
    def cpp(self) -> str:
        """The C++ type."""
        return f"Fma<{super().cpp}>"


@dataclass(frozen=True)
class MmaTile:
    """A tile of tensor-core products: BM x BN elements, in slabs of BK, WM x WN a warp."""

    precision: str
    BM: int
    BN: int
    BK: int
    WM: int
    WN: int

    def __str__(self) -> str:
        return f"{self.BM}x{self.BN}x{self.BK}/{self.WM}x{self.WN}"

    @property
    def cpp(self) -> str:
        """The C++ type."""
        sizes = ", ".join(str(size) for size in (self.BM, self.BN, self.BK, self.WM, self.WN))
        return f"Mma<{TENSOR[self.precision]}, WarpTile<{sizes}>>"


AnyTile = FmaTile | MmaTile

WIDE = FmaTile(128, 128, 8, 8, 16)
BROAD = FmaTile(128, 64, 16, 8, 8)  # of dW1 where its kernel computes dZ1, which takes registers too
MEDIUM = FmaTile(64, 64, 16, 8, 4)
LONG = FmaTile(64, 128, 8, 8, 8)  # of the second layer, above 16 columns
NARROW = FmaTile(128, 32, 16, 8, 4)  # up to 32 columns
SKINNY = FmaTile(128, 16, 16, 4, 4)  # up to 16
SHORT = FmaTile(64, 16, 16, 2, 4)  # the same in float64
SMALL = FmaTile(64, 32, 16, 4, 4)  # of float64, where registers are short
SLIM = FmaTile(128, 4, 16, 4, 1)  # up to 4

# What tuning tries besides the rule's, the largest first ...
FMA_TILES = (WIDE, BROAD, LONG, MEDIUM, NARROW, SMALL)
WARP_TILES = (  # BM, BN, BK, WM, WN
    *((128, 128, 16, 64, 64), (64, 128, 16, 32, 64), (128, 64, 16, 64, 32), (64, 64, 16, 32, 32)),
    *((128, 32, 16, 32, 32), (64, 32, 16, 32, 16)),
)
# ... from that one on whose kernel spills for no activation: of A1; of dW1; of dW1 where dZ1 is computed too.
LARGEST_HIDDEN = {"float32": 0, "float64": 2, "tf32": 1, "3xtf32": 1, "bfloat16": 1}
LARGEST_WEIGHT = {"float32": 0, "float64": 3, "tf32": 0, "3xtf32": 1, "bfloat16": 0}
LARGEST_LEAN = {"float32": 1, "float64": 5, "tf32": 2, "3xtf32": 3, "bfloat16": 2}


def choose_tile(rows: int, columns: int, precision: str, split: bool = False, lean: bool = False) -> AnyTile:
    """The tile of a product with X: from the size of the result and the precision alone.

    ``split``: the product is split over the samples, so that large tiles leave no multiprocessor idle;
    ``lean``: its kernel needs registers for other things.
    """
    tensor = precision in TENSOR
    if lean and precision == "float64":
        return SMALL
    if columns <= NARROW.BN:
        return MmaTile(precision, 128, 32, 16, 32, 32) if tensor else NARROW
    wide_tiles = -(-rows // WIDE.BM) * -(-columns // WIDE.BN)
    enough = rows > MEDIUM.BM if split else wide_tiles >= WIDE_TILES_LEAST
    if enough and columns > MEDIUM.BN and precision != "float64":
        if not tensor:
            return BROAD if lean else WIDE
        if lean or precision == "3xtf32":  # whose operands take twice the registers
            return MmaTile(precision, 128, 64, 16, 64, 32)
        return MmaTile(precision, 128, 128, 16, 64, 64)
    return MmaTile(precision, 64, 64, 16, 32, 32) if tensor else MEDIUM


def choose_output_tile(C: int, precision: str) -> AnyTile:
    """The tile of the second layer's products, A1 W2 and A1ᵀ dZ2."""
    if C <= SLIM.BN:
        return SLIM
    if precision == "float64":
        return SHORT if C <= FEW else SMALL
    if C <= FEW:
        return SKINNY
    return MmaTile(precision, 64, 64, 16, 32, 32) if precision in TENSOR else LONG


def tiles_of(size: int, side: int) -> int:
    """Tiles of this side that cover ``size``."""
    return -(-size // side)


@dataclass(frozen=True)
class GeneralTiling(Tiling):
    """R4's: tiles of A1 and of dW1, and the blocks that the split of dW1 over the samples aims at."""

    hidden: AnyTile
    weight: AnyTile
    blocks: int


def candidates(precision: str, largest: Mapping[str, int]) -> tuple[AnyTile, ...]:
    """The tiles of the precision from its ``largest`` on."""
    tensor = tuple(MmaTile(precision, *one) for one in WARP_TILES) if precision in TENSOR else ()
    return (tensor or FMA_TILES)[largest[precision] :]


def chunk_of(p: Problem, tile: AnyTile, blocks: int) -> int:
    """Samples in a partition of the weight product, for about ``blocks`` blocks with this tile of dW1."""
    wanted = tiles_of(blocks, tiles_of(p.D, tile.BM) * tiles_of(p.H, tile.BN))
    chunk = max(tiles_of(p.N, wanted), CHUNK_LEAST)
    return tiles_of(chunk, 16) * 16


@functools.lru_cache(maxsize=64)
def tilings(problem: Problem) -> tuple[GeneralTiling, ...]:
    """Tiles that fit the shape, by splits that differ; the rule's first."""
    p, lean = problem, problem.C <= FEW
    hidden = choose_tile(p.N, p.H, p.precision)
    weight = choose_tile(p.D, p.H, p.precision, split=True, lean=lean)

    def hidden_blocks(tile: AnyTile) -> int:
        return tiles_of(p.N, tile.BM) * tiles_of(p.H, tile.BN)

    def weight_blocks(tile: AnyTile) -> int:
        partitions = tiles_of(p.N, chunk_of(p, tile, SPLIT_BLOCKS))
        return tiles_of(p.D, tile.BM) * tiles_of(p.H, tile.BN) * partitions

    of_hidden = dict.fromkeys((hidden, *candidates(p.precision, LARGEST_HIDDEN)))
    of_weight = dict.fromkeys((weight, *candidates(p.precision, LARGEST_LEAN if lean else LARGEST_WEIGHT)))
    return tuple(
        GeneralTiling(first, second, blocks)
        for first in worth_trying(tuple(of_hidden), p.N, p.H, hidden_blocks)
        for second in worth_trying(tuple(of_weight), p.D, p.H, weight_blocks, SPLIT_BLOCKS // 2)
        for blocks in differing((SPLIT_BLOCKS, *OTHER_BLOCKS), partial(chunk_of, p, second))
    )
