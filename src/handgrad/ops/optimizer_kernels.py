"""Kernels of the optimizers: launch geometry, state by rule, catalogue.

Kernels: ``kernels/optimizer.cu``, with the rules of ``kernels/optimizer_rules.cuh``.
Test: ``tests/test_optimizer.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from handgrad.kernel import Entry, Kernel
from handgrad.ops import checks
from handgrad.parameters import ALIGNMENT

FILE = "optimizer.cu"
THREADS = 256  # OPTIMIZER_THREADS: also the most partials of the norm, since a block reads one a thread
MAX_BLOCKS = 1024
VECTOR_BYTES = 16
STATES = {"Sgd": (), "Momentum": ("momentum",), "Adam": ("first_moment", "second_moment")}


def squares_kernel(dtype: np.dtype[Any]) -> Kernel:
    """The first of the two launches with clipping."""
    return Kernel(FILE, f"gradient_squares<{checks.CPP_NAMES[dtype.name]}>")


def update_kernel(rule: str, dtype: np.dtype[Any]) -> Kernel:
    """The update by ``rule``: "Sgd", "Momentum" or "Adam"."""
    return Kernel(FILE, f"optimizer_update<{rule}<{checks.CPP_NAMES[dtype.name]}>>")


def _squares_bytes(size: int, itemsize: int = 4) -> dict[str, int]:
    return {"gradients": size * itemsize, "trainable": size * itemsize // ALIGNMENT}


def _update_bytes(size: int, itemsize: int = 4, rule: str = "Momentum") -> dict[str, int]:
    """Read: gradients, flags; read and written: parameters and state.  ``size`` counts the padding too."""
    moved = dict.fromkeys(("parameters", *STATES[rule]), 2 * size * itemsize)
    return {"gradients": size * itemsize, "trainable": size * itemsize // ALIGNMENT, **moved}


CATALOGUE = (
    Entry(
        "optimizer.squares",
        FILE,
        tuple(squares_kernel(dtype).expression for dtype in checks.FLOATS),
        f"grid min(⌈vectors / {THREADS}⌉, {THREADS}), block {THREADS}; vectors of 16 bytes",
        _squares_bytes,
    ),
    Entry(
        "optimizer.update",
        FILE,
        tuple(update_kernel(rule, dtype).expression for dtype in checks.FLOATS for rule in STATES),
        f"grid min(⌈vectors / {THREADS}⌉, {MAX_BLOCKS}), block {THREADS}; vectors of 16 bytes",
        _update_bytes,
    ),
)
