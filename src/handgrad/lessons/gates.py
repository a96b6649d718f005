"""Gates: what each does on the way forward and back, alone and in a circuit; the same for matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from handgrad.circuits import Wire, backward, inputs, maximum
from handgrad.gradients.gradcheck import gradcheck
from handgrad.lessons.lesson import Lesson
from handgrad.ops import linear

TITLE = "Gates and circuits"
SOURCE = "Version 1 Backpropagation, Wenqing's Machine Learning Blog, which follows cs231n"
LINK = "https://cs231n.github.io/optimization-2/"


def patterns() -> Wire:
    """(x y + max(z, w)) 2 at the published point."""
    x, y, z, w = inputs(x=3, y=-4, z=2, w=-1)
    return ((x * y).named("xy") + maximum(z, w).named("max")).named("sum") * 2


def run(out: Path | None = None) -> Lesson:
    """The lesson."""
    lesson = Lesson("gates", TITLE, SOURCE, LINK)
    _single_gates(lesson)
    _compound(lesson, out)
    _patterns(lesson, out)
    _matrices(lesson)
    return lesson


def _single_gates(lesson: Lesson) -> None:
    lesson.section(
        "Three gates",
        """A gate knows its inputs and its output, and so the slope of the one by the other. Multiplied by
        the gradient that comes back to its output, that is the gradient on its inputs. The maximum has a
        kink where its inputs are equal; the document's rule, >= for both, then gives both the whole
        gradient.""",
    )
    x, y = inputs(x=4, y=-3)
    product = x * y
    found = backward(product)
    lesson.row("x y", product.value, "-12")
    lesson.row("d(x y)/dx", found["x"], "-3")
    lesson.row("d(x y)/dy", found["y"], "4")
    found = backward(x + y)
    lesson.row("d(x + y)/dx", found["x"], "1")
    lesson.row("d(x + y)/dy", found["y"], "1")
    x, y = inputs(x=4, y=2)
    greatest = maximum(x, y)
    found = backward(greatest)
    lesson.row("max(x, y)", greatest.value, "4")
    lesson.row("dmax/dx", found["x"], "1")
    lesson.row("dmax/dy", found["y"], "0")


def _compound(lesson: Lesson, out: Path | None) -> None:
    lesson.section(
        "A compound expression: (x + y) z at -2, 5, -4",
        """q = x + y is a stage of its own: the gradient on q is the slope of f = q z by q, and the add gate
        hands it on to x and y unchanged.""",
    )
    x, y, z = inputs(x=-2, y=5, z=-4)
    q = (x + y).named("q")
    f = (q * z).named("f")
    found = backward(f)
    lesson.row("q", q.value, "3")
    lesson.row("f", f.value, "-12")
    for name, published in (("q", "-4"), ("x", "-4"), ("y", "-4"), ("z", "3")):
        lesson.row(f"d{name}", found[name], published)
    lesson.draw_circuit(f, out, "compound.png", "f = (x + y) z")


def _patterns(lesson: Lesson, out: Path | None) -> None:
    lesson.section(
        "The patterns of the backward flow: (x y + max(z, w)) 2",
        """An add gate hands its gradient to all inputs, a max gate to the greatest alone, a multiply gate
        swaps its inputs: the factor of a small input is the large one, so the small one gets the large
        gradient.""",
    )
    f = patterns()
    found = backward(f)
    lesson.row("(x y + max(z, w)) 2", f.value, "-20")
    for name, published in (("sum", "2.00"), ("x", "-8.00"), ("y", "6.00"), ("z", "2.00"), ("w", "0.00")):
        lesson.row(f"gradient on {name}", found[name], published)
    lesson.draw_circuit(f, out, "patterns.png", "f = (x y + max(z, w)) 2")


def _matrices(lesson: Lesson) -> None:
    lesson.section(
        "The same for matrices: D = W X",
        """Only one product has the right shape: dW (5, 10) from dD (5, 3) and X (10, 3) is dD Xᵀ, and dX
        is Wᵀ dD. With samples in rows, as everywhere else here, it is D = X W, dW = Xᵀ dD, dX = dD Wᵀ.
        Inputs a thousand times larger make the gradient of the weights a thousand times larger: scale your
        data.""",
    )
    random = np.random.Generator(np.random.PCG64(0))
    W, X, dD = (random.standard_normal(shape) for shape in ((5, 10), (10, 3), (5, 3)))
    dW, dX = dD @ X.T, W.T @ dD
    agrees = gradcheck(
        lambda W, X: W @ X, (W, X), backward=lambda upstream, W, X: (upstream @ X.T, W.T @ upstream)
    )
    lesson.check("dW = dD Xᵀ and dX = Wᵀ dD agree with differences", agrees)
    rows = np.ascontiguousarray(X.T), np.ascontiguousarray(W.T), np.ascontiguousarray(dD.T)
    lesson.check(
        "they are the transposes of what the library computes from rows",
        np.allclose(linear.backward_weight(rows[0], rows[2], bias=False)[0], dW.T)
        and np.allclose(linear.backward_input(rows[2], rows[1]), dX.T),
    )
    lesson.row("factor of dW for inputs x 1000", np.linalg.norm(dD @ (1000 * X).T) / np.linalg.norm(dW))
