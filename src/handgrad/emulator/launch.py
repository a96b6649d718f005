"""A typed launch: arguments are compared with the C++ parameters, the geometry with the architecture."""

from __future__ import annotations

import contextlib
import ctypes
import math
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np

from handgrad.emulator.array import EmulatedArray
from handgrad.emulator.build import build, inspect, runtime_library, symbol_of
from handgrad.emulator.errors import EmulatorError, LaunchError
from handgrad.emulator.settings import (
    BLOCK_LIMITS,
    GRID_LIMITS,
    LANDINGS,
    ORDERS,
    SHARED_BYTES_PER_BLOCK,
    STATIC_SHARED_BYTES,
    THREADS_PER_BLOCK,
    Settings,
    current_settings,
    resident_blocks,
)
from handgrad.emulator.source import parameter_names, read_source


class _Parameter(ctypes.Structure):  # runtime/emulated/kernel.h: Parameter
    _fields_ = [
        ("is_pointer", ctypes.c_bool),
        ("is_constant", ctypes.c_bool),
        ("kind", ctypes.c_char),
        ("reserved", ctypes.c_char),
        ("size", ctypes.c_uint),
    ]


class _StaticShared(ctypes.Structure):  # StaticShared
    _fields_ = [("module", ctypes.c_ulonglong), ("bytes", ctypes.c_ulonglong)]


class _Launch(ctypes.Structure):  # Launch
    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("static_shared", _StaticShared),
        ("dynamic_shared", ctypes.c_ulonglong),
        ("arguments", ctypes.c_void_p),
        ("seed", ctypes.c_ulonglong),
        ("order", ctypes.c_int),
        ("landing", ctypes.c_int),
        ("cooperative", ctypes.c_int),
        ("search", ctypes.c_int),
        ("region_count", ctypes.c_int),
        ("regions", ctypes.c_void_p),
        ("value_bytes", ctypes.c_ulonglong),
        ("fill", ctypes.c_ushort),
        ("unwritten_read", ctypes.c_ushort),
        ("failed", ctypes.c_int),
        ("places", ctypes.c_ulonglong * 2),
        ("message", ctypes.c_char * 1000),
    ]


class _Description(ctypes.Structure):  # KernelDescription
    _fields_ = [
        ("launch", ctypes.CFUNCTYPE(None, ctypes.POINTER(_Launch))),
        ("static_shared", ctypes.CFUNCTYPE(_StaticShared)),
        ("parameters", ctypes.POINTER(_Parameter)),
        ("parameter_count", ctypes.c_int),
        ("launch_bound", ctypes.c_int),
    ]


FAULTS = ("", "synchronisation", "memory", "races", "initialisation", "other")  # Fault
UNWRITTEN = 0x7FF8  # a NaN of every floating-point type

_running = threading.Lock()  # one grid at a time: the runtime has one set of fibers


def launch(
    source: Path,
    expression: str,
    grid: Sequence[int],
    block: Sequence[int],
    args: Sequence[Any],
    shared: int = 0,
    cooperative: bool = False,
) -> None:
    """Run one kernel: ``grid`` blocks of ``block`` threads, ``shared`` bytes of dynamic shared memory each.

    The blocks of a ``cooperative`` launch are all resident from the start, so that they may wait for each
    other.

    ``args`` are emulated arrays, NumPy scalars or ``None`` (a null pointer), of the number, kinds and sizes
    of the kernel's C++ parameters: ``TypeError`` names the first that is not.  :class:`EmulatorError` reports
    a geometry outside the architecture's limits, and what the kernel did that a GPU forbids.
    """
    instead = _instead.get()
    if instead is not None:
        return instead(source, expression, grid, block, args, shared, cooperative)
    key = (str(source), expression, current_settings().arch)
    kernel = _kernels.get(key)
    if kernel is None:
        kernel = _kernels[key] = CompiledKernel(source, expression)
    kernel(grid, block, args, shared, cooperative)


_kernels: dict[tuple[str, str, str], CompiledKernel] = {}
_instead: ContextVar[Callable[..., None] | None] = ContextVar("handgrad_emulator_launch", default=None)


@contextlib.contextmanager
def launch_through(function: Callable[..., None]) -> Iterator[None]:
    """Inside the block, launches become calls of ``function``, with the arguments of :func:`launch`."""
    token = _instead.set(function)
    try:
        yield
    finally:
        _instead.reset(token)


def launch_filled(
    source: Path, expression: str, grid: Sequence[int], block: Sequence[int], *rest: Any
) -> None:
    """:func:`launch`, for :func:`launch_through`; a block must have all threads that its launch bounds name.

    ptxas allots registers for as many threads as they say: a larger bound costs registers or occupancy.
    """
    token = _instead.set(None)
    try:
        launch(source, expression, grid, block, *rest)
    finally:
        _instead.reset(token)
    kernel = _kernels[str(source), expression, current_settings().arch]
    threads = math.prod(block)
    if kernel.launch_bound not in (0, threads):
        raise LaunchError(
            f"{kernel.name}: block {tuple(block)} has {threads} threads: "
            f"its __launch_bounds__ say {kernel.launch_bound}; make the two the same"
        )


def reload_kernels() -> None:
    """Forget the loaded kernels: the next launch of each sees what its source holds then."""
    _kernels.clear()
    inspect.cache_clear()


_FORMATS = {  # struct format and NumPy dtype of a value, by kind and size
    (b"f", 4): ("f", np.dtype(np.float32)),
    (b"f", 8): ("d", np.dtype(np.float64)),
    (b"i", 1): ("b", np.dtype(np.int8)),
    (b"i", 2): ("h", np.dtype(np.int16)),
    (b"i", 4): ("i", np.dtype(np.int32)),
    (b"i", 8): ("q", np.dtype(np.int64)),
    (b"u", 1): ("B", np.dtype(np.uint8)),
    (b"u", 2): ("H", np.dtype(np.uint16)),
    (b"u", 4): ("I", np.dtype(np.uint32)),
    (b"u", 8): ("Q", np.dtype(np.uint64)),
    (b"b", 1): ("?", np.dtype(np.bool_)),
}


class Parameter:
    """One parameter of a kernel, and how a Python argument becomes its value."""

    def __init__(self, described: Any) -> None:
        self.is_pointer = bool(described.is_pointer)
        self.is_constant = bool(described.is_constant)
        self.size = int(described.size)  # of the value, or of what it points to
        code, self.dtype = _FORMATS.get((described.kind, self.size), (f"{self.size}s", None))
        self.is_void = described.kind == b"v"
        self.format = "Q" if self.is_pointer else code

    def __str__(self) -> str:
        name = "void" if self.is_void else str(self.dtype) if self.dtype else f"struct of {self.size} bytes"
        return f"{'const ' if self.is_constant else ''}{name}*" if self.is_pointer else name

    def value(self, argument: Any) -> Any:
        """What ``struct`` packs for ``argument``; ``TypeError`` says what is wrong with it, not where."""
        if self.is_pointer:
            return self._address(argument)
        if self.dtype is not None:
            if isinstance(argument, np.generic) and argument.dtype == self.dtype:
                return argument
        elif isinstance(argument, np.generic) and argument.dtype.itemsize == self.size:
            return argument.tobytes()
        if isinstance(argument, (bool, int, float)):
            wanted = f"numpy.{self.dtype}(...)" if self.dtype else str(self)
            raise TypeError(f"got a bare Python {type(argument).__name__}; pass {wanted}")
        raise TypeError(f"got {_describe(argument)}")

    def _address(self, argument: Any) -> int:
        if argument is None:
            return 0
        if not isinstance(argument, EmulatedArray):
            raise TypeError(f"got {_describe(argument)}; pass an emulated array or None")
        flags = argument.flags
        if not flags.c_contiguous:
            raise TypeError(
                f"got an array of strides {argument.strides} that is not contiguous; pass a contiguous copy"
            )
        if self.dtype is not None:
            if argument.dtype != self.dtype:
                raise TypeError(f"got {_describe(argument)}; convert it with .astype('{self.dtype}')")
        elif not self.is_void and self.size % argument.dtype.itemsize:
            raise TypeError(f"got {_describe(argument)}")
        if not self.is_constant and not flags.writeable:
            raise TypeError("got a read-only array; pass a copy")
        return int(argument.__array_interface__["data"][0])


def _describe(argument: Any) -> str:
    if isinstance(argument, np.ndarray):
        kind = "emulated array" if isinstance(argument, EmulatedArray) else "NumPy array"
        return f"{'an' if kind[0] == 'e' else 'a'} {kind} of {argument.dtype}"
    if isinstance(argument, np.generic):
        return f"a scalar of {argument.dtype}"
    return "None" if argument is None else f"a {type(argument).__module__}.{type(argument).__qualname__}"


class CompiledKernel:
    """One kernel, loaded: call it to launch."""

    SLOT = 16  # bytes; each argument's value starts at a multiple of this

    def __init__(self, source: Path, expression: str, mode: str = "plain") -> None:
        self.name = f"{source.name}: {expression}"
        self._source, self._expression = source, expression
        library = build(source, expression, mode)
        try:
            self._runtime = ctypes.CDLL(
                str(runtime_library(mode))
            )  # first: the kernel's library refers to it
            self._library = ctypes.CDLL(str(library))
            description = _Description.in_dll(self._library, symbol_of(expression))
        except (OSError, ValueError) as error:
            raise EmulatorError(f"{self.name} cannot be loaded: {' '.join(str(error).split())}") from None
        self._run = description.launch
        self.launch_bound = int(description.launch_bound)  # threads a block; 0 where none is given
        static_shared = description.static_shared()
        self.static_shared = int(static_shared.bytes)
        self.parameters = [Parameter(description.parameters[i]) for i in range(description.parameter_count)]
        sizes = [struct.calcsize("=" + parameter.format) for parameter in self.parameters]
        slots = [-(-size // self.SLOT) * self.SLOT for size in sizes]
        self._pack = struct.Struct(
            "="
            + "".join(
                f"{p.format}{slot - size}x"
                for p, size, slot in zip(self.parameters, sizes, slots, strict=True)
            )
        ).pack_into
        self._values = ctypes.create_string_buffer(sum(slots) + self.SLOT)
        start = ctypes.addressof(self._values)
        self._pointers = (ctypes.c_void_p * (len(slots) + 1))(
            *(start + sum(slots[:i]) for i in range(len(slots)))
        )
        self._launch = _Launch(
            static_shared=static_shared,
            arguments=ctypes.addressof(self._pointers),
            value_bytes=sum(slots),
            fill=UNWRITTEN,
        )

    def __call__(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        shared: int = 0,
        cooperative: bool = False,
    ) -> None:
        chosen = current_settings()
        values = self._convert(args)
        launch = self._launch
        with _running:
            launch.grid[:] = self._extent("grid", grid, GRID_LIMITS, chosen.arch)
            launch.block[:] = self._extent("block", block, BLOCK_LIMITS, chosen.arch)
            self._check_block(launch.block, shared, chosen.arch)
            if cooperative:
                self._check_residency(launch.grid, launch.block, shared, chosen)
            launch.dynamic_shared = shared
            launch.cooperative = cooperative
            launch.order = ORDERS.index(chosen.order)
            # sm_75 has no asynchronous copies: intrinsics.cuh copies at once
            launch.landing = LANDINGS.index("early" if chosen.arch == "sm_75" else chosen.copies)
            launch.seed = chosen.seed
            self._pack(self._values, 0, *values)
            self._run(launch)
            if launch.failed:
                raise self._error()

    def _error(self) -> EmulatorError:
        message = self._launch.message.decode(errors="replace")
        return EmulatorError(f"{self.name}: {message}", FAULTS[self._launch.failed])

    def _convert(self, args: Sequence[Any]) -> list[Any]:
        if len(args) != len(self.parameters):
            raise TypeError(f"{self.name} takes {len(self.parameters)} arguments, got {len(args)}")
        values = []
        for position, (parameter, argument) in enumerate(zip(self.parameters, args, strict=True)):
            try:
                values.append(parameter.value(argument))
            except TypeError as error:
                names = parameter_names(read_source(self._source), self._expression)
                name = f" ({names[position]})" if len(names) == len(args) else ""
                raise TypeError(
                    f"{self.name}: argument {position}{name}: expected {parameter}, {error}"
                ) from None
        return values

    def _extent(
        self, what: str, given: Sequence[int], limits: tuple[int, int, int], arch: str
    ) -> tuple[int, int, int]:
        if not 1 <= len(given) <= 3:
            raise LaunchError(f"{self.name}: {what} {tuple(given)}: expected 1 to 3 sizes")
        x, y, z = (*map(int, given), 1, 1)[:3]
        if not (0 < x <= limits[0] and 0 < y <= limits[1] and 0 < z <= limits[2]):
            raise LaunchError(f"{self.name}: {what} {(x, y, z)}: {arch} allows sizes from 1 to {limits}")
        return x, y, z

    def _check_block(self, block: Any, shared: int, arch: str) -> None:
        threads = block[0] * block[1] * block[2]
        if threads > THREADS_PER_BLOCK:
            raise LaunchError(
                f"{self.name}: block {tuple(block)} has {threads} threads: {arch} allows {THREADS_PER_BLOCK}"
            )
        if self.launch_bound and threads > self.launch_bound:
            raise LaunchError(
                f"{self.name}: block {tuple(block)} has {threads} threads: "
                f"its __launch_bounds__ allow {self.launch_bound}"
            )
        if self.static_shared > STATIC_SHARED_BYTES:
            raise LaunchError(
                f"{self.name}: {self.static_shared} bytes of static shared memory: "
                f"CUDA allows {STATIC_SHARED_BYTES}; take the rest as dynamic shared memory"
            )
        if shared < 0 or self.static_shared + shared > SHARED_BYTES_PER_BLOCK[arch]:
            raise LaunchError(
                f"{self.name}: {self.static_shared} + {shared} bytes of static and dynamic shared memory: "
                f"{arch} allows a block {SHARED_BYTES_PER_BLOCK[arch]}"
            )

    def _check_residency(self, grid: Any, block: Any, shared: int, chosen: Settings) -> None:
        threads, blocks = block[0] * block[1] * block[2], grid[0] * grid[1] * grid[2]
        each = resident_blocks(chosen.arch, threads, self.static_shared + shared)
        if blocks > each * chosen.sms:
            raise LaunchError(
                f"{self.name}: a cooperative grid of {blocks} blocks: {chosen.sms} multiprocessors of "
                f"{chosen.arch} hold {each} each at a time, {each * chosen.sms} in all; launch fewer blocks"
            )
