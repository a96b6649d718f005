"""A curve through three points: one input, two softplus units, sum of squared residuals.

    predicted = w3 softplus(w1 x + b1) + w4 softplus(w2 x + b2) + b3        SSR = Σ (observed - predicted)²

In the library's names W1 = [[w1, w2]], b1 = [b1, b2], W2 = [[w3], [w4]], b2 = [b3].  At first only b3 is
trained, and the six others are frozen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.gradients.explain import explain
from handgrad.gradients.gradcheck import gradcheck
from handgrad.lessons.lesson import Lesson
from handgrad.network import MLP
from handgrad.ops.optimizer import SGD, Adam

TITLE = "The softplus curve through three points"
SOURCE = "Version 3 Backpropagation, Wenqing's Machine Learning Blog, which follows StatQuest"
LINK = "https://www.youtube.com/watch?v=IN2XmBhILt4"

Floats = NDArray[Any]
DOSAGES = np.array([[0.0], [0.5], [1.0]])
OBSERVED = np.array([[0.0], [1.0], [0.0]])
LEARNING_RATE = 0.1


def network(b3: float = 0.0) -> MLP:
    """The published network: everything but b3 is where it should be, and frozen."""
    net = MLP(
        [1, 2, 1], activation="softplus", loss="mse", reduction="sum", dtype="float64", device="cpu"
    )  # the sum of the squared errors is the SSR
    net.load_parameters(
        {
            "W1": np.array([[3.34, -3.53]]),
            "b1": np.array([-1.43, 0.57]),
            "W2": np.array([[-1.22], [-2.30]]),
            "b2": np.array([b3]),
        }
    )
    net.freeze("W1", "b1", "W2")
    return net


def ssr(net: MLP) -> float:
    """The sum of squared residuals."""
    return float(net.loss(DOSAGES, OBSERVED))


def slope(net: MLP) -> float:
    """d SSR / d b3."""
    return float(net.loss_and_grad(DOSAGES, OBSERVED)[1]["b2"][0])


def by_hand(b3: float) -> float:
    """The same from the chain rule as it is published: Σ -2 (observed - predicted) · 1."""
    predicted = network(b3).predict(DOSAGES)
    return float(np.sum(-2 * (OBSERVED - predicted) * 1))


def run(out: Path | None = None) -> Lesson:
    """The lesson."""
    lesson = Lesson("curve-fit", TITLE, SOURCE, LINK)
    _at_the_start(lesson)
    steps = _descent(lesson)
    _all_seven(lesson)
    trained = _random_starts(lesson)
    if out is not None:
        draw_curves(steps, out / "curves.png")
        draw_starts(trained, out / "starts.png")
        explain(network(), DOSAGES, OBSERVED).draw(out / "network.png")
        lesson.pictures += [out / "curves.png", out / "starts.png", out / "network.png"]
    return lesson


def _at_the_start(lesson: Lesson) -> None:
    lesson.section(
        "b3 = 0",
        """Each unit bends its softplus with its own weights; the sum of the two curves has the right shape
        and lies 2.6 too low. Moving it up is what b3 does.""",
    )
    net = network()
    for dosage, value, published in zip(
        (0, 0.5, 1), net.predict(DOSAGES)[:, 0], ("-2.6", "-1.6", "-2.61"), strict=True
    ):
        lesson.row(f"predicted at dosage {dosage:g}", value, published)
    lesson.row("SSR at b3 = 0", ssr(net), "20.4")
    lesson.row("SSR at b3 = 1", ssr(network(1.0)))
    lesson.row("slope at b3 = 0", slope(net), "-15.7")
    lesson.check("the chain rule by hand gives the same slope", abs(by_hand(0.0) - slope(net)) < 1e-12)


def _descent(lesson: Lesson) -> list[tuple[float, float, float]]:
    """(b3, SSR, slope) of every step."""
    lesson.section(
        "Gradient descent on b3 alone, learning rate 0.1",
        """New b3 = old b3 - slope × 0.1. The SSR is a parabola in b3 with curvature 2 · 3, so each step
        removes 60 % of what is left.""",
    )
    net, optimizer = network(), SGD(lr=LEARNING_RATE)
    before = {name: view.copy() for name, view in net.parameters.items()}
    steps = []
    for _ in range(40):
        steps.append((float(net.parameters["b2"][0]), ssr(net), slope(net)))
        net.train_step(DOSAGES, OBSERVED, optimizer)
    lesson.row("b3 after one step", steps[1][0], "1.57")
    lesson.row("slope there", steps[1][2], "-6.26")
    lesson.row("b3 after two steps", steps[2][0], "2.19")
    optimum = float(net.parameters["b2"][0])
    lesson.row("optimal b3", optimum, "2.61")
    lesson.row("the optimal value, as the text has it", optimum, "2.16", "misprint for 2.61")
    lesson.row("SSR at the optimum", ssr(net))
    lesson.row("slope at the optimum", slope(net))
    same = all(np.array_equal(before[name], net.parameters[name]) for name in ("W1", "b1", "W2"))
    lesson.check("the six frozen parameters have not changed by a bit", same)
    exact = float(np.mean(OBSERVED - network().predict(DOSAGES)))
    lesson.check("it is the mean residual at b3 = 0, as it must be", abs(optimum - exact) < 1e-12)
    return steps


def _all_seven(lesson: Lesson) -> None:
    lesson.section(
        "All seven gradients at b3 = 0",
        "Freezing stops the steps, not the gradients: one backward pass gives all of them.",
    )
    net = network()
    _, gradients = net.loss_and_grad(DOSAGES, OBSERVED)
    values = [gradients["W1"][0, 0], gradients["b1"][0], gradients["W1"][0, 1], gradients["b1"][1]]
    values += [gradients["W2"][0, 0], gradients["W2"][1, 0], gradients["b2"][0]]
    for name, value in zip(("w1", "b1", "w2", "b2", "w3", "w4", "b3"), values, strict=True):
        lesson.row(f"dSSR/d{name}", value)
    lesson.check("differences agree with all seven", gradcheck(net, DOSAGES, OBSERVED))


def from_random_start(seed: int) -> MLP:
    """All seven parameters from a random start, trained until the curve goes through the points."""
    net = MLP(
        [1, 2, 1],
        activation="softplus",
        loss="mse",
        reduction="sum",
        init="glorot",
        dtype="float64",
        device="cpu",
        seed=seed,
    )
    optimizer = Adam(lr=0.2)
    for _ in range(1000):
        net.train_step(DOSAGES, OBSERVED, optimizer)
    return net


def _random_starts(lesson: Lesson) -> list[MLP]:
    lesson.section(
        "All seven parameters from random starts (Adam, learning rate 0.2, 1,000 steps)",
        """Seven parameters fit three points in many ways: every start ends with other weights and another
        curve through the same points.""",
    )
    trained = [from_random_start(seed) for seed in range(3)]
    for seed, net in enumerate(trained):
        lesson.row(f"SSR from start {seed}", ssr(net))
        lesson.check(
            f"start {seed} fits the three points", np.abs(net.predict(DOSAGES) - OBSERVED).max() < 0.1
        )
    return trained


# ---- pictures --------------------------------------------------------------------------------------------

BLUE, ORANGE, GREEN, PINK = "#4c72b0", "#d98200", "#2a9d6f", "#b0457b"


def draw_curves(steps: list[tuple[float, float, float]], path: Path) -> None:
    """The curves of the units and their sum as b3 rises; the SSR over b3 with the steps and their slopes."""
    from handgrad.plots import figure_at

    x = np.linspace(0, 1, 101)[:, None]
    _, gradients = network().loss_and_grad(x, np.zeros_like(x), intermediates=True)
    units = gradients["A1"] * network().parameters["W2"][:, 0]  # (101, 2)
    with figure_at((10.2, 4.4), path) as figure:
        curves, parabola = figure.subplots(1, 2)
        curves.set_title("Blue and orange add up to green; b3 lifts it")
        curves.plot(x, units[:, 0], color=BLUE, linewidth=1.6)
        curves.plot(x, units[:, 1], color=ORANGE, linewidth=1.6)
        curves.text(0.24, -2.28, "blue: w3 softplus(w1 x + b1)", color=BLUE, fontsize=9)
        curves.text(0.24, -2.5, "orange: w4 softplus(w2 x + b2)", color=ORANGE, fontsize=9)
        chosen = [steps[0], steps[1], steps[2], steps[-1]]
        for i, (b3, _, _) in enumerate(chosen):
            strength = 0.35 + 0.65 * i / (len(chosen) - 1)
            y = network(b3).predict(x)[:, 0]
            curves.plot(x, y, color=GREEN, linewidth=2.2, alpha=strength)
            at = 12 if i == 3 else 0
            curves.annotate(
                f"b3 = {b3:.3g}",
                (1.0, y[-1]),
                (6, at - 6 * (i == 2)),
                textcoords="offset points",
                color=GREEN,
                fontsize=9,
                va="center",
                annotation_clip=False,
            )
        curves.plot(DOSAGES, OBSERVED, "o", color="#222222", markersize=8, zorder=5)
        curves.annotate("observed", (0.5, 1.0), (9, 4), textcoords="offset points", fontsize=9)
        curves.set_xlabel("dosage")
        curves.set_xlim(-0.03, 1.02)
        parabola.set_title("Gradient descent on b3")
        biases = np.linspace(-0.4, 4.2, 100)
        parabola.plot(biases, [ssr(network(bias)) for bias in biases], color=PINK, linewidth=2.2)
        for i, (value, size, rise) in enumerate(steps[:4]):
            reach = np.array([-0.45, 0.45])
            parabola.plot(value + reach, size + rise * reach, color="#555555", linewidth=1.2)
            parabola.plot(value, size, "o", color="#222222", markersize=6, zorder=5)
            if i < 3:
                text = f"b3 = {value:.3g}, slope {rise:.3g}".replace("-", "−")
                place = (10, 4) if i == 0 else (-9, -11)
                parabola.annotate(
                    text,
                    (value, size),
                    place,
                    textcoords="offset points",
                    fontsize=9,
                    ha="left" if i == 0 else "right",
                )
        parabola.annotate(
            f"optimum b3 = {steps[-1][0]:.3g}",
            (steps[-1][0], 0.0),
            (steps[-1][0] - 0.15, 8.0),
            arrowprops={"arrowstyle": "->", "color": "#777777"},
            fontsize=9,
            ha="left",
        )
        parabola.set_xlabel("b3")
        parabola.set_ylabel("sum of squared residuals")
        parabola.set_ylim(-1.8, 26)


def draw_starts(trained: list[MLP], path: Path) -> None:
    """The curves that random starts lead to."""
    from handgrad.plots import figure_at, spread

    x = np.linspace(-0.2, 1.2, 281)[:, None]
    with figure_at((5.6, 3.8), path) as figure:
        axes = figure.subplots()
        axes.set_title("All seven parameters trained")
        lines = {f"start {i}": net.predict(x)[:, 0] for i, net in enumerate(trained)}
        colours = dict(zip(lines, (GREEN, BLUE, ORANGE), strict=True))
        for name, y in lines.items():
            axes.plot(x, y, color=colours[name], linewidth=2)
        ends = {name: float(y[0]) for name, y in lines.items()}
        low, high = min(ends.values()) - 0.3, max(float(y.max()) for y in lines.values()) + 0.3
        heights = spread({name: (end - low) / (high - low) for name, end in ends.items()}, gap=0.07)
        for name, height in heights.items():
            y = low + height * (high - low)
            axes.text(x[0, 0] - 0.02, y, name, color=colours[name], va="center", ha="right")
        axes.set_ylim(low, high)
        axes.set_xlim(-0.42, 1.22)
        axes.plot(DOSAGES, OBSERVED, "o", color="#222222", markersize=8, zorder=5)
        axes.annotate("observed", (0.5, 1.0), (10, 6), textcoords="offset points", fontsize=10)
        axes.set_xlabel("dosage")
        axes.set_ylabel("effect")
