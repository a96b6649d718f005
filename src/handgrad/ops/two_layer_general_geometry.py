"""Partitions and kernels of R4, the general path of a two-layer step: from the shape and the tiling alone.

Used by :mod:`handgrad.ops.two_layer_general`.  Test: ``tests/test_two_layer_general.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from handgrad.arrays import Array
from handgrad.kernel import Kernel
from handgrad.ops import activation as activation_op
from handgrad.ops import checks, two_layer_reduce
from handgrad.ops import loss as loss_op
from handgrad.ops.tilings import Tiling, pick
from handgrad.ops.two_layer import Launch, Problem
from handgrad.ops.two_layer_general_tiles import (
    FEW,
    AnyTile,
    GeneralTiling,
    choose_output_tile,
    chunk_of,
    tiles_of,
    tilings,
)

FILE = "two_layer_general.cu"
THREADS = 128  # of every tile
OUTPUT_PARTITIONS = 512  # of the second layer, at most


@dataclass(frozen=True)
class Geometry:
    """Partitions and widths of loads: what a problem and its tiling determine, the rule's where None.

    ``aligned``: X begins at a multiple of what a load of it moves.
    """

    problem: Problem
    tiling: Tiling | None = None
    aligned: bool = True

    @cached_property
    def chosen(self) -> GeneralTiling:
        """The tiling; ``ValueError`` for one that is not offered."""
        return pick("R4", tilings(self.problem), self.tiling)

    @property
    def hidden(self) -> AnyTile:
        """The tile of A1."""
        return self.chosen.hidden

    @property
    def weight(self) -> AnyTile:
        """Of dW1."""
        return self.chosen.weight

    @cached_property
    def output(self) -> AnyTile:
        """Of Z2 and dW2."""
        return choose_output_tile(self.problem.C, self.problem.precision)

    @property
    def stores_dZ1(self) -> bool:
        """Whether dZ1 is written, not computed slab by slab."""
        return self.problem.C > FEW

    @cached_property
    def weight_tiles(self) -> tuple[int, int]:
        """Tiles of dW1, of dW2."""
        p, one, two = self.problem, self.weight, self.output
        return (
            tiles_of(p.D, one.BM) * tiles_of(p.H, one.BN),
            tiles_of(p.H, two.BM) * tiles_of(p.C, two.BN),
        )

    @cached_property
    def chunk(self) -> int:
        """Samples in a partition of the weight product."""
        return chunk_of(self.problem, self.weight, self.chosen.blocks)

    @property
    def partitions(self) -> int:
        """S of the weight product."""
        return tiles_of(self.problem.N, self.chunk)

    @property
    def output_tiles(self) -> int:
        """Row tiles of the second layer."""
        return tiles_of(self.problem.N, self.output.BM)

    @cached_property
    def output_rows(self) -> int:
        """Samples in a partition of the second layer."""
        return tiles_of(max(self.output_tiles, 1), OUTPUT_PARTITIONS) * self.output.BM

    @property
    def output_partitions(self) -> int:
        """Partitions of the second layer: of the losses and of db2."""
        return tiles_of(self.problem.N, self.output_rows)

    def width(self, side: int) -> int:
        """Elements that a load along this side of an aligned matrix moves."""
        return checks.vector_width(np.dtype(self.problem.dtype), side)

    @property
    def input_width(self) -> int:
        """The same of X."""
        side = 4 if self.problem.inputs == "uint8" else 16 // self.problem.itemsize
        return side if self.aligned and self.problem.D % side == 0 else 1

    def for_input(self, X: Array) -> Geometry:
        """The same for an X that may begin anywhere."""
        whole = self.input_width * self.problem.input_itemsize
        return self if checks.address(X) % whole == 0 else replace(self, aligned=False)

    # ---- kernels -----------------------------------------------------------------------------------------

    @property
    def _types(self) -> tuple[str, str]:
        return checks.CPP_NAMES[self.problem.dtype], checks.CPP_NAMES[self.problem.inputs]

    @property
    def hidden_kernel(self) -> Kernel:
        """``general_hidden``."""
        (T, X), f = self._types, activation_op.functor_of(self.problem.activation)
        widths = f"{self.input_width}, {self.width(self.problem.H)}"
        return Kernel(FILE, f"general_hidden<{T}, {X}, {self.hidden.cpp}, {f}, {widths}>")

    @property
    def output_kernel(self) -> Kernel:
        """``general_output`` or ``general_output_wide``."""
        p, (T, _) = self.problem, self._types
        start = f"{T}, {self.output.cpp}, {loss_op.functor_of(p.loss, p.output)}"
        if not self.stores_dZ1:
            return Kernel(FILE, f"general_output<{start}, {self.width(p.H)}>")
        f = activation_op.functor_of(p.activation)
        return Kernel(FILE, f"general_output_wide<{start}, {f}, {self.width(p.H)}, {self.width(p.C)}>")

    @property
    def weight_kernel(self) -> Kernel:
        """``general_weight``."""
        p, (T, X), f = self.problem, self._types, activation_op.functor_of(self.problem.activation)
        most = 0 if self.stores_dZ1 else 4 if p.C <= 4 else FEW
        widths = f"{self.input_width}, {self.width(p.H)}, {self.width(p.C)}, {most}"
        return Kernel(FILE, f"general_weight<{T}, {X}, {self.weight.cpp}, {self.output.cpp}, {f}, {widths}>")

    @property
    def launches(self) -> tuple[Launch, ...]:
        """Of one step."""
        p, block = self.problem, (THREADS,)
        reduce = two_layer_reduce.launch_of(p)
        if p.N == 0:
            return (reduce,)
        hidden = (tiles_of(p.N, self.hidden.BM), tiles_of(p.H, self.hidden.BN))
        name = "general_output_wide" if self.stores_dZ1 else "general_output"
        weight = (sum(self.weight_tiles), self.partitions)
        of_X, of_output = 2 * p.N * p.D * p.H, 2 * p.N * p.H * p.C  # operations of one product
        of_dZ1 = of_output * (0 if self.stores_dZ1 else tiles_of(p.D, self.weight.BM))  # computed again
        in_output = of_output * (2 if self.stores_dZ1 else 1)
        return (
            Launch("general_hidden", self.hidden_kernel, hidden, block, operations=of_X),
            Launch(name, self.output_kernel, (self.output_partitions,), block, operations=in_output),
            Launch(
                "general_weight",
                self.weight_kernel,
                weight,
                block,
                operations=of_X + of_output + of_dZ1,
            ),
            reduce,
        )
