"""An attempt in a ``.npz``: data, parameters, gradients and intermediates by name."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.datasets.dataset import existing_file
from handgrad.datasets.numpy_files import read_npz

Floats = NDArray[Any]
_PARAMETER = re.compile(r"([wWbB])_?(\d+)")


@dataclass
class Archive:
    """What the file holds; ``values`` are gradients and intermediates."""

    X: Floats
    y: Floats
    parameters: dict[str, Floats]
    values: dict[str, Floats] = field(default_factory=dict)


def read_archive(path: Path) -> Archive:
    """Keys X, y, W1, b1, W2, b2, …, dW1, db1, … and any intermediates (Z1, A1, …, dZ1).

    Raises ``ValueError`` in one line where there is no such file, for another kind of file, object arrays and
    missing keys.
    """
    if path.is_file() and _start(path) == np.lib.format.MAGIC_PREFIX:
        raise ValueError(f"{path}: expected a .npz with named arrays, got a single array; use numpy.savez")
    stored = read_npz(existing_file(path), lambda _, names: {name: name for name in names})
    arrays = {name: array for name, (_, array) in stored.items()}
    archive = Archive(np.empty(0), np.empty(0), {})
    found = set()
    for name, array in arrays.items():
        match = _PARAMETER.fullmatch(name)
        if match:
            archive.parameters[f"{'W' if match[1] in 'wW' else 'b'}{match[2]}"] = array
        elif name in ("X", "x"):
            archive.X = array
            found.add("X")
        elif name in ("y", "Y"):
            archive.y = array
            found.add("y")
        else:
            archive.values[name] = array
    missing = [name for name in ("X", "y") if name not in found]
    missing += [] if "W1" in archive.parameters else ["W1"]
    missing += [] if archive.values else ["dW1"]
    if missing:
        raise ValueError(
            f"{path}: missing {', '.join(missing)}; expected X, y, W1, b1, W2, b2, …, their gradients dW1, "
            f"db1, … and any intermediates, got {', '.join(arrays) or 'nothing'}"
        )
    return archive


def _start(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(len(np.lib.format.MAGIC_PREFIX))
