"""The IDX format of MNIST: ``00 00 type ndim``, ``ndim`` big-endian 32-bit sizes, then the values.

Format: Yann LeCun, Corinna Cortes, Christopher Burges, "The MNIST database of handwritten digits".
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from handgrad.datasets.dataset import Array, DataError

UNSIGNED_BYTE = 0x08
OTHER_TYPES = {0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
DEFLATE_RATIO = 1032  # deflate never makes more than this many bytes out of one
BLOCK = 1 << 20

FILES = {
    "X_train": ("train-images", 3),
    "y_train": ("train-labels", 1),
    "X_test": ("t10k-images", 3),
    "y_test": ("t10k-labels", 1),
}


def file_names(stem: str, ndim: int) -> list[str]:
    """The names under which MNIST's files are found, in the order they are tried."""
    return [f"{stem}{mark}idx{ndim}-ubyte{ending}" for ending in ("", ".gz") for mark in ("-", ".")]


def read_directory(directory: Path) -> dict[str, tuple[Path, Array]]:
    """The four files of ``directory``: ``X_train``, ``y_train``, ``X_test``, ``y_test`` → (path, array)."""
    paths: dict[str, Path] = {}
    for key, (stem, ndim) in FILES.items():
        found = [directory / name for name in file_names(stem, ndim) if (directory / name).is_file()]
        if found:
            paths[key] = found[0]
    missing = [file_names(*FILES[key])[0] for key in FILES if key not in paths]
    if len(missing) == len(FILES):
        raise DataError(
            f"{directory}: no IDX files; expected {', '.join(missing)} (or .gz), or name an .npz or .csv file"
        )
    if missing:
        raise DataError(f"{directory}: {', '.join(missing)} (or .gz) missing; put all four IDX files there")
    return {key: (path, read_idx(path, labels=key.startswith("y"))) for key, path in paths.items()}


def read_idx(path: Path, *, labels: bool) -> Array:
    """The unsigned bytes of one IDX file, gzipped or not (the content tells): (N, …), or (N,) for labels."""
    try:
        with path.open("rb") as raw:
            gzipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            # whatever the header promises, no more than the file can hold is ever allocated
            most = path.stat().st_size * (DEFLATE_RATIO if gzipped else 1)
            if not gzipped:
                return _read_stream(raw, path, labels, most)
            with gzip.GzipFile(fileobj=raw) as stream:
                return _read_stream(cast(BinaryIO, stream), path, labels, most)
    except EOFError:
        raise DataError(f"{path}: truncated: the gzip stream ends early; fetch the file again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip stream ({error}); fetch the file again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the file") from None


def _read_stream(stream: BinaryIO, path: Path, labels: bool, most: int) -> Array:
    kind, expected = ("labels", 1) if labels else ("images", 3)  # dimensions
    start = stream.read(4)
    if len(start) < 4:
        raise DataError(f"{path}: truncated: {len(start)} bytes, no IDX header; fetch the file again")
    zeros, type_code, ndim = struct.unpack(">HBB", start)
    if zeros != 0 or (type_code != UNSIGNED_BYTE and type_code not in OTHER_TYPES) or ndim != expected:
        raise DataError(
            f"{path}: wrong magic {start.hex(' ')} at byte 0, expected 00 00 08 {expected:02x} "
            f"for IDX {kind}; check that the file is the one its name says"
        )
    if type_code != UNSIGNED_BYTE:
        raise DataError(
            f"{path}: dtype {OTHER_TYPES[type_code]} (type code {type_code:#04x} at byte 2), "
            "expected uint8 (0x08); convert the values to unsigned bytes"
        )
    sizes = stream.read(4 * ndim)
    if len(sizes) < 4 * ndim:
        raise DataError(f"{path}: truncated inside the header's sizes; fetch the file again")
    shape = struct.unpack(f">{ndim}I", sizes)
    promised, row_bytes = math.prod(shape), max(1, math.prod(shape[1:]))
    if promised == 0:
        raise DataError(f"{path}: shape {shape}, an empty set; give at least one sample")
    if promised > most:
        values = np.empty(0, dtype=np.uint8)
        have = _count(stream, promised)
    else:
        values = np.empty(promised, dtype=np.uint8)
        have = fill(values, stream)
    if have < promised:
        raise DataError(
            f"{path}: truncated: the header promises {shape[0]} rows of {row_bytes} bytes, "
            f"the file ends in row {have // row_bytes}; fetch the file again"
        )
    if stream.read(1):  # reading to the end also checks gzip's checksum
        raise DataError(
            f"{path}: more bytes than the {shape[0]} rows of {row_bytes} bytes in its header; fetch it again"
        )
    return values.reshape(shape)


def fill(values: Array, stream: BinaryIO) -> int:
    """Read ``values.nbytes`` bytes into the contiguous array ``values``; how many there were."""
    target = values.reshape(-1).view(np.uint8).data
    have = 0
    while have < len(target):
        block = stream.read(min(BLOCK, len(target) - have))
        if not block:
            break
        target[have : have + len(block)] = block
        have += len(block)
    return have


def _count(stream: BinaryIO, limit: int) -> int:
    have = 0
    while have < limit and (block := stream.read(BLOCK)):
        have += len(block)
    return have
