"""Data on disk, read in blocks: the documented order, the bits of a training in memory, flat memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import idx_bytes
from small_networks import devices

from handgrad import MLP, SGD, Adam, evaluate, fit, streaming, to_numpy
from handgrad.datasets import DataError, Dataset
from handgrad.resume import Checkpoints, Every, newest, restore
from handgrad.streaming import open_stream, streamed_order, write_shards
from handgrad.streaming.shard_files import INDEX_BYTES
from handgrad.streaming.stream import Stream
from handgrad.training import epoch_order

RNG = np.random.default_rng(8)
PIXELS = RNG.integers(0, 256, (211, 6), dtype=np.uint8)
FLOATS = RNG.standard_normal((211, 6)).astype(np.float32)
LABELS = RNG.integers(0, 3, 211)
TARGETS = RNG.standard_normal((211, 2))


def npy(folder: Path, X: Any, y: Any, X_test: Any = None, y_test: Any = None) -> str:
    arrays = [X, y] if X_test is None else [X, y, X_test, y_test]
    paths = [folder / f"{number}.npy" for number in range(len(arrays))]
    for path, array in zip(paths, arrays, strict=True):
        np.save(path, array)
    return ",".join(map(str, paths))


def whole(folder: Path, X: Any, y: Any, **options: Any) -> Stream:
    """A stream of all of X and y."""
    return open_stream(npy(folder, X, y, X[:1], y[:1]), **options).train


def network(device: str = "cpu", **options: Any) -> MLP:
    return MLP([6, 7, 3], **({"loss": "cross_entropy", "device": device, "seed": 1} | options))


def bits(net: MLP) -> bytes:
    return bytes(to_numpy(net.flat_parameters.flat).tobytes())


# ---- the order


@pytest.mark.parametrize("block_rows", [1, 10, 37, 210, 211, 1000])
def test_every_row_comes_once_and_in_the_documented_order(block_rows):
    order = streamed_order(211, block_rows, seed=3, epoch=2)
    np.testing.assert_array_equal(np.sort(order), np.arange(211))

    def draw(*words: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(list(words)))

    if block_rows >= 211:
        expected = draw(3, 2).permutation(211)
        np.testing.assert_array_equal(order, epoch_order(211, 3, 2))
    else:
        count = -(-211 // block_rows)
        expected = np.concatenate([
            block * block_rows
            + draw(3, 2, 1 + block).permutation(min(block_rows, 211 - block * block_rows))
            for block in draw(3, 2, 0).permutation(count)
        ])  # fmt: skip
    np.testing.assert_array_equal(order, expected)
    np.testing.assert_array_equal(streamed_order(211, block_rows, 3, 2, shuffle=False), np.arange(211))


def test_epochs_and_seeds_differ():
    orders = {streamed_order(211, 20, seed, epoch).tobytes() for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


# ---- the same bits as in memory

SETS = {"pixels": (PIXELS, LABELS), "floats": (FLOATS, LABELS), "targets": (FLOATS, TARGETS)}


@devices
@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("block_rows", [16, 50, 211])
def test_a_streamed_training_has_the_bits_of_one_in_memory(kind, block_rows, device, tmp_path):
    """Batches of 20 in blocks of 16, 50 and all 211 rows: they straddle blocks, and the last has 11 rows."""
    X, y = SETS[kind]
    nets = [network(device), network(device)] if kind != "targets" else [
        MLP([6, 7, 2], device=device, seed=1) for _ in range(2)
    ]  # fmt: skip
    scale = 1 / 255 if kind == "pixels" else 1.0
    held = Dataset(X, y, scale, 0.0, 3 if kind != "targets" else 0, "")
    stream = whole(tmp_path, X, y, block_rows=block_rows)
    assert stream.scale == scale
    settings: dict[str, Any] = {"batch_size": 20, "epochs": 2, "seed": 5, "step_losses": True}
    memory, disk = (
        fit(net, data, optimizer=Adam(0.01), validation=data, block_rows=block_rows, **settings)
        for net, data in zip(nets, (held, stream), strict=True)
    )
    assert disk.steps == memory.steps
    assert bits(nets[1]) == bits(nets[0])
    for one, other in zip(disk.rows, memory.rows, strict=True):
        assert one["validation_loss"] == other["validation_loss"]
        assert one["validation_accuracy"] == other["validation_accuracy"]
    if block_rows >= 211:
        plain = network(device) if kind != "targets" else MLP([6, 7, 2], device=device, seed=1)
        fit(plain, held, optimizer=Adam(0.01), **settings)
        assert bits(plain) == bits(nets[1])


def test_shards_and_streams_go_together(tmp_path):
    stream = whole(tmp_path, PIXELS, LABELS, block_rows=50)
    nets = network(), network()
    held = Dataset(PIXELS, LABELS, 1 / 255, 0.0, 3, "")
    for net, data in zip(nets, (held, stream), strict=True):
        fit(net, data, optimizer=SGD(0.1), batch_size=20, epochs=2, shards=4, block_rows=50)
    assert bits(nets[0]) == bits(nets[1])


@pytest.mark.parametrize("stop", [1, 4, 11, 15])
def test_a_streamed_training_goes_on_in_the_middle_of_an_epoch(stop, tmp_path):
    stream = whole(tmp_path, FLOATS, LABELS, block_rows=50)
    settings: dict[str, Any] = {"batch_size": 20, "epochs": 2, "seed": 5}
    net, expected = network(), network()
    fit(expected, stream, optimizer=Adam(0.01), **settings)
    calls: list[int] = []

    def on_step(step: int, steps: int, loss: Any) -> None:
        calls.append(step)
        if len(calls) == stop:
            raise KeyboardInterrupt

    kept = Checkpoints(tmp_path / "c", Every(steps=1))
    fit(net, stream, optimizer=Adam(0.01), checkpoints=kept, on_step=on_step, **settings)
    assert not [thread for thread in threading.enumerate() if thread.name == "handgrad-reader"]
    found = newest(tmp_path / "c", lambda line: pytest.fail(line))
    assert found is not None
    again, optimizer = network(), Adam(0.01)
    progress = restore(found[1], found[0], again, optimizer)
    assert progress.epoch * 11 + progress.step in (stop, stop - 1)
    fit(again, stream, optimizer=optimizer, progress=progress, **settings)
    assert bits(again) == bits(expected)


def test_evaluation_reads_in_blocks(tmp_path):
    many = RNG.standard_normal((9000, 6))
    labels = RNG.integers(0, 3, 9000)
    net = network(dtype="float64")
    stream = whole(tmp_path, many, labels, block_rows=100)
    one, other = evaluate(net, stream), evaluate(net, many, labels)
    assert (one.loss, one.accuracy) == (other.loss, other.accuracy)


# ---- formats


def images(count: int, seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 2, 3), dtype=np.uint8), np.arange(count, dtype=np.uint8) % 10


def test_idx_files_give_their_rows(tmp_path):
    (X, y), (X_test, y_test) = images(50, 0), images(20, 1)
    for name, array in (
        ("train-images-idx3-ubyte", X), ("train-labels-idx1-ubyte", y),
        ("t10k-images-idx3-ubyte", X_test), ("t10k-labels-idx1-ubyte", y_test),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(idx_bytes(array))
    train, test = open_stream(tmp_path, block_rows=7)
    assert (len(train), len(test), train.classes, train.scale) == (50, 20, 10, 1 / 255)
    for stream, features, labels in ((train, X, y), (test, X_test, y_test)):
        found_X, found_y = stream.read(3, 19)
        np.testing.assert_array_equal(found_X, features.reshape(-1, 6)[3:19])
        np.testing.assert_array_equal(found_y, labels[3:19])


@pytest.mark.parametrize("rows", [9, 40, 211, 500])
def test_shards_give_their_rows(rows, tmp_path):
    write_shards(tmp_path, FLOATS, LABELS, rows)
    write_shards(tmp_path, FLOATS[:30], LABELS[:30], 10, part="test")
    train, test = open_stream(tmp_path)
    assert (len(train), len(test)) == (211, 30)
    for first, last in ((0, 211), (39, 41), (0, 1), (210, 211), (25, 140)):
        X, y = train.read(first, last)
        np.testing.assert_array_equal(X, FLOATS[first:last])
        np.testing.assert_array_equal(y, LABELS[first:last])
    np.testing.assert_array_equal(test.read(5, 30)[0], FLOATS[5:30])


def test_shards_may_be_archives(tmp_path):
    parts = [(0, 100), (100, 180), (180, 211)]
    for number, (a, b) in enumerate(parts):
        np.savez_compressed(tmp_path / f"{number}.npz", X=PIXELS[a:b], y=LABELS[a:b])
    entries = [{"npz": f"{number}.npz", "rows": b - a} for number, (a, b) in enumerate(parts)]
    (tmp_path / "index.json").write_text(json.dumps({"format": "handgrad.shards/1", "train": entries}))
    train, test = open_stream(tmp_path)
    assert (len(train), len(test)) == (169, 42)
    np.testing.assert_array_equal(train.read(90, 169)[0], PIXELS[90:169])
    np.testing.assert_array_equal(test.read(5, 42)[0], PIXELS[174:211])
    np.testing.assert_array_equal(test.read(5, 42)[1], LABELS[174:211])


def test_the_last_fifth_is_held_out_where_there_is_no_test_part(tmp_path):
    train, test = open_stream(npy(tmp_path, FLOATS, LABELS))
    np.testing.assert_array_equal(train.read(0, 169)[0], FLOATS[:169])
    np.testing.assert_array_equal(test.read(0, 42)[0], FLOATS[169:])
    assert train.digest() != test.digest()


# ---- what is wrong is told


def index_with(folder: Path, entry: Any) -> str:
    write_shards(folder, FLOATS, LABELS, 100)
    index = json.loads((folder / "index.json").read_text())
    index["train"][1] = index["train"][1] | entry if isinstance(entry, dict) else entry
    (folder / "index.json").write_text(json.dumps(index))
    return str(folder)


def bad_pair(X: Any = FLOATS, y: Any = LABELS) -> Any:
    return lambda folder: npy(folder, X, y)


def truncated(folder: Path) -> str:
    spec = npy(folder, FLOATS, LABELS)
    path = folder / "0.npy"
    path.write_bytes(path.read_bytes()[:-40])
    return spec


def gzipped(folder: Path) -> str:
    for name in ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"):
        (folder / name).write_bytes(b"\x1f\x8b" + bytes(30))
    for name in ("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"):
        (folder / name).write_bytes(idx_bytes(np.arange(5, dtype=np.uint8)))
    return str(folder)


BAD = {
    "lengths that differ": (bad_pair(y=LABELS[:100]), "211 rows of shape .* and 100 targets"),
    "a name that leads out": (lambda f: index_with(f, {"X": "../x.npy"}), "the name of a file beside"),
    "an absolute name": (lambda f: index_with(f, {"y": "/etc/passwd"}), "the name of a file beside"),
    "a name too long": (lambda f: index_with(f, {"X": 256 * "x"}), r"train\[1\]: expected the name"),
    "no letter of a name": (lambda f: index_with(f, {"X": "x\ud800"}), "the name of a file beside"),
    "an index too large": (lambda f: large_index(f), "are too many for an index"),
    "a file that is not there": (lambda f: index_with(f, {"X": "none.npy"}), "no such file"),
    "rows that are not there": (lambda f: index_with(f, {"rows": 10**12}), r"0{12} rows, but X has 100"),
    "no shard": (lambda f: index_with(f, 3), 'must list shards, as'),
    "other columns": (lambda f: other_columns(f), "all shards need the same columns"),
    "truncated": (truncated, "truncated: the header promises shape"),
    "Fortran order": (bad_pair(np.asfortranarray(FLOATS)), "rows are scattered"),
    "negative labels": (bad_pair(y=LABELS - 1), "labels from -1 to 1"),
    "gzipped": (gzipped, "gunzip it"),
    "nothing to stream": (lambda f: str(f), "cannot be streamed"),
    "one class": (bad_pair(y=np.zeros(211, int)), "number the classes"),
}  # fmt: skip


def other_columns(folder: Path) -> str:
    spec = index_with(folder, {})
    np.save(folder / "train-X-00001.npy", FLOATS[100:200, :5])
    return spec


def large_index(folder: Path) -> str:
    spec = index_with(folder, {})
    os.truncate(folder / "index.json", INDEX_BYTES + 1)
    return spec


@pytest.mark.parametrize("fault", BAD)
def test_bad_files_are_told_in_one_line(fault, tmp_path):
    make, words = BAD[fault]
    spec = make(tmp_path)
    with pytest.raises(DataError, match=words) as caught:
        open_stream(spec)
    assert "\n" not in str(caught.value)


def test_bad_values_are_told_where_they_stand(tmp_path):
    X = FLOATS.copy()
    X[150, 4] = np.nan
    stream = whole(tmp_path, X, LABELS, block_rows=50)
    with pytest.raises(DataError, match=r"0.npy: row 150, column 4 is nan"):
        fit(network(), stream, optimizer=SGD(0.1), epochs=1, batch_size=20)
    assert not [thread for thread in threading.enumerate() if thread.name == "handgrad-reader"]
    y = LABELS.copy()
    y[77] = 9
    stream = whole(tmp_path, FLOATS, y, block_rows=50, classes=10)
    short = Stream(**{**vars(stream), "classes": 3})
    with pytest.raises(DataError, match=r"1.npy: row 77 is label 9, out of range 0 to 2"):
        fit(network(), short, optimizer=SGD(0.1), epochs=1, batch_size=20)


def test_a_file_that_becomes_shorter_is_told(tmp_path):
    stream = whole(tmp_path, FLOATS, LABELS, block_rows=50)
    path = tmp_path / "0.npy"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"truncated: it ends before row"):
        fit(network(), stream, optimizer=SGD(0.1), epochs=1, batch_size=20)


def test_a_stream_that_does_not_fit_the_network_is_refused(tmp_path):
    stream = whole(tmp_path, FLOATS, LABELS)
    with pytest.raises(ValueError, match="expected 5 columns"):
        fit(MLP([5, 4, 3], loss="cross_entropy", device="cpu"), stream, optimizer=SGD(0.1))


# ---- memory and threads


def test_the_reader_runs_ahead_but_two_pieces_at_most(tmp_path, monkeypatch):
    stream = whole(tmp_path, FLOATS, LABELS, block_rows=20)
    real, read = Stream.read, []

    def counted(self: Stream, first: int, last: int) -> Any:
        read.append(first)
        return real(self, first, last)

    monkeypatch.setattr(Stream, "read", counted)
    samples = stream.for_network(network())
    read.clear()
    pieces = samples.pieces(0, 20, 0)
    next(pieces)
    time.sleep(0.3)
    assert 2 <= len(read) <= 3  # one is used, one is filled, one may have been read
    pieces.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "handgrad-reader"]


MEASURED = """
import resource, sys, threading
import numpy as np
import handgrad as hg
from handgrad import streaming
from handgrad.training import fit

def memory(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key))  # kB

net = hg.MLP([256, 8, 3], loss="cross_entropy", device="cpu", seed=1)
warm = hg.MLP([256, 8, 3], loss="cross_entropy", device="cpu", seed=1)
warm.train_step(np.zeros((100, 256), "f4"), np.zeros(100, int), hg.SGD(0.1))
from handgrad.streaming import streamed_samples
before = memory("VmHWM")
stream = streaming.open_stream(sys.argv[1], block_rows=int(sys.argv[2])).train
limit = int(sys.argv[3])
if limit:
    threading.stack_size(1 << 18)
    resource.setrlimit(resource.RLIMIT_DATA, (memory("VmData") * 1024 + limit,) * 2)
fit(net, stream, optimizer=hg.SGD(0.1, momentum=0.9), batch_size=100, epochs=2)
net.save(sys.argv[4])
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_five_times_the_allowed_memory_ends_in_the_bits_of_a_training_in_memory(tmp_path):
    """51 MB of features; the process may have 10 MB for data beyond what it started with."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50_000, 256), dtype=np.float32)
    y = rng.integers(0, 3, len(X))
    spec = npy(tmp_path, X, y, X[:100], y[:100])

    def streamed(limit: int, name: str) -> float:
        """Megabytes that the process grew by."""
        words = [sys.executable, "-c", MEASURED, spec, "1000", str(limit), str(tmp_path / name)]
        found = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
        assert found.returncode == 0, found.stderr
        return int(found.stdout) / 1000

    assert streamed(10 << 20, "streamed.safetensors") < 10
    expected = MLP([256, 8, 3], loss="cross_entropy", device="cpu", seed=1)
    fit(expected, X, y, optimizer=SGD(0.1, momentum=0.9), batch_size=100, epochs=2, block_rows=1000)
    from handgrad import load

    assert bits(load(tmp_path / "streamed.safetensors", device="cpu")) == bits(expected)
    small = npy(tmp_path, X[:12_500], y[:12_500], X[:100], y[:100])
    assert small
    quarter = streamed(0, "quarter.safetensors")
    np.save(tmp_path / "0.npy", X)
    np.save(tmp_path / "1.npy", y)
    assert streamed(0, "whole.safetensors") < quarter + 1, "flat, whatever N"


def test_the_public_names():
    assert streaming.__all__ == ["Stream", "block_order", "open_stream", "streamed_order", "write_shards"]
