"""A part of a set that stays on disk: what is in it, how it is scaled, and how it goes to a network."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from handgrad.datasets import DataError, LabelError
from handgrad.datasets.dataset import Array, Dataset
from handgrad.datasets.digest import BLOCKS
from handgrad.datasets.idx import FILES, file_names
from handgrad.datasets.parts import as_native, check_finite
from handgrad.streaming.row_files import Rows, open_idx, open_npy
from handgrad.streaming.shard_files import INDEX, Pair, open_shards

if TYPE_CHECKING:
    from handgrad.network import MLP
    from handgrad.streaming.streamed_samples import StreamedSamples

BLOCK_BYTES = 32 << 20  # of features in a block, where nothing else is said
DIGEST_ROWS = 64  # a place
TEST_SHARE = 5  # one in so many rows is held out where there is no test part: the last ones


@dataclass(frozen=True, eq=False)
class Stream:
    """Rows ``first`` .. ``last`` - 1 of features and targets on disk, read ``block_rows`` at a time.

    scale, shift, classes, name: as those of :class:`handgrad.datasets.Dataset`
    """

    features: Rows
    targets: Rows
    first: int
    last: int
    block_rows: int
    scale: float = 1.0
    shift: float = 0.0
    classes: int = 0
    name: str = ""

    def __len__(self) -> int:
        return self.last - self.first

    @property
    def X(self) -> Array:
        """Shape (N, D) and dtype of the features alone: zeros that take no memory."""
        width = int(np.prod(self.features.row_shape))
        return np.broadcast_to(np.zeros((), _native(self.features.dtype)), (len(self), width))

    @property
    def y(self) -> Array:
        """Shape and dtype of the targets alone, as :attr:`X`."""
        if self.classes:
            return np.broadcast_to(np.zeros((), np.int64), (len(self),))
        width = int(np.prod(self.targets.row_shape))
        return np.broadcast_to(np.zeros((), _native(self.targets.dtype)), (len(self), width))

    def head(self, count: int) -> Stream:
        """The first ``count`` rows."""
        return replace(self, last=min(self.last, self.first + count))

    def rest(self, count: int) -> Stream:
        """All but the first ``count`` rows."""
        return replace(self, first=min(self.last, self.first + count))

    def read(self, first: int, last: int) -> tuple[Array, Array]:
        """Rows ``first`` .. ``last`` - 1 of this part as (n, D) and labels (n,) or targets (n, C), checked.

        Raises :class:`DataError` for NaN, inf and labels out of range, with the row counted in the file.
        """
        begin = self.first + first
        rows = last - first
        X = as_native(self.features.read(begin, begin + rows).reshape(rows, -1))
        check_finite(X, lambda row, column: f"{self.features.name}: row {begin + row}, column {column}")
        y = self.targets.read(begin, begin + rows)
        if not self.classes:
            y = as_native(y.reshape(rows, -1))
            check_finite(y, lambda row, column: f"{self.targets.name}: row {begin + row}, column {column}")
            return X, y
        labels = y.reshape(rows)
        if rows and not 0 <= labels.min() <= labels.max() < self.classes:
            row = int(np.flatnonzero((labels < 0) | (labels >= self.classes))[0])
            raise LabelError(
                f"{self.targets.name}: row {begin + row} is label {labels[row]}",
                f"out of range 0 to {self.classes - 1}; correct it or give more classes",
            )
        return X, labels.astype(np.int64)

    def in_memory(self) -> Dataset:
        """All rows of this part, read."""
        return Dataset(*self.read(0, len(self)), self.scale, self.shift, self.classes, self.name)

    def digest(self) -> str:
        """As :func:`handgrad.datasets.digest.digest`, of rows at 256 places spread over the part."""
        found = hashlib.sha256(f"{self.scale!r} {self.shift!r} {self.classes} {len(self)}".encode())
        starts = np.linspace(0, max(0, len(self) - DIGEST_ROWS), BLOCKS).astype(int)
        for start in np.unique(starts).tolist():
            for array in self.read(start, min(len(self), start + DIGEST_ROWS)):
                found.update(f"{array.shape} {array.dtype.str}".encode() + array.tobytes())
        return found.hexdigest()[:16]

    def for_network(self, net: MLP) -> StreamedSamples:
        """These samples for ``net``; :class:`DataError` where they do not fit."""
        from handgrad.streaming.streamed_samples import StreamedSamples

        return StreamedSamples(net, self)


class StreamSplit(NamedTuple):
    """A training and a test part with the same features, scale and classes."""

    train: Stream
    test: Stream


def open_stream(
    spec: str | Path, *, task: str = "auto", classes: int | None = None, block_rows: int | None = None
) -> StreamSplit:
    """Both parts of ``spec``; the formats stand at the head of :mod:`handgrad.streaming`.

    The targets are read once, for the number of classes; features only to tell pixels from other bytes.
    ``block_rows``: None takes 32 MiB of features.  Raises :class:`DataError` in one line.
    """
    train, test = _pairs(str(spec))
    for X, y in (train, *([test] if test else [])):
        if X.count != y.count or X.count == 0 or not X.row_shape:
            raise DataError(
                f"{X.name}: {X.count} rows of shape {X.row_shape} and {y.count} targets; "
                "expected (samples, features) with one target each"
            )
    labels = task == "classification" or (task == "auto" and train[1].dtype.kind in "biu")
    count = _classes(train[1], classes) if labels else 0
    bytes_a_row = int(np.prod(train[0].row_shape)) * _native(train[0].dtype).itemsize
    rows = block_rows or max(1, BLOCK_BYTES // max(1, bytes_a_row))
    scale = 1.0 / 255.0 if _are_pixels(train[0], rows) else 1.0
    whole = Stream(*train, 0, train[0].count, rows, scale, 0.0, count, str(spec))
    if test is not None:
        return StreamSplit(whole, Stream(*test, 0, test[0].count, rows, scale, 0.0, count, str(spec)))
    held = max(1, len(whole) // TEST_SHARE)
    if len(whole) < 2:
        raise DataError(f"{spec}: 1 sample, but holding out a test part needs 2; give more, or a test part")
    return StreamSplit(whole.head(len(whole) - held), whole.rest(len(whole) - held))


def _pairs(spec: str) -> tuple[Pair, Pair | None]:
    if spec.lower().endswith(".npy"):
        files = [open_npy(Path(name.strip()).expanduser()) for name in spec.split(",")]
        if len(files) not in (2, 4):
            raise DataError(f"{spec}: expected X.npy,y.npy or X.npy,y.npy,X_test.npy,y_test.npy")
        return (files[0], files[1]), (files[2], files[3]) if len(files) == 4 else None
    folder = Path(spec).expanduser()
    if (folder / INDEX).is_file():
        return open_shards(folder)
    paths = {
        key: next((folder / name for name in file_names(*kind) if (folder / name).is_file()), None)
        for key, kind in FILES.items()
    }
    if None in paths.values():
        raise DataError(
            f"{spec}: cannot be streamed; expected X.npy,y.npy, a directory with index.json, or one with "
            "the four IDX files"
        )
    opened = {key: open_idx(path, labels=key.startswith("y")) for key, path in paths.items() if path}
    return (opened["X_train"], opened["y_train"]), (opened["X_test"], opened["y_test"])


def _classes(targets: Rows, classes: int | None) -> int:
    """The number of classes: the greatest label + 1, where it is not given; looked at block by block."""
    if targets.row_shape not in ((), (1,)):
        raise DataError(
            f"{targets.name}: {targets.dtype} rows of shape {targets.row_shape}; expected one label each"
        )
    low, high, step = 0, 0, 1 << 20
    for first in range(0, targets.count, step):
        labels = targets.read(first, min(targets.count, first + step))
        low, high = min(low, int(labels.min())), max(high, int(labels.max()))
    if low < 0 or high >= 2**31 or (classes is None and high == 0):
        raise DataError(f"{targets.name}: labels from {low} to {high}; number the classes 0, 1, 2, …")
    if classes is not None and high >= classes:
        raise LabelError(
            f"{targets.name}: label {high}", f"out of range 0 to {classes - 1}; give more classes"
        )
    return classes or high + 1


def _are_pixels(features: Rows, rows: int) -> bool:
    """Whether bytes are pixels: some value is above 1, as :func:`handgrad.datasets.load` tells it."""
    if features.dtype != np.uint8:
        return False
    starts = range(0, features.count, rows)
    return any(bool((features.read(i, min(features.count, i + rows)) > 1).any()) for i in starts)


def _native(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    return as_native(np.empty((0, 1), dtype=dtype)).dtype
