"""A digest of a data set: whether two processes, or one and its continuation, train on the same."""

from __future__ import annotations

import hashlib

import numpy as np

from handgrad.datasets.dataset import Array, Dataset

DIGEST_BYTES = 64 << 20  # of each array; of a larger one, blocks spread evenly over it
BLOCKS = 256


def digest(data: Dataset) -> str:
    """sha256 over shapes, dtypes, scale and contents, as 16 hexadecimal digits.

    Of an array beyond 64 MiB 256 blocks of 256 KiB are read, the first and the last among them.
    """
    if hasattr(data, "digest"):  # a stream
        return str(data.digest())
    found = hashlib.sha256(f"{data.scale!r} {data.shift!r} {data.classes}".encode())
    for array in (data.X, data.y):
        found.update(f"{array.shape} {array.dtype.str}".encode())
        for rows in _blocks(array):
            found.update(np.ascontiguousarray(rows).tobytes())
    return found.hexdigest()[:16]


def _blocks(array: Array) -> list[Array]:
    if array.nbytes <= DIGEST_BYTES:
        return [array]
    count = max(1, DIGEST_BYTES // BLOCKS * len(array) // array.nbytes)  # rows a block
    starts = np.linspace(0, len(array) - count, BLOCKS).astype(int)
    return [array[start : start + count] for start in starts]
