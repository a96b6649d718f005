"""Every reader of files, for tests that feed it damaged ones.

Of each: whole files to begin with, and how to read one.  A reader may succeed, or fail with one line that it
raises on purpose and that names the file.
"""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_documents import document
from dataset_files import idx_bytes

import handgrad as hg
from handgrad import checkpoint, datasets
from handgrad.benchmark import compare
from handgrad.cli.run_directory import RunDirectory
from handgrad.gradients.archive import read_archive
from handgrad.proof import launch_description
from handgrad.streaming import shard_files

LONGEST_LINE = 1000  # characters of a message
MOST_MEMORY = 64 << 20  # bytes that reading a file of a few kilobytes may take, gzip's 1032-fold included


@dataclass(frozen=True)
class Reader:
    """``read`` opens the file ``stem + suffix`` that holds a damaged copy of one of ``wholes()``."""

    name: str
    file: str
    wholes: Callable[[], list[bytes]]
    read: Callable[[Path], object]

    def __str__(self) -> str:
        return self.name


def problem(reader: Reader, content: bytes, folder: Path) -> str:
    """What is wrong with how ``reader`` takes ``content``; "" where it reads it or refuses it in one line."""
    path = folder / reader.file
    path.write_bytes(content)
    try:
        reader.read(path)
    except (ValueError, FileNotFoundError) as error:
        line = str(error)
        if type(error) is UnicodeDecodeError or not line or "\n" in line or len(line) > LONGEST_LINE:
            return f"{type(error).__name__} of {len(line)} characters: {line[:300]!r}"
        if "memory" in line:
            return f"memory ran out: {line[:300]!r}"
        if path.stem not in line:
            return f"the message does not name the file: {line[:300]!r}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]!r}"
    return ""


# ---- files that are whole --------------------------------------------------------------------------------

_random = np.random.default_rng(1)
_X = _random.integers(0, 256, (12, 6)).astype(np.uint8)
_y = (np.arange(12) % 3).astype(np.int64)


def _npz(**arrays: Any) -> list[bytes]:
    files = []
    for save in (np.savez, np.savez_compressed):
        stream = io.BytesIO()
        save(stream, **arrays)
        files.append(stream.getvalue())
    return files


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _checkpoints() -> list[bytes]:
    files = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        for optimizer in (None, hg.SGD(lr=0.1, momentum=0.9), hg.Adam()):
            checkpoint.save(hg.MLP([3, 4, 2], loss="cross_entropy", device="cpu"), path, optimizer)
            files.append(path.read_bytes())
    return files


def _gradients() -> list[bytes]:
    net = hg.MLP([3, 4, 2], device="cpu")
    X, y = np.ones((5, 3), np.float32), np.zeros((5, 2), np.float32)
    _, grads = net.loss_and_grad(X, y)
    return _npz(X=X, y=y, **net.parameters, **{f"d{name}": value for name, value in grads.items()})


LAUNCH = b"""kernel = "saxpy<float>"
grid = [4]
block = 256
shared = 16
args = [
    { dtype = "float32", shape = [100], fill = "normal", name = "x" },
    { dtype = "int8", shape = [2, 50], fill = "integers", low = -3, high = 5 },
    { dtype = "float32", shape = [100], fill = "output" },
    { dtype = "float64", shape = [3], fill = 2.5 },
    { dtype = "float32", value = 2.0 }, { dtype = "int32", value = 1000 }, { null = true },
]
"""
LAUNCHES = b"".join(b"[[launch]]\n" + LAUNCH for _ in range(2))

CONFIG = json.dumps({"sizes": [784, 50, 10], "lr": 0.1, "data": "mnist-subset", "seed": 0}, indent=2).encode()


def _read_pair(path: Path) -> object:
    labels = path.with_name("targets.npy")
    labels.write_bytes(_npy(_y))
    return datasets.load(f"{path},{labels}")


def _read_network(path: Path) -> object:
    net = checkpoint.load(path, "cpu")
    return checkpoint.load_optimizer(path, net)


def _report() -> bytes:
    """A report of two workloads, shortened so that most changes hit what a comparison reads."""
    whole = document()
    rows = {row["workload"]: row for row in whole["results"]}
    return json.dumps({**whole, "results": list(rows.values())[:2], "ratios": [], "products": []}).encode()


def _compared(path: Path) -> object:
    found = compare.load(path)
    return compare.compare(found, compare.load(path))


def _shards() -> list[bytes]:
    pair = [{"X": "X-0.npy", "y": "y-0.npy", "rows": 12}]
    indices = ({"train": pair}, {"train": [*pair, {"npz": "part.npz", "rows": 12}], "test": pair})
    return [json.dumps({"format": shard_files.FORMAT, **parts}).encode() for parts in indices]


def _open_shards(path: Path) -> object:
    """The index among whole shards; its rows are read too."""
    beside = {"X-0.npy": _npy(_X), "y-0.npy": _npy(_y), "part.npz": _npz(X=_X, y=_y)[0]}
    for name, content in beside.items():
        path.with_name(name).write_bytes(content)
    (X, y), _ = shard_files.open_shards(path.parent)
    return X.read(0, X.count), y.read(0, y.count)


def _images(path: Path) -> object:
    return datasets.load_features(path, 20)


def _idx() -> list[bytes]:
    content = idx_bytes(_random.integers(0, 256, (3, 4, 5)))
    return [content, gzip.compress(content, mtime=0)]


READERS = (
    Reader("idx", "images-idx3-ubyte", _idx, _images),
    Reader("npz", "data.npz", lambda: _npz(X=_X, y=_y), datasets.load),
    Reader("npy", "features.npy", lambda: [_npy(_X), _npy(np.asfortranarray(_X * 0.5))], _read_pair),
    Reader(
        "csv",
        "table.csv",
        lambda: [
            b"a,b,label\n1,2.5,0\n-3e2,4,1\n5,6,1\n",
            b'1,2,0\n"3",4,1\n',
            b"\xef\xbb\xbf0.5,1\r\n2,0\r\n",
        ],
        datasets.load,
    ),
    Reader("checkpoint", "net.safetensors", _checkpoints, _read_network),
    Reader("config", "config.json", lambda: [CONFIG], lambda path: RunDirectory(path.parent).read_config()),
    Reader("launch", "launch.toml", lambda: [LAUNCH, LAUNCHES], launch_description.read),
    Reader("gradients", "attempt.npz", _gradients, read_archive),
    Reader("shards", "index.json", _shards, _open_shards),
    Reader("report", "bench.json", lambda: [_report()], _compared),
)
