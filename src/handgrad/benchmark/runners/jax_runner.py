"""JAX: value_and_grad and the update in one jitted function; an epoch is one jitted scan over its batches."""

from __future__ import annotations

import importlib
import os
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.benchmark.runners import Unavailable
from handgrad.benchmark.workloads import LEARNING_RATE, Problem


class JaxRunner:
    """See :class:`handgrad.benchmark.runners.Runner`.  XLA takes the threads of the cores that it may use."""

    def __init__(self, device: str, threads: int) -> None:
        if device == "cpu":
            os.environ["JAX_PLATFORMS"] = "cpu"  # else a GPU's plugin takes its memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the others need some of a GPU's too
        jax: Any = importlib.import_module("jax")
        jax.config.update("jax_default_matmul_precision", "highest")  # float32 on GPUs too
        self.jax = jax
        self.thread_choices: tuple[int, ...] = (threads,)
        kind, _, index = device.partition(":")
        try:
            self.device = jax.devices("gpu" if kind == "cuda" else "cpu")[int(index or 0)]
        except (RuntimeError, IndexError) as error:
            raise Unavailable(f"this JAX ({jax.__version__}) finds no {device}") from error
        self._loss: Any = np.float32(np.nan)

    def use_threads(self, threads: int) -> None:
        """XLA's threads are set when the process starts."""

    def describe(self) -> dict[str, Any]:
        jaxlib = metadata.version("jaxlib")
        found: dict[str, Any] = {
            "versions": {"jax": self.jax.__version__, "jaxlib": jaxlib, "numpy": np.__version__}
        }
        if self.device.platform == "cpu":
            found["blas"] = [
                {
                    "internal_api": "XLA's own",
                    "version": jaxlib,
                    "num_threads": self.thread_choices[0],
                    "architecture": "chosen by XLA",
                }
            ]
        else:
            found["gpu"] = self.device.device_kind
        return found

    def prepare(self, problem: Problem) -> None:
        jax = self.jax
        jnp = jax.numpy
        self.problem = problem

        def put(array: Any) -> Any:
            return jax.device_put(array, self.device)

        self.parameters = {name: put(value) for name, value in problem.parameters.items()}
        self.X, self.y = put(problem.X), put(problem.y)
        batch = problem.workload.shape.samples
        self.order = put(problem.order[: len(problem.order) // batch * batch].reshape(-1, batch))
        regression = problem.workload.shape.loss == "mse"

        def loss_of(p: Any, X: Any, y: Any) -> Any:
            Z2 = jnp.maximum(X @ p["W1"] + p["b1"], 0.0) @ p["W2"] + p["b2"]
            if regression:
                return jnp.mean((Z2 - y) ** 2)
            picked = jnp.take_along_axis(Z2, y[:, None], axis=1)[:, 0]
            return jnp.mean(jax.nn.logsumexp(Z2, axis=1) - picked)

        def step(p: Any, X: Any, y: Any) -> Any:
            loss, gradients = jax.value_and_grad(loss_of)(p, X, y)
            return {name: p[name] - LEARNING_RATE * gradients[name] for name in p}, loss

        def epoch(p: Any, X: Any, y: Any, order: Any) -> Any:
            p, losses = jax.lax.scan(lambda p, rows: step(p, X[rows], y[rows]), p, order)
            return p, losses[-1]

        self.gradients = jax.jit(jax.value_and_grad(loss_of))
        self.step = jax.jit(step, donate_argnums=0)
        self.epoch = jax.jit(epoch, donate_argnums=0)

    def loss_and_grad(self) -> tuple[float, dict[str, NDArray[Any]]]:
        N = self.problem.workload.shape.samples
        loss, gradients = self.gradients(self.parameters, self.X[:N], self.y[:N])
        return float(loss), {name: np.array(value) for name, value in gradients.items()}

    def run(self, repetitions: int) -> None:
        for _ in range(repetitions):
            if self.problem.workload.kind == "step":
                self.parameters, self._loss = self.step(self.parameters, self.X, self.y)
            else:
                self.parameters, self._loss = self.epoch(self.parameters, self.X, self.y, self.order)
        self.jax.block_until_ready((self.parameters, self._loss))

    def loss(self) -> float:
        return float(self._loss)

    def product(self, size: int) -> Any:
        a = self.jax.device_put(np.random.default_rng(0).random((size, size), dtype=np.float32), self.device)
        multiply = self.jax.jit(lambda a: a @ a)
        return lambda: multiply(a).block_until_ready()
