"""Each kind of file gives the numbers that were put into it; the embedded images are MNIST's."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from dataset_files import write_idx

from handgrad import datasets
from handgrad.data.make_mnist_subset import make


def mapped(array: np.ndarray) -> bool:
    """Whether the memory of ``array`` is a file's."""
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array is not None


def test_embedded_subset_is_mnist() -> None:
    train, test = datasets.load()
    assert (train.X.shape, test.X.shape) == ((10_000, 784), (2_000, 784))
    assert train.X.dtype == test.X.dtype == np.uint8
    assert (train.scale, train.shift, train.classes, train.name) == (1 / 255, 0.0, 10, "mnist-subset")
    # published facts about MNIST: its first labels, and the class counts of these subsets
    assert train.y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test.y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert np.bincount(train.y).tolist() == [1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978]
    assert len(train) == 10_000
    digest = hashlib.sha256(train.X.tobytes() + test.X.tobytes()).hexdigest()
    assert digest == "54ed7994940da86ce84ba063eb743d818c7f1202c7f1e61eeb03bf1bce93a276"


def test_parts_are_read_only_and_unpack() -> None:
    split = datasets.load()
    train, test = split
    assert split.train is train
    assert split.test is test
    with pytest.raises(ValueError, match="read-only"):
        train.X[0, 0] = 1


@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_directory(tmp_path: Path, mark: str, ending: str) -> None:
    arrays = write_idx(tmp_path, mark, ending)
    train, test = datasets.load(tmp_path)
    np.testing.assert_array_equal(train.X, arrays["X_train"].reshape(60, 20))
    np.testing.assert_array_equal(train.y, arrays["y_train"])
    np.testing.assert_array_equal(test.X, arrays["X_test"].reshape(20, 20))
    np.testing.assert_array_equal(test.y, arrays["y_test"])
    assert train.X.dtype == np.uint8
    assert train.y.dtype == np.int64
    assert (train.classes, test.classes, train.scale) == (10, 10, 1 / 255)


def test_idx_content_tells_whether_it_is_gzipped(tmp_path: Path) -> None:
    arrays = write_idx(tmp_path)
    name = "train-labels-idx1-ubyte"
    (tmp_path / name).rename(tmp_path / f"{name}.gz")  # as browsers leave it: unpacked, name kept
    np.testing.assert_array_equal(datasets.load(str(tmp_path)).train.y, arrays["y_train"])


@pytest.mark.parametrize("capital", ["X", "x"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_test_part(tmp_path: Path, capital: str, save) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30, 7)).astype(np.float32), np.arange(30) % 3
    parts = {f"{capital}_train": X[:20], "y_train": y[:20], f"{capital}_test": X[20:], "y_test": y[20:]}
    save(tmp_path / "d.npz", **parts)
    train, test = datasets.load(str(tmp_path / "d.npz"))
    np.testing.assert_array_equal(train.X, X[:20])
    np.testing.assert_array_equal(test.X, X[20:])
    np.testing.assert_array_equal(test.y, y[20:])
    assert (train.scale, train.classes, train.X.dtype) == (1.0, 3, np.float32)


def test_capital_x_is_taken_where_both_are_stored(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 2)), X=np.ones((4, 2)), y=[0, 1, 0, 1], Y=[1, 1, 1, 0])
    train = datasets.load(tmp_path / "d.npz", test_fraction=0).train
    np.testing.assert_array_equal(train.X, np.ones((4, 2)))
    np.testing.assert_array_equal(train.y, [0, 1, 0, 1])


@pytest.mark.parametrize("shape", [(6, 4), (6, 2, 2)])
def test_fortran_order(tmp_path: Path, shape: tuple[int, ...]) -> None:
    X = np.arange(24.0, dtype=np.float32).reshape(shape)
    np.savez(tmp_path / "d.npz", X=np.asfortranarray(X), y=[0, 1, 0, 1, 1, 0])
    np.save(tmp_path / "X.npy", np.asfortranarray(X))
    np.save(tmp_path / "y.npy", [0, 1, 0, 1, 1, 0])
    for spec in (tmp_path / "d.npz", f"{tmp_path / 'X.npy'},{tmp_path / 'y.npy'}"):
        train = datasets.load(spec, test_fraction=0).train
        np.testing.assert_array_equal(train.X, X.reshape(6, 4))
        assert train.X.flags.c_contiguous


def test_held_out_part_is_the_documented_one(tmp_path: Path) -> None:
    count = 103
    X, y = np.arange(count * 2, dtype=np.float64).reshape(count, 2), np.arange(count) % 4
    np.savez(tmp_path / "d.npz", X=X, y=y)
    for seed, fraction, held in ((0, 0.2, 20), (5, 0.5, 51), (0, 0.001, 1)):
        train, test = datasets.load(tmp_path / "d.npz", seed=seed, test_fraction=fraction)
        keys = np.random.PCG64(seed).random_raw(count)
        rows = sorted(range(count), key=lambda row, keys=keys: keys[row])[:held]
        np.testing.assert_array_equal(test.X, X[sorted(rows)])
        np.testing.assert_array_equal(test.y, y[sorted(rows)])
        np.testing.assert_array_equal(train.X, np.delete(X, rows, axis=0))
        np.testing.assert_array_equal(train.y, np.delete(y, rows))
    # PCG64's words never change, so neither does this
    assert np.flatnonzero(~np.isin(X[:, 0], datasets.load(tmp_path / "d.npz").train.X[:, 0]))[
        :5
    ].tolist() == [2, 3, 11, 13, 15]


def test_everything_can_stay_in_the_training_part(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", X=np.eye(4), y=[0, 1, 1, 0])
    train, test = datasets.load(tmp_path / "d.npz", test_fraction=0)
    assert (len(train), len(test), test.X.shape) == (4, 0, (0, 4))


@pytest.mark.parametrize(
    ("X", "dtype", "scale"),
    [
        (np.full((10, 3), 200, np.uint8), np.uint8, 1 / 255),
        (np.ones((10, 3), np.uint8), np.uint8, 1.0),
        (np.ones((10, 3), bool), np.uint8, 1.0),
        (np.full((10, 3), -7, np.int16), np.float32, 1.0),
        (np.full((10, 3), 2**40 + 1, np.int64), np.float64, 1.0),
        (np.full((10, 3), 0.5, np.float16), np.float32, 1.0),
        (np.full((10, 3), 0.1, ">f8"), np.float64, 1.0),
        (np.full((10, 3), 0.1, ">f4"), np.float32, 1.0),
        (np.full((10, 3), 255.0, np.float32), np.float32, 1.0),
    ],
)
def test_dtypes_and_scale(tmp_path: Path, X: np.ndarray, dtype: type, scale: float) -> None:
    np.savez(tmp_path / "d.npz", X=X, y=np.arange(10) % 2)
    train = datasets.load(tmp_path / "d.npz", test_fraction=0).train
    assert train.X.dtype == np.dtype(dtype)
    assert train.X.dtype.isnative
    assert train.scale == scale
    np.testing.assert_array_equal(train.X, X)
    assert datasets.load(tmp_path / "d.npz", scale=0.25).test.scale == 0.25


def test_batch_scales_only_the_rows_asked_for() -> None:
    X = np.arange(12, dtype=np.uint8).reshape(4, 3)
    data = datasets.Dataset(X, np.array([3, 2, 1, 0]), scale=0.5, shift=-1.0, classes=4, name="rows")
    batch, labels = data.batch([2, 0])
    np.testing.assert_array_equal(batch, [[2.0, 2.5, 3.0], [-1.0, -0.5, 0.0]])
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(labels, [1, 3])
    assert labels.dtype == np.int64
    assert data.batch([], dtype=np.float64)[0].shape == (0, 3)
    values = datasets.Dataset(X, np.array([[0.1], [0.2], [0.3], [0.4]]))
    assert values.batch([3])[1] == np.float32(0.4)
    head = data.head(2)
    assert (len(head), head.scale, head.classes, head.name) == (2, 0.5, 4, "rows")
    assert np.shares_memory(head.X, X)


def test_npy_pairs_stay_on_disk(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    X, y = rng.integers(0, 256, (50, 6, 7)).astype(np.uint8), rng.permutation(np.arange(50) % 5)
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "y.npy", y)
    pair = f"{tmp_path / 'X.npy'},{tmp_path / 'y.npy'}"
    train, test = datasets.load(pair)
    assert mapped(train.X)
    assert mapped(test.X)
    np.testing.assert_array_equal(train.X, X[:40].reshape(40, 42))  # the last fifth is held out
    np.testing.assert_array_equal(test.X, X[40:].reshape(10, 42))
    np.testing.assert_array_equal(test.y, y[40:])
    assert train.scale == 1 / 255
    whole, copy = datasets.load(f"{pair}, {pair}")
    assert (len(whole), len(copy)) == (50, 50)


def test_regression_targets(tmp_path: Path) -> None:
    X, y = np.eye(6, dtype=np.float32), np.linspace(-1, 1, 12).reshape(6, 2)
    np.savez(tmp_path / "two.npz", X=X, y=y)
    np.savez(tmp_path / "one.npz", X=X, y=y[:, 0].astype(np.float32))
    two, one = (datasets.load(tmp_path / name, test_fraction=0).train for name in ("two.npz", "one.npz"))
    np.testing.assert_array_equal(two.y, y)
    assert (two.classes, two.y.dtype) == (0, np.float64)
    np.testing.assert_array_equal(one.y, y[:, :1].astype(np.float32))
    assert one.y.dtype == np.float32


def test_task_overrides_the_dtype(tmp_path: Path) -> None:
    np.savez(tmp_path / "ints.npz", X=np.eye(6), y=[300, 200, 250, 900, 210, 333])
    values = datasets.load(tmp_path / "ints.npz", task="regression", test_fraction=0).train
    np.testing.assert_array_equal(values.y, [[300.0], [200.0], [250.0], [900.0], [210.0], [333.0]])
    assert (values.classes, values.y.dtype.kind) == (0, "f")
    np.savez(tmp_path / "floats.npz", X=np.eye(4), y=[0.0, 1.0, 2.0, 1.0])
    labels = datasets.load(tmp_path / "floats.npz", task="classification", test_fraction=0).train
    assert (labels.y.tolist(), labels.classes, labels.y.dtype) == ([0, 1, 2, 1], 3, np.int64)


def test_images_as_regression() -> None:
    train = datasets.load(task="regression").train
    assert (train.y.shape, train.classes, train.y.dtype.kind) == ((10_000, 1), 0, "f")
    assert train.y[:3].tolist() == [[5.0], [0.0], [4.0]]


def test_classes_can_be_given(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", X=np.eye(3), y=[[7], [9], [7]])
    train = datasets.load(tmp_path / "d.npz", classes=10, test_fraction=0).train
    assert (train.classes, train.y.tolist()) == (10, [7, 9, 7])


CSV = [
    ("1,2.5,0\n3,4,1\n5,-6e1,2\n7,8,1\n", None, [[1, 2.5], [3, 4], [5, -60], [7, 8]], [0, 1, 2, 1]),
    ("a,b,c\n1,2,0\n3,4,1\n", None, [[1, 2], [3, 4]], [0, 1]),
    ("\ufeffa,b,c\r\n1,2,0\r\n\r\n3,4,1\r\n", None, [[1, 2], [3, 4]], [0, 1]),
    ("\ufeff1,2,0\n3,4,1\n", None, [[1, 2], [3, 4]], [0, 1]),
    ("\n\na,b,c\n1,2,0\n3,4,1\n", None, [[1, 2], [3, 4]], [0, 1]),
    ("label,b,c\n1,2,0\n0,4,1\n", None, [[2, 0], [4, 1]], [1, 0]),
    ("a,Target,c\n1,1,0\n3,0,1\n", None, [[1, 0], [3, 1]], [1, 0]),
    ('"a, b",c\n"1",0\n3,1\n', None, [[1], [3]], [0, 1]),
    ("0,1,kind\n5,6,1\n7,8,0\n", None, [[5, 6], [7, 8]], [1, 0]),
    (",0,1,y\n0,5,6,1\n1,7,8,0\n", None, [[0, 5, 6], [1, 7, 8]], [1, 0]),
    ("a,b,c\n1,2,0\n0,4,1\n", "a", [[2, 0], [4, 1]], [1, 0]),
    ("a,b,c\n1,1,0\n0,0,1\n", 1, [[1, 0], [0, 1]], [1, 0]),
    ("1,2,0\n0,4,1\n", "-3", [[2, 0], [4, 1]], [1, 0]),
]


@pytest.mark.parametrize(("text", "target", "X", "y"), CSV)
def test_csv(tmp_path: Path, text: str, target: str | int | None, X: list, y: list) -> None:
    (tmp_path / "d.csv").write_text(text, encoding="utf-8", newline="")
    train = datasets.load(tmp_path / "d.csv", target=target, test_fraction=0).train
    np.testing.assert_array_equal(train.X, X)
    np.testing.assert_array_equal(train.y, y)
    assert (train.y.dtype, train.classes, train.scale) == (np.int64, max(y) + 1, 1.0)


def test_csv_regression(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("1,0.5\n2,1\n3,2\n")
    train = datasets.load(tmp_path / "d.csv", test_fraction=0).train
    assert (train.y.tolist(), train.classes) == ([[0.5], [1.0], [2.0]], 0)
    (tmp_path / "d.csv").write_text("1,40\n2,55\n3,31\n")
    train = datasets.load(tmp_path / "d.csv", task="regression", test_fraction=0).train
    assert (train.y.tolist(), train.classes) == ([[40.0], [55.0], [31.0]], 0)


def test_features_alone(tmp_path: Path) -> None:
    X, y = np.arange(12, dtype=np.float32).reshape(6, 2), np.arange(6) % 2
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "y.npy", y)
    np.save(tmp_path / "other.npy", X + 1)
    X_npy, y_npy, other = (tmp_path / name for name in ("X.npy", "y.npy", "other.npy"))
    np.savez(tmp_path / "X.npz", X=X)
    np.savez(tmp_path / "only.npz", pixels=X)
    np.savez(tmp_path / "both.npz", x_train=X + 1, y_train=y, x_test=X, y_test=y)
    (tmp_path / "bare.csv").write_text("\n".join(f"{a},{b}" for a, b in X))
    (tmp_path / "last.csv").write_text("a,b,c\n" + "\n".join(f"{a},{b},7" for a, b in X))
    (tmp_path / "first.csv").write_text("label,a,b\n" + "\n".join(f"7,{a},{b}" for a, b in X))
    pair, four = f"{X_npy},{y_npy}", f"{other},{y_npy},{X_npy},{y_npy}"
    for spec in (X_npy, pair, four, *(tmp_path.glob("*.npz")), *(tmp_path.glob("*.csv"))):
        data = datasets.load_features(spec, 2)
        np.testing.assert_array_equal(data.X, X, err_msg=str(spec))
        assert (data.y.shape, data.scale, data.classes) == ((6, 0), 1.0, 0)
        assert mapped(data.X) == str(spec).endswith(".npy")
    by_name = datasets.load_features(tmp_path / "last.csv", 2, target="a")
    np.testing.assert_array_equal(by_name.X, np.stack([X[:, 1], np.full(6, 7)], axis=1))
    arrays = write_idx(tmp_path)
    for spec, key in ((tmp_path, "X_test"), (tmp_path / "train-images-idx3-ubyte", "X_train")):
        data = datasets.load_features(spec, 20)
        np.testing.assert_array_equal(data.X, arrays[key].reshape(-1, 20))
        assert data.scale == 1 / 255
    assert datasets.load_features("mnist-subset", 784, scale=0.5).scale == 0.5
    np.testing.assert_array_equal(datasets.load_features("mnist-subset", 784).X, datasets.load().test.X)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    member = np.array([Bomb()], dtype=object)
    np.savez(tmp_path / "d.npz", X=member, y=[0])
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(datasets.DataError, match="pickle"):
        datasets.load(tmp_path / "d.npz")
    assert not (tmp_path / "exploded").exists()
    with zipfile.ZipFile(tmp_path / "d.npz") as archive:  # the test can fail: loading it does run
        content = archive.read("X.npy")
    pickle.loads(content[content.index(b"\n") + 1 :])
    assert (tmp_path / "exploded").exists()


def test_the_script_makes_the_same_bytes_twice(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    arrays = write_idx(tmp_path / "mnist", ending=".gz", train=10_050, test=2_050)
    make(tmp_path / "mnist", tmp_path / "a.npz")
    command = [sys.executable, "-m", "handgrad.data.make_mnist_subset"]
    subprocess.run([*command, str(tmp_path / "mnist"), str(tmp_path / "b.npz")], check=True)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as made:
        for key, count in (("X_train", 10_000), ("y_train", 10_000), ("X_test", 2_000), ("y_test", 2_000)):
            np.testing.assert_array_equal(made[key], arrays[key][:count])


def test_the_notice_lies_beside_the_images() -> None:
    notice = (datasets.EMBEDDED.parent / "NOTICE").read_text(encoding="utf-8")
    for word in (
        "Yann LeCun",
        "Corinna Cortes",
        "Christopher Burges",
        "CC BY-SA 3.0",
        "subset, recompressed",
    ):
        assert word in notice


full_mnist = pytest.mark.skipif(
    "HANDGRAD_MNIST" not in os.environ, reason="set HANDGRAD_MNIST to the folder with MNIST's four IDX files"
)


@full_mnist
def test_full_mnist_loads_in_seconds() -> None:
    start = time.perf_counter()
    train, test = datasets.load(os.environ["HANDGRAD_MNIST"])
    assert time.perf_counter() - start < 5.0
    assert (train.X.shape, test.X.shape, train.classes) == ((60_000, 784), (10_000, 784), 10)
    # published: 5923 zeros … 5949 nines, mean 0.1307, standard deviation 0.3081 of the training pixels
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(train.y).tolist() == counts
    pixels = np.bincount(train.X.reshape(-1), minlength=256) / train.X.size
    mean = pixels @ np.arange(256) * train.scale
    assert mean == pytest.approx(0.1307, abs=5e-5)
    assert np.sqrt(pixels @ (np.arange(256) * train.scale - mean) ** 2) == pytest.approx(0.3081, abs=5e-5)


@full_mnist
def test_the_embedded_subset_is_the_start_of_full_mnist(tmp_path: Path) -> None:
    whole, part = datasets.load(os.environ["HANDGRAD_MNIST"]), datasets.load()
    for large, small in zip(whole, part, strict=True):
        np.testing.assert_array_equal(small.X, large.X[: len(small)])
        np.testing.assert_array_equal(small.y, large.y[: len(small)])
