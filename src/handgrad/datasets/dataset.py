"""What a data set is: rows of features, their targets, and how the features are scaled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

Array = NDArray[Any]
EMBEDDED = Path(__file__).parent.parent / "data" / "mnist_subset.npz"


class DataError(ValueError):
    """A data set that cannot be used; the message is one line that names file, place and remedy."""


class LabelError(DataError):
    """A target that is no label of the classes there are; ``found`` is its place and value in words."""

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(f"{found}, {expected}")
        self.found = found


class Columns(NamedTuple):
    """The names that the header of a ``.csv`` gives its features, in their order, and its target."""

    features: tuple[str, ...]
    target: str


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples and their targets.

    ``X`` is (N, D): uint8, float32 or float64, C-contiguous, possibly memory-mapped.  The network sees
    ``X * scale + shift``, so that images stay one byte a pixel until they are used.
    ``y`` is (N,) int64 with labels 0 … ``classes`` - 1, or (N, C) float where ``classes`` is 0 (regression).
    ``columns`` are the names of both, where they have some.
    """

    X: Array
    y: Array
    scale: float = 1.0
    shift: float = 0.0
    classes: int = 0
    name: str = ""
    columns: Columns | None = None

    def __len__(self) -> int:
        return len(self.X)

    def batch(self, order: ArrayLike, dtype: DTypeLike = np.float32) -> tuple[Array, Array]:
        """Rows ``order`` as ``(X[order] * scale + shift, y[order])``: (n, D) of ``dtype``, and the targets.

        Labels keep their integer type, regression targets come in ``dtype``.  Only these rows are read.
        """
        rows = np.asarray(order, dtype=np.intp)
        X = self.X[rows].astype(dtype)
        X *= X.dtype.type(self.scale)
        X += X.dtype.type(self.shift)
        y = self.y[rows]
        return X, y if self.classes else y.astype(dtype)

    def head(self, count: int) -> Dataset:
        """The first ``count`` samples, as views."""
        return replace(self, X=self.X[:count], y=self.y[:count])


class Split(NamedTuple):
    """A training and a test part with the same features, scale and classes; the test part may be empty."""

    train: Dataset
    test: Dataset


def existing_file(path: Path) -> Path:
    """``path``, after a look whether it is a file."""
    if not path.exists():
        raise DataError(f"{path}: no such file (looked in {path.absolute().parent}); check the path")
    if not path.is_file():
        raise DataError(f"{path}: not a file; give the path of a file")
    return path
