"""From a place in a kernel's machine code to the line of its source, by the debugger's line tables."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

from handgrad.emulator.build import RUNTIME
from handgrad.emulator.compiler import environment

PROGRAMS = (("addr2line", "-i", "-f", "-e"), ("llvm-symbolizer", "--output-style=GNU", "-i", "-f", "-e"))


@functools.lru_cache(maxsize=256)
def line_of(library: Path, source: Path, offset: int) -> str:
    """``"reduce.cu:31"`` for the call that returns to ``offset`` in ``library``.

    Code of a header that was inlined is named with the line of ``source`` that it came from, as in
    ``"common.cuh:43 (from reduce.cu:31)"``.  Frames of the emulator itself are left out.
    """
    frames = [frame for frame in _frames(library, offset - 1) if not _is_ours(frame)]
    if not frames:
        return f"{source.name}, code at 0x{offset:x} (install binutils for the line)"
    words = [f"{Path(file).name}:{line}" for file, line in frames]
    outer = next((word for word in words if word.rsplit(":", 1)[0] == source.name), None)
    return words[0] if outer is None or outer == words[0] else f"{words[0]} (from {outer})"


def _frames(library: Path, address: int) -> list[tuple[str, str]]:
    """File and line, innermost first."""
    for program in PROGRAMS:
        if shutil.which(program[0]) is None:
            continue
        command = [*program, str(library), hex(address)]
        try:
            said = subprocess.run(
                command, capture_output=True, text=True, timeout=60, check=True, env=environment()
            )
        except (OSError, subprocess.SubprocessError):
            continue
        places = [line.split(" (discriminator")[0] for line in said.stdout.splitlines()[1::2]]
        frames = [(place.rpartition(":")[0], place.rpartition(":")[2]) for place in places]
        return [frame for frame in frames if frame[1].isdecimal() and frame[1] != "0"]
    return []


def _is_ours(frame: tuple[str, str]) -> bool:
    file = Path(frame[0])
    return file.name.startswith("(kernel expression)") or RUNTIME in file.parents
