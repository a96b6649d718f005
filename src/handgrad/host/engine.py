"""The step of a network on the CPU: rows shared among threads, which work through blocks that stay in cache.

The rows are divided into parts and the parts into blocks, as the shape and the machine have it, and sums are
formed in the order of the rows: the same bits on every run, with any number of threads.  BLAS is held to one
thread meanwhile, since the rows are already shared out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.host import arrangement, blas, threads
from handgrad.host.block import Layout
from handgrad.host.columns import Columns, shares
from handgrad.host.part import Part, add_gradients
from handgrad.host.rows import Rows
from handgrad.host.update import Update
from handgrad.ops.optimizer import Optimizer
from handgrad.parameters import FlatParameters

KEPT_PLANS = 16
Ranges = tuple[tuple[tuple[int, int], ...], ...]


class Engine:
    """Loss and gradients of one network, in ``gradients``; not for two threads at a time."""

    def __init__(self, layout: Layout, reduction: str, parameters: FlatParameters) -> None:
        self.layout, self.reduction, self.parameters = layout, reduction, parameters
        self.gradients = parameters.like()
        self.parts = [Part(layout, parameters, self.gradients)]
        self.row_flops = arrangement.row_flops(layout.sizes)
        self._plans: dict[int, tuple[arrangement.Cut, Ranges]] = {}
        self._columns: dict[int, Columns | None] = {}  # by the number of rows
        self._blas = blas.find()
        self._threads = 1  # of the step under way
        self._cores = blas.cores()
        self.working: list[Part] = []  # whose gradients make up those of the last step
        self._updates: dict[int, Update] = {}  # by the number of parts

    def run(self, rows: Rows, backward: bool = True, dX: NDArray[Any] | None = None) -> NDArray[Any]:
        """The loss, 0-d; ``backward`` also sets ``gradients``, and ``dX`` (N, D) where given."""
        value = self._run(rows, backward, dX)
        if backward:
            add_gradients(self.working)
        return value

    def step(self, rows: Rows, optimizer: Optimizer, clip_norm: float | None) -> NDArray[Any]:
        """The loss, 0-d, before a step of ``optimizer``."""
        value = self._run(rows, True, None)
        update = self._updates.get(len(self.working))
        if update is None or not update.fits(optimizer):
            update = Update(optimizer, self.parameters, self.working)
            self._updates[len(self.working)] = update
        update.run(clip_norm, self._threads)
        return value

    def _run(self, rows: Rows, backward: bool, dX: NDArray[Any] | None) -> NDArray[Any]:
        N = len(rows)
        count = N * (self.layout.sizes[-1] if self.layout.loss in ("mse", "bce") else 1)
        scale = 1.0 if self.reduction == "sum" else 1.0 / count if count else float("nan")
        if N == 0:
            self.working = self.parts[:1]
            self.gradients.flat[...] = 0
            return np.asarray(0.0 * scale, dtype=self.layout.dtype)
        factor = None if scale == 1.0 else self.layout.dtype.type(scale)
        columns = self._by_columns(N)
        if columns is not None:
            self.working = self.parts[:1]
            self._threads = min(self._blas.threads(), self._cores, len(columns.shares))
            with self._blas.held():
                total = columns.run(rows, factor, backward, dX, self._threads)
            return np.asarray(total * scale, dtype=self.layout.dtype)
        cut, ranges = self._plan(N)
        while len(self.parts) < len(ranges):
            self.parts.append(Part(self.layout, self.parameters, self.parameters.like()))
        parts = self.working = self.parts[: len(ranges)]
        self._threads = min(self._blas.threads(), self._cores, len(parts))
        # One part that is large (a huge network, or few rows of a wide one) leaves threads to BLAS.
        held = self._blas.controllable and (len(parts) > 1 or N * self.row_flops < 2 * arrangement.PART_FLOPS)
        if held:
            self._blas.hold()
        try:
            if len(parts) == 1:
                parts[0].run(rows, ranges[0], cut, factor, backward, dX)
            else:
                work: list[Callable[[], None]] = [
                    functools.partial(part.run, rows, its, cut, factor, backward, dX)
                    for part, its in zip(parts, ranges, strict=True)
                ]
                threads.run(work, self._threads)
        finally:
            if held:
                self._blas.release()
        total = 0.0
        for part in parts:
            total += part.total
        return np.asarray(total * scale, dtype=self.layout.dtype)

    def _by_columns(self, N: int) -> Columns | None:
        """The step on N rows by shares of the hidden units, where that is the way."""
        if N in self._columns:
            return self._columns[N]
        number = shares(self.layout, N, N * self.row_flops)
        made = None
        if number:
            made = Columns(self.layout, N, number, self.parameters.views, self.gradients.views)
        if len(self._columns) == KEPT_PLANS:
            del self._columns[next(iter(self._columns))]
        self._columns[N] = made
        return made

    def _plan(self, N: int) -> tuple[arrangement.Cut, Ranges]:
        """How N rows are cut, and the blocks of each part."""
        plan = self._plans.get(N)
        if plan is None:
            number = arrangement.parts(N, N * self.row_flops, self.parameters.flat.nbytes)
            share = -(-N // number)
            cut = arrangement.cut(self.layout.sizes, share, self.layout.dtype.itemsize)
            ranges = tuple(
                _blocks(part * share, min((part + 1) * share, N), cut.block) for part in range(number)
            )
            if len(self._plans) == KEPT_PLANS:
                del self._plans[next(iter(self._plans))]
            plan = self._plans[N] = cut, ranges
        return plan


def _blocks(start: int, stop: int, most: int) -> tuple[tuple[int, int], ...]:
    """Rows start .. stop-1 in even blocks of at most ``most``."""
    rows = arrangement.even_block(most, stop - start)
    return tuple((begin, min(begin + rows, stop)) for begin in range(start, stop, rows))
