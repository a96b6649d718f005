"""NVIDIA's occupancy calculator against figures of NVIDIA's own documents.

Needs the extra ``machine-code`` (for cuda_occupancy.h) and a C++ compiler; skips without them.
"""

from __future__ import annotations

import shutil
import sys

import pytest

from handgrad.emulator import compiler
from handgrad.emulator.errors import CompilerNotFound
from handgrad.proof import machine_code
from handgrad.proof import occupancy as module
from handgrad.proof.machine_code import ARCHITECTURES
from handgrad.proof.occupancy import Occupancy, occupancy


def has_compiler() -> bool:
    try:
        compiler.find_compiler()
    except CompilerNotFound:
        return False
    return True


needs_nvrtc_and_compiler = pytest.mark.skipif(
    machine_code.wheel_folder() is None or not has_compiler(),
    reason="needs a C++ compiler and cuda_occupancy.h: pip install 'handgrad[machine-code]'",
)

KB = 1024

# CUDA C++ programming guide, "Technical specifications per compute capability": resident blocks, resident
# threads, shared memory of a multiprocessor and, at most, of a block.
SPECIFICATIONS = {
    "sm_75": (16, 1024, 64 * KB, 64 * KB),
    "sm_80": (32, 2048, 164 * KB, 163 * KB),
    "sm_86": (16, 1536, 100 * KB, 99 * KB),
    "sm_89": (24, 1536, 100 * KB, 99 * KB),
    "sm_90": (32, 2048, 228 * KB, 227 * KB),
    "sm_100": (32, 2048, 228 * KB, 227 * KB),
    "sm_120": (24, 1536, 100 * KB, 99 * KB),
}
every_architecture = pytest.mark.parametrize("arch", ARCHITECTURES)


def test_every_architecture_is_specified():
    assert tuple(SPECIFICATIONS) == ARCHITECTURES == tuple(module.THREADS_PER_SM)


@needs_nvrtc_and_compiler
@every_architecture
def test_small_blocks_fill_the_block_slots(arch):
    blocks, threads, _, _ = SPECIFICATIONS[arch]
    found = occupancy(arch, 32, 16, 0)
    assert found.blocks == blocks
    assert found.fraction == blocks * 32 / threads
    assert "blocks" in found.limits


@needs_nvrtc_and_compiler
@every_architecture
def test_few_registers_fill_the_warps(arch):
    threads = SPECIFICATIONS[arch][1]
    found = occupancy(arch, 256, 32, 0)
    assert (found.blocks, found.fraction) == (threads // 256, 1.0)
    assert "warps" in found.limits


@needs_nvrtc_and_compiler
@every_architecture
def test_registers_by_the_programming_guide(arch):
    # 5.2.3.1, for the same 65,536 registers: "if a kernel uses 64 registers and each block has 512 threads
    # ... two blocks can reside ...; as soon as the kernel uses one more register, only one block".
    assert occupancy(arch, 512, 64, 0).blocks == 2
    assert occupancy(arch, 512, 65, 0).blocks == 1
    assert occupancy(arch, 512, 65, 0).limits == ("registers",)


@needs_nvrtc_and_compiler
def test_registers_by_the_best_practices_guide():
    # 10.1, for 65,536 registers and 2,048 threads: "a kernel with 128-thread blocks using 37 registers per
    # thread results in an occupancy of 75% with 12 active 128-thread blocks ..., whereas a kernel with
    # 320-thread blocks using the same 37 registers ... 63% because only four 320-thread blocks can reside".
    for arch in ("sm_80", "sm_90", "sm_100"):
        assert occupancy(arch, 128, 37, 0) == Occupancy(12, 0.75, ("registers",))
        assert occupancy(arch, 320, 37, 0) == Occupancy(4, 0.625, ("registers",))


@needs_nvrtc_and_compiler
@every_architecture
def test_a_block_with_too_many_registers_does_not_fit(arch):
    assert occupancy(arch, 256, 255, 0).blocks == 1
    assert occupancy(arch, 512, 255, 0).blocks == 0
    assert occupancy(arch, 512, 255, 0).fraction == 0


@needs_nvrtc_and_compiler
@every_architecture
def test_shared_memory(arch):
    """From compute capability 8.0 on the driver takes 1 KB of each block."""
    _, _, whole, most = SPECIFICATIONS[arch]
    taken = 0 if arch == "sm_75" else KB
    quarter = whole // 4 - taken
    assert occupancy(arch, 64, 16, quarter) == Occupancy(4, 256 / SPECIFICATIONS[arch][1], ("shared memory",))
    assert occupancy(arch, 64, 16, quarter + 1).blocks == 3
    assert occupancy(arch, 64, 16, 0, dynamic_shared=quarter).blocks == 4
    assert occupancy(arch, 64, 16, KB, dynamic_shared=quarter).blocks == 3
    assert occupancy(arch, 64, 16, 0, dynamic_shared=most).blocks == 1
    assert occupancy(arch, 64, 16, 0, dynamic_shared=most + 1).blocks == 0


@needs_nvrtc_and_compiler
def test_half_a_warp_takes_a_whole_one():
    assert occupancy("sm_90", 48, 32, 0) == occupancy("sm_90", 64, 32, 0)


def test_mistakes():
    with pytest.raises(ValueError, match=r"arch: expected one of sm_75, .*sm_120, got 'sm_70'"):
        occupancy("sm_70", 256, 32, 0)
    for wrong in ((0, 32, 0), (256, -1, 0), (256, 32, -1)):
        with pytest.raises(ValueError, match="expected at least 1 thread and nothing below 0"):
            occupancy("sm_90", *wrong)
    with pytest.raises(ValueError, match="nothing below 0"):
        occupancy("sm_90", 256, 32, 0, dynamic_shared=-1)


@pytest.fixture
def unbuilt(tmp_path, monkeypatch):
    """As in a process that starts with an empty cache; gives the folder of the libraries."""
    monkeypatch.setenv("HANDGRAD_CACHE", str(tmp_path))
    module._library.cache_clear()
    yield tmp_path / "emulator"
    module._library.cache_clear()


def test_without_the_header_the_remedy_is_named(unbuilt, monkeypatch):
    monkeypatch.setattr(machine_code, "wheel_folder", lambda: None)
    with pytest.raises(machine_code.NvrtcMissing, match=r"pip install 'handgrad\[machine-code\]'"):
        occupancy("sm_90", 256, 32, 0)


@needs_nvrtc_and_compiler
def test_without_a_compiler_it_says_so(unbuilt, monkeypatch):
    monkeypatch.setenv("HANDGRAD_CXX", "no-such-compiler")
    with pytest.raises(CompilerNotFound, match="no-such-compiler"):
        occupancy("sm_90", 256, 32, 0)


@needs_nvrtc_and_compiler
def test_the_library_is_kept(unbuilt, monkeypatch):
    expected = occupancy("sm_90", 256, 32, 0)
    (library,) = unbuilt.glob("occupancy-*.so")
    module._library.cache_clear()
    monkeypatch.setattr(module, "subprocess", None)  # nothing is compiled again
    assert occupancy("sm_90", 256, 32, 0) == expected
    assert list(unbuilt.glob("occupancy-*.so")) == [library]


@needs_nvrtc_and_compiler
def test_a_header_that_does_not_compile_is_one_line(unbuilt, monkeypatch, tmp_path):
    real = machine_code.wheel_folder()
    (tmp_path / "include").mkdir()
    header = tmp_path / "include" / "cuda_occupancy.h"
    header.write_text((real / "include" / "cuda_occupancy.h").read_text() + "#error broken\n")
    monkeypatch.setattr(machine_code, "wheel_folder", lambda: tmp_path)
    with pytest.raises(RuntimeError, match=r"^cuda_occupancy\.h does not compile: .*") as error:
        occupancy("sm_90", 256, 32, 0)
    assert "\n" not in str(error.value)


@needs_nvrtc_and_compiler
@pytest.mark.slow
@pytest.mark.parametrize("command", ["clang++", f"{sys.executable} -m ziglang c++"])
def test_every_compiler_builds_it(unbuilt, monkeypatch, command):
    monkeypatch.setenv("HANDGRAD_CXX", command)
    if command == "clang++" and not shutil.which(command):
        pytest.skip("no clang++ here")
    try:
        compiler.find_compiler()
    except CompilerNotFound:
        pytest.skip(f"{command} does not run here")
    assert occupancy("sm_80", 128, 37, 0) == Occupancy(12, 0.75, ("registers",))
