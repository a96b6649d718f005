"""This library: ``MLP.train_step`` and ``MLP.train_epoch`` with SGD."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.arrays import resolve_device, synchronize, to_device, to_numpy
from handgrad.benchmark.runners import choices
from handgrad.benchmark.workloads import LEARNING_RATE, Problem
from handgrad.network import MLP
from handgrad.ops.optimizer import SGD
from handgrad.throughput import blas


class HandgradRunner:
    """See :class:`handgrad.benchmark.runners.Runner`."""

    def __init__(self, device: str, threads: int, fixed: bool) -> None:
        self.device = resolve_device(device)
        self.thread_choices = choices(threads, fixed) if self.device.kind == "cpu" else (threads,)
        self._loss: Any = np.float32(np.nan)
        if fixed:
            self.use_threads(threads)

    def use_threads(self, threads: int) -> None:
        import threadpoolctl

        threadpoolctl.threadpool_limits(limits=threads, user_api="blas")  # holds until the next call

    def describe(self) -> dict[str, Any]:
        from handgrad import __version__

        found: dict[str, Any] = {"versions": {"handgrad": __version__, "numpy": np.__version__}}
        if self.device.kind == "cpu":
            found["blas"] = blas()
        if self.device.kind == "cuda":
            cupy = self.device.array_module
            found["versions"]["cupy"] = cupy.__version__
            found["versions"]["cuda runtime"] = cupy.cuda.runtime.runtimeGetVersion()
            found["versions"]["cuda driver"] = cupy.cuda.runtime.driverGetVersion()
            found["gpu"] = cupy.cuda.runtime.getDeviceProperties(self.device.index)["name"].decode()
        return found

    def prepare(self, problem: Problem) -> None:
        self.problem = problem
        shape = problem.workload.shape
        self.net = MLP([shape.inputs, shape.hidden, shape.outputs], loss=shape.loss, device=str(self.device))
        self.net.load_parameters(problem.parameters)
        self.X, self.y = to_device(problem.X, self.device), to_device(problem.y, self.device)
        self.optimizer = SGD(lr=LEARNING_RATE)

    def loss_and_grad(self) -> tuple[float, dict[str, NDArray[Any]]]:
        N = self.problem.workload.shape.samples
        with self.device:
            loss, gradients = self.net.loss_and_grad(self.X[:N], self.y[:N])
            return float(to_numpy(loss)), {
                name: to_numpy(gradients[name]).copy() for name in self.net.parameters
            }

    def run(self, repetitions: int) -> None:
        workload = self.problem.workload
        with self.device:
            for _ in range(repetitions):
                if workload.kind == "step":
                    self._loss = self.net.train_step(self.X, self.y, self.optimizer)
                else:
                    self._loss = self.net.train_epoch(
                        self.X, self.y, self.problem.order, workload.shape.samples, self.optimizer
                    )
            synchronize(self.net.xp)

    def loss(self) -> float:
        with self.device:
            return float(np.ravel(to_numpy(self._loss))[-1])

    def product(self, size: int) -> Any:
        if self.device.kind == "emulator":
            return None
        xp = self.device.array_module
        with self.device:
            a = xp.asarray(np.random.default_rng(0).random((size, size), dtype=np.float32))
            out = xp.empty_like(a)

        def multiply() -> None:
            with self.device:
                xp.matmul(a, a, out=out)
                synchronize(xp)

        return multiply
