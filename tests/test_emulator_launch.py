"""A launch is typed, and stays within the limits of the architecture."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulator_sources import CORRECT, FAULTS

from handgrad import emulator
from handgrad.emulator.launch import launch_filled, launch_through

SHARED = {
    "sm_75": 64,
    "sm_80": 163,
    "sm_86": 99,
    "sm_89": 99,
    "sm_90": 227,
    "sm_100": 227,
    "sm_120": 99,
}  # KB


def x32() -> emulator.EmulatedArray:
    return emulator.zeros(64)


def read_only() -> emulator.EmulatedArray:
    array = x32()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((x32(),), "takes 2 arguments, got 1"),
        ((x32(), np.int32(0), None), "takes 2 arguments, got 3"),
        ((x32(), 4), "argument 1 (offset): expected int32, got a bare Python int; pass numpy.int32(...)"),
        ((x32(), np.float32(4)), "argument 1 (offset): expected int32, got a scalar of float32"),
        ((x32(), np.int64(4)), "argument 1 (offset): expected int32, got a scalar of int64"),
        ((x32(), x32()), "argument 1 (offset): expected int32, got an emulated array of float32"),
        (
            (emulator.zeros(64, np.float64), np.int32(4)),
            "argument 0 (x): expected float32*, got an emulated array of float64; convert it with .astype('",
        ),
        (
            (np.zeros(64, np.float32), np.int32(4)),
            "argument 0 (x): expected float32*, got a NumPy array of float32; pass an emulated array or None",
        ),
        ((np.float32(1), np.int32(4)), "argument 0 (x): expected float32*, got a scalar of float32"),
        (
            (emulator.zeros(128)[::2], np.int32(4)),
            "argument 0 (x): expected float32*, got an array of strides (8,) that is not contiguous",
        ),
        ((read_only(), np.int32(4)), "argument 0 (x): expected float32*, got a read-only array; pass a copy"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(
        TypeError, match=re.escape(f"faults.cu: misaligned{' ' if 'takes' in message else ': '}{message}")
    ):
        emulator.launch(FAULTS, "misaligned", (1,), (1,), args, 0)


def test_pointers_to_const_take_read_only_arrays() -> None:
    x, partial = read_only(), x32()
    emulator.launch(CORRECT, "block_sum<float>", (1,), (32,), (x, partial, np.int32(x.size)), 4)
    assert partial[0] == 0


def test_views_pass_their_own_address() -> None:
    x = x32()
    emulator.launch(FAULTS, "store_through", (1,), (8,), (x[16:],), 0)
    np.testing.assert_array_equal(x, [0] * 16 + [1] * 8 + [0] * 40)


@pytest.mark.parametrize(
    ("grid", "block", "message"),
    [
        ((0,), (32,), "grid (0, 1, 1): sm_80 allows sizes from 1 to (2147483647, 65535, 65535)"),
        ((1, 0), (32,), "grid (1, 0, 1)"),
        ((1, 65536), (32,), "grid (1, 65536, 1)"),
        ((1, 1, 65536), (32,), "grid (1, 1, 65536)"),
        ((2**31,), (32,), "grid (2147483648, 1, 1)"),
        ((1,), (0,), "block (0, 1, 1): sm_80 allows sizes from 1 to (1024, 1024, 64)"),
        ((1,), (-1,), "block (-1, 1, 1)"),
        ((1,), (1025,), "block (1025, 1, 1)"),
        ((1,), (1, 1, 65), "block (1, 1, 65)"),
        ((1,), (32, 33), "block (32, 33, 1) has 1056 threads: sm_80 allows 1024"),
        ((1, 1, 1, 1), (32,), "grid (1, 1, 1, 1): expected 1 to 3 sizes"),
        ((), (32,), "grid (): expected 1 to 3 sizes"),
    ],
)
def test_geometry_outside_the_limits(grid: tuple[int, ...], block: tuple[int, ...], message: str) -> None:
    with pytest.raises(emulator.EmulatorError, match=re.escape(f"faults.cu: store_through: {message}")):
        emulator.launch(FAULTS, "store_through", grid, block, (x32(),), 0)


@pytest.mark.parametrize("arch", SHARED)
def test_shared_memory_limit_of_each_architecture(arch: str) -> None:
    limit = SHARED[arch] * 1024
    used = 4 * 128  # static
    arguments = (emulator.zeros(512), emulator.zeros(128))
    with emulator.settings(arch=arch):
        emulator.launch(FAULTS, "reused_tile<true>", (1,), (32,), arguments, limit - used)
        expected = (
            f"{used} + {limit - used + 1} bytes of static and dynamic shared memory: {arch} allows a block"
        )
        with pytest.raises(emulator.EmulatorError, match=re.escape(f"{expected} {limit}")):
            emulator.launch(FAULTS, "reused_tile<true>", (1,), (32,), arguments, limit - used + 1)


def test_static_shared_memory_limit() -> None:
    with pytest.raises(
        emulator.EmulatorError, match="65536 bytes of static shared memory: CUDA allows 49152"
    ):
        emulator.launch(FAULTS, "large_static", (1,), (32,), (x32(),), 0)


@pytest.mark.parametrize(("threads", "fits"), [(64, True), (65, False)])
def test_launch_bounds(threads: int, fits: bool) -> None:
    x = emulator.zeros(65)
    if fits:
        emulator.launch(FAULTS, "bounded<32>", (1,), (threads,), (x,), 0)
        np.testing.assert_array_equal(x, [1] * 64 + [0])
    else:
        with pytest.raises(emulator.EmulatorError, match="has 65 threads: its __launch_bounds__ allow 64"):
            emulator.launch(FAULTS, "bounded<32>", (1,), (threads,), (x,), 0)


def test_a_block_may_have_to_fill_its_launch_bounds() -> None:
    x = emulator.zeros(65)
    with launch_through(launch_filled):
        emulator.launch(FAULTS, "bounded<32>", (1,), (64,), (x,), 0)
        np.testing.assert_array_equal(x, [1] * 64 + [0])
        with pytest.raises(
            emulator.EmulatorError, match="has 63 threads: its __launch_bounds__ say 64; make"
        ):
            emulator.launch(FAULTS, "bounded<32>", (1,), (63,), (x,), 0)
        emulator.launch(FAULTS, "store_through", (1,), (7,), (x,), 0)  # none given


def test_launches_from_several_python_threads_take_turns() -> None:
    arrays = [x32() for _ in range(8)]

    def launch(array: emulator.EmulatedArray) -> None:
        for _ in range(50):
            emulator.launch(FAULTS, "store_through", (4,), (64,), (array,), 0)

    threads = [threading.Thread(target=launch, args=(array,)) for array in arrays]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for array in arrays:
        np.testing.assert_array_equal(array, 1)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"arch": "sm_70"}, "arch: expected one of sm_75, sm_80, .*, got 'sm_70'"),
        ({"order": "sideways"}, "order: expected one of forward, reverse, lifo, random, got 'sideways'"),
        ({"seed": -1}, "seed: expected an integer from 0 .*, got -1"),
    ],
)
def test_settings_are_checked(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message), emulator.settings(**chosen):
        pass


def test_settings_nest_and_end() -> None:
    outside = emulator.current_settings()
    with emulator.settings(arch="sm_90", seed=3):
        with emulator.settings(order="reverse") as inner:
            assert emulator.current_settings() == inner == emulator.Settings("sm_90", "reverse", 3)
        assert emulator.current_settings().order == outside.order
    assert emulator.current_settings() == outside


def test_the_runtime_header_brings_the_names_of_math_h(tmp_path: Path) -> None:
    source = tmp_path / "names.cu"
    source.write_text(
        "#include <cuda_runtime.h>\n"
        "__global__ void names(double* y) {\n"
        "  y[0] = -INFINITY; y[1] = NAN; y[2] = M_PI; y[3] = fmax(sqrt(4.0), isnan(y[1]) ? 3.0 : 0.0);\n"
        "}\n"
    )
    y = emulator.zeros(4, np.float64)
    emulator.launch(source, "names", (1,), (1,), (y,), 0)
    np.testing.assert_array_equal(np.asarray(y), [-np.inf, np.nan, np.pi, 3])
