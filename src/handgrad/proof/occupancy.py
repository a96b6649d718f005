"""Occupancy: how many blocks of a kernel a multiprocessor holds at once, by NVIDIA's own calculator.

``cuda_occupancy.h`` comes with the extra ``machine-code``; it is compiled as a host library by the C++
compiler that the emulator finds, and kept in the emulator's cache.  The limits of each architecture:
`CUDA C++ programming guide, compute capabilities
<https://docs.nvidia.com/cuda/cuda-c-programming-guide/#compute-capabilities>`_.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from handgrad.emulator.build import COMPILER_FLAGS
from handgrad.emulator.compiler import cache_directory, environment, find_compiler
from handgrad.emulator.settings import SHARED_BYTES_PER_BLOCK
from handgrad.proof import machine_code

SOURCE = Path(__file__).with_name("occupancy.cpp")

# Threads resident on a multiprocessor, at most.
THREADS_PER_SM = {
    "sm_75": 1024,
    "sm_80": 2048,
    "sm_86": 1536,
    "sm_89": 1536,
    "sm_90": 2048,
    "sm_100": 2048,
    "sm_120": 1536,
}

LIMITS = {  # the bits of cudaOccLimitingFactor
    0x01: "warps",
    0x02: "registers",
    0x04: "shared memory",
    0x08: "blocks",
    0x10: "barriers",
    0x20: "virtual resources",
}


@dataclass(frozen=True)
class Occupancy:
    """``blocks`` on a multiprocessor, the share of its warps that they fill, and what allows no more."""

    blocks: int
    fraction: float
    limits: tuple[str, ...]


class _Query(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int)
        for name in (
            *("major", "minor", "threads_per_sm", "shared_per_sm", "shared_per_block", "reserved_shared"),
            *("threads", "registers", "static_shared", "dynamic_shared"),
        )
    )


def occupancy(arch: str, threads: int, registers: int, shared: int, dynamic_shared: int = 0) -> Occupancy:
    """Blocks of ``threads`` threads, ``registers`` a thread, ``shared`` + ``dynamic_shared`` bytes.

    0 blocks where one does not fit.  Raises ``ValueError`` for an unknown architecture or a number that makes
    no sense, :class:`machine_code.NvrtcMissing` without the header, ``CompilerNotFound`` without a compiler.
    """
    if arch not in THREADS_PER_SM:
        raise ValueError(f"arch: expected one of {', '.join(THREADS_PER_SM)}, got {arch!r}")
    if threads < 1 or min(registers, shared, dynamic_shared) < 0:
        raise ValueError(
            f"occupancy: expected at least 1 thread and nothing below 0, got {threads} threads, "
            f"{registers} registers, {shared} + {dynamic_shared} bytes of shared memory"
        )
    version = int(arch.removeprefix("sm_"))
    reserved = 1024 if version >= 80 else 0
    query = _Query(
        major=version // 10,
        minor=version % 10,
        threads_per_sm=THREADS_PER_SM[arch],
        shared_per_sm=SHARED_BYTES_PER_BLOCK[arch] + reserved,
        shared_per_block=SHARED_BYTES_PER_BLOCK[arch],
        reserved_shared=reserved,
        threads=threads,
        registers=registers,
        static_shared=shared,
        dynamic_shared=dynamic_shared,
    )
    limits = ctypes.c_uint()
    blocks = int(_library().handgrad_occupancy(ctypes.byref(query), ctypes.byref(limits)))
    if blocks < 0:
        raise ValueError(f"occupancy: NVIDIA's calculator refuses the figures (error {-blocks})")
    warps = -(-threads // 32)
    return Occupancy(
        blocks=blocks,
        fraction=blocks * warps * 32 / THREADS_PER_SM[arch],
        limits=tuple(name for bit, name in LIMITS.items() if limits.value & bit),
    )


@functools.cache
def _library() -> ctypes.CDLL:
    """The calculator, built where the cache has none."""
    folder = machine_code.wheel_folder()
    header = folder / "include" / "cuda_occupancy.h" if folder else None
    if header is None or not header.is_file():
        raise machine_code.NvrtcMissing(
            "cuda_occupancy.h is not installed; pip install 'handgrad[machine-code]'"
        )
    compiler = find_compiler()
    digest = hashlib.sha256(SOURCE.read_bytes() + header.read_bytes() + str(compiler).encode())
    library = cache_directory() / f"occupancy-{digest.hexdigest()[:24]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=cache_directory(), prefix="build-") as scratch:
            output = Path(scratch) / library.name
            flags = (*COMPILER_FLAGS[compiler.kind], "-std=c++17", "-O1", "-w", "-shared", "-fPIC")
            command = [*compiler.command, *flags, "-I", str(header.parent), str(SOURCE), "-o", str(output)]
            result = subprocess.run(command, cwd=scratch, capture_output=True, text=True, env=environment())
            if result.returncode:
                message = (result.stderr.strip().splitlines() or ["no message"])[0]
                raise RuntimeError(f"cuda_occupancy.h does not compile: {message}")
            output.replace(library)
    return ctypes.CDLL(str(library))
