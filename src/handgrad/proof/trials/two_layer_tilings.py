"""Trials of the tilings that a path offers besides the rule's: whole steps, each tile in one of them.

What else a step may be (loss, activation, bias, alignment) follows a pairwise covering array.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import fields, replace
from types import ModuleType
from typing import Any

from handgrad.ops import activation as activation_op
from handgrad.ops.tilings import AnyTiling
from handgrad.ops.two_layer import PRECISIONS, Problem
from handgrad.ops.two_layer_general_tiles import FEW
from handgrad.proof.covering import pairwise
from handgrad.proof.trials.trial import Trial
from handgrad.proof.trials.two_layer_paths import path_trials

SEED = 20262
MOST = 6  # values of a part of a tiling, at most

LOSSES = (
    *(("mse", name) for name in activation_op.NAMES),
    *((name, "identity") for name in ("bce", "cross_entropy", "hinge")),
)
SHAPES = {  # N, D, H, C for which there is something to choose: ragged, few columns or samples, to be small
    "R1": (
        *((1101, 64, 63, 3), (130, 300, 39, 2), (57, 783, 31, 10), (67, 127, 32, 1)),
        *((2500, 21, 17, 5), (40, 200, 50, 2)),
    ),
    "R3": (
        *((17_001, 3, 20, 2), (17_001, 5, 50, 1), (17_001, 2, 99, 3)),
        *((67, 4001, 101, 2), (1500, 130, 37, 10), (300, 131, 65, 17)),
    ),
    "R4": (
        *((65, 65, 3751, 3), (67, 68, 3752, 10), (33, 66, 3750, 20), (600, 4001, 33, 2)),
        *((1030, 70, 129, 17), (300, 257, 300, 9)),
    ),
}


def chosen(offered: tuple[AnyTiling, ...], numbers: tuple[int, ...]) -> AnyTiling:
    """Of every part in turn the value of that number, modulo how many there are with those chosen before."""
    left = list(offered)
    for field, number in zip(fields(offered[0]), numbers, strict=False):
        values = list(dict.fromkeys(getattr(one, field.name) for one in left))
        left = [one for one in left if getattr(one, field.name) == values[number % len(values)]]
    return left[0]


def tiling_trials(op: str, path: ModuleType, name: str, dtype: str) -> list[Trial]:
    """Of ``path``, which is ``name``, in ``dtype``; none of the rule's own tilings."""
    return path_trials(op, path, _rows(path, name, dtype))


def _rows(path: ModuleType, name: str, dtype: str) -> Iterator[dict[str, Any]]:
    """Of every shape and precision, a few tilings that have every tile in one of them."""
    rest = pairwise(
        {
            "loss": LOSSES,
            "activation": activation_op.NAMES,
            "reduction": ("mean", "sum"),
            "bias": (True, False),
            "inputs": (dtype, "uint8"),
            "x": ("aligned", "misaligned"),
        },
        seed=SEED,
    )
    others = itertools.cycle(rest)
    for shape, precision in itertools.product(SHAPES[name], PRECISIONS[dtype]):
        plain = Problem(*shape, dtype=dtype, precision=precision, inputs=dtype)
        if path.refusal(plain):
            continue
        offered = path.tilings(plain)
        tilings = dict.fromkeys(chosen(offered, (number,) * 4) for number in range(MOST))
        for tiling in list(tilings)[1:]:
            row = dict(next(others))
            row["loss"], row["output"] = row["loss"]
            x = row.pop("x")
            if precision == "bfloat16" and row["activation"] == "softplus":
                row["activation"] = "tanh"  # of many units that grow, the bounds' own passes all bounds
            if path.refusal(replace(plain, **row)):
                row["inputs"] = dtype
            second = precision if name == "R4" and plain.C > FEW else ""
            yield {
                **dict(zip("NDHC", shape, strict=True)), **row, "dtype": dtype, "precision": precision,
                "x": x, "second": second, "tiling": tiling.name,
            }  # fmt: skip
