"""``hg.diagnose``: what is wrong with a backward pass that somebody wrote by hand.

The right gradient and every known mistake's are computed in float64 from the network, the batch and, where
they were given, the person's own intermediates; what fits theirs within the rounding of their dtype is named.
The mistakes stand in :mod:`handgrad.gradients.mistakes`, the search in :mod:`handgrad.gradients.matching`.
Test: ``tests/test_diagnose.py``; every mistake as a literal wrong pass: ``tests/wrong_backward/``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from handgrad.gradients import forward, location, nonfinite, rounding
from handgrad.gradients.attempt import Attempt, in_layout, layout_of, read
from handgrad.gradients.causes import name_of, ranked
from handgrad.gradients.data import problem_of
from handgrad.gradients.explanation import Explanation, aligned, distance
from handgrad.gradients.failure import Failure, explained
from handgrad.gradients.function import Called, call
from handgrad.gradients.matching import SAFETY, Search
from handgrad.gradients.report import Cause, Comparison, Diagnosis
from handgrad.gradients.staged import Floats, Problem
from handgrad.network import MLP

GROWS = 1.01  # from one call to the next: gradients that add up
SINGLE = float(np.finfo(np.float32).eps)


def diagnose(
    attempt: Mapping[str, Any] | Callable[..., Any] | Any,
    net: MLP,
    X: Any,
    y: Any,
    *,
    intermediates: Mapping[str, Any] | None = None,
    layout: str | None = None,
    lr: float | None = None,
    weight_decay: float = 0.0,
) -> Diagnosis:
    """What is wrong with the gradient ``attempt`` of ``net``'s loss on the batch (X, y).

    ``attempt`` is a dict of gradients (``W1`` or ``dW1``, ``b1``, …, or PyTorch's names), or the arrays in
    the order W1, b1, W2, …, or the person's function ``f(X, y, params)`` that returns either, ``params``
    being a dict W1, b1, … of X's kind of array.  It may hold intermediates too (Z1, A1, …, Y_hat, dZ2, dA1,
    dZ1, …), as may ``intermediates``: each stage is then judged by what the person put into it.  Some
    parameters may be left out.  Arrays: NumPy, CuPy, emulated or PyTorch; their dtype sets the tolerance.

    X (N, D); y as the net's loss takes it, one-hot labels too.  ``layout`` is that of the weights' gradients,
    "in,out" (D, H) or "out,in" as nn.Linear stores them; None takes it from PyTorch's names, else "in,out".
    ``lr`` and ``weight_decay`` are those of the training; with weight decay the right gradient of a weight is
    that of the loss plus ``weight_decay * W``, and of a bias that of the loss.

    An exception of the person's function is part of the diagnosis.  Raises ``ValueError`` and ``TypeError``
    for arguments that do not fit.
    """
    problem = problem_of(net, X, y, lr, weight_decay)
    if callable(attempt) and not isinstance(attempt, Mapping):
        called = call(attempt, X, y, problem.parameters, layout)
        if called.failure is not None:
            return of_failure(called.failure)
        return of_call(called, read(called.values, intermediates, problem), problem, layout)
    return examine(read(attempt, intermediates, problem), problem, layout)


def of_call(called: Called, attempt: Attempt, problem: Problem, layout: str | None) -> Diagnosis:
    """The diagnosis of what the person's function returned, read as ``attempt``."""
    if called.changed:
        names = ", ".join(called.changed)
        attempt.notes.append(
            f"Your function changes {names} in place. The gradient must be finished before the update."
        )
    copied = "clone()" if attempt.torch else "copy()"
    for name in called.changed_data:
        attempt.notes.append(
            f"Your function changes {name} in place, so the next call gets other data. Work on a copy: "
            f"{name} = {name}.{copied}. The right gradient here is that for the {name} of before."
        )
    repeated = called.repeated
    accumulates = None if repeated is None else repeated > GROWS
    found = examine(attempt, problem, layout, accumulates)
    note = ""
    if called.raised_again is not None:
        raised = called.raised_again
        note = f"A second call of your function on the same data raised {raised.raised}, at {raised.where}."
    elif repeated is not None and not accumulates and not repeated >= 1 / GROWS:
        note = "Two calls of your function on the same data gave different gradients."
    if note:
        return replace(found, notes=[*found.notes, note])
    if (
        repeated is not None
        and repeated > GROWS
        and not any(cause.id == "not-zeroed" for cause in found.causes)
    ):
        cause = Cause(
            "not-zeroed",
            tuple(problem.parameters),
            0.0,
            0.95,
            f"Called twice on the same data, your function gives {repeated:.3g} times the gradient the "
            "second time: it adds to what the last call left.",
            "set the gradients to zero at the start of each backward pass",
        )
        return replace(found, correct=False, causes=[*found.causes, cause])
    return found


def of_failure(failure: Failure, notes: Sequence[str] = ()) -> Diagnosis:
    """The diagnosis of code that raised before it gave a gradient."""
    return Diagnosis(False, {}, [explained(failure)], notes=notes)


def examine(
    attempt: Attempt, problem: Problem, layout: str | None = None, accumulates: bool | None = None
) -> Diagnosis:
    """The diagnosis of arrays that were read.  ``accumulates``: whether a second call gave more, if tried."""
    chosen = layout_of(layout, attempt, problem)
    found = _examine(in_layout(attempt, chosen), attempt, problem, accumulates)
    if found.correct or layout is not None or attempt.torch_names or not _all_transposed(attempt, problem):
        return found
    other = _examine(in_layout(attempt, "out,in"), attempt, problem, accumulates)
    if other.correct and attempt.torch:
        note = "The weights' gradients were read as (out, in), as nn.Linear stores them."
        return replace(other, notes=[*other.notes, note])
    if other.correct:
        note = "Read as (out, in) every gradient is right: if you store W so, pass layout='out,in'."
        return replace(found, notes=[*found.notes, note])
    return found


def agrees(attempt: Attempt, problem: Problem, layout: str | None) -> bool:
    """Whether every given array is right, without a search for causes."""
    arrays = _oriented(in_layout(attempt, layout_of(layout, attempt, problem)), problem, [])
    return all(item.correct for item in _compared(arrays, problem, attempt.unit).values())


def _all_transposed(attempt: Attempt, problem: Problem) -> bool:
    weights = [(stage, array) for stage, array in attempt.arrays.items() if stage.startswith("dW")]
    return bool(weights) and all(array.shape == problem.parameters[s[1:]].shape[::-1] for s, array in weights)


def _examine(
    arrays: Mapping[str, Floats], attempt: Attempt, problem: Problem, accumulates: bool | None
) -> Diagnosis:
    notes = list(attempt.notes)
    missing = [name for name in problem.parameters if f"d{name}" not in arrays]
    if missing:
        notes.append(f"Not given, and so not compared: {', '.join(missing)}.")
    arrays = _oriented(arrays, problem, notes)
    compared = _compared(arrays, problem, attempt.unit)
    if all(item.correct for item in compared.values()):
        return _diagnosis(compared, [], problem, notes)
    causes: list[Cause] = []
    spoilt = nonfinite.cause_of(problem, arrays, attempt.unit)
    finite = {stage: array for stage, array in arrays.items() if np.all(np.isfinite(array))}
    if spoilt is not None:
        causes.append(spoilt)
        if spoilt.id == "overflow" and spoilt.residual == 0:
            return _diagnosis(compared, causes, problem, notes)
    finer = _searched(finite, attempt.unit, problem, accumulates)
    if finer is not None:
        return _diagnosis(compared, causes + finer, problem, notes)
    unit = attempt.unit
    if unit < SINGLE:
        unit = SINGLE
        compared = _compared(arrays, problem, unit)
        if all(item.correct for item in compared.values()):
            notes.append("The gradient is right to float32 precision, though its dtype is float64.")
            return _diagnosis(compared, causes, problem, notes)
        coarser = _searched(finite, unit, problem, accumulates)
        if coarser is not None:
            return _diagnosis(compared, causes + coarser, problem, notes)
    return _diagnosis(compared, causes + _unknown(finite, compared, problem, unit), problem, notes)


# ---- comparison ------------------------------------------------------------------------------------------


def _oriented(arrays: Mapping[str, Floats], problem: Problem, notes: list[str]) -> dict[str, Floats]:
    """Intermediates with samples in rows, where they came with samples in columns."""
    oriented = dict(arrays)
    for name, array in arrays.items():
        if name[:2] in ("dW", "db") or array.ndim != 2:
            continue
        expected = (problem.N, _width(name, problem))
        if array.shape != expected and array.shape[::-1] == expected:
            oriented[name] = array.T
            notes.append(f"{name} was read with samples in columns.")
    return oriented


def _width(name: str, problem: Problem) -> int:
    return problem.C if name in ("Y_hat", "dY_hat") else problem.sizes[int(name.lstrip("dZA"))]


def _compared(arrays: Mapping[str, Floats], problem: Problem, unit: float) -> dict[str, Comparison]:
    """Each given array beside the right one, computed from the network alone, in the order of computation."""
    rounded = replace(problem, unit=unit)
    compared = {}
    with np.errstate(all="ignore"):
        for name in (*problem.forward_names, *problem.backward_names):
            if name in arrays:
                compared[name] = _comparison(name, arrays[name], rounded)
    return compared


def _comparison(name: str, given: Floats, problem: Problem) -> Comparison:
    if name in problem.forward_names:
        right = problem.computed_forward[name]
        if name == "Y_hat" and problem.loss in ("bce", "cross_entropy") and _looks_like_probabilities(given):
            right = problem.probabilities
    else:
        right = problem.right.computed(name)
    plain, bound = np.asarray(rounding.values(right)), rounding.errors(right)
    pair = aligned(name, given, plain, 0)
    label = name_of(name)
    if pair is None:
        return Comparison(label, False, float("inf"), given.shape, plain.shape, None, given, plain, None)
    g = pair[0]
    wrong = ~(np.abs(g - plain) <= SAFETY * bound)
    finite = bool(np.all(np.isfinite(g)))
    square = float((plain * plain).sum())
    ratio = float((g * plain).sum()) / square if finite and square else None
    norm = float(np.linalg.norm(plain))
    if not finite:
        error = float("inf")
    elif norm:
        error = float(np.linalg.norm(g - plain)) / norm
    else:
        error = 0.0 if not np.any(g) else float("inf")
    return Comparison(label, not wrong.any(), error, given.shape, plain.shape, ratio, g, plain, wrong)


def _looks_like_probabilities(given: Floats) -> bool:
    return bool(np.all((given >= 0) & (given <= 1)))


# ---- causes ----------------------------------------------------------------------------------------------


def _searched(
    arrays: Mapping[str, Floats], unit: float, problem: Problem, accumulates: bool | None
) -> list[Cause] | None:
    """The causes that explain everything given; None where nothing does."""
    search, off = _search(arrays, unit, problem)
    found = forward.causes_of(search.rounded, off, unit) if off else []
    if not search.wrong:
        return found or None
    explanations = search.explanations()
    if not explanations:
        return None
    if accumulates is not None:
        explanations = _with_experiment(explanations, accumulates)
    return found + ranked(explanations)


def _with_experiment(explanations: list[Explanation], accumulates: bool) -> list[Explanation]:
    """What a second call said about gradients that add up: only then are they called so."""
    shift = -0.5 if accumulates else 0.5
    changed = [replace(e, cost=e.cost + shift) if "not-zeroed" in e.ids else e for e in explanations]
    return sorted(changed, key=lambda e: float(e.cost))


def _search(arrays: Mapping[str, Floats], unit: float, problem: Problem) -> tuple[Search, dict[str, Floats]]:
    """The search, each stage judged by the given values before it, and the forward values that are off."""
    right = problem.right
    used = {}
    for name, array in arrays.items():
        if name[:2] in ("dW", "db") or (name == "Y_hat" and problem.loss in ("bce", "cross_entropy")):
            continue
        expected = problem.computed_forward[name] if name in problem.forward_names else right.computed(name)
        pair = aligned(name, array, np.asarray(expected), 0)
        if pair is not None:
            used[name] = pair[0]
    search = Search(replace(problem, given=used), arrays, unit)
    off = {}
    with np.errstate(all="ignore"):
        for name in problem.forward_names:
            if name in arrays and not _comparison(name, arrays[name], search.rounded).correct:
                off[name] = arrays[name]
    return search, off


def _unknown(
    arrays: Mapping[str, Floats], compared: Mapping[str, Comparison], problem: Problem, unit: float
) -> list[Cause]:
    """What explains a part, and where the rest sits."""
    search, off = _search(arrays, unit, problem)
    causes = forward.causes_of(search.rounded, off, unit) if off else []
    found, left = search.partial()
    for explanations in found:
        known = ranked(explanations, certainty=0.6 if left else 0.9)
        causes += [cause for cause in known if all(cause.id != other.id for other in causes)]
    if not left:
        return causes
    says = [location.described(stage, compared[stage], problem) for stage in left]
    residual = max(
        distance(compared[s].given, compared[s].right) if compared[s].wrong is not None else np.inf
        for s in left
    )
    rest = " beside that" if causes else ""
    causes.append(
        Cause(
            "unknown",
            tuple(dict.fromkeys(name_of(stage) for stage in left)),
            residual,
            0.5 if causes else 0.9,
            f"No known mistake, alone or with another, gives these numbers{rest}. " + ". ".join(says) + ".",
            "give diagnose your intermediates by name (Z1, A1, Z2, dZ2, dA1, dZ1): the first wrong one is "
            "where to look",
        )
    )
    return causes


# ---- the result ------------------------------------------------------------------------------------------


def _diagnosis(
    compared: Mapping[str, Comparison], causes: list[Cause], problem: Problem, notes: list[str]
) -> Diagnosis:
    parameters = {name: compared[f"d{name}"] for name in problem.parameters if f"d{name}" in compared}
    intermediates = {stage: item for stage, item in compared.items() if stage[:2] not in ("dW", "db")}
    wrong = [stage for stage, item in compared.items() if not item.correct]
    return Diagnosis(
        correct=not wrong,
        parameters=parameters,
        causes=causes,
        intermediates=intermediates,
        first_wrong=wrong[0] if wrong and intermediates else None,
        notes=notes,
    )
