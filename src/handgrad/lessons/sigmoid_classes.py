"""Layer classes with forward and backward: a notebook's, with each fault that it prints, and corrected.

y = S(S(X W1 + b1) W2 + b2),   loss = mean (y - Y)²
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.gradients.diagnose import diagnose
from handgrad.gradients.gradcheck import gradcheck
from handgrad.lessons.lesson import Lesson
from handgrad.network import MLP

TITLE = "Sigmoid and Linear classes"
SOURCE = "the notebook 1. Backpropagation, sections 1.1 to 1.3"

Floats = NDArray[Any]


class Sigmoid:
    """Keeps its output: the slope is made of it."""

    def forward(self, x: Floats) -> Floats:
        """1 / (1 + e^-x)."""
        self.y = 1 / (1 + np.exp(-x))
        return self.y

    def backward(self, grad: Floats) -> Floats:
        """The gradient on x."""
        return grad * self.y * (1 - self.y)


class Linear:
    """Keeps its input; ``backward`` leaves the gradients of w and b and, with ``lr``, takes a step."""

    def __init__(self, w: Floats, b: Floats, lr: float = 0.0) -> None:
        self.w, self.b, self.lr = w.copy(), b.copy(), lr

    def forward(self, x: Floats) -> Floats:
        """x w + b."""
        self.x = x
        return x @ self.w + self.b

    def backward(self, grad: Floats) -> Floats:
        """The gradient on x, taken before w changes."""
        self.dw = self.x.T @ grad  # (in, N) (N, out): summed over the samples
        self.db = grad.sum(axis=0)  # and so is this: b acts on every sample
        dx = grad @ self.w.T
        self.w -= self.lr * self.dw
        self.b -= self.lr * self.db
        return dx


# ---- the classes as they are printed: each differs from the above in its fault -----------------------------


class CalledSigmoid(Sigmoid):
    """``Sigmoid(self.x)``: makes another object, where the function is meant."""

    def forward(self, x: Floats) -> Floats:
        """1 / (1 + e^-x)."""
        self.x = x
        return super().forward(x)

    def backward(self, grad: Floats) -> Floats:
        """Raises TypeError."""
        made: Any = Sigmoid(self.x)  # type: ignore[call-arg]
        return np.asarray(grad * made * (1 - made))


class TransposedLinear(Linear):
    """``dL_dy @ x.T``: right for one sample's row of numbers on paper, wrong for arrays."""

    def backward(self, grad: Floats) -> Floats:
        """Raises ValueError unless samples, inputs and outputs are equally many."""
        self.dw = grad @ self.x.T
        self.db = grad.sum(axis=0)
        return grad @ self.w.T


class UnsummedLinear(Linear):
    """``dL_db = dL_dy``: one row a sample, where b has one row."""

    def backward(self, grad: Floats) -> Floats:
        """Turns b into (N, out) at the first step, by broadcasting."""
        self.dw = self.x.T @ grad
        self.db = grad
        dx = grad @ self.w.T
        self.w = self.w - self.lr * self.dw
        self.b = self.b - self.lr * self.db
        return dx


# ---- the network -------------------------------------------------------------------------------------------


def problem(N: int = 6, sizes: tuple[int, int, int] = (3, 4, 2)) -> dict[str, Floats]:
    """X, Y, W1, b1, W2, b2 in the order and from the generator (seed 0) of the worked numbers."""
    random = np.random.RandomState(0)
    D, H, C = sizes
    return {
        "X": random.normal(size=(N, D)),
        "Y": random.uniform(size=(N, C)),
        "W1": random.normal(size=(D, H)),
        "b1": random.normal(size=H),
        "W2": random.normal(size=(H, C)),
        "b2": random.normal(size=C),
    }


def gradients(
    given: dict[str, Floats],
    linear: Callable[..., Linear] = Linear,
    sigmoid: Callable[[], Sigmoid] = Sigmoid,
    lr: float = 0.0,
) -> tuple[float, dict[str, Floats], list[Linear]]:
    """Loss and gradients of the two layers, and the layers afterwards."""
    layers: list[Any] = [linear(given["W1"], given["b1"], lr), sigmoid()]
    layers += [linear(given["W2"], given["b2"], lr), sigmoid()]
    y = given["X"]
    for layer in layers:
        y = layer.forward(y)
    residual = y - given["Y"]
    grad = 2 * residual / residual.size
    for layer in reversed(layers):
        grad = layer.backward(grad)
    first, second = layers[0], layers[2]
    found = {"W1": first.dw, "b1": first.db, "W2": second.dw, "b2": second.db}
    return float(np.mean(residual**2)), found, [first, second]


def network(given: dict[str, Floats]) -> MLP:
    """The library's network with the same parameters."""
    sizes = [given["W1"].shape[0], *given["W2"].shape]
    net = MLP(sizes, activation="sigmoid", output="sigmoid", loss="mse", dtype="float64", device="cpu")
    net.load_parameters({name: given[name] for name in ("W1", "b1", "W2", "b2")})
    return net


def run(out: Path | None = None) -> Lesson:
    """The lesson."""
    lesson = Lesson("sigmoid-classes", TITLE, SOURCE)
    _corrected(lesson)
    _faults(lesson)
    _square(lesson)
    _descent(lesson)
    return lesson


def _corrected(lesson: Lesson) -> None:
    lesson.section(
        "Corrected: 6 samples, 3 → 4 → 2",
        """Each class keeps what its own backward needs, multiplies what comes back by its slope and hands
        it down. Sums over the samples are what makes shapes fit.""",
    )
    given = problem()
    loss, found, _ = gradients(given)
    lesson.row("loss", loss)
    for name in ("W1", "b1", "W2", "b2"):
        lesson.row(f"norm of d{name}", np.linalg.norm(found[name]))
    net = network(given)
    lesson.check("differences agree", gradcheck(net, given["X"], given["Y"]))
    verdict = diagnose(found, net, given["X"], given["Y"])
    lesson.check("handgrad.diagnose finds nothing wrong with the classes", verdict.correct)
    lesson.check("the Sigmoid class alone passes the check", gradcheck(Sigmoid(), given["X"]))


def _faults(lesson: Lesson) -> None:
    lesson.section(
        "As printed",
        """Three faults, of which two announce themselves; the third trains, with a bias for each
        sample.""",
    )
    given = problem()
    net, X, Y = network(given), given["X"], given["Y"]

    def called(X: Floats, y: Floats, params: dict[str, Floats]) -> dict[str, Floats]:
        return gradients({**params, "X": X, "Y": y}, sigmoid=CalledSigmoid)[1]

    def transposed(X: Floats, y: Floats, params: dict[str, Floats]) -> dict[str, Floats]:
        return gradients({**params, "X": X, "Y": y}, linear=TransposedLinear)[1]

    _name(lesson, "Sigmoid(self.x)", diagnose(called, net, X, Y), "instance-called-as-class")
    lesson.row("what Sigmoid(self.x) raises", _raised(lambda: gradients(given, sigmoid=CalledSigmoid)))
    _name(lesson, "dL_dy @ x.T", diagnose(transposed, net, X, Y), "transposed")
    lesson.row("what dL_dy @ x.T raises", _raised(lambda: gradients(given, linear=TransposedLinear)))
    _, unsummed, layers = gradients(given, linear=UnsummedLinear, lr=0.1)
    _name(lesson, "dL_db = dL_dy", diagnose(unsummed, net, X, Y), "bias-not-summed")
    lesson.row("shape of b1 after a step with it", str(layers[0].b.shape), note="it was (4,)")


def _square(lesson: Lesson) -> None:
    lesson.section(
        "With as many samples as inputs and outputs",
        """N = in = out = 4: then dL_dy @ x.T has the right shape, nothing is raised, and every number of
        it is wrong. A check of shapes is no check of gradients.""",
    )
    given = problem(N=4, sizes=(4, 4, 4))
    net = network(given)
    _, right, _ = gradients(given)
    _, wrong, _ = gradients(given, linear=TransposedLinear)
    lesson.check("the shapes are right", all(wrong[name].shape == right[name].shape for name in right))
    for name in ("W1", "W2"):
        distance = np.linalg.norm(wrong[name] - right[name]) / np.linalg.norm(right[name])
        lesson.row(f"relative error of d{name}, square", distance)
    _name(lesson, "dL_dy @ x.T, square", diagnose(wrong, net, given["X"], given["Y"]), "transposed")


def _descent(lesson: Lesson) -> None:
    lesson.section(
        "Gradient descent inside backward",
        """Each layer may step as soon as it has its own gradient, but the gradient that it hands down must
        come from the weights of the forward pass: dx first, then the step.""",
    )
    given = problem()
    loss = before = gradients(given)[0]
    for _ in range(200):
        loss, _, (first, second) = gradients(given, lr=1.0)
        given |= {"W1": first.w, "b1": first.b, "W2": second.w, "b2": second.b}
    lesson.row("loss after 200 steps of 1.0", loss)
    lesson.check("it goes down", loss < 0.5 * before)


def _name(lesson: Lesson, fault: str, verdict: Any, expected: str) -> None:
    named = verdict.causes[0].id if verdict.causes else "nothing"
    lesson.row(f"diagnosis of {fault}", named)
    lesson.check(f"{fault} is named", not verdict.correct and named == expected)


def _raised(call: Callable[[], Any]) -> str:
    """The exception that ``call`` raises, in words."""
    try:
        call()
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
        return words if len(words) < 64 else words[:60] + " …"
    return "nothing"
