"""Training: shuffled mini-batches, validation, early stopping, schedules, history.

Same seed, same data, same device: same bits.  Epoch e visits the samples in the order of
``numpy.random.Generator(numpy.random.PCG64([seed, e])).permutation(N)``, e = 0, 1, …, so that any epoch's
order is known without the ones before.  The last batch of an epoch may be short: its loss is the mean over
the samples that it has.
"""

from __future__ import annotations

import functools
import operator
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from handgrad.arrays import Array, to_numpy
from handgrad.evaluation import Evaluation, evaluate, evaluate_samples
from handgrad.ops.optimizer import Optimizer
from handgrad.samples import Samples, prepare
from handgrad.schedules import SCHEDULES, Schedule, factor

if TYPE_CHECKING:
    from handgrad.network import MLP

__all__ = ["SCHEDULES", "Evaluation", "History", "epoch_order", "evaluate", "fit"]

CALLS_PER_EPOCH = 50  # on_step is called about so often an epoch, and only there may the device be waited for

OnStep = Callable[[int, int, Callable[[], float]], None]
OnEpoch = Callable[[dict[str, Any]], None]


@dataclass
class History:
    """What a training did.

    rows: one dict a finished epoch, with the keys epoch (from 1), train_loss, validation_loss and
        validation_accuracy (None without), learning_rate, samples_per_second, seconds (of training alone).
        train_loss is over the epoch, while the parameters change: the mean over its samples, or the sum for
        reduction="sum".
    steps: the loss of every step, if asked for
    interrupted: Ctrl-C ended the training; the network is as the last step left it
    stopped_early: the validation loss had not improved for ``patience`` epochs
    best_epoch: the epoch (from 1) whose parameters early stopping restored; None without
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    interrupted: bool = False
    stopped_early: bool = False
    best_epoch: int | None = None


def fit(
    net: MLP,
    X: Any,
    y: Any = None,
    *,
    optimizer: Optimizer,
    batch_size: int = 128,
    epochs: int = 10,
    validation: Any = None,
    schedule: str | Schedule = "constant",
    clip_norm: float | None = None,
    patience: int | None = None,
    seed: int = 0,
    shuffle: bool = True,
    step_losses: bool = False,
    first_epoch: int = 0,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> History:
    """Train ``net`` in place on arrays ``X`` (N, D) and ``y``, or on a data set ``X``.

    The data go to the network's device once; uint8 stays uint8 there and is scaled batch by batch.

    Parameters
    ----------
    optimizer: SGD, Adam or AdamW; keeps its state, so that a second ``fit`` goes on
    validation: ``(X, y)`` or a data set, evaluated after every epoch
    schedule: "constant", "step", "cosine" or a function of the part of the training that is done; its factor
        on ``optimizer.lr`` holds for an epoch, and lr is what it was when ``fit`` returns
    clip_norm: the largest norm that a gradient may have
    patience: stop when the validation loss has not improved for so many epochs, and in any case end with the
        parameters of the best epoch (not after Ctrl-C); the optimizer's state is not turned back
    seed, shuffle: the order of the samples; without shuffling it is 0 .. N-1
    step_losses: keep the loss of every step in ``History.steps``
    first_epoch: go on at this epoch, with its order and learning rate
    on_step: called as ``on_step(step, steps, loss)`` some 50 times an epoch; ``loss()`` waits for the device
        and gives the mean loss of the steps since the last call
    on_epoch: called with the new row of the history

    Ctrl-C ends the training: the history so far is returned with ``interrupted`` set.
    Raises ``ValueError`` in one line for data or settings that do not fit.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: expected an SGD, Adam or AdamW object, got {optimizer!r}")
    batch_size, epochs = _count(batch_size, "batch_size"), _count(epochs, "epochs")
    first_epoch, seed = _count(first_epoch, "first_epoch", 0), _count(seed, "seed", 0)
    if patience is not None:
        patience = _count(patience, "patience")
        if validation is None:
            raise ValueError("patience: early stopping watches the validation loss; give validation=(X, y)")
    factor(schedule, first_epoch / epochs)  # an unknown name is told before the data are moved
    samples = prepare(net, X, y)
    held_out = None if validation is None else _prepare_validation(net, validation)
    optimizer.bind(net.flat_parameters)

    history = History()
    stopping = _EarlyStopping(net, patience)
    base_lr = optimizer.lr
    try:
        with net.device:
            for epoch in range(first_epoch, epochs):
                optimizer.lr = base_lr * factor(schedule, epoch / epochs)
                order = epoch_order(len(samples), seed, epoch, shuffle)
                losses, seconds = _train_epoch(net, samples, order, batch_size, optimizer, clip_norm, on_step)
                found = evaluate_samples(net, held_out) if held_out is not None else None
                row = {
                    "epoch": epoch + 1,
                    "train_loss": _over_samples(net, losses, len(samples), batch_size),
                    "validation_loss": found.loss if found else None,
                    "validation_accuracy": found.accuracy if found else None,
                    "learning_rate": optimizer.lr,
                    "samples_per_second": len(samples) / seconds,
                    "seconds": seconds,
                }
                if step_losses:
                    history.steps.extend(losses.tolist())
                history.rows.append(row)
                history.stopped_early = found is not None and stopping.after(epoch + 1, found.loss)
                if on_epoch is not None:
                    on_epoch(row)
                if history.stopped_early:
                    break
            history.best_epoch = stopping.restore()
    except KeyboardInterrupt:
        history.interrupted = True
    finally:
        optimizer.lr = base_lr
    return history


def epoch_order(N: int, seed: int, epoch: int, shuffle: bool = True) -> NDArray[np.int64]:
    """The order (N,) in which epoch ``epoch`` = 0, 1, … visits the samples."""
    if not shuffle:
        return np.arange(N, dtype=np.int64)
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(N)


def _train_epoch(
    net: MLP,
    samples: Samples,
    order: NDArray[np.int64],
    batch_size: int,
    optimizer: Optimizer,
    clip_norm: float | None,
    on_step: OnStep | None,
) -> tuple[NDArray[np.float64], float]:
    """The loss of every step and the seconds that the epoch took.

    Without ``on_step`` it is one call of ``net.train_epoch``, with it some 50; the bits are the same.
    """
    steps = -(-len(order) // batch_size)
    stride = steps if on_step is None else -(-steps // CALLS_PER_EPOCH)
    begin = time.perf_counter()
    parts: list[Array] = []
    for first in range(0, steps, stride):
        rows = order[first * batch_size : (first + stride) * batch_size]
        parts.append(
            net.train_epoch(
                samples.X, samples.y, rows, batch_size, optimizer, clip_norm, samples.scale, samples.shift
            )
        )
        if on_step is not None:
            on_step(min(first + stride, steps), steps, functools.partial(_mean, parts[-1]))
    losses = np.concatenate([to_numpy(part) for part in parts]).astype(np.float64)  # waits for the device
    return losses, time.perf_counter() - begin


def _mean(losses: Array) -> float:
    return float(to_numpy(losses).mean())


def _over_samples(net: MLP, losses: NDArray[np.float64], N: int, batch_size: int) -> float:
    """The mean over all samples of batch means, the last of which may be short; or the sum of batch sums."""
    if net.reduction == "sum":
        return float(losses.sum())
    full, last = losses[:-1], losses[-1]
    return float((full.sum() * batch_size + last * (N - len(full) * batch_size)) / N)


class _EarlyStopping:
    """The best validation loss so far and a copy of the parameters that gave it."""

    def __init__(self, net: MLP, patience: int | None) -> None:
        self.net = net
        self.patience = patience
        self.best_loss = np.inf
        self.best_epoch: int | None = None
        self.best: Array = None
        self.waited = 0

    def after(self, epoch: int, loss: float) -> bool:
        """Note the loss after ``epoch``; True if it is time to stop.  A NaN is no improvement."""
        if self.patience is None:
            return False
        if loss < self.best_loss:
            self.best_loss, self.best_epoch, self.waited = loss, epoch, 0
            self.best = self.net.flat_parameters.flat.copy()
        else:
            self.waited += 1
        return self.waited >= self.patience

    def restore(self) -> int | None:
        """Put the best parameters back; the epoch that they are from, or None where there are none."""
        if self.best is not None:
            self.net.flat_parameters.flat[...] = self.best
        return self.best_epoch


def _prepare_validation(net: MLP, validation: Any) -> Samples:
    if isinstance(validation, (tuple, list)):
        if len(validation) != 2:
            raise ValueError(f"validation: expected (X, y) or a Dataset, got {len(validation)} things")
        X, y = validation
        return prepare(net, X, y, "validation X", "validation y")
    return prepare(net, validation, None, "validation X", "validation y")


def _count(value: Any, name: str, least: int = 1) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f"{name}: expected a whole number, {least} or above, got {value!r}")
    return number
