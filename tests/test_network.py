"""The network's surface: arguments, parameters, predictions, gradients by name, and messages for mistakes."""

import json

import numpy as np
import pytest
from devices import DEVICES, SAMPLES, SIZES, build_ahead, moved, network_on, on, problem
from reference_network import assert_within, network

import handgrad as hg
from handgrad import network as network_module
from handgrad.arrays import get_array_module, to_device, to_numpy
from handgrad.network import MLP
from handgrad.ops import loss as loss_op


@pytest.fixture(scope="module")
def kernels_built():
    def run():
        for loss in loss_op.NAMES:
            net, X, y = on("emulator", loss)
            net.loss_and_grad(X, y, input_grad=True)
            net.loss_and_grad(X, y, intermediates=True)
            net.predict(X)
        net, X, y = on("emulator", output="sigmoid")
        net.predict(X)
        net.loss(X, y)

    build_ahead(run)


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "emulator":
        request.getfixturevalue("kernels_built")
    return request.param


# ---- construction ----------------------------------------------------------------------------------------


def test_a_plain_network():
    net = MLP([784, 50, 1], device="cpu")
    assert net.sizes == (784, 50, 1)
    assert net.layers == 2
    assert str(net.device) == "cpu"
    assert net.xp is np
    assert {name: (view.shape, view.dtype.name) for name, view in net.parameters.items()} == {
        "W1": ((784, 50), "float32"),
        "b1": ((50,), "float32"),
        "W2": ((50, 1), "float32"),
        "b2": ((1,), "float32"),
    }
    assert repr(net).startswith("MLP([784, 50, 1], activation='relu', output='identity', loss='mse'")
    assert list(MLP([4, 3], bias=False, device="cpu").parameters) == ["W1"]
    assert list(MLP((9, 8, 7, 6), device="cpu").parameters) == ["W1", "b1", "W2", "b2", "W3", "b3"]


def test_the_configuration_makes_the_network_again():
    net = MLP(
        [4, 3, 2],
        activation="softplus",
        output="tanh",
        reduction="sum",
        bias=False,
        init="glorot",
        dtype=np.float64,
        device="cpu",
        seed=np.int64(17),
    )
    again = MLP(**json.loads(json.dumps(net.config())), device="cpu")
    assert again.config() == net.config()
    assert again.dtype == np.float64
    np.testing.assert_array_equal(again.flat_parameters.flat, net.flat_parameters.flat)
    default = MLP([4, 3, 2], device="cpu")
    assert all(
        net.config()[key] != value for key, value in default.config().items() if key not in ("sizes", "loss")
    )


# ---- initial values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("init", "variance"),
    [("he", 2 / 300), ("glorot", 2 / 500), ("lecun", 1 / 300), ("zeros", 0)],
)
def test_initial_weights_have_their_variance(init, variance):
    net = MLP([300, 200, 2], init=init, dtype="float64", device="cpu", seed=1)
    W1 = net.parameters["W1"]
    # 60,000 normal numbers: their mean and variance deviate by 1/245 and 1/173 of a standard deviation
    assert W1.mean() == pytest.approx(0, abs=5 * variance**0.5 / 245)
    assert W1.var() == pytest.approx(variance, rel=5 / 173)
    if variance:
        third = (np.abs(W1) > variance**0.5).mean()  # normal, not uniform: 0.3173 against 0.4226
        assert third == pytest.approx(0.3173, abs=5 * 0.0019)
    assert not net.parameters["b1"].any()
    assert not net.parameters["b2"].any()


def test_weights_are_drawn_from_the_seed_in_order():
    net = MLP([5, 4, 3], dtype="float64", device="cpu", seed=21)
    random = np.random.Generator(np.random.PCG64(21))
    np.testing.assert_array_equal(net.parameters["W1"], random.standard_normal((5, 4)) * np.sqrt(2 / 5))
    np.testing.assert_array_equal(net.parameters["W2"], random.standard_normal((4, 3)) * np.sqrt(2 / 4))
    other = MLP([5, 4, 3], dtype="float64", device="cpu", seed=22)
    assert (other.parameters["W1"] != net.parameters["W1"]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_device_and_dtype_starts_from_the_same_values(device, dtype):
    doubles = MLP(SIZES, dtype="float64", device="cpu", seed=3)
    net = MLP(SIZES, dtype=dtype, device=device, seed=3)
    for name, view in net.parameters.items():
        assert get_array_module(view) is net.xp
        np.testing.assert_array_equal(to_numpy(view), doubles.parameters[name].astype(dtype))


# ---- parameters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parameters_and_gradients_are_views_of_flat_buffers(device, dtype):
    net, X, y = on(device, dtype=dtype)
    _, gradients = net.loss_and_grad(X, y)
    for flat, views in [(net.flat_parameters.flat, net.parameters), (gradients.flat, gradients)]:
        host = to_numpy(flat)
        used = np.zeros(host.shape, bool)
        for name, view in views.items():
            start = net.flat_parameters.offsets[name]
            assert start * host.itemsize % 256 == 0
            np.testing.assert_array_equal(host[start : start + view.size], to_numpy(view).ravel())
            used[start : start + view.size] = True
        assert not host[~used].any()  # the padding
        assert used.sum() == 7 * 5 + 5 + 5 * 3 + 3
        assert host.nbytes % 256 == 0
        if device != "cuda":
            assert host.ctypes.data % 256 == 0
            assert all(np.shares_memory(host, to_numpy(view)) for view in views.values())


def test_parameters_are_written_through_their_views(device):
    config, X, y, parameters = problem()
    net = network_on(device, config, parameters, "float32")
    changed = {**parameters, "W1": 2 * parameters["W1"], "b2": parameters["b2"] + 1}
    net.parameters["W1"][...] *= 2
    net.parameters["b2"][...] += 1
    bounds = network(config, X, y, {n: v.astype(np.float32) for n, v in changed.items()}, "float32")
    doubled = network_on(device, config, changed, "float32")
    np.testing.assert_array_equal(to_numpy(net.flat_parameters.flat), to_numpy(doubled.flat_parameters.flat))
    assert_within(to_numpy(net.forward(moved(net, X, y)[0])), bounds["Y_hat"], "forward")
    with pytest.raises(TypeError):
        net.parameters["W1"] = 0


def test_parameters_load_from_any_kind_of_array(device):
    config, _, _, parameters = problem()
    net = MLP(**config, device=device, seed=99)
    net.load_parameters(
        {
            "b2": parameters["b2"].tolist(),
            "W2": to_device(parameters["W2"], device),
            "b1": np.arange(5),
            "W1": np.asfortranarray(parameters["W1"]),
        }
    )
    for name, value in (parameters | {"b1": np.arange(5)}).items():
        np.testing.assert_array_equal(to_numpy(net.parameters[name]), value.astype(np.float32))


def test_frozen_parameters_get_gradients_but_do_not_move(device):
    net, X, y = on(device)
    net.freeze("W1", "b2")
    before = {name: to_numpy(view).copy() for name, view in net.parameters.items()}
    _, gradients = net.loss_and_grad(X, y)
    assert all(to_numpy(gradient).any() for gradient in gradients.values())
    optimizer = hg.SGD(0.1, weight_decay=0.1)
    net.train_step(X, y, optimizer)
    moved_now = {name for name, view in net.parameters.items() if (to_numpy(view) != before[name]).any()}
    assert moved_now == {"b1", "W2"}
    net.unfreeze()
    net.train_step(X, y, optimizer)
    assert all((to_numpy(view) != before[name]).any() for name, view in net.parameters.items())
    with pytest.raises(ValueError, match=r"no parameter 'W9'; expected one of W1, b1, W2, b2"):
        net.freeze("W9")


# ---- forward and predict ---------------------------------------------------------------------------------


def probabilities(loss, Z):
    if loss == "bce":
        return 1 / (1 + np.exp(-Z))
    if loss == "cross_entropy":
        return np.exp(Z) / np.exp(Z).sum(axis=1, keepdims=True)
    return Z


@pytest.mark.parametrize("loss", loss_op.NAMES)
def test_forward_gives_logits_and_predict_probabilities(device, loss):
    config, X, y, parameters = problem(loss)
    net = network_on(device, config, parameters, "float32")
    X_there = moved(net, X, y)[0]
    expected = network(config, X, y, parameters, "float32")["Y_hat"]
    scores, predicted = net.forward(X_there), net.predict(X_there)
    assert get_array_module(scores) is get_array_module(predicted) is net.xp
    assert predicted.dtype == np.float32
    assert_within(to_numpy(scores), expected, "forward")
    np.testing.assert_allclose(to_numpy(predicted), probabilities(loss, expected.value), rtol=1e-5, atol=1e-6)
    kept = to_numpy(predicted).copy()
    net.predict(X_there + 1)
    np.testing.assert_array_equal(to_numpy(predicted), kept)


def test_predict_applies_the_output_activation_and_works_in_blocks_of_rows(device, monkeypatch):
    config, X, y, parameters = problem(output="sigmoid")
    net = network_on(device, config, parameters, "float32")
    X_there = moved(net, X, y)[0]
    expected = network(config, X, y, parameters, "float32")["Y_hat"]
    for rows in (1, 4, SAMPLES, 100):
        monkeypatch.setattr(network_module, "PREDICT_ROWS", rows)
        assert_within(to_numpy(net.predict(X_there)), expected, f"{rows} rows at a time")


@pytest.mark.filterwarnings("error")
def test_probabilities_of_huge_logits(device):
    for loss, expected in [("bce", [[1, 0, 0.5]]), ("cross_entropy", [[1, 0, 0]])]:
        net = MLP([1, 3], loss=loss, device=device)
        net.load_parameters({"W1": [[1e4, -1e4, 0]], "b1": [0, 0, 0]})
        predicted = to_numpy(net.predict(to_device(np.ones((1, 1), np.float32), device)))
        np.testing.assert_array_equal(predicted, np.asarray(expected, np.float32))


# ---- loss and gradients by name --------------------------------------------------------------------------


def test_the_loss_is_a_number_on_the_device(device):
    for loss in loss_op.NAMES:
        net, X, y = on(device, loss)
        alone, (beside, _) = net.loss(X, y), net.loss_and_grad(X, y)
        for value in (alone, beside):
            assert get_array_module(value) is net.xp
            assert isinstance(value, net.xp.ndarray)
            assert value.shape == ()
            assert value.dtype == np.float32
        # a fused step sums the loss in an order of its own
        np.testing.assert_allclose(to_numpy(alone), to_numpy(beside), rtol=4 * np.finfo(np.float32).eps)


def test_gradients_are_a_dictionary_of_the_parameters(device):
    net, X, y = on(device)
    _, gradients = net.loss_and_grad(X, y, intermediates=True, input_grad=True)
    assert isinstance(gradients, dict)
    assert list(gradients) == list(net.parameters)
    assert {name: value.shape for name, value in gradients.items()} == {
        name: value.shape for name, value in net.parameters.items()
    }
    assert all(get_array_module(value) is net.xp for value in gradients.values())
    assert all(get_array_module(value) is net.xp for value in gradients.intermediates.values())
    assert gradients["dZ1"] is gradients.intermediates["dZ1"]
    assert gradients["dX"].shape == (SAMPLES, 7)
    with pytest.raises(KeyError, match="dZ3"):
        gradients["dZ3"]
    _, gradients = net.loss_and_grad(X, y)
    assert gradients.intermediates == {}
    _, gradients = net.loss_and_grad(X, y, input_grad=True)
    assert list(gradients.intermediates) == ["dX"]


def snapshot(loss, gradients):
    found = {"loss": loss, **gradients, **gradients.intermediates}
    return {name: to_numpy(value).copy() for name, value in found.items()}


@pytest.mark.parametrize("intermediates", [False, True])
def test_a_later_call_overwrites_nothing_of_an_earlier_one(device, intermediates):
    net, X, y = on(device)
    loss, gradients = net.loss_and_grad(X, y, intermediates=intermediates, input_grad=True)
    kept = snapshot(loss, gradients)
    for _ in range(2):
        net.loss_and_grad(X + 1, y - 1, intermediates=intermediates, input_grad=True)
        net.loss(X - 1, y)
        net.train_step(X - 2, y, hg.SGD(0.1))
    for name, value in snapshot(loss, gradients).items():
        if name != "X":
            np.testing.assert_array_equal(value, kept[name], name)


def test_gradients_can_be_written_over_those_of_an_earlier_call(device):
    net, X, y = on(device)
    _, first = net.loss_and_grad(X, y, intermediates=True)
    views = {name: id(view) for name, view in first.items()}
    _, expected = net.loss_and_grad(X + 1, y)
    _, again = net.loss_and_grad(X + 1, y, out=first)
    assert again is first
    assert {name: id(view) for name, view in again.items()} == views
    assert again.intermediates == {}
    for name, value in expected.items():
        np.testing.assert_array_equal(to_numpy(again[name]), to_numpy(value))
