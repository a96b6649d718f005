"""PyTorch, eager or through ``torch.compile``: two linear layers, autograd, SGD in one fused update."""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.benchmark.runners import Unavailable, choices
from handgrad.benchmark.workloads import LEARNING_RATE, Problem

ONE_THREAD_BELOW = 2e8  # operations of a repetition
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # else idle processes stay beside the measurement


class TorchRunner:
    """See :class:`handgrad.benchmark.runners.Runner`."""

    def __init__(self, device: str, threads: int, fixed: bool, compiled: bool) -> None:
        import torch

        self.torch, self.compiled = torch, compiled
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise Unavailable(f"this PyTorch ({torch.__version__}) finds no GPU")
        self.device = torch.device(device)
        self.all_choices = choices(threads, fixed) if device == "cpu" else (threads,)
        self.thread_choices = self.all_choices
        self.use_threads(threads)
        self._loss: Any = None

    def use_threads(self, threads: int) -> None:
        self.torch.set_num_threads(threads)

    def describe(self) -> dict[str, Any]:
        torch = self.torch
        found: dict[str, Any] = {"versions": {"torch": torch.__version__, "numpy": np.__version__}}
        if self.device.type == "cpu":
            config = torch.__config__.show()
            mkl = re.search(r"Math Kernel Library Version (\S+)", config)
            capability = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "unknown")()
            found["blas"] = [
                {
                    "internal_api": "mkl" if mkl else "not named by PyTorch",
                    "version": mkl[1] if mkl else "",
                    "num_threads": torch.get_num_threads(),
                    "architecture": capability,
                }
            ]
        else:
            found["versions"]["cuda"] = torch.version.cuda
            found["gpu"] = torch.cuda.get_device_name(self.device)
        return found

    def prepare(self, problem: Problem) -> None:
        torch = self.torch
        self.problem = problem
        shape = problem.workload.shape
        one, two = torch.nn.Linear(shape.inputs, shape.hidden), torch.nn.Linear(shape.hidden, shape.outputs)
        with torch.no_grad():
            for layer, number in ((one, 1), (two, 2)):
                layer.weight.copy_(torch.from_numpy(problem.parameters[f"W{number}"].T.copy()))
                layer.bias.copy_(torch.from_numpy(problem.parameters[f"b{number}"]))
        self.layers = (one, two)
        self.model = torch.nn.Sequential(one, torch.nn.ReLU(), two).to(self.device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE, fused=True)
        self.X = torch.from_numpy(problem.X).to(self.device)
        y = problem.y if shape.loss == "mse" else problem.y.astype(np.int64)
        self.y = torch.from_numpy(y).to(self.device)
        self.order = torch.from_numpy(problem.order.astype(np.int64)).to(self.device)
        if self.compiled:  # another number of threads compiles again, which only small work repays
            small = problem.workload.flops < ONE_THREAD_BELOW
            self.thread_choices = self.all_choices if small else self.all_choices[:1]
        model = self.model
        measure = torch.nn.functional.mse_loss if shape.loss == "mse" else torch.nn.functional.cross_entropy

        def loss_of(X: Any, y: Any) -> Any:
            return measure(model(X), y)

        self.loss_of = torch.compile(loss_of, dynamic=False) if self.compiled else loss_of
        if self.compiled:
            torch._dynamo.reset()  # the shape before is over

    def loss_and_grad(self) -> tuple[float, dict[str, NDArray[Any]]]:
        N = self.problem.workload.shape.samples
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss_of(self.X[:N], self.y[:N])
        loss.backward()
        gradients = {}
        for number, layer in enumerate(self.layers, 1):
            gradients[f"W{number}"] = layer.weight.grad.cpu().numpy().T.copy()
            gradients[f"b{number}"] = layer.bias.grad.cpu().numpy().copy()
        return float(loss.detach()), gradients

    def run(self, repetitions: int) -> None:
        workload = self.problem.workload
        batch = workload.shape.samples
        for _ in range(repetitions):
            if workload.kind == "step":
                self._step(self.X, self.y)
                continue
            for start in range(0, workload.rows, batch):
                rows = self.order[start : start + batch]
                self._step(self.X[rows], self.y[rows])
        if self.device.type == "cuda":
            self.torch.cuda.synchronize(self.device)

    def _step(self, X: Any, y: Any) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self._loss = self.loss_of(X, y)
        self._loss.backward()
        self.optimizer.step()

    def loss(self) -> float:
        return float("nan") if self._loss is None else float(self._loss.detach())

    def product(self, size: int) -> Any:
        torch = self.torch
        a = torch.from_numpy(np.random.default_rng(0).random((size, size), dtype=np.float32)).to(self.device)
        out = torch.empty_like(a)

        def multiply() -> None:
            torch.mm(a, a, out=out)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

        return multiply
