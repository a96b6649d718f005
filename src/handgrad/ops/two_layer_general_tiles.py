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
WIDTH = 4  # elements that a load of float32 or uint8 moves where rows allow
TENSOR = {"tf32": "Tf32", "3xtf32": "ThreeTf32", "bfloat16": "Bfloat16"}


@dataclass(frozen=True)
class FmaTile(Tile):
    """A tile of fused multiply-adds; ``slices``: grids of threads that share it, each with its own k."""

    slices: int = 1

    def __str__(self) -> str:
        return super().__str__() + (f"/{self.slices}" if self.slices > 1 else "")

    @property
    def threads(self) -> int:
        """Threads of the block that computes the tile."""
        return super().threads * self.slices

    @property
    def cpp(self) -> str:
        """The C++ type."""
        return f"Fma<{super().cpp}, {self.slices}>"


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

# Of 128 threads.  A thread that owns 8 x 8 elements makes 4 multiply-adds for each shared element that it
# loads; where the tile is too small for that many such threads, slices of k share it.
WIDE = FmaTile(128, 128, 8, 8, 16)
BROAD = FmaTile(128, 64, 16, 8, 8)  # of dW1 where its kernel computes dZ1, which takes registers too
LONG = FmaTile(64, 128, 8, 8, 8)  # of the second layer, above 16 columns
MEDIUM = FmaTile(64, 64, 16, 8, 8, 2)
NARROW = FmaTile(128, 32, 16, 8, 8, 2)  # up to 32 columns
SMALL = FmaTile(64, 32, 16, 8, 8, 4)
SKINNY = FmaTile(128, 16, 16, 8, 8, 4)  # of the second layer, up to 16 columns
SLIM = FmaTile(128, 4, 16, 4, 1)  # up to 4: memory bounds it
# Of float64, whose elements take two registers.
MEDIUM_DOUBLE = FmaTile(64, 64, 16, 8, 4)
NARROW_DOUBLE = FmaTile(128, 32, 16, 8, 4)
SMALL_DOUBLE = FmaTile(64, 32, 16, 4, 4)
SKINNY_DOUBLE = FmaTile(64, 16, 16, 2, 4)

# Of tensor cores: BM, BN, BK, WM, WN.
WIDE_WARPS = (128, 128, 16, 64, 64)
BROAD_WARPS = (128, 64, 16, 64, 32)
LONG_WARPS = (64, 128, 16, 32, 64)
MEDIUM_WARPS = (64, 64, 16, 32, 32)
NARROW_WARPS = (128, 32, 16, 32, 32)
SMALL_WARPS = (64, 32, 16, 32, 16)

# What tuning tries besides the rule's, the largest first ...
FMA_TILES = {
    "float32": (WIDE, BROAD, LONG, MEDIUM, NARROW, SMALL),
    "float64": (LONG, MEDIUM_DOUBLE, NARROW_DOUBLE, SMALL_DOUBLE),
}
WARP_TILES = (WIDE_WARPS, LONG_WARPS, BROAD_WARPS, MEDIUM_WARPS, NARROW_WARPS, SMALL_WARPS)
# ... from that one on whose kernel spills for no activation: of A1; of dW1; of dW1 where dZ1 is computed too,
# with loads of WIDTH elements and with others.  (An X of bytes that begins at no multiple of 4 is
# loaded byte by byte whatever its shape: that may spill some 30 bytes.)
LARGEST_HIDDEN = {"float32": 0, "float64": 0, "tf32": 1, "3xtf32": 1, "bfloat16": 1}
LARGEST_WEIGHT = {"float32": 0, "float64": 1, "tf32": 0, "3xtf32": 3, "bfloat16": 0}
LARGEST_LEAN = {"float32": 1, "float64": 3, "tf32": 2, "3xtf32": 3, "bfloat16": 2}
LARGEST_NARROW = LARGEST_LEAN | {"float32": 3}


def choose_tile(
    rows: int, columns: int, precision: str, split: bool = False, lean: bool = False, narrow: bool = False
) -> AnyTile:
    """The tile of a product with X: from the size of the result and the precision alone.

    ``split``: the product is split over the samples, so that large tiles leave no multiprocessor idle;
    ``lean``: its kernel needs registers for other things; ``narrow``: and for addresses of single elements.
    """
    tensor = precision in TENSOR
    if precision == "float64":
        if lean:
            return SMALL_DOUBLE
        return NARROW_DOUBLE if columns <= NARROW_DOUBLE.BN else MEDIUM_DOUBLE
    if columns <= NARROW.BN:
        return MmaTile(precision, *NARROW_WARPS) if tensor else NARROW
    wide_tiles = -(-rows // WIDE.BM) * -(-columns // WIDE.BN)
    enough = rows > MEDIUM.BM if split else wide_tiles >= WIDE_TILES_LEAST
    short = split if precision == "3xtf32" else lean and narrow and precision == "float32"
    if enough and columns > MEDIUM.BN and not short:
        if not tensor:
            return BROAD if lean else WIDE
        if lean or precision == "3xtf32":  # whose operands take twice the registers
            return MmaTile(precision, *BROAD_WARPS)
        return MmaTile(precision, *WIDE_WARPS)
    return MmaTile(precision, *MEDIUM_WARPS) if tensor else MEDIUM


def choose_output_tile(C: int, precision: str) -> AnyTile:
    """The tile of the second layer's products, A1 W2 and A1ᵀ dZ2."""
    if C <= SLIM.BN:
        return SLIM
    if precision == "float64":
        return SKINNY_DOUBLE if C <= FEW else SMALL_DOUBLE
    if C <= FEW:
        return SKINNY
    return MmaTile(precision, *MEDIUM_WARPS) if precision in TENSOR else LONG


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
    return (tensor or FMA_TILES[precision])[largest[precision] :]


def chunk_of(p: Problem, tile: AnyTile, blocks: int) -> int:
    """Samples in a partition of the weight product: for at most ``blocks`` blocks with this tile of dW1, or
    one a tile where there are more tiles."""
    wanted = max(1, blocks // (tiles_of(p.D, tile.BM) * tiles_of(p.H, tile.BN)))
    chunk = max(tiles_of(p.N, wanted), CHUNK_LEAST)
    return tiles_of(chunk, 16) * 16


def refusal_of_precision(problem: Problem) -> str:
    """Why the architecture cannot multiply so, in one line; "" where it can."""
    if problem.precision in TENSOR and problem.arch == "sm_75":
        return f"precision {problem.precision}: sm_75 multiplies neither tf32 nor bfloat16; take float32"
    return ""


@functools.lru_cache(maxsize=64)
def tilings(problem: Problem) -> tuple[GeneralTiling, ...]:
    """Tiles that fit the shape, by splits that differ; the rule's first."""
    p, lean = problem, problem.C <= FEW
    hidden = choose_tile(p.N, p.H, p.precision)
    narrow = p.D % WIDTH != 0 or p.H % WIDTH != 0
    weight = choose_tile(p.D, p.H, p.precision, split=True, lean=lean, narrow=narrow)
    largest_weight = LARGEST_WEIGHT if not lean else LARGEST_NARROW if narrow else LARGEST_LEAN

    def hidden_blocks(tile: AnyTile) -> int:
        return tiles_of(p.N, tile.BM) * tiles_of(p.H, tile.BN)

    def weight_blocks(tile: AnyTile) -> int:
        partitions = tiles_of(p.N, chunk_of(p, tile, SPLIT_BLOCKS))
        return tiles_of(p.D, tile.BM) * tiles_of(p.H, tile.BN) * partitions

    of_hidden = dict.fromkeys((hidden, *candidates(p.precision, LARGEST_HIDDEN)))
    of_weight = dict.fromkeys((weight, *candidates(p.precision, largest_weight)))
    return tuple(
        GeneralTiling(first, second, blocks)
        for first in worth_trying(tuple(of_hidden), p.N, p.H, hidden_blocks)
        for second in worth_trying(tuple(of_weight), p.D, p.H, weight_blocks, SPLIT_BLOCKS // 2)
        for blocks in differing((SPLIT_BLOCKS, *OTHER_BLOCKS), partial(chunk_of, p, second))
    )
