"""The activations against Python's math module, number by number; derivatives against differences."""

import math

import numpy as np
import pytest
from devices import DEVICES

from handgrad import emulator
from handgrad.arrays import to_device, to_numpy
from handgrad.kernel import kernels_directory
from handgrad.ops import activation, checks
from handgrad.ops.activation import NAMES

pytestmark = pytest.mark.filterwarnings("error")

EPS = {"float32": 2.0**-23, "float64": 2.0**-52}
ROUNDINGS = 4  # each formula takes two or three, of exp, log1p and a division

FORMULAS = {
    "relu": lambda z: max(z, 0.0),
    "sigmoid": lambda z: 1 / (1 + math.exp(-z)),
    "tanh": math.tanh,
    "softplus": lambda z: math.log1p(math.exp(z)),
    "identity": lambda z: z,
}
KNOWN = (  # name, z, f(z), f'(z)
    ("relu", 2.5, 2.5, 1.0),
    ("relu", -2.5, 0.0, 0.0),
    ("relu", 0.0, 0.0, 0.0),
    ("sigmoid", 0.0, 0.5, 0.25),
    ("sigmoid", 2.0, 0.8807970779778823, 0.10499358540350662),
    ("tanh", 0.0, 0.0, 1.0),
    ("tanh", 1.0, 0.7615941559557649, 0.41997434161402614),
    ("softplus", 0.0, 0.6931471805599453, 0.5),
    ("softplus", -3.0, 0.04858735157374206, 0.04742587317756678),
    ("identity", -1.5, -1.5, 1.0),
)
FAR = {  # f(-1e4), f(1e4) and the slopes there
    "relu": ((0, 1e4), (0, 1)),
    "sigmoid": ((0, 1), (0, 0)),
    "tanh": ((-1, 1), (0, 0)),
    "softplus": ((0, 1e4), (0, 1)),
    "identity": ((-1e4, 1e4), (1, 1)),
}

devices = pytest.mark.parametrize("device", DEVICES)
dtypes = pytest.mark.parametrize("dtype", EPS)
names = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module", autouse=True)
def built():
    source = kernels_directory() / "activation.cu"
    emulator.prebuild((source, text) for entry in activation.CATALOGUE for text in entry.expressions)


def drawn(shape, dtype, seed=1):
    return np.asarray(4 * np.random.default_rng(seed).normal(size=shape), dtype=dtype)


@devices
@dtypes
@pytest.mark.parametrize(("name", "z", "value", "slope"), KNOWN)
def test_known_values(device, dtype, name, z, value, slope):
    a = activation.forward(to_device(np.full(5, z, dtype), device), name)
    da = to_device(np.array([1, -2, 0, 0.5, 3], dtype), device)
    dz = activation.backward(a, da, name)
    np.testing.assert_allclose(to_numpy(a), np.full(5, value), rtol=ROUNDINGS * EPS[dtype])
    # f' is computed from a, whose rounding counts again, and more where 1 - a is small
    np.testing.assert_allclose(to_numpy(dz), slope * to_numpy(da), rtol=4 * ROUNDINGS * EPS[dtype])


@devices
@dtypes
@names
@pytest.mark.parametrize("n", [1, 3, 4, 7, 1000])
def test_forward_follows_the_formula(device, dtype, name, n):
    z = drawn(n, dtype)
    got = activation.forward(to_device(z, device), name)
    assert got.dtype == dtype
    expected = [FORMULAS[name](float(x)) for x in z]
    np.testing.assert_allclose(to_numpy(got), expected, rtol=ROUNDINGS * EPS[dtype], atol=0)


@devices
@names
def test_backward_is_the_slope(device, name):
    """Central differences in float64: h² f''' / 6 of truncation, u / h of rounding."""
    z, h = drawn(200, "float64"), 1e-5
    z[abs(z) < 2 * h] = 1.0  # the kink of relu
    da = drawn(200, "float64", seed=2)
    difference = [FORMULAS[name](x + h) - FORMULAS[name](x - h) for x in z]
    a = activation.forward(to_device(z, device), name)
    dz = to_numpy(activation.backward(a, to_device(da, device), name))
    np.testing.assert_allclose(dz, da * np.array(difference) / (2 * h), rtol=0, atol=1e-9)


@devices
@dtypes
@names
def test_far_from_zero_nothing_overflows(device, dtype, name):
    values, slopes = FAR[name]
    a = activation.forward(to_device(np.array([-1e4, 1e4], dtype), device), name)
    np.testing.assert_array_equal(to_numpy(a), values)
    slope = activation.backward(a, to_device(np.ones(2, dtype), device), name)
    np.testing.assert_array_equal(to_numpy(slope), slopes)


@devices
@dtypes
@names
def test_not_a_number_stays_one(device, dtype, name):
    z = to_device(np.full(5, np.nan, dtype), device)
    assert np.isnan(to_numpy(activation.forward(z, name))).all()


@devices
@dtypes
def test_the_mask_of_relu_selects(device, dtype):
    """At 0 the slope is 0, and what comes back to a dead unit is dropped even if it is infinite."""
    a = to_device(np.array([0, -0.0, 0, 3, np.nan], dtype), device)
    da = to_device(np.array([np.inf, np.nan, 2, np.inf, 1], dtype), device)
    np.testing.assert_array_equal(to_numpy(activation.backward(a, da, "relu")), [0, 0, 0, np.inf, 0])


@devices
@dtypes
@names
def test_in_place_and_into_out_are_the_same(device, dtype, name):
    z, da = (to_device(drawn((9, 5), dtype, seed), device) for seed in (1, 2))
    a = activation.forward(z, name)
    dz = activation.backward(a, da, name)
    for out in (to_device(np.full((9, 5), np.nan, dtype), device), z):
        assert activation.forward(z, name, out=out) is out
        np.testing.assert_array_equal(to_numpy(out), to_numpy(a))
    for out in (to_device(np.full((9, 5), np.nan, dtype), device), da):
        assert activation.backward(a, da, name, out=out) is out
        np.testing.assert_array_equal(to_numpy(out), to_numpy(dz))


@devices
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3, 4)])
def test_any_shape(device, shape):
    z = to_device(drawn(shape, "float32"), device)
    a = activation.forward(z, "tanh")
    assert a.shape == activation.backward(a, z, "tanh").shape == shape
    np.testing.assert_allclose(to_numpy(a), np.tanh(to_numpy(z)), rtol=ROUNDINGS * EPS["float32"])


@devices
@names
def test_memory_of_any_kind(device, name):
    """Views that begin off a 16-byte boundary, every second column, a transpose."""
    whole = to_device(drawn((8, 12), "float32"), device)
    for z in (whole[:, ::2], whole.T, whole.reshape(-1)[1:90]):
        before = to_numpy(z).copy()
        a = activation.forward(z, name)
        dz = activation.backward(a, z, name)
        np.testing.assert_array_equal(to_numpy(z), before)
        expected = [FORMULAS[name](float(x)) for x in before.ravel()]
        np.testing.assert_allclose(to_numpy(a).ravel(), expected, rtol=ROUNDINGS * EPS["float32"])
        plain = activation.backward(to_device(to_numpy(a), device), to_device(before, device), name)
        np.testing.assert_array_equal(to_numpy(dz), to_numpy(plain))


# ---- mistakes of the caller ------------------------------------------------------------------------------


def floats(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


MISTAKES = {
    "unknown name": (
        lambda on: activation.forward(on(floats(3)), "gelu"),
        ValueError,
        "activation: expected one of relu, sigmoid, tanh, softplus, identity, got 'gelu'",
    ),
    "unknown name, backward": (
        lambda on: activation.backward(on(floats(3)), on(floats(3)), "RELU"),
        ValueError,
        "activation: expected one of relu, sigmoid, tanh, softplus, identity, got 'RELU'",
    ),
    "whole numbers": (
        lambda on: activation.forward(on(np.zeros(3, np.int32)), "relu"),
        TypeError,
        "activation.forward: z must be float32 or float64, got int32",
    ),
    "a list": (
        lambda on: activation.forward([1.0], "relu"),
        TypeError,
        "expected a numpy, cupy or emulated array, got builtins.list; convert it with numpy.asarray",
    ),
    "two types": (
        lambda on: activation.backward(on(floats(3)), on(floats(3, dtype="float64")), "relu"),
        TypeError,
        "activation.backward: da is float64 but a is float32; use one of them for both",
    ),
    "two shapes": (
        lambda on: activation.backward(on(floats(3)), on(floats(4)), "relu"),
        ValueError,
        r"activation.backward: da must have shape of a = \(3,\), got \(4,\)",
    ),
    "shape of out": (
        lambda on: activation.forward(on(floats(3)), "relu", out=on(floats(4))),
        ValueError,
        r"activation.forward: out must have shape of the result = \(3,\), got \(4,\)",
    ),
    "type of out": (
        lambda on: activation.forward(on(floats(3)), "relu", out=on(floats(3, dtype="float64"))),
        TypeError,
        "activation.forward: out must be float32, got float64",
    ),
    "out not contiguous": (
        lambda on: activation.forward(on(floats(3, 2)), "relu", out=on(floats(2, 3)).T),
        ValueError,
        "activation.forward: out must be C-contiguous",
    ),
}


@devices
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(device, mistake):
    call, error, message = MISTAKES[mistake]
    with pytest.raises(error, match=message) as caught:
        call(lambda values: to_device(values, device))
    assert len(str(caught.value).splitlines()) == 1


def test_two_kinds_of_array_are_refused():
    here, there = floats(3), emulator.asarray(floats(3))
    with pytest.raises(TypeError, match=r"arrays of two kinds in one call: .*to_device\(array, device\)"):
        activation.backward(here, there, "relu")
    with pytest.raises(TypeError, match="out is not the same kind of array as the inputs"):
        activation.forward(there, "relu", out=here)


def test_more_elements_than_an_int_counts_are_refused():
    huge = np.broadcast_to(np.float32(0), (checks.INT_LIMIT,))
    with pytest.raises(ValueError, match=f"op: X has a side of {checks.INT_LIMIT}; the kernels take up to"):
        checks.require_int_sized("op", X=huge)
    with pytest.raises(ValueError, match=f"activation_forward: {checks.INT_LIMIT} elements"):
        activation._launch("activation_forward", "relu", np.dtype(np.float32), huge, huge)
