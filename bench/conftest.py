"""Timings of each op and of the step.  ``pytest bench --benchmark-group-by=param:device`` compares devices.

Every benchmark first compares its result with float64 NumPy.  The emulator runs small shapes: its times show
what the emulation costs, nothing about a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from handgrad.arrays import Device, cuda_problem, resolve_device, synchronize, to_device


def _devices() -> list[Any]:
    no_gpu = cuda_problem()
    return ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(bool(no_gpu), reason=no_gpu)), "emulator"]


@pytest.fixture(params=_devices())
def device(request: pytest.FixtureRequest) -> Device:
    """Each device in turn; skipped where it is not there."""
    try:
        return resolve_device(request.param)
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def put(device: Device) -> Callable[..., Any]:
    """``put(array)``: the array on the device, floats as float32."""

    def move(array: np.ndarray) -> Any:
        return to_device(array, device, dtype=np.float32 if array.dtype.kind == "f" else array.dtype)

    return move


@pytest.fixture
def measure(benchmark: Any, device: Device) -> Callable[..., None]:
    """``measure(call)``: time ``call()`` until the device is done with it."""

    def timed(call: Callable[[], Any]) -> None:
        xp = device.array_module

        def call_and_wait() -> None:
            call()
            synchronize(xp)

        with device:
            if device.kind == "emulator":
                benchmark.pedantic(call_and_wait, rounds=3, warmup_rounds=1)
            else:
                benchmark(call_and_wait)

    return timed
