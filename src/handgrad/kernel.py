"""A CUDA kernel as a typed callable, and the catalogue of all of them.

``Kernel("linear.cu", "linear_forward<float, ...>")(grid, block, *args)`` launches one instantiation.
CuPy arrays go to the GPU (compiled by NVRTC through CuPy at first use, cached on disk); emulated arrays go
to :mod:`handgrad.emulator`, which compiles the same source as C++.  The launch code never asks which.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from handgrad.arrays import cuda_error_message, get_array_module

STATIC_SHARED_LIMIT = 48 * 1024  # bytes of shared memory a block may use without opting in
NVRTC_OPTIONS = ("-std=c++17",)

REGISTERS = 65536  # of 32 bits on a multiprocessor, and the most of a block, on every architecture served

_override: list[Path] = []


class KernelError(RuntimeError):
    """A kernel did not compile or did not launch; the message is one line with the remedy."""


def kernels_directory() -> Path:
    """The folder of the ``.cu`` sources: an override, else inside the package, else the checkout's."""
    return _override[-1] if _override else _installed_kernels()


@functools.cache
def _installed_kernels() -> Path:
    package = Path(__file__).resolve().parent
    for folder in (package / "kernels", package.parent.parent / "kernels"):
        if (folder / "common.cuh").is_file():
            return folder
    raise KernelError(f"kernel sources not found beside {package}; reinstall handgrad")


@contextlib.contextmanager
def use_kernels(folder: str | Path) -> Iterator[Path]:
    """Take the kernel sources from ``folder`` inside the block (what ``--kernels DIR`` does)."""
    path = Path(folder).resolve()
    if not (path / "common.cuh").is_file():
        raise ValueError(f"kernels: {folder} has no common.cuh; expected a copy of the folder kernels/")
    _override.append(path)
    try:
        yield path
    finally:
        _override.remove(path)


def sources_digest(folder: Path, file: str) -> str:
    """A digest of ``file`` and of every header beside it: changes when any of them does."""
    digest = hashlib.sha256()
    for path in [*sorted(folder.glob("*.cuh")), folder / file]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Kernel:
    """One instantiation: ``expression`` is the C++ name expression, ``file`` its source in ``kernels/``."""

    file: str
    expression: str

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        *args: Any,
        shared: int = 0,
        cooperative: bool = False,
    ) -> None:
        """Launch with ``grid`` blocks of ``block`` threads and ``shared`` bytes of dynamic shared memory.

        ``args`` are device arrays, NumPy scalars (``np.int32(n)``) or ``None`` (a null pointer).  Bare
        Python numbers raise ``TypeError``: their width on the device would be a guess.

        All blocks of a ``cooperative`` launch are resident at once, so that they may wait for each other; a
        grid for which the device has no room is refused.
        """
        for position, value in enumerate(args):
            if isinstance(value, (bool, int, float)) and not isinstance(value, np.generic):
                raise TypeError(
                    f"{self.expression}: argument {position} is a bare Python {type(value).__name__}; "
                    "pass numpy.int32(...) or numpy.float32(...)"
                )
        xp = get_array_module(*args)
        if xp is np:
            raise TypeError(f"{self.expression}: kernels take CuPy or emulated arrays, got NumPy arrays")
        if xp.__name__ == "cupy":
            self._launch_cuda(grid, block, args, shared, cooperative)
        else:
            xp.launch(
                kernels_directory() / self.file, self.expression, grid, block, args, shared, cooperative
            )

    def _launch_cuda(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: tuple[Any, ...],
        shared: int,
        cooperative: bool,
    ) -> None:
        import cupy

        folder = kernels_directory()
        try:
            function = _cuda_function(
                folder, self.file, self.expression, sources_digest_cached(folder, self.file), cooperative
            )
            if shared > STATIC_SHARED_LIMIT:
                function.max_dynamic_shared_size_bytes = shared
            if cooperative:
                self._require_residency(function, grid, block, shared)
            pointers = tuple(np.uintp(0) if value is None else value for value in args)
            function(grid, block, pointers, shared_mem=shared)
        except cupy.cuda.compiler.CompileException as error:
            first = re.sub(
                r"^\S+\.cu\(", f"{self.file}(", first_error(str(error))
            )  # CuPy names a temporary file
            raise KernelError(f"{self.expression} does not compile: {first}") from error
        except KernelError:
            raise
        except (RuntimeError, MemoryError) as error:  # the driver's, the runtime's, NVRTC's, out of memory
            raise KernelError(
                f"{self.expression} grid {grid} block {block}: {cuda_error_message(error)}"
            ) from error

    def _require_residency(
        self, function: Any, grid: tuple[int, ...], block: tuple[int, ...], shared: int
    ) -> None:
        """Refuse a cooperative grid above what the GPU holds at once: CuPy would shrink it with a warning."""
        import cupy

        blocks, sms = math.prod(grid), _cuda_limits(int(cupy.cuda.runtime.getDevice())).sms
        occupancy = cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor
        each = int(occupancy(function.kernel.ptr, math.prod(block), shared))
        if blocks > each * sms:
            raise KernelError(
                f"{self.expression}: a cooperative grid of {blocks} blocks: the GPU's {sms} multiprocessors "
                f"hold {each} each at a time, {each * sms} in all; launch fewer blocks"
            )


def first_error(log: str) -> str:
    """The line of an NVRTC log that names the first error, with file and line number."""
    lines = [line.strip() for line in log.splitlines() if line.strip()] or ["no message"]
    return next((line for line in lines if "error" in line), lines[0])


@functools.lru_cache(maxsize=64)
def sources_digest_cached(folder: Path, file: str) -> str:
    """:func:`sources_digest`, read once a process: a running program keeps the kernels it started with."""
    return sources_digest(folder, file)


@functools.cache
def _cuda_function(folder: Path, file: str, expression: str, digest: str, cooperative: bool = False) -> Any:
    """The compiled kernel.  CuPy's disk cache does not see headers, so their digest is among the options."""
    import cupy

    options = (*NVRTC_OPTIONS, f"-I{folder}", f"-DHANDGRAD_SOURCES=0x{digest}")
    source = (folder / file).read_text()
    more = {"enable_cooperative_groups": True} if cooperative else {}
    module = cupy.RawModule(code=source, options=options, name_expressions=(expression,), **more)
    return module.get_function(expression)


@dataclass(frozen=True)
class DeviceLimits:
    """What launch code sizes grids and tiles by: ``sms`` multiprocessors, bytes of shared memory that one
    block may opt into, 32-bit registers of one block, bytes of L2 cache."""

    arch: str
    sms: int
    shared_bytes: int
    registers: int
    l2_bytes: int


def device_limits(xp: ModuleType) -> DeviceLimits:
    """Those of the current GPU, or what the emulator is set to; the CPU has none (``ValueError``)."""
    if xp is np:
        raise ValueError("device: expected a GPU or the emulator, got the CPU, which runs no kernels")
    if xp.__name__ == "cupy":
        return _cuda_limits(int(xp.cuda.runtime.getDevice()))
    from handgrad.emulator.settings import L2_BYTES, SHARED_BYTES_PER_BLOCK

    now = xp.current_settings()
    return DeviceLimits(now.arch, now.sms, SHARED_BYTES_PER_BLOCK[now.arch], REGISTERS, L2_BYTES[now.arch])


@functools.cache
def _cuda_limits(index: int) -> DeviceLimits:
    import cupy

    device = cupy.cuda.Device(index)
    found = device.attributes
    return DeviceLimits(
        f"sm_{device.compute_capability}",
        int(found["MultiProcessorCount"]),
        int(found["MaxSharedMemoryPerBlockOptin"]),
        int(found["MaxRegistersPerBlock"]),
        int(found["L2CacheSize"]),
    )


@dataclass(frozen=True)
class Entry:
    """One kernel of the catalogue.

    ``compulsory_bytes(**shape)`` gives, per buffer, the bytes that any implementation must move through
    global memory; ``launch`` states the rule for grid and block; ``expressions`` are the instantiations that
    the proof tools compile.
    """

    op: str
    file: str
    expressions: tuple[str, ...]
    launch: str
    compulsory_bytes: Callable[..., dict[str, int]]

    @property
    def name(self) -> str:
        """The kernel's function name."""
        return self.expressions[0].split("<")[0]


def catalogue() -> tuple[Entry, ...]:
    """Every kernel: expressions, launch rule, compulsory bytes; read by all proof tools."""
    from handgrad import ops  # here, because the ops import Kernel from this module

    return tuple(entry for module in ops.KERNEL_MODULES for entry in module.CATALOGUE)
