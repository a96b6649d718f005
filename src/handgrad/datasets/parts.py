"""From arrays as they stand in a file to checked data sets: shapes, dtypes, labels, NaN, held-out part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from handgrad.datasets.dataset import Array, Columns, DataError, Dataset, LabelError, Split

SCAN_BYTES = 8 << 20  # a scan over the data holds this much of it at a time
TASKS = ("auto", "classification", "regression")


@dataclass(frozen=True)
class Part:
    """Features and targets of one part, and how to name a place in each: ``X_place(row, column)``."""

    X: Array
    y: Array
    X_name: str
    y_name: str
    X_place: Callable[[int, int], str]
    y_place: Callable[[int, int], str]
    mapped: bool = False  # stays on disk: never copied as a whole
    columns: Columns | None = None


@dataclass(frozen=True)
class Options:
    """What the caller of ``load`` chose; see there."""

    seed: int = 0
    test_fraction: float = 0.2
    task: str = "auto"
    classes: int | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.test_fraction < 1.0:
            raise ValueError(f"test_fraction: expected 0 <= test_fraction < 1, got {self.test_fraction}")
        if self.task not in TASKS:
            raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {self.task!r}")
        if self.classes is not None and self.classes < 1:
            raise ValueError(f"classes: expected a count of at least 1, got {self.classes}")
        if self.seed < 0:
            raise ValueError(f"seed: expected a whole number of at least 0, got {self.seed}")


def array_part(
    X: Array, y: Array, X_name: str, y_name: str, *, mapped: bool = False, X_place: str = "row {}, column {}"
) -> Part:
    """A part whose places are rows and columns, counted from 0 as NumPy indexes them."""
    return Part(
        X,
        y,
        X_name,
        y_name,
        lambda row, column: f"{X_name}: {X_place.format(row, column)}",
        lambda row, column: f"{y_name}: row {row}" + (f", column {column}" if y.ndim > 1 else ""),
        mapped,
    )


def assemble(name: str, train: Part, test: Part | None, options: Options) -> Split:
    """Check both parts, hold out a test part where there is none, and scale images."""
    parts = [train] if test is None else [train, test]
    features = [checked_features(part.X, part.X_name, part.X_place) for part in parts]
    for part in parts:
        check_lengths(part)
    if test is not None and features[0].shape[1] != features[1].shape[1]:
        raise DataError(
            f"{test.X_name}: {features[1].shape[1]} features a sample, "
            f"but {train.X_name} has {features[0].shape[1]}; both parts need the same columns"
        )
    targets = [checked_targets(part, options.task) for part in parts]
    kinds = {y.dtype.kind for y in targets}  # "i" labels, "f" values
    if len(kinds) == 2:
        raise DataError(
            f"{parts[1].y_name}: dtype {parts[1].y.dtype}, but {train.y_name} has {train.y.dtype}; "
            'store both as integers (labels) or both as floats, or say task="regression"'
        )
    classes = count_classes(parts, targets, options.classes) if kinds == {"i"} else 0
    if targets[0].shape[1:] != targets[-1].shape[1:]:
        raise DataError(
            f"{parts[1].y_name}: {targets[1].shape[1]} targets a sample, "
            f"but {train.y_name} has {targets[0].shape[1]}; both parts need the same columns"
        )
    if test is None:
        features, targets = hold_out(train, features[0], targets[0], options)
    scale = options.scale
    if scale is None:
        scale = 1.0 / 255.0 if looks_like_images(features[0]) else 1.0
    for array in (*features, *targets):
        array.flags.writeable = False
    return Split(
        *(
            Dataset(X, y, scale, 0.0, classes, name, train.columns)
            for X, y in zip(features, targets, strict=True)
        ),
    )


def checked_features(X: Array, name: str, place: Callable[[int, int], str]) -> Array:
    """``X`` as (N, D) uint8, float32 or float64 without NaN or inf; (N, 28, 28) becomes (N, 784)."""
    if X.dtype.kind not in "biuf":
        raise DataError(f"{name}: dtype {X.dtype}, expected numbers; store it as uint8 or float32")
    if X.ndim < 2:
        raise DataError(
            f"{name}: shape {X.shape}, expected (samples, features); reshape one feature to (N, 1)"
        )
    if X.size == 0:
        raise DataError(f"{name}: shape {X.shape}, an empty set; give at least one sample with one feature")
    X = as_native(X.reshape(len(X), -1))
    check_finite(X, place)
    return X


def check_lengths(part: Part) -> None:
    """Raise unless each sample has one row in ``part.y``."""
    if part.y.size == 0 and part.y.ndim > 0:
        raise DataError(f"{part.y_name}: shape {part.y.shape}, an empty set; give each sample one target")
    if part.y.ndim == 0 or len(part.X) != len(part.y):
        y_count = "a single number" if part.y.ndim == 0 else f"{len(part.y)} rows"
        raise DataError(
            f"{part.y_name}: {y_count}, but {part.X_name} has {len(part.X)} rows; give each sample one target"
        )


def as_native(X: Array) -> Array:
    """``X`` as C-contiguous uint8, float32 or float64 in native byte order; copied only if it must be."""
    if X.dtype.kind == "b":
        X = X.view(np.uint8)
    if X.dtype.kind in "iu" and X.dtype != np.uint8:
        X = X.astype(np.float32 if X.dtype.itemsize <= 2 else np.float64)
    elif X.dtype.kind == "f" and X.dtype not in (np.float32, np.float64):
        X = X.astype(np.float32 if X.dtype.itemsize < 8 else np.float64)
    return np.ascontiguousarray(X).view(np.ndarray)


def check_finite(values: Array, place: Callable[[int, int], str]) -> None:
    """Find the first NaN or inf of a (N, D) array, a few megabytes at a time."""
    if values.dtype.kind != "f":
        return
    rows = max(1, SCAN_BYTES // max(1, values.shape[1] * values.itemsize))
    for start in range(0, len(values), rows):
        chunk = values[start : start + rows]
        finite = np.isfinite(chunk)
        if not finite.all():
            row, column = (int(i) for i in np.argwhere(~finite)[0])
            raise DataError(
                f"{place(start + row, column)} is {chunk[row, column]}; "
                "fill in a number or leave the sample out"
            )


def checked_targets(part: Part, task: str) -> Array:
    """``part.y`` as int64 labels (N,) for classification, as finite floats (N, C) for regression."""
    y = part.y
    if y.dtype.kind not in "biuf":
        raise DataError(
            f"{part.y_name}: dtype {y.dtype}, expected integers (labels) or floats (regression); "
            "number the classes 0, 1, 2, …"
        )
    if y.ndim > 2:
        raise DataError(f"{part.y_name}: shape {y.shape}, expected (N,) labels or (N, C) floats; reshape it")
    if task == "regression" or (task == "auto" and y.dtype.kind == "f"):
        values = as_native(y.reshape(len(y), -1))
        if values.dtype == np.uint8:
            values = values.astype(np.float32)
        check_finite(values, part.y_place)
        return values
    if y.ndim == 2 and y.shape[1] != 1:
        raise DataError(
            f"{part.y_name}: {y.dtype} of shape {y.shape}, expected one label a sample; "
            "turn one-hot rows into labels with y.argmax(axis=1), or store floats for regression"
        )
    y = y.reshape(-1)
    if y.dtype.kind == "f":
        whole = np.isfinite(y) & (y == np.floor(y))
        if not whole.all():
            row = int(np.argmin(whole))
            raise LabelError(
                f"{part.y_place(row, 0)} is {y[row]}",
                'expected a whole number as label; number the classes 0, 1, 2, … or say task="regression"',
            )
    for row in (int(y.argmin()), int(y.argmax())):
        if not 0 <= y[row] < 2**31:
            raise LabelError(
                f"{part.y_place(row, 0)} is label {y[row]:.0f}",
                'out of range; number the classes 0, 1, 2, … or say task="regression"',
            )
    return y.astype(np.int64)


def count_classes(parts: list[Part], labels: list[Array], classes: int | None) -> int:
    """``classes`` if given, else the greatest training label + 1; labels beyond it raise.

    Guessed classes must look like 0, 1, 2, …: label 0 must occur, and at least half of all labels, so that
    labels counted from 1, one wrong byte, or whole-number regression targets are not taken for classes.
    """
    train = labels[0]
    count = int(train.max()) + 1 if classes is None else classes
    for part, y in zip(parts, labels, strict=True):
        row = int(y.argmax())
        if y[row] >= count:
            remedy = "give classes=" + str(int(y[row]) + 1) if classes is None else "or give more classes"
            raise LabelError(
                f"{part.y_place(row, 0)} is label {y[row]}",
                f"out of range 0 to {count - 1}; correct it {'or ' if classes is None else ''}{remedy}",
            )
    if classes is not None:
        return count
    present = np.unique(np.concatenate(labels))
    place = parts[0].y_place(int(train.argmax()), 0)
    if present[0] != 0:
        raise LabelError(
            f"{parts[0].y_name}: labels run from {present[0]} to {count - 1}",
            f"expected 0 to classes - 1; subtract {present[0]}, give classes={count}, "
            'or say task="regression"',
        )
    if count == 1:
        raise LabelError(
            f"{parts[0].y_name}: every label is 0",
            "expected at least two classes; give samples of both, or classes=2",
        )
    if 2 * len(present) < count:
        raise LabelError(
            f"{place} is label {count - 1}",
            f"but only {len(present)} different labels occur; "
            f'number the classes 0, 1, 2, …, give classes={count}, or say task="regression"',
        )
    return count


def looks_like_images(X: Array) -> bool:
    """Whether uint8 data are pixels: some value is above 1 (else they are taken for flags)."""
    rows = max(1, SCAN_BYTES // X.shape[1])
    return X.dtype == np.uint8 and any(X[i : i + rows].max() > 1 for i in range(0, len(X), rows))


def hold_out(part: Part, X: Array, y: Array, options: Options) -> tuple[list[Array], list[Array]]:
    """Part the samples into training and test: ``max(1, int(N * test_fraction))`` samples are held out.

    In memory: the samples with the smallest keys, where the keys are the first N raw 64-bit words of
    PCG64(seed); both parts keep the file's order.  The words are the same in every NumPy version.
    Memory-mapped: the last samples, so that both parts are views of the file; sorted files are refused.
    """
    count = len(X)
    if options.test_fraction == 0.0:
        return [X, X[:0]], [y, y[:0]]
    if count < 2:
        raise DataError(
            f"{part.X_name}: 1 sample, but holding out a test part needs at least 2; "
            "give more samples, a test part, or test_fraction=0"
        )
    held = max(1, int(count * options.test_fraction))
    if part.mapped:
        kept = count - held
        steps = np.diff(y.reshape(count, -1)[:, 0])
        if count > 2 and steps.any() and ((steps >= 0).all() or (steps <= 0).all()):
            raise DataError(
                f"{part.y_name}: sorted by target, and the last {held} samples are held out for the test; "
                "shuffle the rows of both files, or give X.npy,y.npy,X_test.npy,y_test.npy"
            )
        return [X[:kept], X[kept:]], [y[:kept], y[kept:]]
    keys = np.random.PCG64(options.seed).random_raw(count)
    is_test = np.zeros(count, dtype=bool)
    is_test[np.argsort(keys, kind="stable")[:held]] = True
    return [X[~is_test], X[is_test]], [y[~is_test], y[is_test]]
