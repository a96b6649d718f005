"""One thread's share of the steps: its buffers, its blocks, its sum of the gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.host.arrangement import Cut
from handgrad.host.block import Block, Layout, Memory
from handgrad.host.rows import Rows
from handgrad.ops.loss_numpy import LabelError
from handgrad.parameters import FlatParameters

KEPT_BLOCKS = 16  # sizes of blocks whose buffers stay bound


class Part:
    """Blocks of rows that one thread works through, one after the other."""

    def __init__(self, layout: Layout, parameters: FlatParameters, gradients: FlatParameters) -> None:
        self.layout, self.parameters, self.gradients = layout, parameters, gradients
        self.added: FlatParameters | None = None  # where a step has several blocks
        self.memory = Memory(0, layout.dtype)
        self.blocks: dict[tuple[int, Cut], Block] = {}
        self.total = 0.0
        self.step = 0

    def block(self, n: int, cut: Cut, several: bool) -> Block:
        """The block of ``n`` rows, one of ``several`` in a step or the only one."""
        if several and self.added is None:
            self.added = self.gradients.like()
            self.blocks.clear()
        if n > self.memory.rows:
            self.memory = Memory(n, self.layout.dtype)
            self.blocks.clear()
        block = self.blocks.get((n, cut))
        if block is None:
            if len(self.blocks) == KEPT_BLOCKS:
                del self.blocks[next(iter(self.blocks))]
            block = self.blocks[n, cut] = Block(
                self.layout,
                n,
                cut,
                self.parameters.views,
                self.gradients.views,
                None if self.added is None else self.added.views,
                self.memory,
            )
        return block

    def run(
        self,
        rows: Rows,
        ranges: Sequence[tuple[int, int]],
        cut: Cut,
        scale: Any,
        backward: bool,
        dX: NDArray[Any] | None,
    ) -> None:
        """Set ``total`` to the summed loss over ``ranges`` and, ``backward``, the gradients to theirs."""
        total, first = 0.0, True
        self.step += 1
        for start, stop in ranges:
            block = self.block(stop - start, cut, len(ranges) > 1)
            X, y = rows.block(start, stop, self.memory)
            try:
                total += block.forward(X, y, scale if backward else None, self.step)
            except LabelError as error:
                raise LabelError(error.C, error.label, error.sample + start) from None
            if backward:
                block.backward(X, first)
                if dX is not None:
                    block.input_gradient(dX[start:stop])
            first = False
        self.total = total


def add_gradients(parts: Sequence[Part]) -> None:
    """Sum the parts' gradients, in order, into the first one's."""
    into = parts[0].gradients.flat
    for part in parts[1:]:
        np.add(into, part.gradients.flat, out=into)
