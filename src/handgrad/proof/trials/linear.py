"""Trials of kernels/linear.cu."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.ops import activation as activation_op
from handgrad.ops import linear
from handgrad.proof import reference
from handgrad.proof.covering import pairwise
from handgrad.proof.guarded import LAYOUTS, OUTPUT_LAYOUTS, Memory, Output
from handgrad.proof.trials.trial import HIDDEN, INPUTS, OUTPUTS, SAMPLES, Trial

Host = NDArray[Any]
Run = Callable[..., list[Output]]

SCHEDULED = (150, 70, 70)  # N, D, H: three by two tiles, five slabs
COLUMNS = (*OUTPUTS, *HIDDEN[1:])  # of either layer
REDUCED = ((2, 1, 0), (2, 64, 1), (3, 65, 17), (8, 1000, 10), (64, 300, 300))  # S, weights, biases
EXACT = ("integers", "dead")


def _values(m: Memory, kind: str, shape: tuple[int, ...], dtype: str) -> Host:
    """Normal numbers; "integers": small ones, whose sums over 1000 products stay below 2²⁴, so exact."""
    if kind == "integers":
        return m.integers(-8, 8, shape, dtype)
    values = m.normal(shape, dtype)
    if kind == "special" and len(shape) == 2:
        values[0, -1], values[-1, 0], values[len(values) // 2, 0] = np.nan, np.inf, -np.inf
    return values


def _finite(kind: str) -> str:
    return "normal" if kind == "special" else kind


def forward(
    m: Memory, dtype: str, N: int, D: int, H: int, *, kind: str = "normal", name: str = "relu",
    bias: bool = True, x: str = "aligned", w: str = "aligned", out: str = "aligned",
) -> list[Output]:  # fmt: skip
    """``linear.forward``."""
    X, W = _values(m, kind, (N, D), dtype), _values(m, _finite(kind), (D, H), dtype)
    b = np.full(H, -1e4, dtype) if kind == "dead" else _values(m, kind, (H,), dtype)
    Y = m.output((N, H), dtype, out, "Y")
    given = m.input(b, w, "b") if bias else None
    linear.forward(m.input(X, x, "X"), m.input(W, w, "W"), given, name, out=Y, workspace=m.workspace)
    added = b if bias else None
    return [Output("Y", Y, lambda: reference.linear_forward(X, W, added, name), kind in EXACT)]


def backward_input(
    m: Memory, dtype: str, N: int, D: int, H: int, *, kind: str = "normal", name: str = "relu",
    bias: bool = True, x: str = "aligned", w: str = "aligned", out: str = "aligned",
) -> list[Output]:  # fmt: skip
    """``linear.backward_input``: dZ (N, D), W (H, D); without ``bias`` the identity's A is left out."""
    dZ, W = _values(m, kind, (N, D), dtype), _values(m, _finite(kind), (H, D), dtype)
    A = reference.activation_forward(m.normal((N, H), dtype), name).value.astype(dtype)
    if kind == "dead":  # whatever comes back through a dead unit, infinite or not, is dropped
        A, dZ = np.zeros_like(A), np.where(dZ > 1, np.inf, dZ).astype(dtype)
    elif kind == "special":
        A[:1] = np.inf
    known = A if bias or name != "identity" else None
    dZ1 = m.output((N, H), dtype, out, "dZ1")
    given = None if known is None else m.input(A, x, "A")
    linear.backward_input(
        m.input(dZ, x, "dZ"), m.input(W, w, "W"), given, name, out=dZ1, workspace=m.workspace
    )
    expected = functools.partial(reference.linear_backward_input, dZ, W, known, name)
    return [Output("dZ1", dZ1, expected, kind in EXACT)]


def backward_weight(
    m: Memory, dtype: str, N: int, D: int, H: int, *, kind: str = "normal", bias: bool = True,
    x: str = "aligned", w: str = "aligned", out: str = "aligned",
) -> list[Output]:  # fmt: skip
    """``linear.backward_weight``: X (N, D), dZ (N, H)."""
    X, dZ = _values(m, kind, (N, D), dtype), _values(m, kind, (N, H), dtype)
    dW = m.output((D, H), dtype, out, "dW")
    db = m.output((H,), dtype, out, "db") if bias else None
    linear.backward_weight(m.input(X, x, "X"), m.input(dZ, w, "dZ"), dW, db, bias=bias, workspace=m.workspace)
    both = functools.cache(lambda: reference.linear_backward_weight(X, dZ))
    outputs = [Output("dW", dW, lambda: both()[0], kind in EXACT)]
    return outputs + ([Output("db", db, lambda: both()[1], kind in EXACT)] if bias else [])


def reduce_partials(m: Memory, dtype: str, S: int, weights: int, biases: int, kind: str) -> list[Output]:
    """``reduce_partials`` alone: S partial results, each with its biases behind its weights."""
    offset = -(-weights // 64) * 64
    stride = offset + -(-biases // 64) * 64
    partials = _values(m, kind, (S, stride), dtype)
    dW, db = m.output((weights,), dtype, name="dW"), m.output((biases,), dtype, name="db")
    linear.reduce_kernel(np.dtype(dtype))(
        (-(-(weights + biases) // linear.REDUCE_THREADS),),
        (linear.REDUCE_THREADS,),
        *(m.input(partials.reshape(-1), name="partials"), dW, db, np.int32(S), np.int64(stride)),
        *(np.int32(weights), np.int32(offset), np.int32(biases)),
    )
    sums = functools.cache(lambda: reference.reduce_partials(partials))
    return [
        Output("dW", dW, lambda: sums()[:weights], kind in EXACT),
        Output("db", db, lambda: sums()[offset : offset + biases], kind in EXACT),
    ]


# ---- grids -----------------------------------------------------------------------------------------------


def forward_trials(dtype: str, quick: bool) -> list[Trial]:
    """Of the catalogue's linear.forward."""
    op = "linear.forward"
    return [
        *_grid(op, forward, dtype, quick, (*INPUTS, 0, 50, 65), COLUMNS),
        *_instances(op, forward, dtype, quick),
        _trial(op, forward, dtype, 33, 65, 50, kind="dead"),
        *(_trial(op, forward, dtype, 33, 50, 65, kind="special", name=f) for f in _activations(quick)),
    ]


def backward_input_trials(dtype: str, quick: bool) -> list[Trial]:
    """Of the catalogue's linear.backward_input, D being the length of a row of dZ."""
    op = "linear.backward_input"
    return [
        *_grid(op, backward_input, dtype, quick, (*OUTPUTS, 0, 50, 129), (*HIDDEN, 784)),
        *_instances(op, backward_input, dtype, quick),
        _trial(op, backward_input, dtype, 33, 10, 50, kind="dead"),
        *(_trial(op, backward_input, dtype, 33, 10, 65, kind="special", name=f) for f in _activations(quick)),
    ]


def backward_weight_trials(dtype: str, quick: bool) -> list[Trial]:
    """Of the catalogue's linear.backward_weight."""
    op = "linear.backward_weight"
    trials = [
        *_grid(op, backward_weight, dtype, quick, (*INPUTS, 50, 65), COLUMNS),
        *_instances(op, backward_weight, dtype, quick),
        _trial(op, backward_weight, dtype, 33, 65, 50, kind="special"),
        _trial(op, backward_weight, dtype, 300, 65, 10, kind="special"),
    ]
    if not quick:
        trials.append(_trial(op, backward_weight, dtype, 300, 1000, 1024, kind="integers"))
    return trials


def reduce_trials(dtype: str, quick: bool) -> list[Trial]:
    """Of the catalogue's linear.reduce_partials."""
    trials = []
    for S, weights, biases in REDUCED:
        for kind in ("normal", "integers"):
            run = functools.partial(
                reduce_partials, dtype=dtype, S=S, weights=weights, biases=biases, kind=kind
            )
            shape = {"S": S, "weights": weights, "biases": biases}
            trials.append(Trial("linear.reduce_partials", dtype, shape, kind, run, schedules=S == 8))
    return trials


def _trial(
    op: str, run: Run, dtype: str, N: int, D: int, H: int, *, schedules: bool = False, **keywords: Any
) -> Trial:
    setting = {**keywords, "bias": "bias" if keywords.get("bias", True) else "no bias"}
    bound = functools.partial(run, dtype=dtype, N=N, D=D, H=H, **keywords)
    return Trial(op, dtype, {"N": N, "D": D, "H": H}, ", ".join(setting.values()), bound, schedules)


def _activations(quick: bool) -> tuple[str, ...]:
    """Each is a kernel of its own to compile: all of them on all tiles only in the whole grid."""
    return ("identity", "sigmoid") if quick else activation_op.NAMES


def _grid(
    op: str, run: Run, dtype: str, quick: bool, inner: tuple[int, ...], columns: tuple[int, ...]
) -> Iterator[Trial]:
    factors: dict[str, tuple[Any, ...]] = {
        "N": (0, 1, 127) if quick else SAMPLES,
        "D": inner[:4:3] if quick else inner,
        "H": columns[1::3] if quick else columns,
        "name": _activations(quick),
        "bias": (True, False),
        "x": LAYOUTS,
        "w": LAYOUTS,
        "out": OUTPUT_LAYOUTS,
    }
    if run is backward_weight:
        del factors["name"]
    for row in pairwise(factors):
        yield _trial(op, run, dtype, **row)
    yield _trial(op, run, dtype, *SCHEDULED, schedules=True)


def _instances(op: str, run: Run, dtype: str, quick: bool) -> Iterator[Trial]:
    """Every tile with loads of 16 bytes and of one element, exactly; every activation on one tile."""
    tiles: tuple[linear.Tile, ...] = linear.TILES
    if quick:  # the small ones, in float64, which is there for checking, two of them
        tiles = linear.TILES[1:] if dtype == "float32" else (linear.MEDIUM, linear.SLIM)
    for tile in tiles:
        rows = 1000 if tile is linear.WIDE else 136
        columns = 1024 if tile is linear.WIDE else tile.BN
        # 4 columns less are still loads of 16 bytes, past whose last one the tile goes on
        less = ((0, 0), (1, 0), (0, 4)) if quick else ((0, 0), (1, 0), (0, 4), (0, 1), (1, 1))
        for less_inner, less_columns in less:
            H = max(1, columns - less_columns)
            if run is backward_weight:
                yield _trial(op, run, dtype, 70, rows - less_inner, H, kind="integers")
            else:
                yield _trial(op, run, dtype, rows, 36 - less_inner, H, kind="integers", name="relu")
    if run is not backward_weight:
        for name in _activations(quick):
            yield _trial(op, run, dtype, 65, 36, 64, name=name)
