"""A directory of shards: the rows of a set in several files, and ``index.json``, which lists them.

::

    {"format": "handgrad.shards/1",
     "train": [{"X": "X-0.npy", "y": "y-0.npy", "rows": 100000}, {"npz": "part-1.npz", "rows": 50000}],
     "test": [...]}

``test`` may be missing: then the last fifth of the rows is held out.  All shards have the same columns and
dtypes.  A pair of ``.npy`` is read in blocks; an ``.npz`` (arrays X and y) is read whole, so keep it small.
Names are those of files in the directory itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from handgrad.checkpoint import write_atomically
from handgrad.datasets import DataError
from handgrad.datasets.dataset import Array, existing_file
from handgrad.datasets.numpy_files import npy_bytes, read_npz
from handgrad.streaming.row_files import JoinedRows, Rows, open_npy

FORMAT = "handgrad.shards/1"
INDEX = "index.json"
INDEX_BYTES = 64 << 20  # more is no index
LONGEST_NAME = 255  # bytes of a file's name

Pair = tuple[Rows, Rows]  # features and targets


@dataclass
class _LastRead:
    """The archive that was read last, so that its features and targets are read once."""

    path: Path | None = None
    arrays: dict[str, Array] = field(default_factory=dict)

    def read(self, path: Path) -> dict[str, Array]:
        """The arrays X and y of ``path``."""
        if path != self.path:
            self.arrays = {}  # the memory of the one before is given back first
            found = read_npz(path, _X_and_y)
            self.path, self.arrays = path, {key: array for key, (_, array) in found.items()}
        return self.arrays


@dataclass(frozen=True)
class ArchiveRows:
    """X or y of an ``.npz``."""

    path: Path
    key: str
    count: int
    row_shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    archive: _LastRead = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.path}: {self.key}"

    def read(self, first: int, last: int) -> Array:
        """A copy: another archive may be read next."""
        return self.archive.read(self.path)[self.key][first:last].copy()


def open_shards(folder: Path) -> tuple[Pair, Pair | None]:
    """Features and targets of the training part, and of the test part where there is one.

    Raises :class:`DataError` for an index or shards that do not fit together.
    """
    path = existing_file(folder / INDEX)
    index = _read_index(path)
    last = _LastRead()
    parts: dict[str, list[Pair]] = {}
    for part in ("train", "test"):
        for number, entry in enumerate(index.get(part, [])):
            try:
                pair = _open_shard(folder, entry, last)
            except DataError as error:
                raise DataError(f"{path}: {part}[{number}]: {error}") from None
            parts.setdefault(part, []).append(pair)
    for pair in (pair for pairs in parts.values() for pair in pairs):
        for rows, first in zip(pair, parts["train"][0], strict=True):
            if (rows.row_shape, rows.dtype) != (first.row_shape, first.dtype):
                raise DataError(
                    f"{rows.name}: rows {rows.row_shape} of {rows.dtype}, but {first.name} has "
                    f"{first.row_shape} of {first.dtype}; all shards need the same columns"
                )
    joined = {
        part: (JoinedRows(tuple(X for X, _ in pairs)), JoinedRows(tuple(y for _, y in pairs)))
        for part, pairs in parts.items()
    }
    return joined["train"], joined.get("test")


def write_shards(folder: Path, X: Array, y: Array, rows: int, part: str = "train") -> None:
    """Write ``X`` and ``y`` as pairs of ``.npy`` of ``rows`` rows, and list them in ``index.json``.

    ``part="train"`` begins a new index; a second call with ``part="test"`` adds the test part.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / INDEX
    index = {"format": FORMAT}
    if part != "train":
        index = _read_index(path)
    entries = []
    for number, first in enumerate(range(0, len(X), rows)):
        names = {"X": f"{part}-X-{number:05d}.npy", "y": f"{part}-y-{number:05d}.npy"}
        for name, array in (("X", X), ("y", y)):
            write_atomically(folder / names[name], npy_bytes(array[first : first + rows]))
        entries.append({**names, "rows": len(X[first : first + rows])})
    write_atomically(path, json.dumps(index | {part: entries}, indent=1).encode())


def _read_index(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= INDEX_BYTES else b""
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the file") from None
    if size > INDEX_BYTES:
        raise DataError(
            f"{path}: {size} bytes are too many for an index; write it with handgrad.streaming.write_shards"
        )
    try:
        index = json.loads(content)
    except (ValueError, RecursionError):
        raise DataError(f"{path}: not valid JSON; write it with handgrad.streaming.write_shards") from None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise DataError(f'{path}: expected a JSON object with "format": "{FORMAT}"')
    for part in ("train", "test"):
        if part == "train" or part in index:
            entries = index.get(part)
            if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries) or not entries:
                raise DataError(
                    f'{path}: "{part}" must list shards, as [{{"X": "X-0.npy", "y": "y-0.npy", "rows": 100}}]'
                )
    return index


def _open_shard(folder: Path, entry: dict[str, Any], last: _LastRead) -> Pair:
    rows = entry.get("rows")
    pair: Pair
    if "npz" in entry:
        path = _inside(folder, entry["npz"])
        arrays = last.read(path)
        X, y = (
            ArchiveRows(path, key, len(arrays[key]), arrays[key].shape[1:], arrays[key].dtype, last)
            for key in ("X", "y")
        )
        pair = X, y
    else:
        pair = (
            open_npy(_inside(folder, entry.get("X"))),
            open_npy(_inside(folder, entry.get("y"))),
        )
    if not pair[0].count == pair[1].count == rows:
        raise DataError(
            f"{str(rows)[:30]} rows, but X has {pair[0].count} and y {pair[1].count}; write the index again"
        )
    return pair


def _inside(folder: Path, name: Any) -> Path:
    """The file ``name`` of ``folder``: a name alone, so that no index leads out of its directory."""
    is_name = isinstance(name, str) and 0 < len(name.encode(errors="replace")) <= LONGEST_NAME
    if not is_name or not name.isprintable() or name != Path(name).name or "\\" in name:
        raise DataError(f"expected the name of a file beside the index, got {str(name)[:60]!r}")
    return existing_file(folder / name)


def _X_and_y(path: Path, stored: list[str]) -> dict[str, str]:
    if not {"X", "y"} <= set(stored):
        raise DataError(f"{path}: expected arrays X and y, got {', '.join(sorted(stored)[:12]) or 'none'}")
    return {"X": "X", "y": "y"}
