"""The processes of one training: a process alone, or the ranks that ``mpiexec`` or ``srun`` started."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import sys
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn

from handgrad.arrays import Device, resolve_device

# Where launchers say how many processes they started and which this is: MPICH and Intel MPI (PMI), OpenMPI,
# srun.  A batch script itself has SLURM_PROCID too, so srun's is taken from the variables of its steps.
LAUNCHERS = (
    ("PMI_SIZE", "PMI_RANK"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)
DEFAULT_SHARDS = 4  # of the command line, on CPU and emulator, and on GPUs where there are ranks
READ_SECONDS = 5.0  # that a launcher has, to read the last line
PASSED_ON_SECONDS = 0.1  # and then to pass it on
HEAD_START = 1.0  # seconds: of equal failures everywhere, rank 0 reports the one


class RanksError(ValueError):
    """Ranks that cannot train together; the message is one line."""


@dataclass(frozen=True)
class Ranks:
    """A process alone: rank 0 of 1."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those on this machine
    local_size: int = 1

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, on every rank."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """The value of rank 0, on every rank."""
        return value

    def any(self, value: bool) -> bool:
        """Whether it is true on some rank: the same answer on every rank, at the same step."""
        return value

    @property
    def communicator(self) -> Any:
        """The MPI communicator, None for a process alone."""
        return None


@dataclass(frozen=True)
class MpiRanks(Ranks):
    """One of several ranks, through mpi4py."""

    _communicator: Any = field(default=None, repr=False, compare=False)

    def gather(self, value: Any) -> list[Any]:
        return list(self._communicator.allgather(value))

    def broadcast(self, value: Any) -> Any:
        return self._communicator.bcast(value, root=0)

    def any(self, value: bool) -> bool:
        from mpi4py import MPI

        return bool(self._communicator.allreduce(bool(value), op=MPI.LOR))

    @property
    def communicator(self) -> Any:
        return self._communicator

    @cached_property
    def hosts(self) -> list[str]:
        """The machine of each rank."""
        from mpi4py import MPI

        return self.gather(MPI.Get_processor_name())


def launched() -> tuple[int, int]:
    """(rank, size) as the launcher's variables say; (0, 1) without a launcher.  Imports nothing."""
    for size_name, rank_name in LAUNCHERS:
        size, rank = os.environ.get(size_name, ""), os.environ.get(rank_name, "")
        if size.isdecimal() and rank.isdecimal():
            return int(rank), int(size)
    return 0, 1


def join() -> Ranks:
    """The ranks of this launch; a process alone where there is one.  MPI is started where there are more.

    Raises :class:`RanksError` where mpi4py is missing, or belongs to another MPI than the launcher.
    """
    size = launched()[1]
    if size == 1:
        return Ranks()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: no MPI library is found
        reason = " ".join(str(error).split())
        raise RanksError(
            f"started as one of {size} ranks, but MPI cannot be used ({reason}); pip install 'handgrad[mpi]'"
        ) from error
    world = MPI.COMM_WORLD
    if world.size != size:
        raise RanksError(
            f"the launcher started {size} ranks, but mpi4py sees {world.size}: they are of two MPIs "
            f"({MPI.Get_library_version().split(chr(10))[0].strip()}); take the mpiexec of this one"
        )
    local = world.Split_type(MPI.COMM_TYPE_SHARED)
    return MpiRanks(world.rank, world.size, local.rank, local.size, world)


def device_of(device: str, ranks: Ranks) -> Device:
    """The device of this rank: of several GPUs, "cuda" and "auto" take the one numbered as the local rank."""
    with contextlib.redirect_stderr(io.StringIO()) if ranks.rank else contextlib.nullcontext():
        chosen = resolve_device(device)  # which says, once, what "auto" is: rank 0 does
    if ranks.size == 1 or chosen.kind != "cuda" or device not in ("auto", "cuda"):
        return chosen
    count = int(chosen.array_module.cuda.runtime.getDeviceCount())
    return resolve_device(f"cuda:{ranks.local_rank % count}")


def fail(line: str, code: int) -> NoReturn:
    """End every rank of the launch with ``code`` after one line on stderr: this rank's own reason.

    Where all ranks fail alike, rank 0 is heard: the others give it a head start.
    """
    rank, size = launched()
    world = _world()  # before the wait: MPI starts on all ranks together
    if rank:
        time.sleep(HEAD_START)
    if line:
        print(f"error: rank {rank} of {size}: {line}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    if world is not None:
        _wait_until_read(sys.stderr)  # an abort ends the launcher, and with it what it has not read yet
        world.Abort(code)
    os._exit(code)


def _wait_until_read(stream: Any) -> None:
    """Return when the other end of a pipe has read all that was written: at the latest after READ_SECONDS."""
    try:
        import fcntl
        import termios

        deadline = time.monotonic() + READ_SECONDS
        while time.monotonic() < deadline:
            (unread,) = struct.unpack("i", fcntl.ioctl(stream.fileno(), termios.FIONREAD, b"\0" * 4))
            if unread == 0:
                time.sleep(PASSED_ON_SECONDS)
                return
            time.sleep(0.005)
    except (ImportError, OSError, ValueError, struct.error):  # no pipe, or no system that tells
        return


def _world() -> Any:
    """MPI's communicator of all ranks; None where MPI cannot be used, which is told elsewhere."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError):
        return None
    return MPI.COMM_WORLD
