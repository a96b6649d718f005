"""The exchange of a step: every rank's partial sums to every rank, in one collective call.

A buffer is (slots, size): what rank r sends stands in its first ``counts[r]`` slots.  All ranks send as many
slots as the one with most.  Nothing is added on the way: MPI and NCCL move bytes, and the tree's additions
are done on every rank alike (an all-reduce would add in an order that depends on the number of ranks).
"""

from __future__ import annotations

import time
from typing import Any, Protocol

import numpy as np

from handgrad.arrays import Array, Device, to_numpy
from handgrad.distributed.ranks import Ranks


class Exchange(Protocol):
    """Sends ``own`` (slots, size) to all ranks and receives ``everyone`` (ranks, slots, size)."""

    seconds: float  # spent in it, waiting for slower ranks included

    def __call__(self, own: Array, everyone: Array) -> None: ...


class HostExchange:
    """Through MPI and buffers on the host: for CPU and emulator, and for several ranks on one GPU."""

    def __init__(self, ranks: Ranks) -> None:
        self.communicator = ranks.communicator
        self.seconds = 0.0

    def __call__(self, own: Array, everyone: Array) -> None:
        begin = time.perf_counter()
        if isinstance(everyone, np.ndarray):
            self.communicator.Allgather(to_numpy(own), to_numpy(everyone))
        else:
            received = np.empty(everyone.shape, dtype=everyone.dtype)
            self.communicator.Allgather(to_numpy(own), received)
            everyone.set(received)
        self.seconds += time.perf_counter() - begin


class NcclExchange:
    """Through NCCL between GPU buffers, on the current stream: the host does not wait."""

    def __init__(self, ranks: Ranks) -> None:
        from cupyx.distributed import init_process_group

        self.seconds = 0.0
        self._group: Any = init_process_group(ranks.size, ranks.rank, use_mpi=True)

    def __call__(self, own: Array, everyone: Array) -> None:
        self._group.all_gather(own, everyone, own.size)


def choose(ranks: Ranks, device: Device) -> tuple[Exchange, str]:
    """The exchange for these ranks, and in a few words which it is."""
    if device.kind != "cuda":
        return HostExchange(ranks), "MPI"
    cupy = device.array_module
    gpu = f"{ranks.hosts[ranks.rank]} {cupy.cuda.Device(device.index).pci_bus_id}"  # type: ignore[attr-defined]
    gpus = ranks.gather(gpu)
    problem = _nccl_problem(gpus)
    if ranks.any(bool(problem)):  # all take the same way
        return HostExchange(ranks), f"MPI through host buffers ({problem or 'NCCL fails on another rank'})"
    return NcclExchange(ranks), "NCCL"


def _nccl_problem(gpus: list[str]) -> str:
    if len(set(gpus)) < len(gpus):
        return "several ranks on one GPU"
    try:
        from cupy.cuda import nccl
    except ImportError as error:
        return f"NCCL cannot be loaded: {error}"
    return "" if nccl.available else "NCCL is not there; pip install nvidia-nccl-cu13"
