"""Machine code of the tiles that tuning may choose: it compiles for every architecture, without spills.

Needs the extra ``machine-code``; skips without it.
"""

from __future__ import annotations

import pytest
from test_compile import ALLOW_UNREFERENCED, compile_cleanly, needs_nvrtc

from handgrad.ops import two_layer, two_layer_reduce
from handgrad.ops.two_layer import Problem
from handgrad.plans import paths
from handgrad.plans.choice import lay_out, refusal_of, tilings_of

# N, D, H, C for which every tile is offered, by turns for X of bytes and of floats: R4 with few outputs, up
# to 16, above; loads wide and narrow.
SHAPES = {
    "R1": ((1000, 64, 64, 3), (1000, 304, 40, 2), (60, 784, 32, 10), (60, 128, 32, 1), (60, 783, 31, 2)),
    "R3": (
        *((17_000, 784, 20, 2), (17_000, 4000, 50, 1), (5000, 784, 100, 3), (64, 4000, 100, 3)),
        *((4100, 785, 101, 10), (67, 4001, 101, 10)),
    ),
    "R4": (
        *((64, 68, 3752, 16), (67, 65, 3751, 3), (64, 68, 3751, 20), (64, 68, 3752, 10)),
        *((64, 67, 3752, 3), (64, 68, 3752, 20)),
    ),
}
FUNCTIONS = (  # of the activations, those with the longest code; a loss over the row and an elementwise one
    {"activation": "relu", "loss": "cross_entropy", "rule": "Adam"},
    {"activation": "softplus", "loss": "mse", "output": "sigmoid", "rule": "Momentum"},
)


def kernels(arch: str, every: bool) -> dict[str, set[str]]:
    """file -> expressions of all tilings offered on ``arch``, the rule's too; a few where not ``every``."""
    found: dict[str, set[str]] = {}
    for name, shapes in SHAPES.items():
        for number, shape in enumerate(shapes if every else shapes[:1]):
            for dtype, precisions in two_layer.PRECISIONS.items() if every else (("float32", ("float32",)),):
                for precision in precisions:
                    functions = FUNCTIONS[number % 2]
                    inputs = "uint8" if number % 2 == 0 else dtype
                    problem = Problem(
                        *shape, dtype=dtype, precision=precision, inputs=inputs, arch=arch, **functions
                    )
                    if refusal_of(problem, name):
                        continue
                    offered = tilings_of(problem, name)
                    layouts = [lay_out(problem, name, tiling) for tiling in offered]
                    for kernel in {one.kernel for layout in layouts for one in layout.launches}:
                        if kernel.file != two_layer_reduce.FILE:
                            found.setdefault(kernel.file, set()).add(kernel.expression)
    return found


def test_all_tiles_are_among_them():
    text = " ".join(one for every in kernels("sm_90", True).values() for one in every)
    tiles = (
        *("FmaTile<float, 16, 8, 8, 8", "FmaTile<float, 16, 16, 10, 7", "MmaTile<Tf32, 12, 4, 4"),
        *(f"pair_forward<float, float, Fma<Tile<{one}" for one in ("64, 64", "32, 64")),
        "pair_forward<float, unsigned char, Fma<Tile<64, 32",
        *(
            "pair_forward<double, double, Fma<Tile<32, 64",
            "pair_forward<float, float, Mma<Tf32, WarpTile<32, 64",
        ),
        *(f"<float>, float, Mma<Bfloat16, WarpTile<{one}" for one in ("64, 128", "128, 32", "64, 32")),
        *(f"general_hidden<float, float, Fma<Tile<{one}" for one in ("128, 128", "64, 128", "64, 32")),
        *(f"general_weight<float, float, Mma<Bfloat16, WarpTile<{one}" for one in ("128, 64", "64, 32")),
        "general_weight<float, unsigned char, Mma<ThreeTf32, WarpTile<64, 64",
    )
    assert [one for one in tiles if one not in text] == []


@needs_nvrtc
def test_some_compile_without_spills():
    for file, expressions in kernels("sm_90", False).items():
        compile_cleanly(file, set(sorted(expressions)[::5]), "sm_90", ALLOW_UNREFERENCED)


@needs_nvrtc
@pytest.mark.slow
@pytest.mark.parametrize("file", ["two_layer_step.cu", "two_layer_pair.cu", "two_layer_general.cu"])
@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90", "sm_120"])
def test_every_tile_compiles_without_spills(arch, file):
    compile_cleanly(file, kernels(arch, True)[file], arch, ALLOW_UNREFERENCED)


def test_the_paths_are_those_that_are_tuned():
    assert tuple(SHAPES) == paths.STEP_ORDER
