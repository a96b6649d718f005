"""The order of the rows of an epoch, by blocks.

With the N rows in blocks of B (the last may be short), epoch e of seed s visits

* the blocks in the order ``Generator(PCG64([s, e, 0])).permutation(⌈N / B⌉)``,
* the rows of block b in the order ``Generator(PCG64([s, e, 1 + b])).permutation(rows of b)``;
* with one block, B ≥ N, all rows in the order ``Generator(PCG64([s, e])).permutation(N)``, as in memory.

Batches are cut from the rows in this order and may hold the end of one block and the beginning of the next.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def block_order(
    N: int, block_rows: int, seed: int, epoch: int, shuffle: bool = True
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """For each block in turn its first row, and the order of its rows, counted from there."""
    count = -(-N // block_rows)
    blocks = _permutation(count, seed, epoch, 0) if shuffle else np.arange(count)
    for block in blocks.tolist():
        rows = min(block_rows, N - block * block_rows)
        if not shuffle:
            order = np.arange(rows)
        elif count == 1:
            order = _permutation(rows, seed, epoch)
        else:
            order = _permutation(rows, seed, epoch, 1 + block)
        yield block * block_rows, order


def streamed_order(N: int, block_rows: int, seed: int, epoch: int, shuffle: bool = True) -> NDArray[np.int64]:
    """The row numbers (N,) of an epoch: what a streamed training visits, for one in memory."""
    blocks = [first + order for first, order in block_order(N, block_rows, seed, epoch, shuffle)]
    return np.concatenate(blocks) if blocks else np.arange(0)


def _permutation(count: int, *words: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.PCG64(list(words))).permutation(count)
