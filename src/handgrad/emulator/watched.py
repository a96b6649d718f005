"""Launches that search for faults: each access of the kernel is compared with what it may do.

The kernels are built with a sanitizer's instrumentation (build.MODES), which calls the functions of
``runtime/watch`` before every access: "memory" knows which bytes a kernel was given, "races" which
accesses of which threads are ordered, "initialisation" which bytes have been written.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.emulator.array import ALIGNMENT, EmulatedArray
from handgrad.emulator.build import build
from handgrad.emulator.errors import EmulatorError
from handgrad.emulator.launch import UNWRITTEN, CompiledKernel, launch_through
from handgrad.emulator.lines import line_of, with_shared_names
from handgrad.emulator.settings import current_settings
from handgrad.emulator.source import parameter_names, read_source

SEARCHES = ("memory", "races", "initialisation")
MODES = {"memory": "memory", "races": "accesses", "initialisation": "accesses"}  # of build.MODES

GAP = 1 << 16  # bytes around every buffer that a kernel is given
FILLS = (0x0000, 0x3F80, 0xFFFF)  # contents of unwritten memory, besides UNWRITTEN: 0; about 1; -1 or NaN

# What proof/guarded.py and emulator.empty fill memory with, by itemsize: nobody has written it.
POISON = {
    2: (0x7FFA, 0xCDCD),
    4: (0x7FC00BAD, 0xCDCDCDCD),
    8: (0x7FF80BAD0BAD0BAD, 0xCDCDCDCDCDCDCDCD),
}


def searching(search: str) -> AbstractContextManager[None]:
    """Inside the block, launches search for faults of one kind: "memory", "races" or "initialisation".

    The first fault ends its launch with :class:`EmulatorError`, whose ``fault`` is its kind.
    """
    return launch_through(functools.partial(_launch, search))


def _launch(
    search: str,
    source: Path,
    expression: str,
    grid: Sequence[int],
    block: Sequence[int],
    args: Sequence[Any],
    shared: int,
    cooperative: bool,
) -> None:
    kernel = _watched_kernel(str(source), expression, MODES[search], current_settings().arch)
    kernel.search(search, grid, block, args, shared, cooperative)


@functools.lru_cache(maxsize=1024)
def _watched_kernel(source: str, expression: str, mode: str, arch: str) -> WatchedKernel:
    return WatchedKernel(Path(source), expression, mode)


class _Region(ctypes.Structure):  # runtime/emulated/kernel.h: Region
    _fields_ = [
        ("start", ctypes.c_void_p),
        ("bytes", ctypes.c_ulonglong),
        ("name", ctypes.c_char_p),
        ("itemsize", ctypes.c_uint),
        ("constant", ctypes.c_int),
    ]


@dataclass
class Buffer:
    """Memory that one argument points to, or several that overlap: a copy, far from all others."""

    start: int  # of the original
    end: int
    name: str
    dtype: np.dtype[Any]
    constant: bool
    memory: NDArray[np.uint8]
    original: NDArray[np.uint8] | None = None

    def poisoned(self) -> NDArray[np.bool_]:
        """Which elements nobody has written."""
        elements = self.elements()
        if self.constant or elements is None:
            return np.zeros(0, np.bool_)
        return np.isin(elements, np.array(POISON[elements.itemsize], elements.dtype))

    def elements(self) -> NDArray[Any] | None:
        """As unsigned integers."""
        size = self.dtype.itemsize
        if size not in POISON or self.memory.size % size:
            return None
        return self.memory.view(f"u{size}")


class WatchedKernel(CompiledKernel):
    """One kernel of a build that watches its accesses."""

    def __init__(self, source: Path, expression: str, mode: str) -> None:
        super().__init__(source, expression, mode)
        self._path = build(source, expression, mode)

    def search(
        self,
        search: str,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        shared: int = 0,
        cooperative: bool = False,
    ) -> None:
        """Launch, on copies of the arguments' memory; the results are copied back."""
        self._convert(args)  # for its errors
        buffers = self._buffers(args)
        regions = (_Region * max(1, len(buffers)))()
        for region, buffer in zip(regions, buffers, strict=False):
            region.start, region.bytes = buffer.memory.ctypes.data, buffer.memory.size
            region.name, region.itemsize = buffer.name.encode(), buffer.dtype.itemsize
            region.constant = buffer.constant
        launch = self._launch
        launch.search = 1 + SEARCHES.index(search)
        launch.regions, launch.region_count = ctypes.addressof(regions), len(buffers)
        launch.fill = UNWRITTEN
        moved = [_moved(argument, buffers) for argument in args]
        before = [buffer.memory.copy() for buffer in buffers] if search == "initialisation" else []
        self(grid, block, moved, shared, cooperative)
        if search == "initialisation" and launch.unwritten_read:
            message = self._error()
            self._require_no_influence(
                message, buffers, before, lambda: self(grid, block, moved, shared, cooperative)
            )
        for buffer in buffers:
            if buffer.original is not None:
                buffer.original[...] = buffer.memory

    def _require_no_influence(
        self,
        message: EmulatorError,
        buffers: Sequence[Buffer],
        before: Sequence[NDArray[np.uint8]],
        run: Callable[[], None],
    ) -> None:
        """Raise where the results depend on what memory held that nobody wrote."""
        results = [buffer.memory.copy() for buffer in buffers]
        for fill in FILLS:
            unwritten = []
            for buffer, contents in zip(buffers, before, strict=True):
                buffer.memory[...] = contents
                poisoned = buffer.poisoned()
                unwritten.append(poisoned)
                if poisoned.any():
                    elements = buffer.elements()
                    assert elements is not None, "as poisoned() found some"
                    elements[poisoned] = _repeated(fill, elements.dtype)
            self._launch.fill = fill
            try:
                run()
            except EmulatorError:
                raise message from None
            for buffer, contents, first, left in zip(buffers, before, results, unwritten, strict=True):
                if _differ(buffer, contents, first, left, fill):
                    raise message
        for buffer, first in zip(buffers, results, strict=True):
            buffer.memory[...] = first

    def _buffers(self, args: Sequence[Any]) -> list[Buffer]:
        names = parameter_names(read_source(self._source), self._expression)
        if len(names) != len(args):
            names = [f"argument {position}" for position in range(len(args))]
        spans = []
        for position, (argument, parameter) in enumerate(zip(args, self.parameters, strict=True)):
            if isinstance(argument, EmulatedArray):
                start = int(argument.__array_interface__["data"][0])
                spans.append((start, start + argument.nbytes, position, parameter.is_constant))
        buffers: list[Buffer] = []
        largest = 0
        for start, end, position, constant in sorted(spans):
            array = args[position]
            last = buffers[-1] if buffers else None
            if last is not None and start < last.end:
                last.constant = last.constant and constant
                if array.nbytes > largest:
                    last.name, last.dtype, largest = names[position], array.dtype, array.nbytes
                last.end = max(last.end, end)
            else:
                buffers.append(
                    Buffer(start, end, names[position], array.dtype, constant, np.empty(0, np.uint8))
                )
                largest = array.nbytes
        for buffer in buffers:
            _place(buffer)
        return buffers

    def _error(self) -> EmulatorError:
        error = super()._error()
        text = str(error)
        for number in range(2):
            mark = f"<place {number}>"
            if mark in text:
                text = text.replace(mark, line_of(self._path, self._source, int(self._launch.places[number])))
        text = with_shared_names(self._path, text)
        return EmulatorError(text, "initialisation" if not self._launch.failed else error.fault)


def _place(buffer: Buffer) -> None:
    """Copy the original to memory of its own, at the same distance from an aligned address."""
    size = buffer.end - buffer.start
    room = np.zeros(size + 2 * GAP + ALIGNMENT, np.uint8)
    first = GAP + (buffer.start - room.ctypes.data - GAP) % ALIGNMENT
    buffer.memory = room[first : first + size]
    if size:
        pointer = ctypes.cast(buffer.start, ctypes.POINTER(ctypes.c_uint8))
        buffer.original = np.ctypeslib.as_array(pointer, (size,))
        buffer.memory[...] = buffer.original


def _moved(argument: Any, buffers: Sequence[Buffer]) -> Any:
    """``argument`` in its buffer."""
    if not isinstance(argument, EmulatedArray):
        return argument
    start = int(argument.__array_interface__["data"][0])
    for buffer in buffers:
        if buffer.start <= start and start + argument.nbytes <= buffer.end:
            inside = buffer.memory[start - buffer.start : start - buffer.start + argument.nbytes]
            return inside.view(argument.dtype).reshape(argument.shape).view(EmulatedArray)
    raise AssertionError("every array argument has a buffer")


def _differ(
    buffer: Buffer,
    before: NDArray[np.uint8],
    first: NDArray[np.uint8],
    poisoned: NDArray[np.bool_],
    fill: int,
) -> bool:
    """Whether two runs left different bytes, but for elements that neither wrote."""
    now = buffer.memory
    if poisoned.size == 0 or not poisoned.any():
        return bool((first != now).any())
    size = buffer.dtype.itemsize
    filled = _repeated(fill, np.dtype(f"u{size}"))
    one, other, start = first.view(f"u{size}"), now.view(f"u{size}"), before.view(f"u{size}")
    untouched = poisoned & (one == start) & (other == filled)
    return bool(((one != other) & ~untouched).any())


def _repeated(fill: int, dtype: np.dtype[Any]) -> Any:
    return np.full(4, fill, np.uint16).view(dtype)[0]
