"""Profiles: the kernels' traffic against formulas, the bars, the command, kernels of one's own."""

from __future__ import annotations

import functools
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import refused, report, succeeds

from handgrad import emulator, gpus
from handgrad.emulator.counting import counting
from handgrad.emulator.launch import launch_through
from handgrad.kernel import catalogue, kernels_directory
from handgrad.ops import linear, loss
from handgrad.proof import traffic
from handgrad.proof.counters import shared_traffic
from handgrad.proof.step_calls import calls
from handgrad.proof.traffic import Profile, Shape, profile_steps

EXAMPLE = Path(__file__).resolve().parent.parent / "docs" / "examples" / "row_sums.cu"

# Every row of every matrix is a whole number of sectors, those of uint8 images included; the rows of a block
# of the losses are all there.
ALIGNED = (
    Shape(192, 64, 96, 16, "cross_entropy", "Adam"),
    Shape(70, 32, 24, 8, "bce", "Momentum"),
    Shape(296, 96, 64, 24, "hinge", "Sgd"),
    Shape(40, 32, 136, 8, "mse", "Sgd"),
)
N, D, H, C = 192, 64, 96, 16  # of the first


@pytest.fixture(scope="module")
def aligned() -> list[Profile]:
    return profile_steps(ALIGNED)


def of(profiles: list[Profile], op: str, **shape: int) -> Profile:
    (found,) = [
        one for one in profiles if one.expected.op == op and shape.items() <= one.expected.shape.items()
    ]
    return found


def requested(profile: Profile, buffer: str, access: str) -> int:
    return profile.buffers[buffer][access].requested_bytes


# ---- the kernels -----------------------------------------------------------------------------------------


def test_every_kernel_is_profiled(aligned: list[Profile]) -> None:
    """But those of the fused steps, whose plans say what they move."""
    ops = {entry.op for entry in catalogue()}
    assert {one.expected.op for one in aligned} == {op for op in ops if not op.startswith("two_layer.")}
    assert all(one.aligned for one in aligned)
    assert {shape.loss for shape in ALIGNED} == set(loss.NAMES)


def test_no_aligned_access_is_over_its_bar(aligned: list[Profile]) -> None:
    """KERNELS: sectors and wavefronts at most 1.1 times the least possible."""
    assert [(one.counts.expression, line) for one in aligned for line in one.over()] == []


def test_stand_ins_are_over_no_bar_but_where_rows_are_no_whole_sectors() -> None:
    profiles = profile_steps(traffic.STAND_INS, ["linear", "loss"])
    found = {(one.expected.op, line) for one in profiles for line in one.over()}
    assert {line for _, line in found if line.startswith("shared ")} == set()
    assert all(one.aligned is False for one in profiles if one.over())
    assert len(found) < 20


def test_compulsory_bytes_are_the_catalogues(aligned: list[Profile]) -> None:
    one = of(aligned, "linear.forward", N=N, D=D, H=H)
    assert one.expected.compulsory == {"x": 4 * N * D, "W": 4 * D * H, "b": 4 * H, "y": 4 * N * H}
    assert [one.compulsory(name) for name in ("x", "W", "b", "y", "else")] == [
        4 * N * D, 4 * D * H, 4 * H, 4 * N * H, 0
    ]  # fmt: skip
    squares = of(aligned, "optimizer.squares")
    size = squares.expected.shape["size"]
    assert squares.expected.compulsory == {"g": 4 * size, "trainable": size // 64}
    adam = next(one for one in aligned if "Adam" in one.counts.expression)
    size = adam.expected.shape["size"]
    moved = {"w": 8 * size, "state1": 8 * size, "state2": 8 * size}
    assert adam.expected.compulsory == {"g": 4 * size, "trainable": size // 64, **moved}


def test_distinct_bytes_are_the_compulsory_ones(aligned: list[Profile]) -> None:
    """Of buffers in whole sectors each byte is loaded or stored; with partial sums they are more."""
    for one in aligned:
        for buffer, accesses in one.buffers.items():
            compulsory = one.compulsory(buffer)
            if not compulsory or buffer == "dW, db" or compulsory % 32:
                continue
            assert sum(access.distinct_bytes for access in accesses.values()) == compulsory, (
                one.counts.expression,
                buffer,
            )


def test_the_product_moves_what_its_tiles_say(aligned: list[Profile]) -> None:
    """x once for each column of tiles, W once for each row of tiles, the result once."""
    one = of(aligned, "linear.forward", N=N, D=D, H=H)
    tile = linear.choose_tile(N, H)
    columns, rows = -(-H // tile.BN), -(-N // tile.BM)
    assert requested(one, "x", "load") == columns * 4 * N * D
    assert requested(one, "W", "load") == rows * 4 * D * H
    assert requested(one, "y", "store") == 4 * N * H
    slabs = -(-D // tile.BK)
    assert one.counts.barriers == rows * columns * (1 + slabs)
    # every thread loads TM and TN elements at each of the slabs' steps
    steps = rows * columns * tile.threads * slabs * tile.BK
    assert one.shared["load"].requested_bytes == 4 * steps * (tile.TM + tile.TN)


def test_the_weight_product_moves_what_its_tiles_say(aligned: list[Profile]) -> None:
    one = of(aligned, "linear.backward_weight", N=N, D=D, H=H)
    tile = linear.choose_tile(D, H)
    S, chunk = linear.split_samples(N, D, H, tile)
    assert (S, chunk) == (2, 128)
    columns, rows = -(-H // tile.BN), -(-D // tile.BM)
    assert requested(one, "x", "load") == columns * 4 * N * D
    assert requested(one, "dZ", "load") == rows * 4 * N * H
    assert requested(one, "dW, db", "store") == S * 4 * (D * H + H)
    sums = of(aligned, "linear.reduce_partials", D=D, H=H)
    assert sums.expected.shape == {"S": S, "D": D, "H": H}
    assert requested(sums, "partials", "load") == S * 4 * (D * H + H) == sums.compulsory("partials")


def test_losses_read_their_logits_once(aligned: list[Profile]) -> None:
    for one in aligned:
        if one.expected.op.startswith("loss."):
            assert one.buffers["z"]["load"].moved_bytes == one.compulsory("z"), one.counts.expression
            assert one.buffers["dz"]["store"].moved_bytes == one.compulsory("dz")


def test_operations_are_formulas(aligned: list[Profile]) -> None:
    one = of(aligned, "linear.forward", N=N, D=D, H=H)
    assert one.expected.operations == 2 * N * D * H + 2 * N * H
    assert one.intensity == one.expected.operations / one.total("distinct_bytes")
    prediction = one.predict("H100")
    assert prediction.memory == one.total("distinct_bytes") / gpus.find_gpu("H100").bandwidth
    assert "predicted, not measured" in str(prediction)


def test_stand_ins_launch_the_readmes_products() -> None:
    """With the same alignment; found without running anything, on few samples of the same tiles."""
    for full, small in zip(traffic.FULL, traffic.STAND_INS, strict=True):
        assert small.stands_for == (str(full) if str(full) != str(small) else "")
        for rows, columns in (((full.N, full.H), (small.N, small.H)), ((full.H, full.C), (small.H, small.C))):
            assert linear.choose_tile(*rows) == linear.choose_tile(*columns)
        assert linear.choose_tile(full.D, full.H) == linear.choose_tile(small.D, small.H)
        assert (full.D * 4 % 32, full.H, full.C) == (small.D * 4 % 32, small.H, small.C)


def test_a_conflict_is_marked_with_its_line(tmp_path: Path) -> None:
    """The rows of a transposed slab without the odd pitch: all lanes of a vector in one bank."""
    folder = Path(shutil.copytree(kernels_directory(), tmp_path / "kernels"))
    text = (folder / "tile_product.cuh").read_text()
    pitch = "(LENGTH / G | 1) * G : LENGTH;"
    assert text.count(pitch) == 1, "the fault needs its place"
    (folder / "tile_product.cuh").write_text(text.replace(pitch, "LENGTH : LENGTH;"))
    (line,) = [
        number for number, line in enumerate(text.splitlines(), 1) if "shared[row(k) + j * PITCH" in line
    ]
    printed = succeeds("kernels", "profile", "linear.forward", "--shape", "70,40,64,8", "--kernels", folder)
    (found,) = [one for one in printed.splitlines() if "over the bar: shared store" in one][:1]
    assert f"tile_product.cuh:{line}" in found
    assert "!" in printed


def test_an_access_without_coalescing_is_marked(tmp_path: Path) -> None:
    """Columns of a row dealt out in blocks instead of lane by lane."""
    folder = Path(shutil.copytree(kernels_directory(), tmp_path / "kernels"))
    text = (folder / "activation.cu").read_text()
    loop = "for (int v = thread; v < n / V; v += threads) {\n    Vector<T, V> value"
    assert text.count(loop) == 1, "the fault needs its place"
    blocked = "const int share = (n / V + threads - 1) / threads, end = min((thread + 1) * share, n / V);\n"
    other = "for (int v = thread * share; v < end; ++v) {\n    Vector<T, V> value"
    (folder / "activation.cu").write_text(text.replace(loop, blocked + other))
    found = report("kernels", "profile", "activation.forward", "--shape", "9000,8,512,8", "--kernels", folder)
    (launch,) = found["launches"]
    accesses = {one["name"]: one["accesses"] for one in launch["buffers"]}
    assert accesses["z"]["load"]["coalescing"] > 1.1
    assert accesses["a"]["store"]["coalescing"] > 1.1
    assert len(launch["over_bar"]) == 2


# ---- the command -----------------------------------------------------------------------------------------


def test_the_json_is_as_documented() -> None:
    found = report("kernels", "profile", "batch", "linear_forward", "--gpu", "h100")
    assert found["schema"] == "handgrad.profile/1"
    assert found["emulated"] is True
    assert found["bars"] == {"coalescing": 1.1, "conflicts": 1.1}
    assert {one["op"] for one in found["launches"]} == {"batch.gather", "linear.forward"}
    documented = (EXAMPLE.parent.parent / "profile.md").read_text()
    for launch in found["launches"]:
        for key in launch:
            assert f"`{key}`" in documented, key
        for buffer in launch["buffers"]:
            assert set(buffer) == {"name", "bytes", "compulsory_bytes", "accesses"}
            for access in buffer["accesses"].values():
                assert access["moved_bytes"] == 32 * access["sectors"]
                assert access["coalescing"] == access["sectors"] / access["least_sectors"] >= 1
        (prediction,) = launch["predicted_not_measured"]
        assert prediction["gpu"] == "H100"
        assert prediction["seconds"] > 0
        assert launch["operations_source"] == "formula"
    gather = found["launches"][0]
    assert gather["compulsory_bytes"] == sum(one["compulsory_bytes"] for one in gather["buffers"])
    assert gather["step"] == "512,784,50,1"
    assert gather["stands_for"] == "50000,784,50,1"
    assert gather["aligned"] is False


def test_the_table_says_that_it_is_emulated() -> None:
    text = succeeds("kernels", "profile", "loss.elementwise", "--gpu", "A100", "--gpu", "L4")
    assert text.startswith("memory traffic by launch, emulated on the CPU")
    assert "loss_elementwise<float, MeanSquaredError<Identity>>" in text
    assert text.count("predicted, not measured") == 2
    assert "(by formula)" in text
    assert text.splitlines()[-1].startswith("1 launch, emulated on the CPU")


def test_a_shape_of_ones_own() -> None:
    found = report("kernels", "profile", "activation", "--shape", "10,4,12,3")
    assert {one["shape"]["n"] for one in found["launches"]} == {120}
    assert {one["step"] for one in found["launches"]} == {"10,4,12,3"}
    assert {one["stands_for"] for one in found["launches"]} == {None}


def test_a_kernel_of_ones_own_in_ten_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANDGRAD_CACHE", str(tmp_path / "cache"))
    start = time.monotonic()
    found = report("kernels", "profile", EXAMPLE)
    assert time.monotonic() - start < 10
    single, double = found["launches"]
    assert single["kernel"] == "row_sums<float>"
    assert (single["op"], single["aligned"], single["compulsory_bytes"], single["operations"]) == (None,) * 4
    x, sums = single["buffers"]
    assert (x["name"], x["bytes"], x["accesses"]["load"]["requested_bytes"]) == ("x", 6000, 6000)
    # rows of 1200 bytes begin at half a sector every other time: 38 sectors instead of 37.5
    assert x["accesses"]["load"]["distinct_bytes"] == 188 * 32
    assert (sums["name"], sums["accesses"]["store"]["requested_bytes"]) == ("sums", 20)
    assert single["barriers_per_block"] == 8
    assert single["shared_memory"]["load"]["conflicts"] == 1
    assert double["buffers"][0]["accesses"]["load"]["requested_bytes"] == 12000
    assert any(place["file"] == "row_sums.cu" and place["line"] for place in single["places"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("conv",), "kernel: expected one of activation.forward (activation_forward), "),
        (("--shape", "1,2,3"), "--shape: expected N,D,H,C, four whole numbers from 1 up, got '1,2,3'"),
        (("--shape", "0,2,3,4"), "--shape: expected N,D,H,C, four whole numbers from 1 up, got '0,2,3,4'"),
        (("--shape", "1,2,3,4", "--full-size"), "--full-size: expected no --shape with it, got both"),
        (("--gpu", "abacus"), "gpu: expected one of A100, H100, RTX 4090, L4, got 'abacus'"),
        (("none.cu",), "none.cu: no such file"),
        (("--launch", "x.toml"), "--launch: expected a FILE.cu for it, got none; "),
        ((EXAMPLE, "loss"), "KERNEL: expected one FILE.cu, or kernels of the project, got "),
        (
            (EXAMPLE, "--launch", "none.toml"),
            "--launch: expected a launch description, none.toml is no file; ",
        ),
        ((EXAMPLE, "--shape", "1,2,3,4"), "--shape: expected none with a FILE.cu, got one; "),
        ((EXAMPLE, "--gpu", "H100"), "--gpu: expected none with a FILE.cu, got H100; "),
    ],
)
def test_a_wrong_call_is_told_in_one_line(arguments: tuple[Any, ...], words: str) -> None:
    assert refused("kernels", "profile", *arguments).startswith(f"error: {words}")


def test_a_kernel_that_does_not_compile_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "own.cu").write_text("__global__ void own(float* x) { x[0] = missing; }\n")
    (tmp_path / "own.toml").write_text(
        'kernel = "own"\ngrid = 1\nblock = 1\nargs = [{ dtype = "float32", shape = 1 }]\n'
    )
    line = refused("kernels", "profile", tmp_path / "own.cu", code=1)
    assert "own.cu:1: " in line
    assert "missing" in line


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            '"int32", value',
            '"float32", value',
            "argument 2 (columns): expected int32, got a scalar of float32",
        ),
        ("[128]", "[2048]", "block (2048, 1, 1): sm_80 allows sizes from 1 to (1024, 1024, 64)"),
        ('"float32", shape', '"flot32", shape', "args[0]: dtype: expected one of float32"),
    ],
)
def test_a_launch_that_does_not_fit_is_told_in_one_line(
    old: str, new: str, words: str, tmp_path: Path
) -> None:
    launches = tmp_path / "other.toml"
    launches.write_text(EXAMPLE.with_suffix(".toml").read_text().replace(old, new))
    line = refused("kernels", "profile", EXAMPLE, "--launch", launches)
    assert words in line
    assert "other.toml: launch 1" in line
    assert "TypeError" not in line


@pytest.mark.slow
def test_the_readmes_steps_themselves() -> None:
    """The largest: each tile of X once for the 50 columns, at most 1.05 times its bytes."""
    (forward,) = [
        one for one in profile_steps(traffic.FULL[:1], ["linear.forward"]) if one.expected.shape["D"] == 784
    ]
    assert forward.buffers["x"]["load"].moved_bytes == 4 * 50_000 * 784
    assert forward.buffers["x"]["load"].distinct_bytes <= 1.05 * 4 * 50_000 * 784
    assert forward.shared["load"].conflicts == forward.shared["store"].conflicts == 1


def test_each_call_launches_what_it_is_expected_to() -> None:
    for shape in ALIGNED:
        for call in calls(shape.N, shape.D, shape.H, shape.C, shape.loss, shape.rule):
            launched = {expression.split("<")[0] for _, expression in traffic._launched(call)}
            assert launched == set(call.launches)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_tile_has_bank_conflicts(dtype: str) -> None:
    """Every tile, with loads of 16 bytes and of one element along either side, in all three products."""
    work = []
    for tile in linear.TILES:
        rows, columns = (1000, 1024) if tile is linear.WIDE else (136, tile.BN)
        for less_inner, less_columns in ((0, 0), (1, 0), (0, 1), (1, 1)):
            inner, H = 36 - less_inner, max(1, columns - less_columns)
            X, W, dZ = (emulator.ones(shape, dtype) for shape in ((rows, inner), (inner, H), (inner, rows)))
            work += [
                functools.partial(linear.forward, X, W),
                functools.partial(linear.backward_input, X, emulator.ones((H, inner), dtype)),
                functools.partial(linear.backward_weight, dZ, W),
            ]
    pairs: dict[tuple[Path, str], None] = {}
    with launch_through(lambda source, expression, *launch: pairs.update({(source, expression): None})):
        for call in work:
            call()
    emulator.prebuild(pairs, mode="count")
    with counting() as launches:
        for call in work:
            call()
    found = {
        (counts.expression, access): one.conflicts
        for counts in launches
        for access, one in shared_traffic(counts).items()
    }
    assert len({expression for expression, _ in found}) > 50
    assert {key: value for key, value in found.items() if value > 1} == {}
