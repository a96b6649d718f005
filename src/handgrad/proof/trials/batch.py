"""Trials of kernels/batch.cu."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from handgrad.ops import batch
from handgrad.proof import reference
from handgrad.proof.covering import pairwise
from handgrad.proof.guarded import OUTPUT_LAYOUTS, Memory, Output
from handgrad.proof.trials.trial import INPUTS, SAMPLES, Trial

SCALES = {
    "unscaled": (1.0, 0.0),
    "x 1/255": (1 / 255, 0.0),
    "x 2/255 - 1": (2 / 255, -1.0),
}  # scale and shift
N = 50  # rows to choose from


def gather(
    m: Memory, source: str, dtype: str, rows: int, D: int, *,
    scales: str, x: str = "aligned", order: str = "aligned", out: str = "aligned",
) -> list[Output]:  # fmt: skip
    """``batch.gather``; D = 0 stands for X (N,), as labels are."""
    shape = (D,) if D else ()
    floats = source.startswith("float")
    X = m.normal((N, *shape), source) if floats else m.integers(0, 255, (N, *shape), source)
    chosen = m.integers(0, N - 1, (rows,), np.int32)
    result = m.output((rows, *shape), dtype, out, "out")
    scale, shift = SCALES[scales]
    given, indices = m.input(X, x, "X"), m.input(chosen, order, "order")
    batch.gather(given, indices, result, scale=scale, shift=shift, dtype=dtype)
    if dtype == "int32":
        return [Output("out", result, lambda: X[chosen], exact=True)]
    return [Output("out", result, lambda: reference.gather(X, chosen, scale, shift, np.dtype(dtype)))]


def gather_trials(dtype: str, quick: bool) -> list[Trial]:
    """Of the catalogue's batch.gather into ``dtype``."""
    sources = tuple(source for source, target in batch.PAIRS if target == dtype)
    rows = pairwise(
        {
            "source": sources,
            "rows": (0, 1, 33) if quick else SAMPLES,
            "D": (0, 1, 10, 784) if quick else (0, 2, 8, 160, *INPUTS),
            "scales": tuple(SCALES)[: 1 if dtype == "int32" else None],
            "x": OUTPUT_LAYOUTS,
            "order": (*OUTPUT_LAYOUTS, "strided"),
            "out": OUTPUT_LAYOUTS,
        }
    )
    return [
        *(_trial(dtype, **row) for row in rows),
        *(_trial(dtype, source, 33, 160, scales="unscaled", schedules=True) for source in sources),
    ]


def _trial(dtype: str, source: str, rows: int, D: int, *, schedules: bool = False, **keywords: Any) -> Trial:
    run = functools.partial(gather, source=source, dtype=dtype, rows=rows, D=D, **keywords)
    setting = ", ".join((f"from {source}", *keywords.values()))
    return Trial("batch.gather", dtype, {"rows": rows, "N": N, "D": D}, setting, run, schedules)
