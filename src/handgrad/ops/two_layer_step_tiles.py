"""How a block of R1 divides its products among its threads: the tiles of ``kernels/two_layer_step.cu``.

Sizes are in elements, as the kernel computes them from the same constants.  Test:
``tests/test_two_layer_step.py``, ``tests/test_tilings.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from handgrad.ops import checks
from handgrad.ops.two_layer import Problem

THREADS = 256
WARPS = THREADS // 32
STAGES = 2  # slabs of W1 that a warp holds
SUMS = WARPS // 2
VECTOR_BYTES = 16

COLUMN_LANES, ROW_LANES = 8, 4
LANE_COLUMNS = (2, 4, 7, 8)  # HN
ACCUMULATORS = {  # ROWS, TM, TN by dtype
    "float32": ((16, 4, 4), (16, 8, 8), (16, 16, 10)),
    "float64": ((8, 4, 4), (8, 8, 10)),
}
MOST_SLICES = {"float32": 1, "float64": 8}  # blocks that share a partition


def round_up(n: int, to: int) -> int:
    """The least multiple of ``to`` that is not below n."""
    return -(-n // to) * to


@dataclass(frozen=True)
class FmaTile:
    """Multiply-adds: ROWS samples; TM x TN elements of dW1 a thread; HN columns of Z1 a lane.

    ``slices`` blocks share a partition; in each, ``d_groups`` x ``h_groups`` threads own dW1.
    """

    dtype: str
    ROWS: int
    TM: int
    TN: int
    HN: int
    slices: int
    d_groups: int
    h_groups: int

    BK = 8

    def __str__(self) -> str:
        sliced = f"/{self.slices}" if self.slices > 1 else ""
        return f"{self.ROWS}/{self.TM}x{self.TN}/{self.HN}{sliced}"

    @property
    def columns(self) -> int:
        """Columns of Z1 in one go over k."""
        return COLUMN_LANES * self.HN

    @property
    def sums(self) -> int:
        """Of a lane, in one go: Z."""
        return self.ROWS // ROW_LANES * self.HN

    @property
    def vector(self) -> int:
        """Elements of 16 bytes: G."""
        return VECTOR_BYTES // (4 if self.dtype == "float32" else 8)

    @property
    def blocks(self) -> int:
        """Blocks whose registers fit on a multiprocessor: BLOCKS."""
        return 2 if self.TM * self.TN + self.sums <= 80 else 1

    def slab(self, H: int) -> int:
        """BK rows of W1."""
        return self.BK * H

    def z_pitch(self, H: int) -> int:
        """From one row of dZ1 to the next."""
        return self.h_groups * (round_up(self.TN, self.vector) // self.vector | 1) * self.vector

    @property
    def pass_rows(self) -> int:
        """Rows of dW1 that leave together."""
        return self.vector * self.d_groups

    def row(self, D: int) -> int:
        """The columns of X that the products read."""
        return max(self.slices * self.d_groups * self.TM, round_up(D, self.BK))

    def cpp(self, H: int) -> str:
        """The C++ type."""
        pair = 1 if H % 2 else 2
        return (
            f"FmaTile<{checks.CPP_NAMES[self.dtype]}, {self.ROWS}, {self.TM}, {self.TN}, {self.HN}, {pair}>"
        )


def fma_tiles(problem: Problem) -> tuple[FmaTile, ...]:
    """The tiles whose threads hold dW1, in as few slices as possible: the smallest first."""
    D, H = problem.D, problem.H
    shapes = ACCUMULATORS[problem.dtype]
    goes = -(-H // (COLUMN_LANES * LANE_COLUMNS[-1]))
    HN = next(HN for HN in LANE_COLUMNS if goes * COLUMN_LANES * HN >= H)
    for slices in range(1, 1 + MOST_SLICES[problem.dtype]):
        found = []
        for ROWS, TM, TN in shapes if slices == 1 else shapes[-1:]:
            d_groups, h_groups = -(-D // (TM * slices)), -(-H // TN)
            if d_groups * h_groups <= THREADS:
                found.append(FmaTile(problem.dtype, ROWS, TM, TN, HN, slices, d_groups, h_groups))
        if found:
            return tuple(found)
    return ()


PRECISIONS = {"tf32": "Tf32", "3xtf32": "SplitTf32", "bfloat16": "Bfloat16"}  # C++ types
WARP_TILES = {  # MT, NT, ZT
    "tf32": ((2, 2, 2), (7, 7, 7), (12, 4, 4)),
    "3xtf32": ((2, 2, 2), (7, 7, 4), (12, 4, 4)),  # operands take twice the registers ...
    "bfloat16": ((2, 2, 2), (7, 7, 7), (12, 4, 4)),
}
WARP_TILES_OF_BYTES = {"3xtf32": ((2, 2, 2), (7, 7, 3), (12, 4, 4))}  # ... and bytes on their way some more


@dataclass(frozen=True)
class MmaTile:
    """Tensor cores: 16 samples; MT x NT tiles of 16 x 8 of dW1 a warp; ZT such of Z1 in one go over k."""

    precision: str
    MT: int
    NT: int
    ZT: int

    ROWS, BK, vector = 16, 16, 4
    slices, d_groups, h_groups, blocks = 1, 1, 1, 1

    def __str__(self) -> str:
        return f"{self.MT}x{self.NT}/{self.ZT}"

    @property
    def columns(self) -> int:
        """Columns of Z1 in one go over k."""
        return 8 * self.ZT

    @property
    def sums(self) -> int:
        """Of a lane, in one go: Z."""
        return 4 * self.ZT

    def slab(self, H: int) -> int:
        """BK rows of W1, so far apart that four neighbours lie in different banks."""
        return self.BK * _eight_apart(round_up(H, self.columns))

    def z_pitch(self, H: int) -> int:
        """From one row of dZ1 to the next."""
        return _eight_apart(8 * self.NT)

    @property
    def pass_rows(self) -> int:
        """Rows of dW1 that leave together: one tile of every warp."""
        return 16 * WARPS

    def row(self, D: int) -> int:
        """The columns of X that the products read: tiles of dW1 come in pairs of 32."""
        return round_up(D, 32)

    def cpp(self, H: int) -> str:
        """The C++ type; the last number: elements of W1 that are copied together."""
        copied = 4 if H % 4 == 0 else 2 if H % 2 == 0 else 1
        return f"MmaTile<{PRECISIONS[self.precision]}, {self.MT}, {self.NT}, {self.ZT}, {copied}>"


def _eight_apart(columns: int) -> int:
    """The least pitch ≥ columns that is 8 or 24 beyond a multiple of 32."""
    return round_up(max(columns - 8, 0), 16) + 8


def mma_tiles(problem: Problem) -> tuple[MmaTile, ...]:
    """The tiles whose warps hold dW1, the smallest first."""
    sizes = WARP_TILES[problem.precision]
    if problem.inputs == "uint8":
        sizes = WARP_TILES_OF_BYTES.get(problem.precision, sizes)
    return tuple(
        MmaTile(problem.precision, MT, NT, ZT)
        for MT, NT, ZT in sizes
        if problem.D <= 16 * WARPS * MT and problem.H <= 8 * NT
    )


Tile = FmaTile | MmaTile


def tiles_of(problem: Problem) -> tuple[Tile, ...]:
    """The tiles that hold dW1 and keep threads at work, the rule's first, from shape and types alone; none
    where registers do not hold dW1.

    Where a larger tile leaves more than three quarters of the threads without an element of dW1, or of the
    elements of the accumulators without one, it is left out.
    """
    if problem.precision == problem.dtype:
        found = fma_tiles(problem)
        busy = [one for one in found[1:] if one.d_groups * one.h_groups >= THREADS / 4]
        return (*found[:1], *busy)
    tiles = mma_tiles(problem)
    held = problem.D * problem.H / (WARPS * 16 * 8)  # tiles of 16 x 8 that a warp needs
    return (*tiles[:1], *(one for one in tiles[1:] if held >= one.MT * one.NT / 4))
