"""The cells of R2: into which slices the parameters are cut, what a block of them takes, and which are tried.

SD columns of X by SH hidden units each; the bits follow from them.  The rule's are those that a step costs
least with, of at most as many as an A100 has multiprocessors; tuning tries a few others besides.  All follow
from the shape and the types alone, but that what an architecture has no shared memory for is left out.

Used by :mod:`handgrad.ops.two_layer_epoch`.  Test: ``tests/test_two_layer_epoch_cells.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from handgrad.emulator.settings import SHARED_BYTES_PER_BLOCK
from handgrad.emulator.settings import resident_blocks as blocks_of_multiprocessor
from handgrad.ops import checks
from handgrad.ops import loss as loss_op
from handgrad.ops.optimizer_kernels import STATES
from handgrad.ops.tilings import Tiling
from handgrad.ops.two_layer import Problem

THREADS = 256  # EPOCH_THREADS
RULES = 32  # rules that a block prepares together
GROUP = 4  # hidden units of a thread
VECTOR_BYTES = 16
MOST_CELLS = 108  # of the rule, one block each: the multiprocessors of an A100
OTHER_MOST = (58, 132, 2 * 108)  # of others: those of an L4 and an H100, and two blocks each on an A100
BLOCKS_A_MULTIPROCESSOR = {"float32": 2, "float64": 1}  # of the kernel's __launch_bounds__
MOST_OUTPUTS = 32  # C: lanes that share a row of logits
MOST_STATES = 2  # elements of state for a parameter, of any rule
KILOBYTE = 1024
TIERS = (99 * KILOBYTE, 163 * KILOBYTE, 227 * KILOBYTE)  # shared memory of a block, the smallest that will do
FEWEST_SHARED = 64 * KILOBYTE  # of an architecture that nothing is known of

RULE_ELEMENTS = (2, 4, 8)  # of the rule's structure, by the states it has; Momentum's ends in a flag


@dataclass(frozen=True)
class Cells:
    """The grid of cells: SD columns of X by SH hidden units, ``down`` x ``across`` of them."""

    SD: int
    SH: int
    down: int
    across: int

    @property
    def count(self) -> int:
        """Cells."""
        return self.down * self.across

    def __str__(self) -> str:
        return f"{self.SD}x{self.SH}"


@dataclass(frozen=True)
class EpochTiling(Tiling):
    """The cells, as "cells 56x8"."""

    cells: Cells


def refusal(problem: Problem) -> str:
    """Why the path cannot do ``problem``, in one line, or "" where it can."""
    if problem.rule == "Store":
        return "the epoch has no gradient to store: it applies a rule at every step"
    if problem.precision != problem.dtype:
        return f"products of {problem.precision} are not done here, only {problem.dtype}"
    if problem.N < 1:
        return "a batch has no samples"
    if problem.C > MOST_OUTPUTS:
        return f"C = {problem.C} is above {MOST_OUTPUTS}"
    if problem.flat_size >= checks.INT_LIMIT:
        return f"{problem.flat_size} parameters are above {checks.INT_LIMIT}"
    cells = cells_of(problem)
    if cells is None:
        shape = f"N = {problem.N} by D = {problem.D} and H = {problem.H}"
        return f"no slices of {shape} fit the shared memory of a block"
    needed, limit = shared_bytes(problem, cells, kept=False), _shared_limit(problem.arch)
    if needed > limit:
        return f"a block needs {needed} bytes of shared memory, and {problem.arch} has {limit}"
    return ""


def cells_of(problem: Problem) -> Cells | None:
    """The cells that the cost of a step is least for, of those that fit; from the shape and dtype alone."""
    return _cells(problem.N, problem.D, problem.H, problem.C, problem.dtype, of_rows(problem))


@functools.lru_cache(maxsize=256)
def _cells(N: int, D: int, H: int, C: int, dtype: str, rows: bool) -> Cells | None:
    return _cheapest(N, C, np.dtype(dtype).itemsize, rows, _grids(D, H, MOST_CELLS))


def _grids(D: int, H: int, most: int) -> list[Cells]:
    """All grids of at most so many cells."""
    found = (Cells(SD, SH, -(-D // SD), -(-H // SH)) for SD in _widths(D, most) for SH in _widths(H, most))
    return [cells for cells in found if cells.count <= most]


def _cheapest(N: int, C: int, itemsize: int, rows: bool, grids: list[Cells]) -> Cells | None:
    for keeps in (True, False):  # the slices in shared memory, with the most state that a rule has
        for limit in TIERS:
            fit = [one for one in grids if _shared(N, C, itemsize, rows, MOST_STATES, one, keeps) <= limit]
            if fit:
                return min(fit, key=lambda cells: (_cost(N, C, cells), cells.SD, cells.SH))
    return None


@functools.lru_cache(maxsize=256)
def tilings(problem: Problem) -> tuple[EpochTiling, ...]:
    """The rule's cells and up to five others.  ``ValueError`` where the path is refused."""
    reason, rule = refusal(problem), cells_of(problem)
    if reason or rule is None:
        raise ValueError(f"R2: {reason}")
    others = (one for one in _others(problem, rule) if one is not None and _fits(problem, one))
    return tuple(EpochTiling(cells) for cells in dict.fromkeys((rule, *others)))


def _others(problem: Problem, rule: Cells) -> Iterator[Cells | None]:
    """The cheapest of fewer and of more cells, as other GPUs have multiprocessors; and, of as many as the
    rule may have, with half as many down (parts of Z1 to sum) or across (readers of X) at most."""
    p, rows = problem, of_rows(problem)
    for most in OTHER_MOST:
        yield _cheapest(p.N, p.C, p.itemsize, rows, _grids(p.D, p.H, most))
    grids = _grids(p.D, p.H, MOST_CELLS)
    for side in ("down", "across"):
        half = [one for one in grids if 2 * getattr(one, side) <= getattr(rule, side)]
        yield _cheapest(p.N, p.C, p.itemsize, rows, half)


def _fits(problem: Problem, cells: Cells) -> bool:
    """With every rule, so that tilings do not depend on it."""
    needed = _shared(problem.N, problem.C, problem.itemsize, of_rows(problem), MOST_STATES, cells, False)
    return needed <= _shared_limit(problem.arch)


def _widths(size: int, most: int) -> list[int]:
    """Slices of ``size`` of about equal widths, ``most`` at most, multiples of GROUP."""
    each = [(size + parts - 1) // parts for parts in range(1, min(size, most) + 1)]
    return sorted({-(-width // GROUP) * GROUP for width in each})


def _cost(N: int, C: int, cells: Cells) -> float:
    """Cycles of one block's step: elements through L2 at 12 a cycle, multiply-adds at 64, and its sums."""
    SD, SH, down, across = cells.SD, cells.SH, cells.down, cells.across
    elements = N * (SD + SH * (1 + down) + C * (across + 1 / down))
    products = N * (2 * SD * SH + 3 * SH * C)
    return elements / 12 + products / 64


def of_rows(problem: Problem) -> bool:
    return problem.loss not in loss_op.ELEMENTWISE


def shared_bytes(problem: Problem, cells: Cells, kept: bool) -> int:
    """Dynamic shared memory of a block, with its slices where ``kept``."""
    states = len(STATES[problem.rule])
    return _shared(problem.N, problem.C, problem.itemsize, of_rows(problem), states, cells, kept)


def _shared(N: int, C: int, itemsize: int, rows: bool, states: int, cells: Cells, kept: bool) -> int:
    """As the kernel lays it out: rules, the warps' losses, slices, X, A1, dZ2, logits, dW2 with db2."""
    rule = RULE_ELEMENTS[states] * itemsize
    elements = THREADS // 32 + (slice_elements(C, states, cells) if kept else 0)
    elements += N * (_row_stride(cells.SD, itemsize) + _row_stride(cells.SH, itemsize))
    elements += N * (C | 1) * (2 if rows else 1) + (cells.SH + 1) * C
    return RULES * rule + elements * itemsize


def slice_elements(C: int, states: int, cells: Cells) -> int:
    all_parameters = (1 + states) * (cells.SD * cells.SH + cells.SH * C + cells.SH + C)
    return -(-all_parameters // GROUP) * GROUP


def _row_stride(width: int, itemsize: int) -> int:
    vector = VECTOR_BYTES // itemsize
    return (-(-width // vector) | 1) * vector


def resident_blocks(problem: Problem, shared: int) -> int:
    """Blocks of ``shared`` bytes that the problem's GPU holds at the same time; 0 where not even one fits."""
    if shared > _shared_limit(problem.arch):
        return 0
    if problem.arch not in SHARED_BYTES_PER_BLOCK:
        return problem.sms
    each = blocks_of_multiprocessor(problem.arch, THREADS, shared)
    return problem.sms * min(BLOCKS_A_MULTIPROCESSOR[problem.dtype], each)


def _shared_limit(arch: str) -> int:
    return SHARED_BYTES_PER_BLOCK.get(arch, FEWEST_SHARED)
