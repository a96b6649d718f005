"""The paths of a two-layer training step, in the order in which they are tried.

A problem runs on the first of ``STEP_ORDER`` whose ``refusal`` is empty; R4 takes whatever comes.  R2 takes
whole epochs, where it was measured to beat the steps or, unmeasured, the time model says so.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

from handgrad.ops import two_layer_epoch, two_layer_general, two_layer_pair, two_layer_step
from handgrad.ops.tilings import Tiling
from handgrad.ops.two_layer import Layout, Problem, StepArrays

STEP_ORDER = ("R1", "R3", "R4")
EPOCH = "R2"
NAMES = ("R1", "R2", "R3", "R4")
BY_OP = "ops"  # the layer functions one after another: what other depths take, and a rival to compare with

MEANINGS = {
    "R1": "forward, loss and backward in one kernel, then the ordered sums with the optimizer",
    "R2": "a whole epoch in one persistent kernel",
    "R3": "forward, loss and dZ1 in one kernel, then weight gradients and optimizer in another",
    "R4": "hidden layer; output layer and loss; weight gradients; ordered sums with the optimizer",
    BY_OP: "the layer functions, one after another",
}


class Path(Protocol):
    """A path's module."""

    def refusal(self, problem: Problem) -> str:
        """Why it cannot do the problem, in one line; "" where it can."""

    def tilings(self, problem: Problem) -> tuple[Tiling, ...]:
        """Its tiles and partitions to choose from, the rule's first; ``ValueError`` where it cannot."""

    def lay_out(self, problem: Problem, tiling: Tiling | None = None) -> Layout:
        """How it would run the problem, with the rule's tiling where None."""

    def run(self, layout: Layout, arrays: StepArrays) -> None:
        """The launches of one step."""


def module_of(name: str) -> Path:
    """The path's module; ``ValueError`` for a name that none has."""
    if name not in MODULES:
        raise ValueError(f"path: expected one of {', '.join(NAMES)}, got {name!r}")
    return cast(Path, MODULES[name])


MODULES: dict[str, Any] = {
    "R1": two_layer_step,
    "R2": two_layer_epoch,
    "R3": two_layer_pair,
    "R4": two_layer_general,
}
