"""What a process of the benchmark answers: one library on one device, question by question.

``python -m handgrad.benchmark.session FD`` reads (command, arguments) from the connection with that file
descriptor and answers ("done", value), ("unavailable", why) or ("failed", what) until it is closed.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from handgrad.benchmark.runners import Runner, Unavailable, make
from handgrad.benchmark.workloads import Problem, Workload

WARM_UP_SECONDS = 0.2
PAUSE_SECONDS = 0.1  # before a sample; OpenBLAS lets its threads wait for about 0.03
ONE_THREAD_BELOW = 1e9  # operations of a repetition: above, more threads always pay and one is not tried


class Session:
    """One library on one device; each public method is a question."""

    def __init__(
        self, key: str, device: str, threads: int, fixed: bool, seed: int, kernels: str | None = None
    ) -> None:
        self.device, self.threads, self.seed = device, threads, seed
        self._around = ExitStack()
        if kernels is not None:
            from handgrad.kernel import use_kernels

            self._around.enter_context(use_kernels(kernels))
        self.runner: Runner = make(key, device, threads, fixed)
        self._products: Any = None
        self._multiply: Any = None

    def close(self) -> None:
        """Leave nothing behind in this process."""
        self._around.close()

    def describe(self) -> dict[str, Any]:
        """Versions, BLAS, threads, device."""
        return self.runner.describe()

    def prepare(self, workload: Workload) -> str:
        """Make the data and move them to the device; the data's digest."""
        self.problem = Problem.make(workload, self.seed)
        self._products = None
        self.runner.prepare(self.problem)
        return self.problem.digest()

    def loss_and_grad(self) -> Any:
        """The loss and every gradient at the parameters that all start from."""
        return self.runner.loss_and_grad()

    def warm_up(self) -> tuple[float, int]:
        """Repeat until caches, clocks and compiled code have settled; seconds a repetition, threads.

        Where the number of threads is free and the work is small, one is tried too and the faster is kept.
        """
        taken = {}
        small = self.problem.workload.flops < ONE_THREAD_BELOW
        for threads in self.runner.thread_choices if small else self.runner.thread_choices[:1]:
            self.set_threads(threads)
            taken[threads] = self._settle()
        threads = min(taken, key=lambda number: taken[number])
        self.set_threads(threads)
        return taken[threads], threads

    def _settle(self) -> float:
        self.runner.run(1)  # the first one compiles and allocates
        begin = time.perf_counter()
        taken: list[float] = []
        while not taken or time.perf_counter() - begin < WARM_UP_SECONDS:
            taken.append(self._timed(1))
        return float(np.median(taken[len(taken) // 2 :]))

    def sample(self, repetitions: int) -> float:
        """Seconds a repetition: a pause, one untimed, then ``repetitions`` together.

        BLAS threads keep a core busy for a while after a product, in the hope of another: those of the one
        before, and this library's own after its square product.  The pause lets them fall asleep.
        """
        time.sleep(PAUSE_SECONDS)
        self.runner.run(1)
        return self._timed(repetitions) / repetitions

    def _timed(self, repetitions: int) -> float:
        with _without_collector():
            begin = time.perf_counter()
            self.runner.run(repetitions)
            return time.perf_counter() - begin

    def loss(self) -> float:
        """Of the last step."""
        return self.runner.loss()

    def square_product(self, size: int) -> float | None:
        """Seconds of a product of two square float32 matrices in this library's BLAS, with all threads."""
        self.set_threads(self.threads)
        if self._multiply is None or self._multiply[0] != size:
            self._multiply = (size, self.runner.product(size))
        multiply = self._multiply[1]
        if multiply is None:
            return None
        multiply()
        begin = time.perf_counter()
        multiply()
        return time.perf_counter() - begin

    def set_threads(self, threads: int) -> None:
        """Take so many from now on, where that is free."""
        if len(self.runner.thread_choices) > 1:
            self.runner.use_threads(threads)

    def bandwidth(self) -> dict[str, float] | None:
        """Bytes a second of copying and of reading, all threads together; best of several."""
        from handgrad.benchmark import ceilings

        return ceilings.bandwidth(self.device, self.threads)

    def find_products(self) -> list[dict[str, Any]] | None:
        """The step's five products, each in the arrangement that is fastest here; None off the CPU."""
        from handgrad.benchmark import products

        if self.device == "emulator" or self.problem.workload.kind != "step":
            return None
        found = products.Products(self.problem, self.device, self.threads)
        self._products = found
        return found.find()

    def sample_products(self) -> list[float]:
        """Seconds of each of the five, once."""
        with _without_collector():
            return [float(seconds) for seconds in self._products.sample()]

    def train_mapped(self, folder: str, rows: int, mapped: bool, limit: int | None) -> dict[str, Any]:
        """An epoch over rows on a disk; see :func:`handgrad.benchmark.mapped.train`."""
        from handgrad.benchmark import mapped as disk

        return disk.train(folder, rows, mapped, limit, self.seed)

    def stages(self, samples: int) -> dict[str, list[float]]:
        """Seconds of every stage of a step, each alone over the whole batch."""
        from handgrad.benchmark import stages

        return stages.measure(self.problem, self.device, samples)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def answer(session: Session, command: str, arguments: Mapping[str, Any]) -> tuple[str, Any]:
    """The reply to a question: never an exception, but for Ctrl-C."""
    try:
        return "done", getattr(session, command)(**arguments)
    except Unavailable as error:
        return "unavailable", str(error)
    except Exception as error:
        return "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def main() -> None:
    """The child: the first message makes the session, the following ask it."""
    from multiprocessing.connection import Connection

    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    with contextlib.suppress(EOFError, OSError):  # the parent is gone: so are we
        first = connection.recv()
        cores = first.pop("cores")
        if cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)
        try:
            session = Session(**first)
        except (Unavailable, ImportError) as error:
            connection.send(("unavailable", " ".join(str(error).split())))
            return
        except Exception as error:
            connection.send(("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"))
            return
        connection.send(("done", None))
        while True:
            command, arguments = connection.recv()
            connection.send(answer(session, command, arguments))


if __name__ == "__main__":
    main()
