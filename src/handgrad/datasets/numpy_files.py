"""NumPy's own formats: ``.npz`` archives and memory-mapped ``.npy`` pairs.  Pickles are never loaded.

Headers are read and compared with the size of the file before anything is allocated.
"""

from __future__ import annotations

import io
import lzma
import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, BinaryIO, cast

import numpy as np

from handgrad.datasets.dataset import Array, DataError
from handgrad.datasets.idx import DEFLATE_RATIO, fill

STANDARD_NAMES = ("X", "y", "X_train", "y_train", "X_test", "y_test")
_SAVE_NUMBERS = "save features as X.astype('float32'), labels as numpy.unique(labels, return_inverse=True)[1]"
_BAD_HEADER = (ValueError, TypeError, SyntaxError, EOFError, RecursionError, MemoryError, tokenize.TokenError)
_BAD_ARCHIVE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,  # encrypted; its subclass NotImplementedError: an unknown compression
    ValueError,
    OSError,
)


def read_npz(path: Path, choose: Callable[[Path, list[str]], dict[str, str]]) -> dict[str, tuple[str, Array]]:
    """The arrays of ``path`` that ``choose(path, stored names)`` picks: its keys → (place, array)."""
    arrays: dict[str, tuple[str, Array]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = {
                _shown(name.removesuffix(".npy")): name
                for name in archive.namelist()
                if name.endswith(".npy")
            }
            for key, stored in choose(path, list(members)).items():
                arrays[key] = (
                    f"{path}: {stored}",
                    _read_member(archive, members[stored], f"{path}: {stored}"),
                )
    except DataError:
        raise
    except MemoryError:
        raise DataError(
            f"{path}: does not fit into memory; save X.npy and y.npy, which are memory-mapped"
        ) from None
    except _BAD_ARCHIVE as error:
        detail = " ".join(str(error).split())[:120] or "it ends early"
        raise DataError(f"{path}: truncated or damaged, or no .npz ({detail}); save it again") from None
    return arrays


def _shown(name: str) -> str:
    """A name out of a file, fit for a line of text."""
    return name if name.isprintable() else repr(name)[1:-1]


def feature_key(path: Path, stored: list[str]) -> dict[str, str]:
    """Which stored array holds features to predict for: the test part's, X, or the only one."""
    names = _standard_names(stored)
    for key in ("X_test", "X", "X_train"):
        if key in names:
            return {"X": names[key]}
    if len(stored) == 1:
        return {"X": stored[0]}
    held = ", ".join(sorted(stored)[:12]) or "no arrays"
    raise DataError(f"{path}: no array X (it holds {held}); save the features as X")


def _standard_names(stored: list[str]) -> dict[str, str]:
    """{"X_train": "x_train", …}: the case of letters does not matter, but an exact name goes first."""
    standard = {name.lower(): name for name in STANDARD_NAMES}
    found = {standard[name.lower()]: name for name in sorted(stored) if name.lower() in standard}
    return found | {name: name for name in stored if name in STANDARD_NAMES}


def part_keys(path: Path, stored: list[str]) -> dict[str, str]:
    """Which stored array is which part: {"X_train": "x_train", …}."""
    by_part = _standard_names(stored)
    names = {"X": "X_train", "y": "y_train"} if {"X", "y"} <= by_part.keys() else {}
    names = names or {key: key for key in ("X_train", "y_train", "X_test", "y_test")}
    chosen = {part: by_part[key] for key, part in names.items() if key in by_part}
    wanted = set(names.values()) if "X_test" in chosen or "y_test" in chosen else {"X_train", "y_train"}
    if wanted - chosen.keys():
        held = ", ".join(sorted(stored)[:12]) or "no arrays"
        raise DataError(
            f"{path}: {' and '.join(sorted(wanted - chosen.keys()))} missing (it holds {held}); "
            "save X, y, or X_train, y_train, X_test, y_test"
        )
    return chosen


def _read_member(archive: zipfile.ZipFile, member: str, place: str) -> Array:
    info = archive.getinfo(member)
    with archive.open(info) as stream:
        shape, fortran, dtype = read_header(stream, place)
        size = math.prod(shape) * dtype.itemsize
        most = info.file_size
        if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            most = min(most, info.compress_size * DEFLATE_RATIO)
        check_size(place, shape, dtype, most - stream.tell())
        values = np.empty(math.prod(shape), dtype=dtype)
        have = fill(values, cast(BinaryIO, stream))
        if have < size:
            check_size(place, shape, dtype, have)
        if stream.read(1):  # reading to the end also compares the checksum
            raise DataError(f"{place}: more bytes than shape {shape} of {dtype} needs; save it again")
    return values.reshape(shape, order="F" if fortran else "C")


def map_npy(path: Path) -> Array:
    """``path`` memory-mapped, read-only, after its header was found to fit its size."""
    try:
        with path.open("rb") as stream:
            shape, _, dtype = read_header(stream, str(path))
            check_size(str(path), shape, dtype, path.stat().st_size - stream.tell())
        mapped: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the file") from None
    return mapped


def read_header(stream: IO[bytes], place: str) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Shape, Fortran order and dtype of the ``.npy`` that ``stream`` opens; a dtype of plain numbers."""
    start = stream.read(8)
    if start[:6] != np.lib.format.MAGIC_PREFIX:
        what = f"wrong magic {start[:6].hex(' ')} at byte 0" if start else "empty file"
        raise DataError(f"{place}: {what}, expected 93 4e 55 4d 50 59 (.npy); save it with numpy.save")
    version = tuple(start[6:])
    try:
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        else:
            raise DataError(f"{place}: .npy version {version}, expected 1.0 or 2.0; save it with numpy.save")
    except DataError:
        raise
    except _BAD_HEADER as error:
        detail = " ".join(str(error).split())[:120]
        raise DataError(f"{place}: truncated or damaged .npy header ({detail}); save it again") from None
    if dtype.hasobject:
        raise DataError(
            f"{place}: dtype {dtype} is a pickle of Python objects, which is never loaded; {_SAVE_NUMBERS}"
        )
    if dtype.kind not in "biuf":
        raise DataError(f"{place}: dtype {dtype}, expected integers or floats; {_SAVE_NUMBERS}")
    if not all(0 <= size < 2**48 for size in shape):
        raise DataError(f"{place}: damaged .npy header: shape {shape}; save it again")
    return shape, fortran, dtype


def check_size(place: str, shape: tuple[int, ...], dtype: np.dtype[np.generic], available: int) -> None:
    """Raise where ``available`` bytes cannot hold the array that the header promises."""
    if math.prod(shape) * dtype.itemsize > available:
        row_bytes = max(1, math.prod(shape[1:]) * dtype.itemsize)
        raise DataError(
            f"{place}: truncated: the header promises shape {shape} of {dtype}, "
            f"the file ends in row {max(0, available) // row_bytes}; save or copy it again"
        )


def npy_bytes(array: Array) -> bytes:
    """``array`` as the bytes of a ``.npy`` file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()
