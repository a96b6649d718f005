"""``handgrad kernels profile FILE.cu`` of kernels that are out of bounds, end their process, or never end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import handgrad, refused, report

from handgrad.emulator.errors import EmulatorError
from handgrad.proof import file_traffic

SAXPY = """
__global__ void saxpy(float a, const float* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = a * x[i] + y[i];
}
"""
SAXPY_LAUNCH = """
kernel = "saxpy"
grid = 5
block = 256
args = [
    { dtype = "float32", value = 2.0 },
    { dtype = "float32", shape = [1200], fill = "normal" },
    { dtype = "float32", shape = [1200], fill = "normal" },
    { dtype = "int32", value = 1200 },
]
"""
DYING = """
#include <cassert>
#include <cstdio>
__global__ void sound(int* x) { x[threadIdx.x] = 1; printf("written %d\\n", x[threadIdx.x]); }
__global__ void asserts(int* x) { assert(threadIdx.x < 3); }
__global__ void wild(int* x) { x[1ll << 40] = 1; }
__global__ void traps(int* x) { __builtin_trap(); }
__global__ void ends_never(int* x) { for (;;) asm volatile(""); }
"""


def own_kernel(folder: Path, source: str, launch: str) -> Path:
    (folder / "own.toml").write_text(launch)
    (folder / "own.cu").write_text(source)
    return folder / "own.cu"


def test_accesses_out_of_bounds_are_told_with_their_lines(tmp_path: Path) -> None:
    """80 of 1280 threads are past the end; nothing of the counts inside is lost."""
    source = own_kernel(tmp_path, SAXPY, SAXPY_LAUNCH)
    result = handgrad("kernels", "profile", source)
    assert result.exit_code == 1
    assert (
        "out of bounds: load of 640 bytes in no memory that the kernel was given, own.cu:4" in result.stdout
    )
    assert (
        "out of bounds: store of 320 bytes in no memory that the kernel was given, own.cu:4" in result.stdout
    )
    assert result.stdout.splitlines()[-1].startswith("out of bounds at 2 places; `handgrad kernels sanitize`")
    result = handgrad("kernels", "profile", source, "--json")
    assert result.exit_code == 1
    (launch,) = json.loads(result.stdout)["launches"]
    assert len(launch["out_of_bounds"]) == 2
    assert launch["buffers"][0]["accesses"]["load"]["requested_bytes"] == 4800


def test_one_element_past_the_end_is_out_of_bounds(tmp_path: Path) -> None:
    source = own_kernel(
        tmp_path,
        "__global__ void fill(float* y) { y[threadIdx.x] = 1; }\n",
        'kernel = "fill"\ngrid = 1\nblock = 65\nargs = [{ dtype = "float32", shape = 64 }]\n',
    )
    result = handgrad("kernels", "profile", source)
    assert result.exit_code == 1
    assert "out of bounds: store of 4 bytes" in result.stdout


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        ("asserts", "own.toml: asserts: the kernel's process died with signal SIGABRT: "),
        ("traps", "own.toml: traps: the kernel's process died with signal SIGILL"),
        ("wild", "own.cu: wild: access to invalid address "),
    ],
)
def test_a_kernel_that_ends_its_process_is_told_in_one_line(kernel: str, words: str, tmp_path: Path) -> None:
    launch = f'kernel = ["sound", "{kernel}"]\ngrid = 1\nblock = 4\n'
    launch += 'args = [{ dtype = "int32", shape = 4 }]\n'
    line = refused("kernels", "profile", own_kernel(tmp_path, DYING, launch), code=1)
    assert line.startswith(f"error: {words}")
    assert line.endswith("; `handgrad kernels sanitize own.cu` searches for the fault")


def test_a_kernel_that_never_ends_is_told_in_one_line(tmp_path: Path) -> None:
    launch = 'kernel = "ends_never"\ngrid = 1\nblock = 4\nargs = [{ dtype = "int32", shape = 4 }]\n'
    source = own_kernel(tmp_path, DYING, launch)
    with pytest.raises(EmulatorError, match="no answer within 2 s: the kernel does not end; "):
        file_traffic.profile_file(source, source.with_suffix(".toml"), silence=2)


def test_what_a_kernel_prints_stays_out_of_the_report(tmp_path: Path) -> None:
    launch = 'kernel = "sound"\ngrid = 1\nblock = 4\nargs = [{ dtype = "int32", shape = 4 }]\n'
    assert (
        report("kernels", "profile", own_kernel(tmp_path, DYING, launch))["launches"][0]["kernel"] == "sound"
    )
