"""Tiles, partitions and kernels of R4, the general path of a two-layer step: from the shape alone.

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
from handgrad.ops.linear import Tile
from handgrad.ops.two_layer import Launch, Problem

FILE = "two_layer_general.cu"
THREADS = 128  # of every tile
FEW = 16  # columns of the output up to which one tile holds whole rows, and dZ1 is computed, not stored
WIDE_TILES_LEAST = 64  # below as many 128 x 128 tiles, smaller ones spread the work over more of a GPU
SPLIT_BLOCKS = 256  # blocks that the weight product aims at: about two on each multiprocessor of a large GPU
CHUNK_LEAST = 128  # samples in one of its partitions, at least
OUTPUT_PARTITIONS = 512  # of the second layer, at most
TENSOR = {"tf32": "Tf32", "3xtf32": "ThreeTf32", "bfloat16": "Bfloat16"}


@dataclass(frozen=True)
class FmaTile(Tile):
    """A tile of fused multiply-adds."""

    @property
    def cpp(self) -> str:
        """The C++ type."""
        return f"Fma<{super().cpp}>"


@dataclass(frozen=True)
class MmaTile:
    """A tile of tensor-core products: BM x BN elements, in slabs of BK, WM x WN a warp."""

    precision: str
    BM: int
    BN: int
    BK: int
    WM: int
    WN: int

    @property
    def cpp(self) -> str:
        """The C++ type."""
        sizes = ", ".join(str(size) for size in (self.BM, self.BN, self.BK, self.WM, self.WN))
        return f"Mma<{TENSOR[self.precision]}, WarpTile<{sizes}>>"


AnyTile = FmaTile | MmaTile

WIDE = FmaTile(128, 128, 8, 8, 16)
BROAD = FmaTile(128, 64, 16, 8, 8)  # of dW1 where its kernel computes dZ1, which takes registers too
MEDIUM = FmaTile(64, 64, 16, 8, 4)
LONG = FmaTile(64, 128, 8, 8, 8)  # of the second layer, above 16 columns
NARROW = FmaTile(128, 32, 16, 8, 4)  # up to 32 columns
SKINNY = FmaTile(128, 16, 16, 4, 4)  # up to 16
SHORT = FmaTile(64, 16, 16, 2, 4)  # the same in float64
SMALL = FmaTile(64, 32, 16, 4, 4)  # of float64, where registers are short
SLIM = FmaTile(128, 4, 16, 4, 1)  # up to 4


def choose_tile(rows: int, columns: int, precision: str, split: bool = False, lean: bool = False) -> AnyTile:
    """The tile of a product with X: from the size of the result and the precision alone.

    ``split``: the product is split over the samples, so that large tiles leave no multiprocessor idle;
    ``lean``: its kernel needs registers for other things.
    """
    tensor = precision in TENSOR
    if lean and precision == "float64":
        return SMALL
    if columns <= NARROW.BN:
        return MmaTile(precision, 128, 32, 16, 32, 32) if tensor else NARROW
    wide_tiles = -(-rows // WIDE.BM) * -(-columns // WIDE.BN)
    enough = rows > MEDIUM.BM if split else wide_tiles >= WIDE_TILES_LEAST
    if enough and columns > MEDIUM.BN and precision != "float64":
        if not tensor:
            return BROAD if lean else WIDE
        if lean or precision == "3xtf32":  # whose operands take twice the registers
            return MmaTile(precision, 128, 64, 16, 64, 32)
        return MmaTile(precision, 128, 128, 16, 64, 64)
    return MmaTile(precision, 64, 64, 16, 32, 32) if tensor else MEDIUM


def choose_output_tile(C: int, precision: str) -> AnyTile:
    """The tile of the second layer's products, A1 W2 and A1ᵀ dZ2."""
    if C <= SLIM.BN:
        return SLIM
    if precision == "float64":
        return SHORT if C <= FEW else SMALL
    if C <= FEW:
        return SKINNY
    return MmaTile(precision, 64, 64, 16, 32, 32) if precision in TENSOR else LONG


def tiles_of(size: int, side: int) -> int:
    """Tiles of this side that cover ``size``."""
    return -(-size // side)


@dataclass(frozen=True)
class Geometry:
    """Tiles, partitions and widths of loads: what a problem alone determines.

    ``aligned``: X begins at a multiple of what a load of it moves.
    """

    problem: Problem
    aligned: bool = True

    @cached_property
    def hidden(self) -> AnyTile:
        """Of A1."""
        return choose_tile(self.problem.N, self.problem.H, self.problem.precision)

    @cached_property
    def weight(self) -> AnyTile:
        """Of dW1."""
        p = self.problem
        return choose_tile(p.D, p.H, p.precision, split=True, lean=not self.stores_dZ1)

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
        wanted = tiles_of(SPLIT_BLOCKS, self.weight_tiles[0])
        chunk = max(tiles_of(self.problem.N, wanted), CHUNK_LEAST)
        return tiles_of(chunk, 16) * 16

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
        functor = {
            "mse": f"MeanSquaredError<{activation_op.functor_of(p.output)}>",
            "bce": "BinaryCrossEntropy",
            "cross_entropy": "CrossEntropy",
            "hinge": "Hinge",
        }[p.loss]
        start = f"{T}, {self.output.cpp}, {functor}"
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
        return (
            Launch("general_hidden", self.hidden_kernel, hidden, block),
            Launch(name, self.output_kernel, (self.output_partitions,), block),
            Launch("general_weight", self.weight_kernel, (sum(self.weight_tiles), self.partitions), block),
            reduce,
        )


def sides(tile: AnyTile) -> str:
    """As "64 x 64"."""
    return f"{tile.BM} x {tile.BN}"
