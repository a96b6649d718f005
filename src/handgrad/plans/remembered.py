"""What :func:`handgrad.plans.tuning.tune` measured, kept in ``plans.json`` of the cache folder.

A row holds for a GPU and for all that the kernels depend on: shape, types, precision, functions, rule.
Steps and whole epochs have rows of their own.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from handgrad.ops.two_layer import Problem

FILE = "plans.json"

Row = dict[str, Any]


def file() -> Path | None:
    """``plans.json`` in ``$HANDGRAD_CACHE``, else ``$XDG_CACHE_HOME/handgrad``, else ``~/.cache/handgrad``;
    None without a home."""
    chosen, xdg = os.environ.get("HANDGRAD_CACHE", ""), os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(chosen) if chosen else (Path(xdg) if xdg else Path.home() / ".cache") / "handgrad"
    except RuntimeError:
        return None
    return base.absolute() / FILE


def key_of(problem: Problem, epoch: bool = False) -> str:
    """What a measurement of a step holds for, or of an epoch: all that the kernels depend on."""
    p = problem
    bias = "bias" if p.bias else "no bias"
    words: tuple[str, ...] = (p.activation, p.output, p.loss, bias, p.dtype, p.precision, p.inputs, p.rule)
    words += ("epoch",) * epoch
    return " ".join((f"{p.N}x{p.D}x{p.H}x{p.C}", *words))


def find(device: str, problem: Problem, epoch: bool = False) -> Row:
    """The row; an empty one where nothing was measured."""
    return _read(_stamp()).get(device, {}).get(key_of(problem, epoch), {})


def remember(device: str, problem: Problem, row: Row, epoch: bool = False) -> None:
    """Add the row to the file, whole or not at all; a folder that cannot be written is no error."""
    place = file()
    if place is None:
        return
    known = json.loads(json.dumps(_read(_stamp())))
    known.setdefault(device, {})[key_of(problem, epoch)] = row
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False, encoding="utf-8") as out:
            json.dump(known, out, indent=1, sort_keys=True)
        Path(out.name).replace(place)


def _stamp() -> tuple[str, int]:
    """Changes with the file."""
    place = file()
    with contextlib.suppress(OSError):
        if place is not None:
            return str(place), place.stat().st_mtime_ns
    return "", 0


@functools.lru_cache(maxsize=4)
def _read(stamp: tuple[str, int]) -> dict[str, dict[str, Row]]:
    """What is remembered; nothing where the file is missing or is none of ours."""
    try:
        found = json.loads(Path(stamp[0]).read_text(encoding="utf-8"))
        assert all(isinstance(row, dict) for rows in found.values() for row in rows.values())
    except (OSError, ValueError, AttributeError, AssertionError):
        return {}
    return dict(found)
