"""The networks that are timed, their data, and the CPU, BLAS and devices that they are timed on.

``handgrad bench`` measures them (:mod:`handgrad.benchmark`).
"""

from __future__ import annotations

import os
import platform
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
LEARNING_RATE = 1e-3  # small: thousands of steps on random targets must stay finite

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Shape:
    """A two-layer network and its batch: ``samples`` × ``inputs`` → ``hidden`` → ``outputs``."""

    samples: int
    inputs: int
    hidden: int
    outputs: int

    @property
    def loss(self) -> str:
        """One output is a regression (mse), several are classes (cross_entropy)."""
        return "mse" if self.outputs == 1 else "cross_entropy"

    @property
    def flops(self) -> int:
        """Multiplications and additions of the step's matrix products: 4NDH + 6NHC (no input gradient)."""
        return 2 * self.samples * self.hidden * (2 * self.inputs + 3 * self.outputs)

    def __str__(self) -> str:
        return f"{self.samples:,}×{self.inputs}→{self.hidden}→{self.outputs}"


SHAPES = (
    Shape(50_000, 784, 50, 1),
    Shape(8192, 784, 512, 10),
    Shape(1024, 784, 256, 10),
    Shape(64, 784, 50, 10),
)


def parse_shape(text: str) -> Shape:
    """``"N,D,H,C"`` as a :class:`Shape`; ``ValueError`` otherwise."""
    words = [word.strip() for word in text.split(",")]
    if len(words) != 4 or not all(re.fullmatch(r"[0-9]+", word) and int(word) > 0 for word in words):
        raise ValueError(
            "--shape: expected N,D,H,C (samples, inputs, hidden, outputs: four whole numbers above 0), "
            f"got {text!r}"
        )
    return Shape(*map(int, words))


def make_problem(shape: Shape, seed: int = 0) -> tuple[Floats, NDArray[Any]]:
    """Random ``X`` (N, D) float32 in [0, 1) and targets: (N, 1) float32, or labels (N,) int32."""
    rng = np.random.default_rng(seed)
    X = rng.random((shape.samples, shape.inputs), dtype=np.float32)
    if shape.loss == "mse":
        return X, rng.standard_normal((shape.samples, shape.outputs), dtype=np.float32)
    return X, rng.integers(shape.outputs, size=shape.samples, dtype=np.int32)


def available_devices() -> tuple[list[str], str]:
    """The CPU, and every GPU that answers; and, where none does, why."""
    from handgrad.arrays import cuda_problem

    problem = cuda_problem(0)
    if problem:
        return ["cpu"], problem
    import cupy

    return ["cpu", *(f"cuda:{index}" for index in range(cupy.cuda.runtime.getDeviceCount()))], ""


def cpu_name() -> str:
    """The processor's own name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def blas() -> list[dict[str, Any]]:
    """Each BLAS that NumPy has loaded: library, version, threads, and the kernel that it chose."""
    import threadpoolctl

    return [
        {key: info.get(key) for key in ("internal_api", "version", "num_threads", "architecture")}
        for info in threadpoolctl.threadpool_info()
        if info.get("user_api") == "blas"
    ]


def blas_notes() -> list[str]:
    """A BLAS that the environment holds back, in words; nothing is changed."""
    notes = []
    slowing = [name for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE") if os.environ.get(name)]
    if slowing and any(library["internal_api"] == "openblas" for library in blas()):
        settings = " and ".join(f"{name}={os.environ[name]}" for name in slowing)
        without = " ".join(f"-u {name}" for name in slowing)
        notes.append(
            f"{settings} may make the CPU slower than it is by itself; the figures hold for this setting "
            f"(compare: env {without} handgrad bench)"
        )
    notes += [f"{name}={value} sets the CPU's threads" for name, value in thread_variables().items()]
    return notes


def thread_variables() -> dict[str, str]:
    """The environment variables that say how many threads BLAS takes."""
    return {name: os.environ[name] for name in THREAD_VARIABLES if os.environ.get(name)}


def limit_blas_threads(threads: int | None) -> AbstractContextManager[Any]:
    """At most ``threads`` BLAS threads inside the block; None leaves them as they are."""
    if threads is None:
        return nullcontext()
    import threadpoolctl

    limits: AbstractContextManager[Any] = threadpoolctl.threadpool_limits(limits=threads, user_api="blas")
    return limits
