"""What the person's function does beside returning a gradient: its arguments, and what it does to them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import handgrad
from diagnosed import RIGHT, net_of
from wrong_backward import Network, draw

from handgrad.gradients import diagnose


@pytest.fixture
def n() -> Network:
    sizes = (23, 7, 11, 3)
    random = np.random.default_rng(5)
    return draw(random, loss="mse", activation="relu", output="identity", reduction="mean", sizes=sizes)


def two(X: Any, y: Any) -> Any:
    return {}


def keyword(X: Any, y: Any, *, params: Any) -> Any:
    return {}


@functools.cache
def cached(X: Any) -> Any:
    return {}


class Callable:
    def __call__(self, X: Any) -> Any:
        return {}


class Backward:
    def __init__(self) -> None:
        pass


@pytest.mark.parametrize(
    ("function", "source"),
    [
        (two, "def two(X: Any, y: Any) -> Any:"),
        (keyword, "def keyword(X: Any, y: Any, *, params: Any) -> Any:"),
        (cached, "def cached(X: Any) -> Any:"),
        (lambda X: {}, "(lambda X: {}, "),
        (functools.partial(two, y=1), "def two(X: Any, y: Any) -> Any:"),
        (Callable(), "def __call__(self, X: Any) -> Any:"),
        (Backward, "def __init__(self) -> None:"),
    ],
)
def test_a_function_of_the_wrong_arguments_is_told_at_its_def(n: Network, function: Any, source: str) -> None:
    found = diagnose(function, net_of(n), n.X, n.y)
    assert not found.correct
    explanation = found.causes[0].explanation
    assert explanation.startswith("Your function must take (X, y, params), at line "), explanation
    assert f" of test_diagnose_function.py: {source}" in explanation
    line = int(explanation.split("at line ")[1].split()[0])
    assert source in Path(__file__).read_text().splitlines()[line - 1]


def test_a_function_without_source_is_told_what_python_said(n: Network) -> None:
    space: dict[str, Any] = {}
    exec("def backward(X, y):\n    return {}\n", space)
    explanation = diagnose(space["backward"], net_of(n), n.X, n.y).causes[0].explanation
    assert explanation.startswith("Your function must take (X, y, params); backward() takes 2 positional")


def test_a_file_whose_function_takes_other_arguments(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(RIGHT.replace("(X, y, params)", "(X, y)"))
    result = handgrad("diagnose", tmp_path / "mine.py")
    assert result.exit_code == 1
    said = " ".join(result.stdout.split())
    assert "Your function must take (X, y, params), at line 4 of mine.py: def backward(X, y):" in said


def test_arguments_that_do_not_fit_further_in_are_the_functions_own_matter(n: Network) -> None:
    def outer(X: Any, y: Any, params: Any) -> Any:
        return two(X, y, params)  # type: ignore[call-arg]

    explanation = diagnose(outer, net_of(n), n.X, n.y).causes[0].explanation
    assert "two() takes 2 positional arguments but 3 were given" in explanation
    assert "in outer: return two(X, y, params)" in explanation


CHANGES = ["X /= X.std(0)", "X *= 2", "X[0] = 0", "y *= 2", "y -= y.mean(0)"]


@pytest.mark.parametrize("line", CHANGES)
def test_a_change_of_the_data_in_place_is_told(n: Network, line: str) -> None:
    space: dict[str, Any] = {}
    exec(RIGHT.replace("    Z1 =", f"    {line}\n    Z1 =", 1), space)
    X, y = n.X.copy(), n.y.copy()
    found = diagnose(space["backward"], net_of(n), X, y)
    assert not found.correct
    notes = [note for note in found.notes if f"Your function changes {line[0]} in place" in note]
    assert len(notes) == 1
    assert f"Work on a copy: {line[0]} = {line[0]}.copy()" in notes[0]
    np.testing.assert_array_equal(X, n.X)
    np.testing.assert_array_equal(y, n.y)


def test_a_change_of_the_data_after_the_gradient_is_told(n: Network) -> None:
    space: dict[str, Any] = {}
    exec(
        RIGHT.replace("    return", "    X, dW1 = X.__imul__(2), X.T @ dZ1\n    return").replace(
            '"W1": X.T @ dZ1', '"W1": dW1'
        ),
        space,
    )
    found = diagnose(space["backward"], net_of(n), n.X, n.y)
    assert any("changes X in place" in note for note in found.notes)


def test_a_tensor_changed_in_place_is_to_be_cloned(n: Network) -> None:
    torch = pytest.importorskip("torch")

    def function(X: Any, y: Any, params: Any) -> Any:
        X *= 2
        return {"W1": torch.zeros(7, 11)}

    found = diagnose(function, net_of(n), torch.tensor(n.X), torch.tensor(n.y))
    assert any("changes X in place" in note and "X = X.clone()" in note for note in found.notes)


def test_lists_are_given_as_copies(n: Network) -> None:
    def function(X: Any, y: Any, params: Any) -> Any:
        X[0][0] = 5.0
        return {"W1": np.zeros((7, 11))}

    X = n.X.tolist()
    found = diagnose(function, net_of(n), X, n.y)
    assert n.X.tolist() == X
    assert any("changes X in place" in note for note in found.notes)


def test_data_that_are_left_alone_get_no_note(n: Network) -> None:
    space: dict[str, Any] = {}
    exec(RIGHT.replace("    Z1 =", "    X = X * 1.0\n    X *= 1\n    Z1 =", 1), space)
    found = diagnose(space["backward"], net_of(n), n.X, n.y)
    assert found.correct
    assert not found.notes


def test_a_file_that_changes_its_data(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(RIGHT.replace("    Z1 =", "    X /= X.std(0)\n    Z1 =", 1))
    result = handgrad("diagnose", tmp_path / "mine.py")
    assert result.exit_code == 1
    assert "Your function changes X in place" in result.stdout
    (tmp_path / "mine.py").write_text(RIGHT)
    assert "in place" not in handgrad("diagnose", tmp_path / "mine.py").stdout
