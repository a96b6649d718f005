"""What R4 moves, counted on the emulator: its own formula to the byte, no bank conflicts; machine code."""

from collections import Counter

import numpy as np
import pytest

from handgrad import emulator
from handgrad.emulator.counting import SHARED, counting
from handgrad.kernel import kernels_directory
from handgrad.ops import Workspace
from handgrad.ops import loss as loss_op
from handgrad.ops import two_layer_general as path
from handgrad.ops.optimizer import SGD
from handgrad.ops.two_layer import Problem, StepArrays
from handgrad.ops.two_layer_general_geometry import Geometry
from handgrad.ops.two_layer_general_tiles import TENSOR
from handgrad.parameters import FlatParameters
from handgrad.proof import disassembly, machine_code
from handgrad.proof.counters import global_traffic, shared_traffic

ALIGNED = {
    "computed dZ1": Problem(192, 96, 64, 8, loss="cross_entropy", rule="Momentum"),
    "wide tiles": Problem(130, 104, 160, 16, loss="hinge"),
    "stored dZ1": Problem(128, 96, 96, 24, loss="bce", activation="tanh"),
    "tf32": Problem(128, 96, 96, 24, loss="cross_entropy", precision="tf32", rule="Store"),
    "bfloat16": Problem(128, 96, 96, 24, loss="mse", output="tanh", precision="bfloat16"),
    "3xtf32": Problem(150, 96, 96, 8, loss="hinge", precision="3xtf32"),
    "float64": Problem(100, 48, 40, 20, loss="hinge", dtype="float64", precision="float64", inputs="float64"),
    "pixels": Problem(192, 96, 64, 4, loss="mse", inputs="uint8"),
}
RAGGED = {
    "odd": Problem(300, 75, 99, 36, loss="hinge", bias=False),
    "narrow": Problem(259, 3, 17, 1, loss="bce"),
    "odd pixels": Problem(131, 35, 65, 13, loss="cross_entropy", inputs="uint8"),
}
BY_DEFAULT = ("computed dZ1",)

# Of the last launch, a few bytes a block: tests/test_two_layer_reduce.py.
BOOKKEEPING = ("trainable", "hyperparameters", "steps", "ticket")
# Arguments of the kernels -> buffers of a layout
BUFFERS = {
    "x": "X",
    "w": "parameters",
    "partials, b2_partials": "partials",
    "state1": "state",
    "state2": "state",
}


def counted(problem):
    """The launches of a step, counted."""
    p, rng = problem, np.random.default_rng(0)
    shapes = {"W1": (p.D, p.H), "b1": (p.H,), "W2": (p.H, p.C), "b2": (p.C,)}
    parameters = FlatParameters({n: s for n, s in shapes.items() if p.bias or n[0] == "W"}, p.dtype, emulator)
    X = rng.integers(0, 256, (p.N, p.D)).astype(p.inputs)
    elementwise = p.loss in loss_op.ELEMENTWISE
    # of a label above 31 the losses of rows read more
    y = np.ones((p.N, p.C), p.dtype) if elementwise else rng.integers(0, min(p.C, 32), p.N, np.int32)
    optimizer = None if p.rule == "Store" else SGD(0.1, momentum=0.9 * (p.rule == "Momentum"))
    if optimizer:
        optimizer.bind(parameters)
    arrays = StepArrays(
        emulator.asarray(X), emulator.asarray(y), 1.0, 0.0, parameters,
        parameters.like().flat, optimizer, emulator.empty(1, p.dtype), Workspace(),
    )  # fmt: skip
    layout = path.lay_out(p)
    with counting() as launches:
        path.run(layout, arrays)
    return layout, launches


@pytest.mark.parametrize(
    "name",
    [
        name if name in BY_DEFAULT else pytest.param(name, marks=pytest.mark.slow)
        for name in (*ALIGNED, *RAGGED)
    ],
)
def test_traffic_is_what_the_formula_says(name):
    """No bank conflicts in the main loops; coalesced, but that 16 pixels of a row are half a sector."""
    layout, launches = counted((ALIGNED | RAGGED)[name])
    found, pixels = Counter(), layout.problem.inputs == "uint8"
    for launch in launches:
        for argument, accesses in global_traffic(launch).items():
            buffer = BUFFERS.get(argument, argument)
            if buffer == "parameters" and layout.problem.rule == "Store":
                buffer = "gradient"
            for access, one in accesses.items():
                found[buffer] += one.requested_bytes
                if name in ALIGNED and one.requests > 8:
                    bar = 2 if pixels and launch.expression.startswith("general_hidden") else 1.1
                    assert one.coalescing <= bar, (launch.expression, buffer, access)
        main_loops = [one for one in launch.places if one.buffer == SHARED and one.file.startswith("tile_")]
        assert main_loops or "reduce" in launch.expression
        for one in main_loops:
            assert one.wavefronts == one.least_wavefronts, (launch.expression, one.file, one.line)
        for access, one in shared_traffic(launch).items():
            assert one.conflicts <= 1.2, (launch.expression, access)
    wanted = dict(layout.requested)
    for buffer in BOOKKEEPING:
        found.pop(buffer, None)
        wanted.pop(buffer, None)
    assert {buffer: count for buffer, count in found.items() if count} == wanted


def test_compulsory_bytes_are_those_of_the_path():
    """Of 8192 x 784 -> 512 -> 10 with Adam: 4 (2 N D + 3 N H) + 24 P, targets and loss besides."""
    N, D, H, C = 8192, 784, 512, 10
    layout = path.lay_out(Problem(N, D, H, C, loss="cross_entropy", rule="Adam"))
    P = D * H + H + H * C + C
    assert sum(layout.compulsory.values()) == 4 * (2 * N * D + 3 * N * H) + 24 * P + 4 * N + 4
    assert layout.path == "R4"
    assert [launch.name for launch in layout.launches] == [
        "general_hidden", "general_output", "general_weight", "reduce_and_update",
    ]  # fmt: skip
    assert layout.partitions == 4
    assert layout.operations == 4 * N * D * H + 18 * N * H * C  # dZ1 for seven tiles along D


# ---- machine code ----------------------------------------------------------------------------------------


def code_of(kernel, arch):
    try:
        compiled = machine_code.compile_for(
            kernels_directory() / path.FILE, [kernel.expression], arch, ("--diag-suppress=177",)
        )
        return disassembly.disassemble(compiled.cubin)[compiled.names[kernel.expression]]
    except (machine_code.NvrtcMissing, disassembly.DisassemblerMissing) as missing:
        pytest.skip(str(missing))


OPCODES = {"tf32": "HMMA.1688.F32.TF32", "3xtf32": "HMMA.1688.F32.TF32", "bfloat16": "HMMA.16816.F32.BF16"}


@pytest.mark.parametrize("precision", TENSOR)
def test_tensor_cores_sum_in_float32(precision):
    geometry = Geometry(Problem(8192, 784, 512, 10, precision=precision))
    for kernel in (geometry.hidden_kernel, geometry.weight_kernel):
        products = {one.opcode for one in code_of(kernel, "sm_90") if one.root == "HMMA"}
        assert products == {OPCODES[precision]}, kernel.expression
    matrices = [one for one in code_of(geometry.hidden_kernel, "sm_90") if one.root == "LDSM"]
    assert bool(matrices) == (precision != "bfloat16"), "tf32 of X comes through ldmatrix"


def test_main_loops_multiply_four_times_for_each_shared_element():
    geometry = Geometry(Problem(8192, 784, 512, 10))
    many = Geometry(Problem(8192, 784, 512, 100))
    for kernel in (geometry.hidden_kernel, geometry.weight_kernel, many.output_kernel, many.weight_kernel):
        loop = disassembly.count(code_of(kernel, "sm_80")).main_loop
        assert loop.fma_per_shared_word >= 4, kernel.expression


def test_logits_never_come_from_the_cache_of_constants():
    """They are written and read in one launch; of the other arguments it reads a label and b2 there."""
    kernel = Geometry(Problem(8192, 784, 512, 100, loss="cross_entropy")).output_kernel
    loads = [one for one in code_of(kernel, "sm_80") if one.root == "LDG" and "CONSTANT" in one.modifiers]
    assert len([one for one in loads if "128" not in one.modifiers]) == 1
