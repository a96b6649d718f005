"""Trials of kernels/activation.cu."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.arrays import Array
from handgrad.ops import activation
from handgrad.proof import reference
from handgrad.proof.covering import pairwise
from handgrad.proof.guarded import LAYOUTS, OUTPUT_LAYOUTS, Memory, Output
from handgrad.proof.roundoff import PRECISIONS
from handgrad.proof.trials.trial import HIDDEN, SAMPLES, Trial

Host = NDArray[Any]

OUT = (*OUTPUT_LAYOUTS, "in place")
SPECIAL = (  # around where exp overflows and underflows in either type, and what is no number
    *(0.0, -0.0, 1e-40, 0.5, 17.0, -17.0, 87.0, -87.0, 89.0, -89.0, 104.0, -104.0, 709.0, -710.0, -746.0),
    *(1e4, -1e4, 1e30, -1e30, np.inf, -np.inf, np.nan),
)
MORE_THAN_THE_GRID = activation.MAX_BLOCKS * activation.THREADS + 300  # elements: blocks loop where V = 1


def forward(
    m: Memory, dtype: str, N: int, H: int, *, name: str, layout: str = "aligned", out: str = "aligned",
    special: bool = False,
) -> list[Output]:  # fmt: skip
    """``activation.forward``."""
    z = np.array([SPECIAL] * N, dtype) if special else m.normal((N, H), dtype, 4.0)
    given, a = _arrays(m, z, layout, out)
    activation.forward(given, name, out=a)
    keeps = name in ("relu", "identity")  # what is not below 0 stays, -0 too
    return [Output("a", a, lambda: reference.activation_forward(z, name), signed=keeps)]


def backward(
    m: Memory, dtype: str, N: int, H: int, *, name: str, layout: str = "aligned", out: str = "aligned",
    special: bool = False,
) -> list[Output]:  # fmt: skip
    """``activation.backward`` from a = f(z), rounded."""
    z, da = m.normal((N, H), dtype, 4.0), m.normal((N, H), dtype)
    if special:  # every one with every other
        z, da = (part.astype(dtype) for part in np.meshgrid(SPECIAL, SPECIAL))
    a = reference.activation_forward(z, name).value.astype(dtype)
    a[abs(a) < PRECISIONS[dtype].smallest_normal] = 0  # as a GPU's forward pass leaves it
    given, dz = _arrays(m, da, layout, out)
    activation.backward(m.input(a, layout), given, name, out=dz)
    return [Output("dz", dz, lambda: reference.activation_backward(a, da, name))]


def _arrays(m: Memory, values: Host, layout: str, out: str) -> tuple[Array, Array]:
    if out == "in place":
        both = m.state(values)
        return both, both
    return m.input(values, layout), m.output(values.shape, values.dtype, out)


def trials(op: str, run: Callable[..., list[Output]], dtype: str, quick: bool) -> list[Trial]:
    """Of the catalogue's activation.forward or activation.backward."""
    rows = pairwise(
        {
            "N": (0, 1, 33, 127) if quick else SAMPLES,
            "H": (1, 50) if quick else HIDDEN,
            "name": activation.NAMES,
            "layout": LAYOUTS,
            "out": OUT,
        }
    )
    found = []
    for row in rows:
        if row["out"] == "in place":
            row["layout"] = "aligned"
        found.append(_trial(op, run, dtype, **row))
    for name in activation.NAMES:
        N = H = len(SPECIAL)
        found.append(_trial(op, run, dtype, N, H, name=name, special=True, schedules=name == "tanh"))
    if not quick:
        found.append(_trial(op, run, dtype, MORE_THAN_THE_GRID, 1, name="relu", layout="misaligned"))
    return found


def _trial(
    op: str, run: Callable[..., list[Output]], dtype: str, N: int, H: int,
    *, schedules: bool = False, **keywords: Any,
) -> Trial:  # fmt: skip
    bound = functools.partial(run, dtype=dtype, N=N, H=H, **keywords)
    words = ["special values" if value is True else value for value in keywords.values()]
    return Trial(op, dtype, {"N": N, "H": H}, ", ".join(words), bound, schedules)


forward_trials = functools.partial(trials, "activation.forward", forward)
backward_trials = functools.partial(trials, "activation.backward", backward)
