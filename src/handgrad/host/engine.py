"""The step of a network on the CPU: blocks of rows that stay in cache, threads for products or for rows.

A large step is divided into parts of its rows, one for a thread, and BLAS is held to one thread meanwhile; a
smaller one leaves the threads to BLAS.  Sums are formed in the order of the rows: the same bits on every run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.host import arrangement, blas, threads
from handgrad.host.block import Layout
from handgrad.host.part import Part, add_gradients
from handgrad.host.rows import Rows
from handgrad.host.update import Update
from handgrad.ops.optimizer import Optimizer
from handgrad.parameters import FlatParameters

KEPT_PLANS = 16
Ranges = tuple[tuple[tuple[int, int], ...], ...]


@dataclass(frozen=True)
class Plan:
    """How a step goes.

    cut, ranges: how it is cut, and the blocks of each part
    held: BLAS is held to one thread
    """

    cut: arrangement.Cut
    ranges: Ranges
    held: bool

    @property
    def shared(self) -> bool:
        """BLAS may share each product among its threads."""
        return not self.held and len(self.ranges) == 1


class Engine:
    """Loss and gradients of one network, in ``gradients``; not for two threads at a time."""

    def __init__(self, layout: Layout, reduction: str, parameters: FlatParameters) -> None:
        self.layout, self.reduction, self.parameters = layout, reduction, parameters
        self.gradients = parameters.like()
        self.parts = [Part(layout, parameters, self.gradients)]
        self.row_flops = arrangement.row_flops(layout.sizes)
        self._plans: dict[int, Plan] = {}  # by the number of rows
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
        plan = self.plan(N)
        while len(self.parts) < len(plan.ranges):
            self.parts.append(Part(self.layout, self.parameters, self.parameters.like()))
        parts = self.working = self.parts[: len(plan.ranges)]
        self._threads = 1 if len(parts) == 1 else min(self._blas.threads(), self._cores, len(parts))
        if plan.held:
            self._blas.hold()
        try:
            if len(parts) == 1:
                parts[0].run(rows, plan.ranges[0], plan.cut, factor, backward, dX)
            else:
                work: list[Callable[[], None]] = [
                    functools.partial(part.run, rows, its, plan.cut, factor, backward, dX)
                    for part, its in zip(parts, plan.ranges, strict=True)
                ]
                threads.run(work, self._threads)
        finally:
            if plan.held:
                self._blas.release()
        total = 0.0
        for part in parts:
            total += part.total
        return np.asarray(total * scale, dtype=self.layout.dtype)

    def plan(self, N: int) -> Plan:
        """How a step on N rows goes."""
        plan = self._plans.get(N)
        if plan is None:
            flops = N * self.row_flops
            number = arrangement.parts(N, flops, self.parameters.flat.nbytes)
            held = self._blas.controllable and (number > 1 or flops < arrangement.BLAS_FLOPS)
            share = -(-N // number)
            cut = arrangement.cut(
                self.layout.sizes, share, self.layout.dtype.itemsize, number == 1 and not held
            )
            ranges = tuple(
                _blocks(part * share, min((part + 1) * share, N), cut.block) for part in range(number)
            )
            if len(self._plans) == KEPT_PLANS:
                del self._plans[next(iter(self._plans))]
            plan = self._plans[N] = Plan(cut, ranges, held)
        return plan


def _blocks(start: int, stop: int, most: int) -> tuple[tuple[int, int], ...]:
    """Rows start .. stop-1 in even blocks of at most ``most``."""
    rows = arrangement.even_block(most, stop - start)
    return tuple((begin, min(begin + rows, stop)) for begin in range(start, stop, rows))
