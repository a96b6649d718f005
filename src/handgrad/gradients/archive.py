"""An attempt in a ``.npz``: data, parameters, gradients and intermediates by name."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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

    Raises ``ValueError`` in one line for another kind of file, object arrays and missing keys, and
    ``FileNotFoundError``.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files} if hasattr(stored, "files") else None
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        detail = "it holds Python objects" if "allow_pickle" in str(error) else "it is none, or damaged"
        raise ValueError(
            f"{path}: expected a .npz of number arrays; {detail}; write it with numpy.savez"
        ) from error
    except TypeError:  # a plain .npy has no context manager
        arrays = None
    if arrays is None:
        raise ValueError(f"{path}: expected a .npz with named arrays, got a single array; use numpy.savez")
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
