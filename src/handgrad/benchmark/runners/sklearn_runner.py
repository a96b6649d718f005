"""scikit-learn's MLP: ``partial_fit``, one epoch a call, plain SGD without L2 penalty."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.benchmark.runners import Unavailable, choices
from handgrad.benchmark.workloads import LEARNING_RATE, Problem
from handgrad.throughput import blas


class SklearnRunner:
    """See :class:`handgrad.benchmark.runners.Runner`.  Its squared error is half of mse: doubled."""

    def __init__(self, device: str, threads: int, fixed: bool) -> None:
        if device != "cpu":
            raise Unavailable("scikit-learn's MLP runs on the CPU alone")
        import sklearn

        self.version = sklearn.__version__
        self.thread_choices = choices(threads, fixed)
        if fixed:
            self.use_threads(threads)

    def use_threads(self, threads: int) -> None:
        import threadpoolctl

        threadpoolctl.threadpool_limits(limits=threads, user_api="blas")

    def describe(self) -> dict[str, Any]:
        return {"versions": {"scikit-learn": self.version, "numpy": np.__version__}, "blas": blas()}

    def prepare(self, problem: Problem) -> None:
        self.problem = problem
        workload = problem.workload
        self.half = 2.0 if workload.shape.loss == "mse" else 1.0
        self.X = problem.X
        self.y = problem.y.ravel()
        self.estimator = self._estimator(self.half * LEARNING_RATE, shuffle=workload.kind == "epoch")
        self._fit(self.estimator, self.X, self.y)  # draws parameters of its own, which are then replaced
        self._load(self.estimator)

    def _estimator(self, rate: float, shuffle: bool) -> Any:
        from sklearn.neural_network import MLPClassifier, MLPRegressor

        shape = self.problem.workload.shape
        kind = MLPRegressor if shape.loss == "mse" else MLPClassifier
        return kind(
            hidden_layer_sizes=(shape.hidden,), activation="relu", solver="sgd", alpha=0.0,
            batch_size=shape.samples, learning_rate_init=rate, momentum=0.0,
            nesterovs_momentum=False, shuffle=shuffle, random_state=0,
        )  # fmt: skip

    def _fit(self, estimator: Any, X: NDArray[Any], y: NDArray[Any]) -> None:
        classes = {"classes": np.arange(self.problem.workload.shape.outputs)}
        estimator.partial_fit(X, y, **(classes if self.problem.workload.shape.loss != "mse" else {}))

    def _load(self, estimator: Any) -> None:
        for number, (W, b) in enumerate(zip(estimator.coefs_, estimator.intercepts_, strict=True), 1):
            W[...], b[...] = self.problem.parameters[f"W{number}"], self.problem.parameters[f"b{number}"]

    def loss_and_grad(self) -> tuple[float, dict[str, NDArray[Any]]]:
        """What a step of rate 1 takes off the parameters: scikit-learn shows no gradients."""
        estimator = self._estimator(self.half, shuffle=False)
        N = self.problem.workload.shape.samples
        self._fit(estimator, self.X[:N], self.y[:N])
        self._load(estimator)
        self._fit(estimator, self.X[:N], self.y[:N])
        gradients = {}
        for number, (W, b) in enumerate(zip(estimator.coefs_, estimator.intercepts_, strict=True), 1):
            gradients[f"W{number}"] = self.problem.parameters[f"W{number}"] - W
            gradients[f"b{number}"] = self.problem.parameters[f"b{number}"] - b
        return float(estimator.loss_) * self.half, gradients

    def run(self, repetitions: int) -> None:
        for _ in range(repetitions):
            self._fit(self.estimator, self.X, self.y)

    def loss(self) -> float:
        return float(self.estimator.loss_) * self.half

    def product(self, size: int) -> Any:
        a = np.random.default_rng(0).random((size, size), dtype=np.float32)
        out = np.empty_like(a)
        return lambda: np.matmul(a, a, out=out)
