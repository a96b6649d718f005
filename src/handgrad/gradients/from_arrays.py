"""The diagnosis of an attempt that comes without a network: arrays, and settings that may be left open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.gradients.attempt import Attempt
from handgrad.gradients.data import problem_of
from handgrad.gradients.diagnose import agrees, examine, of_call
from handgrad.gradients.function import Called
from handgrad.gradients.report import Diagnosis
from handgrad.gradients.settings import MOST_WORK, Settings, network
from handgrad.gradients.staged import Problem

Floats = NDArray[Any]


def diagnose_arrays(
    X: Floats,
    y: Floats,
    parameters: Mapping[str, Floats],
    settings: Settings,
    read: Callable[[Problem], Attempt],
    *,
    stored: str,
    layout: str | None,
    lr: float | None = None,
    weight_decay: float | None = None,
    called: Called | None = None,
) -> Diagnosis:
    """The diagnosis, with notes on the settings that were assumed and on others that fit better.

    ``stored`` is the layout of ``parameters``, ``layout`` that of the gradients; ``read`` reads the attempt
    once the network is known; ``called`` says what a function did beside returning it.
    """

    def problem_under(chosen: Settings) -> Problem:
        net = network(parameters, stored, chosen)
        return problem_of(net, X, y, lr, weight_decay or 0.0)

    last = max((name for name in parameters if name.startswith("W")), key=lambda name: int(name[1:]))
    C = int(parameters[last].shape[1 if stored == "in,out" else 0])
    complete = settings.completed(y, C)
    problem = problem_under(complete)
    attempt = read(problem)
    found = of_call(called, attempt, problem, layout) if called else examine(attempt, problem, layout)
    notes = list(found.notes)
    assumed = settings.assumed(complete)
    if assumed:
        notes.append(f"Assumed, as not stated: {assumed}.")
    work = X.shape[0] * sum(int(np.size(value)) for value in parameters.values())
    if not found.correct and work <= MOST_WORK:
        for other in settings.others(complete, y, C):
            alternative = problem_under(other)
            if agrees(attempt, alternative, layout):
                notes.insert(0, f"The gradient is right with {complete.differing(other)}.")
                break
    return replace(found, notes=notes)
