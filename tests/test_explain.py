"""explain: its numbers against a reference, warnings at their thresholds, the picture."""

import json

import numpy as np
import pytest
from gradcheck_cases import random, targets
from reference_network import network
from small_networks import needs_compiler

from handgrad import datasets
from handgrad.gradients import health
from handgrad.gradients.explain import explain
from handgrad.gradients.explain_drawing import number3
from handgrad.network import MLP
from handgrad.ops import activation as activation_op

LOSSES = [("mse", output) for output in activation_op.NAMES]
LOSSES += [(loss, "identity") for loss in ("bce", "cross_entropy", "hinge")]
DIGITS = datasets.load().train.head(128)


def ids(explained):
    return [(warning.id, warning.where) for warning in explained.warnings]


# ---- the table ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "output"), LOSSES)
@pytest.mark.parametrize("activation", activation_op.NAMES)
def test_every_number_is_that_of_the_reference(activation, loss, output):
    net = MLP([4, 6, 5, 3], activation=activation, loss=loss, output=output, dtype="float64", device="cpu")
    X, y = random(9, 4), targets(loss, 9, 3)
    explained = explain(net, X, y)
    found = network(net.config(), X, y, dict(net.parameters))
    values = {name: bounded.value for name, bounded in found.items()} | dict(net.parameters) | {"X": X}
    assert explained.loss == pytest.approx(float(values["loss"]), rel=1e-12)
    names = ["X", "W1", "b1", "Z1", "A1", "W2", "b2", "Z2", "A2", "W3", "b3", "Z3", "Y_hat", "loss"]
    assert [quantity.name for quantity in explained.quantities] == names
    for quantity in explained.quantities[:-1]:
        value = values[quantity.name]
        assert quantity.shape == value.shape
        assert quantity.norm == pytest.approx(np.sqrt(np.sum(value**2)), rel=1e-12)
        assert quantity.rms == pytest.approx(np.sqrt(np.mean(value**2)), rel=1e-12)
        assert (quantity.least, quantity.greatest) == pytest.approx((value.min(), value.max()))
        gradient = values.get(f"d{quantity.name}")
        assert (quantity.gradient_norm is None) == (gradient is None) == (quantity.name == "Y_hat")
        if gradient is not None:
            assert quantity.gradient_norm == pytest.approx(
                np.linalg.norm(gradient.ravel()), rel=1e-9, abs=1e-15
            )
            assert quantity.gradient_rms == pytest.approx(np.sqrt(np.mean(gradient**2)), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(("loss", "output"), LOSSES)
@pytest.mark.parametrize("activation", activation_op.NAMES)
def test_every_formula_gives_the_gradient_that_it_stands_by(activation, loss, output):
    """The formulas are text; here they are evaluated, sign by sign, and must give the numbers of the pass."""
    for reduction in ("mean", "sum"):
        settings = {"loss": loss, "output": output, "reduction": reduction, "activation": activation}
        net = MLP([4, 6, 3], **settings, dtype="float64", device="cpu")
        net.parameters["b1"][...] = random(6)
        X, y = random(9, 4), targets(loss, 9, 3)
        value, gradients = net.loss_and_grad(X, y, intermediates=True, input_grad=True)
        names = {name: np.array(array) for name, array in gradients.intermediates.items()}
        names |= {f"d{name}": array for name, array in gradients.items()} | dict(net.parameters)
        for quantity in explain(net, X, y).quantities:
            if quantity.formula not in ("inputs", "parameter"):
                expected = value if quantity.name == "loss" else names[quantity.name]
                np.testing.assert_allclose(evaluate(quantity.formula, names, y), expected, rtol=1e-9)
            if quantity.gradient_formula:
                expected = names[f"d{quantity.name}"]
                found = evaluate(quantity.gradient_formula, names, y)
                np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)


def evaluate(formula, names, y):
    """The formula as Python, for the handful of forms that there are."""
    N, C = names["Y_hat"].shape
    Y = names["Y_hat"]
    sigma = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    special = {
        "Σ (Y_hat - y)²": lambda: np.sum((Y - y) ** 2),
        "Σ log(1 + e^Y_hat) - y Y_hat": lambda: np.sum(np.log(1 + np.exp(Y)) - y * Y),
        "Σ log Σ_j e^Y_hat_j - Y_hat_y": lambda: np.sum(np.log(np.exp(Y).sum(1)) - Y[np.arange(N), y]),
        "Σ_j≠y max(0, Y_hat_j - Y_hat_y + 1)": lambda: np.sum(np.maximum(0, Y - at(Y, y) + 1)) - N,
    }
    for text, value in special.items():
        if formula.endswith(text):
            return value() / {"": 1, "1/N": N, "1/(N C)": N * C}[formula.removesuffix(text).strip()]
    if "V" in formula:
        V = (Y - at(Y, y) + 1 > 0) * (np.arange(C) != y[:, None])
        return (V - np.eye(C)[y] * V.sum(1, keepdims=True)) / (N if "/ N" in formula else 1)
    if formula.startswith("Σ_n "):
        return names[formula.removeprefix("Σ_n ")].sum(axis=0)
    scope = {name: Value(array) for name, array in names.items()}
    scope |= {"y": y, "N": N, "C": C, "max": np.maximum, "tanh": np.tanh, "σ": sigma, "log": np.log}
    scope |= {"softmax": lambda Z: np.exp(Z) / np.exp(Z).sum(1, keepdims=True), "e": None}
    if "I_y" in formula:
        scope["I_y"] = np.eye(C)[y]
    python = formula.replace("2 (", "2 * (").replace("(N C)", "(N * C)").replace(" ∘ ", " * ")
    python = python.replace("e^-", "np.exp(-").replace("e^Z1)", "np.exp(Z1))").replace("e^Z2)", "np.exp(Z2))")
    python = python.replace("np.exp(-A1)", "np.exp(-A1))").replace("np.exp(-Y_hat)", "np.exp(-Y_hat))")
    python = python.replace("²", "**2").replace("ᵀ", ".T")
    words = python.split(" ")
    for i in range(len(words) - 1):  # juxtaposition is a matrix product
        if words[i].removesuffix(".T") in names and words[i + 1].removesuffix(".T") in names:
            words[i] += " @"
    plain = {k: v.array if isinstance(v, Value) else v for k, v in scope.items()} | {"np": np}
    return eval(" ".join(words), plain)


class Value:
    def __init__(self, array):
        self.array = array


def at(Y, y):
    return Y[np.arange(len(Y)), y][:, None]


def test_dead_and_saturated_shares():
    net = MLP([3, 4, 2], dtype="float64", device="cpu")
    net.parameters["b1"][...] = [-100, 100, -100, 100]
    explained = explain(net, random(8, 3), random(8, 2))
    assert explained["A1"].dead == 0.5
    assert explained["A1"].dead_units == 0.5
    assert explained["A1"].inactive == "50% dead, 50% of units"
    assert explained["A1"].saturated is None
    assert explained["Z1"].dead is None
    for function, edge in (("sigmoid", np.log(0.9898979 / (1 - 0.9898979))), ("tanh", np.arctanh(0.9797959))):
        net = MLP([1, 1, 1], activation=function, dtype="float64", device="cpu")
        net.parameters["W1"][...] = 1.0
        X = edge * np.array([[1.0001], [-1.0001], [0.9999], [-0.9999]])
        explained = explain(net, X, random(4, 1))
        assert explained["A1"].saturated == 0.5
        assert explained["A1"].inactive == "50% saturated"
    with pytest.raises(KeyError, match="A7; there are X, W1"):
        explained["A7"]


def test_the_text_has_a_line_for_each_quantity_and_each_warning():
    net = MLP([784, 9, 10], loss="cross_entropy", device="cpu")
    net.parameters["b1"][:5] = -100
    explained = explain(net, DIGITS)
    lines = str(explained).splitlines()
    assert lines[0] == f"784 → 9 relu → 10, cross_entropy (mean); 128 samples; loss {explained.loss:.6g}"
    assert [line.split()[0] for line in lines[2:12]] == [q.name for q in explained.quantities]
    assert (
        lines[12] == "dead-units (A1): 5 of 9 ReLU units are 0 for all 128 samples: no gradient reaches them"
    )
    assert lines[13].startswith("    try: ")
    assert json.loads(json.dumps(explained.to_dict()))["warnings"][0]["id"] == "dead-units"


def test_data_of_every_kind():
    net = MLP([784, 9, 10], loss="cross_entropy", device="cpu", dtype="float64")
    X, y = DIGITS.batch(np.arange(128), dtype=np.float64)
    assert str(explain(net, DIGITS)) == str(explain(net, X, y))
    before = [array.copy() for array in (X, net.flat_parameters.flat)]
    explain(net, X, y)
    np.testing.assert_array_equal(before[0], X)
    np.testing.assert_array_equal(before[1], net.flat_parameters.flat)
    with pytest.raises(ValueError, match="X: expected 784 columns"):
        explain(net, X[:, 1:], y)
    with pytest.raises(ValueError, match="y: expected targets"):
        explain(net, X)
    linear = explain(MLP([3, 2], device="cpu", bias=False), random(4, 3), random(4, 2))
    assert [q.name for q in linear.quantities] == ["X", "W1", "Z1", "Y_hat", "loss"]


@needs_compiler
def test_on_the_emulator():
    X, y = random(5, 3), random(5, 2)
    settings = {"activation": "tanh", "dtype": "float64", "seed": 2}
    on_cpu = explain(MLP([3, 4, 2], device="cpu", **settings), X, y)
    emulated = explain(MLP([3, 4, 2], device="emulator", **settings), X, y)
    assert emulated.rows() == on_cpu.rows()


# ---- warnings ----------------------------------------------------------------------------------------


def regression(X, y=None, sizes=None, **settings):
    net = MLP(sizes or [X.shape[1], 6, 1], device="cpu", **{"dtype": "float64", "seed": 1} | settings)
    return net, X, random(len(X), 1) if y is None else y


def test_healthy_networks_get_no_warning():
    assert ids(explain(MLP([784, 128, 10], loss="cross_entropy", device="cpu"), DIGITS)) == []
    for width in (8, 200):
        for activation, init in (
            ("relu", "he"),
            ("tanh", "glorot"),
            ("softplus", "glorot"),
            ("identity", "glorot"),
        ):
            for layers in (1, 2, 5):
                sizes = [20, *[width] * layers, 3]
                net = MLP(sizes, activation=activation, init=init, loss="cross_entropy", device="cpu", seed=1)
                found = ids(explain(net, random(100, 20), targets("hinge", 100, 3)))
                found = [warning for warning in found if width > 8 or warning[0] != "dead-units"]
                assert found == [], (width, activation, layers)


def test_unscaled_inputs_and_targets():
    X = random(50, 4)
    X /= np.sqrt(np.mean(X**2))
    for factor, expected in ((9.9, False), (10.1, True), (1.1e-3, False), (0.9e-3, True)):
        explained = explain(*regression(factor * X, 1e-3 * random(50, 1)))
        assert (("unscaled-inputs", "X") in ids(explained)) == expected, factor
    one_large = np.abs(X) ** 0 * np.array([1.0, 1.0, 1.0, 1.0])
    for ratio, expected in ((99, False), (101, True)):
        X = one_large * [0.01, 0.01, 0.01, 0.01 * ratio]
        explained = explain(*regression(X))
        assert (("unscaled-inputs", "X") in ids(explained)) == expected
        assert not expected or "feature 3 is 101 times the median feature" in str(explained)
    for size, expected in ((99.0, False), (101.0, True)):
        explained = explain(*regression(random(50, 4), np.full((50, 1), size)))
        assert (("unscaled-targets", "y") in ids(explained)) == expected
    labels = np.full(50, 200)
    net = MLP([4, 3, 300], loss="cross_entropy", device="cpu")
    assert ("unscaled-targets", "y") not in ids(explain(net, random(50, 4), labels))


def test_dead_units_beyond_chance():
    for dead, expected in ((2, False), (3, True)):
        net, X, y = regression(np.abs(random(40, 4)), sizes=[4, 20, 1])
        net.parameters["W1"][...] = np.abs(net.parameters["W1"])
        net.parameters["b1"][:dead] = -100
        assert (("dead-units", "A1") in ids(explain(net, X, y))) == expected
    net = MLP([4, 100, 1], device="cpu")
    assert 40 < 100 * explain(net, random(1, 4), random(1, 1))["A1"].dead_units < 60  # half, by chance
    assert ("dead-units", "A1") not in ids(explain(net, random(1, 4), random(1, 1)))


def test_saturated_units():
    for scale, expected in ((0.5, False), (50.0, True)):
        for activation in ("sigmoid", "tanh"):
            net, X, y = regression(random(40, 4), activation=activation, init="glorot")
            net.parameters["W1"][...] *= scale
            explained = explain(net, X, y)
            assert (("saturated-units", "A1") in ids(explained)) == expected
            assert not expected or f"of the {activation} outputs are saturated" in str(explained)
    net, X, y = regression(random(40, 4), output="sigmoid", y=np.ones((40, 1)))
    net.parameters["b2"][...] = -30
    found = [warning for warning in explain(net, X, y).warnings if warning.where == "Y_hat"]
    assert found[0].id == "saturated-units"
    assert "loss='bce'" in found[0].remedy


def test_vanishing_and_exploding_gradients():
    sizes = [20, *[50] * 6, 3]
    y = targets("hinge", 100, 3)
    deep = MLP(sizes, activation="sigmoid", loss="cross_entropy", device="cpu")
    explained = explain(deep, random(100, 20), y)
    assert ids(explained) == [("vanishing-gradient", "dZ1")]
    ratio = explained["Z1"].gradient_norm / explained["Z7"].gradient_norm
    assert explained.warnings[0].value == pytest.approx(ratio, rel=1e-6)
    large = MLP(sizes, loss="cross_entropy", device="cpu")
    for name, view in large.parameters.items():
        view[...] *= 4 if name.startswith("W") else 1
    assert ("exploding-gradient", "dZ1") in ids(explain(large, random(100, 20), y))
    net, X, _ = regression(random(40, 4))
    assert ids(explain(net, X, 90 * np.ones((40, 1)))) == [
        ("exploding-gradient", "dW1"),
        ("exploding-gradient", "dW2"),
    ]
    zero = MLP([4, 3, 1], device="cpu", dtype="float64")
    assert ids(explain(zero, random(5, 4), zero.forward(random(5, 4)))) == [("vanishing-gradient", "dZ2")]
    dead = MLP([4, 3, 1], device="cpu", dtype="float64")
    dead.parameters["b1"][...] = -100
    assert "dZ1 is 0: no gradient reaches the lower layers" in str(explain(dead, random(9, 4), random(9, 1)))


def test_numbers_that_are_not_finite():
    net = MLP([4, 3, 2], device="cpu")
    net.parameters["W2"][1, 1] = np.nan
    explained = explain(net, random(6, 4), random(6, 2))
    assert ids(explained) == [("not-finite", "W2")]
    net = MLP([4, 3, 2], device="cpu")
    net.parameters["W1"][...] = 3e38
    explained = explain(net, random(6, 4), random(6, 2))
    assert ids(explained) == [("not-finite", "Z1")]
    assert len(explained.warnings[0].message.split("arrays after it")) == 2


def test_the_thresholds_are_those_that_are_documented():
    text = health.__doc__
    assert (health.GREATEST_INPUT_RMS, health.LEAST_INPUT_RMS) == (10, 1e-3)
    assert "above 10 or below 1e-3" in text
    assert (health.FEATURE_RATIO, health.TARGET_RMS, health.DEAD_UNITS) == (100, 100, 0.1)
    assert (health.SATURATED_SHARE, health.SATURATED_SLOPE) == (0.25, 0.04)
    assert (health.VANISHING, health.EXPLODING, health.GRADIENT_OF_WEIGHTS) == (1e-2, 1e2, 10)
    for words in ("above 100 times", "above 100, with mse", "10 %", "25 %", "4 %", "1e-2", "1e2", "above 10"):
        assert words in text


# ---- the picture -------------------------------------------------------------------------------------


@pytest.fixture
def written(monkeypatch):
    """Every text that is drawn, with its colour."""
    from matplotlib.axes import Axes

    texts = []
    original = Axes.text

    def text(self, x, y, s, *args, **settings):
        texts.append((s, settings.get("color")))
        return original(self, x, y, s, *args, **settings)

    monkeypatch.setattr(Axes, "text", text)
    return texts


GREEN, RED = "#1a7f37", "#c62828"


def test_a_small_network_shows_every_number(tmp_path, written):
    net = MLP([2, 3, 1], activation="tanh", device="cpu", dtype="float64")
    X, y = random(1, 2), random(1, 1)
    explain(net, X, y).draw(tmp_path / "net.png")
    assert (tmp_path / "net.png").read_bytes().startswith(b"\x89PNG")
    _, gradients = net.loss_and_grad(X, y, intermediates=True, input_grad=True)
    kept = gradients.intermediates
    greens = [*X.flat, *kept["A1"].flat, *kept["Y_hat"].flat, *net.parameters["W1"].flat]
    reds = [*kept["dX"].flat, *kept["dA1"].flat, *kept["dZ2"].flat, *gradients["W1"].flat]
    assert {(number3(value), GREEN) for value in greens} <= set(written)
    assert {(number3(value), RED) for value in reds} <= set(written)
    assert ("2 → 3 tanh → 1, mse (mean); 1 sample", None) in written


@pytest.mark.parametrize("sizes", [[784, 50, 10], [30, 5, 12, 2], [3, 20], [1, 1]])
def test_networks_of_every_width_are_drawn(tmp_path, written, sizes):
    net = MLP(sizes, device="cpu")
    if len(sizes) > 2:
        net.parameters["b1"][:2] = -100
    X = random(20, sizes[0])
    explained = explain(net, 100 * X, random(20, sizes[-1]))
    explained.draw(tmp_path / "net.png")
    assert (tmp_path / "net.png").stat().st_size > 5000
    for name, size in zip(["X", *(f"W{n}" for n in range(1, len(sizes)))], sizes, strict=False):
        assert name in [text for text, _ in written], size
    assert (f"rms {explained['X'].rms:.3g}", GREEN) in written
    assert (f"norm {explained['W1'].gradient_norm:.3g}", RED) in written
    assert any(text.startswith("! X: ") for text, _ in written)


def test_broken_networks_are_drawn_too(tmp_path):
    net = MLP([12, 20, 2], device="cpu")
    net.parameters["W2"][...] = np.nan
    explain(net, random(4, 12), random(4, 2)).draw(tmp_path / "nan.png")
    zero = MLP([12, 20, 2], device="cpu", init="zeros")
    explain(zero, random(4, 12), np.zeros((4, 2))).draw(tmp_path / "zero.png")
    assert (tmp_path / "nan.png").stat().st_size > 5000
