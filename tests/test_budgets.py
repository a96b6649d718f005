"""Machine-code budgets: the kernels' code against the bars and against the snapshot.

The comparison needs the extra ``machine-code`` and a C++ compiler, and skips without them; all kernels for
all architectures are marked slow.  The snapshot itself is held to the bars without either.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import handgrad, succeeds
from test_occupancy import needs_nvrtc_and_compiler

from handgrad import emulator, kernel, ops, throughput
from handgrad.network import MLP
from handgrad.proof import budgets, machine_code
from handgrad.proof.figures import Figures, measure
from handgrad.proof.machine_code import ARCHITECTURES

SNAPSHOT = {(one.kernel, one.arch): one for one in budgets.read_snapshot()}
TILED = "linear_forward<float, Tile<128, 128, 8, 8, 8>, Relu, 4, 4>"


def figures_of(expression: str = TILED, arch: str = "sm_90", **changes: object) -> Figures:
    return dataclasses.replace(SNAPSHOT[expression, arch], **changes)


# ---- which kernels are watched ---------------------------------------------------------------------------


def test_at_most_so_many_kernels_and_each_of_the_catalogue():
    chosen = budgets.chosen()
    assert len(set(chosen)) == len(chosen) <= budgets.MOST_KERNELS
    names = {(one.file, one.expression.split("<")[0]) for one in chosen}
    assert names == {(entry.file, entry.name) for entry in kernel.catalogue()}
    for tile in ops.linear.TILES:
        assert any(one.expression.startswith(f"linear_forward<float, {tile.cpp}") for one in chosen), tile


def test_the_steps_are_those_of_the_benchmark():
    shapes = [(*dataclasses.astuple(shape), shape.loss) for shape in throughput.SHAPES]
    assert list(budgets.STEPS) == shapes


@pytest.mark.parametrize("step", budgets.STEPS, ids=lambda step: "x".join(map(str, step[:4])))
def test_every_launch_of_a_step_is_watched(step, monkeypatch):
    """What the network launches for the shape through its plan, against what budgets says that it does."""
    N, D, H, C, loss = step
    launched: list[str] = []
    monkeypatch.setattr(emulator, "launch", lambda source, expression, *rest: launched.append(expression))
    net = MLP([D, H, C], loss=loss, device="emulator")
    y = emulator.zeros((N, C), np.float32) if C == 1 else emulator.zeros((N,), np.int32)
    net.train_step(emulator.zeros((N, D), np.float32), y, ops.optimizer.SGD(lr=0.1, momentum=0.9))
    expected = {one.expression for one in budgets.step_kernels(*step)}
    assert set(launched) == expected
    assert expected <= {one.expression for one in budgets.chosen()}


def test_selecting():
    expressions = [one.expression for one in budgets.select(["linear.reduce_partials", "loss_rows"])]
    assert expressions == [
        "reduce_partials<float>", "loss_rows<float, CrossEntropy, 16>"
    ]  # fmt: skip
    assert budgets.select([]) == budgets.chosen()
    assert {one.file for one in budgets.select(["linear"])} == {"linear.cu"}
    assert budgets.select(["loss_rows", "loss_rows"]) == budgets.select(["loss.rows"])
    with pytest.raises(ValueError, match=r"kernel: expected one of .*, or an expression, got 'conv'"):
        budgets.select(["conv"])


# ---- the snapshot ----------------------------------------------------------------------------------------


def test_the_snapshot_has_every_kernel_on_every_architecture():
    assert set(SNAPSHOT) == {(one.expression, arch) for one in budgets.chosen() for arch in ARCHITECTURES}


def test_the_snapshot_keeps_to_the_bars():
    assert [line for one in SNAPSHOT.values() for line in budgets.breaches(one)] == []
    assert budgets.regressions(SNAPSHOT.values(), SNAPSHOT.values()) == []


def test_no_spill_is_let_pass_that_is_not_there():
    for key, reason in budgets.SPILLS_LET_PASS.items():
        # float64 is there for checking; in single precision, a few values that no inner loop looks at
        assert "double" in key[0] or SNAPSHOT[key].spill_stores <= 16
        assert SNAPSHOT[key].spill_stores > 0, "it is mended: take it off the list"
        assert reason


def test_the_bar_of_a_tile():
    for tile, least in (("128, 128, 8, 8, 8", 3.8), ("64, 64, 16, 4, 4", 1.9), ("128, 1, 16, 1, 1", 0.475)):
        assert budgets.fma_bar(f"linear_forward<float, Tile<{tile}>, Relu, 4, 4>") == pytest.approx(least)
    assert budgets.fma_bar("loss_rows<float, Hinge, 16>") is None


def test_the_products_of_r4_have_a_bar_of_their_own():
    for tile, least in (
        ("Fma<Tile<64, 64, 16, 8, 8>, 2>", 4),
        ("Fma<Tile<64, 64, 16, 4, 4>, 1>", 4),
        ("Fma<Tile<128, 128, 8, 8, 16>, 1>", 0.95 * 128 / 24),
        ("Fma<Tile<128, 4, 16, 4, 1>, 1>", 0.95 * 4 / 5),
    ):
        expression = f"general_output<float, {tile}, CrossEntropy, 4>"
        assert budgets.fma_bar(expression) == pytest.approx(least)
    double = "general_output<double, Fma<Tile<64, 64, 16, 4, 4>, 1>, CrossEntropy, 2>"
    assert budgets.fma_bar(double) == pytest.approx(1.9)


def test_a_snapshot_is_read_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(budgets, "load_nvrtc", lambda: machine_code.Nvrtc.__new__(machine_code.Nvrtc))
    monkeypatch.setattr(machine_code.Nvrtc, "version", "13.0")
    path = tmp_path / "snapshot.json"
    budgets.write_snapshot(SNAPSHOT.values(), path)
    assert budgets.read_snapshot(path) == list(SNAPSHOT.values())
    assert path.read_text() == budgets.SNAPSHOT.read_text()
    assert budgets.read_snapshot(tmp_path / "none.json") == []


# ---- planted regressions ---------------------------------------------------------------------------------

OVER_BUDGET = {
    "16 bytes of spill stores": {"spill_stores": 16},
    "4 bytes of spill loads": {"spill_loads": 4},
    "1 local stores": {"local_stores": 1},
    "2 local loads": {"local_loads": 2},
    "3 floating-point atomics": {"float_atomics": 3},
    "3.765 multiply-adds for each shared element loaded, expected 3.800": {"fma_per_shared_word": 512 / 136},
    "0.000 multiply-adds for each shared element loaded, expected 3.800": {"fma_per_shared_word": None},
    "occupancy unknown, since no C++ compiler was found to build NVIDIA's calculator": {"occupancy": None},
    "no block fits on a multiprocessor": {"occupancy": 0.0, "blocks_per_sm": 0},
}


@pytest.mark.parametrize("line", OVER_BUDGET)
def test_a_regression_is_found(line):
    found = budgets.regressions([figures_of(**OVER_BUDGET[line])], SNAPSHOT.values())
    assert f"{TILED} on sm_90: {line}" in found


def test_a_loss_of_occupancy_is_found():
    worse = figures_of(occupancy=0.125, registers=140)
    (line,) = budgets.regressions([worse], SNAPSHOT.values())
    assert line == (
        f"{TILED} on sm_90: occupancy 12%, 25% in the snapshot "
        f"({figures_of().registers} -> 140 registers, {worse.shared_bytes} -> {worse.shared_bytes} bytes of "
        "shared memory)"
    )


def test_a_kernel_that_the_snapshot_does_not_know_is_found():
    stranger = figures_of(kernel="linear_forward<float, Tile<128, 128, 8, 8, 8>, Tanh, 4, 4>")
    (line,) = budgets.regressions([stranger], SNAPSHOT.values())
    assert line.endswith("Tanh, 4, 4> on sm_90: not in the snapshot; refresh it")


def test_a_spill_is_let_pass_where_it_is_listed_alone(monkeypatch):
    key = TILED, "sm_100"
    monkeypatch.setattr(budgets, "SPILLS_LET_PASS", {key: "why"})
    listed = figures_of(*key, spill_stores=32, spill_loads=16)
    assert budgets.regressions([listed], SNAPSHOT.values()) == []
    (line,) = budgets.regressions([dataclasses.replace(listed, float_atomics=1)], SNAPSHOT.values())
    assert "1 floating-point atomics" in line
    elsewhere = figures_of(key[0], "sm_90", spill_stores=32)
    assert len(budgets.regressions([elsewhere], SNAPSHOT.values())) == 1


def test_gains_pass():
    better = figures_of(occupancy=0.5, blocks_per_sm=4, registers=64, instructions=1, fma_per_shared_word=8.0)
    assert budgets.regressions([better], SNAPSHOT.values()) == []


def test_differences_name_what_changed():
    now = [*SNAPSHOT.values()]
    assert budgets.differences(now, SNAPSHOT.values()) == []
    gone = now.pop(0)
    at = now.index(figures_of())
    now[at] = figures_of(registers=64, occupancy=0.5)
    now.append(figures_of(kernel="new<float>"))
    assert budgets.differences(now, SNAPSHOT.values()) == [
        f"{gone.kernel} on {gone.arch}: gone",
        f"{TILED} on sm_90: registers {figures_of().registers} -> 64, occupancy 0.25 -> 0.5",
        "new<float> on sm_90: new",
    ]


# ---- the code itself -------------------------------------------------------------------------------------

ONE_OF_EACH = tuple({one.expression.split("<")[0]: one for one in budgets.chosen()}.values())


def compare(found: list[Figures]) -> None:
    taken, here = budgets.snapshot_nvrtc(), machine_code.load_nvrtc().version
    if taken != here:
        pytest.skip(f"the snapshot is NVRTC {taken}'s, this is {here}: their register counts differ")
    lines = budgets.regressions(found, SNAPSHOT.values())
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)


@needs_nvrtc_and_compiler
def test_one_of_every_kernel_keeps_to_its_budget():
    compare(measure(ONE_OF_EACH, ["sm_90"]))


@needs_nvrtc_and_compiler
@pytest.mark.slow
def test_every_kernel_keeps_to_its_budget():
    found = measure(budgets.chosen())
    assert len(found) == len(SNAPSHOT)
    compare(found)


# What is looked at, the source, what is replaced in it, and what the check then says.
PLANTED = {
    "floating-point atomic": (
        "linear.reduce_partials",
        "linear.cu",
        {"    dW[i] = sum;": "    atomicAdd(&dW[i], sum);"},
        "1 floating-point atomics",
    ),
    "local array": (
        "linear.reduce_partials",
        "linear.cu",
        {
            "  T sum = part[0];": "  T kept[32];\n  T sum = kept[S & 31] = part[0];",
            "sum += part[s * stride];": "sum += kept[(s ^ i) & 31] + (kept[s & 31] = part[s * stride]);",
        },
        "local loads",
    ),
    "spill": (
        TILED,
        "linear.cu",
        {"TILE::FLOAT_BLOCKS : TILE::DOUBLE_BLOCKS)\n    linear_forward": "4 : 2)\n    linear_forward"},
        "bytes of spill stores",
    ),
    "shared memory": (
        "linear.reduce_partials",
        "linear.cu",
        {
            "  T sum = part[0];": "  __shared__ volatile T waste[10000];\n"
            "  waste[threadIdx.x * S] = 1;\n  T sum = part[0] + waste[S];"
        },
        "occupancy 62%, 100% in the snapshot",
    ),
    "starved loop": (
        TILED,
        "tile_product.cuh",
        {
            "* b[j / WN][j % WN ^ B::order(k)];": "* "
            "*static_cast<const volatile T*>(Bs + B::row(k) + column(j));"
        },
        "multiply-adds for each shared element loaded, expected 3.800",
    ),
}


@needs_nvrtc_and_compiler
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_regression_fails_the_check(name, tmp_path):
    op, file, changes, message = PLANTED[name]
    folder = Path(shutil.copytree(kernel.kernels_directory(), tmp_path / "kernels"))
    text = (folder / file).read_text()
    for old, new in changes.items():
        assert text.count(old) == 1, "the fault needs its place"
        text = text.replace(old, new)
    (folder / file).write_text(text)
    result = handgrad("kernels", "sass", op, "--arch", "sm_90", "--check", "--kernels", folder)
    assert result.exit_code == 1, result.stdout + result.stderr
    assert [line for line in result.stdout.splitlines() if line.startswith("failed") and message in line]


@needs_nvrtc_and_compiler
def test_the_check_passes_on_the_kernels_as_they_are():
    text = succeeds("kernels", "sass", "linear.reduce_partials", "batch", "--arch", "sm_90", "--check")
    assert "2 compared with the snapshot, 0 over budget" in text


@needs_nvrtc_and_compiler
def test_refreshing_writes_the_snapshot_and_shows_the_difference(tmp_path, monkeypatch):
    path = tmp_path / "budgets.json"
    watched = budgets.select(["linear.reduce_partials", "batch"])
    monkeypatch.setattr(budgets, "SNAPSHOT", path)
    monkeypatch.setattr(budgets, "chosen", lambda: watched)
    monkeypatch.setattr(budgets, "ARCHITECTURES", ("sm_90",))
    monkeypatch.setattr(budgets.read_snapshot, "__defaults__", (path,))
    monkeypatch.setattr(budgets.write_snapshot, "__defaults__", (path,))
    text = succeeds("kernels", "sass", "--refresh")
    assert "reduce_partials<float> on sm_90: new" in text
    assert "2 rows, 2 changed" in text
    assert [one.kernel for one in budgets.read_snapshot()] == [one.expression for one in watched]
    stored = json.loads(path.read_text())
    stored["kernels"]["reduce_partials<float>"]["sm_90"][0] += 2
    path.write_text(json.dumps(stored))
    text = succeeds("kernels", "sass", "--refresh")
    before = SNAPSHOT["reduce_partials<float>", "sm_90"].registers
    assert f"reduce_partials<float> on sm_90: registers {before + 2} -> {before}" in text
    assert "2 rows, 1 changed" in text
