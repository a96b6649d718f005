"""Writers of data files for the tests, independent of the readers, and a look at the messages of bad ones."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handgrad import datasets
from handgrad.datasets import DataError


def idx_bytes(array: np.ndarray) -> bytes:
    """An IDX file written independently of the reader: magic, sizes, values."""
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype("u1").tobytes()


def write_idx(folder: Path, mark: str = "-", ending: str = "", train: int = 60, test: int = 20) -> dict:
    rng = np.random.default_rng(3)
    arrays = {
        f"train-images{mark}idx3-ubyte": rng.integers(0, 256, (train, 4, 5)),
        f"train-labels{mark}idx1-ubyte": np.arange(train) % 10,
        f"t10k-images{mark}idx3-ubyte": rng.integers(0, 256, (test, 4, 5)),
        f"t10k-labels{mark}idx1-ubyte": np.arange(test)[::-1] % 10,
    }
    for name, array in arrays.items():
        content = idx_bytes(array)
        (folder / (name + ending)).write_bytes(gzip.compress(content) if ending else content)
    return dict(zip(("X_train", "y_train", "X_test", "y_test"), arrays.values(), strict=True))


def message(spec: object, **options: Any) -> str:
    """The one line that loading ``spec`` fails with."""
    with pytest.raises(DataError) as caught:
        datasets.load(str(spec), **options)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 600
    assert line.count("; ") >= 1, "the remedy stands behind a semicolon"
    return line


def says(line: str, *words: str) -> None:
    for word in words:
        assert word in line, f"{word!r} not in {line!r}"


def npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "d.npz", **arrays)
    return folder / "d.npz"


def npy_pair(folder: Path, X: np.ndarray, y: np.ndarray) -> str:
    np.save(folder / "X.npy", X)
    np.save(folder / "y.npy", y)
    return f"{folder / 'X.npy'},{folder / 'y.npy'}"


def csv(folder: Path, text: str | bytes) -> Path:
    (folder / "d.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / "d.csv"


LABELS = np.array([0, 1, 2, 1, 0, 2])
X6 = np.arange(12.0).reshape(6, 2)
