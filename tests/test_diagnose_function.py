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
