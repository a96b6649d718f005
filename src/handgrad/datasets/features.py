"""Features to predict for: targets need not be there, and are left aside where they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from handgrad.datasets.csv_file import columns_named, has_names, read_table, target_column
from handgrad.datasets.dataset import EMBEDDED, Array, Columns, DataError, Dataset, existing_file
from handgrad.datasets.idx import FILES, file_names, read_idx
from handgrad.datasets.numpy_files import feature_key, map_npy, read_npz
from handgrad.datasets.parts import checked_features, looks_like_images

Place = Callable[[int, int], str]


def load_features(
    spec: str | Path,
    columns: int,
    *,
    target: str | int | None = None,
    scale: float | None = None,
    named: Columns | None = None,
) -> Dataset:
    """The features of ``spec``, ``columns`` a sample; ``y`` is (N, 0), ``classes`` 0.

    Takes what :func:`handgrad.datasets.load` takes, and features alone: ``X.npy`` (memory-mapped), an .npz
    with X, a .csv without its target column (a .csv of ``columns`` + 1 columns loses column ``target``,
    chosen as in ``load``), one IDX file of images.  With ``named``, the training data's ``columns``, a .csv
    with a header gives the features of these names, in this order; other columns are left aside.  Where there
    is a test part, it is taken; nothing is held out.  ``scale`` as in ``load``; give the training data's, so
    that pixels mean what they meant there.
    Raises :class:`DataError` as ``load`` does.
    """
    text = str(spec)
    X, name, place = _read(text, columns, target, named)
    X = checked_features(X, name, place or (lambda row, column: f"{name}: row {row}, column {column}"))
    if X.shape[1] != columns:
        raise DataError(f"{name}: {X.shape[1]} features a sample, expected {columns}; give the same columns")
    if scale is None:
        scale = 1.0 / 255.0 if looks_like_images(X) else 1.0
    X.flags.writeable = False
    return Dataset(X, np.empty((len(X), 0), dtype=np.float32), scale, name=text)


def _read(
    text: str, columns: int, target: str | int | None, named: Columns | None
) -> tuple[Array, str, Place | None]:
    path = Path(text).expanduser()
    if text == "mnist-subset":
        path = EMBEDDED
    elif text.lower().endswith(".npy"):
        names = text.split(",")  # X | X, y | X, y, X_test, y_test
        path = existing_file(Path(names[2 if len(names) == 4 else 0].strip()).expanduser())
        return map_npy(path), str(path), None
    elif path.is_dir():
        candidates = [path / name for key in ("X_test", "X_train") for name in file_names(*FILES[key])]
        found = [file for file in candidates if file.is_file()]
        if not found:
            raise DataError(f"{path}: no IDX images; expected {candidates[0].name} (or .gz), or name a file")
        path = found[0]
    existing_file(path)
    if path.suffix.lower() == ".npz":
        name, X = read_npz(path, feature_key)["X"]
        return X, name, None
    if path.suffix.lower() != ".csv":
        return read_idx(path, labels=False), str(path), None
    names, table, place = read_table(path)
    kept = list(range(table.shape[1]))
    if named is not None and has_names(names):
        kept = columns_named(path, names, named.features)
    elif len(kept) == columns + 1:
        kept.remove(target_column(path, names, len(kept), target))
    return table[:, kept], str(path), lambda row, column: place(row, kept[column])
