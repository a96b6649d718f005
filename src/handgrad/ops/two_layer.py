"""What the fused paths of a two-layer training step share: the problem, its layout, the arrays of a step.

A path (R1 ... R4) is a module of this package with four functions::

    refusal(problem) -> str                 "" where the path can do it, else the reason in one line
    tilings(problem) -> tuple[Tiling, ...]  what it may choose of tiles and partitions: the rule's first
    lay_out(problem, tiling) -> Layout      launches, partitions, workspace, traffic; no arrays, no GPU needed
    run(layout, arrays) -> None             the launches of one step (of one epoch in R2)

The bits of a result depend on the problem's shape and types and on the tiling, never on ``arch`` or ``sms``:
those size grids alone.  Without a tiling, ``lay_out`` takes the rule's, which follows from shape and types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from handgrad.arrays import Array
from handgrad.kernel import Kernel
from handgrad.ops import activation as activation_op
from handgrad.ops import loss as loss_op
from handgrad.ops.tilings import Tiling
from handgrad.ops.workspace import Workspace
from handgrad.parameters import ALIGNMENT, FlatParameters

if TYPE_CHECKING:
    from handgrad.ops.optimizer import Optimizer

PRECISIONS = {"float32": ("float32", "tf32", "3xtf32", "bfloat16"), "float64": ("float64",)}  # by dtype
RULES = ("Sgd", "Momentum", "Adam", "Store")


@dataclass(frozen=True)
class Problem:
    """What a path and its bits depend on, plus the GPU that it is laid out for.

    ``dtype``: of parameters, gradients and sums; ``precision``: of the products; ``inputs``: X as stored,
    dtype's name or "uint8", which the kernels scale and shift; ``rule``: the optimizer's, or "Store" for the
    gradient alone.  ``ValueError`` for what none of the paths knows.
    """

    N: int
    D: int
    H: int
    C: int
    activation: str = "relu"
    output: str = "identity"
    loss: str = "mse"
    reduction: str = "mean"
    bias: bool = True
    dtype: str = "float32"
    precision: str = "float32"
    inputs: str = "float32"
    rule: str = "Sgd"
    arch: str = "sm_80"
    sms: int = 108

    def __post_init__(self) -> None:
        for name, least in (("N", 0), ("D", 1), ("H", 1), ("C", 1), ("sms", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected {least} or more, got {getattr(self, name)}")
        activation_op.functor_of(self.activation)
        loss_op.check_names(self.loss, self.output, self.reduction)
        if self.dtype not in PRECISIONS:
            raise ValueError(f"dtype: expected float32 or float64, got {self.dtype!r}")
        if self.precision not in PRECISIONS[self.dtype]:
            expected = " or ".join(PRECISIONS[self.dtype])
            raise ValueError(
                f"precision: with dtype {self.dtype}, expected {expected}, got {self.precision!r}"
            )
        if self.inputs not in (self.dtype, "uint8"):
            raise ValueError(f"inputs: expected {self.dtype} or uint8, got {self.inputs!r}")
        if self.rule not in RULES:
            raise ValueError(f"rule: expected one of {', '.join(RULES)}, got {self.rule!r}")

    @property
    def itemsize(self) -> int:
        """Bytes of a parameter."""
        return np.dtype(self.dtype).itemsize

    @property
    def input_itemsize(self) -> int:
        """Bytes of an element of X."""
        return np.dtype(self.inputs).itemsize

    @property
    def sizes(self) -> dict[str, int]:
        """Elements of each parameter, in the order of the buffer; without bias, b1 and b2 have none."""
        H, C = (self.H, self.C) if self.bias else (0, 0)
        return {"W1": self.D * self.H, "b1": H, "W2": self.H * self.C, "b2": C}

    @property
    def offsets(self) -> dict[str, int]:
        """Index in the flat buffer of each parameter's first element, as :class:`FlatParameters` has it."""
        offsets, start = {}, 0
        for name, size in self.sizes.items():
            offsets[name] = start
            start += self._padded(size)
        return offsets

    @property
    def flat_size(self) -> int:
        """P: elements of the flat buffer, padding included."""
        return sum(self._padded(size) for size in self.sizes.values())

    def _padded(self, size: int) -> int:
        chunk = ALIGNMENT // self.itemsize
        return -(-size // chunk) * chunk

    @property
    def loss_scale(self) -> float:
        """What the sum of the losses, and so dZ2, is multiplied by; NaN for the mean over no sample."""
        if self.reduction == "sum":
            return 1.0
        count = self.N * self.C if self.loss in loss_op.ELEMENTWISE else self.N
        return 1.0 / count if count else float("nan")

    @property
    def target_bytes(self) -> int:
        """Bytes of y: numbers (N, C), or int32 labels (N,)."""
        return self.N * self.C * self.itemsize if self.loss in loss_op.ELEMENTWISE else self.N * 4


@dataclass(frozen=True)
class Launch:
    """One launch: bytes of dynamic shared memory, and whether all blocks have to be resident at once.

    ``operations``: 2 for each multiply-add of its products, in one step.
    """

    name: str
    kernel: Kernel
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int = 0
    cooperative: bool = False
    operations: int = 0


@dataclass(frozen=True)
class Layout:
    """How a path runs a problem.

    ``launches``: of one step, of one epoch in R2; ``partitions``: S, from shape and tiling; ``workspace``:
    name -> bytes; ``compulsory``: buffer -> bytes that any implementation of the path moves in a step;
    ``requested``: buffer -> bytes that the kernels ask for, by the path's own tile formula.
    """

    path: str
    problem: Problem
    tiling: Tiling
    launches: tuple[Launch, ...]
    partitions: int
    workspace: Mapping[str, int]
    compulsory: Mapping[str, int]
    requested: Mapping[str, int]
    note: str = ""

    @property
    def operations(self) -> int:
        """Of a step."""
        return sum(one.operations for one in self.launches)


@dataclass
class StepArrays:
    """What a step works on, all on one device.

    ``X`` (N, D) counts as ``X * scale + shift``; ``gradient``: flat, written where the rule is Store;
    ``optimizer``: bound to ``parameters``, None with Store; ``loss``: one element, written.
    """

    X: Array
    y: Array
    scale: float
    shift: float
    parameters: FlatParameters
    gradient: Array | None
    optimizer: Optimizer | None
    loss: Array
    workspace: Workspace
