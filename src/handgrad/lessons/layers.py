"""Backpropagation for any number of layers, each with an activation of its own, as one recursion.

Z_1 = X,   Z_{i+1} = σ_i(Z_i W_i)                        i = 1 … L
G_{L+1} = ∂loss/∂Z_{L+1},   G_i = (G_{i+1} ∘ σ_i′) W_iᵀ    i = L … 1
∇W_i = Z_iᵀ (G_{i+1} ∘ σ_i′)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.gradients.explain import explain
from handgrad.gradients.gradcheck import gradcheck
from handgrad.lessons.lesson import Lesson
from handgrad.network import MLP
from handgrad.ops import activation
from handgrad.ops import loss as loss_op

TITLE = "The recursion for any number of layers"
SOURCE = "Version 2 Backpropagation, Wenqing's Machine Learning Blog: CMU 10-714, manual neural networks"
LINK = "https://dlsyscourse.org"

Floats = NDArray[Any]
DEPTH = 8  # layers of the networks whose gradients vanish or explode


def forward(X: Floats, weights: Sequence[Floats], functions: Sequence[str]) -> list[Floats]:
    """Z_1 … Z_{L+1}."""
    Z = [X]
    for W, function in zip(weights, functions, strict=True):
        Z.append(activation.forward(Z[-1] @ W, function))
    return Z


def backward(
    Z: Sequence[Floats], weights: Sequence[Floats], functions: Sequence[str], G: Floats
) -> tuple[list[Floats], list[Floats]]:
    """(G_1 … G_{L+1}, ∇W_1 … ∇W_L) from G_{L+1}; every σ′ comes from the output that is kept."""
    Gs: list[Floats] = [G]
    gradients: list[Floats] = []
    for i in range(len(weights) - 1, -1, -1):
        delta = activation.backward(Z[i + 1], Gs[0], functions[i])  # G_{i+1} ∘ σ_i′
        gradients.insert(0, Z[i].T @ delta)
        Gs.insert(0, delta @ weights[i].T)
    return Gs, gradients


def loss_and_gradients(
    X: Floats, y: Any, weights: Sequence[Floats], functions: Sequence[str]
) -> tuple[float, list[Floats]]:
    """Mean cross entropy and ∇W_1 … ∇W_L."""
    Z = forward(X, weights, functions)
    loss, G = loss_op.forward_backward(Z[-1], y, "cross_entropy")
    return float(loss), backward(Z, weights, functions, G)[1]


def run(out: Path | None = None) -> Lesson:
    """The lesson."""
    lesson = Lesson("layers", TITLE, SOURCE, LINK)
    _any_depth(lesson)
    _two_namings(lesson)
    _depth(lesson, out)
    return lesson


def problem(sizes: Sequence[int], N: int = 12) -> tuple[Floats, Any, list[Floats]]:
    """X, y and weights for these widths."""
    random = np.random.Generator(np.random.PCG64(len(sizes)))
    weights = [random.standard_normal((a, b)) / np.sqrt(a) for a, b in pairwise(sizes)]
    return random.standard_normal((N, sizes[0])), random.integers(0, sizes[-1], N), weights


def _any_depth(lesson: Lesson) -> None:
    lesson.section(
        "One loop, any depth",
        """The forward loop keeps every Z_i; the backward loop needs nothing else. Below, networks of 1 to
        5 layers, whose activations differ from layer to layer, against differences, and where one
        activation is used throughout, against the library's network.""",
    )
    hidden = ("tanh", "relu", "sigmoid", "softplus")
    for L in range(1, 6):
        sizes = [*[6, 7, 5, 8, 9][:L], 4]
        X, y, weights = problem(sizes)
        functions = [*hidden[: L - 1], "identity"]
        checked = gradcheck(
            lambda *W, X=X, y=y, functions=functions: loss_and_gradients(X, y, W, functions),
            tuple(weights),
            method="central",
            entries=10,
        )
        words = ", ".join(functions[:-1]) or "no hidden layer"
        lesson.check(f"L = {L} ({words}): {sum(checked.checked.values())} entries agree", checked)
        net = MLP(sizes, activation="tanh", loss="cross_entropy", bias=False, dtype="float64", device="cpu")
        net.load_parameters({f"W{i + 1}": W for i, W in enumerate(weights)})
        _, own = net.loss_and_grad(X, y)
        _, ours = loss_and_gradients(X, y, weights, ["tanh"] * (L - 1) + ["identity"])
        difference = max(float(np.abs(g - own[f"W{i + 1}"]).max()) for i, g in enumerate(ours))
        lesson.row(f"difference from the library, L = {L}", difference)
        lesson.check(f"L = {L}: the library's network gives the same", difference < 1e-14)


def _two_namings(lesson: Lesson) -> None:
    lesson.section(
        "Two namings of G",
        """The slides' G_i is the gradient on the activations Z_i; the assignment counts X, Z1, Z2 and lets
        G1 stand after the mask, on the pre-activation: G1 = 1{Z1 > 0} ∘ (G2 W2ᵀ). The slides' G_2, masked,
        is the assignment's G1; both give the same ∇W.""",
    )
    X, y, weights = problem([6, 7, 4])
    functions = ["relu", "identity"]
    Z = forward(X, weights, functions)
    _, G3 = loss_op.forward_backward(Z[2], y, "cross_entropy")
    Gs, gradients = backward(Z, weights, functions, G3)
    assignment = (Z[1] > 0) * (G3 @ weights[1].T)
    lesson.row("norm of the slides' G_2", np.linalg.norm(Gs[1]))
    lesson.row("norm of the assignment's G1", np.linalg.norm(assignment))
    lesson.check("the mask makes the one of the other", np.allclose((Z[1] > 0) * Gs[1], assignment))
    lesson.check("Xᵀ G1 is ∇W_1", np.allclose(X.T @ assignment, gradients[0]))


def _depth(lesson: Lesson, out: Path | None) -> None:
    lesson.section(
        f"Vanishing and exploding gradients, {DEPTH} layers of 50 units",
        """On the way back every layer multiplies by W_iᵀ and by σ_i′. A sigmoid's slope is at most 1/4, so
        the gradient shrinks at least so fast with weights of the usual size; ReLU with He's weights keeps
        its norm; weights three times as large enlarge it in every layer. handgrad explain warns of
        both.""",
    )
    curves = {}
    for name, function, factor in (
        ("sigmoid", "sigmoid", 1.0),
        ("relu", "relu", 1.0),
        ("relu, weights × 3", "relu", 3.0),
    ):
        net, X, y = deep_network(function, factor)
        _, gradients = net.loss_and_grad(X, y, intermediates=True)
        norms = [float(np.linalg.norm(gradients[f"dZ{i}"])) for i in range(1, DEPTH + 1)]
        curves[name] = [norm / norms[-1] for norm in norms]
        lesson.row(f"{name}: norm of dZ1 over that of dZ{DEPTH}", curves[name][0])
        found = {warning.id for warning in explain(net, X, y).warnings} & {
            "vanishing-gradient",
            "exploding-gradient",
        }
        expected = {"sigmoid": {"vanishing-gradient"}, "relu": set()}.get(name, {"exploding-gradient"})
        words = f"warns: {found.copy().pop().replace('-', ' ')}" if found else "has nothing to warn of"
        lesson.check(f"{name}: explain {words}", found == expected)
    if out is not None:
        _draw(curves, out / "depth.png")
        lesson.pictures.append(out / "depth.png")


def deep_network(function: str, factor: float) -> tuple[MLP, Floats, Any]:
    """A deep classifier with He's weights times ``factor``, and a batch."""
    sizes = [20, *[50] * (DEPTH - 1), 4]
    net = MLP(sizes, activation=function, loss="cross_entropy", dtype="float64", device="cpu", seed=2)
    for name, view in net.parameters.items():
        if name.startswith("W"):
            view *= factor
    X, y, _ = problem(sizes, N=64)
    return net, X, y


def _draw(curves: dict[str, list[float]], path: Path) -> None:
    from handgrad.plots import figure_at

    with figure_at((6.4, 3.8), path) as figure:
        axes = figure.subplots()
        axes.set_title("Norm of the gradient dZ on its way back")
        for (name, values), colour in zip(curves.items(), ("#c44e00", "#2a9d6f", "#4c72b0"), strict=True):
            layers = np.arange(1, len(values) + 1)
            axes.plot(layers, values, color=colour, marker="o", markersize=4, linewidth=2)
            below = values[2] < 0.5
            place = (8, -14 if below else 8)
            axes.annotate(name, (3, values[2]), place, textcoords="offset points", color=colour)
        axes.set_yscale("log")
        axes.set_xlabel("layer   (← backward)")
        axes.set_ylabel(f"times that of layer {DEPTH}")
        axes.grid(axis="y")
