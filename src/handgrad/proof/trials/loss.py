"""Trials of kernels/loss.cu."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.ops import activation as activation_op
from handgrad.ops import loss
from handgrad.proof import reference
from handgrad.proof.covering import pairwise
from handgrad.proof.guarded import LAYOUTS, OUTPUT_LAYOUTS, Memory, Output
from handgrad.proof.roundoff import Bounded
from handgrad.proof.trials.trial import OUTPUTS, SAMPLES, Trial

Host = NDArray[Any]

MSE = tuple(("mse", name) for name in activation_op.NAMES)
ELEMENTWISE = (*MSE, ("bce", "identity"))
ROWS = (("cross_entropy", "identity"), ("hinge", "identity"))
KINDS = ("normal", "integers", "huge", "peak", "infinite", "special")
MORE_COLUMNS = (3, 5, 33, 100)  # so that 4, 8 and 32 lanes share a row, and loop over it
MORE_THAN_THE_GRID = {  # N, C: rows and elements that blocks loop over
    "elementwise": (1000, loss.MAX_BLOCKS * loss.THREADS // 1000 + 2),
    "rows": (loss.MAX_BLOCKS * loss.THREADS // 32 + 77, 17),
}


def forward_backward(
    m: Memory, dtype: str, N: int, C: int, *, name: str, output: str = "identity", reduction: str = "mean",
    kind: str = "normal", z: str = "aligned", y: str = "aligned", out: str = "aligned", labels: str = "int32",
) -> list[Output]:  # fmt: skip
    """``loss.forward_backward``."""
    Z = m.integers(-8, 8, (N, C), dtype) if kind == "integers" else m.normal((N, C), dtype, 3.0)
    if kind == "huge":
        Z = np.sign(Z) * np.asarray(1e4, dtype)
    elif kind == "peak":  # one logit above the others, in every column of some row
        Z[np.arange(N), np.arange(N) % C] = 1e4
    elif kind == "infinite":
        Z[0, 0] = -np.inf
    elif kind == "special":
        Z[0, 0], Z[N // 3, -1], Z[N // 2, C // 2] = np.nan, np.inf, -np.inf
    targets = _targets(m, Z, name, kind, labels)
    dZ = m.output((N, C), dtype, out, "dZ")
    value, _ = loss.forward_backward(
        m.input(Z, z, "Z"), m.input(targets, y, "y"), name, output, reduction, out=dZ, workspace=m.workspace
    )

    @functools.cache
    def expected() -> tuple[Bounded, Bounded]:
        return reference.loss(Z, targets, name, output, reduction)

    whole = name == "hinge" or (name == "mse" and output in ("identity", "relu"))
    exact = whole and kind == "integers" and reduction == "sum"
    return [
        Output("loss", value, lambda: expected()[0], exact),
        Output("dZ", dZ, lambda: expected()[1], exact),
    ]


def _targets(m: Memory, Z: Host, name: str, kind: str, labels: str) -> Host:
    N, C = Z.shape
    if name == "mse":
        return m.integers(-8, 8, (N, C), Z.dtype) if kind == "integers" else m.normal((N, C), Z.dtype)
    if name == "bce":
        return m.integers(0, 1, (N, C), Z.dtype)
    targets = m.integers(0, C - 1, (N,), labels)
    if kind == "one class":
        targets[...] = C - 1
    elif kind == "infinite":
        targets[0] = 0  # the infinite logit is the label's own
    elif kind == "unknown label":
        targets[0], targets[-1] = -1, C
    return targets


def elementwise_trials(dtype: str, quick: bool) -> list[Trial]:
    """Of the catalogue's loss.elementwise."""
    return _trials("elementwise", dtype, quick, ELEMENTWISE, KINDS)


def rows_trials(dtype: str, quick: bool) -> list[Trial]:
    """Of the catalogue's loss.rows."""
    return _trials("rows", dtype, quick, ROWS, (*KINDS, "one class", "unknown label"))


def _trials(
    op: str, dtype: str, quick: bool, losses: tuple[tuple[str, str], ...], kinds: tuple[str, ...]
) -> list[Trial]:
    rows = pairwise(
        {
            "loss": losses,
            "N": (0, 1, 33, 127) if quick else SAMPLES,
            "C": (1, 3, 10) if quick else (*OUTPUTS, *MORE_COLUMNS),
            "reduction": loss.REDUCTIONS,
            "z": LAYOUTS,
            "y": LAYOUTS[:3],
            "out": OUTPUT_LAYOUTS,
            "labels": ("int32", "int64", "uint8") if op == "rows" else ("",),
        }
    )
    trials = []
    for row in rows:
        name, output = row.pop("loss")
        trials.append(_trial(op, dtype, name=name, output=output, **row))
    for name, output in losses:
        for kind in kinds:
            for N, C in ((40, 40),) if quick else ((40, 40), (40, 10), (300, 2)):
                trials.append(_trial(op, dtype, N, C, name=name, output=output, kind=kind, reduction="sum"))
        trials.append(_trial(op, dtype, 130, 10, name=name, output=output, schedules=True))
    if not quick:
        N, C = MORE_THAN_THE_GRID[op]
        trials += [_trial(op, dtype, N, C, name=name, output=output) for name, output in losses[-2:]]
    return trials


def _trial(op: str, dtype: str, N: int, C: int, *, schedules: bool = False, **keywords: Any) -> Trial:
    run = functools.partial(forward_backward, dtype=dtype, N=N, C=C, **keywords)
    return Trial(
        f"loss.{op}", dtype, {"N": N, "C": C}, ", ".join(filter(None, keywords.values())), run, schedules
    )
