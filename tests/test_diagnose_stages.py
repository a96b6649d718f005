"""The troubleshooter with intermediates and with functions that it calls; the notebook and the homework."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
from diagnosed import PARAMETERS, found_in, net_of
from wrong_backward import Network, backward, draw

from handgrad.gradients import Diagnosis, diagnose
from handgrad.gradients.function import call


@pytest.fixture
def n() -> Network:
    random = np.random.default_rng(5)
    sizes = (23, 7, 11, 3)
    return draw(random, loss="mse", activation="relu", output="identity", reduction="mean", sizes=sizes)


def right(n: Network) -> dict[str, Any]:
    return {name: value for name, value in backward(n).items() if name in PARAMETERS}


def ids(found: Diagnosis) -> list[str]:
    return [cause.id for cause in found.causes]


# ---- intermediates


def test_the_first_wrong_intermediate(n: Network) -> None:
    gradients = backward(n, "activation-derivative-missing/hidden")
    kept = {"Z1": n.Z1, "A1": n.A1, "Z2": n.Z2, **{name: gradients[name] for name in ("dZ2", "dA1", "dZ1")}}
    found = found_in(n, gradients, intermediates=kept)
    assert found.first_wrong == "dZ1"
    assert ids(found)[0] == "activation-derivative-missing"
    assert "The first wrong value on the way is dZ1." in str(found)
    assert found.to_dict()["first_wrong"] == "dZ1"


def test_each_stage_is_judged_by_what_went_into_it(n: Network) -> None:
    """Four mistakes at once, beyond any search, are told apart when the stages are given."""
    names = ("sign/residual", "gradient-used-for-weight", "derivative-is-preactivation/z", "bias-averaged/b1")
    gradients = backward(n, *names)
    found = found_in(n, gradients, intermediates={name: gradients[name] for name in ("dZ2", "dA1", "dZ1")})
    assert {name.split("/")[0] for name in names} <= set(ids(found))
    assert found.first_wrong == "dZ2"


def test_intermediates_alone(n: Network) -> None:
    dA1 = backward(n)["dA1"]
    found = diagnose({"Z1": n.Z1, "dA1": dA1, "dZ1": dA1 * n.Z1}, net_of(n), n.X, n.y)
    assert ids(found) == ["derivative-is-preactivation"]
    assert not found.parameters


@pytest.mark.parametrize(
    ("name", "id", "said"),
    [
        ("Z1", "bias-missing", "bias is not added in layer 1"),
        ("A1", "unknown", "A1 is tanh(Z1), but the network given has relu"),
        ("Z2", "unknown", "Z2 does not follow from what went into it"),
    ],
)
def test_a_wrong_forward_value(n: Network, name: str, id: str, said: str) -> None:
    wrong = {"Z1": n.X @ n.W1, "A1": np.tanh(n.Z1), "Z2": n.Z2 + np.eye(*n.Z2.shape)}[name]
    found = found_in(n, backward(n), intermediates={name: wrong})
    assert not found.correct
    assert found.first_wrong == name
    assert ids(found)[0] == id
    assert said in found.causes[0].explanation


def test_wrong_probabilities() -> None:
    n = draw(np.random.default_rng(3), loss="cross_entropy")
    powers = np.exp(n.Z2)
    gradients = backward(n, "softmax-axis")
    found = found_in(n, gradients, intermediates={"probs": powers / powers.sum(axis=0)})
    assert found.first_wrong == "Y_hat"
    assert ids(found)[0] == "softmax-axis"
    found = found_in(n, backward(n), intermediates={"probs": n.P})
    assert found.correct


# ---- functions


def layers(X: Any, y: Any, params: Any, mask: bool = True) -> dict[str, Any]:
    Z1 = X @ params["W1"] + params["b1"]
    A1 = np.maximum(Z1, 0)
    dZ2 = 2 * (A1 @ params["W2"] + params["b2"] - y) / y.size
    dZ1 = dZ2 @ params["W2"].T * ((Z1 > 0) if mask else 1)
    return {"W1": X.T @ dZ1, "b1": dZ1.sum(0), "W2": A1.T @ dZ2, "b2": dZ2.sum(0)}


def test_a_function_is_called_with_the_parameters(n: Network) -> None:
    assert diagnose(layers, net_of(n), n.X, n.y).correct
    found = diagnose(lambda X, y, params: layers(X, y, params, False), net_of(n), n.X, n.y)
    assert ids(found)[0] == "activation-derivative-missing"


def test_parameters_come_in_the_dtype_of_x_and_in_the_layout(n: Network) -> None:
    seen: dict[str, Any] = {}

    def function(X: Any, y: Any, params: Any) -> Any:
        seen.update(params)
        found = layers(X, y, {name: value.T for name, value in params.items()})
        return {name: value.T for name, value in found.items()}

    X = n.X.astype(np.float32)
    assert diagnose(function, net_of(n), X, n.y.astype(np.float32), layout="out,in").correct
    assert seen["W1"].shape == (11, 7)
    assert seen["W1"].dtype == np.float32


def test_gradients_that_add_up_over_calls(n: Network) -> None:
    total: dict[str, Any] = {}

    def function(X: Any, y: Any, params: Any) -> Any:
        for name, value in layers(X, y, params).items():
            total[name] = total.get(name, 0) + value
        return total

    found = diagnose(function, net_of(n), n.X, n.y)
    assert not found.correct
    assert ids(found) == ["not-zeroed"]
    found = diagnose(function, net_of(n), n.X, n.y)  # now three times on the first call already
    assert ids(found)[0] == "not-zeroed"
    doubled = diagnose(lambda *args: {k: 2 * v for k, v in layers(*args).items()}, net_of(n), n.X, n.y)
    assert ids(doubled)[0] == "factor-two"
    assert doubled.causes[0].confidence > 0.85, "a second call that gives the same speaks against not-zeroed"


DIFFERENT = "Two calls of your function on the same data gave different gradients."


def _nan(gradients: Any) -> Any:
    return gradients | {"W1": np.where(np.eye(7, 11) > 0, np.nan, gradients["W1"])}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "form",
    [
        lambda gradients: {name: value.tolist() for name, value in gradients.items()},
        lambda gradients: [value.tolist() for value in gradients.values()],
        lambda gradients: {name: np.zeros_like(value) for name, value in gradients.items()},
        lambda gradients: gradients | {"W2": np.zeros((11, 3))},
        lambda gradients: gradients | {"b2": None},
        lambda gradients: {name: 1e-170 * value for name, value in gradients.items()},
        lambda gradients: {name: 1e170 * value for name, value in gradients.items()},
        _nan,
        lambda gradients: {name: np.full_like(value, np.nan) for name, value in gradients.items()},
        lambda gradients: {name: np.where(value > 0, np.inf, value) for name, value in gradients.items()},
    ],
)
def test_a_function_that_gives_the_same_twice_is_not_said_to_differ(n: Network, form: Any) -> None:
    assert call(lambda *given: form(layers(*given)), n.X, n.y, n.parameters, None).repeated == 1
    found = diagnose(lambda *given: form(layers(*given)), net_of(n), n.X, n.y)
    assert not any("second call" in note.lower() or note == DIFFERENT for note in found.notes)
    assert not any(cause.id == "not-zeroed" and not cause.alternative for cause in found.causes)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "second",
    [
        lambda g: g | {"b1": g["b1"] + np.arange(11)},
        lambda g: g | {"b1": (g["b1"] + np.arange(11)).tolist()},
        lambda g: g | {"b1": np.full(11, np.nan)},
        lambda g: g | {"b1": g["b1"][:, None]},
        lambda g: g | {"b1": None},
        lambda g: {"W1": g["W1"]},
        lambda g: {name: -value for name, value in g.items()},
        lambda g: {name: value / 2 for name, value in g.items()},
        lambda g: {name: 0 * value for name, value in g.items()},
    ],
)
def test_a_function_that_gives_something_else_the_second_time(n: Network, second: Any) -> None:
    calls: list[int] = []

    def function(X: Any, y: Any, params: Any) -> Any:
        calls.append(1)
        gradients = layers(X, y, params)
        return gradients if len(calls) == 1 else second(gradients)

    found = diagnose(function, net_of(n), n.X, n.y)
    assert found.correct
    assert DIFFERENT in found.notes


def test_a_second_call_that_raises_is_told_as_that(n: Network) -> None:
    calls: list[int] = []

    def function(X: Any, y: Any, params: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("called twice")
        return layers(X, y, params)

    found = diagnose(function, net_of(n), n.X, n.y)
    assert found.correct
    assert DIFFERENT not in found.notes
    assert "A second call of your function on the same data raised RuntimeError: called twice" in str(found)


def test_what_is_no_number_is_not_compared(n: Network) -> None:
    called = call(lambda X, y, params: {"W1": object()}, n.X, n.y, n.parameters, None)
    assert called.repeated is None


def test_a_loss_beside_the_gradients_does_not_hide_that_they_add_up(n: Network) -> None:
    total: dict[str, Any] = {}

    def function(X: Any, y: Any, params: Any) -> Any:
        for name, value in layers(X, y, params).items():
            total[name] = total.get(name, 0) + value
        return np.float64(0.25), total

    assert ids(diagnose(function, net_of(n), n.X, n.y)) == ["not-zeroed"]


def test_a_function_that_updates_in_place(n: Network) -> None:
    def function(X: Any, y: Any, params: Any) -> Any:
        Z1 = X @ params["W1"] + params["b1"]
        A1 = np.maximum(Z1, 0)
        dZ2 = 2 * (A1 @ params["W2"] + params["b2"] - y) / y.size
        dW2 = A1.T @ dZ2
        params["W2"] -= 0.3 * dW2
        dZ1 = dZ2 @ params["W2"].T * (Z1 > 0)
        return {"W1": X.T @ dZ1, "b1": dZ1.sum(0), "W2": dW2, "b2": dZ2.sum(0)}

    net = net_of(n)
    found = diagnose(function, net, n.X, n.y)
    assert ids(found)[0] == "second-layer-updated-first"
    assert "lr = 0.3" in found.causes[0].explanation
    assert any("changes W2 in place" in note for note in found.notes)
    np.testing.assert_array_equal(net.parameters["W2"], n.W2)


@pytest.mark.parametrize(
    "value", [None, [1, [2]], "b1", np.ones(99)], ids=["taken out", "ragged", "text", "shape"]
)
def test_a_function_that_spoils_its_dict_is_judged_by_its_gradient(n: Network, value: Any) -> None:
    def function(X: Any, y: Any, params: Any) -> Any:
        b1 = params.pop("b1")
        Z1 = X @ params["W1"] + b1
        dZ2 = 2 * (np.maximum(Z1, 0) @ params["W2"] + params["b2"] - y) / y.size
        dZ1 = dZ2 @ params["W2"].T * (Z1 > 0)
        if value is not None:
            params["b1"] = value
        return {"W1": X.T @ dZ1, "b1": dZ1.sum(0), "W2": np.maximum(Z1, 0).T @ dZ2, "b2": dZ2.sum(0)}

    found = diagnose(function, net_of(n), n.X, n.y)
    assert found.correct, str(found)
    assert [note for note in found.notes if "changes b1 in place" in note]


def test_a_function_that_exits_ends_no_caller(n: Network) -> None:
    def function(X: Any, y: Any, params: Any) -> Any:
        sys.exit(4)

    found = diagnose(function, net_of(n), n.X, n.y)
    assert not found.correct
    assert "It raised SystemExit: 4, at line" in found.causes[0].explanation
    assert "sys.exit(4)" in found.causes[0].explanation


def test_a_second_call_that_exits_is_a_note(n: Network) -> None:
    calls = []

    def function(X: Any, y: Any, params: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            sys.exit("enough")
        return right(n)

    found = diagnose(function, net_of(n), n.X, n.y)
    assert found.correct, str(found)
    assert any(
        "second call of your function on the same data raised SystemExit: enough" in note
        for note in found.notes
    )


class Sigmoid:
    """The notebook's class, with its fault."""

    def forward(self, x: Any) -> Any:
        self.x = x
        return 1 / (1 + np.exp(-x))

    def backward(self, grad: Any) -> Any:
        return grad * Sigmoid(self.x) * (np.ones(self.x.shape) - Sigmoid(self.x))  # type: ignore[call-arg]


def raising(line: str) -> Any:
    def tuple_for_count(X: Any, y: Any, params: Any) -> Any:
        return (2 / X.shape) * y

    def numpy_tuple(X: Any, y: Any, params: Any) -> Any:
        return {"b2": 2 * y / X.shape}

    def instance(X: Any, y: Any, params: Any) -> Any:
        layer = Sigmoid()
        layer.forward(X)
        return layer.backward(X)

    def not_transposed(X: Any, y: Any, params: Any) -> Any:
        dZ1 = X @ params["W1"]
        return {"W1": X @ dZ1}

    def elementwise(X: Any, y: Any, params: Any) -> Any:
        dZ2 = y
        return {"b1": (dZ2 * params["W2"].T).sum(0)}

    def other(X: Any, y: Any, params: Any) -> Any:
        return {"W1": params["w1"]}

    return locals()[line]


@pytest.mark.parametrize(
    ("function", "id", "source"),
    [
        ("tuple_for_count", "shape-for-count", "(2 / X.shape) * y"),
        ("numpy_tuple", "shape-for-count", "2 * y / X.shape"),
        ("instance", "instance-called-as-class", "Sigmoid(self.x)"),
        ("not_transposed", "transposed", "X is (23, 7), dZ1 is (23, 11)"),
        ("elementwise", "elementwise-for-matmul", "dZ2 is (23, 3)"),
        ("other", "unknown", "KeyError: 'w1'"),
    ],
)
def test_exceptions_are_explained(n: Network, function: str, id: str, source: str) -> None:
    found = diagnose(raising(function), net_of(n), n.X, n.y)
    assert not found.correct
    assert ids(found) == [id]
    assert source in found.causes[0].explanation
    assert "test_diagnose_stages.py" in found.causes[0].explanation
    json.dumps(found.to_dict(), allow_nan=False)


# ---- the notebook and the homework


def test_the_notebook_with_equal_sizes_where_wrong_products_pass() -> None:
    """N = in = out: `dL_dy @ x.T` has the right shape; `dL_db = dL_dy` is (N, out)."""
    n = draw(
        np.random.default_rng(0),
        loss="mse",
        activation="sigmoid",
        output="sigmoid",
        reduction="mean",
        sizes=(6, 6, 6, 6),
    )
    dZ2, dZ1 = backward(n)["dZ2"], backward(n)["dZ1"]
    found = found_in(n, right(n) | {"W2": dZ2 @ n.A1.T, "W1": dZ1 @ n.X.T})
    assert ids(found)[0] == "transposed"
    assert ids(found_in(n, right(n) | {"b1": dZ1, "b2": dZ2})) == ["bias-not-summed"]


def test_the_homework_leaves_out_the_zeroing() -> None:
    n = draw(
        np.random.default_rng(0),
        loss="mse",
        activation="relu",
        output="identity",
        reduction="sum",
        sizes=(1, 5, 6, 3),
    )
    found = found_in(n, {name: 2 * value for name, value in right(n).items()})
    assert {"not-zeroed", "factor-two"} <= set(ids(found)[:2])
    mean = net_of(n, reduction="mean")
    found = diagnose(right(n), mean, n.X, n.y)  # ‖·‖² is K times the mean for one point
    assert ids(found)[0] in ("scale", "not-zeroed")
    assert any("K = 3" in cause.explanation for cause in found.causes)
