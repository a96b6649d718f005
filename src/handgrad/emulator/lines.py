"""From a place in a kernel's machine code to the line of its source, by the debugger's line tables."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from pathlib import Path

from handgrad.emulator.build import RUNTIME
from handgrad.emulator.compiler import environment

# The project's wrappers of single accesses: the line that matters is the one that calls them.
WRAPPERS = re.compile(r"\b(load_vector|store_vector|copy_async|operator\[\])\s*(<|\(|$)")

PROGRAMS = (("addr2line",), ("llvm-symbolizer", "--output-style=GNU"))


@functools.lru_cache(maxsize=256)
def line_of(library: Path, source: Path, offset: int) -> str:
    """``"reduce.cu:31"`` for the call that returns to ``offset`` in ``library``.

    Code of a header that was inlined is named with the line of ``source`` that it came from, as in
    ``"common.cuh:43 (from reduce.cu:31)"``.  Frames of the emulator itself are left out.
    """
    frames = [
        (file, line) for function, file, line in _frames(library, offset - 1) if not _is_ours(file, function)
    ]
    if not frames:
        return f"{source.name}, code at 0x{offset:x} (install binutils for the line)"
    words = [f"{Path(file).name}:{line}" for file, line in frames]
    outer = next((word for word in words if word.rsplit(":", 1)[0] == source.name), None)
    return words[0] if outer is None or outer == words[0] else f"{words[0]} (from {outer})"


_OFFSET = re.compile(r"static shared memory at byte (\d+)")


def with_shared_names(library: Path, message: str) -> str:
    """``message``, in which offsets in static shared memory become variables: ``s at byte 124 of 256``."""
    return _OFFSET.sub(lambda found: _shared_name(library, int(found[1])) or found[0], message)


@functools.lru_cache(maxsize=256)
def _shared_name(library: Path, offset: int) -> str:
    """The variable at ``offset`` of the thread-local segment, which holds a kernel's shared memory."""
    if shutil.which("readelf") is None:
        return ""
    command = ["readelf", "-sW", "-C", str(library)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment())
    for line in said.stdout.splitlines():
        words = line.split(None, 7)
        if len(words) == 8 and words[3] == "TLS" and words[6].isdecimal():
            start, size = int(words[1], 16), int(words[2], 0)
            if start <= offset < start + size:
                name = words[7].split("::")[-1]
                return f"{name} (shared, byte {offset - start} of {size})"
    return ""


def _frames(library: Path, address: int) -> list[tuple[str, str, str]]:
    """Function, file and line, innermost first."""
    for program in PROGRAMS:
        if shutil.which(program[0]) is None:
            continue
        command = [*program, "-i", "-f", "-C", "-e", str(library), hex(address)]
        try:
            said = subprocess.run(
                command, capture_output=True, text=True, timeout=60, check=True, env=environment()
            )
        except (OSError, subprocess.SubprocessError):
            continue
        lines = said.stdout.splitlines()
        frames = []
        for function, place in zip(lines[::2], lines[1::2], strict=False):
            file, _, line = place.split(" (discriminator")[0].rpartition(":")
            if line.isdecimal() and line != "0":
                frames.append((function, file, line))
        return frames
    return []


def _is_ours(file: str, function: str) -> bool:
    path = Path(file)
    wraps = WRAPPERS.search(function) is not None
    return wraps or path.name.startswith("(kernel expression)") or RUNTIME in path.parents
