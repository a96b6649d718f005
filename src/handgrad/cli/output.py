"""Where a command's words go: the report to stdout, or one JSON object there and the words to stderr."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rich.console import Console


def console(as_json: bool = False, silent: bool = False) -> Console:
    """A console on stdout, or on stderr where stdout is kept for the JSON object; or a silent one.

    No emoji: Rich would print the line number of ``linear.cu:100:32`` as a picture.
    """
    from rich.console import Console

    class PipeConsole(Console):
        def on_broken_pipe(self) -> None:  # Rich would exit with code 1
            raise BrokenPipeError

    if silent:
        return Console(quiet=True, file=io.StringIO())
    stream = sys.stderr if as_json else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else 120
    return PipeConsole(file=stream, highlight=False, emoji=False, soft_wrap=False, width=width)


def print_json(report: Mapping[str, Any]) -> None:
    """``report`` as the one JSON object on stdout (nan and inf become null: JSON has neither)."""
    print(json.dumps(plain(report), allow_nan=False), flush=True)


def plain(value: Any) -> Any:
    """``value`` in the types that JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return value


def short_path(path: Path) -> str:
    """``path`` as one would type it here: relative where it lies below the working directory."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
