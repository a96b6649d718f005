"""A few threads that stay: ``run`` calls each of some functions once, side by side where there are cores.

NumPy lets go of the interpreter inside its loops and products, so these threads work at the same time.  Who
runs what has no influence on the numbers, so the calling thread waits for nobody who has not begun: once done
with its own function it takes over those that no other thread has started, as on a machine that is busy with
other programs.
"""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable, Sequence

Work = Callable[[], None]


class _Job:
    """Functions to be called once each, by whichever thread takes them first."""

    def __init__(self, functions: Sequence[Work]) -> None:
        self._functions = functions
        self._lock, self._idle = threading.Lock(), threading.Lock()
        self._idle.acquire()
        self._taken = 1  # the first is the caller's
        self._running = 0  # functions that other threads are in
        self._awaited = False
        self.errors: list[BaseException | None] = [None] * len(functions)

    def lead(self) -> None:
        """The caller's part; returns when no function is running any more, and raises the first error."""
        try:
            position = 0
            while position < len(self._functions):
                self._call(position)
                with self._lock:
                    position, self._taken = self._taken, self._taken + 1
        except BaseException as error:  # Ctrl-C between two functions
            self.errors[0] = self.errors[0] or error
        self._stop()
        for found in self.errors:
            if found is not None:
                raise found

    def help(self) -> None:
        """Another thread's part."""
        while True:
            with self._lock:
                position, self._taken = self._taken, self._taken + 1
                if position >= len(self._functions):
                    return
                self._running += 1
            self._call(position)
            with self._lock:
                self._running -= 1
                if self._awaited and self._running == 0:
                    self._idle.release()

    def _call(self, position: int) -> None:
        try:
            self._functions[position]()
        except BaseException as error:
            self.errors[position] = error

    def _stop(self) -> None:
        """Hand out nothing more, and wait until nothing runs: the buffers must not be in use on return."""
        with self._lock:
            self._taken = len(self._functions)
            self._awaited = self._running > 0
        while self._awaited:
            try:
                self._idle.acquire()
                self._awaited = False
            except BaseException as error:  # Ctrl-C: raised once it is safe
                self.errors[0] = self.errors[0] or error


class _Worker:
    """One thread, waiting for jobs to help with."""

    def __init__(self) -> None:
        self._given = threading.Lock()
        self._given.acquire()
        self._job: tuple[_Job, contextvars.Context] | None = None
        threading.Thread(target=self._serve, daemon=True, name="handgrad rows").start()

    def give(self, job: _Job) -> None:
        """Wake it for ``job``; one that has not even woken for an older job, long done, is left to wake."""
        self._job = job, contextvars.copy_context()  # NumPy's errstate travels with it
        if self._given.locked():
            self._given.release()

    def _serve(self) -> None:
        while True:
            self._given.acquire()
            given, self._job = self._job, None
            if given is not None:
                job, context = given
                context.run(job.help)
            del given


_workers: list[_Worker] = []
_taken = threading.Lock()


def _forget() -> None:
    """In a forked child no thread but the forking one lives."""
    global _taken
    _workers.clear()
    _taken = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def run(functions: Sequence[Work], threads: int) -> None:
    """Call every function, in up to ``threads`` threads with the caller's, and return when all are done.

    The first error in order is raised.  Where the threads are taken by another caller, the calling thread
    runs all functions itself.
    """
    job = _Job(functions)
    helpers = min(threads, len(functions)) - 1
    if helpers > 0 and _taken.acquire(blocking=False):
        try:
            while len(_workers) < helpers:
                _workers.append(_Worker())
            for worker in _workers[:helpers]:
                worker.give(job)
            job.lead()
        finally:
            _taken.release()
    else:
        job.lead()
