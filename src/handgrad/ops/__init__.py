"""The layer functions, one module an op: both formulas, NumPy, launch geometry.

Each works on every kind of array: NumPy arrays on the CPU, CuPy arrays on a GPU, emulated arrays on the
emulator.  The way of a number: ``ops/linear.py`` → ``kernels/linear.cu``, and so for every op.
"""

from handgrad.ops import (
    activation,
    batch,
    linear,
    loss,
    optimizer,
    optimizer_kernels,
    two_layer_epoch,
    two_layer_general,
    two_layer_pair,
    two_layer_reduce,
    two_layer_step,
)
from handgrad.ops.workspace import Workspace

KERNEL_MODULES = (
    activation,
    batch,
    linear,
    loss,
    optimizer_kernels,
    two_layer_epoch,
    two_layer_general,
    two_layer_pair,
    two_layer_reduce,
    two_layer_step,
)

__all__ = [
    "KERNEL_MODULES",
    "Workspace",
    "activation",
    "batch",
    "linear",
    "loss",
    "optimizer",
    "two_layer_epoch",
    "two_layer_general",
    "two_layer_pair",
    "two_layer_reduce",
    "two_layer_step",
]
