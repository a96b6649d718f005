"""784 → 50 → 1 with ReLU and mse: the backward pass step by step, and what was wrong with each attempt at it.

    Z1 = X W1 + b1,  A1 = ReLU(Z1),  out = A1 W2 + b2,  loss = mean (out - y)²

The person on the forum wrote the gradient of W1 as one long line, again and again, and asked where it goes
wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.datasets import load
from handgrad.gradients.diagnose import diagnose
from handgrad.gradients.gradcheck import gradcheck
from handgrad.lessons.digits import whole_mnist
from handgrad.lessons.lesson import Lesson
from handgrad.network import MLP

TITLE = "The 784 → 50 → 1 regression, step by step"
SOURCE = "the fast.ai forum: Could someone help me verify/troubleshoot my implementation of backpropagation"
LINK = "https://forums.fast.ai"

Floats = NDArray[Any]
Parameters = Mapping[str, Floats]

SAMPLES = 128  # of the embedded digits; the thread has the first 50,000 of MNIST
PUBLISHED_SAMPLES = 50_000
HIDDEN = 50


def forward(X: Floats, p: Parameters) -> tuple[Floats, Floats, Floats]:
    """Z1 (N, H), A1 (N, H), out (N, 1)."""
    Z1 = X @ p["W1"] + p["b1"]
    A1 = np.maximum(Z1, 0)
    return Z1, A1, A1 @ p["W2"] + p["b2"]


def step_by_step(X: Floats, y: Floats, p: Parameters) -> dict[str, Floats]:
    """The version that is right: one line for each step back, each with a name.  y is (N,)."""
    N = X.shape[0]
    Z1, A1, out = forward(X, p)
    diff = out[:, 0] - y  # (N,) from (N,): nothing is broadcast
    dZ2 = 2 / N * diff[:, None]  # (N, 1)
    dW2, db2 = A1.T @ dZ2, dZ2.sum(axis=0)
    dA1 = dZ2 @ p["W2"].T  # (N, H)
    dZ1 = dA1 * (Z1 > 0)  # the slope of the ReLU
    dW1, db1 = X.T @ dZ1, dZ1.sum(axis=0)
    return {"dZ2": dZ2, "W2": dW2, "b2": db2, "dA1": dA1, "dZ1": dZ1, "W1": dW1, "b1": db1}


# ---- the attempts of the thread ----------------------------------------------------------------------------


def formula_with_minus(X: Floats, y: Floats, p: Parameters) -> dict[str, Floats]:
    """-(2/N) Σ (y - l2) w2ᵀ xᵀ: the derivative of the ReLU is left out."""
    l2 = forward(X, p)[2]
    return {"W1": -2 / X.shape[0] * X.T @ ((y[:, None] - l2) * p["W2"].T)}


def formula_with_plus(X: Floats, y: Floats, p: Parameters) -> dict[str, Floats]:
    """(2/N) Σ (l2 - y) w2ᵀ xᵀ: the same with the sign moved."""
    l2 = forward(X, p)[2]
    return {"W1": 2 / X.shape[0] * X.T @ ((l2 - y[:, None]) * p["W2"].T)}


def first_code(X: Floats, y: Floats, p: Parameters) -> dict[str, Floats]:
    """The sum runs over the first axis of (H, N, D), which is the hidden units: (N, D) is left."""
    l2 = forward(X, p)[2]
    weighted = X * p["W2"].sum()  # = (x[None] * w2[..., None]).sum(0), without the (H, N, D) array
    return {"W1": 2 / X.shape[0] * (l2[:, 0] - y[None]).T * weighted}


def suggested_code(X: Floats, y: Floats, p: Parameters) -> dict[str, Floats]:
    """A reply's line: (H, D), the transpose, and no derivative of the ReLU."""
    l2 = forward(X, p)[2]
    return {"W1": -2 / X.shape[0] * ((y - l2[:, 0])[:, None] * p["W2"].T).T @ X}


def simplified_code(X: Floats, y: Floats, p: Parameters) -> dict[str, Floats]:
    """l2 - (y w2ᵀ) for (l2 - y) w2ᵀ: a parenthesis in the wrong place."""
    l2 = forward(X, p)[2]
    return {"W1": 2 / X.shape[0] * X.T @ (l2 - y[:, None] * p["W2"].T)}


def sign_forgotten(X: Floats, y: Floats, p: Parameters) -> dict[str, Floats]:
    """diff = y - l2 without the later × -1."""
    right = step_by_step(X, y, p)
    return {name: -right[name] for name in ("W1", "b1", "W2", "b2")}


def shape_for_count(X: Any, y: Floats, p: Parameters) -> dict[str, Floats]:
    """2 / x.shape: a number divided by a tuple."""
    l2 = forward(X, p)[2]
    return {"W1": (2 / X.shape) * X.T @ ((l2 - y[:, None]) * p["W2"].T)}


def targets_broadcast(X: Floats, y: Floats, p: Parameters) -> dict[str, Floats]:
    """out (N, 1) - y (N,) is (N, N): every output is compared with every target."""
    Z1, A1, out = forward(X, p)
    N = X.shape[0]
    diff = out - y if N <= 4096 else out - y.mean()  # the mean of each row, where (N, N) would not fit
    dZ2 = 2 / N * diff.mean(axis=1, keepdims=True)
    dZ1 = dZ2 @ p["W2"].T * (Z1 > 0)
    return {"W1": X.T @ dZ1, "b1": dZ1.sum(axis=0), "W2": A1.T @ dZ2, "b2": dZ2.sum(axis=0)}


def final_version(X: Floats, y: Floats, p: Parameters) -> dict[str, Floats]:
    """What the thread ends with."""
    right = step_by_step(X, y, p)
    return {name: right[name] for name in ("W1", "b1", "W2", "b2")}


@dataclass(frozen=True)
class Attempt:
    """One line of the thread: what it computes, the mistakes in it by id, what it printed as max and min."""

    words: str
    function: Callable[[Any, Floats, Parameters], dict[str, Floats]]
    causes: tuple[str, ...] = ()
    printed: str = ""


ATTEMPTS = (
    Attempt("the formula, - form", formula_with_minus, ("activation-derivative-missing",)),
    Attempt("the formula, + form", formula_with_plus, ("activation-derivative-missing",)),
    Attempt("the first code", first_code, ("sum-over-hidden",), "0.01 and -0.01"),
    Attempt(
        "the suggested code", suggested_code, ("transposed", "activation-derivative-missing"), "~71 and ~-81"
    ),
    Attempt("the simplified code", simplified_code, ("misplaced-parenthesis",)),
    Attempt("y - l2 without × -1", sign_forgotten, ("sign",)),
    Attempt("2/x.shape", shape_for_count, ("shape-for-count",)),
    Attempt("(N, 1) - (N,)", targets_broadcast, ("targets-broadcast",)),
    Attempt("the final version", final_version),
)


# ---- the lesson --------------------------------------------------------------------------------------------


def problem(data: str | None = None, full: bool = False) -> tuple[Floats, Floats, dict[str, Floats]]:
    """X (N, D) with pixels in [0, 1), y (N,) the digits as numbers, and parameters from a standard normal."""
    spec = data or (whole_mnist() if full else "mnist-subset")
    samples = load(spec, task="regression", test_fraction=0.0).train
    samples = samples.head(PUBLISHED_SAMPLES if full else SAMPLES)
    if samples.X.dtype == np.uint8:
        samples = replace(samples, scale=1 / 256)
    X, y = samples.batch(np.arange(len(samples)), dtype=np.float32 if full else np.float64)
    if y.ndim == 2 and y.shape[1] != 1:
        raise ValueError(f"lesson regression: expected one target a sample, got {y.shape[1]}")
    if not X.any():
        raise ValueError(
            "lesson regression: expected features other than 0, "
            f"got 0 throughout in {len(X):,} samples of {spec}; give others: the gradient of W1 is 0 here"
        )
    random = np.random.Generator(np.random.PCG64(0))
    p = {
        "W1": random.standard_normal((X.shape[1], HIDDEN)),
        "b1": np.zeros(HIDDEN),
        "W2": random.standard_normal((HIDDEN, 1)),
        "b2": np.zeros(1),
    }
    return X, y.reshape(-1), {name: value.astype(X.dtype) for name, value in p.items()}


def network(X: Floats, p: Parameters) -> MLP:
    """The library's network with the same parameters."""
    net = MLP([X.shape[1], HIDDEN, 1], loss="mse", dtype=X.dtype.name, device="cpu")
    net.load_parameters(p)
    return net


def run(out: Path | None = None, data: str | None = None, full: bool = False) -> Lesson:
    """The lesson; ``full`` on the thread's 50,000 images."""
    lesson = Lesson("regression", TITLE, SOURCE, LINK)
    X, y, p = problem(data, full)
    net = network(X, p)
    _steps(lesson, X, y, p, net)
    _attempts(lesson, X, y, p, net)
    if out is not None and X.shape[1] == 784:
        draw(X, y, p, out / "attempts.png")
        lesson.pictures.append(out / "attempts.png")
    return lesson


def _steps(lesson: Lesson, X: Floats, y: Floats, p: Parameters, net: MLP) -> None:
    lesson.section(
        f"Step by step, {len(X):,} samples",
        """"Don't implement an algorithm all in one line; break it down and implement it bit by bit", the
        thread ends. Then every intermediate has a gradient of its own shape, which can be looked at and
        compared.""",
    )
    ours = step_by_step(X, y, p)
    loss, gradients = net.loss_and_grad(X, y, intermediates=True)
    lesson.row("loss", float(loss))
    unit = float(np.finfo(X.dtype).eps)
    for name, value in ours.items():
        lesson.row(f"norm of {name if name[0] == 'd' else 'd' + name} {value.shape}", np.linalg.norm(value))
        distance, size = np.linalg.norm(value - gradients[name]), np.linalg.norm(gradients[name])
        lesson.check(
            f"{name if name[0] == 'd' else 'd' + name} is the library's", distance <= 50 * unit * size
        )
    checked = gradcheck(net, X[:100], y[:100], fast_mode=True)
    lesson.check("the library's agrees with differences (random directions, 100 samples)", checked)
    note = "the thread's weights have no seed: the order of magnitude"
    lesson.row("greatest entry of dW1", ours["W1"].max(), "~43", note)
    lesson.row("least entry of dW1", ours["W1"].min(), "~31", "its sign is lost in print")


def _attempts(lesson: Lesson, X: Floats, y: Floats, p: Parameters, net: MLP) -> None:
    lesson.section(
        "Every attempt of the thread, diagnosed",
        """Each is handed to handgrad.diagnose as it is, most of them the gradient of W1 alone.""",
    )
    for attempt in ATTEMPTS:
        verdict = diagnose(attempt.function, net, X, y)
        named = [cause for cause in verdict.causes if not cause.alternative]
        words = " with ".join(cause.id for cause in named) or "correct"
        lesson.row(attempt.words, words, note=_extremes(attempt, X, y, p))
        if verdict.correct or not named:
            lesson.check(f"{attempt.words}: right", verdict.correct and not attempt.causes)
            continue
        right = {cause.id for cause in named} == set(attempt.causes)
        lesson.check(f"{attempt.words}: {named[0].explanation} Right: {named[0].correction}", right)


def _extremes(attempt: Attempt, X: Floats, y: Floats, p: Parameters) -> str:
    try:
        W1 = attempt.function(X, y, p)["W1"]
    except TypeError as error:
        return str(error)
    words = f"{W1.shape}, from {W1.min():.3g} to {W1.max():.3g}"
    return f"{words}; in the thread {attempt.printed}" if attempt.printed else words


def draw(X: Floats, y: Floats, p: Parameters, path: Path) -> None:
    """What each attempt gives for one hidden unit, as an image of its 784 inputs."""
    from handgrad.plots import figure_at

    right = final_version(X, y, p)["W1"]
    alive = (X @ p["W1"] + p["b1"] > 0).mean(axis=0)
    unit = int(np.argmin(np.abs(alive - 0.4)))  # a unit whose ReLU is off for many samples
    shown = [attempt for attempt in (ATTEMPTS[-1], *ATTEMPTS[:-1]) if attempt.function is not shape_for_count]
    with figure_at((9.6, 5.6), path) as figure:
        figure.suptitle(
            f"Gradient of the weights into hidden unit {unit}: red positive, blue negative, white 0",
            fontsize=12,
            fontweight="bold",
            x=0.02,
            ha="left",
        )
        for axes, attempt in zip(figure.subplots(2, 4).ravel(), shown, strict=True):
            W1 = attempt.function(X, y, p)["W1"]
            if W1.shape == right.shape:
                image = W1[:, unit]
            elif W1.shape == right.shape[::-1]:
                image = W1[unit]
            else:
                image = W1[0]
            greatest = float(np.abs(image).max())
            axes.imshow(image.reshape(28, 28), cmap="RdBu_r", vmin=-greatest, vmax=greatest)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(attempt.words, fontsize=10)
            ids = "\n".join(attempt.causes) if attempt.causes else "correct"
            shape = "" if W1.shape == right.shape else f"\nshape {W1.shape}"
            shape += ": its first row" if W1.shape not in (right.shape, right.shape[::-1]) else ""
            axes.set_xlabel(f"{ids}{shape}\n±{greatest:.3g}", fontsize=8.5)
