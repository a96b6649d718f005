"""Emulated arrays: NumPy arrays of another type, aligned, poisoned where empty."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from handgrad import emulator
from handgrad.arrays import get_array_module, to_numpy
from handgrad.emulator import EmulatedArray


def test_array_module_is_the_emulator() -> None:
    array = emulator.zeros(3)
    assert get_array_module(array) is emulator
    assert emulator.ndarray is EmulatedArray
    assert type(to_numpy(array)) is np.ndarray
    assert np.shares_memory(to_numpy(array), array)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_empty_floats_are_nan(dtype: type) -> None:
    assert np.isnan(emulator.empty((3, 5), dtype)).all()
    assert np.isnan(emulator.empty_like(emulator.zeros(4, dtype))).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
def test_empty_integers_are_poisoned(dtype: type) -> None:
    assert set(emulator.empty((3, 5), dtype).tobytes()) == {0xCD}


@pytest.mark.parametrize(
    "array",
    [
        emulator.empty(7),
        emulator.zeros((3, 5), np.uint8),
        emulator.full(3, 2.5),
        emulator.ones(()),
        emulator.asarray([1, 2, 3]),
        emulator.arange(10)[1:].copy(),
        emulator.ascontiguousarray(emulator.arange(10)[::2]),
        copy.deepcopy(emulator.arange(10)),
    ],
)
def test_arrays_are_aligned_and_contiguous(array: EmulatedArray) -> None:
    assert type(array) is EmulatedArray
    assert array.ctypes.data % 256 == 0
    assert array.flags.c_contiguous
    assert array.flags.writeable


def test_values() -> None:
    np.testing.assert_array_equal(emulator.full((2, 2), 7, np.int32), np.full((2, 2), 7))
    assert emulator.full(2, 7.5).dtype == np.float64
    np.testing.assert_array_equal(emulator.arange(2, 8, 2, dtype=np.float32), [2, 4, 6])
    np.testing.assert_array_equal(emulator.zeros_like(emulator.full(3, 4, np.int8)), np.zeros(3, np.int8))
    assert emulator.zeros(3).dtype == np.float32
    assert emulator.empty((0, 4)).shape == (0, 4)


def test_asarray_copies_from_the_host_and_not_on_the_device() -> None:
    host = np.arange(6.0)
    array = emulator.asarray(host)
    host[0] = 99
    assert array[0] == 0
    assert emulator.asarray(array) is array
    assert emulator.asarray(array, np.float32) is not array
    assert emulator.ascontiguousarray(array) is array


def test_views_arithmetic_and_copies_stay_emulated() -> None:
    array = emulator.arange(12, dtype=np.float32).reshape(3, 4)
    for result in (array[1:], array.T, array[:, 0], array + 1, 2 * array, np.exp(array), array.copy()):
        assert type(result) is EmulatedArray
    assert float(array.sum()) == 66
    array[0] += 1
    np.testing.assert_array_equal(array[0], [1, 2, 3, 4])


def test_pickle_and_copy() -> None:
    array = emulator.arange(5, dtype=np.float32)
    for twin in (pickle.loads(pickle.dumps(array)), copy.copy(array), copy.deepcopy(array)):
        assert type(twin) is EmulatedArray
        np.testing.assert_array_equal(twin, array)
        assert not np.shares_memory(twin, array)


def test_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="dtype: expected numbers, got object"):
        emulator.empty(3, object)
