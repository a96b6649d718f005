"""Trials of kernels/two_layer_step.cu: path R1."""

from __future__ import annotations

from typing import Any

from handgrad.ops import activation as activation_op
from handgrad.ops import two_layer_step
from handgrad.proof.trials.trial import Trial
from handgrad.proof.trials.two_layer_paths import path_trials, tensor_core_rows
from handgrad.proof.trials.two_layer_tilings import LOSSES, tiling_trials

SHAPES = (  # N, D, H, C: every tile; ragged sides; several goes over k; more samples than a partition
    (0, 3, 50, 2),
    (1, 1, 1, 1),
    (31, 3, 63, 17),
    (33, 783, 50, 10),
    (127, 65, 65, 2),
    (33, 300, 128, 10),
    (20, 150, 100, 3),
    (1000, 20, 10, 10),
    (127, 784, 50, 1),
)
QUICK_SHAPES = SHAPES[:5]
TENSOR_CORE_SHAPES = (
    *((100, 20, 10, 3), (40, 300, 50, 2)),
    *((33, 1000, 31, 1), (50, 783, 49, 10), (20, 1000, 32, 1)),
)


def step_trials(dtype: str, quick: bool) -> list[Trial]:
    """Of the catalogue's two_layer.step, in ``dtype``."""
    types = {"dtype": dtype, "precision": dtype, "inputs": dtype}
    rows: list[dict[str, Any]] = []
    shapes = QUICK_SHAPES if quick else SHAPES
    for i, shape in enumerate(shapes):
        loss, output = LOSSES[(3 * i + 5) % len(LOSSES)]
        rows.append(
            {**dict(zip("NDHC", shape, strict=True)), "activation": activation_op.NAMES[i % 5]}
            | {"output": output, "loss": loss}
            | {
                "reduction": ("mean", "sum")[i % 2],
                "bias": i % 3 != 2,
                "x": ("aligned", "misaligned")[i // 2 % 2],
            }
        )
    small = {"N": 40, "D": 33, "H": 17, "C": 3}
    for i, (loss, output) in enumerate(LOSSES if not quick else LOSSES[::3]):
        rows.append({**small, "activation": activation_op.NAMES[-1 - i % 5], "loss": loss, "output": output})
    rows += [
        {**small, "loss": loss, "reduction": "sum", "kind": "integers", "activation": f}
        for loss, f in (("mse", "identity"), ("hinge", "relu"))
    ]
    rows += [
        {**small, "loss": "cross_entropy", "kind": kind}
        for kind in ("special", "huge", "dead", "unknown label")
    ]
    rows += [{**small, "loss": "hinge", "kind": kind} for kind in ("special", "huge", "unknown label")]
    rows.append({**small, "loss": "cross_entropy", "x": "strided", "y": "strided"})
    rows.append({**small, "loss": "cross_entropy", "schedules": True})
    if not quick:
        rows.append({"N": 150, "D": 20, "H": 10, "C": 2, "loss": "mse", "schedules": True})
        rows.append({"N": 20, "D": 112, "H": 64, "C": 2, "loss": "mse", "activation": "tanh"})
        rows.append({"N": 1100, "D": 30, "H": 40, "C": 2, "loss": "cross_entropy", "sms": 3})
    rows = [{**types, **row} for row in rows]
    pixels = {**types, "inputs": "uint8", "loss": "cross_entropy"}
    rows.append({**pixels, "N": 40, "D": 32, "H": 17, "C": 3, "schedules": True})
    rows.append({**pixels, "N": 37, "D": 35, "H": 17, "C": 3, "x": "misaligned"})
    if dtype == "float32":
        rows += tensor_core_rows(TENSOR_CORE_SHAPES[:2] if quick else TENSOR_CORE_SHAPES)
        split = {"precision": "3xtf32", "inputs": "uint8", "activation": "tanh", "loss": "cross_entropy"}
        rows.append({**split, "N": 40, "D": 300, "H": 50, "C": 2})
    others = [] if quick else tiling_trials("two_layer.step", two_layer_step, "R1", dtype)
    return path_trials("two_layer.step", two_layer_step, rows) + others
