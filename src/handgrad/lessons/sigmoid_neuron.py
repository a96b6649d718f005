"""A neuron with a sigmoid: as one gate, and as the chain of single gates that the sigmoid is made of."""

from __future__ import annotations

from pathlib import Path

from handgrad.circuits import Wire, backward, exp, inputs, reciprocal, sigmoid
from handgrad.lessons.lesson import Lesson

TITLE = "A sigmoid neuron"
SOURCE = "Version 1 Backpropagation, Wenqing's Machine Learning Blog, which follows cs231n"
LINK = "https://cs231n.github.io/optimization-2/"


def dot_product() -> Wire:
    """w0 x0 + w1 x1 + w2 at the published weights and inputs."""
    w0, x0, w1, x1, w2 = inputs(w0=2, x0=-1, w1=-3, x1=-2, w2=-3)
    return (w0 * x0 + w1 * x1 + w2).named("dot")


def run(out: Path | None = None) -> Lesson:
    """The lesson."""
    lesson = Lesson("sigmoid-neuron", TITLE, SOURCE, LINK)
    lesson.section(
        "One gate: f = σ(dot)",
        """The slope of the sigmoid is (1 - f) f: it needs the output alone, and no exponential again.""",
    )
    f = sigmoid(dot_product()).named("f")
    whole = backward(f)
    lesson.row("dot", f.sources[0].value, "1.0")
    lesson.row("f", f.value, "0.73")
    lesson.row("ddot", whole["dot"], "0.2")
    for name in ("x0", "x1", "w0", "w1", "w2"):
        lesson.row(f"d{name}", whole[name])
    lesson.draw_circuit(f, out, "sigmoid_gate.png", "the sigmoid as one gate")

    lesson.section(
        "Four gates: f = 1 / (1 + e^-dot)",
        """a x with a = -1, then e^x, then c + x with c = 1, then 1/x. Each multiplies what comes back by
        its own slope: -1/x², 1, e^x, -1. The product is (1 - f) f.""",
    )
    negated = -dot_product()
    power = exp(negated)
    denominator = power + 1
    f = reciprocal(denominator).named("f")
    chain = backward(f)
    lesson.row("e^-dot", power.value)
    lesson.row("1 + e^-dot", denominator.value)
    lesson.row("1 / (1 + e^-dot)", f.value, "0.73")
    lesson.row("gradient on 1 + e^-dot", denominator.gradient)
    lesson.row("gradient on e^-dot", power.gradient)
    lesson.row("gradient on -dot", negated.gradient)
    lesson.row("gradient on dot", chain["dot"], "0.2")
    names = ("dot", "x0", "x1", "w0", "w1", "w2")
    same = all(abs(chain[name] - whole[name]) < 1e-15 for name in names)
    lesson.check("one gate and four gates give the same gradients", same)
    lesson.draw_circuit(f, out, "single_gates.png", "the sigmoid as four gates")
    return lesson
