"""Batches by index against one row after the other, for every pair of types."""

import numpy as np
import pytest
from devices import DEVICES

from handgrad import emulator
from handgrad.arrays import to_device, to_numpy
from handgrad.kernel import kernels_directory
from handgrad.ops import batch
from handgrad.ops.batch import PAIRS, gather

EPS = {"float32": 2.0**-23, "float64": 2.0**-52}
ROWS = 20

devices = pytest.mark.parametrize("device", DEVICES)
pairs = pytest.mark.parametrize(("source", "target"), PAIRS)


@pytest.fixture(scope="module", autouse=True)
def built():
    source = kernels_directory() / "batch.cu"
    emulator.prebuild((source, text) for entry in batch.CATALOGUE for text in entry.expressions)


def drawn(source, *shape):
    rng = np.random.default_rng(1)
    return (255 * rng.random(size=shape)).astype(source)


def order(*rows, device="cpu"):
    return to_device(np.array(rows, np.int32), device)


@devices
@pairs
@pytest.mark.parametrize("D", [1, 3, 4, 16, 37, 784])
def test_rows_are_picked(device, source, target, D):
    X = drawn(source, ROWS, D)
    picked = (3, 0, 19, 3, 7, 7, 1, 18, 2, 11)
    out = gather(to_device(X, device), order(*picked, device=device), dtype=target)
    assert out.dtype == target
    np.testing.assert_array_equal(to_numpy(out), np.stack([X[i] for i in picked]).astype(target))


@devices
@pytest.mark.parametrize(("source", "target"), [pair for pair in PAIRS if pair[1] != "int32"])
@pytest.mark.parametrize(("scale", "shift"), [(1 / 255, 0.0), (2 / 255, -1.0), (1.0, 0.5)])
def test_rows_are_scaled_and_shifted(device, source, target, scale, shift):
    X = drawn(source, ROWS, 12)
    out = gather(to_device(X, device), order(5, 4, device=device), scale=scale, shift=shift, dtype=target)
    for place in np.ndindex(2, 12):
        value = float(X[5 - place[0], place[1]])
        tolerance = 2 * EPS[target] * (abs(value * scale) + abs(shift))
        assert float(to_numpy(out)[place]) == pytest.approx(value * scale + shift, rel=0, abs=tolerance)


@devices
@pytest.mark.parametrize("shape", [(), (2, 5), (3, 1, 4)])
def test_samples_of_any_shape(device, shape):
    """Labels are numbers, images may be matrices."""
    X = drawn("float32", ROWS, *shape)
    out = gather(to_device(X, device), order(9, 1, 9, device=device))
    assert out.dtype == np.float32
    np.testing.assert_array_equal(to_numpy(out), X[[9, 1, 9]])


@devices
def test_results_go_where_they_are_wanted(device):
    X = drawn("uint8", ROWS, 6)
    out = to_device(np.full((2, 6), np.nan, np.float32), device)
    assert gather(to_device(X, device), order(2, 3, device=device), out, 0.5, dtype="float32") is out
    np.testing.assert_array_equal(to_numpy(out), X[2:4] / 2)


@devices
def test_nothing_picked(device):
    X = to_device(drawn("uint8", ROWS, 6), device)
    assert gather(X, order(device=device), dtype="float32").shape == (0, 6)
    empty = gather(to_device(np.zeros((3, 0), np.float32), device), order(0, 2, device=device))
    assert empty.shape == (2, 0)


@devices
@pytest.mark.parametrize("start", [0, 1])
def test_views_off_the_boundary_and_orders_with_gaps(device, start):
    flat = drawn("float32", ROWS * 8 + 1)
    X = to_device(flat, device)[start : start + ROWS * 8].reshape(ROWS, 8)
    wide = to_device(np.array([4, 99, 2, 99, 0, 99], np.int32), device)[::2]
    out = gather(X, wide)
    np.testing.assert_array_equal(to_numpy(out), flat[start : start + ROWS * 8].reshape(ROWS, 8)[[4, 2, 0]])


# ---- mistakes of the caller ------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "emulator"])
@pytest.mark.parametrize("row", [-1, ROWS, 10**6])
def test_a_row_that_is_not_there(device, row):
    X = to_device(drawn("float32", ROWS, 3), device)
    with pytest.raises(IndexError, match=rf"batch.gather: order has row numbers outside 0 \.\. {ROWS - 1}"):
        gather(X, order(0, row, device=device))


@devices
def test_the_result_has_to_fit(device):
    X, rows = to_device(drawn("uint8", ROWS, 3), device), order(0, 1, device=device)
    with pytest.raises(
        ValueError, match=r"batch.gather: out must have shape of the result = \(2, 3\), got \(3, 3\)"
    ):
        gather(X, rows, to_device(np.zeros((3, 3), np.float32), device), dtype="float32")
    with pytest.raises(TypeError, match=r"batch\.gather: out must be float32, got float64"):
        gather(X, rows, to_device(np.zeros((2, 3)), device), dtype="float32")
    with pytest.raises(ValueError, match=r"batch\.gather: out must be C-contiguous"):
        gather(X, rows, to_device(np.zeros((3, 2), np.float32), device).T, dtype="float32")


def test_what_the_kernel_does_not_take():
    rows = order(0, 1, device="emulator")
    X = emulator.asarray(drawn("float32", ROWS, 6))
    with pytest.raises(TypeError, match=r"batch\.gather: X of float32 into int32 is not one of"):
        gather(X, rows, dtype="int32")
    with pytest.raises(TypeError, match=r"batch\.gather: order must be int32 on a device, got int64"):
        gather(X, rows.astype(np.int64))
    with pytest.raises(ValueError, match=r"batch\.gather: X must be C-contiguous on a device"):
        gather(X[:, ::2], rows)
    with pytest.raises(TypeError, match="arrays of two kinds in one call"):
        gather(X, np.array([0, 1], np.int32))
