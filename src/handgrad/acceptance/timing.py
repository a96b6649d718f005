"""Every path of a shape: checked against float64 NumPy, then timed.

``python -m handgrad.acceptance.timing DEVICE SECONDS ROUNDS`` does the work that its stdin lists and prints a
line of JSON for each piece: after a fault the process's GPU is lost to it, and another does the rest.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.acceptance.ceilings import Ceilings
from handgrad.arrays import Device, resolve_device, synchronize, to_device, to_numpy
from handgrad.network import MLP
from handgrad.ops.optimizer import SGD
from handgrad.plans import paths, plan
from handgrad.throughput import Shape

# Norm-wise, a step's gradient against float64: far above rounding in the precision, far below a mistake.
AGREEMENT = {"float32": 1e-4, "3xtf32": 1e-4, "tf32": 2e-2, "bfloat16": 1e-1}
LEARNING_RATE = 1e-3
WARM_UP_STEPS = 3  # the first runs as it is, the second is captured, the third replayed


@dataclass
class Figure:
    """One measurement, or why there is none.  ``seconds``: each of a step; ``bound``: the least by the
    ceilings; ``error``: of the gradient, norm-wise against float64."""

    name: str
    shape: str
    precision: str
    seconds: list[float] = field(default_factory=list)
    bound: float | None = None
    error: float | None = None
    launches: int | None = None
    note: str = ""

    @property
    def median(self) -> float | None:
        """Seconds of a step."""
        return float(np.median(self.seconds)) if self.seconds else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; ``of_bound`` is the measured time against the bound."""
        ratio = self.median / self.bound if self.median is not None and self.bound else None
        return {**dataclasses.asdict(self), "median_seconds": self.median, "of_bound": ratio}


Work = tuple[str, Shape, str]  # path, shape, precision


def measure(
    work: Sequence[Work], device: str, ceilings: Ceilings, seconds: float, rounds: int, limit: float
) -> list[Figure]:
    """The figures of ``work`` in its order, from processes of their own, within ``limit`` seconds."""
    found: list[Figure] = []
    end = time.monotonic() + limit
    while len(found) < len(work):
        left = end - time.monotonic()
        if left <= 0:
            found += [
                Figure(path, str(shape), word, note="out of time") for path, shape, word in work[len(found) :]
            ]
            break
        items = [(path, dataclasses.astuple(shape), word) for path, shape, word in work[len(found) :]]
        command = [sys.executable, "-m", __name__, device, str(seconds), str(rounds)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        given = json.dumps({"ceilings": dataclasses.asdict(ceilings), "work": items})
        try:
            out, errors = process.communicate(given, timeout=left)
            died = f"the process ended with code {process.returncode}: {_last_line(errors)}"
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
            died = "out of time"
        found += [Figure(**json.loads(line)) for line in out.splitlines() if line.startswith("{")]
        if len(found) < len(work):  # what it was at when it ended
            path, shape, word = work[len(found)]
            found.append(Figure(path, str(shape), word, note=died))
    return found


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no message")


def main(words: list[str]) -> None:
    """Inside such a process: stop at the first failure of the device."""
    device, seconds, rounds = resolve_device(words[0]), float(words[1]), int(words[2])
    given = json.loads(sys.stdin.read())
    ceilings = Ceilings(**given["ceilings"])
    for path, sizes, precision in given["work"]:
        figure = time_path(path, Shape(*sizes), precision, device, ceilings, seconds, rounds)
        print(json.dumps(dataclasses.asdict(figure)), flush=True)


def data_of(shape: Shape) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """X and y of a shape, the same every time."""
    random = np.random.default_rng(0)
    X = random.standard_normal((shape.samples, shape.inputs), dtype=np.float32)
    if shape.loss == "mse":
        return X, random.standard_normal((shape.samples, shape.outputs), dtype=np.float32)
    return X, random.integers(0, shape.outputs, shape.samples).astype(np.int32)


def time_path(
    path: str, shape: Shape, precision: str, device: Device, ceilings: Ceilings, seconds: float, rounds: int
) -> Figure:
    """A path's figure; one that cannot do the shape has the reason in ``note`` and no time."""
    figure = Figure(path, str(shape), precision)
    sizes = [shape.inputs, shape.hidden, shape.outputs]
    settings = {"loss": shape.loss, "precision": precision, "device": str(device)}
    net = MLP(sizes, path=path, **settings)  # type: ignore[arg-type]
    optimizer = SGD(LEARNING_RATE, momentum=0.9)
    shown = plan(net, shape.samples, optimizer=optimizer)
    layout = shown.layout
    if shown.path != path or layout.problem.precision != precision:
        figure.note = shown.reason
        return figure
    host_X, host_y = data_of(shape)
    X, y = to_device(host_X, device), to_device(host_y, device)
    figure.launches = shown.launches_per_step or shown.launches_per_epoch
    figure.bound = ceilings.bound(sum(layout.compulsory.values()), layout.operations, precision)
    order = np.arange(shape.samples, dtype=np.int32)

    def step() -> None:
        if path == paths.EPOCH:
            net.train_epoch(X, y, order, shape.samples, optimizer)
        else:
            net.train_step(X, y, optimizer)

    figure.error = gradient_error(net, X, y, shape, step)
    if not figure.error <= AGREEMENT[precision]:
        expected = f"expected {AGREEMENT[precision]:.0e}"
        figure.note = f"not timed: the gradient is off by {figure.error:.1e}, {expected}"
        return figure
    figure.seconds = repeat(step, net.xp, seconds, rounds)
    return figure


def gradient_error(net: MLP, X: Any, y: Any, shape: Shape, step: Callable[[], None]) -> float:
    """How far a first step ends from where float64 NumPy says, norm-wise in the step."""
    exact = MLP(list(net.sizes), loss=net.loss_name, dtype="float64", device="cpu")
    before = net.flat_parameters.to_numpy()
    exact.load_parameters(before)
    step()
    after = net.flat_parameters.to_numpy()
    net.load_parameters(before)
    exact.train_step(to_numpy(X).astype(np.float64), to_numpy(y), SGD(LEARNING_RATE))
    expected = exact.flat_parameters.to_numpy()
    moved = [expected[name] - before[name] for name in before]
    off = [after[name].astype(np.float64) - expected[name] for name in before]
    # what float32 parameters round away of a small step is no error of the gradient
    rounding = [2.0**-24 * np.abs(expected[name]) for name in before]
    excess = [np.maximum(np.abs(one) - least, 0) for one, least in zip(off, rounding, strict=True)]
    return float(np.sqrt(sum((e**2).sum() for e in excess)) / np.sqrt(sum((m**2).sum() for m in moved)))


def repeat(step: Callable[[], None], xp: Any, seconds: float, rounds: int) -> list[float]:
    """Seconds of a step, ``rounds`` times, each from enough steps to fill its part of ``seconds``."""
    for _ in range(WARM_UP_STEPS):
        step()
    synchronize(xp)
    begin = time.perf_counter()
    step()
    synchronize(xp)
    steps = max(1, int(seconds / rounds / max(time.perf_counter() - begin, 1e-7)))
    found = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        synchronize(xp)
        found.append((time.perf_counter() - begin) / steps)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
