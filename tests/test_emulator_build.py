"""Building kernels: the cache and what makes it anew, compilers, and messages of what does not compile."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from emulator_sources import CORRECT, FAULTS, FOLDER, line_of

from handgrad import emulator
from handgrad.emulator import build, compiler
from handgrad.emulator.launch import CompiledKernel

SOURCE = '#include "amount.cuh"\n__global__ void add(float* x) { x[threadIdx.x] += AMOUNT; }\n'


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv("HANDGRAD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "emulator"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "amount.cuh").write_text("#define AMOUNT 1\n")
    (folder / "add.cu").write_text(SOURCE)
    return folder / "add.cu"


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """The compiler's commands, as they are run."""
    run, seen = build._run, []

    def record(command: Sequence[str], folder: Path, what: str) -> None:
        seen.append(command)
        run(command, folder, what)

    monkeypatch.setattr(build, "_run", record)
    return seen


def added(source: Path) -> float:
    emulator.reload_kernels()  # as a new process would
    x = emulator.zeros(4)
    emulator.launch(source, "add", (1,), (4,), (x,), 0)
    return float(x[0])


def test_cache_is_used_again_and_notices_a_changed_header(
    cache: Path, source: Path, commands: list[Sequence[str]]
) -> None:
    assert added(source) == 1
    built = len(commands)
    assert built > 0
    assert added(source) == 1
    assert len(commands) == built
    (source.parent / "amount.cuh").write_text("#define AMOUNT 2\n")
    assert added(source) == 2
    assert len(commands) > built
    (source.parent / "amount.cuh").write_text("#define AMOUNT 1\n")
    again = len(commands)
    assert added(source) == 1
    assert len(commands) == again
    assert not list(cache.glob("build-*"))  # nothing half-built is left


def test_changed_source_and_flags_are_noticed(
    cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build.build(source, "add")
    source.write_text(SOURCE + "\n")
    emulator.reload_kernels()
    second = build.build(source, "add")
    monkeypatch.setattr(build, "COMMON_FLAGS", (*build.COMMON_FLAGS, "-DCHANGED"))
    build._toolchain_digest.cache_clear()
    third = build.build(source, "add")
    build._toolchain_digest.cache_clear()
    assert len({first.parent, second.parent, third.parent}) == 3


def test_a_running_program_keeps_its_kernel(cache: Path, source: Path) -> None:
    assert added(source) == 1
    (source.parent / "amount.cuh").write_text("#define AMOUNT 2\n")
    x = emulator.zeros(4)
    emulator.launch(source, "add", (1,), (4,), (x,), 0)
    assert x[0] == 1


def test_prebuild_compiles_several_kernels_in_one_unit(cache: Path, commands: list[Sequence[str]]) -> None:
    pairs = [(CORRECT, f"block_sum<{name}>") for name in ("float", "double", "int")]
    emulator.prebuild(pairs, workers=1)
    compiled = [command for command in commands if "-c" in command]
    linked = [command for command in commands if "-Wl,--gc-sections" in command]
    assert (len(compiled), len(linked)) == (1, 3)
    emulator.prebuild(pairs)
    assert len(commands) == 5  # with the runtime


def test_prebuild_names_the_kernel_that_does_not_compile_and_builds_the_others(
    cache: Path, source: Path
) -> None:
    with pytest.raises(emulator.EmulatorError, match=r"^add\.cu: subtract does not compile: "):
        emulator.prebuild([(source, "add"), (source, "subtract")], workers=1)
    assert build._library(source, "add", "plain").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n\nbroken here;\n", r"add.cu: add does not compile: add.cu:3: .*broken"),
        ('\n#include "absent.cuh"\n', r"add.cu: add does not compile: add.cu:2: .*absent.cuh"),
        ("", r"add.cu: add does not compile: \(kernel expression\):1: .*add"),
        (
            "__global__ void add(float* x) { atomicMax(x, 1.0f); }",
            r"add.cu: add does not compile: atomics.h:\d+: .*CUDA has atomicMax for integers",
        ),
    ],
)
def test_message_of_a_kernel_that_does_not_compile(
    cache: Path, source: Path, text: str, message: str
) -> None:
    source.write_text(text)
    with pytest.raises(emulator.EmulatorError, match=message) as caught:
        added(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["add.cu", "amount.cuh"])
def test_a_source_that_is_no_utf8_is_named_with_its_line(cache: Path, source: Path, name: str) -> None:
    path = source.with_name(name)
    path.write_bytes(b"// one\n// caf\xe9\n" + path.read_bytes())
    with pytest.raises(
        emulator.EmulatorError, match=rf"^{re.escape(name)}:2: expected UTF-8, got .*0xe9; save"
    ):
        added(source)


def test_a_header_of_any_encoding_that_nobody_includes_is_let_be(cache: Path, source: Path) -> None:
    source.with_name("other.cuh").write_bytes(b"// caf\xe9\n#include <math.h>\n")
    assert build.library_headers(build.source_files(source)) == ["math.h"]
    assert added(source) == 1


def test_missing_source() -> None:
    with pytest.raises(emulator.EmulatorError, match=r"absent\.cu: no such kernel source"):
        emulator.launch(FOLDER / "absent.cu", "add", (1,), (1,), (), 0)


def test_processes_build_at_the_same_time(cache: Path, source: Path) -> None:
    program = (
        "import sys, pathlib; from handgrad import emulator as e; x = e.zeros(4);"
        "e.launch(pathlib.Path(sys.argv[1]), 'add', (1,), (4,), (x,), 0); print(x[0])"
    )
    command = [sys.executable, "-c", program, str(source)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0].strip() for process in running] == ["1.0"] * 3
    assert len(list(cache.glob("add-*/*.so"))) == 1


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HANDGRAD_CACHE", str(tmp_path / "file"))
    folder = compiler.cache_directory()
    assert folder.is_dir()
    assert tmp_path not in folder.parents
    assert compiler.cache_directory() == folder  # the same for the whole process


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HANDGRAD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert compiler.cache_directory() == tmp_path / "xdg" / "handgrad" / "emulator"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert compiler.cache_directory() == tmp_path / "home" / ".cache" / "handgrad" / "emulator"


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HANDGRAD_CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(emulator.CompilerNotFound) as caught:
        emulator.find_compiler()
    text = str(caught.value)
    assert "\n" not in text
    assert re.search(r"none was found: install g\+\+ .*pip install 'handgrad\[emulator\]'", text)


@pytest.mark.parametrize("override", ["/absent/compiler", "false", '"unclosed'])
def test_override_that_is_no_compiler(override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANDGRAD_CXX", override)
    with pytest.raises(emulator.CompilerNotFound) as caught:
        emulator.find_compiler()
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(
        f"environment variable HANDGRAD_CXX: {override!r} does not run as a C++ compiler ("
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ARCH", "sm_1", "environment variable HANDGRAD_EMULATOR_ARCH: arch: expected one of sm_75"),
        ("ORDER", "up", "environment variable HANDGRAD_EMULATOR_ORDER: order: expected one of forward"),
        ("SEED", "x", "environment variable HANDGRAD_EMULATOR_SEED: seed: expected an integer"),
        ("SEED", "7", "Settings(arch='sm_80', order='forward', seed=7, copies='late', sms=108)"),
        ("ORDER", "lifo", "Settings(arch='sm_80', order='lifo', seed=0, copies='late', sms=108)"),
    ],
)
def test_settings_from_the_environment(name: str, value: str, message: str) -> None:
    program = (
        "from handgrad import emulator\n"
        "try: print(emulator.current_settings())\n"
        "except ValueError as error: print(error)"
    )
    variables = {**os.environ, f"HANDGRAD_EMULATOR_{name}": value}
    shown = subprocess.run(
        [sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True
    )
    assert message in shown.stdout


def check_compiler() -> None:
    """A sum, a message with its line, static shared memory that starts as NaN."""
    x, partial = emulator.arange(1000, dtype=np.float32), emulator.empty(4)
    CompiledKernel(CORRECT, "block_sum<float>")((4,), (64,), (x, partial, np.int32(1000)), 8)
    assert partial.sum() == 499500
    with pytest.raises(emulator.EmulatorError, match=line_of("divergent_barrier first")):
        CompiledKernel(FAULTS, "divergent_barrier")((1,), (32,), (x,))
    static, dynamic = emulator.zeros(64), emulator.zeros(64, np.float64)
    kernel = CompiledKernel(FAULTS, "uninitialised")
    kernel((2,), (64,), (static, dynamic, np.int32(0)), 512)
    assert kernel.static_shared == 256
    assert np.isnan(static).all()
    assert np.isnan(dynamic).all()


def test_stack_switch_through_ucontext() -> None:
    x, partial = emulator.arange(1000, dtype=np.float32), emulator.empty(4)
    CompiledKernel(CORRECT, "block_sum<float>", "ucontext")((4,), (64,), (x, partial, np.int32(1000)), 8)
    assert partial.sum() == 499500
    for name in ("divergent_barrier", "store_through"):
        with pytest.raises(emulator.EmulatorError, match=r"faults\.cu:10|null pointer"):
            CompiledKernel(FAULTS, name, "ucontext")((1,), (32,), (x if name[0] == "d" else None,))


@pytest.mark.slow
def test_zig(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(
        "ziglang", reason="the compiler from PyPI is not installed: pip install 'handgrad[emulator]'"
    )
    monkeypatch.setenv("HANDGRAD_CXX", f"{sys.executable} -m ziglang c++")
    assert emulator.find_compiler().kind == "zig"
    check_compiler()
    assert not list(FOLDER.glob(".zig*"))


@pytest.mark.skipif(shutil.which("clang++") is None, reason="no clang++ on this machine")
def test_clang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANDGRAD_CXX", "clang++")
    assert emulator.find_compiler().kind == "clang++"
    check_compiler()


def test_zig_is_found_where_nothing_else_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip(
        "ziglang", reason="the compiler from PyPI is not installed: pip install 'handgrad[emulator]'"
    )
    monkeypatch.delenv("HANDGRAD_CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert emulator.find_compiler().kind == "zig"
