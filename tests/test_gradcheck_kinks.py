"""Kinks in the gradient check: seen, avoided and named; and the differences that it takes."""

import math

import numpy as np
import pytest
from gradcheck_cases import network, plant, random, targets

from handgrad.gradients import differences
from handgrad.gradients.gradcheck import gradcheck


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
