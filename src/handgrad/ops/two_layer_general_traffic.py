"""What R4, the general path of a two-layer step, moves and computes: by the formulas of its tiles.

Used by :mod:`handgrad.ops.two_layer_general`.  Test: ``tests/test_two_layer_general_traffic.py``.
"""

from __future__ import annotations

from collections import Counter

from handgrad.ops import loss as loss_op
from handgrad.ops import two_layer_reduce
from handgrad.ops.optimizer_kernels import STATES
from handgrad.ops.two_layer import Problem
from handgrad.ops.two_layer_general_geometry import Geometry
from handgrad.ops.two_layer_general_tiles import tiles_of


def compulsory(p: Problem) -> dict[str, int]:
    """X twice, A1 once written and twice read, targets, parameters and state once (KERNELS: R4)."""
    size = sum(p.sizes.values()) * p.itemsize
    moved = {
        "X": 2 * p.N * p.D * p.input_itemsize,
        "y": p.target_bytes,
        "A1": 3 * p.N * p.H * p.itemsize,
        "loss": p.itemsize,
    }
    if p.rule == "Store":
        return moved | {"parameters": size, "gradient": size}
    return moved | dict.fromkeys(("parameters", *STATES[p.rule]), 2 * size)


def requested(g: Geometry) -> dict[str, int]:
    """Bytes that the lanes ask for, each for itself, by buffer."""
    p, size = g.problem, g.problem.itemsize
    N, D, H, C = p.N, p.D, p.H, p.C
    reduced = two_layer_reduce.requested(
        p, g.partitions, g.output_partitions if p.bias else None, g.output_partitions
    )
    if N == 0:
        return reduced
    along_H, along_D = tiles_of(H, g.weight.BN), tiles_of(D, g.weight.BM)
    row_tiles = tiles_of(N, g.hidden.BM)
    moved: Counter[str] = Counter()
    moved["X"] = N * D * p.input_itemsize * (tiles_of(H, g.hidden.BN) + along_H)
    elements = {
        "W1": D * H * row_tiles,
        "b1": N * H if p.bias else 0,
        "A1": N * H,  # written
        "dZ2": N * C,
        "loss_partials": g.output_partitions,
        "partials": g.partitions * (D * H + H * C + (H if p.bias else 0)),
        "b2_partials": g.output_partitions * C if p.bias else 0,
    }
    moved.update({name: count * size for name, count in elements.items()})
    moved["y"] = p.target_bytes
    moved["A1"] += N * H * tiles_of(C, g.output.BN) * size  # read for Z2
    moved["W2"] += H * C * g.output_tiles * size
    if g.stores_dZ1:
        tiles = tiles_of(H, g.output.BN)
        moved["b2"] += N * C * size if p.bias else 0
        moved["A1"] += N * H * size  # for f'
        moved["W2"] += H * C * g.output_tiles * size
        moved["dZ2"] += N * C * size * (tiles + (1 if p.bias else 0))
        moved["Z2"] += N * C * size + _logits_read(p)
        moved["b2_partials"] += 2 * (g.output_tiles - g.output_partitions) * C * size if p.bias else 0
        moved["dZ1"] += N * H * size * (1 + along_D)
    else:
        moved["b2"] += g.output_tiles * g.output.BM * C * size if p.bias else 0
        moved["A1"] += N * H * size * along_D
        moved["dZ2"] += N * C * size * along_D * along_H
        moved["W2"] += H * C * size * along_D * g.partitions
    moved["A1"] += N * H * size * tiles_of(C, g.output.BN)  # for dW2
    moved["dZ2"] += N * C * size * tiles_of(H, g.output.BM)
    moved.update(reduced)
    return {name: count for name, count in moved.items() if count}


def _logits_read(p: Problem) -> int:
    """Bytes of Z2 that a loss reads; of a label above 31 it reads 32 numbers more."""
    if p.loss in loss_op.ELEMENTWISE:
        return p.N * p.C * p.itemsize
    passes = {"cross_entropy": 3, "hinge": 2}[p.loss]  # over the columns that no register holds
    return p.N * (32 + passes * max(0, p.C - 32)) * p.itemsize
