"""Each planted fault is reported with its kernel, its kind and its line, in one line; the process goes on."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from emulator_sources import FAULTS, ORDERS, line_of

from handgrad import emulator

NAMES = re.findall(r"(?<!>\n)^__global__ void (\w+)\(", FAULTS.read_text(), re.MULTILINE)


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    emulator.prebuild((FAULTS, name) for name in NAMES)


def message(name: str, *args: Any, block: int = 32, order: str = "forward") -> str:
    """The error of a launch, after which another kernel must still run."""
    with emulator.settings(order=order, seed=5):
        with pytest.raises(emulator.EmulatorError) as caught:
            emulator.launch(FAULTS, name, (2,), (block,), args, 0)
        x = emulator.zeros(32)
        emulator.launch(FAULTS, "store_through", (1,), (32,), (x,), 0)
    np.testing.assert_array_equal(x, 1)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"faults.cu: {name}: ")
    return text


def floats() -> emulator.EmulatedArray:
    return emulator.zeros(64)


@pytest.mark.parametrize("order", ORDERS)
def test_divergent_barrier_names_both_lines(order: str) -> None:
    text = message("divergent_barrier", floats(), order=order)
    assert "divergent barrier in block (" in text
    assert f"__syncthreads at {line_of('divergent_barrier first')}" in text
    assert f"__syncthreads at {line_of('divergent_barrier second')}" in text


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("name", "more"), [("barrier_in_branch", ()), ("return_before_barrier", (np.int32(8),))]
)
def test_thread_that_returned_while_others_wait(name: str, more: tuple[Any, ...], order: str) -> None:
    text = message(name, floats(), *more, order=order)
    assert f"__syncthreads at {line_of(name)}" in text
    assert re.search(
        r"returned while \d+ threads wait in|reached by thread .* after \d+ threads returned", text
    )


@pytest.mark.parametrize("order", ORDERS)
def test_lane_outside_its_mask(order: str) -> None:
    text = message("lane_outside_mask", floats(), order=order)
    assert f"__shfl_xor_sync at {line_of('lane_outside_mask')}: lane " in text
    assert "is not in its own mask 0x0000ffff" in text


@pytest.mark.parametrize("order", ORDERS)
def test_lanes_that_do_not_exist(order: str) -> None:
    text = message("missing_lanes", floats(), block=48, order=order)
    assert f"__shfl_down_sync at {line_of('missing_lanes')}: mask 0xffffffff" in text
    assert "names lanes that do not exist: warp 1 of block" in text
    assert text.endswith("has 16 lanes")


@pytest.mark.parametrize("order", ORDERS)
def test_lane_that_has_returned(order: str) -> None:
    text = message("returned_lane", floats(), np.int32(16), order=order)
    assert f"__shfl_down_sync at {line_of('returned_lane')}" in text
    assert re.search(r"returned while thread \S+ waits for it|lane \d+ in mask .* has already returned", text)


@pytest.mark.parametrize("order", ORDERS)
def test_warp_at_different_collectives(order: str) -> None:
    text = message("warp_divergence", floats(), order=order)
    assert "warp divergence in block (" in text
    assert f"__shfl_xor_sync at {line_of('warp_divergence first')} with mask 0xffffffff" in text
    assert f"__syncwarp at {line_of('warp_divergence second')} with mask 0xffffffff" in text


@pytest.mark.parametrize("order", ORDERS)
def test_two_lanes_at_different_collectives(order: str) -> None:
    text = message("warp_divergence_of_two", floats(), order=order)
    assert "warp divergence in block (" in text
    assert "thread (3,0,0)" in text
    assert "thread (7,0,0)" in text
    assert f"__syncwarp at {line_of('warp_divergence_of_two first')}" in text
    assert f"__shfl_xor_sync at {line_of('warp_divergence_of_two second')}" in text


@pytest.mark.parametrize("order", ORDERS)
def test_masks_that_overlap_in_part(order: str) -> None:
    text = message("masks_differ", emulator.zeros(64, np.int32), order=order)
    place = f"__ballot_sync at {line_of('masks_differ')}"
    returned = f"waits for it in {place} (mask 0xffffffff)" in text  # lanes 16 to 31 were done with theirs
    assert returned or (f"{place} with mask 0xffffffff" in text and f"{place} with mask 0xffff0000" in text)
    text = message("masks_overlap", emulator.zeros(64, np.int32), order=order)
    assert "warp divergence in block (" in text
    assert f"__ballot_sync at {line_of('masks_overlap')} with mask 0x00000003" in text
    assert f"__ballot_sync at {line_of('masks_overlap')} with mask 0xffffffff" in text


@pytest.mark.parametrize("order", ORDERS)
def test_deadlock_names_both_places(order: str) -> None:
    text = message("deadlock", floats(), order=order)
    assert "deadlock in block (" in text
    assert f"__shfl_xor_sync at {line_of('deadlock shuffle')}" in text
    assert f"__syncthreads at {line_of('deadlock barrier')}" in text


def test_misaligned_vector_access() -> None:
    text = message("misaligned", floats(), np.int32(1))
    assert "misaligned 16-byte access to address 0x" in text
    assert text.endswith(f"by thread (0,0,0) of block (0,0,0) at {line_of('misaligned')}")
    emulator.launch(FAULTS, "misaligned", (1,), (32,), (floats(), np.int32(4)), 0)


def test_wait_for_what_never_comes() -> None:
    text = message("endless_wait", emulator.zeros(1, np.uint32))
    assert "no progress in block (0,0,0): thread (1,0,0) repeats atomicAdd at " in text
    assert f"{line_of('endless_wait')} without end" in text


def test_failed_assertion() -> None:
    text = message("failed_assertion", floats() - 1)
    assert "assertion `x[threadIdx.x] >= 0` failed by thread (0,0,0) of block (0,0,0) at " in text
    assert text.endswith(line_of("failed_assertion"))


def test_trap() -> None:
    assert f"__trap by thread (0,0,0) of block (0,0,0) at {line_of('trap')}" in message("trap", floats() - 1)


def test_hardware_faults_do_not_end_the_process() -> None:
    text = message("store_through", None)
    assert text.endswith("access to invalid address 0x0 (a null pointer) by thread (0,0,0) of block (0,0,0)")
    text = message("misaligned_unchecked", floats())
    assert text.endswith(
        "misaligned access, or one to an invalid address, by thread (0,0,0) of block (0,0,0)"
    )
    text = message("divide", emulator.zeros(64, np.int32), np.int32(0))
    assert text.endswith("integer division by zero in thread (0,0,0) of block (0,0,0)")
    text = message("deep_stack", floats(), np.int32(3))
    assert text.endswith("thread (0,0,0) of block (0,0,0) needs more than 64 KB of stack")


def test_shuffle_from_a_lane_outside_the_mask_gives_nan() -> None:
    x = floats()
    emulator.launch(FAULTS, "read_outside_mask", (1,), (32,), (x,), 0)
    assert np.isnan(x[:16]).all()


@pytest.mark.parametrize("written", [0, 5])
def test_shared_memory_starts_as_nan_in_every_block(written: int) -> None:
    for _ in range(2):  # the second launch must not see what the first wrote
        from_static, from_dynamic = floats(), emulator.zeros(64, np.float64)
        arguments = (from_static, from_dynamic, np.int32(written))
        emulator.launch(FAULTS, "uninitialised", (3,), (64,), arguments, 64 * 8)
        for array in (from_static, from_dynamic):
            np.testing.assert_array_equal(array[:written], 1)
            assert np.isnan(array[written:]).all()
