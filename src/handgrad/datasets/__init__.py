"""Data sets: ``load(spec)`` gives a training and a test part, ``load_features(spec, D)`` features alone.

==========================  ==============================================================================
``spec``                    what is read
==========================  ==============================================================================
``mnist-subset``            in the package: MNIST's first 10,000 training and first 2,000 test images
a directory                 MNIST's four IDX files, gzipped or not: ``train-images-idx3-ubyte``,
                            ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte``,
                            ``t10k-labels-idx1-ubyte`` (or ``train-images.idx3-ubyte``, …)
``FILE.npz``                arrays ``X, y``, or ``X_train, y_train`` and perhaps ``X_test, y_test``
                            (``x`` for ``X`` will do); pickles are never loaded
``FILE.csv``                one sample a line, with or without a line of column names; the target is the
                            column named label, target or y, else the last
``X.npy,y.npy``             memory-mapped; ``X.npy,y.npy,X_test.npy,y_test.npy`` with a test part
==========================  ==============================================================================

Features: (N, D), or (N, 28, 28) and the like, which are flattened.  uint8 features with a value above 1 are
taken for pixels: they stay uint8 and get ``scale = 1/255``; everything else has ``scale = 1``.
Targets: integers are labels, 0 … classes - 1; floats are regression targets, (N,) or (N, C).  In a ``.csv``
a column of whole numbers is labels.  ``task=`` overrides this.
Test part: where the file has none, a fifth of the samples is held out; see :func:`load`.
"""

from __future__ import annotations

from pathlib import Path

from handgrad.datasets.csv_file import read_csv
from handgrad.datasets.dataset import (
    EMBEDDED,
    Array,
    Columns,
    DataError,
    Dataset,
    LabelError,
    Split,
    existing_file,
)
from handgrad.datasets.features import load_features
from handgrad.datasets.idx import read_directory
from handgrad.datasets.numpy_files import map_npy, part_keys, read_npz
from handgrad.datasets.parts import Options, Part, array_part, assemble

__all__ = ["EMBEDDED", "Columns", "DataError", "Dataset", "LabelError", "Split", "load", "load_features"]

_SPECS = "mnist-subset, a directory with the four IDX files, FILE.npz, FILE.csv or X.npy,y.npy"


def load(
    spec: str | Path = "mnist-subset",
    *,
    seed: int = 0,
    test_fraction: float = 0.2,
    target: str | int | None = None,
    task: str = "auto",
    classes: int | None = None,
    scale: float | None = None,
    columns: Columns | None = None,
) -> Split:
    """The training and test part of ``spec``; the formats stand at the head of this module.

    ``seed`` and ``test_fraction`` matter where the file has no test part.  ``max(1, int(N * test_fraction))``
    samples are held out: those with the smallest of N raw words of PCG64(``seed``), the same on every
    machine; of memory-mapped files the last ones, so that both parts stay views of the file (sorted files
    are refused).  ``seed`` is not the seed of the training: a later evaluation needs the same test part.
    ``test_fraction=0`` keeps all samples in the training part and leaves the test part empty.

    ``target`` is the target column of a ``.csv``, by name or number (from 0; negative from the end).
    ``task`` is "auto", "classification" or "regression".  ``classes`` is the number of classes, for files
    in which some do not occur (default: the greatest training label + 1; label 0 and at least half of all
    labels must occur).  ``scale`` overrides 1/255 for pixels and 1 for everything else.  ``columns``, those
    of another data set, has features and target of a ``.csv`` with a header found by these names.

    Raises :class:`DataError` with one line that names file, place and remedy.  Array rows and columns count
    from 0 as in NumPy; lines and columns of a ``.csv`` from 1.
    """
    options = Options(seed, test_fraction, task, classes, scale)
    text = str(spec)
    if target is not None and not text.lower().endswith(".csv"):
        raise DataError(f"{text}: target={target!r} chooses a column of a .csv; leave it out")
    if text == "mnist-subset":
        return assemble(text, *_parts(read_npz(EMBEDDED, part_keys)), options)
    if text.lower().endswith(".npy"):
        return assemble(text, *_mapped_parts(text), options)
    path = Path(text).expanduser()
    if path.is_dir():
        arrays = {key: (str(file), array) for key, (file, array) in read_directory(path).items()}
        return assemble(text, *_parts(arrays), options)
    if path.suffix.lower() == ".npz":
        return assemble(text, *_parts(read_npz(existing_file(path), part_keys)), options)
    if path.suffix.lower() == ".csv":
        return assemble(text, read_csv(existing_file(path), target, columns), None, options)
    if path.exists():
        raise DataError(f"{text}: unknown kind of file; expected {_SPECS}")
    raise DataError(f"{text}: unknown data set, and no such file or directory; expected {_SPECS}")


def _parts(arrays: dict[str, tuple[str, Array]]) -> tuple[Part, Part | None]:
    def part(X_key: str, y_key: str) -> Part:
        (X_name, X), (y_name, y) = arrays[X_key], arrays[y_key]
        return array_part(X, y, X_name, y_name)

    return part("X_train", "y_train"), part("X_test", "y_test") if "X_test" in arrays else None


def _mapped_parts(text: str) -> tuple[Part, Part | None]:
    paths = [existing_file(Path(name.strip()).expanduser()) for name in text.split(",")]
    if len(paths) not in (2, 4):
        raise DataError(
            f"{text}: {len(paths)} .npy file{'s' * (len(paths) > 1)}, expected 2 or 4; "
            "give X.npy,y.npy or X.npy,y.npy,X_test.npy,y_test.npy"
        )
    arrays = [map_npy(path) for path in paths]
    pairs = [
        array_part(X, y, str(X_path), str(y_path), mapped=True)
        for X, y, X_path, y_path in zip(arrays[::2], arrays[1::2], paths[::2], paths[1::2], strict=True)
    ]
    return pairs[0], pairs[1] if len(pairs) == 2 else None
