"""Loss, accuracy and confusion counts of a network over a set of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from handgrad.arrays import to_numpy
from handgrad.distributed.ranks import Ranks
from handgrad.ops import batch
from handgrad.ops import loss as loss_op
from handgrad.samples import Samples, prepare_any

if TYPE_CHECKING:
    from handgrad.network import MLP
    from handgrad.streaming.streamed_samples import StreamedSamples

BLOCK = 4096  # rows a forward pass: bounds the memory, whatever N


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found.

    loss: in the network's reduction; a mean is over all samples, whatever the blocks
    samples: N
    accuracy: share of right predictions; None for mse
    confusion: [true, predicted] counts, int64; None for mse.  (C, C) for cross_entropy and hinge, (2, 2) over
        all outputs for bce
    """

    loss: float
    samples: int
    accuracy: float | None = None
    confusion: NDArray[np.int64] | None = None


def evaluate(net: MLP, X: Any, y: Any = None) -> Evaluation:
    """Evaluate ``net`` on arrays ``X`` (N, D) and ``y``, or on a data set, in blocks.

    A prediction is the class of the greatest output (cross_entropy, hinge), or 1 where the logit is above 0
    (bce), right where the target is at least ½.  Raises ``ValueError`` in one line for data that do not fit.
    """
    return evaluate_samples(net, prepare_any(net, X, y))


def evaluate_samples(net: MLP, samples: Samples | StreamedSamples, ranks: Ranks | None = None) -> Evaluation:
    """:func:`evaluate` on samples that are on the device already, or are read from disk.

    The blocks are shared out among ``ranks``.  The sum over the blocks has their order, so that the result is
    the same on any number of ranks.
    """
    loss, C, N = net.loss_name, net.sizes[-1], len(samples)
    classes = {"mse": 0, "bce": 2}.get(loss, C)
    confusion = np.zeros((classes, classes), dtype=np.int64)
    ranks = ranks or Ranks()
    losses: dict[int, float] = {}
    with net.device:
        rows = net.xp.arange(min(N, BLOCK), dtype=np.int32)
        for start in range(BLOCK * ranks.rank, N, BLOCK * ranks.size):
            part = samples.part(start, min(N, start + BLOCK))
            X = batch.gather(part.X, rows[: len(part)], scale=part.scale, shift=part.shift, dtype=net.dtype)
            y = part.y
            outputs = net.forward(X)
            block_loss, _ = loss_op.forward_backward(outputs, y, loss, reduction="sum")
            losses[start] = float(to_numpy(block_loss))
            if classes:
                confusion += _confusion(to_numpy(outputs), to_numpy(y), classes, binary=loss == "bce")
    everyone = ranks.gather((losses, confusion))
    losses = {start: loss for own, _ in everyone for start, loss in own.items()}
    confusion = sum((own for _, own in everyone), start=np.zeros_like(confusion))
    total = 0.0
    for start in sorted(losses):
        total += losses[start]
    if net.reduction == "mean":
        total /= N * C if loss in loss_op.ELEMENTWISE else N
    if not classes:
        return Evaluation(total, N)
    return Evaluation(total, N, float(np.trace(confusion) / confusion.sum()), confusion)


def _confusion(outputs: NDArray[Any], y: NDArray[Any], classes: int, binary: bool) -> NDArray[np.int64]:
    if binary:
        true, predicted = (y >= 0.5).ravel(), (outputs > 0).ravel()
    else:
        true, predicted = y, outputs.argmax(axis=1)
    pairs = true.astype(np.int64) * classes + predicted
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
