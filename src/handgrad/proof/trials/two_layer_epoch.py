"""Trials of kernels/two_layer_epoch.cu: an epoch of three steps, the last of which is short."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.kernel import device_limits
from handgrad.ops import activation as activation_op
from handgrad.ops import loss as loss_op
from handgrad.ops import two_layer_epoch
from handgrad.ops.two_layer import Problem, StepArrays
from handgrad.ops.two_layer_epoch import INSTANCES
from handgrad.parameters import FlatParameters
from handgrad.proof import reference, two_layer_reference
from handgrad.proof.covering import pairwise
from handgrad.proof.guarded import OUTPUT_LAYOUTS, Memory, Output
from handgrad.proof.roundoff import Bounded
from handgrad.proof.trials.optimizer import FROZEN, SETTINGS, _guard
from handgrad.proof.trials.trial import Trial

Host = NDArray[Any]

RULES = ("sgd, decay", "momentum", "nesterov", "adam, decay")  # of SETTINGS
OF_RULE = {"Sgd": "sgd, decay", "Momentum": "momentum", "Adam": "adam, decay"}
PIXELS = (2 / 255, -1.0)  # scale and shift of uint8
BATCHES = 2  # whole ones; a shorter one follows


def epoch(
    m: Memory, dtype: str, N: int, D: int, H: int, C: int, *,
    setting: str, loss: str, activation: str = "tanh", output: str = "identity", reduction: str = "mean",
    bias: bool = True, inputs: str = "own", frozen: str = "", x: str = "aligned", sms: int = 0,
    kind: str = "normal", cells: int = 0,
) -> list[Output]:  # fmt: skip
    """One launch; ``sms``: laid out for as many multiprocessors, 0 for those of the device.

    ``kind``: "normal" numbers, "unknown label" in a row of the second batch, or "not a number" in one of X;
    ``cells``: the number of those that the path offers.
    """
    chosen, device = SETTINGS[setting](), device_limits(m.xp)
    stored = dtype if inputs == "own" else inputs
    problem = Problem(
        N, D, H, C, activation, output, loss, reduction, bias, dtype, dtype, stored, chosen.rule,
        device.arch, min(sms or device.sms, device.sms),
    )  # fmt: skip
    if two_layer_epoch.refusal(problem):  # on this architecture
        return []
    shapes = {"W1": (D, H), "b1": (H,), "W2": (H, C), "b2": (C,)}
    shapes = {name: shape for name, shape in shapes.items() if bias or name[0] == "W"}
    values = {name: m.normal(shape, dtype, float(shape[0]) ** -0.5) for name, shape in shapes.items()}
    parameters = FlatParameters(shapes, dtype, m.xp)
    parameters.freeze(*(name for name in FROZEN[frozen] if name in shapes))
    flat = np.zeros(problem.flat_size, dtype)
    for name, view in parameters.split(flat).items():
        view[...] = values[name]
    _guard(m, parameters, flat, "parameters")
    chosen.bind(parameters)
    before: dict[str, dict[str, Host]] = {}
    for slot, state in chosen._state.items():
        before[slot] = {}
        whole = np.zeros(problem.flat_size, dtype)
        for name, view in parameters.split(whole).items():
            given = m.normal(view.shape, dtype, 0.1)
            view[...] = before[slot][name] = abs(given) if slot == "second_moment" else given
        _guard(m, state, whole, slot)

    count = BATCHES * N + N // 2 + (N == 1)
    rows = count + 7
    X = m.integers(0, 255, (rows, D), np.uint8) if stored == "uint8" else m.normal((rows, D), dtype)
    scale, shift = PIXELS if stored == "uint8" else (1.0, 0.0)
    targets = _targets(m, rows, C, loss, dtype)
    order = np.argsort(m.normal((rows,), np.float64), kind="stable")[:count].astype(np.int32)
    if kind == "unknown label":
        targets[order[N]] = C
    elif kind == "not a number":
        X[order[N], D // 2] = np.nan
    losses = m.output((-(-count // N),), dtype, name="losses")
    arrays = StepArrays(
        m.input(X, x, "X"),
        m.input(targets, name="y"),
        scale,
        shift,
        parameters,
        None,
        chosen,
        losses[:1],
        m.workspace,
    )
    offered = two_layer_epoch.tilings(problem)
    layout = two_layer_epoch.lay_out(problem, offered[cells % len(offered)])
    two_layer_epoch.run(layout, arrays, m.input(order, name="order"), N, losses)

    @functools.cache
    @np.errstate(all="ignore")
    def expected() -> tuple[list[Bounded], dict[str, Bounded], dict[str, dict[str, Bounded]]]:
        w = {name: reference.exact(value) for name, value in values.items()}
        states = {slot: {n: reference.exact(v) for n, v in given.items()} for slot, given in before.items()}
        found = []
        for step, start in enumerate(range(0, count, N), start=1):
            batch = order[start : start + N]
            given = two_layer_reference.inputs(X[batch], dtype, scale, shift)
            one = two_layer_reference.step(given, targets[batch], w, activation, output, loss, reduction)
            found.append(one.loss)
            for name, gradient in one.gradients.items():
                if name in parameters.frozen:
                    continue
                own = {slot: state[name] for slot, state in states.items()}
                w[name], after = reference.optimizer_update(chosen.config(), w[name], gradient, own, step)
                for slot, value in after.items():
                    states[slot][name] = value
        return found, w, states

    def flattened(parts: dict[str, Bounded]) -> Bounded:
        precision = next(iter(parts.values())).precision
        value, error = np.zeros(problem.flat_size, precision.wide), np.zeros(problem.flat_size)
        for name, part in parts.items():
            parameters.split(value)[name][...] = part.value
            parameters.split(error)[name][...] = part.error
        return Bounded(value, error, precision)

    def all_losses() -> Bounded:
        found = expected()[0]
        value, error = (np.array([getattr(one, of).item() for one in found]) for of in ("value", "error"))
        return Bounded(value.astype(found[0].precision.wide), error, found[0].precision)

    outputs = [
        Output("losses", losses, all_losses),
        Output("parameters", parameters.flat, lambda: flattened(expected()[1])),
        Output("steps", chosen._steps, lambda: np.array([-(-count // N)], np.int32), exact=True),
    ]
    for slot, state in chosen._state.items():
        after = functools.partial(lambda slot: flattened(expected()[2][slot]), slot)
        outputs.append(Output(slot, state.flat, after))
    return outputs


def _targets(m: Memory, rows: int, C: int, loss: str, dtype: str) -> Host:
    if loss == "mse":
        return m.normal((rows, C), dtype)
    if loss == "bce":
        return m.integers(0, 1, (rows, C), dtype)
    return m.integers(0, C - 1, (rows,), np.int32)


# ---- grid ------------------------------------------------------------------------------------------------


def epoch_trials(dtype: str, quick: bool) -> list[Trial]:
    """Of the catalogue's two_layer.epoch."""
    rows = pairwise(
        {
            "N": (1, 9) if quick else (1, 9, 31, 33),
            "D": (3, 24) if quick else (1, 3, 24, 65),
            "H": (5, 50) if quick else (1, 5, 50, 65),
            "C": (1, 10) if quick else (1, 2, 10, 17),
            "setting": RULES[1::2] if quick else RULES,
            "loss": ("mse", "cross_entropy") if quick else loss_op.NAMES,
            "activation": ("relu", "tanh") if quick else activation_op.NAMES,
            "output": ("identity",) if quick else ("identity", "sigmoid"),
            "reduction": ("mean",) if quick else ("mean", "sum"),
            "bias": (True, False),
            "inputs": ("own", "uint8"),
            "frozen": ("", "W1, b2 frozen") if quick else tuple(FROZEN),
            "x": OUTPUT_LAYOUTS,
            "sms": (0, 1),
        }
    )
    for row in rows:
        if row["loss"] != "mse":
            row["output"] = "identity"
        if row["setting"].startswith("adam"):  # no bound has a root that may be of 0
            row["reduction"] = "mean"
    scheduled: dict[str, Any] = {"setting": "momentum", "loss": "cross_entropy", "activation": "relu"}
    trials = [_trial(dtype, **row) for row in rows]
    for sms in (0, 1):  # slices in shared memory, and in global memory
        trials.append(_trial(dtype, 9, 24, 12, 3, **scheduled, sms=sms, schedules=True))
        for kind in ("unknown label", "not a number"):
            trials.append(_trial(dtype, 9, 24, 12, 3, **scheduled, sms=sms, kind=kind))
        for cells in (1, 2) if quick else range(1, 5):  # besides the rule's
            trials.append(_trial(dtype, 9, 132, 37, 3, **scheduled, sms=sms, cells=cells))
    if not quick:
        trials += [_instance(dtype, number, settings) for number, settings in enumerate(INSTANCES)]
    return trials


def _instance(dtype: str, number: int, settings: dict[str, Any]) -> Trial:
    """The instantiation that the catalogue lists."""
    chosen = dict(settings)
    shape = (9, 24 if two_layer_epoch.is_wide(number) else 23, 12, chosen.pop("C"))
    setting = OF_RULE[chosen.pop("rule", "Sgd")]
    sms = 0 if two_layer_epoch.is_kept(number) else 1
    keywords: dict[str, Any] = {"activation": "relu", "sms": sms, **chosen}
    return _trial(dtype, *shape, setting=setting, **keywords)


def _trial(dtype: str, N: int, D: int, H: int, C: int, *, schedules: bool = False, **keywords: Any) -> Trial:
    run = functools.partial(epoch, dtype=dtype, N=N, D=D, H=H, C=C, **keywords)
    words = {
        "bias": "" if keywords.get("bias", True) else "no bias",
        "inputs": "uint8" if keywords.get("inputs") == "uint8" else "",
        "x": f"x {keywords['x']}" if keywords.get("x", "aligned") != "aligned" else "",
        "sms": "slices in global memory" if keywords.get("sms") else "",
        "cells": f"cells {keywords['cells']}" if keywords.get("cells") else "",
        "output": "" if keywords.get("output", "identity") == "identity" else f"output {keywords['output']}",
    }
    named = [words.get(name, str(value)) for name, value in keywords.items()]
    shape = {"N": N, "D": D, "H": H, "C": C}
    return Trial("two_layer.epoch", dtype, shape, ", ".join(word for word in named if word), run, schedules)
