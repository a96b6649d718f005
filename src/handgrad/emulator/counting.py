"""Launches whose every access to global and shared memory is counted.

``runtime/watch/counters.cpp`` says what counts as a request, ``runtime/watch/traffic.h`` what it costs.

>>> with counting() as launches:
...     pass  # launch kernels on emulated arrays
>>> launches
[]
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handgrad.emulator.array import EmulatedArray
from handgrad.emulator.build import RUNTIME, build
from handgrad.emulator.launch import CompiledKernel, launch_through
from handgrad.emulator.line_table import source_lines
from handgrad.emulator.settings import current_settings
from handgrad.emulator.source import parameter_names, read_source

SECTOR_BYTES = 32

SHARED = "shared memory"
MODULE = "variables of the module"  # __device__ and __constant__
ELSEWHERE = "elsewhere"  # memory that no argument of the launch points to
_MEMORIES = {-1: SHARED, -2: MODULE, -3: ELSEWHERE}
ACCESSES = ("load", "store", "atomic")
_HEADERS = frozenset(path.name for path in (RUNTIME / "emulated").glob("*.h"))
_NUMBERS = ("requests", "lanes", "sectors", "least_sectors", "wavefronts", "least_wavefronts")


class _Region(ctypes.Structure):  # runtime/emulated/kernel.h: Region
    _fields_ = [
        ("start", ctypes.c_void_p),
        ("bytes", ctypes.c_ulonglong),
        ("name", ctypes.c_char_p),
        ("itemsize", ctypes.c_uint),
        ("constant", ctypes.c_int),
    ]


class _Place(ctypes.Structure):  # runtime/watch/traffic.h: PlaceCounts
    _fields_ = [
        ("code", ctypes.c_ulonglong),
        ("file", ctypes.c_char_p),
        ("line", ctypes.c_int),
        ("memory", ctypes.c_int),
        ("direction", ctypes.c_int),
        ("bytes", ctypes.c_uint),
        *((name, ctypes.c_ulonglong) for name in _NUMBERS),
    ]


class _Distinct(ctypes.Structure):  # runtime/watch/counters.cpp: DistinctSectors
    _fields_ = [("of", ctypes.c_ulonglong * 3)]


class _Counts(ctypes.Structure):  # LaunchCounts
    _fields_ = [
        ("places", ctypes.POINTER(_Place)),
        ("distinct", ctypes.POINTER(_Distinct)),
        ("collectives", ctypes.POINTER(ctypes.c_char_p)),
        ("collective_counts", ctypes.POINTER(ctypes.c_ulonglong)),
        ("barriers", ctypes.c_ulonglong),
        ("place_count", ctypes.c_int),
        ("argument_count", ctypes.c_int),
        ("collective_count", ctypes.c_int),
    ]


@dataclass(frozen=True)
class PlaceCounts:
    """What one place of the source did to one buffer, by all warps of a launch.

    ``buffer`` is a parameter's name ("dW, db" where two arguments overlap), ``SHARED``, ``MODULE`` or
    ``ELSEWHERE``; ``access`` "load", "store" or "atomic", of ``bytes`` bytes a lane.  ``requests`` are those
    of warps, ``lanes`` the accesses in them.  ``sectors`` of 32 bytes and the least that the distinct bytes
    of each request would fill count global memory, ``wavefronts`` and their least shared memory.
    """

    buffer: str
    access: str
    bytes: int
    file: str
    line: int
    requests: int
    lanes: int
    sectors: int
    least_sectors: int
    wavefronts: int
    least_wavefronts: int


@dataclass(frozen=True)
class LaunchCounts:
    """The counts of one launch.

    ``arrays`` maps each buffer of the arguments to its size in bytes; ``distinct`` buffer and access to the
    bytes of the 32-byte sectors so touched.  ``barriers`` are those of whole blocks, ``collectives`` those of
    warps, by function.
    """

    source: Path
    expression: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    static_shared: int
    places: tuple[PlaceCounts, ...]
    arrays: dict[str, int]
    distinct: dict[tuple[str, str], int]
    barriers: int
    collectives: dict[str, int]


@contextlib.contextmanager
def counting() -> Iterator[list[LaunchCounts]]:
    """Inside the block launches are counted, and the list grows by one for each.

    The kernels give the same results as outside, and are compiled once more for it.
    """
    launches: list[LaunchCounts] = []

    def launch(
        source: Path,
        expression: str,
        grid: Sequence[int],
        block: Sequence[int],
        args: Any,
        shared: int,
        cooperative: bool,
    ) -> None:
        launches.append(_kernel(source, expression).count(grid, block, args, shared, cooperative))

    with launch_through(launch):
        yield launches


def _kernel(source: Path, expression: str) -> CountedKernel:
    key = (build(source, expression, "count"), current_settings().arch)
    if key not in _kernels:
        _kernels[key] = CountedKernel(source, expression)
    return _kernels[key]


_kernels: dict[tuple[Path, str], CountedKernel] = {}
_counted = threading.Lock()  # one launch at a time: the runtime has one set of counters


class CountedKernel(CompiledKernel):
    """A kernel built in the counting mode."""

    def __init__(self, source: Path, expression: str) -> None:
        super().__init__(source, expression, "count")
        self._file = build(source, expression, "count")
        self._counts = self._library.emulated_counts  # of the runtime that the library is bound to
        self._counts.restype = ctypes.POINTER(_Counts)

    def count(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        shared: int = 0,
        cooperative: bool = False,
    ) -> LaunchCounts:
        """Launch, and give the counts."""
        self._convert(args)  # for its errors
        arrays = self._arrays(args)
        regions = (_Region * (len(arrays) + 1))()
        for region, (name, start, stop) in zip(regions, arrays, strict=False):
            region.start, region.bytes, region.name, region.itemsize = start, stop - start, name.encode(), 1
        with _counted:
            self._launch.regions, self._launch.region_count = ctypes.addressof(regions), len(arrays)
            self(grid, block, args, shared, cooperative)
            counts = self._counts().contents
            names = [name for name, _, _ in arrays]
            return LaunchCounts(
                self._source,
                self._expression,
                tuple(map(int, grid)),
                tuple(map(int, block)),
                shared,
                self.static_shared,
                self._places(counts, names),
                {name: stop - start for name, start, stop in arrays},
                {
                    (name, access): SECTOR_BYTES * int(counts.distinct[i].of[number])
                    for i, name in enumerate(names)
                    for number, access in enumerate(ACCESSES)
                },
                int(counts.barriers),
                {
                    counts.collectives[i].decode(): int(counts.collective_counts[i])
                    for i in range(counts.collective_count)
                },
            )

    def _arrays(self, args: Sequence[Any]) -> list[tuple[str, int, int]]:
        """Name, begin and end of each argument that is an array; those that overlap become one."""
        names = parameter_names(read_source(self._source), self._expression)
        if len(names) != len(args):
            names = [f"argument {position}" for position in range(len(args))]
        found = []
        for name, argument in zip(names, args, strict=True):
            if isinstance(argument, EmulatedArray) and argument.nbytes:
                start = int(argument.__array_interface__["data"][0])
                found.append((start, start + argument.nbytes, [name]))
        merged: list[tuple[int, int, list[str]]] = []
        for start, stop, own in sorted(found, key=lambda one: one[:2]):
            if merged and start < merged[-1][1]:
                before = merged.pop()
                merged.append((before[0], max(stop, before[1]), before[2] + own))
            else:
                merged.append((start, stop, own))
        named = [(sorted(own, key=names.index), start, stop) for start, stop, own in merged]
        named.sort(key=lambda one: names.index(one[0][0]))
        return [(", ".join(own), start, stop) for own, start, stop in named]

    def _places(self, counts: Any, names: Sequence[str]) -> tuple[PlaceCounts, ...]:
        """The counts by line: what the compiler made several instructions of is one place again."""
        found = [counts.places[i] for i in range(counts.place_count)]
        codes = {int(one.code) - 1 for one in found if not one.file}
        lines = source_lines(self._file, codes, inlined=_HEADERS)
        sums: dict[tuple[Any, ...], list[int]] = {}
        for one in found:
            if one.file:
                file, line = Path(one.file.decode()).name, int(one.line)
            else:
                file, line = lines.get(int(one.code) - 1, ("", 0))
            buffer = names[one.memory] if one.memory >= 0 else _MEMORIES[one.memory]
            key = (buffer, ACCESSES[one.direction], int(one.bytes), file, line)
            known = sums.setdefault(key, [0] * len(_NUMBERS))
            sums[key] = [a + int(getattr(one, name)) for a, name in zip(known, _NUMBERS, strict=True)]
        ordered = sorted(sums, key=lambda key: (key[3], key[4], *key[:3]))
        return tuple(PlaceCounts(*key, *sums[key]) for key in ordered)
