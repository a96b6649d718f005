"""Trials of kernels/two_layer_reduce.cu."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.ops import two_layer_reduce
from handgrad.ops.two_layer import Problem, StepArrays
from handgrad.parameters import FlatParameters
from handgrad.proof import reference
from handgrad.proof.covering import pairwise
from handgrad.proof.guarded import CANARY, Memory, Output, bits_of
from handgrad.proof.roundoff import PRECISIONS, Bounded
from handgrad.proof.trials.optimizer import FROZEN, SETTINGS, _flat, _guard, _masks, _where
from handgrad.proof.trials.trial import HIDDEN, INPUTS, OUTPUTS, Trial

Host = NDArray[Any]

STORE = "store"
PARTITIONS = (0, 1, 7, 8, 19)  # S; eight loads are under way at once
LOSSES = (1, 5, 64, 131)
MORE_THAN_THE_GRID = two_layer_reduce.MAX_BLOCKS * two_layer_reduce.THREADS * 4 + 4000  # elements in float32


def reduce(
    m: Memory, dtype: str, S: int, D: int, H: int, C: int, *,
    setting: str, b2: str = "shared", frozen: str = "", bias: bool = True, losses: int = 5, step: int = 1,
    kind: str = "normal",
) -> list[Output]:  # fmt: skip
    """One launch; with ``b2`` "own", the partial gradients of b2 are an array of 3 rows."""
    store = setting == STORE
    chosen = None if store else SETTINGS[setting]()
    problem = Problem(
        N=11, D=D, H=H, C=C, bias=bias, dtype=dtype, precision=dtype, inputs=dtype,
        rule=chosen.rule if chosen else "Store",
    )  # fmt: skip
    shapes = {"W1": (D, H), "b1": (H,), "W2": (H, C), "b2": (C,)}
    if not bias:
        shapes = {name: shape for name, shape in shapes.items() if name[0] == "W"}
    parameters = FlatParameters(shapes, dtype, m.xp)
    assert parameters.flat.size == problem.flat_size
    parameters.freeze(*(name for name in FROZEN[frozen] if name in shapes))
    used, trainable = _masks(parameters)
    start = problem.offsets["b2"]

    def rows(count: int, columns: slice) -> Host:
        """Partial gradients; canaries stand where the padding is."""
        shape = (count, used[columns].size)
        values = m.normal(shape, dtype) if kind == "normal" else m.integers(-8, 8, shape, dtype)
        if setting.startswith("adam") and kind == "normal":
            # Adam divides by the gradient's size: where a sum nearly cancels, its rounding has no bound.
            values += values.dtype.type(4)
        values[:, :1] = np.nan if kind == "special" else values[:, :1]
        bits_of(values)[:, ~used[columns]] = CANARY[values.dtype.itemsize]
        return values

    partials = rows(S, slice(None))
    own = rows(3, slice(start, None)) if b2 == "own" else None
    loss_partials = m.normal((losses,), dtype)
    w = _flat(m, parameters, used)
    _guard(m, parameters, w, "parameters")
    before: dict[str, Host] = {}
    if chosen is not None:
        chosen.bind(parameters)
        for slot, state in chosen._state.items():
            values = _flat(m, parameters, used)
            before[slot] = abs(values) if slot == "second_moment" else values
            _guard(m, state, before[slot], slot)
        chosen._steps[...] = m.xp.asarray(np.array([step - 1], np.int32))
    gradient = m.output((used.size,), dtype, name="gradient") if store else None
    loss = m.output((1,), dtype, name="loss")
    arrays = StepArrays(None, None, 1.0, 0.0, parameters, gradient, chosen, loss, m.workspace)
    two_layer_reduce.reduce(
        problem,
        arrays,
        m.input(partials, name="partials"),
        m.input(loss_partials, name="loss_partials"),
        None if own is None else m.input(own, name="b2_partials"),
    )

    @functools.cache
    def sums() -> Bounded:
        """g, of which the padding is 0."""
        total = _in_order(np.where(used, partials, 0), dtype)
        if own is None:
            return total
        tail = _in_order(np.where(used[start:], own, 0), dtype)
        value, error = (
            np.concatenate([getattr(total, of)[:start], getattr(tail, of)]) for of in ("value", "error")
        )
        return Bounded(value, error, total.precision)

    def mean() -> Bounded:
        return _in_order(loss_partials.reshape(-1, 1), dtype) * Bounded.constant(
            problem.loss_scale, PRECISIONS[dtype]
        )

    exact = kind == "integers"
    outputs = [Output("loss", loss, mean)]
    if chosen is None:
        return [*outputs, Output("gradient", gradient, sums, exact)]

    @functools.cache
    def expected() -> tuple[Bounded, dict[str, Bounded]]:
        return reference.optimizer_update(chosen.config(), w, sums(), before, step)

    def kept(values: Host, which: Any) -> Any:
        return lambda: _where(trainable & used, used, which(), values)

    outputs += [
        Output("parameters", parameters.flat, kept(w, lambda: expected()[0])),
        Output("steps", chosen._steps, lambda: np.array([step], np.int32), exact=True),
        Output("ticket", chosen._ticket, lambda: np.array([0], np.int32), exact=True),
    ]
    for slot, state in chosen._state.items():
        after = functools.partial(lambda slot: expected()[1][slot], slot)
        outputs.append(Output(slot, state.flat, kept(before[slot], after)))
    return outputs


def _in_order(rows: Host, dtype: str) -> Bounded:
    """The sums over the rows, each bounded by that of a sum in any order."""
    p = PRECISIONS[dtype]
    if not len(rows):
        return Bounded.exact(np.zeros(rows.shape[1]), p)
    return reference.reduce_partials(rows)


# ---- grid ------------------------------------------------------------------------------------------------


def reduce_trials(dtype: str, quick: bool) -> list[Trial]:
    """Of the catalogue's two_layer.reduce."""
    rows = pairwise(
        {
            "S": PARTITIONS,
            "D": (1, 65) if quick else INPUTS,
            "H": (1, 50) if quick else HIDDEN,
            "C": (1, 10) if quick else OUTPUTS,
            "setting": (STORE, *SETTINGS),
            "b2": ("shared", "own"),
            "frozen": tuple(FROZEN),
            "bias": (True, False),
            "losses": LOSSES,
            "step": (1, 10_000),
        }
    )
    trials = []
    for row in rows:
        if not row["bias"]:
            row["b2"] = "shared"
        trials.append(_trial(dtype, **row))
    for setting in (STORE, *SETTINGS):
        trials.append(_trial(dtype, 9, 31, 50, 10, setting=setting, b2="own", losses=70, schedules=True))
    for kind in ("integers", "special"):
        trials.append(_trial(dtype, 19, 33, 50, 10, setting=STORE, kind=kind))
    if not quick:
        trials.append(_trial(dtype, 2, MORE_THAN_THE_GRID // 500, 500, 1, setting="momentum"))
    return trials


def _trial(dtype: str, S: int, D: int, H: int, C: int, *, schedules: bool = False, **keywords: Any) -> Trial:
    run = functools.partial(reduce, dtype=dtype, S=S, D=D, H=H, C=C, **keywords)
    words = {"b2": "b2 {}", "losses": "{} losses", "step": "step {}", "kind": "{}"}
    named = [words.get(name, "{}").format(value) for name, value in keywords.items() if name != "bias"]
    named += [] if keywords.get("bias", True) else ["no bias"]
    shape = {"S": S, "D": D, "H": H, "C": C}
    return Trial("two_layer.reduce", dtype, shape, ", ".join(word for word in named if word), run, schedules)
