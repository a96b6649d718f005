"""The thread that reads ahead: blocks from disk, rows shuffled, pieces of whole batches handed over.

A fixed number of buffers goes round: the reader fills one, the training uses one.  On a GPU each has pinned
host memory and its copy on the device; the copy runs on a stream of its own, beside the computation.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from handgrad.arrays import Array, Device
from handgrad.samples import Samples
from handgrad.streaming.order import block_order

if TYPE_CHECKING:
    from handgrad.streaming.stream import Stream

BUFFERS = 2
LOOK = 0.1  # seconds after which a thread that waits looks whether it still should


@dataclass
class Buffer:
    """Room for a piece on the host, and what the network is given of it."""

    X: Array
    y: Array
    rows: int = 0

    def send(self) -> None:
        """After the reader filled ``rows`` rows: nothing to do, they are where they are used."""

    def samples(self, scale: float, shift: float) -> Samples:
        """The filled rows, on the network's device."""
        return Samples(self.X[: self.rows], self.y[: self.rows], scale, shift)

    def used(self) -> None:
        """The training launched all its work on these rows."""

    def reusable(self) -> None:
        """Wait until the rows may be written over."""


class EmulatedBuffer(Buffer):
    """The rows become arrays of the emulator."""

    def samples(self, scale: float, shift: float) -> Samples:
        from handgrad import emulator

        X, y = (emulator.asarray(array[: self.rows]) for array in (self.X, self.y))
        return Samples(X, y, scale, shift)


class CudaBuffer(Buffer):
    """Pinned host memory and a copy on the GPU, filled on ``stream``."""

    def __init__(self, X: Array, y: Array, device: Device, stream: Any) -> None:
        cupy: Any = device.array_module
        import cupyx

        super().__init__(*(cupyx.empty_pinned(array.shape, array.dtype) for array in (X, y)))
        self.device, self.stream = device, stream
        with device:
            self.on_gpu = tuple(cupy.empty(array.shape, array.dtype) for array in (X, y))
            self.copied, self.computed = (cupy.cuda.Event(disable_timing=True) for _ in range(2))
            self._current_stream = cupy.cuda.get_current_stream
            self.used()  # the pool may have given memory that work on the current stream still reads

    def send(self) -> None:
        """Start the copy, once the computation on the rows before is done."""
        with self.device:
            self.stream.wait_event(self.computed)
            for there, here in zip(self.on_gpu, (self.X, self.y), strict=True):
                there[: self.rows].set(here[: self.rows], stream=self.stream)
            self.copied.record(self.stream)

    def samples(self, scale: float, shift: float) -> Samples:
        self._current_stream().wait_event(self.copied)
        X, y = (array[: self.rows] for array in self.on_gpu)
        return Samples(X, y, scale, shift)

    def used(self) -> None:
        self.computed.record(self._current_stream())

    def reusable(self) -> None:
        self.copied.synchronize()  # host memory: the copy out of it; send() waits for the computation


def make_buffers(stream: Stream, rows: int, dtypes: tuple[Any, Any], device: Device) -> list[Buffer]:
    """Buffers of ``rows`` rows with X and y of ``dtypes``."""
    X, y = (
        np.empty((rows, *array.shape[1:]), dtype=dtype)
        for array, dtype in zip((stream.X, stream.y), dtypes, strict=True)
    )
    if device.kind == "cuda":
        copies: Any = device.array_module
        with device:
            copy_stream = copies.cuda.Stream(non_blocking=True)
        return [CudaBuffer(X, y, device, copy_stream) for _ in range(BUFFERS)]
    kind = EmulatedBuffer if device.kind == "emulator" else Buffer
    return [kind(X, y), *(kind(X.copy(), y.copy()) for _ in range(BUFFERS - 1))]


@dataclass
class Reader:
    """Reads the rows of one epoch from row ``skip`` of its order on, into ``buffers``."""

    stream: Stream
    buffers: list[Buffer]
    seed: int
    epoch: int
    shuffle: bool
    skip: int

    def __post_init__(self) -> None:
        self._free: queue.SimpleQueue[Buffer] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[Buffer | BaseException | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        for buffer in self.buffers:
            self._free.put(buffer)

    def pieces(self) -> Iterator[Samples]:
        """The filled buffers in turn; each is filled anew after the next one was asked for.

        What the reader raised comes out here.  Closing the iterator ends the reader.
        """
        thread = threading.Thread(target=self._run, name="handgrad-reader", daemon=True)
        thread.start()
        try:
            while (found := self._full.get()) is not None:
                if isinstance(found, BaseException):
                    raise found
                yield found.samples(self.stream.scale, self.stream.shift)
                found.used()
                self._free.put(found)
        finally:
            self._stop.set()
            thread.join()
            for buffer in self.buffers:
                buffer.reusable()  # no copy is on its way when their memory goes back

    def _run(self) -> None:
        try:
            self._fill()
        except BaseException as error:
            self._full.put(error)
        else:
            self._full.put(None)

    def _fill(self) -> None:
        stream = self.stream
        skip, buffer = self.skip, None
        for first, order in block_order(
            len(stream), stream.block_rows, self.seed, self.epoch, self.shuffle
        ):  # fmt: skip
            if skip >= len(order):
                skip -= len(order)
                continue
            X, y = stream.read(first, first + len(order))
            at, skip = skip, 0
            while at < len(order):
                if buffer is None and (buffer := self._next()) is None:
                    return
                count = min(len(order) - at, len(buffer.X) - buffer.rows)
                rows = order[at : at + count]
                for source, target in ((X, buffer.X), (y, buffer.y)):
                    target[buffer.rows : buffer.rows + count] = source[rows]
                buffer.rows += count
                at += count
                if buffer.rows == len(buffer.X):
                    self._hand_over(buffer)
                    buffer = None
        if buffer is not None and buffer.rows:
            self._hand_over(buffer)

    def _next(self) -> Buffer | None:
        """A free buffer; None once nobody wants it any more."""
        while not self._stop.is_set():
            with contextlib.suppress(queue.Empty):
                buffer = self._free.get(timeout=LOOK)
                buffer.reusable()
                buffer.rows = 0
                return buffer
        return None

    def _hand_over(self, buffer: Buffer) -> None:
        buffer.send()
        self._full.put(buffer)
