"""The GPU's side of streaming and of the exchange, on stand-ins: streams whose work is done late or early.

What a missing wait would spoil shows in the numbers: a stand-in stream does its work as late as its waits
permit, or as early.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from handgrad.distributed.exchange import NcclExchange, choose
from handgrad.distributed.ranks import Ranks
from handgrad.streaming import open_stream, streamed_order
from handgrad.streaming.reader import Reader, make_buffers

LOCK = threading.RLock()


class Stream:
    """Work in order; ``eager`` does it at once, else it is done when something waits for it."""

    def __init__(self, eager: bool) -> None:
        self.eager, self.work, self.done = eager, [], 0

    def add(self, work: Callable[[], None]) -> None:
        with LOCK:
            self.work.append(work)
            if self.eager:
                self.run(len(self.work))

    def run(self, end: int) -> None:
        with LOCK:
            while self.done < end:
                self.done += 1
                self.work[self.done - 1]()

    def wait_event(self, event: Event) -> None:
        if event.place is not None:
            stream, end = event.place
            self.add(lambda: stream.run(end))


class Event:
    def __init__(self, disable_timing: bool) -> None:
        assert disable_timing
        self.place: tuple[Stream, int] | None = None

    def record(self, stream: Stream) -> None:
        self.place = stream, len(stream.work)

    def synchronize(self) -> None:
        if self.place is not None:
            self.place[0].run(self.place[1])


class OnGpu(np.ndarray):
    """An array of the GPU, as far as the buffers use it."""

    def set(self, host: Any, stream: Stream) -> None:
        stream.add(lambda: np.copyto(self, host))


class Gpu:
    """Stands in for ``Device("cuda")`` and CuPy's module."""

    kind = "cuda"

    def __init__(self, eager_copies: bool, eager_kernels: bool) -> None:
        self.kernels = Stream(eager_kernels)
        self.array_module = SimpleNamespace(
            empty=lambda shape, dtype: np.full(shape, 99, dtype).view(OnGpu),
            cuda=SimpleNamespace(
                Event=Event,
                Stream=lambda non_blocking: Stream(eager_copies),
                get_current_stream=lambda: self.kernels,
            ),
        )

    def __enter__(self) -> Gpu:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


@pytest.mark.parametrize("eager_copies", [True, False])
@pytest.mark.parametrize("eager_kernels", [True, False])
def test_copies_and_kernels_wait_for_each_other(eager_copies, eager_kernels, tmp_path, monkeypatch):
    pinned: list[Any] = []

    def empty_pinned(shape: tuple[int, ...], dtype: Any) -> Any:
        pinned.append(np.full(shape, 77, dtype))
        return pinned[-1]

    monkeypatch.setitem(sys.modules, "cupyx", SimpleNamespace(empty_pinned=empty_pinned))
    X = np.arange(110, dtype=np.float32).reshape(55, 2)
    y = np.arange(55) % 3
    for name, array in (("X", X), ("y", y)):
        np.save(tmp_path / f"{name}.npy", array)
    files = ",".join(str(Path(tmp_path, f"{name}.npy")) for name in ("X", "y", "X", "y"))
    stream = open_stream(files, block_rows=7).train
    gpu = Gpu(eager_copies, eager_kernels)
    buffers = make_buffers(stream, 5, (np.dtype("f4"), np.dtype("i4")), gpu)  # type: ignore[arg-type]
    assert len(pinned) == 4  # X and y of two buffers

    seen: list[tuple[Any, Any]] = []
    for samples in Reader(stream, buffers, 3, 0, True, 0).pieces():
        A, b = samples.X, samples.y
        gpu.kernels.add(lambda A=A, b=b: seen.append((np.array(A), np.array(b))))
    gpu.kernels.run(len(gpu.kernels.work))
    order = streamed_order(55, 7, 3, 0)
    np.testing.assert_array_equal(np.concatenate([A for A, _ in seen]), X[order])
    np.testing.assert_array_equal(np.concatenate([b for _, b in seen]), y[order])


# ---- NCCL


class Group:
    """As much of CuPy's communicator as the exchange uses: rank 1 of 2, the other having sent sevens."""

    def __init__(self, size: int, rank: int, use_mpi: bool) -> None:
        assert (size, rank, use_mpi) == (2, 1, True)

    def all_gather(self, own: Any, everyone: Any, count: int) -> None:
        assert own.flags.c_contiguous
        assert count == own.size == everyone.size // 2
        everyone[0], everyone[1] = 7, own


class TwoMachines(Ranks):
    hosts = ("a", "b")
    communicator = None

    def gather(self, value: Any) -> list[Any]:
        return [value, value.replace("b ", "a ")]


def test_ranks_with_a_gpu_each_exchange_through_nccl(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupyx", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cupyx.distributed", SimpleNamespace(init_process_group=Group))
    nccl = SimpleNamespace(available=True)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cupy.cuda", SimpleNamespace(nccl=nccl))
    cuda = SimpleNamespace(Device=lambda index: SimpleNamespace(pci_bus_id="0000:01:00.0"))
    device: Any = SimpleNamespace(kind="cuda", index=0, array_module=SimpleNamespace(cuda=cuda))
    exchange, words = choose(TwoMachines(1, 2), device)
    assert (type(exchange), words) == (NcclExchange, "NCCL")
    own, everyone = np.arange(6.0).reshape(2, 3), np.zeros((2, 2, 3))
    exchange(own, everyone)
    np.testing.assert_array_equal(everyone, [np.full((2, 3), 7), own])

    nccl.available = False
    _, words = choose(TwoMachines(1, 2), device)
    assert words.startswith("MPI through host buffers (NCCL is not there; pip install")
