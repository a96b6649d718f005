"""Efficiency against the number of ranks: measured in processes of their own, and on paper.

Measured: ``mpiexec -n R python -m handgrad.distributed.scaling CONFIG`` trains a few steps on drawn data,
each rank with one thread.  On paper, the alpha–beta model: a step on R ranks takes

    T(R) = T_g / R + T_u + (R - 1) (α + n β)          for R > 1,

T_g the gradients of a batch on one rank, T_u the update and the additions, n the bytes of the gradient, α the
latency of a message and 1 / β the bandwidth of a link, with R - 1 messages received by each rank.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROUNDS = 5  # of which the best counts: what else the machine does only adds
LONGEST = 600.0  # seconds for one number of ranks


@dataclass(frozen=True)
class Problem:
    """A training step to scale: batch, layer widths, shards, steps a round, device."""

    batch_size: int = 8192
    sizes: tuple[int, ...] = (784, 512, 10)
    shards: int = 4
    steps: int = 4
    device: str = "cpu"

    @property
    def gradient_bytes(self) -> int:
        """n of the model: a float32 gradient, without padding."""
        pairs = zip(self.sizes[:-1], self.sizes[1:], strict=True)
        return 4 * sum(inputs * outputs + outputs for inputs, outputs in pairs)


@dataclass(frozen=True)
class Measured:
    """A number of ranks: seconds a step, of which ``exchange_seconds`` in the exchange of rank 0."""

    ranks: int
    seconds: float
    exchange_seconds: float
    speedup: float
    efficiency: float


@dataclass(frozen=True)
class Link:
    """α in seconds and bandwidth 1 / β in bytes a second of what connects two ranks."""

    name: str
    latency: float
    bandwidth: float


# Peak figures of one direction; the latencies are the order of magnitude of a small message.
LINKS = (
    Link("PCIe 4.0 x16", 10e-6, 32e9),
    Link("NVLink 4 (H100)", 5e-6, 450e9),
    Link("InfiniBand NDR", 5e-6, 50e9),
)


def measure(problem: Problem, ranks: tuple[int, ...] = (1, 2)) -> list[Measured]:
    """Steps of ``problem`` on each number of ranks.

    Raises ``RuntimeError`` in one line where there is no ``mpiexec``, or a job fails.
    """
    found: list[Measured] = []
    for count in ranks:
        seconds, exchanged = _run(problem, count)
        first = found[0].seconds * found[0].ranks if found else seconds * count
        speedup = first / seconds
        found.append(Measured(count, seconds, exchanged, speedup, speedup / count))
    return found


def predict(
    gradient_seconds: float, update_seconds: float, gradient_bytes: int, link: Link, ranks: int
) -> float:
    """T(R) of the model, in seconds."""
    messages = ranks - 1
    return (
        gradient_seconds / ranks
        + update_seconds
        + messages * (link.latency + gradient_bytes / link.bandwidth)
    )


def best_ranks(gradient_seconds: float, gradient_bytes: int, link: Link) -> int:
    """Where T(R) is least: R* = √(T_g / (α + n β)), at least 1; beyond it, more ranks are slower."""
    return max(1, round(float(np.sqrt(gradient_seconds / (link.latency + gradient_bytes / link.bandwidth)))))


def report(problem: Problem, ranks: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
    """What was measured, as JSON takes it."""
    return {"problem": asdict(problem), "ranks": [asdict(row) for row in measure(problem, ranks)]}


def table(found: Mapping[str, Any]) -> str:
    """:func:`report` in lines."""
    problem = found["problem"]
    widths = "→".join(map(str, problem["sizes"]))
    lines = [f"{problem['batch_size']}×{widths}, {problem['shards']} shards, one thread a rank"]
    lines.append(f"{'ranks':>5}  {'step ms':>9}  {'exchange ms':>11}  {'speed-up':>8}  {'efficiency':>10}")
    for row in found["ranks"]:
        lines.append(
            f"{row['ranks']:>5}  {1e3 * row['seconds']:>9.2f}  {1e3 * row['exchange_seconds']:>11.2f}  "
            f"{row['speedup']:>8.2f}  {row['efficiency']:>10.0%}"
        )
    return "\n".join(lines)


def _run(problem: Problem, ranks: int) -> tuple[float, float]:
    beside = Path(sys.executable).with_name("mpiexec")
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    if mpiexec is None and ranks > 1:
        raise RuntimeError("--scaling: no mpiexec found; pip install 'handgrad[mpi]'")
    command = [sys.executable, "-m", "handgrad.distributed.scaling", json.dumps(asdict(problem))]
    if ranks > 1:
        command = [str(mpiexec), "-n", str(ranks), *command]
    one_thread = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    ended = subprocess.run(
        command, env=os.environ | one_thread, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=LONGEST, check=False,
    )  # fmt: skip
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
        raise RuntimeError(f"--scaling: the job of {ranks} ranks failed: {last}")
    seconds, exchanged = json.loads(ended.stdout)
    return float(seconds), float(exchanged)


def _rank(problem: Problem) -> tuple[float, float]:
    """The best round's seconds a step on this rank, and its share in the exchange."""
    from handgrad.arrays import to_device
    from handgrad.distributed.ranks import device_of, join
    from handgrad.distributed.steps import ShardedSteps
    from handgrad.network import MLP
    from handgrad.ops.optimizer import SGD

    ranks = join()
    rng = np.random.default_rng(0)
    rows = problem.batch_size * problem.steps
    device = device_of(problem.device, ranks)
    net = MLP(problem.sizes, loss="cross_entropy", device=device, seed=0)
    X = to_device(rng.standard_normal((rows, problem.sizes[0]), dtype=np.float32), device)
    y = to_device(rng.integers(0, problem.sizes[-1], rows).astype(np.int32), device)
    steps, optimizer, order = ShardedSteps(net, problem.shards, ranks), SGD(0.01), np.arange(rows)
    best = (np.inf, 0.0)
    with steps.running():
        for _ in range(1 + ROUNDS):  # the first warms up
            ranks.gather(None)  # all begin together
            before = steps.exchange.seconds if steps.exchange is not None else 0.0
            begin = time.perf_counter()
            steps.train_epoch(X, y, order, problem.batch_size, optimizer)
            seconds = time.perf_counter() - begin
            exchanged = (steps.exchange.seconds if steps.exchange is not None else 0.0) - before
            best = min(best, (seconds / problem.steps, exchanged / problem.steps))
    return best


if __name__ == "__main__":
    chosen = json.loads(sys.argv[1])
    result = _rank(Problem(**chosen | {"sizes": tuple(chosen["sizes"])}))
    from handgrad.distributed.ranks import launched

    if launched()[0] == 0:
        print(json.dumps(result))
