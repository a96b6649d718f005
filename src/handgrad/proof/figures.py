"""The machine-code figures of kernels: what ptxas allotted, what the instructions are, what fits on the chip.

Kernels of one file and architecture are compiled together, which gives the code that each of them gets alone.
What is read off the code is kept in the emulator's cache folder, by the content of everything that it depends
on.  Nothing is measured: these are properties of the code, and no GPU takes part.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from handgrad.emulator.compiler import cache_directory
from handgrad.emulator.errors import CompilerNotFound
from handgrad.kernel import Kernel, kernels_directory, sources_digest
from handgrad.proof import cubin, disassembly, machine_code, occupancy


@dataclass(frozen=True)
class Figures:
    """One kernel on one architecture.

    ``spill_stores``, ``spill_loads`` and ``shared_bytes`` (static) are bytes, as ptxas reports them;
    ``threads`` is the largest block; ``occupancy`` the share of a multiprocessor's warps that
    ``blocks_per_sm`` such blocks fill, None where no C++ compiler was found to build NVIDIA's calculator;
    ``limits`` what allows no more.  The counts are :class:`disassembly.Counts`'; ``loop_*`` and
    ``fma_per_shared_word`` its :class:`disassembly.MainLoop`'s, None without such a loop.
    """

    kernel: str
    arch: str
    registers: int
    spill_stores: int
    spill_loads: int
    local_loads: int
    local_stores: int
    shared_bytes: int
    threads: int
    blocks_per_sm: int | None
    occupancy: float | None
    limits: str
    instructions: int
    ffma: int
    dfma: int
    hmma: int
    global_loads_128: int
    shared_loads_128: int
    barriers: int
    atomics: int
    float_atomics: int
    loop_fma: int | None
    loop_shared_words: int | None
    loop_shared_words_sometimes: int | None
    fma_per_shared_word: float | None

    def as_row(self) -> dict[str, Any]:
        """The figures by name, floats rounded to six places."""
        return {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


Progress = Callable[[int, int], None]


def measure(
    kernels: Iterable[Kernel],
    archs: Sequence[str] = machine_code.ARCHITECTURES,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Figures]:
    """The figures of ``kernels`` on ``archs``, kernel by kernel; sources from :func:`kernels_directory`.

    ``progress(done, total)`` is told of every finished file and architecture.  Raises what
    :func:`machine_code.compile_for` and :func:`disassembly.disassemble` raise.
    """
    wanted = list(dict.fromkeys(kernels))
    known: dict[tuple[Kernel, str], dict[str, Any]] = {}
    missing: dict[tuple[str, str], list[Kernel]] = {}
    for arch in archs:
        for kernel in wanted:
            entry = _entry(kernel, arch)
            if entry.is_file():
                known[kernel, arch] = json.loads(entry.read_text())
            else:
                missing.setdefault((kernel.file, arch), []).append(kernel)
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        started = [
            (arch, group, pool.submit(copy_context().run, _read_code, file, group, arch))
            for (file, arch), group in missing.items()
        ]
        try:
            for done, (arch, group, job) in enumerate(started, start=1):
                for kernel, reading in zip(group, job.result(), strict=True):
                    known[kernel, arch] = reading
                if progress:
                    progress(done, len(started))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [_figures(kernel, arch, known[kernel, arch]) for kernel in wanted for arch in archs]


def _read_code(file: str, kernels: Sequence[Kernel], arch: str) -> list[dict[str, Any]]:
    """Compile, disassemble and count; what comes out goes into the cache."""
    expressions = [kernel.expression for kernel in kernels]
    source = kernels_directory() / file
    compiled = machine_code.compile_for(source, expressions, arch, [machine_code.PTXAS_REPORT])
    resources = machine_code.resources(compiled.log)
    code = disassembly.disassemble(compiled.cubin)
    bounds = cubin.launch_bounds(compiled.cubin)
    readings = []
    for kernel in kernels:
        name = compiled.names[kernel.expression]
        allotted = asdict(resources[name]) | {"threads": bounds[name]}
        reading = {"resources": allotted, "counts": asdict(disassembly.count(code[name]))}
        _keep(_entry(kernel, arch), json.dumps(reading))
        readings.append(reading)
    return readings


def _figures(kernel: Kernel, arch: str, reading: dict[str, Any]) -> Figures:
    resources, counts = reading["resources"], dict(reading["counts"])
    threads, registers, shared = (resources[name] for name in ("threads", "registers", "shared"))
    try:
        fit = occupancy.occupancy(arch, threads, registers, shared)
    except CompilerNotFound:
        fit = None
    loop = counts.pop("main_loop")
    ratio = disassembly.MainLoop(**loop).fma_per_shared_word if loop else None
    return Figures(
        kernel=kernel.expression,
        arch=arch,
        registers=registers,
        spill_stores=resources["spill_stores"],
        spill_loads=resources["spill_loads"],
        shared_bytes=shared,
        threads=threads,
        blocks_per_sm=fit.blocks if fit else None,
        occupancy=fit.fraction if fit else None,
        limits=", ".join(fit.limits) if fit else "",
        loop_fma=loop["fma"] if loop else None,
        loop_shared_words=loop["shared_words"] if loop else None,
        loop_shared_words_sometimes=loop["shared_words_sometimes"] if loop else None,
        fma_per_shared_word=ratio,
        **counts,
    )


# ---- cache -----------------------------------------------------------------------------------------------


def _entry(kernel: Kernel, arch: str) -> Path:
    """Where the reading of one kernel is kept."""
    digest = hashlib.sha256()
    for part in (sources_digest(kernels_directory(), kernel.file), kernel.expression, _toolchain(arch)):
        digest.update(part.encode() + b"\0")
    return cache_directory() / "machine-code" / f"{digest.hexdigest()[:32]}.json"


@functools.cache
def _toolchain(arch: str) -> str:
    """All that a reading depends on besides the kernel's source: the tools, the flags, this very code."""
    tools = [machine_code.load_nvrtc().library, disassembly.nvdisasm()]
    stamps = [(str(tool), tool.stat().st_size, tool.stat().st_mtime_ns) for tool in tools]
    modules = (machine_code, disassembly, cubin)
    code = [hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest() for module in modules]
    return repr((arch, machine_code.flags(arch), stamps, code, Path(__file__).read_bytes()))


def _keep(entry: Path, text: str) -> None:
    """Write ``entry`` under a temporary name and move it into place: several processes may come here."""
    entry.parent.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=entry.parent, prefix="build-", delete=False) as file:
        file.write(text)
    Path(file.name).replace(entry)
