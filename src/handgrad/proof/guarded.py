"""Memory for one trial of a kernel, made to show every element that it should not have read or written.

::

    input    | NaN ......... | values ............ | NaN ......... |    the same bits afterwards
    output   | canary ...... | poison ............ | canary ...... |    canaries whole, no poison left

Poison and canaries are quiet NaNs whose upper half is 0x7fc0, so that they stay NaN when rounded to tf32 or
bfloat16; their lower halves tell them from each other and from every NaN that arithmetic makes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from handgrad.arrays import Array, to_numpy
from handgrad.ops.workspace import Workspace
from handgrad.proof.roundoff import Bounded

GUARD_BYTES = 4096  # on either side; a multiple of every alignment that a kernel may ask for
LAYOUTS = ("aligned", "misaligned", "strided", "transposed")
OUTPUT_LAYOUTS = LAYOUTS[:2]

POISON = {4: 0x7FC00BAD, 8: 0x7FF80BAD0BAD0BAD, 1: 0xBA}  # by the element's size in bytes
CANARY = {4: 0x7FC0CA9A, 8: 0x7FF8CA9ACA9ACA9A, 1: 0xCA}

Host = NDArray[Any]


def bits_of(values: Host) -> Host:
    """The elements as unsigned integers."""
    return values.view(f"u{values.dtype.itemsize}")


@dataclass(frozen=True)
class Output:
    """What a kernel wrote, and what it should have written.

    ``exact`` leaves no rounding error; ``signed`` demands that zeros have the sign of the expected ones.
    """

    name: str
    array: Array
    expected: Callable[[], Bounded | Host]
    exact: bool = False
    signed: bool = False


@dataclass(frozen=True)
class _Buffer:
    name: str
    whole: Array  # on the device, with its guards
    before: Host
    inside: slice
    kind: str  # "input", "output" or "state", which the kernel may change and must not poison


class Memory:
    """Inputs, outputs and workspaces on the array module ``xp``; random numbers from ``seed``.

    ``dry``: for finding out what would be launched, so all numbers are 0.
    """

    def __init__(self, xp: ModuleType, seed: int, dry: bool = False) -> None:
        self.xp = xp
        self._random = np.random.default_rng(seed)
        self._dry = dry
        self._buffers: list[_Buffer] = []
        self.workspace: Workspace = _GuardedWorkspace(self)

    # ---- numbers on the host ------------------------------------------------------------------------------

    def normal(self, shape: tuple[int, ...], dtype: DTypeLike, scale: float = 1.0) -> Host:
        """Normally distributed numbers, rounded to ``dtype``."""
        if self._dry:
            return np.zeros(shape, dtype)
        return (scale * self._random.normal(size=shape)).astype(dtype)

    def integers(self, low: int, high: int, shape: tuple[int, ...], dtype: DTypeLike) -> Host:
        """Whole numbers from ``low`` to ``high``, both included."""
        return self._random.integers(low, high + 1, size=shape).astype(dtype)

    # ---- memory on the device -----------------------------------------------------------------------------

    def input(self, values: Host, layout: str = "aligned", name: str = "input") -> Array:
        """``values`` on the device, NaN around them and, where not contiguous, between them."""
        if layout == "transposed":
            return self.input(values.T, name=name).T
        if layout == "strided":
            between = np.empty((*values.shape[:-1], 2 * values.shape[-1]), values.dtype)
            bits_of(between)[...] = CANARY[values.dtype.itemsize]
            between[..., ::2] = values
            return self.input(between, name=name)[..., ::2]
        return self._place(values, layout, name, "input")

    def output(
        self, shape: tuple[int, ...], dtype: DTypeLike, layout: str = "aligned", name: str = "output"
    ) -> Array:
        """Poisoned memory for a result."""
        poisoned = np.empty(shape, dtype)
        bits_of(poisoned)[...] = POISON[poisoned.dtype.itemsize]
        return self._place(poisoned, layout, name, "output")

    def state(self, values: Host, name: str = "output") -> Array:
        """``values`` that the kernel may change, between canaries."""
        return self._place(values, "aligned", name, "state")

    def scratch(self, shape: tuple[int, ...], dtype: DTypeLike, name: str) -> Array:
        """Poisoned memory that a kernel may leave unwritten."""
        poisoned = np.empty(shape, dtype)
        bits_of(poisoned)[...] = POISON[poisoned.dtype.itemsize]
        return self._place(poisoned, "aligned", name, "state")

    def _place(self, values: Host, layout: str, name: str, kind: str) -> Array:
        itemsize = values.dtype.itemsize
        start = GUARD_BYTES // itemsize + (layout == "misaligned")
        inside = slice(start, start + values.size)
        before = np.empty(inside.stop + GUARD_BYTES // itemsize, values.dtype)
        bits_of(before)[...] = CANARY[itemsize]
        before[inside] = values.reshape(-1)
        whole = self.xp.asarray(before.copy())
        self._buffers.append(_Buffer(name, whole, before, inside, kind))
        return whole[inside].reshape(values.shape)

    # ---- afterwards ---------------------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """What was written that should not have been, and what was not that should."""
        return [problem for buffer in self._buffers for problem in _problems(buffer)]


def _problems(buffer: _Buffer) -> list[str]:
    after, before = bits_of(to_numpy(buffer.whole)), bits_of(buffer.before)
    found = []
    changed = np.flatnonzero(after != before)
    outside = changed[(changed < buffer.inside.start) | (changed >= buffer.inside.stop)]
    if outside.size:
        first = int(outside[0]) - buffer.inside.start
        where = f"{-first} before its start" if first < 0 else f"{first - _length(buffer) + 1} past its end"
        found.append(f"{buffer.name}: {outside.size} elements outside were written, the first {where}")
    if buffer.kind == "input" and changed.size > outside.size:
        found.append(f"{buffer.name}: {changed.size - outside.size} elements of an input were changed")
    if buffer.kind == "output":
        left = int((after[buffer.inside] == POISON[after.itemsize]).sum())
        if left:
            found.append(f"{buffer.name}: {left} of {_length(buffer)} elements were not written")
    return found


def _length(buffer: _Buffer) -> int:
    return int(buffer.inside.stop - buffer.inside.start)


class _GuardedWorkspace(Workspace):
    """Scratch memory between canaries: poisoned at every call, for its contents are not to be counted on."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self._memory = memory

    def _take(
        self, name: str, shape: tuple[int, ...], dtype: DTypeLike, xp: ModuleType, zeroed: bool
    ) -> Array:
        if zeroed:  # a ticket, which every kernel leaves at 0: as an input, it has to be the same afterwards
            return self._memory.input(np.zeros(shape, dtype), name=name)
        return self._memory.scratch(shape, dtype, name)
