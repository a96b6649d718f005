"""Trials of kernels/optimizer.cu."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.ops.optimizer import SGD, Adam, AdamW, Optimizer
from handgrad.ops.optimizer_kernels import MAX_BLOCKS, THREADS, VECTOR_BYTES, squares_kernel
from handgrad.parameters import FlatParameters
from handgrad.proof import reference
from handgrad.proof.covering import pairwise
from handgrad.proof.guarded import Memory, Output
from handgrad.proof.roundoff import Bounded
from handgrad.proof.trials.trial import HIDDEN, INPUTS, OUTPUTS, Trial

SETTINGS: dict[str, Callable[[], Optimizer]] = {
    "sgd": lambda: SGD(0.1),
    "sgd, decay": lambda: SGD(0.1, weight_decay=0.03),
    "momentum": lambda: SGD(0.05, momentum=0.9, weight_decay=0.03),
    "nesterov": lambda: SGD(0.05, momentum=0.7, nesterov=True),
    "adam": lambda: Adam(0.01),
    "adam, decay": lambda: Adam(0.02, beta1=0.5, beta2=0.9, eps=1e-3, weight_decay=0.1),
    "adam, beta 0": lambda: Adam(0.02, beta1=0.0, beta2=0.0),
    "adamw": lambda: AdamW(0.01, weight_decay=0.1),
}
CLIPPING = {"no clipping": None, "clipped": 0.75, "norm below": 1e9}
FROZEN: dict[str, tuple[str, ...]] = {
    "": (),
    "b1 frozen": ("b1",),
    "W1, b2 frozen": ("W1", "b2"),
    "all frozen": ("W1", "b1", "W2", "b2"),
}
STEPS = (1, 2, 10_000)
MORE_THAN_THE_GRID = MAX_BLOCKS * THREADS * 4 + 5000  # elements: blocks loop in float32


def update(
    m: Memory, dtype: str, D: int, H: int, C: int, *,
    setting: str, clipping: str = "no clipping", frozen: str = "", step: int = 1, special: bool = False,
) -> list[Output]:  # fmt: skip
    """One step of an optimizer from a state that earlier steps might have left."""
    shapes = {"W1": (D, H), "b1": (H,), "W2": (H, C), "b2": (C,)}
    chosen = SETTINGS[setting]()
    parameters = FlatParameters(shapes, dtype, m.xp)
    parameters.freeze(*FROZEN[frozen])
    used, trainable = _masks(parameters)
    w, g = (_flat(m, parameters, used) for _ in range(2))
    if special:
        g[0], g[parameters.offsets["b2"]] = np.nan, np.inf
        w[1], w[parameters.offsets["b2"] + 1] = np.inf, -np.inf  # without decay no 0 * inf comes into it
    _guard(m, parameters, w, "parameters")
    chosen.bind(parameters)
    before: dict[str, NDArray[Any]] = {}
    for slot, state in chosen._state.items():
        values = _flat(m, parameters, used)
        before[slot] = abs(values) if slot == "second_moment" else values
        _guard(m, state, before[slot], slot)
    chosen._steps[...] = m.xp.asarray(np.array([step - 1], np.int32))
    chosen._partials[...] = np.nan
    chosen.update(parameters, m.input(g, name="gradients"), CLIPPING[clipping])

    @functools.cache
    def expected() -> tuple[Bounded, dict[str, Bounded]]:
        factor = reference.clip_factor(g[trainable], CLIPPING[clipping])
        return reference.optimizer_update(chosen.config(), w, g, before, step, factor)

    def kept(values: NDArray[Any], which: Callable[[], Bounded]) -> Callable[[], Bounded]:
        """Frozen parameters keep every bit; the padding stays what it is without any rounding."""
        return lambda: _where(trainable, used, which(), values)

    outputs = [
        Output("parameters", parameters.flat, kept(w, lambda: expected()[0])),
        Output("steps", chosen._steps, lambda: np.array([step], np.int32), exact=True),
        Output("ticket", chosen._ticket, lambda: np.array([0], np.int32), exact=True),
    ]
    for slot, state in chosen._state.items():
        after = functools.partial(lambda slot: expected()[1][slot], slot)
        outputs.append(Output(slot, state.flat, kept(before[slot], after)))
    return outputs


def squares(m: Memory, dtype: str, size: int, *, frozen: bool, special: bool = False) -> list[Output]:
    """``gradient_squares`` alone: the sum of squares of every block."""
    chunk = 256 // np.dtype(dtype).itemsize
    g = m.normal((size * chunk,), dtype)
    flags = m.integers(0, 1, (size,), np.uint8) if frozen else np.ones(size, np.uint8)
    if special:
        g[0], flags[0], g[-1] = np.nan, 0, np.inf  # what is frozen is not read
    vectors = g.nbytes // VECTOR_BYTES
    blocks = min(-(-vectors // THREADS), THREADS)
    partials = m.output((blocks,), np.float64, name="partials")
    squares_kernel(np.dtype(dtype))(
        (blocks,),
        (THREADS,),
        *(m.input(g, name="gradients"), m.input(flags, name="trainable"), partials, np.int32(vectors)),
    )
    vector = np.arange(g.size) // (VECTOR_BYTES // g.itemsize)
    owner = np.where(np.repeat(flags, chunk), vector // THREADS % blocks, -1)
    return [Output("partials", partials, lambda: reference.squares(g, owner, blocks))]


def _masks(parameters: FlatParameters) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which elements of the flat buffer belong to a parameter, and which chunks to one that is not frozen."""
    used, trainable = (np.zeros(parameters.flat.size, np.bool_) for _ in range(2))
    ends = (*list(parameters.offsets.values())[1:], used.size)
    for (name, start), end in zip(parameters.offsets.items(), ends, strict=True):
        used[start : start + math.prod(parameters.shapes[name])] = True
        trainable[start:end] = name not in parameters.frozen
    return used, trainable


def _flat(m: Memory, parameters: FlatParameters, used: NDArray[np.bool_]) -> NDArray[Any]:
    return m.normal((used.size,), parameters.dtype) * used


def _guard(m: Memory, parameters: FlatParameters, values: NDArray[Any], name: str) -> None:
    """Let ``parameters`` live between canaries."""
    parameters.flat = m.state(values, name)
    parameters.views = parameters.split(parameters.flat)


def _where(
    trainable: NDArray[np.bool_], used: NDArray[np.bool_], values: Bounded, before: NDArray[Any]
) -> Bounded:
    value = np.where(trainable, values.value, before.astype(values.precision.wide))
    return Bounded(value, np.where(trainable & used, values.error, 0), values.precision)


# ---- grids -----------------------------------------------------------------------------------------------


def update_trials(dtype: str, quick: bool) -> list[Trial]:
    """Of the catalogue's optimizer.update."""
    rows = pairwise(
        {
            "D": (1, 65) if quick else INPUTS,
            "H": (1, 50) if quick else HIDDEN,
            "C": (1, 10) if quick else OUTPUTS,
            "setting": tuple(SETTINGS),
            "clipping": tuple(CLIPPING),
            "frozen": tuple(FROZEN),
            "step": STEPS,
        }
    )
    trials = [_trial(dtype, **row) for row in rows]
    for setting in SETTINGS:
        trials.append(_trial(dtype, 65, 50, 10, setting=setting, clipping="clipped", schedules=True))
        for frozen in ("", "W1, b2 frozen"):  # where nothing that is frozen is read, nothing is special
            for clipping in CLIPPING:
                settings: dict[str, Any] = {"setting": setting, "clipping": clipping, "frozen": frozen}
                trials.append(_trial(dtype, 3, 50, 10, special=True, **settings))
    if not quick:
        trials.append(_trial(dtype, MORE_THAN_THE_GRID // 500, 500, 1, setting="adamw", clipping="clipped"))
    return trials


def _trial(dtype: str, D: int, H: int, C: int, *, schedules: bool = False, **keywords: Any) -> Trial:
    run = functools.partial(update, dtype=dtype, D=D, H=H, C=C, **keywords)
    named = {**keywords, "step": f"step {keywords.get('step', 1)}"}
    named["special"] = "special values" if "special" in keywords else ""
    setting = ", ".join(word for word in named.values() if word)
    return Trial("optimizer.update", dtype, {"D": D, "H": H, "C": C}, setting, run, schedules)


def squares_trials(dtype: str, quick: bool) -> list[Trial]:
    """Of the catalogue's optimizer.squares, over ``chunks`` of 256 bytes."""
    larger = () if quick else (16 * 256, 16 * 256 + 300)  # blocks loop over the last
    kinds = {"none frozen": (False, False), "frozen": (True, False), "special values": (True, True)}
    trials = []
    for size in (1, 15, 16, 17, 1000, *larger):
        for setting, (frozen, special) in kinds.items():
            run = functools.partial(squares, dtype=dtype, size=size, frozen=frozen, special=special)
            scheduled = size == 17
            trials.append(Trial("optimizer.squares", dtype, {"chunks": size}, setting, run, scheduled))
    return trials
