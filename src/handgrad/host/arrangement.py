"""How a step is cut: rows a block, rows a tile of a product; from the shape, the BLAS and the cache sizes.

Nothing is measured on the way: the same shape on the same machine is always cut alike, so that the same seed
and data give the same bits.  What :func:`handgrad.host.tuning.tune` measured, when asked, is used after that.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from handgrad.host import blas, remembered
from handgrad.measurements import Row

# OpenBLAS multiplies without packing up to 100³ multiplications (interface/gemm.c, *_small_matrix_permit).
SMALL_PRODUCT = 1_000_000
TILED_COLUMNS = 112  # of a product's result; with more, a packed product is as quick as its tiles
FORWARD_TILES = (48, 24, 12, 8, 4)  # rows that its kernels take without a remainder
INPUT_TILES = (64, 32, 16, 8, 4)
WEIGHT_TILES = (48, 24, 16, 12)  # fewer are slower than a packed product
TURNED_COLUMNS = 32  # up to as many, Aᵀ dZ is quicker in tiles than shared among BLAS's threads
LEAST_BLOCK, MOST_BLOCK = 96, 4096
EVEN = 16  # a block is a multiple of as many rows where it can be
BLAS_FLOPS = 8e6  # below as many a step, sharing its products among threads costs more than it saves
PARTS_FLOPS = (
    3e9  # below as many a step, BLAS's own threads, which stay awake, gain more than parts of its rows
)
PART_FLOPS = 1e8  # of a part, at least
PART_ROWS = 256  # likewise
MOST_GRADIENT_BYTES = 64 * 2**20  # of all parts together; larger networks leave threads to BLAS


@dataclass(frozen=True)
class Cut:
    """``block`` rows at a time; tiles of each layer's forward, weight and input products, 0 for whole."""

    block: int
    forward: tuple[int, ...]
    weight: tuple[int, ...]
    input: tuple[int, ...]


@functools.lru_cache(maxsize=256)
def cut(sizes: tuple[int, ...], rows: int, itemsize: int, shared: bool = False) -> Cut:
    """How a network of these widths works on ``rows`` rows, a thread's share or all: as measured, or by rule.

    ``shared``: BLAS shares each product among its threads.
    """
    rows = min(rows, MOST_BLOCK)
    entry = remembered.find(sizes, rows, itemsize, shared)
    measured = None if entry is None else _measured(entry, sizes, rows)
    return measured or rule(sizes, rows, itemsize, shared)


def _measured(entry: Row, sizes: tuple[int, ...], rows: int) -> Cut | None:
    """An entry of the file as a cut; None where it makes no sense."""
    try:
        block = int(entry["block"])
        tiles = [tuple(int(tile) for tile in entry[name]) for name in ("forward", "weight", "input")]
    except (KeyError, TypeError, ValueError):
        return None
    sound = 1 <= block <= rows and all(len(part) == len(sizes) - 1 and min(part) >= 0 for part in tiles)
    return Cut(block, *tiles) if sound else None


def rule(sizes: tuple[int, ...], rows: int, itemsize: int, shared: bool = False) -> Cut:
    """The arrangement that follows from the shape, the BLAS and the cache sizes."""
    small, l2 = blas.find().small_products, cache_bytes(2)
    pairs = list(itertools.pairwise(sizes))
    tiled = [
        small and not shared and h <= TILED_COLUMNS and d * h * itemsize <= l2 for d, h in pairs
    ]  # a larger W would be read anew by every tile
    row_bytes = itemsize * (sizes[0] + 2 * sum(sizes[1:]))
    block = max(LEAST_BLOCK, min(MOST_BLOCK, int(1.4 * l2) // row_bytes // 48 * 48))
    if not all(tiled):  # packed products pay for themselves on many rows
        block = min(MOST_BLOCK, 4 * block)
    block = even_block(max(1, min(block, rows)), rows)
    forward = tuple(
        _tile(FORWARD_TILES, block, d * h) if t else 0 for (d, h), t in zip(pairs, tiled, strict=True)
    )
    inputs = tuple(
        _tile(INPUT_TILES, block, d * h) if t else 0 for (d, h), t in zip(pairs, tiled, strict=True)
    )
    weight = tuple(
        _tile(WEIGHT_TILES, d, block * h) if t or (small and h <= TURNED_COLUMNS) else 0
        for (d, h), t in zip(pairs, tiled, strict=True)
    )
    return Cut(block, forward, weight, inputs)


def even_block(most: int, rows: int) -> int:
    """At most ``most`` rows, so that ``rows`` make blocks of nearly equal size, as few as there must be."""
    number = -(-rows // most)
    return min(most, -(-rows // (number * EVEN)) * EVEN)


def _tile(tiles: Sequence[int], rows: int, multiplications: int) -> int:
    """The largest tile whose product is small, at so many multiplications a row; 0 if none is, or if the
    product of all ``rows`` is small."""
    if rows * multiplications <= SMALL_PRODUCT:
        return 0
    return next((tile for tile in tiles if tile * multiplications <= SMALL_PRODUCT), 0)


def row_flops(sizes: tuple[int, ...]) -> int:
    """Multiplications and additions a row: forward, weight and input products, without dX."""
    products = sum(d * h for d, h in itertools.pairwise(sizes))
    return 2 * (3 * products - sizes[0] * sizes[1])


def parts(rows: int, flops: float, parameter_bytes: int) -> int:
    """Into how many parts to divide a step; 1 leaves threads to BLAS.

    It follows from the shape and from the cores of the machine, not from how many threads there are at the
    moment.  Every part has a gradient of its own, and adding them up has to stay cheap beside the products.
    """
    if flops < PARTS_FLOPS:
        return 1
    number = int(max(1, min(blas.machine_cores(), rows // PART_ROWS, flops // PART_FLOPS)))
    return number if number * parameter_bytes <= MOST_GRADIENT_BYTES else 1


@functools.cache
def cache_bytes(level: int) -> int:
    """Bytes of one core's level-1 or level-2 cache; a usual size where the system does not tell."""
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            if int((index / "level").read_text()) == level and (index / "type").read_text()[0] in "DU":
                size = (index / "size").read_text().strip()
                return int(size[:-1]) * {"K": 2**10, "M": 2**20}[size[-1]]
        except (OSError, ValueError, KeyError, IndexError):
            continue
    return {1: 32 * 2**10, 2: 512 * 2**10}[level]
