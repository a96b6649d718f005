"""What :func:`handgrad.plans.tuning.tune` measured, kept in ``plans.json`` of the cache folder.

A row holds for a GPU and for all that the kernels depend on: shape, types, precision, functions, rule.
Steps and whole epochs have rows of their own (:mod:`handgrad.measurements`).
"""

from __future__ import annotations

from pathlib import Path

from handgrad import measurements
from handgrad.measurements import Row
from handgrad.ops.two_layer import Problem


def file() -> Path | None:
    """``plans.json``; None without a home."""
    return measurements.file_named("plans.json")


def key_of(problem: Problem, epoch: bool = False) -> str:
    """What a measurement of a step holds for, or of an epoch: all that the kernels depend on."""
    p = problem
    bias = "bias" if p.bias else "no bias"
    words: tuple[str, ...] = (p.activation, p.output, p.loss, bias, p.dtype, p.precision, p.inputs, p.rule)
    words += ("epoch",) * epoch
    return " ".join((f"{p.N}x{p.D}x{p.H}x{p.C}", *words))


def find(device: str, problem: Problem, epoch: bool = False) -> Row:
    """The row; an empty one where nothing was measured."""
    return measurements.find(file(), device, key_of(problem, epoch)) or {}


def remember(device: str, problem: Problem, row: Row, epoch: bool = False) -> None:
    """Add the row to the file; a folder that cannot be written is no error."""
    measurements.remember(file(), device, key_of(problem, epoch), row)
