"""The array-module switch: which module an array belongs to, moving arrays, choosing devices."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from stand_in_cupy import CUDARuntimeError, StandInArray

from handgrad import arrays, emulator
from handgrad.arrays import DeviceError, get_array_module, resolve_device, to_device, to_numpy

VALUES = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.float64(3.5),
    np.array(2.5),
    np.zeros((0, 4), np.uint8),
]


def emulated(values):
    return emulator.asarray(np.asarray(values))


def test_module_of_each_kind(cupy):
    assert get_array_module(np.ones(2)) is np
    assert get_array_module(cupy.asarray([1.0])) is cupy
    assert get_array_module(emulated([1.0])) is emulator


def test_scalars_and_none_fit_every_module(cupy):
    assert get_array_module() is np
    assert get_array_module(None, 1, 2.0, True, np.float32(1)) is np
    assert get_array_module(None, 1, np.float64(2), cupy.asarray([1.0])) is cupy
    assert get_array_module(emulated([1.0]), None, 3) is emulator


@pytest.mark.parametrize("swap", [False, True])
def test_mixtures_are_refused_and_the_message_names_both(cupy, swap):
    pair = [np.ones(2), cupy.asarray([1.0])]
    with pytest.raises(TypeError, match=r"two kinds in one call: .*numpy\.ndarray.*to_device|StandInArray"):
        get_array_module(*(reversed(pair) if swap else pair))
    with pytest.raises(TypeError, match=r"EmulatedArray.*numpy\.ndarray|numpy\.ndarray.*EmulatedArray"):
        get_array_module(*([np.ones(2), emulated([1.0])][:: -1 if swap else 1]))


@pytest.mark.parametrize("value", [[1.0, 2.0], "text", {"a": 1}, object()])
def test_other_types_are_refused_with_a_remedy(value):
    with pytest.raises(TypeError, match=r"expected a numpy, cupy or emulated array, got builtins.*asarray"):
        get_array_module(value)


@pytest.mark.parametrize("values", VALUES, ids=["matrix", "scalar", "0-d", "empty"])
@pytest.mark.parametrize("device", ["cpu", "cuda", "emulator"])
def test_round_trip(cupy, device, values):
    there = to_device(np.asarray(values), device)
    assert get_array_module(there) is resolve_device(device).array_module
    assert there.shape == np.shape(values)
    assert there.dtype == np.asarray(values).dtype
    back = to_numpy(there)
    assert type(back) is np.ndarray
    np.testing.assert_array_equal(back, values, strict=not isinstance(values, np.generic))


@pytest.mark.parametrize("dtype", [None, np.float32])
@pytest.mark.parametrize("device", ["cpu", "cuda", "emulator"])
def test_to_device_converts_the_dtype_and_makes_contiguous(cupy, device, dtype):
    strided = np.arange(12, dtype=np.float64).reshape(3, 4)[:, ::2]
    moved = to_device(strided, device, dtype=dtype)
    back = to_numpy(moved)
    assert back.flags.c_contiguous
    np.testing.assert_array_equal(back, strided.astype(dtype or np.float64), strict=True)


def test_to_device_copies_only_where_it_must():
    x = np.ones((2, 3), np.float32)
    assert np.shares_memory(to_device(x, "cpu"), x)
    already = emulated(x)
    assert np.shares_memory(to_device(already, "emulator"), already)


def test_to_device_goes_from_any_device_to_any(cupy):
    x = np.arange(3.0)
    on_gpu = to_device(emulated(x), "cuda")
    assert isinstance(on_gpu, StandInArray)
    np.testing.assert_array_equal(to_numpy(to_device(on_gpu, "emulator")), x)
    assert type(to_device(emulated(x), "cpu")) is np.ndarray


def test_to_device_makes_the_gpu_current(cupy):
    cupy.device_count = 2
    assert to_device(np.ones(2), "cuda:1").device.id == 1
    assert cupy.current == 0


def test_to_numpy_of_numbers_and_lists():
    assert to_numpy(2.5) == 2.5
    np.testing.assert_array_equal(to_numpy([1, 2]), [1, 2])


@pytest.mark.parametrize("value", [None, "text", object()])
def test_to_numpy_refuses_what_is_no_array(value):
    with pytest.raises(TypeError, match="expected"):
        to_numpy(value)


def test_auto_says_once_which_device_and_why(no_cupy, unannounced, capsys):
    assert resolve_device("auto").kind == "cpu"
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("handgrad: device cpu (CuPy is not installed; pip install 'handgrad[cuda13x]'")
    assert said.err.count("\n") == 1
    resolve_device("auto")
    assert capsys.readouterr().err == ""


def test_auto_takes_the_gpu_that_answers(cupy, unannounced, capsys):
    device = resolve_device("auto")
    assert (device.kind, device.index) == ("cuda", 0)
    assert capsys.readouterr().err == "handgrad: device cuda:0 (a GPU answers)\n"


def test_auto_falls_back_where_the_driver_is_missing(cupy, unannounced, capsys):
    cupy.device_count = CUDARuntimeError("cudaErrorInsufficientDriver: insufficient for CUDA runtime version")
    assert resolve_device("auto").kind == "cpu"
    assert "driver is missing or too old" in capsys.readouterr().err


@pytest.mark.usefixtures("no_cupy")
def test_cuda_without_cupy_names_the_extra():
    with pytest.raises(DeviceError, match=r"CuPy is not installed; pip install 'handgrad\[cuda13x\]'"):
        resolve_device("cuda")


@pytest.mark.parametrize("raises", ["ImportError", "OSError", "RuntimeError"])
def test_a_broken_cupy_is_as_good_as_none(monkeypatch, tmp_path, unannounced, raises):
    (tmp_path / "cupy.py").write_text(
        f"raise {raises}('libcublas.so.13: cannot open\\nshared object file')\n"
    )
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve_device("auto").kind == "cpu"
    expected = r"CuPy cannot be imported \(libcublas.so.13: cannot open shared object file\); pip install"
    with pytest.raises(DeviceError, match=expected):
        resolve_device("cuda")


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        ("cudaErrorInsufficientDriver: CUDA driver version is insufficient", "driver is missing or too old"),
        ("cudaErrorNoDevice: no CUDA-capable device is detected", "no NVIDIA GPU found.*--device cpu"),
    ],
)
def test_cuda_without_gpu_names_the_remedy(cupy, raised, expected):
    cupy.device_count = CUDARuntimeError(raised)
    with pytest.raises(DeviceError, match=expected) as error:
        resolve_device("cuda")
    assert "\n" not in str(error.value)


def test_a_gpu_that_is_not_there(cupy):
    cupy.device_count = 2
    assert str(resolve_device("cuda:1")) == "cuda:1"
    with pytest.raises(DeviceError, match=r"no GPU number 2: 2 present \(numbers 0 to 1\)"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "", 0, None])
def test_unknown_devices_are_refused(device):
    with pytest.raises(
        ValueError, match=r"device: expected 'auto', 'cpu', 'cuda', 'cuda:N' or 'emulator', got"
    ):
        resolve_device(device)


def test_a_device_passes_through():
    device = arrays.Device("cpu")
    assert resolve_device(device) is device
