"""Gradients against float64 central differences, and at the edges: one sample, none, dead units, kinks."""

import itertools
from itertools import count

import numpy as np
import pytest
from devices import DEVICES, build_ahead, everything, moved, network_on
from golden import make_golden
from reference_network import assert_within, network

from handgrad.arrays import to_device, to_numpy
from handgrad.ops import activation as activation_op
from handgrad.ops import loss as loss_op

# Five-point differences: the error is h^4 / 30 times the fifth derivative, about 1e-13 of a gradient, and the
# rounding of the loss, about 1e-15 of it, divided by h.
STEP = 1e-3
TOLERANCE = 1e-10  # times the sum of the loss and of the gradient's norm


def five_point(function):
    """The derivative of ``function`` at 0."""
    near = function(STEP) - function(-STEP)
    far = function(2 * STEP) - function(-2 * STEP)
    return (8 * near - far) / (12 * STEP)


def smooth_case(config, samples, margin=0.05):
    """X, y, parameters with every kink (of a ReLU or of the hinge) at least ``margin`` away."""
    for seed in count():
        drawn = make_golden.draw(config["sizes"], samples, config["bias"], seed)
        X, y = drawn["X"], make_golden.targets(drawn, config["loss"])
        parameters = make_golden.parameters(drawn)
        found = network(config, X, y, parameters)
        values = [v.value for name, v in found.items() if name[0] == "Z"]
        if config["loss"] == "hinge":
            scores, rows = found["Y_hat"].value, np.arange(samples)
            margins = scores - scores[rows, y][:, None] + 1
            margins[rows, y] = np.inf
            values.append(margins)
        if min(np.abs(value).min() for value in values) > margin:
            return X, y, parameters


def loss_of(net, X, y):
    return float(to_numpy(net.loss(*moved(net, X, y))))


@pytest.mark.parametrize(("loss", "output"), make_golden.LOSSES)
@pytest.mark.parametrize("activation", activation_op.NAMES)
def test_every_component_agrees_with_central_differences(activation, loss, output):
    config = {"sizes": [3, 4, 2], "activation": activation, "output": output, "loss": loss, "bias": True}
    config["reduction"] = "sum" if loss == "mse" else "mean"
    X, y, parameters = smooth_case(config, samples=3)
    net = network_on("cpu", config, parameters, "float64")
    found = everything(net, X, y, intermediates=False)
    scale = TOLERANCE * (found["loss"] + np.linalg.norm(found["dX"]))
    assert scale > 0
    for name, view in {**net.parameters, "X": X}.items():
        numeric = np.empty_like(view)
        for at in np.ndindex(view.shape):
            before = view[at]

            def at_distance(step, view=view, at=at, before=before):
                view[at] = before + step
                value = loss_of(net, X, y)
                view[at] = before
                return value

            numeric[at] = five_point(at_distance)
        np.testing.assert_allclose(found[f"d{name}"], numeric, rtol=0, atol=scale, err_msg=name)


@pytest.mark.parametrize("sizes", [[6, 1], [30, 20, 10], [9, 8, 7, 6, 5, 4]], ids=str)
@pytest.mark.parametrize("loss", loss_op.NAMES)
def test_directions_agree_with_central_differences(sizes, loss):
    config = {"sizes": sizes, "activation": "tanh", "output": "identity", "loss": loss, "bias": True}
    config["reduction"] = "mean"
    X, y, parameters = smooth_case(config, samples=4, margin=0.005)
    net = network_on("cpu", config, parameters, "float64")
    _, gradients = net.loss_and_grad(X, y)
    start = net.flat_parameters.flat.copy()
    random = np.random.default_rng(7)
    for _ in range(5):
        direction = random.standard_normal(start.shape)
        direction /= np.linalg.norm(direction)

        def along(step, direction=direction):
            net.flat_parameters.flat[...] = start + step * direction
            return loss_of(net, X, y)

        assert gradients.flat @ direction == pytest.approx(
            five_point(along), abs=TOLERANCE * (along(0) + np.linalg.norm(gradients.flat))
        )


# ---- edges -----------------------------------------------------------------------------------------------

EDGE_NETWORKS = tuple(itertools.product(loss_op.NAMES, loss_op.REDUCTIONS))


def edge_case(loss, reduction, samples, sizes=(2, 5, 3), activation="relu", seed=3):
    config = {"sizes": list(sizes), "activation": activation, "output": "identity", "loss": loss}
    config |= {"reduction": reduction, "bias": True}
    drawn = make_golden.draw(config["sizes"], samples, True, seed)
    return config, drawn["X"], make_golden.targets(drawn, loss), make_golden.parameters(drawn)


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "emulator":
        request.getfixturevalue("kernels_built")
    return request.param


@pytest.fixture(scope="module")
def kernels_built():
    def run():
        for dtype, (loss, reduction) in itertools.product(("float32", "float64"), EDGE_NETWORKS):
            for sizes in ((2, 5, 3), (2, 5, 1)):
                config, X, y, parameters = edge_case(loss, reduction, 4, sizes)
                everything(network_on("emulator", config, parameters, dtype), X, y, dtype == "float32")
                everything(network_on("emulator", config, parameters, dtype), X, y, False)

    build_ahead(run)


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_sample_and_two(device, dtype, samples):
    for loss, reduction in EDGE_NETWORKS:
        config, X, y, parameters = edge_case(loss, reduction, samples)
        expected = network(config, X, y, parameters, dtype)
        for name, value in everything(network_on(device, config, parameters, dtype), X, y, False).items():
            assert_within(value, expected[name], f"{loss} {reduction} {name}")


@pytest.mark.filterwarnings("error")
def test_no_sample_gives_zero_gradients_and_the_mean_of_nothing(device):
    for loss, reduction in EDGE_NETWORKS:
        config, X, y, parameters = edge_case(loss, reduction, 0)
        net = network_on(device, config, parameters, "float32")
        for intermediates in (False, True):
            found = everything(net, X, y, intermediates)
            assert np.isnan(found["loss"]) if reduction == "mean" else found["loss"] == 0
            for name, parameter in parameters.items():
                np.testing.assert_array_equal(found[f"d{name}"], np.zeros_like(parameter))
        shapes = {name: value.shape for name, value in found.items() if value.ndim == 2}
        assert shapes["Z1"] == shapes["A1"] == shapes["dA1"] == shapes["dZ1"] == (0, 5)
        assert shapes["Z2"] == shapes["Y_hat"] == shapes["dZ2"] == (0, 3)
        assert shapes["X"] == shapes["dX"] == (0, 2)
        assert net.predict(moved(net, X, y)[0]).shape == (0, 3)


def test_dead_units_get_no_gradient_and_pass_none_on(device):
    config, X, y, parameters = edge_case("mse", "mean", 4)
    parameters["b1"][:] = -1e3
    parameters["b1"][1] = 1e3  # one unit lives
    expected = network(config, X, y, parameters, "float32")
    for intermediates in (False, True):
        found = everything(network_on(device, config, parameters, "float32"), X, y, intermediates)
        dead = np.arange(5) != 1
        assert not found["dW1"][:, dead].any()
        assert not found["db1"][dead].any()
        assert not found["dW2"][dead].any()
        assert found["dW1"][:, 1].all()
        assert found["db2"].all()
        for name, value in found.items():
            assert_within(value, expected[name], name)
    parameters["b1"][1] = -1e3
    found = everything(network_on(device, config, parameters, "float32"), X, y, True)
    assert not found["dX"].any()
    assert found["dA1"].all()


def test_the_derivative_at_the_kink_is_zero(device):
    config, X, y, parameters = edge_case("mse", "sum", 4)
    parameters["b1"][:] = 0
    found = everything(network_on(device, config, parameters, "float32"), 0 * X, y, False)
    assert not found["db1"].any()
    assert found["db2"].all()


def test_an_infinite_gradient_stops_at_a_dead_unit(device):
    config, X, y, parameters = edge_case("mse", "mean", 4)
    parameters["b1"][:] = -1e3
    parameters["W2"][:] = 3e38  # with b2: the gradient of A1 is infinite, A1 is 0
    parameters["b2"][:] = 1e10
    with np.errstate(over="ignore"):
        for intermediates in (False, True):
            found = everything(network_on(device, config, parameters, "float32"), X, y, intermediates)
            assert not found["db1"].any()
            assert not found["dW1"].any()
    assert np.isinf(found["dA1"]).any()


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_one_output_takes_targets_without_their_axis(device, loss):
    config, X, y, parameters = edge_case(loss, "mean", 4, (2, 5, 1))
    net = network_on(device, config, parameters, "float32")
    column, flat = everything(net, X, y, False), everything(net, X, y[:, 0], False)
    expected = network(config, X, y, parameters, "float32")
    for name, value in flat.items():
        np.testing.assert_array_equal(value, column[name])
        assert_within(value, expected[name], name)


@pytest.mark.parametrize("loss", loss_op.NAMES)
def test_the_sum_is_the_mean_times_its_count(device, loss):
    config, X, y, parameters = edge_case(loss, "mean", 4)
    mean = everything(network_on(device, config, parameters, "float64"), X, y, False)
    summed = everything(network_on(device, config | {"reduction": "sum"}, parameters, "float64"), X, y, False)
    terms = 4 * 3 if loss in loss_op.ELEMENTWISE else 4
    for name, value in mean.items():
        np.testing.assert_allclose(summed[name], terms * value, rtol=1e-12, atol=1e-15, err_msg=name)


@pytest.mark.parametrize("loss", ["bce", "cross_entropy", "hinge"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logits_of_ten_thousand(device, dtype, loss):
    config, X, y, parameters = edge_case(loss, "mean", 4, activation="identity")
    parameters["W2"] *= 2.0**14
    expected = network(config, X, y, parameters, dtype)
    assert np.abs(expected["Z2"].value).max() > 1e4
    found = everything(network_on(device, config, parameters, dtype), X, y, False)
    for name, value in found.items():
        assert np.isfinite(value).all(), name
        assert_within(value, expected[name], name)


@pytest.mark.parametrize("intermediates", [False, True])
def test_inputs_and_parameters_stay_as_they_are(device, intermediates):
    for loss in loss_op.NAMES:
        config, X, y, parameters = edge_case(loss, "mean", 4)
        net = network_on(device, config, parameters, "float32")
        X_there, y_there = moved(net, X, y)
        net.loss_and_grad(X_there, y_there, intermediates=intermediates, input_grad=True)
        np.testing.assert_array_equal(to_numpy(X_there), X.astype(np.float32))
        np.testing.assert_array_equal(to_numpy(y_there), y if y.dtype.kind == "i" else y.astype(np.float32))
        for name, value in parameters.items():
            np.testing.assert_array_equal(to_numpy(net.parameters[name]), value.astype(np.float32))


def test_layout_and_dtype_of_the_inputs_do_not_matter(device):
    config, X, y, parameters = edge_case("mse", "mean", 4)
    net = network_on(device, config, parameters, "float32")
    X, y = np.round(4 * X), np.round(4 * y)  # whole numbers: every dtype holds them
    expected = network(config, X, y, parameters, "float32")

    def gradients(X, y):
        loss, found = net.loss_and_grad(X, y)
        return {"loss": to_numpy(loss), **{f"d{name}": to_numpy(value) for name, value in found.items()}}

    twice = to_device(np.repeat(np.repeat(X, 2, axis=0), 2, axis=1).astype(np.float32), device)
    columns = to_device(np.ascontiguousarray(X.T).astype(np.float32), device).T
    plain, y_plain = moved(net, X, y)
    y_columns = to_device(np.ascontiguousarray(y.T).astype(np.float32), device).T
    for inputs, targets in [
        (twice[::2, ::2], y_plain),
        (columns, y_columns),
        (to_device(X.astype(np.int32), device), to_device(y.astype(np.int64), device)),
        (to_device(X, device), to_device(y, device)),
    ]:
        for name, value in gradients(inputs, targets).items():
            assert_within(value, expected[name], name)
            if device != "cpu":  # BLAS may add in another order; a kernel sees the same numbers
                np.testing.assert_array_equal(value, gradients(plain, y_plain)[name])
