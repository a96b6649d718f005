"""The traffic of a user's own kernels, counted in a process of its own: they may do anything, or never end.

The parent starts ``python -m handgrad.proof.file_traffic`` with the source and its launch description; the
child answers with a pickle for each launch.  Around every array lies memory that no argument points to, so
that accesses a little out of bounds are counted there instead of damaging what lies next to it.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from numpy.typing import NDArray

from handgrad import emulator
from handgrad.emulator.counting import LaunchCounts, counting
from handgrad.emulator.errors import EmulatorError, LaunchError
from handgrad.emulator.watched import GAP
from handgrad.proof import launch_description
from handgrad.proof.launch_description import LaunchDescription
from handgrad.proof.traffic import Profile

SILENCE = 300.0  # seconds without an answer after which a kernel counts as hung


def profile_file(source: Path, description: Path, silence: float = SILENCE) -> list[Profile]:
    """Profiles of the launches of ``source`` that the TOML file ``description`` describes.

    Raises ``ValueError`` for a wrong description and one that does not fit its kernel, ``EmulatorError`` for
    a kernel that does not compile, does what a GPU forbids, ends its process, or takes ``silence`` seconds.
    """
    launches = launch_description.read(description)
    emulator.prebuild([(source, one.kernel) for one in launches], mode="count")
    with tempfile.TemporaryFile("w+", errors="replace") as stderr:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(source), str(description)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, env=environment,
        )  # fmt: skip
        answers: queue.Queue[Any] = queue.Queue()
        reader = threading.Thread(target=_read, args=(process.stdout, answers), daemon=True)
        reader.start()
        found: list[Profile] = []
        try:
            for one in launches:
                try:
                    answer = answers.get(timeout=silence)
                    reason = "" if answer is not None else _reason(process, stderr)
                except queue.Empty:
                    answer, reason = None, f"no answer within {silence:.0f} s: the kernel does not end"
                if reason:
                    raise EmulatorError(f"{one.place}: {one.kernel}: {reason}; {_remedy(source)}")
                if isinstance(answer, Exception):
                    raise answer
                found.append(Profile(answer))
        finally:
            process.kill()
            process.wait()
            reader.join()
    return found


def _read(stream: IO[bytes], answers: queue.Queue[Any]) -> None:
    try:
        with stream:
            while True:
                answers.put(pickle.load(stream))
    except (EOFError, pickle.UnpicklingError):
        answers.put(None)


def _reason(process: subprocess.Popen[bytes], stderr: IO[str]) -> str:
    code = process.wait()
    stderr.seek(0)
    said = [line.strip() for line in stderr if line.strip()]
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"the kernel's process died with {how}" + (f": {said[-1]}" if said else "")


def _remedy(source: Path) -> str:
    return f"`handgrad kernels sanitize {source.name}` searches for the fault"


# ---- the child -------------------------------------------------------------------------------------------


class _ApartArrays(ModuleType):
    """The array module of the arguments: each array far from all others."""

    @staticmethod
    def asarray(values: NDArray[Any]) -> NDArray[Any]:
        """A copy of ``values``, aligned as every new array, with GAP bytes on both sides."""
        room = emulator.zeros(values.nbytes + 2 * GAP, "uint8")
        array = room[GAP : GAP + values.nbytes].view(values.dtype).reshape(values.shape)
        array[...] = values
        return array


def main() -> None:
    """The child: a pickle for each launch on stdout, or one of the error that ends it."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a kernel's printf goes where it does no harm
    source, description = map(Path, sys.argv[1:])
    try:
        for counts in _counts(source, launch_description.read(description)):
            pickle.dump(counts, answers)
            answers.flush()
    except (ValueError, EmulatorError) as error:
        pickle.dump(error, answers)
        answers.flush()


def _counts(source: Path, launches: tuple[LaunchDescription, ...]) -> Iterator[LaunchCounts]:
    for one in launches:
        arguments = one.make_arguments(_ApartArrays("apart"))
        try:
            with counting() as counted:
                emulator.launch(
                    source, one.kernel, one.grid, one.block, arguments, one.shared, one.cooperative
                )
        except (TypeError, LaunchError) as error:  # it does not fit the kernel, or no GPU takes it
            raise ValueError(f"{one.place}: {error}") from None
        except EmulatorError as error:
            remedy = "" if error.fault == "other" else f"; {_remedy(source)}"
            raise EmulatorError(f"{error}{remedy}") from None
        yield from counted


if __name__ == "__main__":
    main()
