"""A stream as the training and the evaluation take their samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from handgrad.datasets import DataError
from handgrad.samples import Samples, prepare
from handgrad.streaming.reader import Reader, make_buffers
from handgrad.stretches import Piece

if TYPE_CHECKING:
    from handgrad.network import MLP
    from handgrad.streaming.stream import Stream


class StreamedSamples:
    """The rows of ``stream`` for ``net``: pieces of whole batches for an epoch, or any stretch of rows."""

    def __init__(self, net: MLP, stream: Stream) -> None:
        if len(stream) == 0:
            raise DataError(f"{stream.name}: no rows in this part; give at least one")
        self.net, self.stream = net, stream
        self.seed, self.shuffle = 0, True  # set by fit
        sample = self.part(0, 1)  # tells what does not fit before anything runs
        self._dtypes: tuple[Any, Any] = sample.X.dtype, sample.y.dtype
        self._buffers: tuple[int, list[Any]] = 0, []

    def __len__(self) -> int:
        return len(self.stream)

    def part(self, first: int, last: int) -> Samples:
        """Rows ``first`` .. ``last`` - 1, on the device."""
        X, y = self.stream.read(first, min(last, len(self)))
        found = prepare(self.net, X, y, self.stream.features.name, self.stream.targets.name)
        return Samples(found.X, found.y, self.stream.scale, self.stream.shift)

    def pieces(self, epoch: int, batch_size: int, first_step: int) -> Iterator[Piece]:
        """As :meth:`handgrad.stretches.Source.pieces`: about a block each."""
        rows = max(1, min(self.stream.block_rows, len(self)) // batch_size) * batch_size
        if self._buffers[0] != rows:
            self._buffers = 0, []  # before there are others
            self._buffers = rows, make_buffers(self.stream, rows, self._dtypes, self.net.device)
        skip = first_step * batch_size
        reader = Reader(self.stream, self._buffers[1], self.seed, epoch, self.shuffle, skip)
        pieces = reader.pieces()
        try:
            for samples in pieces:
                yield Piece(samples, np.arange(len(samples)))
        finally:
            pieces.close()  # type: ignore[attr-defined]
