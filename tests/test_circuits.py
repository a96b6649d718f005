"""Circuits of scalar gates: the document's values to their digits, forks, numerical checks, the drawing."""

import math
from itertools import pairwise

import numpy as np
import pytest

from handgrad import circuit_drawing, circuits
from handgrad.circuits import Wire, backward, exp, inputs, maximum, reciprocal, sigmoid, square
from handgrad.gradients.gradcheck import gradcheck


def staged(x, y):
    """(x + σ(y)) / (σ(x) + (x + y)²) in stages, in the order of the document."""
    num = (x + sigmoid(y).named("sigy")).named("num")
    sigx = sigmoid(x).named("sigx")
    xpy = (x + y).named("xpy")
    den = (sigx + square(xpy).named("xpysqr")).named("den")
    return num * reciprocal(den).named("invden")


def neuron():
    w0, w1, w2, x0, x1 = inputs(w0=2, w1=-3, w2=-3, x0=-1, x1=-2)
    return (w0 * x0 + w1 * x1 + w2).named("dot")


def test_the_three_gates():
    x, y = inputs(x=4, y=-3)
    f = x * y
    assert (f.value, backward(f)) == (-12, {"x": -3, "y": 4})
    assert backward(x + y) == {"x": 1, "y": 1}
    x, y = inputs(x=4, y=2)
    f = maximum(x, y)
    assert (f.value, backward(f)) == (4, {"x": 1, "y": 0})
    assert backward(maximum(y, x)) == {"x": 1, "y": 0}
    x, y = inputs(x=2, y=2)
    assert backward(maximum(x, y)) == {"x": 1, "y": 1}  # >= for both, as the document has it


def test_the_compound_expression():
    x, y, z = inputs(x=-2, y=5, z=-4)
    f = (x + y).named("q") * z
    assert (f.value, backward(f)) == (-12, {"x": -4, "y": -4, "z": 3, "q": -4})


def test_the_patterns_of_the_backward_flow():
    x, y, z, w = inputs(x=3, y=-4, z=2, w=-1)
    f = (x * y + maximum(z, w)) * 2
    assert (f.value, backward(f)) == (-20, {"x": -8, "y": 6, "z": 2, "w": 0})


def test_the_sigmoid_neuron_as_one_gate_and_as_four():
    expected = {"x0": 0.3932238665, "x1": -0.5898357997, "dot": 0.1966119332}
    expected |= {"w0": -0.1966119332, "w1": -0.3932238665, "w2": 0.1966119332}
    dot = neuron()
    assert dot.value == 1
    f = sigmoid(dot)
    assert f.value == pytest.approx(0.7310585786, abs=5e-11)
    assert backward(f) == pytest.approx(expected, abs=5e-11)
    negated = -neuron()
    power = exp(negated)
    more = power + 1
    f = reciprocal(more)
    assert backward(f) == pytest.approx(expected, abs=5e-11)
    values = [round(wire.value, 4) for wire in (power, more, f)]
    assert values == [0.3679, 1.3679, 0.7311]
    found = [wire.gradient for wire in (more, power, negated, negated.sources[0])]
    np.testing.assert_allclose(found, [-0.5344466, -0.5344466, -0.1966119, 0.1966119], atol=5e-8)


def test_staged_computation_and_the_mistake_at_forks():
    f = staged(*inputs(x=3, y=-4))
    assert f.value == pytest.approx(1.5456448841, abs=5e-11)
    found = backward(f)
    assert found["x"] == pytest.approx(2.0595697956, abs=5e-11)
    assert found["y"] == pytest.approx(1.5922327515, abs=5e-11)
    assert found["den"] == pytest.approx(-0.7915934473, abs=5e-11)
    den = next(wire for wire in circuits.wires(f) if wire.name == "den")
    assert den.value == pytest.approx(1.9525741268, abs=5e-11)
    wrong = backward(f, at_forks="overwrite")
    assert wrong["x"] == pytest.approx(0.5121444488, abs=5e-11)
    assert wrong["y"] == pytest.approx(0.0090458569, abs=5e-11)
    assert backward(f) == found  # nothing is left over from the call before
    with pytest.raises(ValueError, match="at_forks: expected 'add' or 'overwrite'"):
        backward(f, at_forks="+=")


def gradient_of(build, names):
    def function(*values):
        wires = [Wire(float(value), name=name) for name, value in zip(names, values, strict=True)]
        output = build(*wires)
        found = backward(output)
        return output.value, [found.get(name, 0.0) for name in names]

    return function


@pytest.mark.parametrize(
    "build",
    [
        staged,
        lambda x, y: x * x * y + x / y,
        lambda x, y: (x - y) * (2 - x) - 3 * y - 1,
        lambda x, y: exp(-square(x)) / 2 + sigmoid(x * y) * maximum(x, y),
        lambda x, y: maximum(x, x * y) + (y + 5) / (square(x) + 1),
    ],
)
@pytest.mark.parametrize("point", [(3.0, -4.0), (0.3, 0.7), (-1.2, 2.5)])
def test_every_circuit_agrees_with_differences(build, point):
    result = gradcheck(gradient_of(build, ("x", "y")), point)
    assert result, str(result)
    x, y = (Wire(value, name=name) for value, name in zip(point, "xy", strict=True))
    broken = build(x, y)
    backward(broken, at_forks="overwrite")
    slopes = [entry.numeric for entry in sorted(result.worst, key=lambda entry: entry.parameter)]
    assert not np.allclose([x.gradient, y.gradient], slopes, rtol=1e-3)  # each has a fork


def test_no_overflow_in_the_sigmoid_gate():
    for x, value in ((1000.0, 1.0), (-1000.0, 0.0), (0.0, 0.5)):
        (wire,) = inputs(x=x)
        f = sigmoid(wire)
        assert f.value == value
        assert backward(f)["x"] == value * (1 - value)
    assert sigmoid(inputs(x=-2.5)[0]).value == pytest.approx(1 / (1 + math.exp(2.5)), rel=1e-15)


def test_long_circuits_need_no_recursion():
    (x,) = inputs(x=1)
    f = x
    for _ in range(5000):
        f = f + x
    assert f.value == 5001
    assert backward(f)["x"] == 5001


# ---- the drawing -------------------------------------------------------------------------------------


@pytest.fixture
def written(monkeypatch):
    """Every text that is drawn, with its colour."""
    from matplotlib.axes import Axes

    texts = []
    original = Axes.text

    def text(self, x, y, s, *args, **settings):
        texts.append((s, settings.get("color", "")))
        return original(self, x, y, s, *args, **settings)

    monkeypatch.setattr(Axes, "text", text)
    return texts


def test_the_drawing_shows_values_in_green_and_gradients_in_red(tmp_path, written):
    f = staged(*inputs(x=3, y=-4))
    backward(f)
    circuit_drawing.draw(f, tmp_path / "staged.png", title="staged")
    assert (tmp_path / "staged.png").read_bytes().startswith(b"\x89PNG")
    for wire in circuits.wires(f):
        assert (circuit_drawing.number(wire.value), circuit_drawing.VALUE) in written
        assert (circuit_drawing.number(wire.gradient), circuit_drawing.GRADIENT) in written
        assert not wire.name or (wire.name, "") in written
    branches = [
        circuit_drawing.number(flow) for flow in (-0.7915934473 * 0.9525741268 * 0.0474258732, 0.0090458569)
    ]
    for branch in branches:  # what x and y get from the branches through σ
        assert (branch, circuit_drawing.GRADIENT) in written
    assert written[0] == ("staged", "")


def test_gates_stand_apart_and_in_order():
    f = staged(*inputs(x=3, y=-4))
    columns = circuit_drawing._columns(f)
    circuit_drawing._arrange(columns)
    assert len(columns) == 6
    assert [place.wire.name for place in columns[0]] in (["x", "y"], ["y", "x"])
    for column in columns:
        heights = [place.y for place in column]
        assert all(b - a >= 1 - 1e-9 for a, b in pairwise(heights))
        for place in column:
            assert all(right.column == place.column + 1 for right in place.right)
    assert circuit_drawing._crossings(columns) <= 1  # x and y both go to x + y, σ and another place


def test_heights_are_the_nearest_that_stand_apart():
    assert circuit_drawing._apart([0.0, 0.0, 0.0]) == [-1.0, 0.0, 1.0]
    assert circuit_drawing._apart([0.0, 5.0, 5.5]) == [0.0, 4.75, 5.75]
    assert circuit_drawing._apart([]) == []


def test_a_single_wire_and_a_single_gate_are_drawn(tmp_path):
    (x,) = inputs(x=2)
    backward(x)
    circuit_drawing.draw(x, tmp_path / "wire.png")
    f = square(x)
    backward(f)
    circuit_drawing.draw(f, tmp_path / "gate.png")
    assert (tmp_path / "gate.png").stat().st_size > (tmp_path / "wire.png").stat().st_size > 1000
