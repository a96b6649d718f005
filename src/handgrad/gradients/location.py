"""Where an error sits that no known mistake explains: entries, units, inputs, samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from handgrad.gradients.report import Comparison
from handgrad.gradients.staged import Floats, Problem

MOST_LISTED = 8
MOST_SAMPLES = 400  # a system of N equations is solved for the samples' weights


def described(stage: str, comparison: Comparison, problem: Problem) -> str:
    """One sentence: which part of the gradient is wrong."""
    given, wrong = comparison.given, comparison.wrong
    if wrong is None:
        letters = _meaning(comparison, problem)
        return f"{stage} has shape {comparison.shape}{letters}, expected {comparison.expected_shape}"
    if not np.all(np.isfinite(given)):
        return f"{stage} has {int((~np.isfinite(given)).sum())} entries that are not finite"
    if not np.any(given):
        return f"{stage} is 0 everywhere: it was never set"
    parts = [f"{stage}: {int(wrong.sum())} of {wrong.size} entries differ"]
    columns, rows = ("unit", "units"), ("input", "inputs")
    if stage[:2] in ("dZ", "dA") or stage[0] in "ZAY":
        rows = ("sample", "samples")
    if wrong.ndim == 2:
        parts += _lines(wrong, 0, columns) + _lines(wrong, 1, rows)
    elif wrong.ndim == 1:
        parts += _lines(wrong, None, columns)
    samples = _samples(stage, given, comparison.right, problem)
    if samples:
        parts.append(samples)
    if len(parts) == 1 or wrong.all():
        cosine = _cosine(given, comparison.right)
        parts.append(f"its direction is {cosine:+.2f} along the right one (1 is the same)")
    return ", ".join(parts)


def _meaning(comparison: Comparison, problem: Problem) -> str:
    """The shape in the problem's own letters, where they are distinct."""
    sizes: dict[int, str] = {}
    letters = ["D", *(["H"] if problem.L == 2 else [f"H{i}" for i in range(1, problem.L)]), "K"]
    for name, size in [("N", problem.N), *zip(letters, problem.sizes, strict=True)]:
        sizes[size] = "" if size in sizes else name
    names = [sizes.get(size, "") for size in comparison.shape]
    return f" ({', '.join(names)})" if names and all(names) else ""


def _lines(wrong: Floats, axis: int | None, names: tuple[str, str]) -> list[str]:
    """The columns (axis 0) or rows (axis 1) that hold every wrong entry, if they are few."""
    hit = np.flatnonzero(wrong if axis is None else wrong.any(axis=axis))
    total = wrong.size if axis is None else wrong.shape[1 - axis]
    if not 0 < len(hit) < total or len(hit) > max(1, total // 2):
        return []
    return [f"all in {_listed(hit, names)} of {total}"]


def _listed(numbers: Sequence[int] | Floats, names: tuple[str, str]) -> str:
    listed = [str(int(number)) for number in numbers[:MOST_LISTED]]
    more = f" and {len(numbers) - MOST_LISTED} more" if len(numbers) > MOST_LISTED else ""
    return f"{names[0] if len(numbers) == 1 else names[1]} {', '.join(listed)}{more}"


def _samples(stage: str, given: Floats, right: Floats, problem: Problem) -> str:
    """The samples that count wrongly: weights w with given = Σ_n w_n a_n dz_nᵀ, where that has one solution.

    Of all such weights those nearest to 1 are taken, so that samples without a gradient count as right.
    """
    if (
        stage[:2] != "dW"
        or given.shape != right.shape
        or not 2 <= problem.N <= min(MOST_SAMPLES, given.size - 1)
    ):
        return ""
    layer = int(stage[2:])
    run = problem.right
    below, dZ = np.asarray(run.A(layer - 1)), np.asarray(run[f"dZ{layer}"])
    gram = (below @ below.T) * (dZ @ dZ.T)
    difference = given - right
    towards = ((below @ difference) * dZ).sum(axis=1)
    offset = np.linalg.lstsq(gram, towards, rcond=1e-12)[0]
    left = np.linalg.norm(difference - (below * offset[:, None]).T @ dZ)
    if left > 1e-3 * np.linalg.norm(difference):
        return ""
    off = np.flatnonzero(np.abs(offset) > 1e-2)
    if not 0 < len(off) <= problem.N // 2:
        return ""
    listed = _listed(off, ("sample", "samples"))
    weights = 1 + offset[off]
    if np.allclose(weights, 0, atol=1e-2):
        return f"as if {listed} were left out"
    if np.allclose(weights, weights[0], atol=1e-2):
        return f"as if {listed} counted {weights[0]:.3g} times"
    return f"the error comes from {listed}"


def _cosine(a: Floats, b: Floats) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float((a * b).sum()) / norms if norms else 0.0
