"""CPU against GPU: how many samples a second one training step takes, measured side by side.

A step is ``MLP.train_step`` with SGD: forward, loss, backward, update, on data that already lie on the
device.  Each sample is the wall time of several steps between two synchronisations, divided by their number;
the devices take turns round by round, so that a change in the machine's load meets all of them.  Medians and
quartiles are reported and every raw sample is kept.  Before anything is timed, the step's loss and gradients
must agree with float64 NumPy.  The CPU takes as many BLAS threads as suit the shape: all, or
one where that is faster.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.arrays import Device, resolve_device, synchronize, to_device, to_numpy
from handgrad.network import MLP
from handgrad.ops.optimizer import SGD

SCHEMA = "handgrad.bench/1"
ROUNDS = 15  # samples a shape and device, where the budget allows
FEWEST_ROUNDS = 5
WARM_UP_SECONDS = 0.3
AGREEMENT = 1e-4  # relative, norm-wise, float32 step against float64: far above rounding, far below a mistake
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
LEARNING_RATE = 1e-3  # small: thousands of steps on random targets must stay finite

Floats = NDArray[np.floating]
Progress = Callable[[str], None]


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
EMULATED_SHAPES = (Shape(64, 784, 50, 10),)  # the emulator shows that a step runs, not how long it takes


def parse_shape(text: str) -> Shape:
    """``"N,D,H,C"`` as a :class:`Shape`; ``ValueError`` otherwise."""
    words = [word.strip() for word in text.split(",")]
    if len(words) != 4 or not all(re.fullmatch(r"[0-9]+", word) and int(word) > 0 for word in words):
        raise ValueError(
            "--shape: expected N,D,H,C (samples, inputs, hidden, outputs: four whole numbers above 0), "
            f"got {text!r}"
        )
    return Shape(*map(int, words))


@dataclass
class Result:
    """The samples of one shape on one device, in seconds a step."""

    shape: Shape
    device: str
    gradient_error: float
    blas_threads: int | None = None
    steps_per_sample: int = 1
    seconds_per_step: list[float] = field(default_factory=list)

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Lower quartile, median, upper quartile of the seconds a step."""
        low, middle, high = np.percentile(self.seconds_per_step, (25, 50, 75))
        return float(low), float(middle), float(high)

    @property
    def samples_per_second(self) -> float:
        """At the median step."""
        return self.shape.samples / self.quartiles[1]

    def as_dict(self) -> dict[str, Any]:
        """As in the JSON report."""
        low, middle, high = self.quartiles
        return {
            "shape": str(self.shape),
            **asdict(self.shape),
            "loss": self.shape.loss,
            "device": self.device,
            "milliseconds_per_step": {"median": middle * 1e3, "quartiles": [low * 1e3, high * 1e3]},
            "samples_per_second": {
                "median": self.samples_per_second,
                "low": self.shape.samples / high,
                "high": self.shape.samples / low,
            },
            "gflops_per_second": self.shape.flops / middle / 1e9,
            "gradient_error": self.gradient_error,
            "blas_threads": self.blas_threads,
            "steps_per_sample": self.steps_per_sample,
            "seconds_per_step": list(self.seconds_per_step),
        }


class Step:
    """One training step of ``shape`` on ``device``, ready to be repeated on ``problem``'s ``X`` and ``y``."""

    def __init__(
        self, shape: Shape, device: Device, problem: tuple[Floats, NDArray[Any]], seed: int = 0
    ) -> None:
        self.shape, self.device = shape, device
        X, y = problem
        self.net = MLP(
            [shape.inputs, shape.hidden, shape.outputs], loss=shape.loss, device=str(device), seed=seed
        )
        self.X, self.y = to_device(X, device), to_device(y, device)
        self.optimizer = SGD(lr=LEARNING_RATE)
        self.blas_threads: int | None = None  # None: as many as BLAS takes by itself

    def run(self) -> None:
        """One step; on a GPU it may still be under way on return."""
        self.net.train_step(self.X, self.y, self.optimizer)

    def seconds(self, steps: int) -> float:
        """Wall time of ``steps`` steps between two synchronisations."""
        with self.device, limit_blas_threads(self.blas_threads):
            synchronize(self.net.xp)
            start = time.perf_counter()
            for _ in range(steps):
                self.run()
            synchronize(self.net.xp)
            return time.perf_counter() - start

    def warm_up(self) -> float:
        """Repeat until caches, clocks and compiled kernels have settled; seconds a step.

        On the CPU with all BLAS threads and with one, to stay with what is faster.
        """
        if self.device.kind != "cpu" or thread_variables():
            return self._settle()
        by_threads = {}
        for threads in (None, 1):
            self.blas_threads = threads
            by_threads[threads] = self._settle()
        self.blas_threads = min(by_threads, key=lambda threads: by_threads[threads])
        return by_threads[self.blas_threads]

    def _settle(self) -> float:
        start = time.perf_counter()
        taken = [self.seconds(1)]
        while time.perf_counter() - start < WARM_UP_SECONDS:
            taken.append(self.seconds(1))
        return float(np.median(taken[len(taken) // 2 :]))

    def gradient_error(self) -> float:
        """The largest relative error, norm-wise, of the loss and of each gradient against float64 NumPy.

        ``RuntimeError`` where it is above :data:`AGREEMENT` or not finite.
        """
        reference = MLP(self.net.sizes, loss=self.shape.loss, dtype="float64", device="cpu")
        reference.load_parameters(
            {name: to_numpy(value).astype(np.float64) for name, value in self.net.parameters.items()}
        )
        y = to_numpy(self.y)
        wanted_loss, wanted = reference.loss_and_grad(
            to_numpy(self.X).astype(np.float64), y.astype(np.float64) if y.dtype.kind == "f" else y
        )
        with self.device:
            loss, grads = self.net.loss_and_grad(self.X, self.y)
        errors = {"loss": _relative_error(to_numpy(loss), wanted_loss)}
        errors |= {name: _relative_error(to_numpy(grads[name]), wanted[name]) for name in self.net.parameters}
        name = max(errors, key=lambda key: np.inf if np.isnan(errors[key]) else errors[key])
        if not errors[name] <= AGREEMENT:
            raise RuntimeError(
                f"{self.shape} on {self.device}: {name} differs from float64 NumPy by {errors[name]:.1e} "
                f"(allowed {AGREEMENT:.0e}), so nothing is timed; "
                + ("please report it" if self.device.kind == "cpu" else "see `handgrad kernels check`")
            )
        return errors[name]


def _relative_error(value: NDArray[Any], wanted: NDArray[Any]) -> float:
    norm = float(np.linalg.norm(wanted))
    return float(np.linalg.norm(np.asarray(value, np.float64) - wanted)) / (norm or 1.0)


def make_problem(shape: Shape, seed: int = 0) -> tuple[Floats, NDArray[Any]]:
    """Random ``X`` (N, D) float32 in [0, 1) and targets: (N, 1) float32, or labels (N,) int32."""
    rng = np.random.default_rng(seed)
    X = rng.random((shape.samples, shape.inputs), dtype=np.float32)
    if shape.loss == "mse":
        return X, rng.standard_normal((shape.samples, shape.outputs), dtype=np.float32)
    return X, rng.integers(shape.outputs, size=shape.samples, dtype=np.int32)


def measure(
    devices: Sequence[str | Device],
    shapes: Sequence[Shape] = SHAPES,
    *,
    seconds: float = 3.0,
    seed: int = 0,
    results: list[Result] | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """Time a training step of every shape on every device, ``seconds`` each (at least five samples).

    ``results`` is appended to as samples come in, so an interrupt leaves what was measured until then.
    ``progress`` is told in words what is being done.  ``RuntimeError`` where a step is wrong.
    """
    results = [] if results is None else results
    say = progress or (lambda words: None)
    targets = [resolve_device(device) for device in devices]
    for shape in shapes:
        problem = make_problem(shape, seed)
        runs: list[tuple[Step, Result]] = []
        for device in targets:
            say(f"{shape} on {device}: checking the step")
            step = Step(shape, device, problem, seed)
            result = Result(shape, str(device), step.gradient_error())
            say(f"{shape} on {device}: warming up")
            once = step.warm_up()
            if device.kind == "cpu":
                result.blas_threads = step.blas_threads or max((b["num_threads"] for b in blas()), default=1)
            result.steps_per_sample = max(1, round(seconds / ROUNDS / once))
            runs.append((step, result))
            results.append(result)
        _take_turns(runs, seconds, say)
    return results


def _take_turns(runs: list[tuple[Step, Result]], seconds: float, say: Progress) -> None:
    spent = [0.0] * len(runs)
    for round_number in range(ROUNDS):
        for position, (step, result) in enumerate(runs):
            if round_number >= FEWEST_ROUNDS and spent[position] >= seconds:
                continue
            say(f"{step.shape} on {step.device}: sample {round_number + 1} of {ROUNDS}")
            taken = step.seconds(result.steps_per_sample)
            spent[position] += taken
            result.seconds_per_step.append(taken / result.steps_per_sample)


def available_devices() -> tuple[list[str], str]:
    """The CPU, and every GPU that answers; and, where none does, why."""
    from handgrad.arrays import cuda_problem

    problem = cuda_problem(0)
    if problem:
        return ["cpu"], problem
    import cupy

    return ["cpu", *(f"cuda:{index}" for index in range(cupy.cuda.runtime.getDeviceCount()))], ""


def report(results: Sequence[Result], *, complete: bool, notes: Sequence[str] = ()) -> dict[str, Any]:
    """Everything measured, with the machine and the versions, as one JSON-able object."""
    from handgrad import __version__

    return {
        "schema": SCHEMA,
        "handgrad": __version__,
        "complete": complete,
        "clock": "time.perf_counter around several steps, the stream synchronised before and after",
        "machine": machine(sorted({result.device for result in results})),
        "notes": list(notes),
        "results": [result.as_dict() for result in results if result.seconds_per_step],
    }


def machine(devices: Sequence[str] = ()) -> dict[str, Any]:
    """CPU, BLAS with its kernel and threads, the variables that change them, GPUs, versions."""
    found: dict[str, Any] = {
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "blas": blas(),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if re.match(r"(OPENBLAS|OMP|MKL|GOTO|BLIS|VECLIB)_", name)
        },
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
    }
    cuda = [device for device in devices if device.startswith("cuda")]
    if cuda:
        import cupy

        found["versions"]["cupy"] = cupy.__version__
        found["versions"]["cuda runtime"] = cupy.cuda.runtime.runtimeGetVersion()
        found["versions"]["cuda driver"] = cupy.cuda.runtime.driverGetVersion()
        found["gpus"] = {
            device: cupy.cuda.runtime.getDeviceProperties(resolve_device(device).index)["name"].decode()
            for device in cuda
        }
    return found


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
