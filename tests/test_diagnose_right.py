"""A right gradient is called right: float32, float64, PyTorch, our kernels; kinks, ties and dead units."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from diagnosed import PARAMETERS, net_of
from wrong_backward import Network, backward, draw

import handgrad as hg
from handgrad.gradients import diagnose


def networks(numbers: range) -> Iterator[tuple[int, Network]]:
    """Random networks with and without ties at kinks, dead units, saturation, tiny and large values."""
    for k in numbers:
        random = np.random.default_rng([k, 99])
        dtype = np.float32 if k % 2 else np.float64
        large = k % 10 == 0
        sizes = None
        if large:
            sizes = tuple(int(random.integers(*span)) for span in ((200, 2000), (20, 150), (10, 60), (2, 12)))
        n = draw(random, dtype=dtype, one_output=bool(random.random() < 0.2), sizes=sizes)
        kind = k // 2 % 6
        if kind == 1:  # whole numbers: Z exactly 0, equal logits, margins of exactly 0
            arrays = {name: np.round(2 * getattr(n, name)) for name in ("X", "W1", "b1", "W2", "b2")}
        elif kind == 2:  # half of the hidden units dead, or saturated
            arrays = {"b1": np.where(np.arange(n.H) % 2, n.b1, n.b1 - 60).astype(dtype)}
        elif kind == 3:
            arrays = {"X": n.X * 30}
        elif kind == 4:
            arrays = {"X": n.X * dtype(1e-3), "W2": n.W2 * dtype(1e-3)}
        elif kind == 5:  # inputs, biases and whole rows of 0
            arrays = {"X": np.where(np.arange(n.N)[:, None] % 3, n.X, 0).astype(dtype), "b1": 0 * n.b1}
        else:
            arrays = {}
        yield k, replace(n, **arrays)


def assert_right(n: Network, gradients: Any, net: hg.MLP | None = None, **arguments: Any) -> None:
    found = diagnose(gradients, net or net_of(n), n.X, n.y, **arguments)
    assert found.correct, f"{n.X.dtype} {n.loss} {n.activation} {n.output}\n{found}"
    assert not found.causes


def check_our_own(numbers: range) -> int:
    """The literal pass of the tests and the package's; how many gradients were finite and so compared."""
    checked = 0
    for _, n in networks(numbers):
        with np.errstate(all="ignore"):
            literal = backward(n)
        ours = net_of(n).loss_and_grad(n.X, n.y)[1]
        for gradients in ({name: literal[name] for name in PARAMETERS}, ours):
            if all(np.isfinite(value).all() for value in gradients.values()):
                assert_right(n, gradients)
                checked += 1
    return checked


def test_right_gradients_sample() -> None:
    assert check_our_own(range(120)) >= 220


@pytest.mark.slow
def test_a_thousand_right_gradients() -> None:
    assert check_our_own(range(1000, 1560)) >= 1000


def test_right_intermediates_sample() -> None:
    for _, n in networks(range(500, 540)):
        gradients = net_of(n).loss_and_grad(n.X, n.y, intermediates=True)[1]
        kept = dict(gradients.intermediates)
        del kept["X"]
        if all(np.isfinite(value).all() for value in kept.values()):
            found = diagnose(gradients, net_of(n), n.X, n.y)
            assert found.correct, str(found)
            assert set(found.intermediates) == set(kept)
            assert found.first_wrong is None


def check_torch(numbers: range) -> int:
    torch = pytest.importorskip("torch")
    checked = 0
    functions = {
        "relu": torch.nn.ReLU,
        "sigmoid": torch.nn.Sigmoid,
        "tanh": torch.nn.Tanh,
        "softplus": torch.nn.Softplus,
        "identity": torch.nn.Identity,
    }
    losses = {
        "mse": torch.nn.functional.mse_loss,
        "bce": torch.nn.functional.binary_cross_entropy_with_logits,
        "cross_entropy": torch.nn.functional.cross_entropy,
    }
    for _, n in networks(numbers):
        if n.loss == "hinge":
            continue
        dtype = torch.float32 if n.X.dtype == np.float32 else torch.float64
        model = torch.nn.Sequential(
            torch.nn.Linear(n.D, n.H, dtype=dtype),
            functions[n.activation](),
            torch.nn.Linear(n.H, n.C, dtype=dtype),
            functions[n.output](),
        )
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), (n.W1.T, n.b1, n.W2.T, n.b2), strict=True):
                parameter.copy_(torch.tensor(np.ascontiguousarray(value)))
        X, y = torch.tensor(n.X), torch.tensor(n.y)
        losses[n.loss](model(X), y, reduction=n.reduction).backward()
        by_name = {name: parameter.grad for name, parameter in model.named_parameters()}
        if not all(torch.isfinite(value).all() for value in by_name.values()):
            continue
        renamed = dict(zip(PARAMETERS, by_name.values(), strict=True))
        for gradients in (by_name, renamed, {name: v.numpy() for name, v in by_name.items()}):
            assert_right(n, gradients)
            checked += 1
    return checked


def test_pytorch_sample() -> None:
    assert check_torch(range(2000, 2060)) >= 90


@pytest.mark.slow
def test_a_thousand_gradients_of_pytorch() -> None:
    assert check_torch(range(3000, 3460)) >= 1000


@pytest.mark.slow
def test_emulated_kernels() -> None:
    """The kernels themselves, on the CPU."""
    try:
        hg.arrays.resolve_device("emulator")
    except Exception as error:
        pytest.skip(f"no compiler for the emulator: {error}")
    for seed, loss, activation, dtype in (
        (0, "cross_entropy", "relu", np.float32),
        (1, "mse", "tanh", np.float64),
        (2, "hinge", "softplus", np.float32),
    ):
        n = draw(
            np.random.default_rng(seed), loss=loss, activation=activation, output="identity", dtype=dtype
        )
        net = net_of(n)
        emulated = hg.MLP(net.sizes, **_arguments(net), device="emulator")
        emulated.load_parameters(n.parameters)
        X, y = hg.to_device(n.X, "emulator"), hg.to_device(n.y, "emulator")
        found = diagnose(emulated.loss_and_grad(X, y)[1], emulated, X, y)
        assert found.correct, str(found)


def _arguments(net: hg.MLP) -> dict[str, Any]:
    config = net.config()
    return {name: config[name] for name in ("activation", "output", "loss", "reduction", "dtype")}


# ---- precision and form


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_dtype_of_the_attempt_sets_the_tolerance(dtype: str) -> None:
    n = draw(np.random.default_rng(0), loss="mse", activation="tanh", output="identity")
    right = backward(n)
    rounded = {name: right[name].astype(dtype) for name in PARAMETERS}
    assert_right(n, rounded)
    unit = float(np.finfo(dtype).eps)
    off = {**rounded, "W1": (right["W1"] * (1 + 2000 * unit)).astype(dtype)}
    found = diagnose(off, net_of(n), n.X, n.y)
    assert found.correct == (dtype == "float64"), "float64 that is right to float32's precision is right"
    assert bool(found.notes) == (dtype == "float64")


def test_float32_results_stored_as_float64_are_right() -> None:
    n = draw(np.random.default_rng(1), dtype=np.float32, loss="cross_entropy")
    gradients = {name: backward(n)[name].astype(np.float64) for name in PARAMETERS}
    found = diagnose(gradients, net_of(n), n.X, n.y)
    assert found.correct
    assert any("float32 precision" in note for note in found.notes)


def test_a_small_weight_decay_is_seen_in_float64() -> None:
    n = draw(np.random.default_rng(1), loss="mse", output="identity")
    gradients = {name: backward(n)[name] for name in PARAMETERS}
    found = diagnose(gradients, net_of(n), n.X, n.y, weight_decay=1e-8)
    assert [cause.id for cause in found.causes] == ["weight-decay-missing"]


@pytest.mark.parametrize("form", ["(1, H)", "(H, 1)", "vector W2", "list", "tuple with loss", "lists"])
def test_other_forms_of_a_right_gradient(form: str) -> None:
    n = draw(np.random.default_rng(2), loss="mse", one_output=True)
    right = {name: backward(n)[name] for name in PARAMETERS}
    attempt: Any = dict(right)
    if form == "(1, H)":
        attempt["b1"] = right["b1"][None]
    elif form == "(H, 1)":
        attempt["b1"] = right["b1"][:, None]
    elif form == "vector W2":
        attempt["W2"] = right["W2"][:, 0]
    elif form == "list":
        attempt = list(right.values())
    elif form == "tuple with loss":
        attempt = (0.5, right)
    else:
        attempt = {name: value.tolist() for name, value in right.items()}
    assert_right(n, attempt)


@pytest.mark.parametrize(
    "names",
    [
        ("dW1", "db1", "dW2", "db2"),
        ("w1", "b1", "w2", "b2"),
        ("grad_W1", "grad_b1", "grad_W2", "grad_b2"),
        ("W1_grad", "b1_grad", "W2_grad", "b2_grad"),
        ("W1.grad", "b1.grad", "W2.grad", "b2.grad"),
        ("dL_dW1", "dL_db1", "dL_dW2", "dL_db2"),
    ],
)
def test_names(names: tuple[str, ...]) -> None:
    n = draw(np.random.default_rng(2))
    assert_right(n, dict(zip(names, (backward(n)[name] for name in PARAMETERS), strict=True)))


def test_torch_names_mean_out_in() -> None:
    n = draw(np.random.default_rng(2))
    right = backward(n)
    for prefixes in (("0.", "2."), ("fc1.", "fc2."), ("layers.0.", "layers.1.")):
        attempt = {}
        for layer, prefix in enumerate(prefixes, 1):
            attempt[f"{prefix}weight"] = right[f"W{layer}"].T
            attempt[f"{prefix}bias"] = right[f"b{layer}"]
        assert_right(n, attempt)
    alone = {"head.weight": right["W2"].T, "head.bias": right["b2"]}
    assert_right(n, alone)


@pytest.mark.parametrize("layout", ["out,in", "(out, in)"])
def test_layout(layout: str) -> None:
    n = draw(np.random.default_rng(2))
    right = backward(n)
    attempt = {name: right[name].T if name.startswith("W") else right[name] for name in PARAMETERS}
    assert_right(n, attempt, layout=layout)
    asked = diagnose(attempt, net_of(n), n.X, n.y)
    assert [cause.id for cause in asked.causes] == ["transposed"]
    assert "layout='out,in'" in str(asked)
    assert diagnose(right | {"W1": right["W1"].T}, net_of(n), n.X, n.y).causes[0].id == "transposed"


def test_one_hot_labels_are_labels() -> None:
    n = draw(np.random.default_rng(4), loss="cross_entropy")
    right = {name: backward(n)[name] for name in PARAMETERS}
    assert diagnose(right, net_of(n), n.X, n.I).correct


def test_intermediates_with_samples_in_columns() -> None:
    n = draw(np.random.default_rng(4))
    right = backward(n)
    columns = {"Z1": n.Z1.T, "A1": n.A1.T, "dZ1": right["dZ1"].T}
    found = diagnose({name: right[name] for name in PARAMETERS}, net_of(n), n.X, n.y, intermediates=columns)
    assert found.correct
    assert any("samples in columns" in note for note in found.notes)


def test_any_slope_at_a_kink_is_right() -> None:
    """relu'(0) = 1 or ½, and a hinge margin of exactly 0 counted as violated, are subgradients too."""
    random = np.random.default_rng(0)
    n = draw(random, loss="mse", activation="relu", output="identity")
    n = replace(n, **{name: np.round(2 * getattr(n, name)) for name in ("X", "W1", "b1", "W2", "b2")})
    assert (n.Z1 == 0).any()
    for slope in (1.0, 0.5):
        n.df1 = np.where(n.Z1 == 0, slope, n.Z1 > 0)
        assert np.any(backward(n)["b1"] != net_of(n).loss_and_grad(n.X, n.y)[1]["b1"])
        assert_right(n, {name: backward(n)[name] for name in PARAMETERS})

    n = draw(random, loss="hinge", activation="relu")
    n = replace(n, **{name: np.round(2 * getattr(n, name)) for name in ("X", "W1", "b1", "W2", "b2")})
    margins = n.Z2 - n.Z2[np.arange(n.N), n.y][:, None] + 1
    assert ((margins == 0) & (n.I == 0)).any()
    n.Z2 = n.Z2 + 1e-9 * (1 - n.I)  # now a margin of 0 is violated
    assert_right(n, {name: backward(n)[name] for name in PARAMETERS})
