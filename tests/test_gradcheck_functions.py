"""The gradient check of one's own functions and layers, its result, and wrong calls."""

import itertools
import math

import numpy as np
import pytest
from gradcheck_cases import network, plant, random, targets

from handgrad import ops
from handgrad.gradients import checked_function
from handgrad.gradients.check_result import GradientError
from handgrad.gradients.gradcheck import gradcheck


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


def test_names_of_inputs():
    assert checked_function._names(lambda a, b, *, c: None, 2) == ["a", "b"]
    assert checked_function._names(max, 2) == ["input 0", "input 1"]
    assert list(itertools.chain(checked_function._names(lambda *a: None, 1))) == ["input 0"]


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

    w = random(3)
    w.flags.writeable = False  # the check moves copies
    assert gradcheck(lambda w: np.sum(w**3), w, gradient=lambda w: 3 * w**2, method="central")


def test_the_network_and_the_data_are_left_as_they_were():
    for dtype in ("float32", "float64"):
        net = network(dtype=dtype)
        X, y = random(7, 3), random(7, 2)
        before = [array.copy() for array in (X, y, net.flat_parameters.flat)]
        gradcheck(net, X, y, input_grad=True)
        gradcheck(net, X, y, input_grad=True, fast_mode=True)
        for old, new in zip(before, (X, y, net.flat_parameters.flat), strict=True):
            np.testing.assert_array_equal(old, new)
