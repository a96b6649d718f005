"""The forum thread's attempts at the gradient of 784 → 50 → 1 on real digits, each named.

A reader's notebook, line by line: relu(x @ w1 + b1) @ w2 + b2, mean squared error, and several formulas for
the gradient of w1 that disagreed with autograd.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import handgrad as hg
from handgrad.datasets import load
from handgrad.gradients import diagnose

N = 120


class Thread:
    """The thread's variables, after its forward pass."""

    def __init__(self, dtype: type) -> None:
        train = load("mnist-subset").train
        self.x = (train.X[:N].reshape(N, -1).astype(np.float64) / 256).astype(dtype)
        self.y = train.y[:N].astype(dtype)
        random = np.random.default_rng(1)
        self.w1 = (random.normal(size=(784, 50)) * (2 / 784) ** 0.5).astype(dtype)
        self.b1 = (0.1 * random.normal(size=50)).astype(dtype)
        self.w2 = (random.normal(size=(50, 1)) * (2 / 50) ** 0.5).astype(dtype)
        self.b2 = np.full(1, 0.3, dtype)
        self.l1 = self.x @ self.w1 + self.b1
        self.l2 = np.maximum(self.l1, 0) @ self.w2 + self.b2
        self.net = hg.MLP([784, 50, 1], dtype=np.dtype(dtype).name, device="cpu")
        self.net.load_parameters({"W1": self.w1, "b1": self.b1, "W2": self.w2, "b2": self.b2})

    def backward(self, diff_g: Any) -> dict[str, Any]:
        """The step-by-step version, from the gradient at the output (N, 1)."""
        l2_g = diff_g @ self.w2.T
        l1_g = l2_g * (self.l1 > 0)
        return {
            "W1": self.x.T @ l1_g,
            "b1": l1_g.sum(0),
            "W2": np.maximum(self.l1, 0).T @ diff_g,
            "b2": diff_g.sum(0),
        }


@pytest.fixture(scope="module", params=[np.float32, np.float64], ids=["float32", "float64"])
def thread(request: pytest.FixtureRequest) -> Thread:
    return Thread(request.param)


def named(thread: Thread, attempt: Any) -> list[str]:
    """The ids of the likeliest explanation, then those of the alternatives."""
    found = diagnose(attempt, thread.net, thread.x, thread.y)
    assert not found.correct
    top = [cause.id for cause in found.causes if not cause.alternative]
    assert set(found.causes[0].together_with) == set(top[1:])
    return top


def test_the_formula_as_written_lacks_the_mask(thread: Thread) -> None:
    t = thread
    total = np.zeros_like(t.w1)
    for i in range(N):
        total += (t.l2[i] - t.y[i]) * np.outer(t.x[i], t.w2[:, 0])
    assert named(t, {"W1": 2 / N * total}) == ["activation-derivative-missing"]


def test_the_other_sign_form_lacks_the_mask(thread: Thread) -> None:
    t = thread
    total = np.zeros_like(t.w1)
    for i in range(N):
        total += (t.y[i] - t.l2[i]) * np.outer(t.x[i], t.w2[:, 0])
    assert named(t, {"W1": -2 / N * total}) == ["activation-derivative-missing"]


def test_sum_over_hidden_units(thread: Thread) -> None:
    t = thread
    w1_gs = (2 / N) * (t.l2[:, 0] - t.y[None, ...]).T * (t.x[None] * t.w2[:, :, None]).sum(0)
    assert w1_gs.shape == (N, 784)
    assert named(t, {"W1": w1_gs})[0] == "sum-over-hidden"


def test_transposed_and_without_the_mask(thread: Thread) -> None:
    t = thread
    w1_gs = (-2 / N) * ((t.y - t.l2[:, 0])[:, None] * t.w2.T).T @ t.x
    assert w1_gs.shape == (50, 784)
    assert set(named(t, {"W1": w1_gs})) == {"transposed", "activation-derivative-missing"}


def test_misplaced_parenthesis(thread: Thread) -> None:
    t = thread
    w1_gs = (2 / N) * ((t.l2 - t.y[:, None] * t.w2.T)[:, None, :] * t.x[..., None]).sum(0)
    assert named(t, {"W1": w1_gs}) == ["misplaced-parenthesis"]


def test_the_sign_left_out(thread: Thread) -> None:
    t = thread
    diff = t.y[:, None] - t.l2
    assert named(t, t.backward((2 / N) * diff)) == ["sign"]


def test_the_tuple_for_the_count_raises(thread: Thread) -> None:
    t = thread

    def attempt(x: Any, y: Any, params: Any) -> Any:
        return {"W1": (2 / x.shape) * x.T @ ((t.l2 - y[:, None]) @ params["W2"].T)}

    found = diagnose(attempt, t.net, t.x, t.y)
    assert not found.correct
    assert found.causes[0].id == "shape-for-count"
    assert "2 / x.shape" in found.causes[0].explanation
    assert "x.shape[0]" in found.causes[0].correction


def test_targets_broadcast_against_the_outputs(thread: Thread) -> None:
    t = thread
    diff = t.l2 - t.y  # (N, 1) - (N,) = (N, N)
    assert diff.shape == (N, N)
    diff_g = 2 * diff / diff.size
    assert named(t, t.backward(diff_g.sum(1, keepdims=True))) == ["targets-broadcast"]


def test_the_final_version_is_right(thread: Thread) -> None:
    t = thread
    diff_g = (2 / N) * (t.y[:, None] - t.l2) * -1
    found = diagnose(t.backward(diff_g), t.net, t.x, t.y)
    assert found.correct, str(found)
    assert not found.causes
