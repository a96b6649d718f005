"""The troubleshooter itself: what it takes, what it says, and what it says when it does not know."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from diagnosed import PARAMETERS, found_in, net_of
from wrong_backward import Network, backward, draw

import handgrad as hg
from handgrad.gradients import Diagnosis, diagnose


@pytest.fixture
def n() -> Network:
    return draw(
        np.random.default_rng(5),
        loss="mse",
        activation="relu",
        output="identity",
        reduction="mean",
        sizes=(23, 7, 11, 3),
    )


def right(n: Network) -> dict[str, Any]:
    return {name: value for name, value in backward(n).items() if name in PARAMETERS}


def ids(found: Diagnosis) -> list[str]:
    return [cause.id for cause in found.causes]


# ---- the result


def test_the_result_says_what_agrees_and_what_is_wrong(n: Network) -> None:
    found = found_in(n, backward(n, "activation-derivative-missing/hidden"))
    assert not found.correct
    assert {name: item.correct for name, item in found.parameters.items()} == {
        "W1": False,
        "b1": False,
        "W2": True,
        "b2": True,
    }
    wrong = n.X.T @ (backward(n)["dA1"])
    exact = np.linalg.norm(wrong - right(n)["W1"]) / np.linalg.norm(right(n)["W1"])
    assert found.parameters["W1"].relative_error == pytest.approx(exact, rel=1e-12)
    cause = found.causes[0]
    assert cause.id == "activation-derivative-missing"
    assert set(cause.parameters) == {"W1", "b1"}
    assert cause.residual < 1e-12
    assert "dZ1 = dA1." in cause.explanation
    assert cause.correction == "dZ1 = dA1 * (Z1 > 0)"
    assert found.causes[1].id == "mask-always-one"
    assert "(A1 >= 0).all()" in cause.experiment
    assert 0.5 < cause.confidence < 1
    assert found.causes[1].confidence < cause.confidence


def test_it_prints(n: Network) -> None:
    text = str(found_in(n, backward(n, "activation-derivative-missing/hidden")))
    assert text.startswith("Wrong: W1, b1. Right: W2, b2.")
    for part in (
        "W1  (7, 11)",
        "77 of 77",
        "1. activation-derivative-missing",
        "Correct: dZ1 = dA1 * (Z1 > 0)",
        "To tell",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) <= 100
    assert str(found_in(n, backward(n))).startswith("The gradient is right.")


def test_the_dict_for_json(n: Network) -> None:
    report = found_in(n, backward(n, "sign/all")).to_dict()
    assert list(report) == ["correct", "parameters", "causes"]
    assert report["correct"] is False
    assert report["parameters"]["W1"]["relative_error"] == pytest.approx(2)
    assert report["parameters"]["W1"]["ratio"] == pytest.approx(-1)
    assert set(report["causes"][0]) == {
        "id",
        "confidence",
        "residual",
        "explanation",
        "correction",
        "parameters",
    }
    assert report["causes"][0]["id"] == "sign"
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize(
    ("name", "constant"),
    [
        ("scale/divided-by-N-again", "1/N = 0.0434783"),
        ("scale/times-N-K", "N K = 69"),
        ("scale/divided-by-N-squared", "1/N² = 0.00189036"),
        ("scale-layer-1/divided-by-N", "1/N = 0.0434783"),
        ("not-zeroed/5", "5 times"),
        ("factor-two/square", "half"),
    ],
)
def test_constants_are_named(n: Network, name: str, constant: str) -> None:
    assert constant in found_in(n, backward(n, name)).causes[0].explanation


def test_a_constant_without_a_name_is_given_as_a_number(n: Network) -> None:
    found = found_in(n, {name: 0.7351 * value for name, value in right(n).items()})
    assert ids(found)[0] == "scale"
    assert "0.7351" in found.causes[0].explanation
    assert found.causes[0].confidence < 0.8


@pytest.mark.parametrize(("factor", "amount"), [(2.0, "2 times"), (0.5, "½ = 0.5 times")])
def test_a_number_is_printed_once(n: Network, factor: float, amount: str) -> None:
    found = found_in(n, right(n) | {"b2": factor * right(n)["b2"]})
    assert ids(found)[0] == "scale"
    assert f"db2 is {amount} the right gradient" in found.causes[0].explanation


def test_the_update_in_place_of_the_gradient(n: Network) -> None:
    found = found_in(n, {name: -0.25 * value for name, value in right(n).items()}, lr=0.25)
    assert ids(found)[0] == "scale"
    assert "the step -lr * gradient" in found.causes[0].explanation


def test_indistinguishable_causes_are_both_named_with_the_experiment(n: Network) -> None:
    found = found_in(n, {name: 2 * value for name, value in right(n).items()})
    assert ids(found)[:2] == ["factor-two", "not-zeroed"]
    assert "twice in a row" in found.causes[1].experiment
    n.batch = 48
    found = found_in(n, backward(n, "short-batch"))
    assert ids(found)[0] == "short-batch"
    assert "23/48" in found.causes[0].explanation


def test_weight_decay(n: Network) -> None:
    n.weight_decay = 0.02
    assert found_in(n, backward(n)).correct
    assert ids(found_in(n, backward(n, "weight-decay-missing"))) == ["weight-decay-missing"]
    assert ids(found_in(n, backward(n, "weight-decay-doubled"))) == ["weight-decay-doubled"]
    decayed = backward(n)
    n.weight_decay = 0.0
    found = found_in(n, decayed)
    assert ids(found)[0] == "weight-decay-doubled"
    assert "weight_decay=0.02" in found.causes[0].explanation


# ---- parts, three at once, the unknown


def test_three_mistakes_in_three_places(n: Network) -> None:
    gradients = backward(n, "bias-averaged/b1", "transposed/W2", "bias-missing/b2")
    assert set(ids(found_in(n, gradients))[:3]) == {"bias-averaged", "transposed", "bias-missing"}


def test_a_single_gradient_will_do(n: Network) -> None:
    found = diagnose({"dW1": backward(n, "activation-derivative-missing/hidden")["W1"]}, net_of(n), n.X, n.y)
    assert ids(found)[0] == "activation-derivative-missing"
    assert list(found.parameters) == ["W1"]
    assert "Not given, and so not compared: b1, W2, b2." in found.notes


def test_none_counts_as_never_set(n: Network) -> None:
    found = diagnose(right(n) | {"b2": None}, net_of(n), n.X, n.y)
    assert ids(found) == ["bias-missing"]
    assert any("b2 is None" in note for note in found.notes)


def test_wrong_units_are_found(n: Network) -> None:
    gradients = right(n)
    gradients["W1"] = gradients["W1"].copy()
    gradients["W1"][2, [3, 8]] += 0.1
    found = found_in(n, gradients)
    assert ids(found) == ["unknown"]
    assert found.causes[0].parameters == ("W1",)
    assert "2 of 77 entries" in found.causes[0].explanation
    assert "units 3, 8 of 11" in found.causes[0].explanation
    assert "input 2 of 7" in found.causes[0].explanation
    expected = np.zeros((7, 11), dtype=bool)
    expected[2, [3, 8]] = True
    np.testing.assert_array_equal(found.parameters["W1"].wrong, expected)


def test_left_out_samples_are_found(n: Network) -> None:
    gradients = right(n)
    kept = np.delete(np.arange(n.N), [4, 17])
    gradients["W2"] = n.A1[kept].T @ backward(n)["dZ2"][kept]
    found = found_in(n, gradients)
    assert ids(found) == ["unknown"]
    assert "as if samples 4, 17 were left out" in found.causes[0].explanation


def test_what_is_known_beside_what_is_not(n: Network) -> None:
    gradients = right(n)
    gradients["W1"] = gradients["W1"] + np.random.default_rng(0).normal(size=(7, 11))
    gradients["b2"] = -gradients["b2"]
    found = found_in(n, gradients)
    assert ids(found) == ["sign", "unknown"]
    assert found.causes[0].parameters == ("b2",)
    assert found.causes[1].parameters == ("W1",)


def test_noise_is_unknown(n: Network) -> None:
    random = np.random.default_rng(1)
    found = found_in(n, {name: random.normal(size=value.shape) for name, value in right(n).items()})
    assert ids(found) == ["unknown"]
    assert found.causes[0].residual > 0.5


def test_wrong_shapes_are_told_in_letters(n: Network) -> None:
    found = found_in(n, right(n) | {"W1": np.ones((23, 3))})
    assert ids(found) == ["unknown"]
    assert "dW1 has shape (23, 3) (N, K), expected (7, 11)" in found.causes[0].explanation
    assert found.parameters["W1"].wrong is None
    assert found.parameters["W1"].to_dict()["relative_error"] is None


# ---- not finite


def test_overflow_of_the_softmax() -> None:
    n = draw(np.random.default_rng(3), loss="cross_entropy", activation="relu", dtype=np.float32)
    n.W2 *= 400
    n.__post_init__()
    with np.errstate(all="ignore"):
        powers = np.exp(n.Z2)
        n.P = powers / powers.sum(axis=1, keepdims=True)
        found = found_in(n, backward(n))
    assert ids(found) == ["overflow"]
    assert found.causes[0].confidence > 0.9
    assert "Z.max(axis=1" in found.causes[0].correction


def test_nan_without_overflow_is_said_to_be_unknown(n: Network) -> None:
    gradients = right(n)
    gradients["b1"] = np.where(np.arange(11) == 4, np.nan, gradients["b1"])
    found = found_in(n, gradients)
    assert not found.correct
    assert ids(found) == ["unknown"]
    assert "1 of 11 in db1" in found.causes[0].explanation


# ---- depths


@pytest.mark.parametrize("sizes", [[7, 3], [7, 11, 5, 3], [6, 9, 5, 7, 3]])
def test_other_depths(sizes: list[int]) -> None:
    random = np.random.default_rng(1)
    net = hg.MLP(sizes, activation="tanh", loss="cross_entropy", dtype="float64", device="cpu", seed=1)
    X, y = random.normal(size=(23, sizes[0])), random.integers(0, 3, 23)
    gradients = dict(net.loss_and_grad(X, y)[1])
    L = len(sizes) - 1
    assert diagnose(gradients, net, X, y).correct
    assert ids(diagnose({k: -v for k, v in gradients.items()}, net, X, y)) == ["sign"]
    assert ids(diagnose(gradients | {f"W{L}": gradients[f"W{L}"].T}, net, X, y)) == ["transposed"]
    assert ids(diagnose({k: 23 * v for k, v in gradients.items()}, net, X, y))[0] == "scale"
    assert ids(diagnose(gradients | {"b1": gradients["b1"] / 23}, net, X, y))[0] == "bias-averaged"


def test_a_mask_missing_in_one_layer_of_three() -> None:
    random = np.random.default_rng(1)
    net = hg.MLP([7, 11, 5, 3], activation="relu", loss="mse", dtype="float64", device="cpu", seed=1)
    X, y = random.normal(size=(23, 7)), random.normal(size=(23, 3))
    gradients = net.loss_and_grad(X, y, intermediates=True)[1]
    kept = gradients.intermediates
    for layer in (1, 2):
        dZ2 = kept["dA2"] if layer == 2 else kept["dZ2"]
        dA1 = dZ2 @ net.parameters["W2"].T
        dZ1 = dA1 if layer == 1 else dA1 * (kept["Z1"] > 0)
        wrong = {"W1": X.T @ dZ1, "b1": dZ1.sum(0), "W2": kept["A1"].T @ dZ2, "b2": dZ2.sum(0)}
        found = diagnose({**gradients, **wrong}, net, X, y)
        assert ids(found)[0] == "activation-derivative-missing"
        assert f"dZ{layer} = dA{layer}" in found.causes[0].explanation


def test_without_biases() -> None:
    random = np.random.default_rng(1)
    net = hg.MLP([7, 11, 3], bias=False, loss="cross_entropy", dtype="float64", device="cpu", seed=1)
    X, y = random.normal(size=(23, 7)), random.integers(0, 3, 23)
    gradients = dict(net.loss_and_grad(X, y)[1])
    assert diagnose(gradients, net, X, y).correct
    found = diagnose({"W1": gradients["W1"] / 23, "W2": gradients["W2"]}, net, X, y)
    assert ids(found)[0] == "scale-layer-1"


def test_many_inputs_are_summed_up_for_the_search() -> None:
    n = draw(
        np.random.default_rng(1), loss="mse", activation="relu", output="identity", sizes=(301, 401, 30, 1)
    )
    for name in (
        "mask-always-one",
        "bias-times-input/b1",
        "bias-times-input/b1-product",
        "sum-over-hidden/thread",
    ):
        found = found_in(n, backward(n, name))
        assert name.split("/")[0] in ids(found)[:2], name
    found = found_in(n, {name: value / 401 for name, value in right(n).items()})
    assert "1/D" in found.causes[0].explanation


# ---- wrong calls


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"attempt": {}}, ValueError, "attempt: expected gradients by name (W1, b1, W2, b2), got none"),
        ({"attempt": {"V1": np.ones(3)}}, ValueError, "'V1' is no name of this network"),
        ({"attempt": {"W3": np.ones(3)}}, ValueError, "'W3' is no name of this network"),
        ({"attempt": {"W1": np.ones((7, 11)), "dW1": np.ones((7, 11))}}, ValueError, "given twice"),
        ({"attempt": {"W1": "gradient"}}, TypeError, "attempt['W1']: expected an array of numbers"),
        ({"attempt": 3}, TypeError, "attempt: expected a dict of gradients by name"),
        ({"net": "mlp"}, TypeError, "net: expected a handgrad.MLP"),
        ({"X": np.ones((23, 8))}, ValueError, "X: expected shape (N, 7)"),
        ({"X": np.full((23, 7), np.nan)}, ValueError, "X: expected finite numbers, got nan at [0, 0]"),
        ({"y": np.ones((22, 3))}, ValueError, "y: expected shape (23, 3)"),
        ({"layout": "rows"}, ValueError, "layout: expected 'in,out' or 'out,in', got 'rows'"),
        ({"lr": -1.0}, ValueError, "lr: expected a finite number above 0"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay: expected a finite number"),
    ],
)
def test_wrong_calls_get_one_line(n: Network, change: dict[str, Any], error: type, message: str) -> None:
    arguments = {"attempt": right(n), "net": net_of(n), "X": n.X, "y": n.y, **change}
    with pytest.raises(error) as raised:
        diagnose(**arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_labels_out_of_range() -> None:
    n = draw(np.random.default_rng(3), loss="cross_entropy")
    with pytest.raises(ValueError, match=rf"y: expected integer labels in 0 .. {n.C - 1}"):
        diagnose(right(n), net_of(n), n.X, n.y + n.C)


# ---- the picture


def test_the_picture(n: Network, tmp_path: Any) -> None:
    from matplotlib.image import imread

    gradients = backward(n, "activation-derivative-missing/hidden")
    for name, attempt in (
        ("wrong", gradients),
        ("shape", gradients | {"W2": gradients["W2"].T}),
    ):
        path = tmp_path / f"{name}.png"
        found_in(n, attempt).plot(path)
        image = imread(path)
        assert image.shape[0] > 400
        assert image.std() > 0.05
    with pytest.raises(ValueError, match="no gradient to draw"):
        diagnose(lambda X, y, params: params["w1"], net_of(n), n.X, n.y).plot(tmp_path / "none.png")
