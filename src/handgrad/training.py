"""Training: shuffled mini-batches, validation, early stopping, schedules, history.

Same seed, same data, same device: same bits.  Epoch e visits the samples in the order of
``numpy.random.Generator(numpy.random.PCG64([seed, e])).permutation(N)``, e = 0, 1, …, so that any epoch's
order is known without the ones before.  The last batch of an epoch may be short: its loss is the mean over
the samples that it has.
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from handgrad import nonfinite
from handgrad.arrays import to_numpy
from handgrad.distributed.ranks import Ranks
from handgrad.distributed.steps import ShardedSteps
from handgrad.evaluation import Evaluation, evaluate, evaluate_samples
from handgrad.nonfinite import GuardedSteps
from handgrad.ops.optimizer import Optimizer
from handgrad.resume import Checkpoints, Progress
from handgrad.samples import Samples, prepare, prepare_any
from handgrad.schedules import SCHEDULES, Schedule, factor
from handgrad.streaming.order import streamed_order
from handgrad.stretches import CALLS_PER_EPOCH, InMemory, OnStep, Source, Steps, run_epoch

if TYPE_CHECKING:
    from handgrad.network import MLP
    from handgrad.streaming.streamed_samples import StreamedSamples

__all__ = ["CALLS_PER_EPOCH", "SCHEDULES", "Evaluation", "History", "epoch_order", "evaluate", "fit"]

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
    skipped: the (epoch, step), both from 1, that were left out for a NaN or inf; their losses are NaN
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    interrupted: bool = False
    stopped_early: bool = False
    best_epoch: int | None = None
    skipped: list[tuple[int, int]] = field(default_factory=list)


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
    block_rows: int | None = None,
    shards: int = 1,
    ranks: Ranks | None = None,
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
    on_nonfinite: str = "stop",
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> History:
    """Train ``net`` in place on arrays ``X`` (N, D) and ``y``, or on a data set or stream ``X``.

    The data go to the network's device once; uint8 stays uint8 there and is scaled batch by batch.  A stream
    (:mod:`handgrad.streaming`) is read in blocks while it is trained on.

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
    block_rows: shuffle arrays in the order of a stream with such blocks (:mod:`handgrad.streaming.order`)
    step_losses: keep the loss of every step in ``History.steps``
    first_epoch: go on at this epoch, with its order and learning rate
    shards: cut every batch into so many, whose gradients are added in a fixed tree (see
        :mod:`handgrad.distributed`): the bits depend on the number of shards, never on that of ranks
    ranks: the processes that train together, from :func:`handgrad.distributed.ranks.join`
    progress: go on where this says, with the optimizer's state of that place (see :mod:`handgrad.resume`)
    checkpoints: written as it says, between two steps
    on_nonfinite: what to do at a NaN or inf in a loss or gradient: "stop" with
        :class:`handgrad.nonfinite.NonFiniteError`, "skip" the step (``History.skipped``), or "ignore" it
    on_step: called as ``on_step(step, steps, loss)`` some 50 times an epoch; ``loss()`` waits for the device
        and gives the mean loss of the steps since the last call
    on_epoch: called with the new row of the history

    Ctrl-C ends the training: the history so far is returned with ``interrupted`` set.
    Raises ``ValueError`` in one line for data or settings that do not fit, ``NonFiniteError`` (a
    ``RuntimeError``) that names step, layer and batch.
    """
    if on_nonfinite not in nonfinite.CHOICES:
        raise ValueError(
            f"on_nonfinite: expected one of {', '.join(nonfinite.CHOICES)}, got {on_nonfinite!r}"
        )
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: expected an SGD, Adam or AdamW object, got {optimizer!r}")
    batch_size, epochs = _count(batch_size, "batch_size"), _count(epochs, "epochs")
    first_epoch, seed = _count(first_epoch, "first_epoch", 0), _count(seed, "seed", 0)
    if patience is not None:
        patience = _count(patience, "patience")
        if validation is None:
            raise ValueError("patience: early stopping watches the validation loss; give validation=(X, y)")
    shards, ranks = _count(shards, "shards"), ranks or Ranks()
    factor(schedule, first_epoch / epochs)  # an unknown name is told before the data are moved
    samples = prepare_any(net, X, y)
    source: Source
    if isinstance(samples, Samples):
        N = len(samples)
        source = InMemory(samples, lambda epoch: epoch_order(N, seed, epoch, shuffle, block_rows))
    else:
        source, samples.seed, samples.shuffle = samples, seed, shuffle
    held_out = None if validation is None else _prepare_validation(net, validation)
    optimizer.bind(net.flat_parameters)

    progress = Progress(epoch=first_epoch) if progress is None else progress
    history = History(progress.rows, progress.steps, stopped_early=progress.stopped_early)
    stopping = _EarlyStopping(net, patience, progress)
    base_lr = optimizer.lr
    steps: Steps = net
    running: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if shards > 1 or ranks.size > 1:
        steps = sharded = ShardedSteps(net, shards, ranks)
        running = sharded.running()
    if on_nonfinite != "ignore":
        steps = guarded = GuardedSteps(steps, net, on_nonfinite, progress)
        history.skipped = guarded.skipped
    try:
        with net.device, running:
            if checkpoints is not None:
                checkpoints.follow(net, optimizer, progress)
            while progress.epoch < epochs and not progress.stopped_early:
                optimizer.lr = base_lr * factor(schedule, progress.epoch / epochs)
                count = run_epoch(
                    steps, source, batch_size, optimizer, clip_norm, on_step, progress, checkpoints
                )
                (losses,), seconds = progress.losses, progress.seconds
                taken = ~np.isnan(losses) if on_nonfinite == "skip" else np.full(len(losses), True)
                found = evaluate_samples(net, held_out, ranks) if held_out is not None else None
                row: dict[str, Any] = {
                    "epoch": progress.epoch + 1,
                    "train_loss": _over_samples(net, losses, len(source), batch_size, taken),
                    "validation_loss": found.loss if found else None,
                    "validation_accuracy": found.accuracy if found else None,
                    "learning_rate": optimizer.lr,
                    "samples_per_second": len(source) / seconds,
                    "seconds": seconds,
                }
                if step_losses:
                    history.steps.extend(losses.tolist())
                history.rows.append(row)
                progress.epoch, progress.step, progress.losses, progress.seconds = row["epoch"], 0, [], 0.0
                progress.stopped_early = found is not None and stopping.after(row["epoch"], found.loss)
                history.stopped_early = progress.stopped_early
                if on_epoch is not None:
                    on_epoch(row)
                if checkpoints is not None:
                    last = progress.epoch == epochs or progress.stopped_early
                    checkpoints.after_steps(count, last)
            history.best_epoch = stopping.restore()
    except KeyboardInterrupt:
        history.interrupted = True
    finally:
        optimizer.lr = base_lr
    return history


def epoch_order(
    N: int, seed: int, epoch: int, shuffle: bool = True, block_rows: int | None = None
) -> NDArray[np.int64]:
    """The order (N,) in which epoch ``epoch`` = 0, 1, … visits the samples; by blocks, if given."""
    return streamed_order(N, block_rows or max(N, 1), seed, epoch, shuffle)


def _over_samples(
    net: MLP, losses: NDArray[np.float64], N: int, batch_size: int, taken: NDArray[np.bool_]
) -> float:
    """The mean over all samples of batch means, the last of which may be short; or the sum of batch sums."""
    samples = np.full(len(losses), batch_size)
    samples[-1] = N - (len(losses) - 1) * batch_size
    if net.reduction == "sum":
        return float(losses[taken].sum())
    if not taken.any():
        return math.nan  # every step of the epoch was left out
    return float((losses * samples)[taken].sum() / samples[taken].sum())


class _EarlyStopping:
    """The best validation loss so far and the parameters that gave it, which ``progress`` remembers."""

    def __init__(self, net: MLP, patience: int | None, progress: Progress) -> None:
        self.net, self.patience, self.progress = net, patience, progress

    def after(self, epoch: int, loss: float) -> bool:
        """Note the loss after ``epoch``; True if it is time to stop.  A NaN is no improvement."""
        if self.patience is None:
            return False
        kept = self.progress
        if loss < kept.best_loss:
            kept.best_loss, kept.best_epoch, kept.waited = loss, epoch, 0
            kept.best = to_numpy(self.net.flat_parameters.flat).copy()
        else:
            kept.waited += 1
        return kept.waited >= self.patience

    def restore(self) -> int | None:
        """Put the best parameters back; the epoch that they are from, or None where there are none."""
        if self.progress.best is not None:
            self.net.flat_parameters.flat[...] = self.net.xp.asarray(self.progress.best)
        return self.progress.best_epoch


def _prepare_validation(net: MLP, validation: Any) -> Samples | StreamedSamples:
    if isinstance(validation, (tuple, list)):
        if len(validation) != 2:
            raise ValueError(f"validation: expected (X, y) or a Dataset, got {len(validation)} things")
        X, y = validation
        return prepare(net, X, y, "validation X", "validation y")
    return prepare_any(net, validation, None, "validation X", "validation y")


def _count(value: Any, name: str, least: int = 1) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f"{name}: expected a whole number, {least} or above, got {value!r}")
    return number
