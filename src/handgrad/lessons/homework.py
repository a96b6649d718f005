"""A homework's two-layer regression for one point: its tables in numerator layout, and its five steps.

    x → Linear_1 → f = ReLU → Linear_2 → g = identity → ŷ,      l = ‖y - ŷ‖²

Vectors are columns, W is (out, in).  In numerator layout the derivative of a number by a column is a row,
that of a column by a column has a row for each output, and ∂l/∂W has the shape of Wᵀ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.gradients.gradcheck import gradcheck
from handgrad.lessons.lesson import Lesson
from handgrad.network import MLP

TITLE = "The homework: tables in numerator layout, and five steps"
SOURCE = "Homework 1: Backpropagation, Deep Learning (NYU) 2021, answers of a reader"
LINK = "https://atcold.github.io/NYU-DLSP21/"

Floats = NDArray[Any]
n, h, K = 5, 4, 3


def problem() -> dict[str, Floats]:
    """Columns x (n, 1) and y (K, 1); W1 (h, n), b1 (h, 1), W2 (K, h), b2 (K, 1)."""
    random = np.random.Generator(np.random.PCG64(3))
    shapes = {"x": (n, 1), "y": (K, 1), "W1": (h, n), "b1": (h, 1), "W2": (K, h), "b2": (K, 1)}
    return {name: random.standard_normal(shape) for name, shape in shapes.items()}


def forward(x: Floats, y: Floats, W1: Floats, b1: Floats, W2: Floats, b2: Floats) -> dict[str, Floats]:
    """The forward table: the output of every row."""
    z1 = W1 @ x + b1
    z2 = np.maximum(z1, 0)
    z3 = W2 @ z2 + b2
    y_hat = z3
    return {"z1": z1, "z2": z2, "z3": z3, "y_hat": y_hat, "loss": np.sum((y - y_hat) ** 2)}


def numerator_layout(
    x: Floats, y: Floats, W1: Floats, b1: Floats, W2: Floats, b2: Floats
) -> dict[str, Floats]:
    """The backward table, which the source leaves out: every answer in the given variables alone."""
    values = forward(x, y, W1, b1, W2, b2)
    z2 = values["z2"]
    dl_dy_hat = 2 * (values["y_hat"] - y).T  # (1, K)
    dy_hat_dz3 = np.eye(K)  # (K, K), g being the identity
    dz2_dz1 = np.diagflat(values["z1"] > 0).astype(float)  # (h, h)
    dl_dz3 = dl_dy_hat @ dy_hat_dz3  # (1, K)
    dl_dz1 = dl_dz3 @ W2 @ dz2_dz1  # (1, h)
    return {
        "W2": z2 @ dl_dz3,  # (h, K)
        "b2": dl_dz3,  # (1, K)
        "W1": x @ dl_dz1,  # (n, h)
        "b1": dl_dz1,  # (1, h)
    }


FORWARD_TABLE = (
    ("Linear_1", "x", "z1 = W1 x + b1"),
    ("f", "z1", "z2 = ReLU(z1)"),
    ("Linear_2", "z2", "z3 = W2 z2 + b2"),
    ("g", "z3", "ŷ = z3"),
    ("Loss", "ŷ, y", "l = ‖y - ŷ‖²"),
)
BACKWARD_TABLE = (
    ("W2", "z2 (∂l/∂ŷ)(∂ŷ/∂z3),  z2 = ReLU(W1 x + b1)", (h, K), "(h, K)"),
    ("b2", "(∂l/∂ŷ)(∂ŷ/∂z3)", (1, K), "(1, K)"),
    ("W1", "x (∂l/∂ŷ)(∂ŷ/∂z3) W2 (∂z2/∂z1)", (n, h), "(n, h)"),
    ("b1", "(∂l/∂ŷ)(∂ŷ/∂z3) W2 (∂z2/∂z1)", (1, h), "(1, h)"),
)


class Accumulator:
    """Gradients as PyTorch keeps them: ``backward`` adds to what is there until ``zero`` clears it."""

    def __init__(self, net: MLP) -> None:
        self.net = net
        self.gradients = {name: np.zeros_like(view) for name, view in net.parameters.items()}

    def zero(self) -> None:
        """Step 1."""
        for gradient in self.gradients.values():
            gradient[...] = 0

    def backward(self, X: Floats, y: Floats) -> None:
        """Step 4."""
        for name, gradient in self.net.loss_and_grad(X, y)[1].items():
            self.gradients[name] += gradient

    def update(self, lr: float) -> None:
        """Step 5."""
        for name, view in self.net.parameters.items():
            view -= lr * self.gradients[name]


def network(given: dict[str, Floats], reduction: str = "sum") -> MLP:
    """The library's network with the same parameters: rows for columns, W (in, out)."""
    net = MLP([n, h, K], loss="mse", reduction=reduction, dtype="float64", device="cpu")
    net.load_parameters(
        {name: given[name].T if name[0] == "W" else given[name][:, 0] for name in ("W1", "b1", "W2", "b2")}
    )
    return net


def run(out: Path | None = None) -> Lesson:
    """The lesson."""
    lesson = Lesson("homework", TITLE, SOURCE, LINK)
    given = problem()
    _forward(lesson, given)
    _backward(lesson, given)
    _mean_and_sum(lesson, given)
    _five_steps(lesson, given)
    return lesson


def _forward(lesson: Lesson, given: dict[str, Floats]) -> None:
    lesson.section("Forward", f"One point; n = {n} inputs, h = {h} hidden units, K = {K} outputs.")
    for layer, argument, formula in FORWARD_TABLE:
        lesson.row(f"{layer}({argument})", formula)
    values = forward(**given)
    net = network(given)
    lesson.row("l", values["loss"])
    same = np.allclose(net.forward(given["x"].T), values["y_hat"].T)
    lesson.check("the library's network gives the same ŷ, as a row", same)


def _backward(lesson: Lesson, given: dict[str, Floats]) -> None:
    lesson.section(
        "Backward",
        """The source prints the forward table a second time here. This is the answer: a row vector walks
        back through Jacobians, and what multiplied W on the way forward comes to stand in front. Each is
        the transpose of the gradient that has the shape of the parameter.""",
    )
    answers = numerator_layout(**given)
    _, own = network(given).loss_and_grad(given["x"].T, given["y"].T)
    for name, formula, shape, words in BACKWARD_TABLE:
        lesson.row(f"∂l/∂{name}", formula, note=words)
        found = answers[name]
        in_rows = found if name[0] == "W" else found[0]  # (in, out) is what numerator layout gives for W
        right = found.shape == shape and np.allclose(in_rows, own[name], rtol=1e-12, atol=1e-14)
        lesson.check(f"∂l/∂{name} has shape {words} and is the library's gradient", right)
    names = ("W1", "b1", "W2", "b2")
    parameters = tuple(given[name] for name in names)

    def loss(*parameters: Floats) -> Any:
        return forward(given["x"], given["y"], *parameters)["loss"]

    def transposes(*parameters: Floats) -> list[Floats]:
        found = numerator_layout(given["x"], given["y"], *parameters)
        return [found[name].T for name in names]

    lesson.check("differences agree with the transposes", gradcheck(loss, parameters, gradient=transposes))
    mistaken = gradcheck(loss, parameters, gradient=lambda *p: [g.T for g in transposes(*p)])
    lesson.check("and not without them: missing transposes are wrong", not mistaken)


def _mean_and_sum(lesson: Lesson, given: dict[str, Floats]) -> None:
    lesson.section(
        "‖y - ŷ‖² and the mean squared error",
        """A framework's MSE is the mean over all elements: ‖·‖² is K times that for one point, and N K
        times for a batch of N. Gradients differ by the same factor, and so does the learning rate that
        fits.""",
    )
    random = np.random.Generator(np.random.PCG64(4))
    for N in (1, 6):
        X, Y = random.standard_normal((N, n)), random.standard_normal((N, K))
        (total, sums), (mean, means) = (network(given, r).loss_and_grad(X, Y) for r in ("sum", "mean"))
        words = "a point" if N == 1 else f"a batch of {N}"
        lesson.row(f"sum over mean for {words}, K = {K}", float(total / mean))
        factor = np.linalg.norm(sums["W1"]) / np.linalg.norm(means["W1"])
        lesson.row(f"the same of the gradients for {words}", factor)


def _five_steps(lesson: Lesson, given: dict[str, Floats]) -> None:
    lesson.section(
        "The five steps of training",
        """1 zero the gradients; 2 forward; 3 loss; 4 backward; 5 update, W ← W - γ ∂l/∂W. Backward adds to
        the gradients that are there, so that leaving out step 1 gives twice the gradient the second time,
        three times the third (not-zeroed).""",
    )
    X, Y = given["x"].T, given["y"].T
    net = network(given)
    kept = Accumulator(net)
    kept.zero()
    before = float(net.loss(X, Y))
    kept.backward(X, Y)
    once = {name: gradient.copy() for name, gradient in kept.gradients.items()}
    kept.backward(X, Y)
    twice = [np.linalg.norm(kept.gradients[name]) / np.linalg.norm(once[name]) for name in once]
    lesson.row("second backward without zeroing, over the first", max(twice))
    kept.zero()
    kept.backward(X, Y)
    same = all(np.array_equal(kept.gradients[name], once[name]) for name in once)
    lesson.check("zeroed before, it is the gradient again", same and min(twice) == max(twice))
    kept.update(0.01)
    lesson.row("l before the update", before)
    lesson.row("l after the update with γ = 0.01", float(net.loss(X, Y)))
    lesson.check("the five steps lower the loss", float(net.loss(X, Y)) < before)
