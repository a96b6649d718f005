"""Machine code of the kernels for any architecture, without a GPU, a driver or nvcc.

NVRTC comes as a wheel and needs no driver as long as the architecture is named.  This module binds the dozen
functions of its C interface that a compilation takes (`NVRTC user guide
<https://docs.nvidia.com/cuda/nvrtc/index.html>`_) and passes the very flags that CuPy passes, so that what is
compiled here is what runs on a GPU::

    compiled = compile_for(kernels_directory() / "linear.cu", ["linear_forward<...>"], "sm_90")
    compiled.log      # "" where neither NVRTC nor ptxas had anything to say
    compiled.cubin    # the ELF image that cuobjdump and nvdisasm read
    compiled.names    # name expression -> mangled name

The wheels are pinned by the extra ``machine-code``: register counts differ between toolchains.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from handgrad.kernel import NVRTC_OPTIONS, KernelError, first_error

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")

# Registers, shared memory and spills of every kernel, as a note in the log: see resources().
PTXAS_REPORT = "--ptxas-options=-v"

_REMEDY = "pip install 'handgrad[machine-code]'"


class NvrtcMissing(RuntimeError):
    """The NVRTC wheels are not installed; the message names the remedy."""


class CompileError(KernelError):
    """A kernel does not compile: the message is NVRTC's first error with file and line; ``log`` has all."""

    def __init__(self, message: str, log: str) -> None:
        super().__init__(message)
        self.log = log


@dataclass(frozen=True)
class CompiledKernels:
    """What NVRTC made of one source file: its log, the cubin, and the mangled name of each expression."""

    log: str
    cubin: bytes
    names: dict[str, str]


@dataclass(frozen=True)
class Resources:
    """What ptxas reports for one kernel on one architecture; sizes in bytes."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


def compile_for(
    source: Path, expressions: Iterable[str], arch: str, options: Sequence[str] = ()
) -> CompiledKernels:
    """Compile ``expressions`` of the CUDA file ``source`` for ``arch``, "sm_75" to "sm_120"; needs no driver.

    The flags are :func:`flags`, with the folder of the source among the include folders, and ``options``
    after them.  Raises :class:`NvrtcMissing` without the wheels, :class:`CompileError` where the source does
    not compile, and ``ValueError`` for an architecture that this NVRTC does not know.
    """
    if not re.fullmatch(r"sm_\d+[af]?", arch):
        raise ValueError(f"arch: expected 'sm_75' ... 'sm_120', got {arch!r}")
    nvrtc = load_nvrtc()
    source = Path(source).resolve()
    folders = (source.parent, *nvrtc.include_folders)
    all_flags = [flag.encode() for flag in (*flags(arch), *(f"-I{folder}" for folder in folders), *options)]
    wanted = tuple(expressions)
    # By its whole path: for a bare name NVRTC looks for #include "..." in the working directory first.
    with nvrtc.program(source.read_text(encoding="utf-8"), str(source)) as program:
        for expression in wanted:
            nvrtc.call("AddNameExpression", program, expression.encode())
        status = nvrtc.status(
            "CompileProgram", program, len(all_flags), (ctypes.c_char_p * len(all_flags))(*all_flags)
        )
        log = nvrtc.read("ProgramLog", program).rstrip(b"\0").decode(errors="replace").strip()
        log = log.replace(str(source.parent / "x")[:-1], "")  # messages name the file alone
        if status:
            raise _error(source, arch, log or nvrtc.describe(status))
        names = {expression: nvrtc.lowered_name(program, expression) for expression in wanted}
        return CompiledKernels(log, nvrtc.read("CUBIN", program), names)


def flags(arch: str) -> tuple[str, ...]:
    """The flags of a launch: handgrad's own, and those that CuPy 14 adds to the options of a RawModule."""
    return (*NVRTC_OPTIONS, "-ftz=true", f"-arch={arch}", "--device-as-default-execution-space")


def _error(source: Path, arch: str, log: str) -> Exception:
    first = first_error(log)
    if "--gpu-architecture" in first:
        return ValueError(f"arch: this NVRTC does not compile for {arch} ({first})")
    return CompileError(f"{source.name} does not compile for {arch}: {first}", log)


def warnings(log: str) -> list[str]:
    """The lines of a log that warn, from NVRTC ("warning #177-D: ...") and from ptxas alike."""
    return [line.strip() for line in log.splitlines() if re.search(r"\bwarning (#|:)", line)]


def resources(log: str) -> dict[str, Resources]:
    """ptxas's figures by mangled name, out of the log of a compilation with :data:`PTXAS_REPORT`."""
    figures: dict[str, Resources] = {}
    for block in log.split("Compiling entry function '")[1:]:
        name = block.split("'", 1)[0]

        def number(pattern: str, text: str = block) -> int:
            found = re.search(pattern, text)
            return int(found[1]) if found else 0

        figures[name] = Resources(
            registers=number(r"Used (\d+) registers"),
            stack=number(r"(\d+) bytes stack frame"),
            spill_stores=number(r"(\d+) bytes spill stores"),
            spill_loads=number(r"(\d+) bytes spill loads"),
            shared=number(r"(\d+) bytes smem"),
        )
    return figures


class Nvrtc:
    """The C interface of one NVRTC library, and the include folders that belong to it."""

    def __init__(self, library: Path, include_folders: tuple[Path, ...]) -> None:
        self.library = library
        self.include_folders = include_folders
        for builtins in library.parent.glob("*nvrtc-builtins*"):
            if ".alt." not in builtins.name:
                ctypes.CDLL(
                    str(builtins)
                )  # NVRTC opens it by its bare name, which finds what is loaded already
        self._functions = ctypes.CDLL(str(library))
        self._functions.nvrtcGetErrorString.restype = ctypes.c_char_p

    @property
    def version(self) -> str:
        """For example "13.0"."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.call("Version", ctypes.byref(major), ctypes.byref(minor))
        return f"{major.value}.{minor.value}"

    def status(self, function: str, *arguments: object) -> int:
        """The result code of ``nvrtc<function>(*arguments)``: 0 is success."""
        return int(getattr(self._functions, f"nvrtc{function}")(*arguments))

    def call(self, function: str, *arguments: object) -> None:
        """``nvrtc<function>(*arguments)``; RuntimeError where it fails."""
        code = self.status(function, *arguments)
        if code:
            raise RuntimeError(f"nvrtc{function}: {self.describe(code)}")

    def describe(self, code: int) -> str:
        """NVRTC's own words for a result code."""
        return bytes(self._functions.nvrtcGetErrorString(code)).decode()

    def read(self, what: str, program: ctypes.c_void_p) -> bytes:
        """The bytes of ``nvrtcGet<what>`` ("CUBIN", "ProgramLog"), sized by ``nvrtcGet<what>Size``."""
        size = ctypes.c_size_t()
        self.call(f"Get{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self.call(f"Get{what}", program, buffer)
        return buffer.raw

    def lowered_name(self, program: ctypes.c_void_p, expression: str) -> str:
        """The mangled name of a name expression that the program was compiled with."""
        name = ctypes.c_char_p()
        self.call("GetLoweredName", program, expression.encode(), ctypes.byref(name))
        assert name.value is not None
        return name.value.decode()

    @contextmanager
    def program(self, code: str, name: str) -> Iterator[ctypes.c_void_p]:
        """An NVRTC program of ``code``, destroyed afterwards; messages call it ``name``."""
        handle = ctypes.c_void_p()
        self.call("CreateProgram", ctypes.byref(handle), code.encode(), name.encode(), 0, None, None)
        try:
            yield handle
        finally:
            self.call("DestroyProgram", ctypes.byref(handle))


def wheel_folder() -> Path | None:
    """Where the wheels of ``machine-code`` put ``lib``, ``include`` and ``bin``; None without them."""
    package = importlib.util.find_spec("nvidia")
    for place in (package.submodule_search_locations or ()) if package else ():
        if _library_in(Path(place) / "cu13"):
            return Path(place) / "cu13"
    return None


def _library_in(folder: Path) -> Path | None:
    for pattern in ("lib/libnvrtc.so.*", "bin/*/nvrtc64_*.dll", "bin/nvrtc64_*.dll"):
        for library in sorted(folder.glob(pattern)):
            if ".alt." not in library.name:
                return library
    return None


@functools.cache
def load_nvrtc() -> Nvrtc:
    """The NVRTC of the installed wheels; :class:`NvrtcMissing` with the remedy where there is none."""
    folder = wheel_folder()
    library = _library_in(folder) if folder else None
    if folder is None or library is None:
        raise NvrtcMissing(f"NVRTC is not installed; {_REMEDY}")
    include = folder / "include"
    if not (include / "crt").is_dir():
        raise NvrtcMissing(f"the CUDA headers beside NVRTC are incomplete (no {include / 'crt'}); {_REMEDY}")
    try:
        return Nvrtc(library, (include, include / "cccl"))
    except OSError as error:
        raise NvrtcMissing(f"NVRTC cannot be loaded ({error}); {_REMEDY}") from error
