"""Mistakes of the network's callers: what is refused, and the one line that says so."""

import re

import numpy as np
import pytest
from devices import DEVICES, SAMPLES, SIZES, build_ahead, on, problem

import handgrad as hg
from handgrad.arrays import to_device, to_numpy
from handgrad.network import MLP
from handgrad.parameters import Gradients


def one_line(message):
    """A pattern for a message of one line that holds ``message``."""
    return rf"\A.*{re.escape(message)}.*\Z"


@pytest.fixture(scope="module")
def kernels_built():
    def run():
        for loss in ("mse", "cross_entropy", "hinge"):
            net, X, y = on("emulator", loss)
            net.loss_and_grad(X, y)
            net.loss_and_grad(X, y, intermediates=True)

    build_ahead(run)


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "emulator":
        request.getfixturevalue("kernels_built")
    return request.param


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": [5]}, "sizes: expected at least two whole numbers of 1 or more, got [5]"),
        ({"sizes": []}, "sizes: expected at least two whole numbers of 1 or more, got []"),
        ({"sizes": 5}, "sizes: expected at least two whole numbers of 1 or more, got 5"),
        ({"sizes": [5, 0]}, "sizes: expected at least two whole numbers of 1 or more, got [5, 0]"),
        ({"sizes": [5, -3, 2]}, "sizes: expected at least two whole numbers of 1 or more, got [5, -3, 2]"),
        ({"sizes": [5, 2.5]}, "sizes: expected at least two whole numbers of 1 or more, got [5, 2.5]"),
        ({"sizes": "784"}, "sizes: expected at least two whole numbers of 1 or more, got '784'"),
        (
            {"activation": "gelu"},
            "activation: expected one of relu, sigmoid, tanh, softplus, identity, got 'gelu'",
        ),
        ({"loss": "mae"}, "loss: expected one of mse, bce, cross_entropy, hinge, got 'mae'"),
        ({"reduction": "none"}, "reduction: expected one of mean, sum, got 'none'"),
        ({"loss": "bce", "output": "sigmoid"}, "output: bce is computed from the logits, so output must be"),
        ({"output": "softmax"}, "expected one of relu, sigmoid, tanh, softplus, identity, got 'softmax'"),
        ({"init": "xavier"}, "init: expected one of he, glorot, lecun, zeros, got 'xavier'"),
        ({"dtype": "float16"}, "dtype: expected float32 or float64, got 'float16'"),
        ({"dtype": "single precision"}, "dtype: expected float32 or float64, got 'single precision'"),
        ({"dtype": ">f4"}, "dtype: expected float32 or float64, got '>f4'"),
        ({"dtype": None}, "dtype: expected float32 or float64, got None"),
        ({"precision": "fp8"}, "precision: with dtype float32, expected float32 or tf32 or 3xtf32 or bf"),
        ({"seed": -1}, "seed: expected a whole number, 0 or above, got -1"),
        ({"seed": None}, "seed: expected a whole number, 0 or above, got None"),
        (
            {"device": "gpu"},
            "device: expected 'auto', 'cpu', 'cuda', 'cuda:N' or 'emulator', got 'gpu'",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=one_line(message)):
        MLP(**{"sizes": [4, 3, 2], "device": "cpu"} | arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b2": None}, "parameters: expected W1, b1, W2, b2, got W1, b1, W2"),
        ({"W3": np.ones(3)}, "parameters: expected W1, b1, W2, b2, got W1, b1, W2, b2, W3"),
        ({"b2": np.ones(4)}, "parameters: b2 must have shape (3,), got (4,)"),
        ({"b2": np.ones((1, 3))}, "parameters: b2 must have shape (3,), got (1, 3)"),
        ({"W2": np.ones((3, 5))}, "parameters: W2 must have shape (5, 3), got (3, 5)"),
        ({"b2": 1.0}, "parameters: b2 must have shape (3,), got ()"),
        ({"b2": np.array(["a", "b", "c"])}, "parameters: b2 must hold real numbers, got <U1"),
        ({"b2": np.ones(3) * 1j}, "parameters: b2 must hold real numbers, got complex128"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_parameters_load_whole_or_not_at_all(change, message):
    config, _, _, parameters = problem()
    net = MLP(**config, device="cpu", seed=99)
    before = net.flat_parameters.flat.copy()
    values = {name: value for name, value in (parameters | change).items() if value is not None}
    with pytest.raises(ValueError, match=one_line(message)):
        net.load_parameters(values)
    np.testing.assert_array_equal(net.flat_parameters.flat, before)


def test_gradients_of_another_network_are_not_written_over():
    net, X, y = on("cpu")
    for other in [
        MLP(SIZES, bias=False, device="cpu"),
        MLP([7, 4, 3], device="cpu"),
        MLP(SIZES, dtype="float64", device="cpu"),
        MLP(SIZES, device="emulator"),
    ]:
        with pytest.raises(
            ValueError, match=r"^out: expected the gradients of .*W1\[7, 5\].* on cpu, got those of"
        ):
            net.loss_and_grad(X, y, out=Gradients(other.flat_parameters.like()))
    with pytest.raises(TypeError, match="out: expected Gradients of an earlier call, got dict"):
        net.loss_and_grad(X, y, out={})


def test_arrays_of_another_kind_are_refused(device):
    net, X, y = on(device)
    other = "emulator" if device == "cpu" else "cpu"
    optimizer = hg.SGD(0.1)
    for name, arguments in [("X", (to_device(X, other), y)), ("y", (X, to_device(y, other)))]:
        for call in (net.loss_and_grad, net.loss, lambda X, y: net.train_step(X, y, optimizer)):
            with pytest.raises(TypeError) as raised:
                call(*arguments)
            assert f"{name}: expected an array on {device}, got " in str(raised.value)
            assert f"move it with handgrad.to_device({name}, '{device}')" in str(raised.value)
    for call in (net.forward, net.predict):
        with pytest.raises(TypeError, match=f"X: expected an array on {device}"):
            call(to_device(X, other))
    with pytest.raises(TypeError, match="expected a numpy, cupy or emulated array, got builtins"):
        net.forward([[1.0] * 7])


@pytest.mark.parametrize(
    ("loss", "X_shape", "y", "message"),
    [
        ("mse", (6, 8), np.zeros((6, 3)), "X: expected shape (N, 7), got (6, 8)"),
        ("mse", (7,), np.zeros((6, 3)), "X: expected shape (N, 7), got (7,)"),
        ("mse", (6, 7, 1), np.zeros((6, 3)), "X: expected shape (N, 7), got (6, 7, 1)"),
        ("mse", (6, 7), np.zeros((6, 2)), "y: expected shape (N, 3), got (6, 2)"),
        ("mse", (6, 7), np.zeros(6), "y: expected shape (N, 3), got (6,)"),
        ("bce", (6, 7), np.zeros(6), "y: expected shape (N, 3), got (6,)"),
        ("mse", (6, 7), np.zeros((5, 3)), "y must have shape (N, C) like the output = (6, 3), got (5, 3)"),
        ("cross_entropy", (6, 7), np.zeros(5, int), "one label a sample, = (6,), got (5,)"),
        ("hinge", (6, 7), np.zeros((6, 1), int), "one label a sample, = (6,), got (6, 1)"),
        ("cross_entropy", (6, 7), np.array([0, 1, 2, 3, 0, 1]), "must lie in 0 .. 2, got 3 for sample 3"),
        ("hinge", (6, 7), np.array([0, 1, 2, 1, -1, 1]), "must lie in 0 .. 2, got -1 for sample 4"),
    ],
)  # fmt: skip
def test_a_wrong_shape_or_label_is_named(loss, X_shape, y, message):
    net, _, _ = on("cpu", loss)
    for call in (net.loss_and_grad, net.loss):
        with pytest.raises(ValueError, match=one_line(message)):
            call(np.zeros(X_shape, np.float32), y if y.dtype.kind == "i" else y.astype(np.float32))


@pytest.mark.parametrize("loss", ["cross_entropy", "hinge"])
def test_labels_must_be_integers(device, loss):
    net, X, y = on(device, loss)
    with pytest.raises(TypeError, match=rf"y: {loss} takes integer labels \(N,\), got float32"):
        net.loss_and_grad(X, y.astype(np.float32))
    for dtype in (np.uint8, np.int16, np.int32, np.int64):
        loss_value, _ = net.loss_and_grad(X, y.astype(dtype))
        alone = to_numpy(net.loss(X, y))
        np.testing.assert_allclose(to_numpy(loss_value), alone, rtol=4 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("loss", ["cross_entropy", "hinge"])
def test_a_label_out_of_range_makes_the_loss_nan_on_a_device(loss, kernels_built):
    net, X, y = on("emulator", loss)
    y[2] = 3
    loss_value, gradients = net.loss_and_grad(X, y, intermediates=True)
    assert np.isnan(to_numpy(loss_value))
    rows = np.isnan(to_numpy(gradients["dZ2"])).all(axis=1)
    np.testing.assert_array_equal(rows, np.arange(SAMPLES) == 2)
