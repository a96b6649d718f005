"""A few threads that stay: ``run(functions)`` calls each function once, the first in the caller's thread.

NumPy lets go of the interpreter inside its loops and products, so these threads work at the same time.  Who
runs what has no influence on the numbers: where the threads are taken by another caller, the calling thread
runs all functions itself.
"""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable, Sequence

Work = Callable[[], None]


class _Worker:
    """One thread, waiting for work."""

    def __init__(self) -> None:
        self._given, self._done = threading.Lock(), threading.Lock()
        self._given.acquire()
        self._done.acquire()
        self._work: Work | None = None
        self._context: contextvars.Context | None = None
        self._error: BaseException | None = None
        threading.Thread(target=self._serve, daemon=True, name="handgrad rows").start()

    def give(self, work: Work) -> None:
        self._work, self._context = work, contextvars.copy_context()  # NumPy's errstate travels with it
        self._given.release()

    def wait(self) -> BaseException | None:
        """What the work raised, once it is over; an interrupt meanwhile is raised after that."""
        interrupt: BaseException | None = None
        while True:
            try:
                self._done.acquire()
                break
            except BaseException as error:  # Ctrl-C: the buffers must not be in use any more on return
                interrupt = error
        raised, self._error = self._error, None
        return interrupt or raised

    def _serve(self) -> None:
        while True:
            self._given.acquire()
            assert self._work is not None
            assert self._context is not None
            try:
                self._context.run(self._work)
            except BaseException as error:
                self._error = error
            self._work = self._context = None
            self._done.release()


_workers: list[_Worker] = []
_taken = threading.Lock()


def _forget() -> None:
    """In a forked child no thread but the forking one lives."""
    global _taken
    _workers.clear()
    _taken = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def run(functions: Sequence[Work]) -> None:
    """Call every function, side by side, and return when all are done; the first error in order is raised."""
    if len(functions) == 1 or not _taken.acquire(blocking=False):
        for function in functions:
            function()
        return
    try:
        while len(_workers) < len(functions) - 1:
            _workers.append(_Worker())
        started = []
        errors: list[BaseException | None] = [None]
        try:
            for worker, function in zip(_workers, functions[1:], strict=False):
                worker.give(function)
                started.append(worker)
            functions[0]()
        except BaseException as error:
            errors[0] = error
        errors += [worker.wait() for worker in started]
        for found in errors:
            if found is not None:
                raise found
    finally:
        _taken.release()
