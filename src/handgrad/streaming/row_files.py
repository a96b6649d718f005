"""Files whose rows are read from anywhere, without holding the file: ``.npy`` and IDX, joined end to end.

Rows are read with ``read``, not memory-mapped: mapped pages would count as the process's memory.
"""

from __future__ import annotations

import bisect
import itertools
import math
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from handgrad.datasets import DataError
from handgrad.datasets.dataset import Array, existing_file
from handgrad.datasets.idx import UNSIGNED_BYTE
from handgrad.datasets.numpy_files import check_size, read_header


class Rows(Protocol):
    """``read(first, last)`` gives rows first .. last - 1 as a new array (n, …) of ``dtype``."""

    @property
    def name(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def row_shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[np.generic]: ...
    def read(self, first: int, last: int) -> Array: ...


@dataclass(frozen=True)
class RowFile:
    """A file of rows of one size that begin at byte ``offset``."""

    path: Path
    count: int
    row_shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    offset: int

    @property
    def name(self) -> str:
        return str(self.path)

    def read(self, first: int, last: int) -> Array:
        """Raises :class:`DataError` where the file has become shorter or cannot be read."""
        size = math.prod(self.row_shape)
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset + first * size * self.dtype.itemsize)
                values = np.fromfile(file, dtype=self.dtype, count=(last - first) * size)
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be read ({error.strerror or error}); check the file"
            ) from error
        if values.size < (last - first) * size:
            raise DataError(
                f"{self.path}: truncated: it ends before row {last}, which it had at the start; copy it again"
            )
        return values.reshape(last - first, *self.row_shape)


@dataclass(frozen=True)
class JoinedRows:
    """Several :class:`Rows` of one dtype and row shape, one after the other."""

    parts: tuple[Rows, ...]

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *itertools.accumulate(part.count for part in self.parts)]

    @property
    def name(self) -> str:
        return self.parts[0].name

    @property
    def count(self) -> int:
        return self._starts[-1]

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.parts[0].row_shape

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return self.parts[0].dtype

    def read(self, first: int, last: int) -> Array:
        """As :meth:`RowFile.read`."""
        values = np.empty((last - first, *self.row_shape), dtype=self.dtype)
        number = bisect.bisect_right(self._starts, first) - 1
        at = first
        while at < last:
            begin, end = self._starts[number], min(self._starts[number + 1], last)
            if end > at:
                values[at - first : end - first] = self.parts[number].read(at - begin, end - begin)
            at, number = max(at, end), number + 1
        return values


def open_npy(path: Path) -> RowFile:
    """The rows of a ``.npy`` in C order; :class:`DataError` for what is none or too short."""
    try:
        with existing_file(path).open("rb") as stream:
            shape, fortran, dtype = read_header(stream, str(path))
            offset = stream.tell()
        check_size(str(path), shape, dtype, path.stat().st_size - offset)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the file") from None
    if not shape:
        raise DataError(f"{path}: a single number; expected one row a sample")
    if fortran and len(shape) > 1:
        raise DataError(f"{path}: in Fortran order, so that rows are scattered; save numpy.ascontiguousarray")
    return RowFile(path, shape[0], shape[1:], dtype, offset)


def open_idx(path: Path, *, labels: bool) -> RowFile:
    """The rows of an IDX file of unsigned bytes; gzipped ones cannot be read from the middle."""
    expected = 1 if labels else 3  # dimensions
    try:
        with existing_file(path).open("rb") as stream:
            start = stream.read(4 + 4 * expected)
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the file") from None
    if start[:2] == b"\x1f\x8b":
        raise DataError(f"{path}: gzipped, so that it cannot be read in blocks; gunzip it")
    if len(start) < 4 + 4 * expected or start[:4] != bytes((0, 0, UNSIGNED_BYTE, expected)):
        raise DataError(
            f"{path}: wrong magic {start[:4].hex(' ')} at byte 0, expected 00 00 08 {expected:02x}; "
            "check that the file is the one its name says"
        )
    shape = struct.unpack(f">{expected}I", start[4:])
    check_size(str(path), shape, np.dtype(np.uint8), size - len(start))
    return RowFile(path, shape[0], shape[1:], np.dtype(np.uint8), len(start))
