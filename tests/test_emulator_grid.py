"""Cooperative launches on the emulator: every block resident, barriers of the grid, and what goes wrong."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from emulator_sources import FOLDER, ORDERS
from numpy.typing import NDArray

from handgrad import emulator
from handgrad.emulator.counting import counting
from handgrad.emulator.launch import CompiledKernel
from handgrad.emulator.settings import BLOCKS_PER_SM, resident_blocks
from handgrad.emulator.watched import MODES, SEARCHES, searching

GRID = FOLDER / "grid.cu"
RIGHT = ("rotate<true>", "rotate_shared", "gather_sums", "pairs_then_all", "by_turns")
WRONG = (
    *("rotate<false>", "unfenced", "leaves_early", "waits_elsewhere", "divergent", "thread_stays_away"),
    *("wrong_count", "past_shared", "unwritten_shared"),
)


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    for mode in ("plain", "count", *dict.fromkeys(MODES.values())):
        emulator.prebuild([(GRID, name) for name in (*RIGHT, *WRONG)], mode=mode)


def launch(name: str, blocks: int, threads: int, *args: Any, shared: int = 0) -> None:
    emulator.launch(GRID, name, (blocks,), (threads,), args, shared, cooperative=True)


def counters() -> emulator.EmulatedArray:
    return emulator.zeros(8, np.uint32)


def whole_numbers(blocks: int, threads: int) -> NDArray[np.int32]:
    return np.random.default_rng(blocks).integers(-9, 9, (blocks, threads)).astype(np.int32)


def rotated(x: NDArray[np.int32], rounds: int) -> NDArray[np.int32]:
    for _ in range(rounds):
        x = x + 2 * np.roll(x, -1, axis=0)
    return x


def line_of(mark: str) -> str:
    lines = GRID.read_text().splitlines()
    (number,) = [i for i, line in enumerate(lines, 1) if line.endswith(f"// FAULT {mark}")]
    return f"grid.cu:{number}"


# ---- right kernels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("blocks", [1, 2, 5, 67])
def test_blocks_see_what_others_wrote_before_the_barrier(blocks: int, order: str) -> None:
    x0, counter = whole_numbers(blocks, 64), counters()
    for _ in range(2):  # the counter is fit for use again
        x = emulator.asarray(x0)
        with emulator.settings(order=order, seed=blocks):
            launch("rotate<true>", blocks, 64, x, counter, np.int32(7))
        np.testing.assert_array_equal(x, rotated(x0, 7))
    np.testing.assert_array_equal(counter, 0)  # an even number of barriers has passed


def test_every_block_has_shared_memory_of_its_own() -> None:
    x0 = whole_numbers(5, 64)
    for order in ORDERS:
        x = emulator.asarray(x0)
        with emulator.settings(order=order, seed=1):
            launch("rotate_shared", 5, 64, x, counters(), np.int32(4), shared=256)
        np.testing.assert_array_equal(x, rotated(x0, 4)[:, ::-1] + x0[:, :1])


def test_the_same_by_the_portable_switch_of_stacks() -> None:
    x0 = whole_numbers(5, 64)
    x = emulator.asarray(x0)
    kernel = CompiledKernel(GRID, "rotate_shared", "ucontext")
    kernel((5,), (64,), (x, counters(), np.int32(3)), 256, cooperative=True)
    np.testing.assert_array_equal(x, rotated(x0, 3)[:, ::-1] + x0[:, :1])


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
def test_no_search_accuses_a_right_kernel(search: str, order: str) -> None:
    x0 = whole_numbers(5, 64)
    with emulator.settings(order=order, seed=4, copies="random"), searching(search):
        x = emulator.asarray(x0)
        launch("rotate<true>", 5, 64, x, counters(), np.int32(3))
        np.testing.assert_array_equal(x, rotated(x0, 3))
        x = emulator.asarray(x0)
        launch("rotate_shared", 5, 64, x, counters(), np.int32(3), shared=256)
        np.testing.assert_array_equal(x, rotated(x0, 3)[:, ::-1] + x0[:, :1])
        y, between = emulator.empty(4), emulator.empty(16)
        launch("gather_sums", 4, 32, emulator.arange(16, dtype=np.float32), between, y, counters())
        np.testing.assert_array_equal(y, 120 + np.arange(4))
        sums = emulator.zeros(6, np.int32)
        launch("pairs_then_all", 6, 32, emulator.empty(6, np.int32), sums, counters())
        np.testing.assert_array_equal(sums, 2 * 21)


def test_barriers_and_traffic_are_counted() -> None:
    x = emulator.asarray(whole_numbers(5, 64))
    with counting() as (launches):
        launch("rotate<true>", 5, 64, x, counters(), np.int32(3))
        launch("rotate_shared", 5, 64, x, counters(), np.int32(3), shared=256)
    for counts in launches:
        assert counts.collectives["grid_barrier"] == 2 * 3
        assert counts.barriers == 5 * 2 * 3 * 2  # two block barriers a block and grid barrier
        assert counts.distinct["x", "load"] == counts.distinct["x", "store"] == x.nbytes
        loads = sum(p.lanes for p in counts.places if (p.buffer, p.access) == ("x", "load"))
        assert loads == 5 * 64 * (6 if counts.expression.startswith("rotate<") else 3 + 1) + (
            0 if counts.expression.startswith("rotate<") else 5
        )
    shared = [p for p in launches[1].places if p.buffer == "shared memory"]
    assert shared
    assert all(p.wavefronts == p.least_wavefronts for p in shared)


def test_requests_end_at_the_barriers_of_their_own_block() -> None:
    x, y = emulator.asarray(whole_numbers(3, 64)), emulator.zeros((3, 64), np.int32)
    with counting() as launches:
        launch("by_turns", 3, 64, x, y, counters(), np.int32(6))
    np.testing.assert_array_equal(y, 3 * np.asarray(x))
    requests = {p.access: p.requests for p in launches[0].places if p.buffer in "xy"}
    assert requests == {"load": 3 * 2 * 6, "store": 3 * 2}  # blocks, warps, turns


def test_many_threads_at_once() -> None:
    x0 = whole_numbers(256, 256)
    x = emulator.asarray(x0)
    launch("rotate<true>", 256, 256, x, counters(), np.int32(2))
    np.testing.assert_array_equal(x, rotated(x0, 2))
    with pytest.raises(emulator.EmulatorError, match=r"264 x 256 threads: the emulator runs up to 65536 at"):
        launch("rotate<true>", 264, 256, emulator.zeros((264, 256), np.int32), counters(), np.int32(2))


# ---- planted faults --------------------------------------------------------------------------------------


def message(name: str, *args: Any, blocks: int = 4, shared: int = 0, fault: str = "synchronisation") -> str:
    """The error of a launch, after which a right one must still run."""
    with pytest.raises(emulator.EmulatorError) as caught:
        launch(name, blocks, 32, *args, shared=shared)
    assert caught.value.fault == fault
    x0 = whole_numbers(3, 32)
    x = emulator.asarray(x0)
    launch("rotate<true>", 3, 32, x, counters(), np.int32(1))
    np.testing.assert_array_equal(x, rotated(x0, 1))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("order", ORDERS)
def test_a_block_that_leaves_early(order: str) -> None:
    with emulator.settings(order=order):
        text = message("leaves_early", emulator.zeros(4, np.int32), counters())
    assert f"deadlock of the grid: 3 of 4 blocks wait in grid_barrier at {line_of('leaves_early')}" in text
    assert text.endswith("block (3,0,0) has returned")


@pytest.mark.parametrize("order", ORDERS)
def test_blocks_at_different_barriers(order: str) -> None:
    with emulator.settings(order=order):
        text = message("waits_elsewhere", emulator.zeros(4, np.int32), counters())
        one, other = (line_of(f"waits_elsewhere{word}") for word in ("", " other"))
        assert re.search(
            rf"deadlock of the grid: [13] of 4 blocks wait in grid_barrier at ({one}|{other})", text
        )
        assert f"grid_barrier at {one}" in text
        assert f"grid_barrier at {other}" in text
        text = message("divergent", emulator.zeros(4, np.int32), counters())
        assert "divergent barrier of the grid" in text
        assert line_of("divergent one") in text
        assert line_of("divergent other") in text


def test_a_thread_that_stays_away_from_its_blocks_barrier() -> None:
    text = message("thread_stays_away", emulator.zeros(4, np.int32), counters())
    assert "returned while" in text or "threads returned" in text
    assert line_of("thread_stays_away") in text


def test_a_wrong_number_of_blocks() -> None:
    text = message("wrong_count", emulator.zeros(4, np.int32), counters())
    assert f"4 of 4 blocks wait in grid_barrier at {line_of('wrong_count')}" in text
    assert "is its counter 0 at first" in text


def test_a_launch_that_is_not_cooperative() -> None:
    args = (emulator.zeros((3, 32), np.int32), counters(), np.int32(1))
    with pytest.raises(
        emulator.EmulatorError, match=r"grid_barrier at grid.cu:\d+ .* launch it with cooperative=True"
    ):
        emulator.launch(GRID, "rotate<true>", (3,), (32,), args)
    emulator.launch(GRID, "rotate<true>", (1,), (32,), args)  # one block is always there


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
def test_a_missing_barrier_is_a_race(order: str) -> None:
    with emulator.settings(order=order, seed=2), searching("races"):
        args = (emulator.asarray(whole_numbers(4, 32)), counters(), np.int32(3))
        text = message("rotate<false>", *args, fault="races")
        assert "nothing orders the two blocks" in text
        text = message(
            "unfenced", emulator.empty(4, np.int32), emulator.empty(4, np.int32), counters(), fault="races"
        )
        assert "reads x[" in text
        assert "nothing orders the two blocks" in text


def test_a_missing_barrier_shows_in_the_result() -> None:
    x0, seen = whole_numbers(4, 32), set()
    for seed in range(5):
        x = emulator.asarray(x0)
        with emulator.settings(order="random", seed=seed):
            launch("rotate<false>", 4, 32, x, counters(), np.int32(3))
        seen.add(x.tobytes())
    assert seen != {rotated(x0, 3).tobytes()}


@pytest.mark.parametrize("search", ["memory", "races", "initialisation"])
def test_the_end_of_a_blocks_shared_memory(search: str) -> None:
    with searching(search):
        text = message("past_shared", emulator.empty(4, np.int32), counters(), shared=16, fault="memory")
    assert (
        "thread (0,0,0) of block (1,0,0) writes 4 bytes, just past the end of dynamic shared memory" in text
    )
    assert text.endswith(line_of("past_shared"))


def test_shared_memory_that_another_block_wrote_is_unwritten() -> None:
    with searching("initialisation"):
        text = message("unwritten_shared", emulator.empty(128), counters(), fault="initialisation")
    assert "of block (1,0,0) reads s (shared, byte" in text
    assert f"at {line_of('unwritten_shared')}, which nobody wrote" in text


# ---- residency -------------------------------------------------------------------------------------------


def test_a_grid_above_residency_is_refused() -> None:
    args = (emulator.zeros((9, 1024), np.int32), counters(), np.int32(1))
    with emulator.settings(arch="sm_89", sms=8):  # 1536 threads a multiprocessor: one block of 1024
        launch("rotate<true>", 8, 1024, *args)
        with pytest.raises(
            emulator.EmulatorError,
            match=r"cooperative grid of 9 blocks: 8 multiprocessors of sm_89 hold 1 each at a time, 8 in all",
        ):
            launch("rotate<true>", 9, 1024, *args)
    with emulator.settings(arch="sm_90", sms=5):
        launch("rotate<true>", 9, 1024, *args)


@pytest.mark.parametrize(
    ("arch", "threads", "shared", "blocks"),
    [
        ("sm_75", 256, 0, 4),
        ("sm_75", 32, 0, 16),
        ("sm_80", 256, 0, 8),
        ("sm_80", 256, 81 * 1024, 2),  # with 1 KB reserved a block, 164 KB hold two
        ("sm_80", 256, 81 * 1024 + 1, 1),
        ("sm_86", 256, 99 * 1024, 1),
        ("sm_90", 33, 0, 32),
        ("sm_90", 96, 0, 21),
    ],
)
def test_resident_blocks(arch: str, threads: int, shared: int, blocks: int) -> None:
    assert resident_blocks(arch, threads, shared) == blocks <= BLOCKS_PER_SM[arch]
