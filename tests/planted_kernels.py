"""The planted faults of tests/planted: which kernels have one, and at which lines it is to be found."""

from __future__ import annotations

import re
from pathlib import Path

from handgrad.proof import launch_description
from handgrad.proof.launch_description import LaunchDescription

FOLDER = Path(__file__).resolve().parent / "planted"
KINDS = ("memory", "races", "initialisation", "synchronisation", "schedules")


def source(kind: str) -> Path:
    return FOLDER / f"{kind}.cu"


def launches(kind: str) -> list[LaunchDescription]:
    """Every launch of a kind, faults and twins."""
    return list(launch_description.read(FOLDER / f"{kind}.toml"))


def is_fault(expression: str) -> bool:
    """``name<true>``, or ``name<N>`` with N > 0; twins are ``<false>``, ``<0>``, and what is no template."""
    return not expression.endswith(("<false>", "<0>")) and "<" in expression


def places(kind: str, expression: str) -> set[str]:
    """``file:line`` of each line marked ``// FAULT name``."""
    name = expression.split("<")[0]
    lines = source(kind).read_text().splitlines()
    found = {f"{kind}.cu:{i}" for i, line in enumerate(lines, 1) if re.search(rf"// FAULT {name}\b", line)}
    assert found or kind == "schedules", f"{name} has no mark"
    return found
