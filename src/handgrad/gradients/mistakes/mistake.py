"""What a mistake is: hooks on the staged backward pass, and the words for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from handgrad.gradients.staged import Hook, Pass, Problem

MOST_SQUARED = 2500  # samples up to which mistakes that make an (N, N) array are tried


@dataclass(frozen=True)
class Words:
    """How a mistake is named and explained: what went wrong, the line as written, the right line."""

    id: str
    says: str
    wrong: str
    right: str
    experiment: str = ""  # what tells it from the mistakes that give the same numbers
    cost: float = 1.0  # the smaller, the likelier among equals


@dataclass(frozen=True)
class Mistake:
    """One way in which a backward pass goes wrong.

    ``also`` holds mistakes that give the very same numbers.  ``constant`` is "" or the kind of the free
    number that the hooks take, which is then read from the person's gradient.  ``reads`` are stages whose
    values the hooks use beside those that the right rule uses.
    """

    words: Words
    hooks: tuple[Hook, ...]
    also: tuple[Words, ...] = ()
    constant: str = ""
    reads: tuple[str, ...] = ()

    @property
    def stages(self) -> frozenset[str]:
        """The stages that it changes."""
        return frozenset(hook.stage for hook in self.hooks)

    def excludes(self, other: Mistake) -> bool:
        """Whether the two cannot both be: each would replace the same stage, or both are one constant."""
        if self.constant and self.constant == other.constant and self.stages & other.stages:
            return True
        mine = {hook.stage for hook in self.hooks if hook.replaces}
        return any(hook.replaces and hook.stage in mine for hook in other.hooks)


def layer_sets(layers: list[int]) -> list[tuple[int, ...]]:
    """Each layer alone, and all of them together."""
    return [(layer,) for layer in layers] + ([tuple(layers)] if len(layers) > 1 else [])


def value_name(problem: Problem, layer: int) -> str:
    """How the output of a layer is called in formulas: X, A1, …, Y_hat."""
    return "X" if layer == 0 else "Y_hat" if layer == problem.L else f"A{layer}"


def upstream_name(problem: Problem, layer: int) -> str:
    """How the gradient that comes to a layer's activation is called in formulas."""
    return "dY_hat" if layer == problem.L else f"dA{layer}"


def has_bias(problem: Problem, layer: int) -> bool:
    """Whether the layer has a bias."""
    return f"b{layer}" in problem.parameters


def bias_layers(problem: Problem) -> list[int]:
    """The layers with a bias."""
    return [layer for layer in range(1, problem.L + 1) if has_bias(problem, layer)]


def require_few(n: int) -> None:
    """``ValueError`` where a mistake would make an n x n array too large to try."""
    if n > MOST_SQUARED:
        raise ValueError(f"{n} x {n} is not tried")


def multiplied(s: Pass, value: Any, c: float) -> Any:
    """The hook of every constant: the stage's value times c."""
    return value * c
