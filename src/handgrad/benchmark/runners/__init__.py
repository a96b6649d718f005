"""One module a library: the same training step and epoch, written as that library's users write them.

Every runner starts from the same parameters and data, trains with plain SGD and ends a run only when the
device is done with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from handgrad.benchmark.workloads import Problem, Workload


@dataclass(frozen=True)
class Peer:
    """A library to be timed: its ``key``, its name in reports, and the modules that it needs."""

    key: str
    name: str
    modules: tuple[str, ...]
    on_gpu: bool = True

    def takes_part(self, workload: Workload) -> bool:
        """scikit-learn trains whole epochs only: a small batch would time its checks of the arguments."""
        if self.key != "sklearn":
            return True
        return workload.kind == "epoch" or (workload.group == "shapes" and workload.shape.samples >= 4096)


PEERS = (
    Peer("handgrad", "handgrad", ()),
    Peer("torch-eager", "PyTorch eager", ("torch",)),
    Peer("torch-compiled", "PyTorch compiled", ("torch",)),
    Peer("jax", "JAX jit", ("jax", "jaxlib")),
    Peer("sklearn", "scikit-learn", ("sklearn",), on_gpu=False),
)
NAMES = {peer.key: peer.name for peer in PEERS}


class Unavailable(RuntimeError):
    """This library cannot be timed on this device; the message says why."""


class Runner(Protocol):
    """A library's step, ready to be repeated."""

    thread_choices: tuple[int, ...]  # numbers of threads that can be set from now on; the first is all

    def use_threads(self, threads: int) -> None:
        """Take so many threads from now on."""

    def describe(self) -> dict[str, Any]:
        """Versions, BLAS and its kernel, threads, device."""

    def prepare(self, problem: Problem) -> None:
        """Move the data to the device; compile what is compiled."""

    def loss_and_grad(self) -> tuple[float, dict[str, NDArray[Any]]]:
        """Of the problem's batch at the parameters as they are now; W in (in, out)."""

    def run(self, repetitions: int) -> None:
        """So many steps (or epochs), and wait for the device."""

    def loss(self) -> float:
        """Of the last step; nan before the first."""

    def product(self, size: int) -> Any:
        """A call that multiplies two square float32 matrices in the library's own BLAS; or None."""


def make(key: str, device: str, threads: int, fixed: bool) -> Runner:
    """The runner of that peer; :class:`Unavailable` or ``ImportError`` where it cannot run on ``device``.

    ``threads``: of the CPU; ``fixed``: exactly so many, else as many as are faster.
    """
    if key == "handgrad":
        from handgrad.benchmark.runners.handgrad_runner import HandgradRunner

        return HandgradRunner(device, threads, fixed)
    if key in ("torch-eager", "torch-compiled"):
        from handgrad.benchmark.runners.torch_runner import TorchRunner

        return TorchRunner(device, threads, fixed, compiled=key == "torch-compiled")
    if key == "jax":
        from handgrad.benchmark.runners.jax_runner import JaxRunner

        return JaxRunner(device, threads)
    if key == "sklearn":
        from handgrad.benchmark.runners.sklearn_runner import SklearnRunner

        return SklearnRunner(device, threads, fixed)
    raise ValueError(f"peer: expected one of {', '.join(NAMES)}, got {key!r}")


def choices(threads: int, fixed: bool) -> tuple[int, ...]:
    """All threads, and one beside where the number is free."""
    return (threads,) if fixed or threads == 1 else (threads, 1)
