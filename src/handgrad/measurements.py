"""What was measured on a machine, in JSON files of the cache folder: owner -> key -> row.

An owner is what a measurement holds for, a GPU or a processor with its libraries; a key names the problem.
The folder is ``$HANDGRAD_CACHE``, else ``$XDG_CACHE_HOME/handgrad``, else ``~/.cache/handgrad``.  A file that
is no such table counts as empty, and is then replaced; one that cannot be read is left alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def file_named(name: str) -> Path | None:
    """Where the file of this name is; None without a home."""
    chosen, xdg = os.environ.get("HANDGRAD_CACHE", ""), os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(chosen) if chosen else (Path(xdg) if xdg else Path.home() / ".cache") / "handgrad"
    except RuntimeError:
        return None
    return base.absolute() / name


def find(file: Path | None, owner: str, key: str) -> Row | None:
    """The row; None where there is none."""
    try:
        row = _read(file).get(owner, {}).get(key)
    except OSError:
        return None
    return row if isinstance(row, dict) else None


def remember(file: Path | None, owner: str, key: str, row: Row) -> bool:
    """Add the row to the file, whole or not at all, whoever else writes; False where that cannot be."""
    if file is None:
        return False
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}.part")
    try:
        content = _read(file)
        content.setdefault(owner, {})[key] = row
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        temporary.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        return False
    return True


def _read(file: Path | None) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file is not None else {}
    except (FileNotFoundError, ValueError):
        return {}
    ours = isinstance(content, dict) and all(isinstance(rows, dict) for rows in content.values())
    return content if ours else {}
