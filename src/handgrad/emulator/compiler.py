"""Finding a C++ compiler, and the folder where built kernels are kept."""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from handgrad.emulator.errors import CompilerNotFound

REMEDY = "install g++ (apt install g++), clang++, or the compiler from PyPI: pip install 'handgrad[emulator]'"


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: ``command`` runs it, ``kind`` is "g++", "clang++" or "zig"."""

    command: tuple[str, ...]
    kind: str
    version: str

    def __str__(self) -> str:
        return f"{' '.join(self.command)} ({self.version})"


def find_compiler() -> Compiler:
    """``HANDGRAD_CXX`` where it is set, else g++, clang++, or ``python -m ziglang c++``.

    Raises :class:`CompilerNotFound`, in one line that says what to install.
    """
    return _find(os.environ.get("HANDGRAD_CXX", ""), os.environ.get("PATH", ""))


@functools.cache
def _find(override: str, path: str) -> Compiler:
    if override:
        try:
            return _identify(tuple(shlex.split(override)))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            reason = " ".join(str(error).split())
            raise CompilerNotFound(
                f"environment variable HANDGRAD_CXX: {override!r} does not run as a C++ compiler "
                f"({reason}); unset it or {REMEDY}"
            ) from None
    for name in ("g++", "clang++"):
        found = shutil.which(name, path=path)
        if found:
            try:
                return _identify((found,))
            except (OSError, subprocess.SubprocessError):
                continue
    if importlib.util.find_spec("ziglang") is not None:
        try:
            return _identify((sys.executable, "-m", "ziglang", "c++"))
        except (OSError, subprocess.SubprocessError):
            pass
    raise CompilerNotFound(f"the emulator needs a C++ compiler and none was found: {REMEDY}")


def _identify(command: tuple[str, ...]) -> Compiler:
    zig = "ziglang" in command or Path(command[0]).name == "zig"
    answer = subprocess.run(
        [*command, "--version"], capture_output=True, text=True, check=True, timeout=60, env=environment()
    )
    lines = answer.stdout.splitlines()
    version = lines[0].strip() if lines else "unknown version"
    kind = "zig" if zig else "clang++" if "clang" in answer.stdout else "g++"
    return Compiler(command, kind, version)


def environment() -> dict[str, str]:
    """The compiler's environment: messages in English, zig's own caches beside ours."""
    zig = str(cache_directory() / "zig")
    return {**os.environ, "LC_ALL": "C", "ZIG_GLOBAL_CACHE_DIR": zig, "ZIG_LOCAL_CACHE_DIR": zig}


def cache_directory() -> Path:
    """Where built kernels are kept: a temporary folder where the usual one cannot be written.

    The usual one is ``$HANDGRAD_CACHE/emulator``, else ``$XDG_CACHE_HOME/handgrad/emulator``, else
    ``~/.cache/handgrad/emulator``.
    """
    return _cache_directory(
        os.environ.get("HANDGRAD_CACHE", ""), os.environ.get("XDG_CACHE_HOME", ""), os.environ.get("HOME", "")
    )


@functools.cache
def _cache_directory(chosen: str, xdg: str, home: str) -> Path:
    try:
        base = Path(chosen) if chosen else (Path(xdg) if xdg else Path.home() / ".cache") / "handgrad"
        folder = base.absolute() / "emulator"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: no home directory
        temporary = tempfile.mkdtemp(prefix="handgrad-emulator-")
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        return Path(temporary)


@functools.cache
def processor() -> str:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = [platform.processor()]
    facts = [
        line
        for line in lines
        if line.split(":")[0].strip() in ("model name", "flags", "Features", "cpu family", "model")
    ]
    return hashlib.sha256("\n".join([platform.machine(), *facts]).encode()).hexdigest()[:16]
