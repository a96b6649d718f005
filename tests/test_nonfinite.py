"""NaN and inf in training: the step, the layer and the batch are named, and nothing of that step is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import handgrad, refused, report, succeeds
from devices import DEVICES

import handgrad as hg
from handgrad import resume
from handgrad.arrays import to_numpy
from handgrad.nonfinite import NonFiniteError
from handgrad.training import epoch_order

N, D, H, C, BATCH = 40, 6, 5, 3, 8
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(N, D)).astype(np.float32), RANDOM.integers(0, C, N)


def network(device="cpu", **options):
    return hg.MLP([D, H, C], **({"loss": "cross_entropy", "device": device, "seed": 3} | options))


def huge(row, value=3e38):
    """The data with a row whose products overflow float32."""
    changed = X.copy()
    changed[row] = value * np.where(np.arange(D) % 2, 1, -1)
    return changed


def step_of(row, epoch=0):
    """The step, from 0, that sees this row."""
    return int(np.flatnonzero(epoch_order(N, 0, epoch) == row)[0]) // BATCH


def fit(net, inputs, optimizer=None, **options):
    return hg.fit(
        net, inputs, Y, optimizer=optimizer or hg.SGD(lr=0.1, momentum=0.9), batch_size=BATCH, **options
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("row", [0, 17, 39])
def test_the_step_the_layer_and_the_batch_are_named(device, row):
    with pytest.raises(NonFiniteError) as caught:
        fit(network(device), huge(row), epochs=2)
    found = caught.value
    assert (found.epoch, found.step) == (1, step_of(row) + 1)
    assert (found.name, found.layer) == ("Z1", 1)
    first = found.step - 1
    np.testing.assert_array_equal(found.rows, epoch_order(N, 0, 0)[first * BATCH : (first + 1) * BATCH])
    assert "\n" not in str(found)
    assert f"epoch 1, step {found.step}: Z1 (layer 1) has " in str(found)


@pytest.mark.parametrize("device", DEVICES)
def test_the_network_is_as_it_was_before_that_step(device):
    """Bit for bit that of a training that ends there, its optimizer too."""
    row = 17
    net, optimizer = network(device), hg.Adam(lr=0.01)
    with pytest.raises(NonFiniteError):
        fit(net, huge(row), optimizer, epochs=1)
    expected, same = network(device), hg.Adam(lr=0.01)
    order = epoch_order(N, 0, 0)[: step_of(row) * BATCH]
    given, labels = hg.to_device(X, device), hg.to_device(Y.astype(np.int32), device)
    expected.train_epoch(given, labels, order, BATCH, same)
    for name, value in expected.parameters.items():
        np.testing.assert_array_equal(to_numpy(net.parameters[name]), to_numpy(value), err_msg=name)
    for name, value in same.state_arrays().items():
        np.testing.assert_array_equal(to_numpy(optimizer.state_arrays()[name]), to_numpy(value), err_msg=name)


@pytest.mark.filterwarnings("error:invalid value encountered in scalar divide", "ignore:overflow")
def test_an_epoch_whose_steps_are_all_left_out_has_no_loss():
    net = hg.MLP([3, 2], device="cpu")
    X, y = np.full((4, 3), 1e30, np.float32), np.zeros((4, 2), np.float32)
    history = hg.fit(net, X, y, optimizer=hg.SGD(0.1), epochs=1, on_nonfinite="skip")
    assert np.isnan(history.rows[0]["train_loss"])


@pytest.mark.parametrize("device", DEVICES)
def test_a_skipped_step_leaves_no_trace(device):
    """As if the batch had not been there."""
    row = 17
    net, optimizer = network(device), hg.SGD(lr=0.1, momentum=0.9)
    history = fit(net, huge(row), optimizer, epochs=2, on_nonfinite="skip", step_losses=True)
    assert history.skipped == [(epoch + 1, step_of(row, epoch) + 1) for epoch in (0, 1)]
    assert np.isnan(history.steps).sum() == 2

    expected, same = network(device), hg.SGD(lr=0.1, momentum=0.9)
    given, labels = hg.to_device(X, device), hg.to_device(Y.astype(np.int32), device)
    for epoch in (0, 1):
        kept = np.delete(epoch_order(N, 0, epoch).reshape(-1, BATCH), step_of(row, epoch), axis=0)
        losses = to_numpy(expected.train_epoch(given, labels, kept.reshape(-1), BATCH, same))
        assert history.rows[epoch]["train_loss"] == pytest.approx(losses.astype(np.float64).mean(), rel=1e-6)
    for name, value in expected.parameters.items():
        np.testing.assert_array_equal(to_numpy(net.parameters[name]), to_numpy(value), err_msg=name)


def test_ignored_it_spreads():
    net = network()
    with np.errstate(all="ignore"):
        history = fit(net, huge(17), epochs=1, on_nonfinite="ignore")
    assert np.isnan(history.rows[0]["train_loss"])
    assert np.isnan(to_numpy(net.flat_parameters.flat)).any()


def test_an_update_that_overflows_is_named():
    """Every loss and gradient is finite; lr times the gradient is not."""
    y = np.full((N, C), 1e10, np.float32)
    with pytest.raises(NonFiniteError, match=r"epoch 1, step 1: the update of \w\d \(layer \d\) has -?inf"):
        hg.fit(network(loss="mse"), X, y, optimizer=hg.SGD(lr=1e30), batch_size=BATCH, epochs=1)


def test_a_loss_that_overflows_is_named():
    y = np.full((N, C), 1e30, np.float32)
    with pytest.raises(NonFiniteError) as caught:
        hg.fit(network(loss="mse"), X, y, optimizer=hg.SGD(lr=1e-3), batch_size=BATCH, epochs=1)
    assert (caught.value.name, caught.value.layer) == ("loss", 0)


@pytest.mark.parametrize("shards", [1, 4])
def test_shards_are_guarded_too(shards):
    with pytest.raises(NonFiniteError) as caught:
        fit(network(), huge(17), epochs=1, shards=shards)
    assert caught.value.step == step_of(17) + 1


def test_where_nothing_is_wrong_the_bits_are_the_same():
    nets = [network() for _ in range(3)]
    for net, choice in zip(nets, ("stop", "skip", "ignore"), strict=True):
        fit(net, X, epochs=3, on_nonfinite=choice)
    for net in nets[1:]:
        np.testing.assert_array_equal(net.flat_parameters.flat, nets[0].flat_parameters.flat)


def test_an_unknown_choice_is_refused():
    with pytest.raises(ValueError, match="on_nonfinite: expected one of stop, skip, ignore, got 'halt'"):
        fit(network(), X, on_nonfinite="halt")


# ---- the command line ------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Labelled rows, one of which overflows."""
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", X_train=huge(17), y_train=Y, X_test=X, y_test=Y)
    return "data.npz"


TRAIN = (
    "--hidden",
    "5",
    "--batch-size",
    "8",
    "--epochs",
    "2",
    "--device",
    "cpu",
    "--no-plot",
    "--out",
    "run",
)


def test_the_command_stops_in_one_line_and_keeps_its_checkpoint(data):
    result = handgrad("train", "--data", data, *TRAIN, "--checkpoint-every", "1")
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Z1 (layer 1) has " in line
    assert "--on-nonfinite skip" in line
    assert "--lr (it was" in line
    kept = resume.listed(Path("run/checkpoints"))
    assert [path.stem for path in kept][-1] == f"000000-{step_of(17):09d}"
    found = report("train", "--resume", "run", "--on-nonfinite", "skip")
    assert found["skipped_steps"] == 2
    assert np.isfinite(found["train_loss"])


def test_the_command_skips(data):
    found = report("train", "--data", data, *TRAIN, "--on-nonfinite", "skip")
    assert found["skipped_steps"] == 2
    assert np.isfinite(found["train_loss"])
    assert "2 steps were skipped for a NaN or inf in them" in succeeds(
        "train", "--data", data, *TRAIN[:-1], "again", "--on-nonfinite", "skip"
    )


def test_a_wrong_word(data):
    line = refused("train", "--data", data, "--on-nonfinite", "halt")
    assert "'halt' is not one of 'stop', 'skip', 'ignore'" in line
