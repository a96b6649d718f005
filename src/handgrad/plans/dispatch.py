"""What a network trains through: planned kernels, the vendor's products, or its own layer functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from handgrad.plans import paths
from handgrad.plans.cublas import CublasTraining
from handgrad.plans.training import PlannedTraining

if TYPE_CHECKING:
    from handgrad.network import MLP

MATMULS = ("auto", "kernels", "cublas")


def planned_training(net: MLP) -> PlannedTraining | CublasTraining | None:
    """For ``net``'s device, depth, ``path`` and ``matmul``; None where the layer functions run one by one.

    Raises ``ValueError`` for an unknown name, and for ``matmul="cublas"`` without a GPU.
    """
    if net.path not in (None, paths.BY_OP, *paths.NAMES):
        known = ", ".join((*paths.NAMES, paths.BY_OP))
        raise ValueError(f"path: expected one of {known}, or None to have it chosen, got {net.path!r}")
    if net.matmul not in MATMULS:
        raise ValueError(f"matmul: expected one of {', '.join(MATMULS)}, got {net.matmul!r}")
    if net.matmul == "cublas":
        if net.device.kind != "cuda":
            raise ValueError(
                f"matmul: expected 'kernels' on {net.device}, got 'cublas'; it needs a GPU, device='cuda'"
            )
        if net.precision != net.dtype.name:
            raise ValueError(f"matmul: cublas computes in {net.dtype}, got precision {net.precision!r}")
        return CublasTraining(net)
    if net.device.kind == "cpu" or net.layers != 2 or net.path == paths.BY_OP:
        return None
    return PlannedTraining(net)
