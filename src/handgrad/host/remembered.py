"""Arrangements that :func:`handgrad.host.tuning.tune` measured, kept in a file of the cache folder.

It is ``$HANDGRAD_CACHE/host.json``, else ``$XDG_CACHE_HOME/handgrad/host.json``, else
``~/.cache/handgrad/host.json``.  A file that cannot be read counts as empty; entries of another processor,
BLAS or NumPy are left alone.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from handgrad.host import blas

Entry = dict[str, Any]


def path() -> Path:
    """Where the file is."""
    chosen, xdg = os.environ.get("HANDGRAD_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen).absolute() / "host.json"
    base = Path(xdg) if xdg else Path(os.path.expanduser("~")) / ".cache"  # noqa: PTH111 (no error without a home)
    return base.absolute() / "handgrad" / "host.json"


def find(sizes: tuple[int, ...], rows: int, itemsize: int, shared: bool = False) -> Entry | None:
    """What was measured for this network and share of rows on this machine, if anything."""
    try:
        found = _read(path())
    except (OSError, ValueError):
        return None
    entry = found.get(machine(), {}).get(key(sizes, rows, itemsize, shared)) if found else None
    return entry if isinstance(entry, dict) else None


def remember(sizes: tuple[int, ...], rows: int, itemsize: int, entry: Entry, shared: bool = False) -> bool:
    """Keep ``entry``; False where the file cannot be written."""
    file = path()
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}.part")
    try:
        try:
            content = _read(file)
        except (OSError, ValueError):
            content = {}
        content.setdefault(machine(), {})[key(sizes, rows, itemsize, shared)] = entry
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        temporary.replace(file)  # whole or not at all, whoever else writes
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        return False
    return True


def key(sizes: tuple[int, ...], rows: int, itemsize: int, shared: bool = False) -> str:
    """The name of a problem."""
    by = ", products shared" if shared else ""
    return f"{'-'.join(map(str, sizes))} rows {rows} float{8 * itemsize}{by}"


@functools.cache
def machine() -> str:
    """Processor, BLAS and NumPy: what a measurement holds for."""
    from handgrad.emulator.compiler import processor

    library = blas.find()
    return f"{processor()} {library.name} {library.version} {library.architecture} numpy {np.__version__}"


def _read(file: Path) -> dict[str, dict[str, Entry]]:
    if not file.is_file():
        return {}
    content = json.loads(file.read_text())
    if not isinstance(content, dict) or not all(isinstance(part, dict) for part in content.values()):
        raise ValueError(f"{file} is not a table of arrangements")
    return content
