"""Data that do not fit a network: one line each, and nothing is changed."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from small_networks import LABELS, TARGETS, X, classifier, devices, parameters_of, regressor

import handgrad as hg
from handgrad.arrays import get_array_module, to_numpy
from handgrad.datasets import Dataset
from handgrad.network import MLP
from handgrad.ops.optimizer import SGD
from handgrad.samples import prepare
from handgrad.training import fit


def nan_at(row, column):
    bad = X.copy()
    bad[row, column] = np.nan
    return bad


CASES = {
    "targets missing": (
        lambda: {"y": None},
        r"^y: expected targets, got None; give arrays X and y, or a Dataset$",
    ),
    "lengths differ": (lambda: {"y": LABELS[:100]}, "^X has 103 samples but y has 100$"),
    "wrong columns": (
        lambda: {"X": X[:, :5]},
        "^X: expected 6 columns, as many as the network's inputs, got 5$",
    ),
    "images": (
        lambda: {"X": X.reshape(-1, 2, 3)},
        r"^X: expected a matrix \(N, 6\), got shape \(103, 2, 3\); flatten",
    ),
    "a number": (lambda: {"X": 3.0}, "^X: expected an array, got a single number$"),
    "texts": (lambda: {"X": [["a"] * 6] * 103}, "^X: expected numbers, got <U1$"),
    "nothing": (lambda: {"X": X[:0], "y": LABELS[:0]}, "^X: no samples; expected at least one$"),
    "nan": (lambda: {"X": nan_at(71, 4)}, r"^X: nan at X\[71, 4\]; expected finite numbers$"),
    "label too large": (
        lambda: {"y": np.where(np.arange(103) == 9, 3, LABELS)},
        r"^y: labels of cross_entropy with 3 outputs lie in 0 .. 2, got 3 at y\[9\]$",
    ),
    "negative label": (lambda: {"y": LABELS - 1}, r"^y: labels .* lie in 0 .. 2, got -1 at y\["),
    "float labels": (
        lambda: {"y": LABELS * 1.0},
        r"takes integer labels \(N,\), got float64 .*y.astype\(int\)$",
    ),
    "one-hot labels": (lambda: {"y": np.eye(3, dtype=int)[LABELS]}, r"got int64 of shape \(103, 3\)"),
    "batch size": (lambda: {"batch_size": 0}, "^batch_size: expected a whole number, 1 or above, got 0$"),
    "batch size 2.5": (
        lambda: {"batch_size": 2.5},
        "^batch_size: expected a whole number, 1 or above, got 2.5$",
    ),
    "epochs": (lambda: {"epochs": 0}, "^epochs: expected a whole number, 1 or above, got 0$"),
    "seed": (lambda: {"seed": -1}, "^seed: expected a whole number, 0 or above, got -1$"),
    "patience": (lambda: {"patience": 0}, "^patience: expected a whole number, 1 or above, got 0$"),
    "patience alone": (lambda: {"patience": 3}, "^patience: early stopping watches the validation loss"),
    "schedule": (
        lambda: {"schedule": "warp"},
        "^schedule: expected constant, step, cosine or a function, got 'warp'$",
    ),
    "schedule nan": (
        lambda: {"schedule": lambda fraction: math.nan},
        "^schedule: expected a finite factor, 0 or above, got nan at 0 of the training$",
    ),
    "clip_norm": (lambda: {"clip_norm": -1}, "^clip_norm: expected a number above 0, got -1$"),
    "validation pair": (
        lambda: {"validation": (X,)},
        r"^validation: expected \(X, y\) or a Dataset, got 1 things$",
    ),
    "validation data": (
        lambda: {"validation": (X, LABELS + 5)},
        r"^validation y: labels .* lie in 0 .. 2, got . at validation y\[0\]$",
    ),
}


@pytest.mark.parametrize("case", CASES, ids=[name.replace(" ", "-") for name in CASES])
def test_bad_input_is_told_in_one_line(case):
    changes, message = CASES[case]
    net = classifier()
    before = parameters_of(net)
    arguments = {"X": X, "y": LABELS, "optimizer": SGD(0.1)} | changes()
    with pytest.raises(ValueError, match=message) as raised:
        fit(net, arguments.pop("X"), arguments.pop("y"), **arguments)
    assert "\n" not in str(raised.value)
    np.testing.assert_array_equal(parameters_of(net), before)


def test_bad_targets_of_a_regression_are_told():
    net = regressor()
    with pytest.raises(
        ValueError, match=r"^y: mse takes targets \(N, 2\), got shape \(103,\); labels go with loss="
    ):
        fit(net, X, LABELS, optimizer=SGD(0.1))
    y = TARGETS.copy()
    y[5, 1] = -np.inf
    with pytest.raises(ValueError, match=r"^y: -inf at y\[5, 1\]; expected finite numbers$"):
        fit(net, X, y, optimizer=SGD(0.1))
    binary = MLP([6, 1], loss="bce", device="cpu")
    with pytest.raises(ValueError, match=r"^y: targets of bce lie in 0 .. 1, got 2.0 at y\[3, 0\]$"):
        fit(binary, X, np.where(np.arange(103) == 3, 2.0, 1.0), optimizer=SGD(0.1))


def test_an_optimizer_by_name_or_of_another_network_is_refused():
    with pytest.raises(TypeError, match=r"^optimizer: expected an SGD, Adam or AdamW object, got 'adam'$"):
        fit(classifier(), X, LABELS, optimizer="adam")
    optimizer = SGD(0.1)
    fit(classifier(), X, LABELS, optimizer=optimizer, epochs=1)
    with pytest.raises(ValueError, match="this SGD holds the state of another network"):
        fit(classifier(), X, LABELS, optimizer=optimizer, epochs=1)


def test_a_data_set_and_its_pieces_train_alike():
    data = Dataset(X.astype(np.float32), LABELS, classes=3)
    nets = [classifier(dtype="float32") for _ in range(3)]
    fit(nets[0], data, optimizer=SGD(0.1), epochs=2)
    fit(nets[1], data.X, data.y, optimizer=SGD(0.1), epochs=2)
    fit(nets[2], data.X.tolist(), data.y.tolist(), optimizer=SGD(0.1), epochs=2)
    assert len({parameters_of(net).tobytes() for net in nets}) == 1
    with pytest.raises(ValueError, match=r"^X has 100 samples but y has 103$"):
        fit(nets[0], replace(data, X=data.X[:100]), optimizer=SGD(0.1))


def test_the_place_of_a_bad_number_counts_from_the_first_row(monkeypatch):
    monkeypatch.setattr("handgrad.samples.CHECKED_ROWS", 10)
    with pytest.raises(ValueError, match=r"^X: nan at X\[71, 4\]; expected finite numbers$"):
        prepare(classifier(), nan_at(71, 4), LABELS)


@devices
def test_what_reaches_the_device(device):
    """uint8 stays uint8; other features become the network's dtype where they are copied anyway."""
    net = MLP([6, 4, 3], loss="cross_entropy", device=device)
    pixels = (X * 10 + 100).astype(np.uint8)
    samples = prepare(net, Dataset(pixels, LABELS, scale=0.5, shift=-1.0, classes=3))
    assert get_array_module(samples.X, samples.y) is net.xp
    assert (samples.X.dtype, samples.scale, samples.shift) == (np.uint8, 0.5, -1.0)
    np.testing.assert_array_equal(to_numpy(samples.X), pixels)
    np.testing.assert_array_equal(to_numpy(samples.y), LABELS)
    samples = prepare(net, X[:, ::-1], LABELS)
    assert samples.X.dtype == (np.float64 if device == "cpu" else np.float32)
    np.testing.assert_array_equal(to_numpy(samples.X).astype(np.float32), X[:, ::-1].astype(np.float32))
    integers = prepare(MLP([6, 1], device=device), (X * 10).astype(np.int64), LABELS)
    assert (integers.y.dtype, integers.y.shape) == (np.float32, (103, 1))
    assert integers.X.dtype in (np.int64, np.float32)


def test_memory_mapped_data_are_not_copied_on_the_cpu(tmp_path):
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    assert np.shares_memory(prepare(classifier(), mapped, LABELS).X, mapped)


@pytest.mark.parametrize(
    "check", [hg.gradcheck, hg.explain, hg.evaluate, None], ids=lambda f: getattr(f, "__name__", "fit")
)
def test_a_tensor_is_refused_with_the_remedy(check: Any) -> None:
    torch = pytest.importorskip("torch")
    net = hg.MLP([3, 2], device="cpu")
    check = check or (lambda net, X, y: hg.fit(net, X, y, optimizer=hg.SGD(0.1), epochs=1))
    X, y = np.ones((4, 3)), np.ones((4, 2))
    for tensor in (torch.tensor(X), torch.tensor(X, requires_grad=True)):
        remedy = "X.detach().cpu().numpy()" if tensor.requires_grad else "X.numpy()"
        message = f"X: expected a NumPy, CuPy or emulated array, got torch.Tensor; convert with {remedy}"
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            check(net, tensor, y)
    with pytest.raises(TypeError, match=r"^y: expected a NumPy.*convert with y\.numpy"):
        check(net, X, torch.tensor(y))
