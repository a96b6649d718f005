"""A process for each library on each device: libraries share no threads, no memory and no faults."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from multiprocessing import Pipe
from typing import IO, Any, Protocol

from handgrad.benchmark.runners import Unavailable
from handgrad.benchmark.session import Session, answer
from handgrad.throughput import THREAD_VARIABLES

SILENCE = 600.0  # seconds without an answer, compiling included, after which a process counts as hung


class Failed(RuntimeError):
    """A question was not answered; the message says what happened."""


class Answering(Protocol):
    """A session in a process, or one right here."""

    def send(self, command: str, **arguments: Any) -> None:
        """Ask; several may be asked at a time, each for one thing."""

    def receive(self) -> Any:
        """The answer; :class:`Failed` or :class:`Unavailable` without one."""

    def close(self) -> None:
        """End it."""


def ask(session: Answering, command: str, **arguments: Any) -> Any:
    """Ask and wait."""
    session.send(command, **arguments)
    return session.receive()


class SessionProcess:
    """A session in a process of its own, deaf to the terminal's Ctrl-C: the parent ends it."""

    def __init__(
        self, key: str, device: str, threads: int, fixed: bool, seed: int, kernels: str | None
    ) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (close ends it)
        here, there = Pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        if fixed:
            environment |= dict.fromkeys(THREAD_VARIABLES, str(threads))
        self._connection = here
        self._process = subprocess.Popen(
            [sys.executable, "-m", "handgrad.benchmark.session", str(there.fileno())],
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=environment,
            start_new_session=True,
        )
        there.close()
        here.send(
            {
                "key": key,
                "device": device,
                "threads": threads,
                "fixed": fixed,
                "seed": seed,
                "kernels": kernels,
            }
            | {"cores": _cores(threads)}
        )

    def send(self, command: str, **arguments: Any) -> None:
        with contextlib.suppress(OSError):  # a dead process: receive says so
            self._connection.send((command, arguments))

    def receive(self) -> Any:
        try:
            if not self._connection.poll(SILENCE):
                self._process.kill()  # else it would go on beside the others' turns
                raise Failed(f"no answer within {SILENCE:.0f} s: the process was ended")
            kind, value = self._connection.recv()
        except (EOFError, OSError) as error:
            raise Failed(self._reason()) from error
        return _value(kind, value)

    def _reason(self) -> str:
        self._process.wait(10)
        code = self._process.returncode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._log.seek(0)
        said = [
            line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()
        ]
        return f"its process died with {how}" + (f": {said[-1][:300]}" if said else "")

    def close(self) -> None:
        self._connection.close()
        if self._process.poll() is None:
            self._process.kill()  # its own session: no threads of the library outlive it
        self._process.wait()
        self._log.close()


class SessionHere:
    """A session in this process: for tests, where starting one would take longer than the measurement."""

    def __init__(
        self, key: str, device: str, threads: int, fixed: bool, seed: int, kernels: str | None
    ) -> None:
        self._session: Session | None = None
        self._reply: tuple[str, Any] = ("done", None)
        try:
            self._session = Session(key, device, threads, fixed, seed, kernels)
        except (Unavailable, ImportError) as error:
            self._reply = ("unavailable", str(error))

    def send(self, command: str, **arguments: Any) -> None:
        if self._session is not None:
            self._reply = answer(self._session, command, arguments)

    def receive(self) -> Any:
        return _value(*self._reply)

    def close(self) -> None:
        if self._session is not None:
            self._session.close()


def _value(kind: str, value: Any) -> Any:
    if kind == "unavailable":
        raise Unavailable(value)
    if kind == "failed":
        raise Failed(value)
    return value


def _cores(threads: int) -> list[int] | None:
    """The cores that a process with fewer threads than cores is kept to; None where it may take all."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[:threads] if threads < len(allowed) else None
