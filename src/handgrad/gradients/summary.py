"""A problem with many inputs, its columns summed up into a few: what the search looks at first.

With a matrix S (D, r) of zeros and ones, one 1 in each row, X S stands for X, Sᵀ W1 for W1, Sᵀ dW1 for dW1.
Every rule and mistake is linear in X and W1 where they enter the backward pass, and sums over all inputs stay
what they are, so what fits fits here too, and costs r / D of the time.  The forward pass is that of the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from handgrad.gradients import rounding
from handgrad.gradients.staged import Floats, Problem

COLUMNS = 16
LEAST_WORK = 1_000_000  # N times the entries of W1: below this, nothing is gained


def summarized(problem: Problem, given: Mapping[str, Floats]) -> tuple[Problem, dict[str, Floats]]:
    """The problem and the given stages in few columns; as they are where that gains nothing."""
    D = problem.D
    others = (problem.N, *problem.sizes[1:])
    small = D <= 2 * COLUMNS or problem.N * problem.parameters["W1"].size < LEAST_WORK
    if small or D in others or COLUMNS in others:
        return problem, dict(given)
    order = np.random.default_rng(0).permutation(D)
    S = np.zeros((D, COLUMNS))
    S[order, np.minimum(np.arange(D), COLUMNS - 1)] = 1.0
    forward = {
        name: np.asarray(rounding.values(value))
        for name, value in problem.forward.items()
        if name not in problem.given
    }
    fewer = replace(
        problem,
        X=problem.X @ S,
        parameters={**problem.parameters, "W1": S.T @ problem.parameters["W1"]},
        given={**forward, **problem.given},
        whole_D=D,
    )
    return fewer, {
        stage: _along(array, D, S) if stage in ("dW1", "db1", "dA0") else array
        for stage, array in given.items()
    }


def _along(array: Floats, D: int, S: Floats) -> Floats:
    """Every axis of length D summed up by S."""
    for axis, length in enumerate(array.shape):
        if length == D:
            array = np.moveaxis(np.tensordot(array, S, axes=(axis, 0)), -1, axis)
    return array
