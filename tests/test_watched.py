"""The emulator's searches: silent on correct kernels, exact about whose memory it is; asynchronous copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handgrad import emulator
from handgrad.emulator import EmulatorError
from handgrad.emulator.watched import MODES, SEARCHES, searching

SOURCE = Path(__file__).resolve().parent / "emulator_kernels" / "watched.cu"
NAMES = (
    *("bytes", "in_place", "parts_of_words", "histogram", "warp_tree", "handed_over", "padded_structure"),
    *("copied", "landed_early", "beyond", "overlapping"),
)


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    for mode in ("plain", *dict.fromkeys(MODES.values())):
        emulator.prebuild([(SOURCE, name) for name in NAMES], mode=mode)


def launch(name: str, grid: int, block: int, *args: Any) -> None:
    emulator.launch(SOURCE, name, (grid,), (block,), args, 0)


def in_every_search(name: str, grid: int, block: int, *args: Any) -> None:
    """Launch under each search and several orders; the arguments end as the first launch leaves them."""
    before = [np.array(arg) if isinstance(arg, np.ndarray) else None for arg in args]
    for search in SEARCHES:
        for order in ("forward", "reverse", "random"):
            for arg, values in zip(args, before, strict=True):
                if values is not None:
                    arg[...] = values
            with emulator.settings(order=order, seed=3, copies="random"), searching(search):
                launch(name, grid, block, *args)


def poisoned(shape: int, dtype: type = np.float32) -> emulator.EmulatedArray:
    return emulator.empty(shape, dtype)


def test_bytes_of_one_word_may_be_written_by_different_threads() -> None:
    x, y = emulator.arange(100, dtype=np.uint8), emulator.zeros(100, np.uint8)
    in_every_search("bytes", 2, 64, x, y, np.int32(100))
    np.testing.assert_array_equal(y, np.arange(1, 101))


def test_an_output_may_be_the_input() -> None:
    x = emulator.arange(100, dtype=np.float32)
    in_every_search("in_place", 2, 64, x, x, np.int32(100))
    np.testing.assert_array_equal(x, 2 * np.arange(100))


def test_words_and_their_halves() -> None:
    y = emulator.zeros(16, np.uint32)
    in_every_search("parts_of_words", 1, 32, y)
    np.testing.assert_array_equal(y.view(np.uint16)[::2], np.arange(0, 32, 2) + 1)


def test_atomics_then_a_barrier_then_reads() -> None:
    x = emulator.asarray(np.random.default_rng(0).integers(0, 8, 64), np.int32)
    y = poisoned(8, np.int32)
    in_every_search("histogram", 1, 64, x, y)
    np.testing.assert_array_equal(y, np.bincount(x, minlength=8))


def test_warp_barriers_order_lanes() -> None:
    x, y = emulator.arange(128, dtype=np.float32), poisoned(4)
    in_every_search("warp_tree", 1, 128, x, y)
    np.testing.assert_array_equal(y, np.arange(128).reshape(4, 32).sum(1))


def test_fences_on_both_sides_of_an_atomic_order_threads() -> None:
    x, flag = emulator.full(1, 7, np.int32), emulator.zeros(1, np.int32)
    value, y = poisoned(1, np.int32), poisoned(1, np.int32)
    in_every_search("handed_over", 1, 64, x, flag, value, y)
    assert y[0] == 7


def test_padding_of_a_structure_is_nobodys_fault() -> None:
    x, y = emulator.full(1, 2.0, np.float64), poisoned(32, np.float64)
    in_every_search("padded_structure", 1, 32, x, y)
    np.testing.assert_array_equal(y, 3)


@pytest.mark.parametrize("landing", ["late", "early", "random"])
@pytest.mark.parametrize("n", [192, 190, 129, 64, 1])
def test_asynchronous_copies_land_whole_with_zeros_behind(landing: str, n: int) -> None:
    x, y = emulator.arange(1, n + 1, dtype=np.float32), poisoned(192)
    with emulator.settings(copies=landing, order="random", seed=n):
        launch("copied", 1, 16, x, y, np.int32(n))
    np.testing.assert_array_equal(y, np.r_[np.arange(1, n + 1), np.zeros(192 - n)])
    in_every_search("copied", 1, 16, x, y, np.int32(n))


def test_copies_land_when_the_settings_say() -> None:
    x = emulator.full(4, 5.0, np.float32)
    seen = {}
    for landing in ("late", "early"):
        count = poisoned(2, np.int32)
        with emulator.settings(copies=landing):
            launch("landed_early", 1, 1, x, count)
        seen[landing] = count.tolist()
    assert seen == {"late": [0, 1], "early": [1, 1]}
    by_chance = set()
    for seed in range(20):
        count = poisoned(2, np.int32)
        with emulator.settings(copies="random", seed=seed):
            launch("landed_early", 1, 1, x, count)
        by_chance.add(int(count[0]))
    assert by_chance == {0, 1}


@pytest.mark.parametrize("n", [1, 300, -1])
def test_a_view_is_the_memory_that_a_kernel_was_given(n: int) -> None:
    """What lies beside it in the same buffer is not."""
    whole = emulator.zeros(1000)
    view = whole[400:432]
    with searching("memory"), pytest.raises(EmulatorError) as caught:
        launch("beyond", 1, 32, view, np.int32(n))
    assert caught.value.fault == "memory"
    text = str(caught.value)
    where = {
        1: "just past the end of y",
        300: "1072 bytes past the end of y",
        -1: "4 bytes before the start of y",
    }
    assert f"writes 4 bytes, {where[n]} (128 bytes), at watched.cu:" in text
    np.testing.assert_array_equal(whole, 0)
    with searching("memory"):
        launch("beyond", 1, 32, view, np.int32(0))
    np.testing.assert_array_equal(np.flatnonzero(whole), np.arange(400, 432))


def test_a_null_pointer_is_reported_by_name() -> None:
    with searching("memory"), pytest.raises(EmulatorError, match=r"a null pointer.* at watched\.cu:\d+$"):
        launch("beyond", 1, 32, None, np.int32(0))


def test_views_that_overlap_are_one_buffer() -> None:
    """y[i] = x[i + 1] in one buffer: a race; in two buffers: none."""
    whole = emulator.arange(34, dtype=np.float32)
    with searching("races"):
        launch("overlapping", 1, 32, whole[:33], emulator.zeros(32))
    with searching("races"), pytest.raises(EmulatorError) as caught:
        launch("overlapping", 1, 32, whole[:33], whole[:32])
    assert caught.value.fault == "races"
    assert "no __syncwarp or __syncthreads lies between" in str(caught.value)


def test_the_process_goes_on_after_a_finding() -> None:
    for _ in range(3):
        with searching("memory"), pytest.raises(EmulatorError):
            launch("beyond", 1, 32, emulator.zeros(4), np.int32(0))
        y = emulator.zeros(32)
        launch("beyond", 1, 32, y, np.int32(0))
        np.testing.assert_array_equal(y, 1)
