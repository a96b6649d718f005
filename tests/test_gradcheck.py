"""The gradient check: right gradients pass, every planted fault fails, kinks are seen, avoided and named."""

import itertools
import re

import numpy as np
import pytest
from gradcheck_cases import FAULTS, network, plant, random, targets
from small_networks import needs_compiler

import handgrad as hg
from handgrad import emulator, ops
from handgrad.arrays import to_device
from handgrad.gradients.gradcheck import gradcheck
from handgrad.network import MLP
from handgrad.ops import activation as activation_op
from handgrad.ops import linear

LOSSES = [("mse", output) for output in activation_op.NAMES]
LOSSES += [(loss, "identity") for loss in ("bce", "cross_entropy", "hinge")]


# ---- right gradients pass ----------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "output"), LOSSES)
@pytest.mark.parametrize("activation", activation_op.NAMES)
def test_every_network_passes(activation, loss, output):
    for reduction, sizes, bias in (("mean", (3, 5, 2), True), ("sum", (3, 4, 4, 2), False)):
        net = network(activation, loss, output, sizes, reduction=reduction, bias=bias)
        X, y = random(7, 3), targets(loss, 7, 2)
        result = gradcheck(net, X, y, input_grad=True)
        assert result, str(result)
        assert result.passed
        sizes_of = {name: view.size for name, view in net.parameters.items()}
        assert result.checked == sizes_of | {"X": X.size, "loss": 1}
        assert gradcheck(net, X, y, fast_mode=True)


@pytest.mark.parametrize("activation", activation_op.NAMES)
def test_every_op_passes(activation):
    X, W, b = random(6, 3), random(3, 4), random(4)
    assert gradcheck(ops.activation, X, name=activation)
    assert gradcheck(ops.activation.forward, {"z": X}, name=activation)
    assert gradcheck(ops.linear, (X, W, b), activation=activation)
    assert gradcheck(ops.linear.forward, {"X": X, "W": W}, activation=activation)
    # the mask fused into the product: dZ1 = (dZ W^T) f'(A), the gradient of sum(dZ * (f(Z1) W))
    Z1, V = random(6, 4, seed=2), random(4, 2)

    def fused(upstream, Z):
        return linear.backward_input(upstream, V, activation_op.forward(Z, activation), activation)

    assert gradcheck(lambda Z: activation_op.forward(Z, activation) @ V, Z1, backward=fused, method="central")


@pytest.mark.parametrize(("loss", "output"), LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_every_loss_passes(loss, output, reduction):
    Z = random(6, 4, seed=5)
    settings = {"loss": loss, "output": output, "reduction": reduction}
    assert gradcheck(ops.loss, Z, targets(loss, 6, 4), **settings)
    assert gradcheck(ops.loss.forward_backward, {"Z": Z}, targets(loss, 6, 4), **settings)


def test_a_float32_network_is_checked_in_both_precisions():
    net = network(dtype="float32", sizes=(6, 9, 4), loss="cross_entropy")
    result = gradcheck(net, random(20, 6), targets("cross_entropy", 20, 4))
    assert result
    assert result.compared_whole == ("loss", *(f"{name} as float32" for name in ("W1", "b1", "W2", "b2")))


@pytest.mark.parametrize("loss", ["cross_entropy", "hinge", "mse"])
def test_no_false_alarm_at_the_optimum(loss):
    """There gradients are small differences of large terms, and float32 rounds each term."""
    from handgrad.training import fit

    net = network(dtype="float32", sizes=(5, 16, 2), loss=loss)
    X = random(12, 5).astype(np.float32)
    y = targets(loss, 12, 2)
    fit(net, X, y, optimizer=hg.Adam(0.02), epochs=400, batch_size=12)
    result = gradcheck(net, X, y, entries=10)
    assert result, str(result)


@pytest.mark.parametrize("seed", range(5))
def test_no_false_alarm_for_large_logits_and_inputs(seed):
    X = 1e3 * random(8, 3, seed=seed)
    for loss in ("cross_entropy", "hinge", "bce", "mse"):
        net = network(loss=loss, seed=seed)
        result = gradcheck(net, X, targets(loss, 8, 2))
        assert result, str(result)


@needs_compiler
def test_networks_and_ops_on_the_emulator():
    net = MLP([3, 4, 2], loss="cross_entropy", device="emulator", seed=1)
    assert gradcheck(net, random(5, 3), targets("cross_entropy", 5, 2), entries=3)
    X, W = (to_device(array, "emulator") for array in (random(4, 3), random(3, 2)))
    assert isinstance(X, emulator.EmulatedArray)
    result = gradcheck(ops.linear, {"X": X, "W": W}, activation="tanh")
    assert result, str(result)
    assert result.checked == {"X": 12, "W": 6}


def test_pytorch_functions():
    torch = pytest.importorskip("torch")
    x = torch.randn(3, 2, dtype=torch.float64)
    assert gradcheck(lambda x: torch.tanh(x).sum(), x, gradient=lambda x: 1 - torch.tanh(x) ** 2)
    assert not gradcheck(lambda x: torch.tanh(x).sum(), x, gradient=lambda x: 1 - torch.tanh(x))


# ---- planted faults fail -----------------------------------------------------------------------------

PAIRS = [("relu", "mse"), ("sigmoid", "bce"), ("tanh", "cross_entropy"), ("softplus", "hinge")]
SMOOTH = ["relu", "sigmoid", "tanh", "softplus"]
ALL_PAIRS = list(itertools.product(SMOOTH, ["mse", "bce", "cross_entropy", "hinge"]))


@pytest.mark.parametrize("fault", FAULTS)
def test_every_planted_fault_fails(monkeypatch, fault):
    fails_on(monkeypatch, fault, PAIRS)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_every_planted_fault_fails_for_every_activation_and_loss(monkeypatch, fault):
    fails_on(monkeypatch, fault, ALL_PAIRS)


def fails_on(monkeypatch, fault, pairs):
    X, sizes = random(7, 3), (3, 5, 4)
    plant(monkeypatch, fault)
    for activation, loss in pairs:
        net = network(activation, loss, sizes=sizes)
        y = targets(loss, 7, 4)
        slow, fast = gradcheck(net, X, y), gradcheck(net, X, y, fast_mode=True)
        assert not slow, f"{loss}\n{slow}"
        assert not fast, f"{loss}\n{fast}"
        assert not gradcheck(network(activation, loss, sizes=sizes, dtype="float32"), X, y)
        assert not slow.worst[0].right
        assert sum(slow.wrong.values()) > 0


@pytest.mark.parametrize("name", activation_op.NAMES)
def test_every_wrong_activation_derivative_fails(monkeypatch, name):
    z = random(5, 3)
    wrong = {
        "relu": lambda a, da, out, scratch: np.copyto(out, da),
        "sigmoid": lambda a, da, out, scratch: np.copyto(out, da * (1 - a)),
        "tanh": lambda a, da, out, scratch: np.copyto(out, da * (1 - a)),
        "softplus": lambda a, da, out, scratch: np.copyto(out, da * np.exp(-a)),
        "identity": lambda a, da, out, scratch: np.copyto(out, a),
    }
    monkeypatch.setitem(activation_op._BACKWARD, name, wrong[name])
    assert not gradcheck(ops.activation, z, name=name)
    assert not gradcheck(ops.linear, (z, random(3, 4)), activation=name)
    if name != "identity":  # which the network leaves out
        assert not gradcheck(network(name, "mse"), random(5, 3), random(5, 2))
        assert not gradcheck(ops.loss, z, random(5, 3, seed=4), loss="mse", output=name)


def test_an_error_in_float32_alone_is_seen(monkeypatch):
    X, y = random(40, 6), targets("cross_entropy", 40, 3)
    net = network(dtype="float32", sizes=(6, 8, 3), loss="cross_entropy")
    right = MLP.loss_and_grad

    def wrong(self, *args, **more):
        loss, gradients = right(self, *args, **more)
        if self.dtype == np.float32:
            gradients["W1"][2, 3] *= 1.02
        return loss, gradients

    monkeypatch.setattr(MLP, "loss_and_grad", wrong)
    result = gradcheck(net, X, y)
    assert not result
    assert result.wrong["W1 as float32"] == 1
    assert result.worst[0].index == (2, 3)
    assert "W1 as float32" in str(result)


def test_a_loss_that_is_not_that_of_the_gradients_is_seen(monkeypatch):
    right = MLP.loss_and_grad
    monkeypatch.setattr(
        MLP, "loss_and_grad", lambda self, *a, **k: (right(self, *a, **k)[0] * 1.001, right(self, *a, **k)[1])
    )
    result = gradcheck(network(), random(7, 3), random(7, 2))
    assert result.wrong == {"W1": 0, "b1": 0, "W2": 0, "b2": 0, "loss": 1}
    assert not result


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"entries": 0}, "entries: expected a whole number, 1 or more, got 0"),
        ({"entries": -1}, "entries: expected a whole number, 1 or more, got -1"),
        ({"entries": 2.5}, "entries: expected a whole number, 1 or more, got 2.5"),
        ({"eps": 0}, "eps: expected a finite number above 0, got 0"),
        ({"eps": "small"}, "eps: expected a finite number above 0, got 'small'"),
    ],
)
def test_numbers_that_make_no_check_are_refused(settings, message):
    net = hg.MLP([3, 2], device="cpu")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        hg.gradcheck(net, np.ones((4, 3)), np.ones((4, 2)), **settings)
