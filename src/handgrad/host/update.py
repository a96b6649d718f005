"""The optimizer's step after a step's gradients: summed over the parts and applied, shared among threads.

Every element is worked on by itself, so the bits are those of :meth:`Optimizer.update`, whoever does it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.host import blas, threads
from handgrad.host.part import Part, add_gradients
from handgrad.ops.optimizer import Optimizer
from handgrad.parameters import FlatParameters

Floats = NDArray[Any]

SHARED_LEAST = 65_536  # parameters, below which waking another thread costs more than it saves
SHARED_BLOCK = 65_536  # elements a call: threads that call NumPy more often get into each other's way


class Update:
    """Steps of one optimizer on one set of parameters, from the gradients of ``parts``."""

    def __init__(self, optimizer: Optimizer, parameters: FlatParameters, parts: Sequence[Part]) -> None:
        self.optimizer, self.parameters, self.parts = optimizer, parameters, list(parts)
        self.frozen = parameters.frozen
        self._work: list[Callable[[], None]] = []
        if parameters.flat.size >= SHARED_LEAST and blas.machine_cores() > 1:
            optimizer.bind(parameters)
            slices = [
                slice(start, min(start + SHARED_BLOCK, part.stop))
                for part in parameters.trainable_slices()
                for start in range(part.start, part.stop, SHARED_BLOCK)
            ]
            shares = min(len(slices), blas.cores())
            for number in range(shares):
                self._work.append(functools.partial(self._apply, self._bind(slices[number::shares])))

    def fits(self, optimizer: Optimizer) -> bool:
        """Whether it can be used again with this optimizer."""
        return self.optimizer is optimizer and self.frozen == self.parameters.frozen

    def run(self, clip_norm: float | None, number: int) -> None:
        """One step, in up to ``number`` threads."""
        gradient = self.parts[0].gradients.flat
        if not self._work or clip_norm is not None:  # a norm needs the whole sum first
            add_gradients(self.parts)
            self.optimizer.update(self.parameters, gradient, clip_norm)
            return
        self.optimizer.count_step()
        threads.run(self._work, number)

    def _bind(self, slices: Sequence[slice]) -> list[tuple[Any, ...]]:
        scratch = np.empty((2, SHARED_BLOCK), dtype=self.parameters.dtype)
        first, *others = (part.gradients.flat for part in self.parts)
        return [
            (
                self.parameters.flat[part],
                first[part],
                [other[part] for other in others],
                self.optimizer.state_slices(part),
                *scratch[:, : part.stop - part.start],
            )
            for part in slices
        ]

    def _apply(self, blocks: Sequence[tuple[Any, ...]]) -> None:
        for w, g, others, states, scaled, e in blocks:
            for other in others:
                np.add(g, other, out=g)
            self.optimizer.apply_block(w, g, states, scaled, e)
