"""The disassembly's counts on kernels whose code is known, and ``handgrad kernels sass``.

Needs the extra ``machine-code`` (NVRTC and nvdisasm as wheels) but for the parser; skips without it.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from command_line import handgrad, refused, report, succeeds

from handgrad import kernel
from handgrad.emulator.errors import CompilerNotFound
from handgrad.proof import budgets, cubin, disassembly, figures, machine_code, occupancy
from handgrad.proof.disassembly import Counts, MainLoop, count
from handgrad.proof.machine_code import ARCHITECTURES, PTXAS_REPORT, compile_for

needs_nvrtc = pytest.mark.skipif(
    machine_code.wheel_folder() is None, reason="NVRTC is not installed: pip install 'handgrad[machine-code]'"
)

SOURCE = Path(__file__).with_name("machine_code_kernels.cu")
DEFAULT = ("sm_75", "sm_90")  # the others are marked slow

every_architecture = pytest.mark.parametrize(
    "arch",
    [arch if arch in DEFAULT else pytest.param(arch, marks=pytest.mark.slow) for arch in ARCHITECTURES],
)

# What each kernel must count; what is not named must be 0.
EXPECTED = {
    "float_chain": {"ffma": 24, "main_loop": MainLoop(24, 0, 0)},
    "double_chain": {"dfma": 10, "main_loop": MainLoop(10, 0, 0)},
    "shared_loop": {"ffma": 20, "shared_loads_128": 1, "barriers": 1, "main_loop": MainLoop(20, 5, 1)},
    "no_loop": {"ffma": 1},
    "tensor_core": {"hmma": 1},
    "quads": {"global_loads_128": 1, "shared_loads_128": 1, "barriers": 1},
    "singles": {"barriers": 3},
    "bounded": {},
    "global_float": {"atomics": 1, "float_atomics": 1},
    "global_float_returned": {"atomics": 1, "float_atomics": 1},
    "global_double": {"atomics": 1, "float_atomics": 1},
    "global_bfloat16": {"atomics": 1, "float_atomics": 1},
    "shared_sum<float>": {"atomics": 1, "float_atomics": 1, "barriers": 2},
    "shared_sum<double>": {"atomics": 1, "float_atomics": 1, "barriers": 2},
    "swapped_product": {"atomics": 1, "float_atomics": 1},
    "swapped_or": {"atomics": 1},
    "warp_sum": {},
}
MORE = ("local_array", "spills", "global_int", "global_int_returned", "shared_sum<int>")


@functools.cache
def compiled(arch: str) -> machine_code.CompiledKernels:
    return compile_for(SOURCE, (*EXPECTED, *MORE), arch, [PTXAS_REPORT])


@functools.cache
def counted(arch: str) -> dict[str, Counts]:
    kernels = compiled(arch)
    code = disassembly.disassemble(kernels.cubin)
    return {expression: count(code[name]) for expression, name in kernels.names.items()}


def allotted(expression: str, arch: str) -> machine_code.Resources:
    kernels = compiled(arch)
    return machine_code.resources(kernels.log)[kernels.names[expression]]


# ---- kernels whose code is known -------------------------------------------------------------------------


@needs_nvrtc
@every_architecture
@pytest.mark.parametrize("expression", EXPECTED)
def test_counts(expression, arch):
    found = counted(arch)[expression]
    expected = dict.fromkeys(vars(found), 0) | {"main_loop": None} | EXPECTED[expression]
    expected |= {"instructions": found.instructions}
    if arch == "sm_75" and expression == "global_bfloat16":  # it computes in float32 there
        expected |= {"ffma": 1, "main_loop": found.main_loop}
    assert vars(found) == expected
    assert 2 <= found.instructions < 1000


@needs_nvrtc
@every_architecture
def test_integer_atomics_are_no_float_atomics(arch):
    for expression in ("global_int", "global_int_returned", "shared_sum<int>"):
        assert counted(arch)[expression].atomics >= 1, expression
        assert counted(arch)[expression].float_atomics == 0, expression


@needs_nvrtc
@every_architecture
def test_a_local_array_is_no_spill(arch):
    found = counted(arch)["local_array"]
    assert found.local_stores >= 8  # 32 floats, up to four at a time
    assert found.local_loads == 32
    assert allotted("local_array", arch).spill_stores == 0


@needs_nvrtc
@every_architecture
def test_spills(arch):
    found, resources = counted(arch)["spills"], allotted("spills", arch)
    assert resources.registers <= 64  # 65,536 for 1,024 threads
    assert resources.spill_stores >= 4 * (96 - 64)
    assert resources.spill_stores >= 4 * found.local_stores > 0
    assert resources.spill_loads >= 4 * found.local_loads > 0


@needs_nvrtc
@every_architecture
def test_launch_bounds(arch):
    kernels = compiled(arch)
    bounds = cubin.launch_bounds(kernels.cubin)
    by_expression = {expression: bounds[name] for expression, name in kernels.names.items()}
    assert by_expression["bounded"] == 192
    assert by_expression["shared_loop"] == 128
    assert by_expression["spills"] == 1024
    assert by_expression["float_chain"] == 1024  # none given: the largest block there is


@needs_nvrtc
def test_a_ratio_worked_out_by_hand():
    assert counted("sm_90")["shared_loop"].main_loop.fma_per_shared_word == 20 / 5
    assert counted("sm_90")["float_chain"].main_loop.fma_per_shared_word is None


@needs_nvrtc
def test_the_code_is_that_of_a_launch():
    """Neither ptxas's report nor the company of other kernels changes the code."""
    source = kernel.kernels_directory() / "loss.cu"
    wanted = ["loss_rows<float, Hinge, 16>", "loss_elementwise<float, BinaryCrossEntropy>"]
    together = compile_for(source, wanted, "sm_90", [PTXAS_REPORT])
    alone = compile_for(source, wanted[:1], "sm_90")
    name = alone.names[wanted[0]]
    assert cubin.code_of(alone.cubin)[name] == cubin.code_of(together.cubin)[name]
    assert cubin.code_of(alone.cubin)[name] not in [
        code for other, code in cubin.code_of(together.cubin).items() if other != name
    ]


@needs_nvrtc
def test_headers_come_from_beside_the_source(tmp_path, monkeypatch):
    """Not from the working directory, where another copy of the kernels may lie."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, text in ((here, "#error the working directory's\n"), (there, "constexpr int SIZE = 3;\n")):
        folder.mkdir()
        (folder / "common.cuh").write_text(text)
    (there / "f.cu").write_text('#include "common.cuh"\n__global__ void f(int* x) { *x = SIZE; }\n')
    monkeypatch.chdir(here)
    assert compile_for(there / "f.cu", ["f"], "sm_90").log == ""
    assert compile_for(Path("../there/f.cu"), ["f"], "sm_90").log == ""


def test_no_elf_is_refused():
    with pytest.raises(ValueError, match="cubin: expected a 64-bit ELF image"):
        cubin.code_of(b"not a cubin")


@needs_nvrtc
def test_what_is_no_cubin_is_not_disassembled():
    with pytest.raises(RuntimeError, match="nvdisasm"):
        disassembly.disassemble(b"not a cubin")


# ---- the command -----------------------------------------------------------------------------------------

ROW = {
    *("kernel", "arch", "registers", "spill_stores", "spill_loads", "local_loads", "local_stores"),
    *("shared_bytes", "occupancy", "ffma", "hmma", "float_atomics"),
}


@needs_nvrtc
def test_json_is_one_object_with_a_row_for_each_kernel():
    found = report("kernels", "sass", "loss.rows", "linear.reduce_partials", "--arch", "sm_90")
    assert found.keys() == {"schema", "kernels"}
    assert found["schema"] == "handgrad.sass/1"
    rows = found["kernels"]
    assert {row["kernel"].split("<")[0] for row in rows} == {"loss_rows", "reduce_partials"}
    assert all(row["arch"] == "sm_90" and row.keys() >= ROW for row in rows)
    row = next(row for row in rows if row["kernel"] == "loss_rows<float, CrossEntropy, 16>")
    assert row["spill_stores"] == row["local_loads"] == row["float_atomics"] == row["hmma"] == 0
    assert 16 <= row["registers"] <= 64
    assert row["shared_bytes"] == 8 * 4 + 4  # a sum for each warp, and the ticket
    assert row["atomics"] == 1  # the ticket
    assert row["barriers"] == 4
    assert 0 < row["occupancy"] <= 1


@needs_nvrtc
def test_the_table(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    text = succeeds("kernels", "sass", "reduce_partials", "--arch", "sm_90", "--arch", "sm_80")
    assert text.index("machine code for sm_80") < text.index("machine code for sm_90")
    assert text.count("reduce_partials<float>") == 2
    for heading in (
        "regs",
        "spill",
        "local",
        "shared",
        "FFMA",
        "HMMA",
        "LDG",
        "LDS",
        "BAR",
        "atomics",
        "FMA:LDS",
    ):
        assert heading in text


@needs_nvrtc
def test_an_expression_that_is_not_watched():
    wanted = "gather_rows<double, float, 1>"
    assert wanted not in [one.expression for one in budgets.chosen()]
    (row,) = report("kernels", "sass", wanted, "--arch", "sm_80")["kernels"]
    assert (row["kernel"], row["arch"]) == (wanted, "sm_80")


def test_an_unknown_kernel_or_architecture_lists_what_there_is():
    line = refused("kernels", "sass", "linear_forwards")
    assert line.startswith("error: kernel: expected one of activation.forward (activation_forward), ")
    assert line.endswith("or an expression, got 'linear_forwards'")
    assert "linear.backward_weight (linear_backward_weight)" in line
    line = refused("kernels", "sass", "--arch", "sm_70")
    assert line == f"error: --arch: expected one of {', '.join(ARCHITECTURES)}, got sm_70"


def test_refreshing_takes_everything():
    line = refused("kernels", "sass", "--refresh", "--arch", "sm_90")
    assert line.startswith("error: --refresh: expected neither KERNEL, --arch nor --kernels")


def forget_tools() -> None:
    machine_code.load_nvrtc.cache_clear()
    disassembly.nvdisasm.cache_clear()
    figures._toolchain.cache_clear()


def test_without_the_wheels_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(machine_code, "wheel_folder", lambda: None)
    forget_tools()
    line = refused("kernels", "sass", "reduce_partials", "--arch", "sm_90", code=1)
    forget_tools()
    assert line == "error: NVRTC is not installed; pip install 'handgrad[machine-code]'"


@needs_nvrtc
def test_without_nvdisasm_the_remedy_is_named(monkeypatch, tmp_path):
    real = machine_code.load_nvrtc()
    monkeypatch.setattr(machine_code, "load_nvrtc", lambda: real)
    monkeypatch.setattr(machine_code, "wheel_folder", lambda: tmp_path)
    forget_nvdisasm = disassembly.nvdisasm.cache_clear
    forget_nvdisasm(), figures._toolchain.cache_clear()
    line = refused("kernels", "sass", "reduce_partials", "--arch", "sm_90", code=1)
    forget_nvdisasm(), figures._toolchain.cache_clear()
    assert line == "error: nvdisasm is not installed; pip install 'handgrad[machine-code]'"


@needs_nvrtc
def test_without_a_compiler_only_the_occupancy_is_unknown(monkeypatch):
    def none_found() -> None:
        raise CompilerNotFound("no C++ compiler")

    monkeypatch.setattr(occupancy, "find_compiler", none_found)
    occupancy._library.cache_clear()
    result = handgrad("kernels", "sass", "reduce_partials", "--arch", "sm_90", "--json")
    occupancy._library.cache_clear()
    assert result.exit_code == 0, result.stderr
    (row,) = json.loads(result.stdout)["kernels"]
    assert row["occupancy"] is None
    assert row["blocks_per_sm"] is None
    assert row["registers"] > 0
    assert "occupancy: unknown without a C++ compiler" in result.stderr


@needs_nvrtc
@pytest.mark.parametrize("compiler", ["none", pytest.param("of the extra emulator", marks=pytest.mark.slow)])
def test_it_needs_nothing_on_the_path(tmp_path, compiler):
    """Neither nvcc, nor a driver, nor ptxas; nor anything kept from before."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("CUDA", "HANDGRAD", "PATH"))
    }
    if compiler == "none":
        environment["HANDGRAD_CXX"] = str(tmp_path / "none")
    command = [sys.executable, "-m", "handgrad.cli", "kernels", "sass", "reduce_partials"]
    result = subprocess.run(
        [*command, "--arch", "sm_120", "--json"],
        env=environment | {"PATH": str(tmp_path), "HANDGRAD_CACHE": str(tmp_path / "cache")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    (row,) = json.loads(result.stdout)["kernels"]
    assert row["kernel"] == "reduce_partials<float>"
    assert row["registers"] > 0
    if compiler == "none" or importlib.util.find_spec("ziglang") is None:
        assert row["occupancy"] is None
    else:
        assert row["occupancy"] == 1


@needs_nvrtc
def test_a_kernel_that_does_not_compile_is_one_line(tmp_path):
    folder = shutil.copytree(kernel.kernels_directory(), tmp_path / "kernels")
    source = folder / "batch.cu"
    source.write_text(source.read_text().replace("* scale + shift", "* scales + shift"))
    line = refused("kernels", "sass", "batch", "--arch", "sm_90", "--kernels", folder, code=1)
    assert "batch.cu does not compile for sm_90: batch.cu(" in line
    assert 'identifier "scales" is undefined' in line


# ---- readings are kept -----------------------------------------------------------------------------------


@needs_nvrtc
def test_a_reading_is_kept_until_something_changes(tmp_path, monkeypatch):
    folder = shutil.copytree(kernel.kernels_directory(), tmp_path / "kernels")
    wanted = [one for one in budgets.chosen() if one.file == "batch.cu"]
    with kernel.use_kernels(folder):
        before = figures.measure(wanted, ["sm_90"])
        assert figures.measure(wanted, ["sm_90"]) == before
        monkeypatch.setattr(machine_code, "compile_for", None)  # nothing is compiled again ...
        assert figures.measure(wanted, ["sm_90"]) == before
        monkeypatch.undo()
        header = folder / "common.cuh"
        header.write_text(f"{header.read_text()}// {uuid.uuid4()}\n")
        entries = [figures._entry(one, "sm_90") for one in wanted]
        assert not any(entry.exists() for entry in entries)  # ... before a header has
        assert figures.measure(wanted, ["sm_90"]) == before
        assert all(entry.exists() for entry in entries)
