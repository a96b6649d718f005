"""Every kernel compiles for every architecture, warnings as errors, without a GPU.

Needs the extra ``machine-code`` (NVRTC as a wheel); skips without it.  The whole grid is marked slow; one
instantiation of each kernel, for the oldest and the newest architecture, is compiled by default.
"""

from __future__ import annotations

import importlib.util
import re
from collections import defaultdict
from pathlib import Path
from unittest import mock

import pytest

from handgrad import kernel
from handgrad.proof import machine_code
from handgrad.proof.machine_code import ARCHITECTURES, CompileError, compile_for

WARN_ON_SPILLS = "--ptxas-options=--warn-on-spills"
# Bytes that a thread may spill, stored and loaded: ptxas takes a few for a step of occupancy.  float64 may
# spill more: it is there for checking.
MOST_SPILLED, MOST_SPILLED_FLOAT64 = 16, 64
# R1 keeps 196 sums of 3xtf32 a thread, and adds to them outside the tensor core: up to four values of the
# loops over tiles and partitions, which no loop over k looks at.
MOST_SPILLED_SPLIT = 32
LET_PASS = {  # two registers, for four blocks on a multiprocessor instead of three
    ("linear_backward_weight<float, Tile<128, 32, 16, 4, 4>, 1, 4>", "sm_120"): 24,
}
ALLOW_UNREFERENCED = "--diag-suppress=177"  # constants that only the other kernels of a file use

# The naive twins ship nothing, so the catalogue does not list them; they have to compile all the same.
NAIVE = {
    "linear_naive.cu": (
        ("naive_forward<float, Relu>", "naive_forward<double, Relu>"),
        ("naive_backward_input<float, Relu>", "naive_backward_input<double, Relu>"),
        ("naive_backward_weight<float>", "naive_backward_weight<double>"),
    )
}

needs_nvrtc = pytest.mark.skipif(
    machine_code.wheel_folder() is None, reason="NVRTC is not installed: pip install 'handgrad[machine-code]'"
)


def expressions_by_file() -> dict[str, list[tuple[str, ...]]]:
    """For each source file, the expressions of each of its kernels."""
    found = defaultdict(list, {file: list(expressions) for file, expressions in NAIVE.items()})
    for entry in kernel.catalogue():
        found[entry.file].append(entry.expressions)
    return dict(found)


FILES = expressions_by_file()


def compile_cleanly(file: str, expressions: set[str], arch: str, *options: str) -> None:
    """Compile; a warning of NVRTC or ptxas, or a spill that costs something, is a failure."""
    source = kernel.kernels_directory() / file
    compiled = compile_for(source, sorted(expressions), arch, (machine_code.PTXAS_REPORT, *options))
    if machine_code.warnings(compiled.log):
        pytest.fail(f"{file} for {arch}:\n{compiled.log[:2000]}", pytrace=False)
    assert set(compiled.names) == expressions
    used = machine_code.resources(compiled.log)
    spilling = {
        expression: used[name]
        for expression, name in compiled.names.items()
        if used[name].spill_stores + used[name].spill_loads
        > LET_PASS.get((expression, arch), most_spilled(expression))
    }
    assert not spilling


def most_spilled(expression: str) -> int:
    """Bytes that may be stored and loaded."""
    if "SplitTf32, 7, 7" in expression:
        return MOST_SPILLED_SPLIT
    return MOST_SPILLED_FLOAT64 if "double" in expression else MOST_SPILLED


@needs_nvrtc
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("file", FILES)
def test_every_instantiation_compiles(file, arch):
    compile_cleanly(file, {e for expressions in FILES[file] for e in expressions}, arch)


@needs_nvrtc
@pytest.mark.parametrize("arch", [ARCHITECTURES[0], ARCHITECTURES[-1]])
@pytest.mark.parametrize("file", FILES)
def test_one_instantiation_of_every_kernel_compiles(file, arch):
    compile_cleanly(file, {expressions[0] for expressions in FILES[file]}, arch, ALLOW_UNREFERENCED)


LAUNCH_BOUNDS = re.compile(r"__launch_bounds__\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)")


def test_every_kernel_is_listed():
    """What neither the catalogue nor the list above names would be compiled and checked by nobody."""
    kernels = {
        (path.name, name)
        for path in kernel.kernels_directory().glob("*.cu")
        for name in re.findall(r"__global__[^;{]*?(\w+)\(", LAUNCH_BOUNDS.sub("", path.read_text()))
    }
    assert kernels == {(file, expressions[0].split("<")[0]) for file in FILES for expressions in FILES[file]}


# The tool itself, on small sources -------------------------------------------------------------------------

SCALE = """
template <typename T>
__global__ void scale(const T* __restrict__ x, T* __restrict__ y, int n, T factor) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = factor * x[i];
}
"""


@pytest.fixture
def source(tmp_path: Path):
    """Writes a kernel source and returns its path."""

    def write(text: str, name: str = "scale.cu") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_compiles_for_each_architecture(source, arch):
    compiled = compile_for(source(SCALE), ["scale<float>", "scale<double>"], arch)
    assert compiled.log == ""
    assert compiled.names == {
        "scale<float>": "_Z5scaleIfEvPKT_PS0_iS0_",
        "scale<double>": "_Z5scaleIdEvPKT_PS0_iS0_",
    }
    assert compiled.cubin.startswith(b"\x7fELF")
    assert f"-arch {arch}".encode() in compiled.cubin  # ptxas notes its command line


@needs_nvrtc
def test_finds_the_headers_beside_the_source_and_those_of_cuda(source):
    source("constexpr int FACTOR = 3;\n", "common.cuh")
    text = (
        '#include "common.cuh"\n#include <mma.h>\n#include <cuda_bf16.h>\n#include <cuda/std/type_traits>\n'
    )
    compiled = compile_for(source(text + "__global__ void f(int* x) { *x = FACTOR; }\n"), ["f"], "sm_80")
    assert compiled.log == ""


@needs_nvrtc
def test_a_warning_is_in_the_log(source):
    compiled = compile_for(
        source(SCALE.replace("if (i < n)", "int unused;\n  if (i < n)")), ["scale<float>"], "sm_80"
    )
    (warning,) = machine_code.warnings(compiled.log)
    assert warning.startswith('scale.cu(5): warning #177-D: variable "unused"')


@needs_nvrtc
def test_a_spill_is_in_the_log(source):
    text = """
    __global__ void __launch_bounds__(1024, 2) spills(const float* x, float* y) {
      float v[64];
      #pragma unroll
      for (int i = 0; i < 64; ++i) v[i] = x[i * 1024 + threadIdx.x];
      __syncthreads();
      #pragma unroll
      for (int i = 0; i < 64; ++i) y[i * 1024 + threadIdx.x] = v[i] * v[63 - i];
    }"""
    path = source(text, "spills.cu")
    (warning,) = machine_code.warnings(compile_for(path, ["spills"], "sm_80", [WARN_ON_SPILLS]).log)
    assert "spilled" in warning
    compiled = compile_for(path, ["spills"], "sm_80", [machine_code.PTXAS_REPORT])
    figures = machine_code.resources(compiled.log)[compiled.names["spills"]]
    assert figures.registers <= 32  # 65,536 registers / 2,048 threads
    assert figures.spill_stores > 0
    assert figures.spill_loads > 0


@needs_nvrtc
def test_resources_of_a_kernel(source):
    text = """
    __global__ void shares(float* x) {
      __shared__ float tile[256];
      tile[threadIdx.x] = x[threadIdx.x];
      __syncthreads();
      x[threadIdx.x] = tile[255 - threadIdx.x];
    }"""
    compiled = compile_for(source(text), ["shares"], "sm_80", [machine_code.PTXAS_REPORT])
    figures = machine_code.resources(compiled.log)[compiled.names["shares"]]
    assert figures.shared == 1024
    assert 4 <= figures.registers <= 32
    assert (figures.stack, figures.spill_stores, figures.spill_loads) == (0, 0, 0)
    assert machine_code.warnings(compiled.log) == []


def test_resources_are_read_kernel_by_kernel():
    log = """
    ptxas info    : 0 bytes gmem
    ptxas info    : Compiling entry function '_Z1fPf' for 'sm_90'
    ptxas info    : Function properties for _Z1fPf
    ptxas         .     24 bytes stack frame, 16 bytes spill stores, 20 bytes spill loads
    ptxas info    : Used 255 registers, used 1 barriers, 24 bytes cumulative stack size, 1024 bytes smem
    ptxas info    : Compiling entry function '_Z1gPf' for 'sm_90'
    ptxas info    : Function properties for _Z1gPf
    ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
    ptxas info    : Used 8 registers, used 0 barriers
    """
    assert machine_code.resources(log) == {
        "_Z1fPf": machine_code.Resources(255, stack=24, spill_stores=16, spill_loads=20, shared=1024),
        "_Z1gPf": machine_code.Resources(8, stack=0, spill_stores=0, spill_loads=0, shared=0),
    }


@needs_nvrtc
def test_an_error_gives_its_line(source):
    with pytest.raises(CompileError) as error:
        compile_for(source(SCALE.replace("i < n", "i < m")), ["scale<float>"], "sm_90")
    assert (
        str(error.value)
        == 'scale.cu does not compile for sm_90: scale.cu(5): error: identifier "m" is undefined'
    )
    assert "if (i < m)" in error.value.log


@needs_nvrtc
def test_an_unknown_expression_is_named(source):
    with pytest.raises(CompileError, match='identifier "shrink" is undefined'):
        compile_for(source(SCALE), ["shrink<float>"], "sm_90")


@needs_nvrtc
@pytest.mark.parametrize("arch", ["sm_70", "sm_999"])
def test_an_architecture_that_nvrtc_does_not_know(source, arch):
    with pytest.raises(ValueError, match=f"arch: this NVRTC does not compile for {arch}"):
        compile_for(source(SCALE), ["scale<float>"], arch)


@pytest.mark.parametrize("arch", ["90", "compute_90", "sm90", ""])
def test_a_malformed_architecture(source, arch):
    with pytest.raises(ValueError, match=r"arch: expected 'sm_75' \.\.\. 'sm_120', got"):
        compile_for(source(SCALE), ["scale<float>"], arch)


def test_without_the_wheels_the_remedy_is_named(source, monkeypatch):
    monkeypatch.setattr(machine_code, "wheel_folder", lambda: None)
    machine_code.load_nvrtc.cache_clear()
    with pytest.raises(machine_code.NvrtcMissing, match=r"pip install 'handgrad\[machine-code\]'"):
        compile_for(source(SCALE), ["scale<float>"], "sm_80")
    machine_code.load_nvrtc.cache_clear()


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
def test_the_flags_are_those_of_cupy(monkeypatch):
    """CuPy's own way from the options of a RawModule to NVRTC, against the flags of ``compile_for``."""
    from cupy.cuda import compiler

    def record(program: object, options: tuple[str, ...], log: object = None) -> tuple[bytes, dict[str, str]]:
        passed.append(options)
        return b"", {}

    passed: list[tuple[str, ...]] = []
    monkeypatch.setattr(compiler._NVRTCProgram, "compile", record)
    monkeypatch.setattr(
        compiler, "_get_arch_for_options_for_nvrtc", lambda arch: (f"-arch=sm_{arch}", "cubin")
    )
    monkeypatch.setattr(compiler, "function", mock.Mock())  # loading a module takes a driver
    compiler._compile_with_cache_cuda(SCALE, kernel.NVRTC_OPTIONS, "90", cache_in_memory=True)
    assert passed[-1] == machine_code.flags("sm_90")
