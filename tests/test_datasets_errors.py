"""Every malformed data set gets one line that names the file, the place and the remedy."""

from __future__ import annotations

import gzip
import re
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import LABELS, X6, csv, idx_bytes, message, npy_pair, npz, says, write_idx

from handgrad import datasets
from handgrad.datasets import DataError, parts

# specs and files


def test_unknown_spec() -> None:
    says(message("mnist"), "mnist: unknown data set", "mnist-subset, a directory", "FILE.csv")


def test_unknown_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("1,2\n")
    says(message(tmp_path / "d.txt"), "d.txt: unknown kind of file", "FILE.npz")


@pytest.mark.parametrize("name", ["no.npz", "no.csv", "no.npy,no_y.npy"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    says(message(tmp_path / name), f"{tmp_path}/no.", "no such file", "check the path")


def test_a_folder_named_like_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", LABELS)
    (tmp_path / "X.npy").mkdir()
    says(message(f"{tmp_path / 'X.npy'},{tmp_path / 'y.npy'}"), "X.npy: not a file", "give the path")


@pytest.mark.parametrize("count", [1, 3])
def test_npy_files_come_in_pairs(tmp_path: Path, count: int) -> None:
    np.save(tmp_path / "X.npy", X6)
    line = message(",".join([str(tmp_path / "X.npy")] * count))
    says(line, f"{count} .npy file", "expected 2 or 4; give X.npy,y.npy")


def test_options_are_checked() -> None:
    for options, words in (
        ({"test_fraction": 1.0}, "test_fraction: expected 0 <= test_fraction < 1, got 1.0"),
        ({"task": "ranking"}, "task: expected one of auto, classification, regression, got 'ranking'"),
        ({"classes": 0}, "classes: expected a count of at least 1, got 0"),
        ({"seed": -1}, "seed: expected a whole number of at least 0, got -1"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            datasets.load(**options)
    says(message("mnist-subset", target="label"), "target='label' chooses a column of a .csv")


# IDX


def test_directory_without_idx(tmp_path: Path) -> None:
    says(message(tmp_path), f"{tmp_path}: no IDX files", "train-images-idx3-ubyte", ".npz or .csv")


@pytest.mark.parametrize(
    "name", ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"]
)
def test_one_of_four_idx_files_missing(tmp_path: Path, name: str) -> None:
    write_idx(tmp_path)
    (tmp_path / f"{name}-ubyte").unlink()
    line = message(tmp_path)
    says(line, f"{tmp_path}: {name}-ubyte (or .gz) missing", "put all four")


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_file_cut_off(tmp_path: Path, ending: str) -> None:
    write_idx(tmp_path, ending=ending)
    file = tmp_path / f"train-images-idx3-ubyte{ending}"
    whole = file.read_bytes()
    for keep in (len(whole) // 2, len(whole) - 1, 17, 14, 3):
        file.write_bytes(whole[:keep])
        says(message(tmp_path), f"{file}: truncated", "fetch the file again")
    file.write_bytes(whole[: 16 + 20 * 7 + 5])
    if not ending:
        says(message(tmp_path), "promises 60 rows of 20 bytes", "ends in row 7;")


def test_empty_idx_file(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"")
    says(message(tmp_path), "t10k-labels-idx1-ubyte: truncated: 0 bytes, no IDX header")


@pytest.mark.parametrize("gzipped", [False, True])
def test_idx_header_promising_terabytes_allocates_nothing(tmp_path: Path, gzipped: bool) -> None:
    write_idx(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte"
    content = struct.pack(">4B3I", 0, 0, 8, 3, 2**32 - 1, 2**16, 2**16) + bytes(70)
    file.write_bytes(gzip.compress(content) if gzipped else content)
    tracemalloc.start()
    says(message(tmp_path), f"{file}: truncated: the header promises 4294967295 rows", "ends in row 0;")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_idx_gzip_damaged(tmp_path: Path) -> None:
    write_idx(tmp_path, ending=".gz")
    file = tmp_path / "train-images-idx3-ubyte.gz"
    whole = bytearray(file.read_bytes())
    whole[-6] ^= 0xFF  # the checksum
    file.write_bytes(whole)
    says(message(tmp_path), f"{file}: damaged gzip stream (CRC", "fetch the file again")
    whole[10] = 0xFF  # the first block's type
    file.write_bytes(whole)
    says(message(tmp_path), f"{file}: damaged gzip stream", "fetch the file again")


def test_idx_with_more_bytes_than_promised(tmp_path: Path) -> None:
    write_idx(tmp_path)
    file = tmp_path / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes() + b"\0")
    says(message(tmp_path), f"{file}: more bytes than the 20 rows of 20 bytes", "fetch")


def test_idx_wrong_magic(tmp_path: Path) -> None:
    write_idx(tmp_path)
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    content = images.read_bytes()
    images.write_bytes(b"\x89PNG" + content[4:])
    says(message(tmp_path), f"{images}: wrong magic 89 50 4e 47 at byte 0", "00 00 08 03", "check")
    images.write_bytes(b"\x01" + content[1:])
    says(message(tmp_path), f"{images}: wrong magic 01 00 08 03 at byte 0", "00 00 08 03")
    images.write_bytes(labels.read_bytes())
    says(message(tmp_path), f"{images}: wrong magic 00 00 08 01 at byte 0", "00 00 08 03")
    labels.write_bytes(content)
    images.write_bytes(content)
    says(message(tmp_path), f"{labels}: wrong magic 00 00 08 03 at byte 0", "00 00 08 01")


def test_idx_wrong_dtype(tmp_path: Path) -> None:
    write_idx(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(b"\0\0\x0d\x03" + file.read_bytes()[4:])
    says(message(tmp_path), f"{file}: dtype float32 (type code 0x0d at byte 2)", "expected uint8")


def test_idx_empty_set(tmp_path: Path) -> None:
    write_idx(tmp_path)
    file = tmp_path / "t10k-images-idx3-ubyte"
    file.write_bytes(idx_bytes(np.empty((0, 4, 5))))
    says(message(tmp_path), f"{file}: shape (0, 4, 5), an empty set", "at least one sample")
    file.write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, 0, 2**32 - 1, 2**32 - 1))
    says(message(tmp_path), f"{file}: shape (0, 4294967295, 4294967295), an empty set")


def test_idx_lengths_differ(tmp_path: Path) -> None:
    write_idx(tmp_path)
    file = tmp_path / "train-labels-idx1-ubyte"
    file.write_bytes(idx_bytes(np.arange(59) % 10))
    says(message(tmp_path), f"{file}: 59 rows, but", "train-images-idx3-ubyte has 60 rows", "one target")


def test_idx_labels_out_of_range(tmp_path: Path) -> None:
    write_idx(tmp_path)
    file = tmp_path / "t10k-labels-idx1-ubyte"
    file.write_bytes(idx_bytes(np.array([*range(10), 3, 12, *range(8)])))
    says(
        message(tmp_path), f"{file}: row 11 is label 12, out of range 0 to 9", "correct it or give classes=13"
    )
    write_idx(tmp_path)
    file = tmp_path / "train-labels-idx1-ubyte"
    file.write_bytes(idx_bytes(np.array([*range(10)] * 5 + [255] + [0] * 9)))
    says(message(tmp_path), f"{file}: row 50 is label 255, but only 11 different labels occur", "classes=256")


def test_widths_of_the_parts_differ(tmp_path: Path) -> None:
    write_idx(tmp_path)
    file = tmp_path / "t10k-images-idx3-ubyte"
    file.write_bytes(idx_bytes(np.zeros((20, 4, 4))))
    says(message(tmp_path), f"{file}: 16 features a sample, but", "has 20; both parts need the same columns")


# labels, values and shapes (through .npz)

TEXT_LABELS = "labels as numpy.unique(labels, return_inverse=True)[1]"


@pytest.mark.parametrize(
    ("y", "options", "words"),
    [
        ([0, 1, -1, 1, 0, 1], {}, ["row 2 is label -1, out of range", "number the classes 0, 1, 2, …"]),
        (
            [1, 2, 3, 3, 2, 1],
            {},
            ["labels run from 1 to 3, expected 0 to classes - 1; subtract 1", "classes=4"],
        ),
        ([0, 1, 7, 1, 0, 1], {}, ["row 2 is label 7, but only 3 different labels occur", "classes=8"]),
        ([0, 1, 7, 1, 0, 1], {"classes": 5}, ["row 2 is label 7, out of range 0 to 4", "give more classes"]),
        ([0, 1, 7, 1, 0, 1], {"classes": 7}, ["row 2 is label 7, out of range 0 to 6"]),
        (
            [0, 0, 0, 0, 0, 0],
            {},
            ["every label is 0, expected at least two classes; give samples of both, or classes=2"],
        ),
        ([0, 1, 2**40, 1, 0, 1], {}, ["row 2 is label 1099511627776, out of range"]),
        (
            [0, 1, 1.5, 1, 0, 1],
            {"task": "classification"},
            ["row 2 is 1.5, expected a whole number as label"],
        ),
        ([0, 1, np.nan, 1, 0, 1], {"task": "classification"}, ["row 2 is nan, expected a whole number"]),
        ([0.5, 1, np.inf, 1, 0, 1], {}, ["row 2 is inf; fill in a number or leave the sample out"]),
        ([[0.5, 1]] * 5 + [[1, np.nan]], {}, ["row 5, column 1 is nan; fill in"]),
        (np.eye(6, dtype=int), {}, ["int64 of shape (6, 6), expected one label", "y.argmax(axis=1)"]),
        (np.zeros((6, 1, 1)), {}, ["shape (6, 1, 1), expected (N,) labels or (N, C) floats; reshape"]),
        (["a"] * 6, {}, ["y: dtype <U1, expected integers or floats; save features", TEXT_LABELS]),
        ([1j] * 6, {}, ["dtype complex128, expected integers or floats"]),
        (
            [None] * 6,
            {},
            ["y: dtype object is a pickle of Python objects, which is never loaded;", TEXT_LABELS],
        ),
        ([0, 1, 2, 1], {}, ["4 rows, but", "X has 6 rows; give each sample one target"]),
        (0, {}, ["a single number, but", "X has 6 rows"]),
        (np.empty(0), {}, ["y: shape (0,), an empty set; give each sample one target"]),
    ],
)
def test_targets(tmp_path: Path, y: Any, options: dict[str, Any], words: list[str]) -> None:
    says(message(npz(tmp_path, X=X6, y=y), **options), f"{tmp_path / 'd.npz'}: ", *words)


@pytest.mark.parametrize("dtype", ["U", "S", "O"])
def test_text_labels_are_numbered_as_the_line_says(tmp_path: Path, dtype: str) -> None:
    labels = np.array(["dog", "cat", "cat", "dog", "eel", "cat"], dtype=dtype)
    remedy = message(npz(tmp_path, X=X6, y=labels)).split(", labels as ")[1]
    y = eval(remedy, {"numpy": np, "labels": labels})
    assert datasets.load(npz(tmp_path, X=X6, y=y), test_fraction=0).train.y.tolist() == [1, 0, 0, 1, 2, 0]


@pytest.mark.parametrize(
    ("X", "words"),
    [
        (np.arange(6.0), ["X: shape (6,), expected (samples, features); reshape one feature to (N, 1)"]),
        (np.float32(1), ["X: shape (), expected (samples, features)"]),
        (np.empty((0, 3)), ["X: shape (0, 3), an empty set; give at least one sample with one feature"]),
        (np.empty((6, 0)), ["X: shape (6, 0), an empty set"]),
        (
            np.full((6, 2), "a"),
            ["X: dtype <U1, expected integers or floats; save features as X.astype('float32')"],
        ),
        (np.full((6, 2), {}), ["X: dtype object is a pickle of Python objects, which is never loaded; save"]),
        (np.zeros((6, 2), "M8[s]"), ["X: dtype datetime64[s], expected integers or floats"]),
        (np.zeros((6, 2), [("a", "f4")]), ["X: dtype [('a', '<f4')], expected integers or floats"]),
    ],
)
def test_features(tmp_path: Path, X: np.ndarray, words: list[str]) -> None:
    says(message(npz(tmp_path, X=X, y=LABELS)), f"{tmp_path / 'd.npz'}: ", *words)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nan_and_inf_in_features(tmp_path: Path, bad: float, dtype: type) -> None:
    X = X6.astype(dtype)
    X[4, 1], X[5, 0] = bad, np.nan
    says(message(npz(tmp_path, X=X, y=LABELS)), f"d.npz: X: row 4, column 1 is {bad}; fill in a number")


def test_nan_is_found_in_every_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SCAN_BYTES", 3 * 4 * 5)  # three rows at a time
    for row in range(10):
        X = np.zeros((10, 5), np.float32)
        X[row, row % 5] = np.nan
        pair = npy_pair(tmp_path, X, np.array([0, 1] * 5))
        says(message(pair), f"{tmp_path / 'X.npy'}: row {row}, column {row % 5} is nan; fill in")


def test_parts_of_an_npz_must_fit(tmp_path: Path) -> None:
    split = {"X_train": X6, "y_train": LABELS, "X_test": X6, "y_test": LABELS}
    says(
        message(npz(tmp_path, **{**split, "y_test": LABELS + 0.5})),
        "y_test: dtype float64, but",
        "y_train has int64; store both",
    )
    y = np.zeros((6, 2))
    says(
        message(npz(tmp_path, **{**split, "y_train": y, "y_test": y[:, :1]})),
        "y_test: 1 targets a sample, but",
        "y_train has 2; both parts need the same columns",
    )
    says(
        message(npz(tmp_path, **{**split, "X_test": X6[:, :1]})),
        "X_test: 1 features a sample, but",
        "X_train has 2",
    )
    says(message(npz(tmp_path, **{**split, "X_test": X6[:5]})), "y_test: 6 rows, but", "X_test has 5 rows")


def test_one_sample_cannot_be_parted(tmp_path: Path) -> None:
    line = message(npz(tmp_path, X=X6[:1], y=[0.5]))
    says(line, "X: 1 sample, but holding out a test part needs at least 2; give more", "test_fraction=0")
    assert len(datasets.load(tmp_path / "d.npz", test_fraction=0).train) == 1


# features alone


def features_message(spec: object, columns: int, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        datasets.load_features(str(spec), columns, **options)
    line = str(caught.value)
    assert "\n" not in line
    assert "; " in line or ", or name" in line
    return line


def test_features_alone(tmp_path: Path) -> None:
    says(
        features_message(tmp_path, 20),
        f"{tmp_path}: no IDX images",
        "t10k-images-idx3-ubyte (or .gz), or name",
    )
    says(features_message(tmp_path / "no.npy", 2), "no.npy: no such file")
    says(features_message("mnist", 2), "mnist: no such file")
    says(features_message("mnist-subset", 20), "X_test: 784 features a sample, expected 20; give the same")
    np.save(tmp_path / "X.npy", np.where(X6 == 7, np.nan, X6))
    says(features_message(tmp_path / "X.npy", 2), "X.npy: row 3, column 1 is nan; fill in")
    file = npz(tmp_path, first=X6, second=X6)
    says(features_message(file, 2), "d.npz: no array X (it holds first, second); save")
    file = csv(tmp_path, "a,b,y\n1,nan,1\n")
    says(features_message(file, 3), "d.csv: line 2, column 2 (b) is nan")
    says(features_message(file, 2), "d.csv: line 2, column 2 (b) is nan")
    says(features_message(csv(tmp_path, "1,2,3\n"), 4), "d.csv: 3 features a sample, expected 4")
    (tmp_path / "t.txt").write_text("1,2\n")
    says(features_message(tmp_path / "t.txt", 2), "t.txt: wrong magic 31 2c 32 0a at byte 0")
