"""Building kernels: a CUDA source, compiled as C++, becomes one shared library for each kernel expression.

The cache is addressed by content: the source, every header beside it, the emulator's own C++ sources, the
flags, the compiler and its version, and the processor.  Everything is written under a temporary name and
moved into place, so several processes may build at once.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path

from handgrad.emulator.compiler import Compiler, cache_directory, environment, find_compiler, processor
from handgrad.emulator.errors import EmulatorError
from handgrad.emulator.settings import current_settings
from handgrad.emulator.source import launch_bound, read_source, with_dynamic_shared

RUNTIME = Path(__file__).resolve().parent / "runtime"
RUNTIME_SOURCES = ("scheduler.cpp", "meetings.cpp", "run_grid.cpp", "context.cpp", "tensor_core.cpp")
HEADERS = ("*.cuh", "*.h", "*.hpp", "*.inc")
KERNELS_A_UNIT = 8  # expressions compiled in one translation unit, at most

COMMON_FLAGS = (
    "-std=c++17",
    "-march=native",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-threadsafe-statics",
    "-fno-strict-aliasing",  # kernels read float4 through float pointers
    "-U_FORTIFY_SOURCE",
    "-w",
)


# Nothing of the C++ library is used; without this zig would build its own at first use, for a minute.
COMPILER_FLAGS = {
    "g++": ("-Wl,--as-needed",),
    "clang++": ("-nostdlib++",),
    "zig": ("-nostdlib++", "-fno-sanitize=undefined"),
}


PLAIN_FLAGS = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-ffunction-sections", "-fdata-sections")
# ThreadSanitizer skips masked accesses and those of more than 16 bytes, which clang's vectorizer makes.
SCALAR_CLANG = ("-fno-sanitize=undefined", "-fno-vectorize", "-fno-slp-vectorize")
WATCHED_FLAGS = (
    "-O1",
    "-g1",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-ffunction-sections",
    "-fdata-sections",
)


@dataclass(frozen=True)
class Mode:
    """How kernels are compiled and linked; the sanitizers and counters are further modes.

    ``unnamed`` puts the kernel's source into an unnamed namespace: AddressSanitizer guards no variable that
    could have copies in other translation units, as those of templates could.
    """

    kernel_flags: tuple[str, ...]
    runtime_flags: tuple[str, ...] = ("-O2",)
    link_flags: tuple[str, ...] = ()
    runtime_sources: tuple[str, ...] = RUNTIME_SOURCES
    gcc_flags: tuple[str, ...] = ()  # of the kernel, with g++ alone
    clang_flags: tuple[str, ...] = ()  # of the kernel, with clang++ and zig alone
    unnamed: bool = False


MODES = {
    "plain": Mode(PLAIN_FLAGS),
    "ucontext": Mode(PLAIN_FLAGS, ("-O2", "-DEMULATED_UCONTEXT")),  # as on processors other than x86-64
    # Every access is a call of watch/counters.cpp: the sanitizer's runtime takes no part.
    "count": Mode(
        (*WATCHED_FLAGS, "-gdwarf-4", "-fsanitize=thread", "-DEMULATED_COUNTED"),
        ("-O2", "-DEMULATED_WATCHED", "-DEMULATED_COUNTED"),
        runtime_sources=(*RUNTIME_SOURCES, "watch/counters.cpp"),
        gcc_flags=("-fno-tree-sra",),  # which would split the copy of a structure into its fields
        clang_flags=(
            *SCALAR_CLANG,
            *("-mllvm", "-tsan-instrument-read-before-write=1"),
        ),
    ),
    # The same for AddressSanitizer and UndefinedBehaviorSanitizer: every check is a call of watch/memory.cpp.
    "memory": Mode(
        (*WATCHED_FLAGS, "-DEMULATED_STATIC_SHARED", "-DEMULATED_INDICES"),
        ("-O2", "-DEMULATED_WATCHED"),
        runtime_sources=(*RUNTIME_SOURCES, "watch/memory.cpp"),
        gcc_flags=(
            "-fsanitize=kernel-address,alignment,bounds,integer-divide-by-zero",
            *("--param", "asan-instrumentation-with-call-threshold=0"),
            *("--param", "asan-stack=0", "--param", "asan-globals=1"),
        ),
        clang_flags=(
            *SCALAR_CLANG,
            *("-Xclang", "-fsanitize=kernel-address"),
            *("-Xclang", "-fsanitize=alignment,array-bounds,integer-divide-by-zero"),
            *("-mllvm", "-asan-instrumentation-with-call-threshold=0", "-mllvm", "-asan-stack=0"),
        ),
        unnamed=True,
    ),
    # And for ThreadSanitizer: every access is a call of watch/accesses.cpp.
    "accesses": Mode(
        (*WATCHED_FLAGS, "-fsanitize=thread", "-DEMULATED_ACCESSES"),
        ("-O2", "-DEMULATED_WATCHED"),
        runtime_sources=(*RUNTIME_SOURCES, "watch/accesses.cpp"),
        gcc_flags=("--param", "tsan-distinguish-volatile=1"),
        clang_flags=(
            *SCALAR_CLANG,
            *("-mllvm", "-tsan-distinguish-volatile=1"),
            *("-mllvm", "-tsan-instrument-read-before-write=1"),
        ),
    ),
}


def symbol_of(expression: str) -> str:
    """The exported name of a kernel expression; also the stem of its library."""
    return "kernel_" + hashlib.sha256(expression.encode()).hexdigest()[:24]


def build(source: Path, expression: str, mode: str = "plain") -> Path:
    """The library of one kernel, built where the cache has none.

    Raises :class:`EmulatorError` with the compiler's first message where the kernel does not compile.
    """
    library = _library(source, expression, mode)
    if not library.exists():
        inspect.cache_clear()  # what is compiled now is what the files hold now
        library = _library(source, expression, mode)
    if not library.exists():
        _compile(source, (expression,), mode)
    return library


def prebuild(pairs: Iterable[tuple[Path, str]], workers: int | None = None, mode: str = "plain") -> None:
    """Build many kernels in parallel, several in one translation unit; those in the cache cost nothing.

    Where some do not compile the others are still built, and the first error is raised.
    """
    inspect.cache_clear()
    missing: dict[Path, list[str]] = {}
    for source, expression in dict.fromkeys(pairs):
        if not _library(source, expression, mode).exists():
            missing.setdefault(source, []).append(expression)
    total = sum(len(expressions) for expressions in missing.values())
    if total == 0:
        return
    workers = workers or os.cpu_count() or 1
    runtime_library(mode)
    size = max(1, min(KERNELS_A_UNIT, -(-total // workers)))
    units = [
        (source, tuple(expressions[start : start + size]))
        for source, expressions in missing.items()
        for start in range(0, len(expressions), size)
    ]

    def compile_unit(unit: tuple[Path, tuple[str, ...]]) -> EmulatorError | None:
        source, expressions = unit
        try:
            _compile(source, expressions, mode)
        except EmulatorError as error:
            if len(expressions) == 1:
                return error
            errors = [compile_unit((source, (expression,))) for expression in expressions]
            return next((one for one in errors if one), error)
        return None

    with ThreadPoolExecutor(workers) as pool:
        started = [pool.submit(copy_context().run, compile_unit, unit) for unit in units]
        errors = [error for error in (one.result() for one in started) if error]
    if errors:
        raise errors[0]


def source_files(source: Path) -> list[Path]:
    """The source, every header beside it, and what these include by name from other folders."""
    if not source.is_file():
        raise EmulatorError(f"{source}: no such kernel source")
    beside = sorted({path for pattern in HEADERS for path in source.parent.glob(pattern)})
    elsewhere = [path for path in included(source) if path.parent != source.parent]
    return [*beside, *sorted(elsewhere), source]


def included(source: Path) -> list[Path]:
    """``source``, what it includes by name, and what that includes."""
    found = [source]
    for path in found:  # grows meanwhile
        for name in re.findall(r'^\s*#\s*include\s*"([^"\n]+)"', read_source(path), re.MULTILINE):
            header = Path(os.path.normpath(path.parent / name))
            if header not in found and header.is_file():
                found.append(header)
    return found


def digest_of(files: Sequence[Path]) -> str:
    """A digest of the names and contents of ``files``."""
    digest = hashlib.sha256()
    for path in files:
        data = path.read_bytes()
        digest.update(f"{path.name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()[:24]


@dataclass(frozen=True)
class Inspected:
    """A kernel source with its headers: a digest, and whether they speak of ``__CUDA_ARCH__``."""

    digest: str
    names_architecture: bool

    def flags(self) -> tuple[str, ...]:
        """The architecture, where it matters: other sources are built once for all architectures."""
        return (f"-D__CUDA_ARCH__={current_settings().arch[3:]}0",) if self.names_architecture else ()


@functools.lru_cache(maxsize=256)
def inspect(source: Path) -> Inspected:
    """What ``source`` and its headers hold, read once: a running program keeps the kernels it has."""
    files = source_files(source)
    names_architecture = any(b"__CUDA_ARCH__" in path.read_bytes() for path in included(source))
    return Inspected(digest_of(files), names_architecture)


@functools.cache
def _toolchain_digest(mode: str, compiler: Compiler) -> str:
    """A digest of all that is not the kernel's own source."""
    runtime = digest_of(sorted(path for path in RUNTIME.rglob("*") if path.suffix in (".h", ".cpp")))
    parts = (
        runtime,
        COMMON_FLAGS,
        COMPILER_FLAGS,
        mode,
        MODES[mode],
        compiler.kind,
        compiler.version,
        processor(),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _folder(source: Path, mode: str) -> Path:
    inspected = inspect(source)
    parts = (inspected.digest, inspected.flags(), _toolchain_digest(mode, find_compiler()))
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    return cache_directory() / f"{source.stem}-{key}"


def _library(source: Path, expression: str, mode: str) -> Path:
    return _folder(source, mode) / f"{symbol_of(expression)}.so"


def runtime_library(mode: str = "plain") -> Path:
    """The runtime that all kernels share, built where the cache has none."""
    compiler = find_compiler()
    name = f"libhandgrad_emulator_{_toolchain_digest(mode, compiler)}.so"
    library = cache_directory() / name
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=cache_directory(), prefix="build-") as scratch:
            output = Path(scratch) / name
            flags = (
                *COMMON_FLAGS, *COMPILER_FLAGS[compiler.kind], *MODES[mode].runtime_flags,
                "-shared", f"-Wl,-soname,{name}",
            )  # fmt: skip
            _run(
                (*compiler.command, *flags, *MODES[mode].runtime_sources, "-o", str(output)),
                RUNTIME,
                "the emulator's runtime",
            )
            output.replace(library)
    return library


def _compile(source: Path, expressions: Sequence[str], mode: str) -> None:
    """Compile one translation unit and link a library for each of its kernels."""
    compiler = find_compiler()
    runtime = runtime_library(mode)
    inspected = inspect(source)
    folder = _folder(source, mode)
    what = f"{source.name}: {expressions[0] if len(expressions) == 1 else f'{len(expressions)} kernels'}"
    flags = (*COMMON_FLAGS, *MODES[mode].kernel_flags, *inspected.flags())
    flags += MODES[mode].gcc_flags if compiler.kind == "g++" else MODES[mode].clang_flags
    with tempfile.TemporaryDirectory(dir=cache_directory(), prefix="build-") as name:
        scratch = Path(name)
        unit = translation_unit(source, expressions, MODES[mode].unnamed)
        (scratch / "unit.cpp").write_text(unit, encoding="utf-8")
        compile_command = (
            *compiler.command, *flags, "-I", str(source.parent), "-I", str(RUNTIME),
            "-include", "emulated_cuda.h", "-c", str(scratch / "unit.cpp"), "-o", str(scratch / "unit.o"),
        )  # fmt: skip
        _run(compile_command, scratch, what)
        if digest_of(source_files(source)) != inspected.digest:
            raise EmulatorError(
                f"{source.name} or a header beside it changed while it was compiled; run again"
            )
        folder.mkdir(exist_ok=True)
        for expression in expressions:
            symbol = symbol_of(expression)
            # Only this kernel is visible, so the linker drops the others and their static shared memory.
            (scratch / "exports").write_text(f"{{ global: {symbol}; local: *; }};\n")
            output = scratch / f"{symbol}.so"
            link_command = (
                *compiler.command, "-shared", *COMPILER_FLAGS[compiler.kind],
                "-Wl,--gc-sections", "-Wl,--version-script=exports", "unit.o",
                str(runtime), *MODES[mode].link_flags, "-lm", "-o", str(output),
            )  # fmt: skip
            _run(link_command, scratch, what)
            output.replace(folder / output.name)


def translation_unit(source: Path, expressions: Sequence[str], unnamed: bool = False) -> str:
    """C++ that includes the source, in an unnamed namespace if asked, and exports the kernels."""
    text = read_source(source)
    declarations: dict[str, None] = {}
    exports = []
    for expression in expressions:
        declaration, bound = launch_bound(text, expression)
        declarations[declaration] = None
        exports.append(
            f'#line 1 "(kernel expression)"\n'
            f"EMULATED_EXPORT_KERNEL({symbol_of(expression)}, ({bound}), {expression})"
        )
    own = with_dynamic_shared(text)
    if own == text:
        inclusion = [f'#include "{source.name}"', *declarations]
    else:
        inclusion = [f'#line 1 "{source}"', own, *declarations]
    if unnamed:  # library headers first: inside, their guards leave nothing of them
        libraries = library_headers(source_files(source))
        inclusion = [
            *(f"#if __has_include(<{name}>)\n#include <{name}>\n#endif" for name in libraries),
            *("namespace {", *inclusion, "}"),
        ]
    return "\n".join([*inclusion, *exports, ""])


def library_headers(files: Sequence[Path]) -> list[str]:
    """What ``files`` include in angle brackets."""
    pattern = re.compile(
        rb"^\s*#\s*include\s*<([^>\n]+)>", re.MULTILINE
    )  # a header beside may be of any encoding
    found = (pattern.findall(path.read_bytes()) for path in files)
    return list(dict.fromkeys(name.decode(errors="replace") for names in found for name in names))


def _run(command: Sequence[str], folder: Path, what: str) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment())
    if result.returncode != 0:
        raise EmulatorError(f"{what} does not compile: {first_error(result.stderr)}")


def first_error(output: str) -> str:
    """The compiler's first error as ``file:line: message``."""
    for line in output.splitlines():
        match = re.match(r"(?P<file>[^:]*):(?P<line>\d+):(?:\d+:)? (?:fatal )?error: (?P<message>.*)", line)
        if match:
            return f"{Path(match['file']).name}:{match['line']}: {match['message']}"
    meaningful = [line.strip() for line in output.splitlines() if line.strip()]
    return next(
        (line for line in meaningful if "error" in line), meaningful[0] if meaningful else "no message"
    )
