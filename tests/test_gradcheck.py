"""The gradient check: right gradients pass, every planted fault fails, kinks are seen, avoided and named."""

import itertools
import math

import numpy as np
import pytest
from small_networks import needs_compiler

import handgrad as hg
from handgrad import emulator, ops
from handgrad.arrays import to_device
from handgrad.gradients import checked_function, differences
from handgrad.gradients.check_result import GradientError
from handgrad.gradients.gradcheck import gradcheck
from handgrad.network import MLP
from handgrad.ops import activation as activation_op
from handgrad.ops import linear
from handgrad.ops import loss as loss_op

LOSSES = [("mse", output) for output in activation_op.NAMES]
LOSSES += [(loss, "identity") for loss in ("bce", "cross_entropy", "hinge")]


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def targets(loss, N, C, seed=1):
    rng = np.random.default_rng(seed)
    if loss in ("cross_entropy", "hinge"):
        return rng.integers(0, C, N)
    return rng.random((N, C)) if loss == "bce" else rng.normal(size=(N, C))


def network(activation="relu", loss="mse", output="identity", sizes=(3, 5, 2), **settings):
    settings = {"dtype": "float64", "seed": 3} | settings
    net = MLP(list(sizes), activation=activation, loss=loss, output=output, device="cpu", **settings)
    for name, view in net.parameters.items():
        if name.startswith("b"):
            view[...] = 0.3 * random(*view.shape, seed=9)
    return net


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

FAULTS = {
    "no activation derivative": ("backward_input", lambda dZ, W, A, f: dZ @ W.T),
    "derivative is the activation": (
        "backward_input",
        lambda dZ, W, A, f: (dZ @ W.T) * (A if A is not None else 1),
    ),
    "sign of dA": ("backward_input", lambda dZ, W, A, f: -linear_input(dZ, W, A, f)),
    "extra 1/N": ("backward_input", lambda dZ, W, A, f: linear_input(dZ, W, A, f) / len(dZ)),
    "mean for sum": ("backward_weight", lambda X, dZ: (X.T @ dZ / len(X), dZ.sum(axis=0))),
    "bias averaged": ("backward_weight", lambda X, dZ: (X.T @ dZ, dZ.mean(axis=0))),
    "bias missing": ("backward_weight", lambda X, dZ: (X.T @ dZ, 0 * dZ.sum(axis=0))),
    "bias of the first sample": ("backward_weight", lambda X, dZ: (X.T @ dZ, dZ[0].copy())),
    "odd samples lost": ("backward_weight", lambda X, dZ: (X[::2].T @ dZ[::2], dZ.sum(axis=0))),
    "one entry wrong": ("backward_weight", lambda X, dZ: (bump(X.T @ dZ), dZ.sum(axis=0))),
    "half": ("forward_backward", lambda loss, dZ: (loss, dZ / 2)),
    "sign": ("forward_backward", lambda loss, dZ: (loss, -dZ)),
    "sample 0 forgotten": ("forward_backward", lambda loss, dZ: (loss, np.vstack([0 * dZ[:1], dZ[1:]]))),
    "not scaled": ("forward_backward", lambda loss, dZ: (loss, dZ * len(dZ))),
    "1 / (N + 1)": ("forward_backward", lambda loss, dZ: (loss, dZ * len(dZ) / (len(dZ) + 1))),
    "loss is no number of these": ("forward_backward", lambda loss, dZ: (loss, dZ * np.nan)),
}
RIGHT = {name: getattr(linear, name) for name in ("backward_input", "backward_weight")}
RIGHT["forward_backward"] = loss_op.forward_backward


def linear_input(dZ, W, A, f):
    return RIGHT["backward_input"](dZ, W, A, f)


def bump(dW):
    dW[-1, -1] *= 1.01
    return dW


def plant(monkeypatch, fault):
    where, wrong = FAULTS[fault]

    def backward_input(dZ, W, A=None, activation="identity", out=None, workspace=None):
        found = wrong(dZ, W, A, activation)
        if out is not None:
            out[...] = found
        return found if out is None else out

    def backward_weight(X, dZ, dW=None, db=None, bias=True, workspace=None):
        found = wrong(X, dZ)
        if dW is not None:
            dW[...] = found[0]
        if db is not None:
            db[...] = found[1]
        return found[0] if dW is None else dW, (found[1] if db is None else db) if bias else None

    def forward_backward(Z, y, *settings, out=None, workspace=None, **more):
        loss, dZ = wrong(*RIGHT["forward_backward"](Z, y, *settings, **more))
        if out is not None:
            out[...] = dZ
        return loss, dZ if out is None else out

    module = loss_op if where == "forward_backward" else linear
    monkeypatch.setattr(module, where, locals()[where])


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
        "relu": lambda a, da, out: np.copyto(out, da),
        "sigmoid": lambda a, da, out: np.copyto(out, da * (1 - a)),
        "tanh": lambda a, da, out: np.copyto(out, da * (1 - a)),
        "softplus": lambda a, da, out: np.copyto(out, da * np.exp(-a)),
        "identity": lambda a, da, out: np.copyto(out, a),
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


# ---- kinks -------------------------------------------------------------------------------------------


def kinked_network(preactivation):
    """One unit of layer 1 so far from its kink, for sample 2."""
    net = network(sizes=(3, 4, 2))
    X = random(6, 3)
    b1 = np.array(net.parameters["b1"])
    b1[1] += preactivation - (X[2] @ net.parameters["W1"] + b1)[1]
    net.parameters["b1"][...] = b1
    return net, X, random(6, 2)


@pytest.mark.parametrize("distance", [1e-6, -1e-6, 3e-9, -3e-9, 1e-12, -1e-12])
def test_kinks_near_the_point_are_avoided_and_named(distance):
    net, X, y = kinked_network(distance)
    result = gradcheck(net, X, y, input_grad=True)
    assert result, str(result)
    assert result.total_kinks >= 2  # b1[1] and the column of W1 at least
    assert sum(result.checked.values()) == sum(v.size for v in net.parameters.values()) + X.size + 1
    named = [kink for kink in result.kinks if kink.startswith("b1[1]")]
    assert named
    assert "Z1[2, 1] = " in named[0]
    assert "(relu)" in named[0]
    assert named[0] in str(result)


@pytest.mark.parametrize("distance", [1e-6, 1e-9])
def test_a_wrong_gradient_beside_a_kink_is_still_wrong(monkeypatch, distance):
    net, X, y = kinked_network(distance)
    plant(monkeypatch, "bias averaged")
    result = gradcheck(net, X, y)
    assert result.wrong["b1"] == 4


def test_the_margin_of_the_hinge_is_a_kink_with_a_name():
    net = network("tanh", "hinge", sizes=(3, 4, 3))
    X, y = random(5, 3), targets("hinge", 5, 3)
    Z = np.tanh(X @ net.parameters["W1"] + net.parameters["b1"]) @ net.parameters["W2"] + net.parameters["b2"]
    other = (y[3] + 1) % 3
    net.parameters["b2"][other] += (Z[3, y[3]] - 1 + 2e-6) - Z[3, other]  # its margin is now 2e-6
    result = gradcheck(net, X, y)
    assert result, str(result)
    assert any(f"margin[3, {other}] = 2.0e-06 (hinge)" in kink for kink in result.kinks)


@pytest.mark.parametrize("fast_mode", [False, True])
def test_zeros_everywhere(fast_mode):
    """All pre-activations are 0: one side of every kink is clean, and f'(0) = 0 agrees with it."""
    net = network(init="zeros")
    for view in net.parameters.values():
        view[...] = 0
    X, y = random(6, 3), random(6, 2)
    result = gradcheck(net, X, y, fast_mode=fast_mode)
    assert result, str(result)
    net.parameters["W2"][...] = random(5, 2)
    result = gradcheck(net, X, y, fast_mode=fast_mode)  # now W1 moves units to both sides
    assert result, str(result)
    assert result.total_kinks
    assert "not checked" in str(result) or "between" in str(result)


def test_dead_units_and_ties():
    net = network(sizes=(3, 6, 2))
    net.parameters["b1"][:3] = -100
    X = random(6, 3)
    X[4] = X[5]
    assert gradcheck(net, X, random(6, 2), input_grad=True)
    x = np.array([2.0, 2.0, -1.0])
    first = lambda x: (x == x.max()) & (np.arange(3) == x.argmax())  # noqa: E731
    result = gradcheck(np.max, x, gradient=lambda a: first(a).astype(float))
    assert result, str(result)
    assert result.total_kinks == 1  # the second of the two that are the greatest
    assert "a[1]: a kink here: slope 0 below, 1 above; the gradient lies between" in str(result)


def test_kinks_of_a_function_that_tells_nothing():
    x = np.array([0.0, 1e-7, -2e-9, 1.0])
    result = gradcheck(lambda x: np.abs(x).sum(), x, gradient=lambda x: np.where(x == 0, 0.5, np.sign(x)))
    assert result, str(result)
    assert result.total_kinks == 3
    assert "a kink here: slope -1 below, 1 above; the gradient lies between" in result.kinks[0]
    assert "x[1]: a kink within" in result.kinks[1]
    for wrong in (lambda x: 1.01 * np.sign(x), lambda x: np.sign(x) + 1.5 * (x == 0)):
        assert not gradcheck(lambda x: np.abs(x).sum(), x, gradient=wrong)


def test_curvature_is_not_taken_for_a_kink():
    x = np.array([1e-3, 2e-3, 5e-3])
    result = gradcheck(lambda x: np.sum(1 / x), x, gradient=lambda x: -1 / x**2, method="central")
    assert result, str(result)
    assert result.total_kinks == 0
    assert not gradcheck(lambda x: np.sum(1 / x), x, gradient=lambda x: -1.0001 / x**2, method="central")


# ---- functions of one's own --------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_the_complex_step_is_taken_where_the_function_allows_it():
    x = random(4, 3)
    result = gradcheck(lambda x: sigmoid(x).sum(), x, gradient=lambda x: sigmoid(x) * (1 - sigmoid(x)))
    assert result
    assert "complex step" in result.method
    assert max(entry.error for entry in result.worst) < 1e-14
    slightly_wrong = gradcheck(
        lambda x: sigmoid(x).sum(), x, gradient=lambda x: (1 + 1e-8) * sigmoid(x) * (1 - sigmoid(x))
    )
    assert not slightly_wrong


@pytest.mark.parametrize(
    ("function", "slope", "reason"),
    [
        (lambda x: np.abs(x).sum(), np.sign, "differences give"),  # real for every complex number
        (lambda x: float(np.sum(x**2)), lambda x: 2 * x, "raises ComplexWarning"),
        (lambda x: sum(math.exp(v) for v in x.flat), np.exp, "raises ComplexWarning"),
    ],
)
def test_the_complex_step_is_refused_where_it_would_be_wrong(function, slope, reason):
    x = random(4, 3)
    result = gradcheck(function, x, gradient=slope)
    assert result, str(result)
    assert "central" in result.method
    with pytest.raises(ValueError, match=rf"method='complex': the function does not allow it.*{reason}"):
        gradcheck(function, x, gradient=slope, method="complex")


def test_forward_and_backward_of_ones_own():
    def forward(x, w):
        return np.tanh(x @ w)

    def backward(upstream, x, w):
        d = upstream * (1 - np.tanh(x @ w) ** 2)
        return d @ w.T, x.T @ d

    inputs = (random(4, 3), random(3, 2))
    assert gradcheck(forward, inputs, backward=backward)
    assert gradcheck(forward, {"x": inputs[0], "w": inputs[1]}, backward=backward)
    result = gradcheck(forward, inputs, backward=lambda up, x, w: backward(np.ones_like(up), x, w))
    assert not result  # the upstream gradient is ignored
    assert set(result.checked) == {"x", "w"}
    cached = lambda x, w: (forward(x, w), (x, w))  # noqa: E731
    assert gradcheck(cached, inputs, backward=lambda up, cache: backward(up, *cache))
    assert gradcheck(
        cached, inputs, backward=lambda up, cache: dict(zip(("dx", "dw"), backward(up, *cache), strict=True))
    )
    lost = gradcheck(cached, inputs, backward=lambda up, cache: {"x": backward(up, *cache)[0]})
    assert not lost
    assert "w: no gradient" in str(lost)


class Layer:
    def __init__(self, derivative):
        self.derivative = derivative

    def forward(self, x):
        self.y = sigmoid(x)
        return self.y

    def backward(self, grad):
        return grad * self.derivative(self.y)


def test_layers_with_both_passes():
    assert gradcheck(Layer(lambda y: y * (1 - y)), random(3, 2))
    assert not gradcheck(Layer(lambda y: y), random(3, 2))

    class Learns(Layer):
        shift = 0.0

        def forward(self, x):
            return super().forward(x + self.shift)

        def backward(self, grad):
            self.shift = self.shift + 0.1
            return super().backward(grad)

    with pytest.raises(ValueError, match="the backward pass changed the function"):
        gradcheck(Learns(lambda y: y * (1 - y)), random(3, 2))


def test_a_function_that_returns_both():
    assert gradcheck(lambda w: (np.sum(w**2), 2 * w), random(5))
    assert gradcheck(lambda v, w: (np.sum(v * w), (w, v)), (random(5), random(5, seed=2)))
    assert gradcheck(lambda x, y: (x * y, {"dx": y, "dy": x}), (4.0, -3.0))
    assert not gradcheck(lambda x, y: (x * y, {"dx": x, "dy": y}), (4.0, -3.0))


def test_integer_inputs_are_constants():
    labels = np.array([0, 2, 1])

    def loss(Z, y):
        shifted = Z - Z.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        dZ = np.exp(log_p)
        dZ[np.arange(3), y] -= 1
        return -log_p[np.arange(3), y].sum(), dZ

    result = gradcheck(loss, (random(3, 4), labels))
    assert result, str(result)
    assert set(result.checked) == {"Z"}


def test_functions_in_float32():
    x = random(5)

    def loss(x):
        return np.float32(np.sum(np.tanh(x.astype(np.float32))))

    assert gradcheck(loss, x, gradient=lambda x: 1 - np.tanh(x) ** 2)
    assert not gradcheck(loss, x, gradient=lambda x: 1 - np.tanh(x))


def test_tolerances_and_step_are_those_asked_for():
    x = np.array([1.0, 2.0])
    near = lambda x: 2 * x + 1e-3  # noqa: E731
    square = lambda x: np.sum(x**2)  # noqa: E731
    assert not gradcheck(square, x, gradient=near)
    assert gradcheck(square, x, gradient=near, atol=2e-3)
    assert gradcheck(square, x, gradient=near, rtol=1e-2)
    result = gradcheck(square, x, gradient=near, eps=1e-4, atol=0.0, rtol=0.0)
    assert not result
    assert "step 0.0001" in result.method
    assert result.worst[0].error == pytest.approx(1e-3, rel=1e-4)
    rough = gradcheck(lambda x: np.sum(x**3), x, gradient=lambda x: 3 * x**2, eps=0.5)
    assert rough.worst[0].numeric == pytest.approx(
        3 * rough.worst[0].analytic / 3, rel=1e-3
    )  # looked at again


def test_random_directions_and_samples_of_entries():
    net = network(sizes=(30, 20, 3), loss="cross_entropy")
    X, y = random(9, 30), targets("cross_entropy", 9, 3)
    fast = gradcheck(net, X, y, fast_mode=True)
    assert fast.checked == {"W1": 4, "b1": 4, "W2": 4, "b2": 4, "loss": 1}
    assert "16 directions" in str(fast)
    some = gradcheck(net, X, y, entries=7, seed=2)
    assert some.checked["W1"] == 7
    assert some.checked["b2"] == 3
    assert some.worst != gradcheck(net, X, y, entries=7, seed=3).worst
    assert some.worst == gradcheck(net, X, y, entries=7, seed=2).worst


# ---- the result, and wrong calls ---------------------------------------------------------------------


def test_the_result_prints_a_table_and_raises_on_request(monkeypatch):
    plant(monkeypatch, "one entry wrong")
    net, X, y = network(), random(7, 3), random(7, 2)
    result = gradcheck(net, X, y, worst=3)
    assert len(result.worst) == 3
    lines = str(result).splitlines()
    assert lines[0].startswith("gradient check FAILED by central differences")
    assert "W1 1 of 15, W2 1 of 10" in lines[0]
    assert lines[2].split() == ["parameter", "index", "analytic", "numeric", "error", "allowed"]
    assert [line.split()[0] for line in lines[3:5]] == ["x", "x"]
    assert {line.split("[")[1].split("]")[0] for line in lines[3:5]} == {"2, 4", "4, 1"}
    assert "handgrad.diagnose" in lines[-1]
    with pytest.raises(GradientError, match="FAILED") as error:
        gradcheck(net, X, y, raise_exception=True)
    assert error.value.result.wrong == result.wrong
    import json

    report = json.loads(json.dumps(result.to_dict()))
    assert report["passed"] is False
    assert report["worst"][0]["right"] is False


def test_wrong_shapes_and_missing_gradients_are_problems():
    w = random(3, 2)
    turned = gradcheck(lambda w: np.sum(w**2), w, gradient=lambda w: 2 * w.T)
    assert not turned
    assert "w: the gradient has shape (2, 3), expected (3, 2) (it is transposed)" in str(turned)
    few = gradcheck(lambda v, w: np.sum(v) + np.sum(w), (w, w), gradient=lambda v, w: np.ones_like(v))
    assert "one gradient for 2 inputs (v, w)" in str(few)
    many = gradcheck(lambda v, w: np.sum(v) + np.sum(w), (w, w), gradient=lambda v, w: (v, v, v))
    assert "3 gradients for 2 inputs (v, w)" in str(many)
    nothing = gradcheck(lambda w: np.sum(w), np.zeros((0, 3)), gradient=lambda w: w)
    assert not nothing
    assert "nothing to compare" in str(nothing)


def test_not_a_number_is_wrong():
    w = random(4)
    nan = gradcheck(lambda w: np.sum(w**2), w, gradient=lambda w: np.where(np.arange(4) == 2, np.nan, 2 * w))
    assert nan.wrong == {"w": 1}
    assert nan.worst[0].index == (2,)


def test_wrong_calls_are_told_in_one_line():
    w, net = random(3), network()
    calls = [
        (lambda: gradcheck(net, random(4, 3), None), ValueError, "y: expected targets"),
        (lambda: gradcheck(net, random(4, 5), random(4, 2)), ValueError, "X: expected 3 columns"),
        (
            lambda: gradcheck(net, random(4, 3), random(4, 2), method="numeric"),
            ValueError,
            "method: expected",
        ),
        (lambda: gradcheck(net, random(4, 3), random(4, 2), activation="relu"), TypeError, "takes X and y"),
        (lambda: gradcheck(np.sum, w, input_grad=True), TypeError, "input_grad"),
        (lambda: gradcheck(np.sum, w), TypeError, r"must return \(value, gradients\)"),
        (lambda: gradcheck(3, w), TypeError, "expected an MLP, an op, a function or a layer, got int"),
        (lambda: gradcheck(np.tanh, w, gradient=np.cos), ValueError, "for a scalar function"),
        (lambda: gradcheck(np.sum, np.arange(3), gradient=np.cos), ValueError, "no float input"),
        (lambda: gradcheck(np.sum, w, gradient=np.cos, backward=np.cos), TypeError, "not both"),
        (lambda: gradcheck(ops.batch, w), TypeError, "no backward pass"),
        (lambda: gradcheck(ops.linear, (w, w), backward=np.cos), TypeError, "the op's own backward"),
        (
            lambda: gradcheck(lambda w: np.argmax(w), w, gradient=np.cos),
            TypeError,
            "float32 or float64 numbers",
        ),
        (lambda: gradcheck(lambda w: np.sum(w) * np.nan, w, gradient=np.cos), ValueError, "finite numbers"),
    ]
    for call, kind, message in calls:
        with pytest.raises(kind, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_a_function_must_be_deterministic_and_leave_its_inputs_alone():
    rng = np.random.default_rng(0)
    noisy = lambda w: np.sum(w) + 1e-3 * rng.random()  # noqa: E731
    with pytest.raises(ValueError, match="not deterministic"):
        gradcheck(noisy, random(3), gradient=np.ones_like)

    def writes(w):
        w *= 2
        return np.sum(w)

    with pytest.raises(ValueError, match="changed its input w in place"):
        gradcheck(writes, random(3), gradient=np.ones_like)


def test_the_network_and_the_data_are_left_as_they_were():
    for dtype in ("float32", "float64"):
        net = network(dtype=dtype)
        X, y = random(7, 3), random(7, 2)
        before = [array.copy() for array in (X, y, net.flat_parameters.flat)]
        gradcheck(net, X, y, input_grad=True)
        gradcheck(net, X, y, input_grad=True, fast_mode=True)
        for old, new in zip(before, (X, y, net.flat_parameters.flat), strict=True):
            np.testing.assert_array_equal(old, new)


# ---- differences -------------------------------------------------------------------------------------


def test_the_central_difference_is_as_good_as_it_says():
    line = lambda t: differences.Point(math.exp(1 + t))  # noqa: E731
    unit = np.finfo(np.float64).eps
    slope = differences.central(line, differences.step_for(unit, 1.0), unit)
    assert abs(slope.value - math.e) < slope.noise + 1e-10
    assert slope.contains(math.e, 1e-10)
    assert not slope.contains(math.e + 1e-6, 1e-10)


def test_the_nearest_of_several_crossings_is_named():
    base = differences.Point(0.0, {"Z1 relu": np.array([[1e-3, -2e-4]]), "Z2 relu": np.array([[0.5]])})
    other = differences.Point(0.0, {"Z1 relu": np.array([[-1.0, 1.0]]), "Z2 relu": np.array([[-1.0]])})
    assert differences.crossing(base, other) == "Z1[0, 1] = -2.0e-04 (relu)"
    assert differences.crossing(base, base) == ""


def test_names_of_inputs():
    assert checked_function._names(lambda a, b, *, c: None, 2) == ["a", "b"]
    assert checked_function._names(max, 2) == ["input 0", "input 1"]
    assert list(itertools.chain(checked_function._names(lambda *a: None, 1))) == ["input 0"]
