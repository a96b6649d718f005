"""Staged computation: what nobody would differentiate whole, one small step at a time; and forks."""

from __future__ import annotations

import math
from pathlib import Path

from handgrad.circuits import Wire, backward, inputs, reciprocal, sigmoid, square, wires
from handgrad.gradients.gradcheck import gradcheck
from handgrad.lessons.lesson import Lesson

TITLE = "Staged computation, and forks"
SOURCE = "Version 1 Backpropagation, Wenqing's Machine Learning Blog, which follows cs231n"
LINK = "https://cs231n.github.io/optimization-2/"


def circuit(x: Wire, y: Wire) -> Wire:
    """(x + σ(y)) / (σ(x) + (x + y)²), every stage with a name."""
    sigy = sigmoid(y).named("sigy")
    num = (x + sigy).named("num")
    sigx = sigmoid(x).named("sigx")
    xpy = (x + y).named("xpy")
    xpysqr = square(xpy).named("xpysqr")
    den = (sigx + xpysqr).named("den")
    invden = reciprocal(den).named("invden")
    return (num * invden).named("f")


def by_hand(x: float, y: float) -> tuple[float, tuple[float, float]]:
    """The same in plain numbers: every stage forward, then every stage back; ``+=`` where x and y fork."""
    sigy = 1 / (1 + math.exp(-y))
    num = x + sigy
    sigx = 1 / (1 + math.exp(-x))
    xpy = x + y
    den = sigx + xpy**2
    f = num / den

    dnum, dden = 1 / den, -num / den**2
    dxpy = 2 * xpy * dden
    dx = dy = dxpy  # from xpy = x + y
    dx += sigx * (1 - sigx) * dden  # from sigx
    dx += dnum  # from num
    dy += sigy * (1 - sigy) * dnum  # from sigy
    return f, (dx, dy)


def run(out: Path | None = None) -> Lesson:
    """The lesson."""
    lesson = Lesson("staged", TITLE, SOURCE, LINK)
    lesson.section(
        "(x + σ(y)) / (σ(x) + (x + y)²) at 3, -4",
        """Every intermediate gets a name on the way forward and a gradient of the same name with a d
        before it on the way back. x is used in three places and y in two: what comes back from them adds
        up.""",
    )
    f = circuit(*inputs(x=3, y=-4))
    right = backward(f)
    values = {wire.name: wire.value for wire in wires(f)}
    for name in ("sigy", "num", "sigx", "xpy", "xpysqr", "den", "invden", "f"):
        lesson.row(name, values[name])
    for name in ("num", "invden", "den", "sigx", "xpysqr", "xpy", "sigy", "x", "y"):
        lesson.row(f"d{name}", right[name])
    _, gradients = by_hand(3.0, -4.0)
    same = max(abs(gradients[0] - right["x"]), abs(gradients[1] - right["y"])) < 1e-14
    lesson.check("the code by hand gives the same", same)
    lesson.check("and so do differences", gradcheck(by_hand, (3.0, -4.0)))
    lesson.draw_circuit(f, out, "staged.png", "f = (x + σ(y)) / (σ(x) + (x + y)²)")

    lesson.section(
        "The mistake: = for += at a fork (fork-overwritten)",
        """Then only the branch that comes back last counts: for x the one through num, for y the one
        through sigy. Nothing fails, and the numbers look like gradients.""",
    )
    wrong = backward(f, at_forks="overwrite")
    lesson.row("dx with = at forks", wrong["x"])
    lesson.row("dy with = at forks", wrong["y"])
    lesson.row("lost from dx", right["x"] - wrong["x"], note="the ways through sigx and xpy")
    lesson.row("lost from dy", right["y"] - wrong["y"], note="the way through xpy")
    broken = gradcheck(lambda x, y: (by_hand(x, y)[0], (wrong["x"], wrong["y"])), (3.0, -4.0))
    lesson.check("the gradient check refuses it", not broken)
    return lesson
