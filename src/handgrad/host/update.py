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


class Update:
    """Steps of one optimizer on one set of parameters, from the gradients of ``parts``."""

    def __init__(self, optimizer: Optimizer, parameters: FlatParameters, parts: Sequence[Part]) -> None:
        self.optimizer, self.parameters, self.parts = optimizer, parameters, list(parts)
        self.frozen = parameters.frozen
        optimizer.bind(parameters)
        size = optimizer.block_size
        slices = [
            slice(start, min(start + size, part.stop))
            for part in parameters.trainable_slices()
            for start in range(part.start, part.stop, size)
        ]
        shares = 1 if len(self.parts) == 1 else min(len(slices), blas.cores())
        self._work: list[Callable[[], None]] = [
            functools.partial(self._apply, self._bind(slices[number::shares])) for number in range(shares)
        ]

    def fits(self, optimizer: Optimizer) -> bool:
        """Whether it can be used again with this optimizer."""
        return self.optimizer is optimizer and self.frozen == self.parameters.frozen

    def run(self, clip_norm: float | None, number: int) -> None:
        """One step, in up to ``number`` threads."""
        if clip_norm is not None:  # a norm needs the whole sum first
            add_gradients(self.parts)
            self.optimizer.update(self.parameters, self.parts[0].gradients.flat, clip_norm)
            return
        self.optimizer.count_step()
        if len(self._work) == 1:
            self._work[0]()
        else:
            threads.run(self._work, number)

    def _bind(self, slices: Sequence[slice]) -> list[tuple[Any, ...]]:
        scaled, scratch = np.empty((2, self.optimizer.block_size), dtype=self.parameters.dtype)
        first, *others = (part.gradients.flat for part in self.parts)
        return [
            (
                self.parameters.flat[part],
                first[part],
                [other[part] for other in others],
                self.optimizer.state_slices(part),
                scaled[: part.stop - part.start],
                # The gradient is needed no more: what is in the cache already takes the intermediate result.
                first[part] if self.optimizer.spends_gradient else scratch[: part.stop - part.start],
            )
            for part in slices
        ]

    def _apply(self, blocks: Sequence[tuple[Any, ...]]) -> None:
        for w, g, others, states, scaled, e in blocks:
            for other in others:
                np.add(g, other, out=g)
            self.optimizer.apply_block(w, g, states, scaled, e)
