"""The two-layer softmax network without biases, and one epoch of stochastic gradient descent on it.

Z1 = ReLU(X W1)        G2 = softmax(Z1 W2) - I_y        ∇W2 = Z1ᵀ G2 / m
logits = Z1 W2         G1 = 1{Z1 > 0} ∘ (G2 W2ᵀ)        ∇W1 = Xᵀ G1 / m
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.arrays import Array, get_array_module
from handgrad.datasets import DataError, LabelError, load
from handgrad.gradients.gradcheck import gradcheck
from handgrad.lessons.lesson import Lesson
from handgrad.network import MLP
from handgrad.ops import linear
from handgrad.ops import loss as loss_op

TITLE = "The two-layer softmax network and nn_epoch"
SOURCE = "Version 2 Backpropagation, Wenqing's Machine Learning Blog: CMU 10-714, homework 0, question 5"
LINK = "https://dlsyscourse.org"

Floats = NDArray[Any]


def nn_epoch(X: Array, y: Array, W1: Array, W2: Array, lr: float = 0.1, batch: int = 100) -> None:
    """One epoch of SGD on ``logits = ReLU(X W1) W2`` with softmax cross entropy; W1 and W2 change in place.

    X (N, D) floats, y (N,) integer labels, W1 (D, H), W2 (H, C), all of one kind of array.  Batches come in
    order, without shuffling.  As published, the last, short batch is divided by ``batch`` and not by its own
    length: its step is shorter (``handgrad.fit`` takes the true mean instead).  Everything is computed in the
    dtype of W1; logits of any size are safe.  Returns None.  Raises ``TypeError`` and ``ValueError`` for
    arrays that do not fit.
    """
    if batch < 1:
        raise ValueError(f"batch: expected 1 or more, got {batch}")
    if W1.dtype.kind != "f" or W2.dtype != W1.dtype:
        raise TypeError(f"W1, W2: expected floats of one dtype, got {W1.dtype} and {W2.dtype}")
    get_array_module(X, y, W1, W2)
    for start in range(0, len(X), batch):
        rows = X[start : start + batch].astype(W1.dtype)
        dW1, dW2 = gradients(rows, y[start : start + batch], W1, W2)
        W1 -= W1.dtype.type(lr / batch) * dW1
        W2 -= W2.dtype.type(lr / batch) * dW2


def gradients(X: Array, y: Array, W1: Array, W2: Array) -> tuple[Array, Array]:
    """The gradients of the *sum* of the samples' losses: ``Xᵀ G1`` and ``Z1ᵀ G2``."""
    Z1 = linear.forward(X, W1, activation="relu")
    logits = linear.forward(Z1, W2)
    _, G2 = loss_op.forward_backward(logits, y, "cross_entropy", reduction="sum")
    G1 = linear.backward_input(G2, W2, Z1, "relu")
    dW1, _ = linear.backward_weight(X, G1, bias=False)
    dW2, _ = linear.backward_weight(Z1, G2, bias=False)
    return dW1, dW2


def published_epoch(X: Floats, y: Any, W1: Floats, W2: Floats, lr: float = 0.1, batch: int = 100) -> None:
    """The published algorithm step for step, its overflow of large logits included, to compare with."""
    for start in range(0, len(X), batch):
        rows, labels = X[start : start + batch], y[start : start + batch]
        Z1 = np.maximum(0, rows @ W1)
        power = np.exp(Z1 @ W2)  # inf from 89 (float32) or 710 (float64) on
        G2 = power / power.sum(axis=1, keepdims=True) - np.eye(W2.shape[1])[labels]
        G1 = (Z1 > 0) * (G2 @ W2.T)
        W1 -= lr * (rows.T @ G1) / batch
        W2 -= lr * (Z1.T @ G2) / batch


def run(out: Path | None = None, data: str | None = None, full: bool = False) -> Lesson:
    """The lesson; ``full`` trains on all of the data with the weights of the course's own test."""
    lesson = Lesson("softmax", TITLE, SOURCE, LINK)
    _formulas(lesson)
    _epoch(lesson)
    _large_logits(lesson)
    _digits(lesson, data, full)
    return lesson


def small_problem(N: int = 30) -> tuple[Floats, NDArray[np.uint8], Floats, Floats]:
    """X, y, W1, W2 for 5 features, 10 hidden units and 3 classes."""
    random = np.random.Generator(np.random.PCG64(1))
    X, W1, W2 = (random.standard_normal(shape) for shape in ((N, 5), (5, 10), (10, 3)))
    return X, random.integers(0, 3, N).astype(np.uint8), W1 / np.sqrt(10), W2 / np.sqrt(3)


def _formulas(lesson: Lesson) -> None:
    lesson.section(
        "Softmax and cross entropy together: G2 = softmax - I_y",
        """The loss of a sample is log Σ_j e^z_j - z_y, so its gradient is the probability of each class,
        less 1 for the right one. With all logits 0 every class has probability 1/10, and the loss is log
        10.""",
    )
    loss, _ = loss_op.forward_backward(np.zeros((4, 10)), np.arange(4), "cross_entropy")
    lesson.row("loss at zero logits, 10 classes", float(loss), "2.3025850", "in the course's test", 1e-7)
    X, y, W1, W2 = small_problem()
    logits = np.maximum(X @ W1, 0) @ W2
    _, G2 = loss_op.forward_backward(logits, y, "cross_entropy", reduction="sum")
    sums = np.abs(G2.sum(axis=1)).max()
    lesson.check("each row of softmax - I_y sums to 0: what one class gains the others lose", sums < 1e-14)

    net = MLP([5, 10, 3], loss="cross_entropy", bias=False, dtype="float64", device="cpu")
    net.load_parameters({"W1": W1, "W2": W2})
    lesson.check("the gradients agree with differences", gradcheck(net, X, y))
    dW1, dW2 = gradients(X, y, W1, W2)
    _, own = net.loss_and_grad(X, y)
    same = np.allclose(dW1 / 30, own["W1"], atol=1e-15) and np.allclose(dW2 / 30, own["W2"], atol=1e-15)
    lesson.check("XᵀG1/m and Z1ᵀG2/m are what the library's network gives", same)


def _epoch(lesson: Lesson) -> None:
    lesson.section(
        "One epoch, in order, in place",
        """The published code divides every batch by batch, the last one too. With 30 samples and batch =
        50 there is one batch, and its step is 30/50 of that of the true mean gradient. nn_epoch keeps
        this, so that its results can be compared; handgrad.fit does not.""",
    )
    X, y, W1, W2 = small_problem()
    ours, theirs = (W1.copy(), W2.copy()), (W1.copy(), W2.copy())
    nn_epoch(X, y, *ours, lr=0.2, batch=7)
    published_epoch(X, y, *theirs, lr=0.2, batch=7)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))
    lesson.row("difference from the published code after an epoch", difference)
    lesson.check("W1 and W2 have changed in place", not np.allclose(ours[0], W1))
    lesson.check("the two differ by rounding only", difference < 1e-14)

    stepped = W1.copy(), W2.copy()
    nn_epoch(X, y, *stepped, lr=1.0, batch=50)
    mean = gradients(X, y, W1, W2)[0] / len(X)
    lesson.row("step of a batch of 30 divided by 50", np.linalg.norm(W1 - stepped[0]) / np.linalg.norm(mean))

    single = [array.astype(np.float32) for array in (X, W1, W2)]
    nn_epoch(single[0], y, single[1], single[2], batch=10)
    lesson.check("float32 weights stay float32", single[1].dtype == single[2].dtype == np.float32)


def _large_logits(lesson: Lesson) -> None:
    lesson.section(
        "Large logits",
        """e^z overflows, and inf / inf is NaN: after one step of the published code all weights are NaN.
        Subtracting each row's greatest logit changes no probability, and no power exceeds 1.""",
    )
    X, y, W1, W2 = small_problem()
    theirs, ours = (1e3 * W1, 1e3 * W2), (1e3 * W1, 1e3 * W2)
    with np.errstate(all="ignore"):
        published_epoch(X, y, *theirs)
    nn_epoch(X, y, *ours)
    lesson.row("greatest logit", np.abs(np.maximum(X @ (1e3 * W1), 0) @ (1e3 * W2)).max())
    lesson.check("the published code leaves NaN (overflow)", not np.isfinite(theirs[0]).all())
    lesson.check("nn_epoch leaves numbers", np.isfinite(ours[0]).all() and np.isfinite(ours[1]).all())


def _digits(lesson: Lesson, data: str | None, full: bool) -> None:
    spec = data or _where(full)
    try:
        samples = load(spec).train
    except LabelError as wrong:
        raise DataError(
            f"{wrong.found}; lesson softmax takes labels 0, 1, 2, …, all of which occur"
        ) from None
    if not samples.classes:
        raise DataError(f"{spec}: lesson softmax takes labels 0, 1, 2, …, but the targets are other numbers")
    if not full:
        samples = samples.head(2000)
    published = full and len(samples) == 60_000
    X, y = samples.batch(np.arange(len(samples)))
    D, C = X.shape[1], samples.classes
    lesson.section(
        f"Digits: {len(samples):,} images, 100 hidden units, lr = 0.2, batches of 100",
        """The weights are those that the course's test draws (NumPy's old generator with seed 0), so that
        on all 60,000 images the norms and the error after one epoch are the published ones; --full does
        that."""
        if not published
        else "The weights are those that the course's test draws; one epoch over all 60,000 images.",
    )
    random = np.random.RandomState(0)
    W1 = random.randn(D, 100).astype(np.float32) / np.float32(np.sqrt(100))
    W2 = random.randn(100, C).astype(np.float32) / np.float32(np.sqrt(C))
    before = _loss_and_error(X, y, W1, W2)
    nn_epoch(X, y, W1, W2, lr=0.2, batch=100)
    loss, error = _loss_and_error(X, y, W1, W2)
    lesson.row("loss before", before[0])
    printed = ("0.19770025", "0.06006667", "28.437788", "10.455095") if published else ("",) * 4
    lesson.row("loss after an epoch", loss, printed[0], within=1e-5)
    lesson.row("share of wrong answers before", before[1])
    lesson.row("share of wrong answers after", error, printed[1], within=1e-5)
    lesson.row("norm of W1", np.linalg.norm(W1), printed[2], within=1e-5)
    lesson.row("norm of W2", np.linalg.norm(W2), printed[3], within=1e-5)
    lesson.check("an epoch lowers the loss", loss < before[0])


def _loss_and_error(X: Floats, y: Any, W1: Floats, W2: Floats) -> tuple[float, float]:
    logits = np.maximum(X @ W1, 0) @ W2
    loss, _ = loss_op.forward_backward(logits, y, "cross_entropy")
    return float(loss), float(np.mean(logits.argmax(axis=1) != y))


def _where(full: bool) -> str:
    from handgrad.lessons.digits import whole_mnist

    return whole_mnist() if full else "mnist-subset"
