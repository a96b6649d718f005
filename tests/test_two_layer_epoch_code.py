"""Machine code of kernels whose blocks exchange numbers, R2's and R3's: never through the cache of constants.

NVRTC turns a load into ``ld.global.nc`` where nothing in the kernel writes to the memory, and the hardware
may then keep what it read before a barrier.  Needs the extra ``machine-code``, and skips without it.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from handgrad.kernel import KernelError, kernels_directory
from handgrad.ops import two_layer_epoch, two_layer_pair
from handgrad.proof import budgets, machine_code
from handgrad.proof.figures import measure

FILE = kernels_directory() / two_layer_epoch.FILE
PARAMETERS = (
    *("X", "y", "order", "trainable", "hyperparameters", "w", "state1", "state2", "steps", "losses"),
    *("partial_Z1", "partial_Z2", "slices", "barrier"),
)
CONSTANT = {"X", "y", "order", "trainable", "hyperparameters"}  # nobody writes these
pytestmark = pytest.mark.skipif(
    machine_code.wheel_folder() is None, reason="NVRTC is not installed: pip install 'handgrad[machine-code]'"
)
REGISTER = re.compile(r"%\w+")


def ptx_of(source: Path, expression: str, arch: str) -> str:
    """The kernel's PTX, compiled with the flags of a launch."""
    nvrtc = machine_code.load_nvrtc()
    options = [*machine_code.flags(arch), f"-I{source.parent}", *(f"-I{f}" for f in nvrtc.include_folders)]
    with nvrtc.program(source.read_text(), str(source)) as program:
        nvrtc.call("AddNameExpression", program, expression.encode())
        encoded = [option.encode() for option in options]
        nvrtc.call("CompileProgram", program, len(encoded), (ctypes.c_char_p * len(encoded))(*encoded))
        return nvrtc.read("PTX", program).rstrip(b"\0").decode()


def loads_by_parameter(ptx: str, parameters: tuple[str, ...] = PARAMETERS) -> dict[str, set[str]]:
    """Instructions that load from global memory → the parameters that their address may come from."""
    body = ptx[ptx.index("\n{") :]
    origins: dict[str, set[str]] = {}
    instructions = [line.strip() for line in body.split(";")]
    changed = True
    while changed:  # to a fixed point: loops carry pointers backwards
        changed = False
        for text in instructions:
            words = text.split(None, 1)
            if len(words) < 2:
                continue
            if words[0].startswith("@"):
                words = words[1].split(None, 1)
            name, operands = words[0], words[1] if len(words) > 1 else ""
            if name.startswith(("st.", "bra", "bar", "ret", "ld.global", "ld.shared", "setp")):
                continue
            into, _, rest = operands.partition(",")
            found = {
                parameters[int(n)] for n in re.findall(r"_param_(\d+)\]", rest) if int(n) < len(parameters)
            }
            for register in REGISTER.findall(rest):
                found |= origins.get(register, set())
            for register in REGISTER.findall(into):
                if not found <= origins.setdefault(register, set()):
                    origins[register] |= found
                    changed = True
    loads: dict[str, set[str]] = {}
    for text in instructions:
        load = re.search(r"\b(ld\.(?:volatile\.)?global[.\w]*)\s+[^\[]*\[(%\w+)", text)
        if load:
            loads.setdefault(load[1], set()).update(origins.get(load[2], {"?"}))
    return loads


def require_nvrtc() -> None:
    try:
        machine_code.load_nvrtc()
    except KernelError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("kept", [True, False])
def test_no_constant_load_of_what_blocks_exchange(kept: bool) -> None:
    require_nvrtc()
    expression = next(text for text in budgets.EPOCHS if text.endswith("true>" if kept else "false>"))
    loads = loads_by_parameter(ptx_of(FILE, expression, "sm_80"))
    constant = set().union(*(origin for name, origin in loads.items() if ".nc" in name))
    others = set().union(*(origin for name, origin in loads.items() if ".nc" not in name))
    assert {"X", "y", "order"} <= constant <= CONSTANT
    assert {"w", "steps", "partial_Z1", "partial_Z2", "barrier"} <= others
    assert "?" not in constant | others


def test_no_constant_load_of_the_splits_that_r3_sums() -> None:
    require_nvrtc()
    names = (
        *("X", "dZ1", "output_partials", "loss_partials", "trainable", "hyperparameters", "weight_partials"),
        *("w", "state1", "state2", "loss", "steps", "tickets"),
    )
    source, tile = kernels_directory() / two_layer_pair.FILE, "Fma<Tile<128, 64, 16, 8, 8>, 1>"
    loads = loads_by_parameter(
        ptx_of(source, f"pair_backward<Adam<float>, float, {tile}, 4, 4>", "sm_80"), names
    )
    constant = set().union(*(origin for name, origin in loads.items() if ".nc" in name))
    others = set().union(*(origin for name, origin in loads.items() if ".nc" not in name))
    assert "output_partials" in constant, "it is of the launch before"
    assert {"weight_partials", "w"} <= others
    assert not {"weight_partials", "w", "state1", "state2", "steps", "tickets"} & constant


def test_a_restrict_on_an_exchanged_buffer_is_found(tmp_path: Path) -> None:
    """The same reading of a small kernel whose exchanged buffer is a const __restrict__ parameter."""
    require_nvrtc()
    source = tmp_path / "planted.cu"
    arguments = ", ".join(
        f"const float* __restrict__ {name}" if name in ("X", "partial_Z1") else f"float* {name}"
        for name in PARAMETERS
    )
    source.write_text(
        f"template <class T> __global__ void planted({arguments}) {{\n"
        "  w[threadIdx.x] = X[threadIdx.x];\n  __syncthreads();\n"
        "  for (int i = 0; i < 9; ++i, partial_Z1 += 32)\n"
        "    losses[i] = partial_Z1[threadIdx.x] + partial_Z2[i];\n}\n"
    )
    loads = loads_by_parameter(ptx_of(source, "planted<float>", "sm_80"))
    constant = set().union(*(origin for name, origin in loads.items() if ".nc" in name))
    assert constant == {"X", "partial_Z1"}


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90", "sm_120"])
def test_no_spills_no_local_memory_and_two_blocks_in_float(arch: str) -> None:
    require_nvrtc()
    chosen = [kernel for kernel in budgets.chosen() if kernel.expression in budgets.EPOCHS]
    for figures in measure(chosen, (arch,)):
        assert figures.spill_stores == figures.spill_loads == 0, figures.kernel
        assert figures.local_loads == figures.local_stores == figures.float_atomics == 0, figures.kernel
        limit = 128 if "<float>" in figures.kernel else 255
        assert figures.registers <= limit, figures.kernel
