"""What is timed: a training step on one batch, or an epoch of shuffled mini-batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.initialization import initial_values, parameter_shapes
from handgrad.throughput import LEARNING_RATE, Shape, make_problem

__all__ = ["EMULATED", "LEARNING_RATE", "REGIMES", "Problem", "Shape", "Workload", "batch_sweep", "epochs"]

REGIMES = {
    "R1": "one-kernel step: many rows, few outputs",
    "R2": "mini-batches: the whole epoch counts",
    "R3": "two-kernel step: at most 128 hidden units",
    "R4": "general: bound by arithmetic",
}

BATCHES = (16, 64, 256, 1024, 4096)
LONG_BATCHES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
HIDDEN = (16, 50, 64, 128, 256, 512, 1024)
EPOCH_ROWS = 12_800


@dataclass(frozen=True)
class Workload:
    """A step on ``shape.samples`` rows; with ``rows``, an epoch over so many rows in batches of that size.

    ``group`` says which picture it belongs to: shapes, batch, hidden or epoch; ``regime`` which path of the
    GPU it stands for (R1 to R4), "" where nobody has said.
    """

    shape: Shape
    group: str = "shapes"
    regime: str = ""
    rows: int = 0

    @property
    def kind(self) -> str:
        """step or epoch."""
        return "epoch" if self.rows else "step"

    @property
    def samples(self) -> int:
        """Rows that a repetition trains on."""
        return self.rows or self.shape.samples

    @property
    def steps(self) -> int:
        """Steps of a repetition."""
        return -(-self.samples // self.shape.samples)

    @property
    def flops(self) -> int:
        """Of a repetition's matrix products: 4NDH + 6NHC."""
        return replace(self.shape, samples=self.samples).flops

    @property
    def compulsory_bytes(self) -> int:
        """What a repetition has to move: X and the targets once, parameters read and written every step.

        N(4D + 4C) + 8P a step, C = 1 for labels.
        """
        s = self.shape
        parameters = s.inputs * s.hidden + s.hidden + s.hidden * s.outputs + s.outputs
        return 4 * self.samples * (s.inputs + 1) + 8 * parameters * self.steps

    def __str__(self) -> str:
        return f"{self.shape}" + (f", epoch of {self.rows:,} rows" if self.rows else "")


@dataclass(frozen=True)
class Problem:
    """A workload's data, the same in every process: X (rows, D), targets, parameters, order of rows."""

    workload: Workload
    X: NDArray[np.float32]
    y: NDArray[Any]
    parameters: dict[str, NDArray[Any]]
    order: NDArray[np.int32]

    @staticmethod
    def make(workload: Workload, seed: int = 0) -> Problem:
        """Drawn from ``seed`` by NumPy's PCG64; no row of the first batch is near a kink of relu."""
        shape = workload.shape
        X, y = make_problem(replace(shape, samples=workload.samples), seed)
        shapes = parameter_shapes((shape.inputs, shape.hidden, shape.outputs), True)
        values = initial_values(shapes, "he", seed)
        parameters = {name: value.astype(np.float32) for name, value in values.items()}
        _keep_off_kinks(X[: shape.samples], parameters)
        order = np.random.default_rng(seed + 1).permutation(workload.samples).astype(np.int32)
        return Problem(workload, X, y, parameters, order)

    @property
    def batch(self) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """The rows on which the gradients are compared: the first batch's worth."""
        return self.X[: self.workload.shape.samples], self.y[: self.workload.shape.samples]

    def digest(self) -> str:
        """Of every byte, so that a report can say that all had the same data."""
        import hashlib

        found = hashlib.blake2b(digest_size=16)
        for array in (self.X, self.y, self.order, *self.parameters.values()):
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()


KINK = 2e-5  # above the rounding of a float32 sum of some thousand products of numbers around 1
BLOCK = 4096  # rows in float64 at a time


def _keep_off_kinks(X: NDArray[np.float32], parameters: dict[str, NDArray[Any]]) -> None:
    """Put a copy of a safe row in place of every row of ``X`` that has a |Z1| below :data:`KINK`.

    There float32 and float64 may take different sides of relu's kink.  That is no mistake, but it shows in a
    gradient that is a sum with much cancellation.
    """
    W1, b1 = parameters["W1"].astype(np.float64), parameters["b1"].astype(np.float64)
    near = np.concatenate(
        [
            (np.abs(X[start : start + BLOCK].astype(np.float64) @ W1 + b1) < KINK).any(axis=1)
            for start in range(0, len(X), BLOCK)
        ]
    )
    if near.any() and not near.all():
        X[near] = X[np.flatnonzero(~near)[0]]


SHAPES = (
    Workload(Shape(50_000, 784, 50, 1), regime="R1"),
    Workload(Shape(8192, 784, 512, 10), regime="R4"),
    Workload(Shape(4096, 784, 128, 10), regime="R3"),
    Workload(Shape(1024, 784, 256, 10), regime="R4"),
    Workload(Shape(128, 784, 256, 10), regime="R2"),
    Workload(Shape(64, 784, 50, 10), regime="R2"),
)
EMULATED = (
    Workload(Shape(64, 784, 50, 10), regime="R2"),
)  # it shows that a step runs, not how long it takes


def epochs(rows: int = EPOCH_ROWS) -> list[Workload]:
    """Epochs of mini-batches: regime R2."""
    return [
        Workload(Shape(128, 784, 256, 10), "epoch", "R2", rows),
        Workload(Shape(64, 784, 50, 10), "epoch", "R2", rows),
    ]


def batch_sweep(long: bool = False) -> list[Workload]:
    """784→256→10 by batch size; ``long``: by more of them."""
    return [Workload(Shape(batch, 784, 256, 10), "batch") for batch in (LONG_BATCHES if long else BATCHES)]


def hidden_sweep() -> list[Workload]:
    """1,024×784→H→10 by hidden units."""
    return [Workload(Shape(1024, 784, width, 10), "hidden") for width in HIDDEN]
