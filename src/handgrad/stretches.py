"""An epoch in stretches of steps; between two, progress is shown, signals are heeded, checkpoints written.

Where the stretches are cut changes no bit: a step sees the same rows and the same parameters.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from handgrad.arrays import Array, to_numpy
from handgrad.ops.optimizer import Optimizer
from handgrad.resume import Checkpoints, Progress
from handgrad.samples import Samples

CALLS_PER_EPOCH = 50  # on_step is called about so often an epoch, and only there may the device be waited for

OnStep = Callable[[int, int, Callable[[], float]], None]


@dataclass(frozen=True)
class Piece:
    """``samples`` in ``order``, on the network's device: whole batches, but the epoch's last may be short."""

    samples: Samples
    order: NDArray[Any]


class Source(Protocol):
    """Where an epoch's batches come from."""

    def __len__(self) -> int:
        """N, the samples of an epoch."""

    def pieces(self, epoch: int, batch_size: int, first_step: int) -> Iterator[Piece]:
        """The samples of epoch ``epoch`` = 0, 1, … in its order, from step ``first_step`` on."""


class Steps(Protocol):
    """What makes the steps: a network, or one whose batches are cut into shards."""

    def train_epoch(
        self,
        X: Array,
        y: Array,
        order: Array,
        batch_size: int,
        optimizer: Optimizer,
        clip_norm: float | None = None,
        scale: float = 1.0,
        shift: float = 0.0,
    ) -> Array:
        """As :meth:`handgrad.MLP.train_epoch`."""


@dataclass(frozen=True)
class InMemory:
    """Samples that are on the device already; ``order(epoch)`` gives the (N,) row numbers of an epoch."""

    samples: Samples
    order: Callable[[int], NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.samples)

    def pieces(self, epoch: int, batch_size: int, first_step: int) -> Iterator[Piece]:
        """All of it in one piece."""
        yield Piece(self.samples, self.order(epoch)[first_step * batch_size :])


def run_epoch(
    steps_of: Steps,
    source: Source,
    batch_size: int,
    optimizer: Optimizer,
    clip_norm: float | None,
    on_step: OnStep | None,
    progress: Progress,
    checkpoints: Checkpoints | None,
) -> int:
    """The steps of epoch ``progress.epoch`` that are not done yet; ``progress`` takes their losses and time.

    Returns the number of steps since ``checkpoints`` heard of them last: the epoch's end is the caller's.
    """
    steps = -(-len(source) // batch_size)
    stride = steps if on_step is None else -(-steps // CALLS_PER_EPOCH)
    unheard = 0
    begin = time.perf_counter()
    for piece in source.pieces(progress.epoch, batch_size, progress.step):
        end = progress.step + -(-len(piece.order) // batch_size)
        done = 0
        while progress.step < end:
            count = min(end - progress.step, stride - progress.step % stride)
            due = checkpoints.steps_until_due() if checkpoints is not None else None
            if due is not None:
                count = min(count, max(1, due))
            rows = piece.order[done * batch_size : (done + count) * batch_size]
            samples = piece.samples
            losses = steps_of.train_epoch(
                samples.X, samples.y, rows, batch_size, optimizer, clip_norm, samples.scale, samples.shift
            )
            done, progress.step = done + count, progress.step + count
            progress.losses.append(losses)
            shown = progress.step % stride == 0 or progress.step == steps
            if progress.step < steps and checkpoints is not None:
                now = time.perf_counter()
                progress.seconds, begin = progress.seconds + now - begin, now
                checkpoints.after_steps(count)
            else:
                unheard += count
            if on_step is not None and shown:
                on_step(progress.step, steps, functools.partial(_mean, losses))
    progress.losses = [joined(progress.losses)]  # waits for the device
    progress.seconds += time.perf_counter() - begin
    return unheard


def joined(losses: list[Array]) -> NDArray[np.float64]:
    """The losses of steps, from any device, in one float64 array on the host."""
    return np.concatenate([np.empty(0), *(to_numpy(part).astype(np.float64) for part in losses)])


def _mean(losses: Array) -> float:
    return float(to_numpy(losses).mean())
