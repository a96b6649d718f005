"""Weights to and from PyTorch's layout: shapes, names, round trips, and live with ``nn.Sequential``."""

import itertools
from collections import OrderedDict

import numpy as np
import pytest
from devices import DEVICES, moved, network_on, problem
from reference_network import assert_norm

import handgrad as hg
from handgrad.arrays import to_numpy
from handgrad.network import MLP

SIZES = (7, 5, 4, 3)


def test_a_state_dict_has_torch_s_names_and_transposed_weights():
    net = MLP(SIZES, device="cpu", seed=2)
    state = hg.to_torch(net.parameters)
    assert {name: value.shape for name, value in state.items()} == {
        "0.weight": (5, 7),
        "0.bias": (5,),
        "2.weight": (4, 5),
        "2.bias": (4,),
        "4.weight": (3, 4),
        "4.bias": (3,),
    }
    for layer in (1, 2, 3):
        weight = state[f"{2 * layer - 2}.weight"]
        np.testing.assert_array_equal(weight, net.parameters[f"W{layer}"].T)
        assert weight.flags.c_contiguous
        assert not np.shares_memory(weight, net.flat_parameters.flat)
        assert not np.shares_memory(state[f"{2 * layer - 2}.bias"], net.flat_parameters.flat)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("device", DEVICES)
def test_there_and_back(device, bias):
    net = MLP(SIZES, bias=bias, device=device, seed=2)
    other = MLP(SIZES, bias=bias, device=device, seed=3)
    state = hg.to_torch(net.parameters)
    assert all(type(value) is np.ndarray and value.dtype == np.float32 for value in state.values())
    parameters = hg.from_torch(state)
    assert list(parameters) == list(net.parameters)
    assert all(value.flags.c_contiguous for value in parameters.values())
    other.load_parameters(parameters)
    np.testing.assert_array_equal(to_numpy(other.flat_parameters.flat), to_numpy(net.flat_parameters.flat))
    before = {name: value.copy() for name, value in state.items()}
    for value in parameters.values():
        value += 1
    for name, value in state.items():  # the parameters are copies
        np.testing.assert_array_equal(value, before[name])


def test_other_names_of_layers_will_do():
    state = OrderedDict(
        {"fc1.weight": np.ones((5, 7)), "fc1.bias": np.ones(5), "head.weight": np.zeros((3, 5))}
    )
    parameters = hg.from_torch(state)
    assert {name: value.shape for name, value in parameters.items()} == {
        "W1": (7, 5),
        "b1": (5,),
        "W2": (5, 3),
    }


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"0.weight": np.ones((5, 7, 3))}, r"got '0\.weight' \(5, 7, 3\)"),
        ({"0.bias": np.ones(5)}, r"got '0\.bias' \(5,\)"),
        ({"0.weight": np.ones((5, 7)), "0.bias": np.ones((5, 1))}, r"got '0\.bias' \(5, 1\)"),
        ({"0.weight": np.ones((5, 7)), "1.running_mean": np.ones(5)}, r"got '1\.running_mean' \(5,\)"),
        ({"0.weight": np.ones((5, 7)), "0.bias": np.ones(4)}, r"0\.bias.* has shape \(4,\).* \(5,\)"),
        (
            {"0.weight": np.ones((5, 7)), "0.bias": np.ones(5), "1.bias": np.ones(5)},
            r"two biases.*1\.bias",
        ),
        (
            {"0.weight": np.ones((5, 7)), "2.weight": np.ones((3, 4))},
            r"2\.weight.* has shape \(3, 4\).* 5 ",
        ),
    ],
    ids=lambda value: str(value)[-20:],
)
def test_a_state_of_anything_but_linear_layers_is_refused(state, message):
    with pytest.raises(ValueError, match=message) as raised:
        hg.from_torch(state)
    assert str(raised.value).startswith("from_torch: ")


def test_names_that_are_no_parameters_are_refused():
    for name in ("w1", "W0", "b", "W1.T"):
        with pytest.raises(ValueError, match=f"to_torch: expected names like W1 and b1, got '{name}'"):
            hg.to_torch({name: np.ones((2, 2))})


NET = MLP(SIZES, device="cpu")


@pytest.mark.parametrize(
    ("convert", "given", "message"),
    [
        (hg.to_torch, NET, "to_torch: expected parameters by name, got MLP; give net.parameters"),
        (hg.to_torch, {1: np.ones(2)}, "to_torch: expected names as keys, got 1; give net.parameters"),
        (hg.to_torch, {"W1": None}, "to_torch: W1: expected an array, got None"),
        (hg.from_torch, NET, "from_torch: expected a state dict, got MLP; give module.state_dict()"),
        (
            hg.from_torch,
            [("0.weight", np.ones((2, 2)))],
            "from_torch: expected a state dict, got list; give module.state_dict()",
        ),
        (
            hg.from_torch,
            {0: np.ones((2, 2))},
            "from_torch: expected names as keys, got 0; give module.state_dict()",
        ),
        (hg.from_torch, {"0.weight": None}, "from_torch: 0.weight: expected an array, got None"),
    ],
)
def test_what_is_no_dict_of_arrays_is_refused_in_a_line(convert, given, message):
    with pytest.raises(TypeError) as raised:
        convert(given)
    assert str(raised.value) == message


def test_parameters_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"^to_torch: W1: expected shape \(in, out\), got \(3,\)$"):
        hg.to_torch({"W1": np.ones(3)})
    with pytest.raises(ValueError, match=r"^to_torch: b2: expected shape \(out,\), got \(3, 2\)$"):
        hg.to_torch({"b2": np.ones((3, 2))})


# ---- live ------------------------------------------------------------------------------------------------


def sequential(torch, sizes, bias=True):
    """Linear, Tanh, Linear, …, in float64."""
    layers = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(fan_in, fan_out, bias=bias, dtype=torch.float64), torch.nn.Tanh()]
    return torch.nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("bias", [True, False])
def test_torch_s_own_module_gives_the_same_outputs_and_gradients(bias):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: layouts are tested on arrays")
    config, X, y, parameters = problem("cross_entropy", sizes=SIZES, bias=bias)
    net = network_on("cpu", config, parameters, "float64")
    module = sequential(torch, SIZES, bias)
    module.load_state_dict({name: torch.from_numpy(v) for name, v in hg.to_torch(net.parameters).items()})
    X, y = moved(net, X, y)
    outputs = module(torch.from_numpy(X))
    assert_norm(net.forward(X), outputs.detach().numpy(), 1e-14, "forward")
    torch.nn.functional.cross_entropy(outputs, torch.from_numpy(y)).backward()
    expected = hg.from_torch({name: p.grad for name, p in module.named_parameters()})
    _, gradients = net.loss_and_grad(X, y)
    assert list(expected) == list(gradients)
    for name, value in gradients.items():
        assert_norm(value, expected[name], 1e-12, name)


def test_torch_s_own_initialisation_can_be_taken_over():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: layouts are tested on arrays")
    module = sequential(torch, SIZES)
    net = MLP(SIZES, activation="tanh", dtype="float64", device="cpu")
    net.load_parameters(hg.from_torch(module.state_dict()))
    X = np.random.default_rng(0).standard_normal((6, 7))
    assert_norm(net.forward(X), module(torch.from_numpy(X)).detach().numpy(), 1e-14, "forward")
    with torch.no_grad():
        module[0].weight.zero_()  # what was taken over is a copy
    assert net.parameters["W1"].all()
