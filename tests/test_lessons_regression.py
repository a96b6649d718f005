"""The lesson on the forum thread: its attempts are the thread's own, its steps those of autograd."""

import numpy as np
import pytest

from handgrad import lessons
from handgrad.lessons import digits, regression


def thread():
    """A small regression of the thread's form."""
    rng = np.random.default_rng(3)
    X, y = rng.random((11, 7)), rng.integers(0, 10, 11).astype(float)
    p = {"W1": rng.normal(size=(7, 5)), "b1": rng.normal(size=5), "W2": rng.normal(size=(5, 1))}
    return X, y, p | {"b2": rng.normal(size=1)}


def test_the_attempts_are_those_of_the_thread():
    """Each against the thread's own expression, with its broadcasts and sums written out."""
    x, y, p = thread()
    N, w2 = len(x), p["W2"]
    l1 = x @ p["W1"] + p["b1"]
    l2 = np.maximum(l1, 0) @ w2 + p["b2"]
    first = (2 / N) * (l2[:, 0] - y[None, ...]).T * (x[None] * w2[..., None]).sum(0)
    np.testing.assert_allclose(regression.first_code(x, y, p)["W1"], first, rtol=1e-12)
    suggested = (-2 / N) * ((y - l2[:, 0])[:, None] * w2.T).T @ x
    np.testing.assert_allclose(regression.suggested_code(x, y, p)["W1"], suggested, rtol=1e-12)
    simplified = (2 / N) * ((l2 - y[:, None] * w2.T)[:, None, :] * x[..., None]).sum(0)
    np.testing.assert_allclose(regression.simplified_code(x, y, p)["W1"], simplified, rtol=1e-12)
    formula = -2 / N * sum((y[i] - l2[i]) * np.outer(x[i], w2[:, 0]) for i in range(N))
    np.testing.assert_allclose(regression.formula_with_minus(x, y, p)["W1"], formula, rtol=1e-12)
    np.testing.assert_allclose(regression.formula_with_plus(x, y, p)["W1"], formula, rtol=1e-12)

    diff = y[:, None] - l2
    g = (2 / N) * diff * -1 @ w2.T * (l1 > 0)
    final = (g[:, None, :] * x[..., None]).sum(0)
    np.testing.assert_allclose(regression.final_version(x, y, p)["W1"], final, rtol=1e-12)
    assert regression.final_version(x, y, p)["W1"].shape == p["W1"].shape
    with pytest.raises(TypeError, match="unsupported operand"):
        regression.shape_for_count(x, y, p)


def test_the_broadcast_target_counts_as_the_mean():
    x, y, p = thread()
    literal = regression.targets_broadcast(x, y, p)
    as_mean = regression.final_version(x, np.full_like(y, y.mean()), p)
    for name, value in literal.items():
        np.testing.assert_allclose(value, as_mean[name], rtol=1e-12)


def test_step_by_step_is_what_autograd_gives():
    torch = pytest.importorskip("torch")
    X, y, p = regression.problem()
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in p.items()}
    pre = torch.tensor(X) @ tensors["W1"] + tensors["b1"]
    hidden = torch.relu(pre)
    out = hidden @ tensors["W2"] + tensors["b2"]
    for tensor in (pre, hidden, out):
        tensor.retain_grad()
    (out[:, 0] - torch.tensor(y)).pow(2).mean().backward()
    ours = regression.step_by_step(X, y, p)
    autograd = {name: tensor.grad.numpy() for name, tensor in tensors.items()}
    autograd |= {"dZ2": out.grad.numpy(), "dA1": hidden.grad.numpy(), "dZ1": pre.grad.numpy()}
    for name, value in ours.items():
        np.testing.assert_allclose(value, autograd[name], rtol=1e-11, atol=1e-11 * np.abs(value).max())


def test_the_regression_on_data_of_ones_own(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", X=rng.normal(size=(60, 6)), y=rng.normal(size=60))
    lesson = lessons.run("regression", tmp_path / "out", data=str(tmp_path / "own.npz"))
    assert lesson.passed, lesson.failures
    assert lesson.pictures == []  # these are no images
    np.savez(tmp_path / "two.npz", X=rng.normal(size=(60, 6)), y=rng.normal(size=(60, 2)))
    with pytest.raises(ValueError, match="one target a sample, got 2"):
        lessons.run("regression", data=str(tmp_path / "two.npz"))


def test_full_needs_the_whole_of_mnist(monkeypatch):
    monkeypatch.delenv("HANDGRAD_MNIST", raising=False)
    with pytest.raises(ValueError, match="HANDGRAD_MNIST or --data"):
        lessons.run("regression", full=True)
    monkeypatch.setenv("HANDGRAD_MNIST", "/somewhere")
    assert digits.whole_mnist() == "/somewhere"
