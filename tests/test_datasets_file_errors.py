"""Every malformed .npz, .npy and .csv gets one line that names the file, the place and the remedy."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dataset_files import LABELS, X6, csv, message, npy_pair, npz, says, write_idx

from handgrad import datasets
from handgrad.datasets import DataError

# .npz and .npy files


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (
            {"images": X6, "labels": LABELS},
            ["X_train and y_train missing (it holds images, labels); save X, y"],
        ),
        ({"X": X6}, ["y_train missing"]),
        (
            {"X_train": X6, "y_train": LABELS, "X_test": X6},
            ["y_test missing (it holds X_test, X_train, y_train)"],
        ),
        ({}, ["X_train and y_train missing (it holds no arrays)"]),
    ],
)
def test_npz_keys(tmp_path: Path, arrays: dict[str, np.ndarray], words: list[str]) -> None:
    says(message(npz(tmp_path, **arrays)), f"{tmp_path / 'd.npz'}: ", *words)


def test_a_stored_name_with_a_line_break_stays_in_its_line(tmp_path: Path) -> None:
    says(message(npz(tmp_path, **{"a\nb": X6})), "X_train and y_train missing (it holds a\\nb)")


def test_npz_cut_off_or_damaged(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez_compressed(tmp_path / "d.npz", X=rng.normal(size=(50, 9)), y=np.arange(50) % 5)
    whole = (tmp_path / "d.npz").read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-1], b"", b"1,2\n", whole[:600] + b"\xff" + whole[601:]):
        (tmp_path / "d.npz").write_bytes(content)
        says(message(tmp_path / "d.npz"), f"{tmp_path / 'd.npz'}: truncated or damaged", "save it again")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_npz_damaged_in_the_numbers_or_too_long(tmp_path: Path, compression: int) -> None:
    content = npy_promising((4, 1), rows=4)
    with zipfile.ZipFile(tmp_path / "d.npz", "w", compression) as archive:
        archive.writestr("y.npy", content)
        archive.writestr("X.npy", content + b"1")
    says(
        message(tmp_path / "d.npz"), "d.npz: X: more bytes than shape (4, 1) of float64 needs; save it again"
    )
    np.savez(tmp_path / "d.npz", X=X6 + 0.1, y=LABELS)
    whole = (tmp_path / "d.npz").read_bytes()
    place = whole.index(np.float64(11.1).tobytes()) + 1
    (tmp_path / "d.npz").write_bytes(whole[:place] + b"\x01" + whole[place + 1 :])
    says(message(tmp_path / "d.npz"), "truncated or damaged, or no .npz (Bad CRC-32 for file 'X.npy')")


def npy_promising(shape: tuple[int, ...], rows: int) -> bytes:
    buffer = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(buffer, header)
    return buffer.getvalue() + bytes(8 * rows * shape[1])


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_npz_header_promising_terabytes_allocates_nothing(tmp_path: Path, compression: int) -> None:
    with zipfile.ZipFile(tmp_path / "d.npz", "w", compression) as archive:
        archive.writestr("X.npy", npy_promising((2**37, 3), rows=4))
        archive.writestr("y.npy", npy_promising((4, 1), rows=4))
    tracemalloc.start()
    line = message(tmp_path / "d.npz")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    says(line, "d.npz: X: truncated: the header promises shape (137438953472, 3)", "ends in row 4; save")


def test_npy_header_promising_more_than_the_file_has(tmp_path: Path) -> None:
    pair = npy_pair(tmp_path, X6, LABELS)
    (tmp_path / "X.npy").write_bytes(npy_promising((2**45, 3), rows=4))
    says(
        message(pair),
        f"{tmp_path / 'X.npy'}: truncated: the header promises shape (351",
        "ends in row 4; save",
    )
    np.save(tmp_path / "X.npy", X6)
    (tmp_path / "X.npy").write_bytes((tmp_path / "X.npy").read_bytes()[:-20])
    says(
        message(pair), "X.npy: truncated: the header promises shape (6, 2) of float64", "ends in row 4; save"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty file"]),
        (b"PK\x03\x04 and so on", ["wrong magic 50 4b 03 04", "at byte 0", "numpy.save"]),
        (b"\x93NUMPY\x07\x00aaaa", [".npy version (7, 0)", "numpy.save"]),
        (b"\x93NUMPY\x01\x00\x76\x00{'descr'", ["truncated or damaged .npy header", "save it again"]),
        (b"\x93NUMPY\x01\x00\x08\x00{'descr'", ["truncated or damaged .npy header", "save it again"]),
        (npy_promising((0, 2**47), 0), ["shape (0, 140737488355328), an empty set"]),
        (npy_promising((0, 2**62), 0), ["damaged .npy header: shape (0, 4611686018427387904)"]),
        (npy_promising((-3, 2), 0), ["damaged .npy header: shape (-3, 2)"]),
    ],
)
def test_npy_header(tmp_path: Path, content: bytes, words: list[str]) -> None:
    pair = npy_pair(tmp_path, X6, LABELS)
    (tmp_path / "X.npy").write_bytes(content)
    says(message(pair), f"{tmp_path / 'X.npy'}: ", *words)


def test_npy_with_objects_empty_or_of_other_length(tmp_path: Path) -> None:
    line = message(npy_pair(tmp_path, np.full((6, 2), {}), LABELS))
    says(line, "X.npy: dtype object is a pickle of Python objects, which is never loaded; save")
    says(message(npy_pair(tmp_path, X6[:0], LABELS[:0])), "X.npy: shape (0, 2), an empty set; give")
    says(message(npy_pair(tmp_path, X6, LABELS[:5])), "y.npy: 5 rows, but", "X.npy has 6 rows; give")
    says(message(npy_pair(tmp_path, X6[:1], LABELS[:1] + 0.5)), "X.npy: 1 sample, but holding out")


@pytest.mark.parametrize("y", [[0, 0, 1, 1, 2, 2], [3.5, 2.0, 1.0, 0.5, 0.1, 0.0]])
def test_sorted_npy_pair_is_not_cut_at_its_end(tmp_path: Path, y: list[float]) -> None:
    line = message(npy_pair(tmp_path, X6, np.array(y)))
    says(line, "y.npy: sorted by target, and the last 1 samples are held out", "shuffle the rows of both")


# .csv


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,2,0\n3,4\n5,6,1\n", ["line 2 has 2 fields, the lines before 3; make them equal"]),
        ("a,b,c\n1,2,0\n3,4,1,9\n", ["line 3 has 4 fields, the lines before 3"]),
        ("1,2,0\n3,four,1\n", ["line 2, column 2 is 'four', not a number; write a number there"]),
        ("a,b,c\n1,2,0\n\n3,4,cat\n", ["line 4, column 3 is 'cat', not a number"]),
        ("1,two,0\n3,4,1\n", ["line 1, column 2 is 'two', not a number"]),
        ("1,2,0\n3,4#,1\n", ["line 2, column 2 is '4#', not a number"]),
        ("1,2,0\n3,4,1 # one\n", ["line 2, column 3 is '1 # one', not a number"]),
        ("1,2,0\n3,,1\n", ["line 2, column 2 is empty; write a number there"]),
        ("1,2,0\n3,1_0,1\n", ["line 2, column 2 is '1_0', not a number"]),
        ("a,b,c\n1,2,0\n\n3,nan,1\n", ["line 4, column 2 (b) is nan; fill in a number"]),
        ("1,2,0\n-inf,2,1\n", ["line 2, column 1 is -inf; fill in a number"]),
        ("a,b,y\n1,2,0\n3,4,nan\n", ["line 3, column 3 (y) is nan; fill in a number"]),
        ("y,b,c\n0,2,0\n1,4,inf\n", ["line 3, column 3 (c) is inf; fill in a number"]),
        ("a,b,c\n", ["an empty set: no line of numbers; give at least one sample"]),
        ("", ["an empty set: no line of numbers"]),
        ("\n\n", ["an empty set: no line of numbers"]),
        ("1\n2\n", ["1 column, expected at least one feature and the target; separate the fields by commas"]),
        ("1;2\n2;3\n", ["line 2, column 1 is '2;3', not a number; separate the fields by commas"]),
        ("a,b\n1,2,0\n3,4,1\n", ["2 column names but 3 columns; give each column one name"]),
        ("a,b,y\n1,2,1\n3,4,2\n", ["column 3 (y): labels run from 1 to 2", "subtract 1"]),
        ("1,2,0\n3,4,-1\n", ["line 2, column 3 is label -1, out of range"]),
        ("1,2,0\n", ["features: 1 sample, but", "test_fraction=0"]),
        (b"1,2\xff,0\n", ["not text at byte 3; save it as UTF-8 text"]),
    ],
)
def test_csv(tmp_path: Path, text: str | bytes, words: list[str]) -> None:
    options = {"classes": 2} if text == "1,2,0\n" else {}
    says(message(csv(tmp_path, text), **options), f"{tmp_path / 'd.csv'}: ", *words)


def test_csv_target_column(tmp_path: Path) -> None:
    file = csv(tmp_path, "a,b,c\n1,2,0\n3,4,1\n")
    says(message(file, target="d"), "no column named 'd' (the header has a, b, c); name one of them")
    says(message(file, target=3), "no column 3; the target is a column from -3 to 2")
    says(message(file, target=0, task="classification"), "column 1 (a): labels run from 1 to 3")


TRUNCATING: dict[str, Callable[[Path], object]] = {
    "npz": lambda folder: npz(folder, X=X6, y=LABELS),
    "csv": lambda folder: csv(folder, "a,b,c\n1,2,0\n3,4,1\n5,6,1\n"),
    "npy": lambda folder: npy_pair(folder, X6, LABELS),
    "idx": lambda folder: write_idx(folder) and folder,
}


@pytest.mark.parametrize("kind", TRUNCATING)
def test_cut_anywhere_gives_one_line_or_numbers_never_another_exception(tmp_path: Path, kind: str) -> None:
    spec = TRUNCATING[kind](tmp_path)
    for file in sorted(tmp_path.iterdir()):
        whole = file.read_bytes()
        for keep in range(0, len(whole), 1 + len(whole) // 150):
            file.write_bytes(whole[:keep])
            if kind == "csv":  # a shorter csv can be a csv
                try:
                    datasets.load(str(spec), test_fraction=0)
                except DataError:
                    message(spec, test_fraction=0)
            else:
                assert str(file) in message(spec, test_fraction=0)
        file.write_bytes(whole)


@pytest.mark.parametrize("kind", TRUNCATING)
def test_flipped_bytes_give_one_line_or_numbers_never_another_exception(tmp_path: Path, kind: str) -> None:
    spec = TRUNCATING[kind](tmp_path)
    rng = np.random.default_rng(0)
    for file in sorted(tmp_path.iterdir()):
        whole = file.read_bytes()
        for _ in range(150):
            damaged = bytearray(whole)
            damaged[int(rng.integers(len(whole)))] = int(rng.integers(256))
            file.write_bytes(damaged)
            try:
                datasets.load(str(spec), test_fraction=0)
            except DataError:
                message(spec, test_fraction=0)
        file.write_bytes(whole)
