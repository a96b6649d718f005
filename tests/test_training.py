"""The training loop: order, batches, schedules, validation, early stopping, interruption."""

from __future__ import annotations

import math

import numpy as np
import pytest
from small_networks import LABELS, TARGETS, X, classifier, needs_compiler, parameters_of, regressor

from handgrad.arrays import to_numpy
from handgrad.datasets import Dataset, load
from handgrad.evaluation import evaluate
from handgrad.network import MLP
from handgrad.ops.optimizer import SGD, Adam
from handgrad.schedules import factor
from handgrad.training import CALLS_PER_EPOCH, epoch_order, fit


class Calls:
    """An ``on_step`` or ``on_epoch`` that notes what it is called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, *arguments):
        self.calls.append(arguments)


# ---- the steps


@pytest.mark.parametrize("batch_size", [10, 103, 1000])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_epochs_are_steps_over_the_documented_order(batch_size, reduction):
    """The losses and the weights are those of single steps on X[order], the last batch by its own mean."""
    net, twin = classifier(reduction=reduction), classifier(reduction=reduction)
    history = fit(
        net,
        X,
        LABELS,
        optimizer=SGD(0.01, momentum=0.9),
        batch_size=batch_size,
        epochs=2,
        seed=7,
        step_losses=True,
    )
    optimizer, losses = SGD(0.01, momentum=0.9), []
    for epoch in range(2):
        order = np.random.Generator(np.random.PCG64([7, epoch])).permutation(103)
        for start in range(0, 103, batch_size):
            rows = order[start : start + batch_size]
            losses.append((len(rows), float(twin.train_step(X[rows], LABELS[rows], optimizer))))
    assert history.steps == [loss for _, loss in losses]
    np.testing.assert_array_equal(parameters_of(net), parameters_of(twin))
    for row, part in zip(history.rows, (losses[: len(losses) // 2], losses[len(losses) // 2 :]), strict=True):
        if reduction == "mean":
            expected = math.fsum(n * loss for n, loss in part) / 103
        else:
            expected = math.fsum(loss for _, loss in part)
        assert row["train_loss"] == pytest.approx(expected, rel=1e-14)


def test_the_last_short_batch_counts_by_its_own_mean():
    """With lr so small that nothing moves, the training loss is the mean over all samples."""
    net = regressor()
    y = TARGETS.copy()
    history = fit(net, X, y, optimizer=SGD(1e-300), batch_size=50, epochs=1)
    expected = np.mean((net.forward(X) - y) ** 2)
    assert history.rows[0]["train_loss"] == pytest.approx(expected, rel=1e-14)


def test_order_is_a_permutation_that_changes_with_seed_and_epoch():
    orders = [epoch_order(1000, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    assert len({order.tobytes() for order in orders}) == 4
    np.testing.assert_array_equal(epoch_order(5, 3, 2, shuffle=False), [0, 1, 2, 3, 4])


def test_unshuffled_batches_come_in_order():
    net, twin = regressor(), regressor()
    y = TARGETS.copy()
    history = fit(net, X, y, optimizer=SGD(0.1), batch_size=60, epochs=1, shuffle=False, step_losses=True)
    optimizer = SGD(0.1)
    expected = [
        float(twin.train_step(X[part], y[part], optimizer)) for part in (slice(0, 60), slice(60, 103))
    ]
    assert history.steps == expected


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_seed_same_bits(dtype):
    def trained(seed, on_step=None):
        net = classifier(dtype=dtype)
        fit(
            net,
            X,
            LABELS,
            optimizer=Adam(0.01),
            batch_size=2,
            epochs=3,
            seed=seed,
            clip_norm=1.0,
            on_step=on_step,
        )
        return parameters_of(net).tobytes()

    assert trained(5) == trained(5)
    assert trained(5) == trained(5, on_step=Calls()), "reporting progress changes no bit"
    assert trained(5) != trained(6)


def test_going_on_at_an_epoch_gives_the_bits_of_the_whole_run():
    whole, parts = classifier(), classifier()
    settings = {"batch_size": 20, "epochs": 5, "schedule": "cosine", "seed": 2}
    fit(whole, X, LABELS, optimizer=SGD(0.1, momentum=0.9), **settings)
    optimizer = SGD(0.1, momentum=0.9)

    def stop_after_two(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    first = fit(parts, X, LABELS, optimizer=optimizer, on_epoch=stop_after_two, **settings)
    second = fit(parts, X, LABELS, optimizer=optimizer, first_epoch=2, **settings)
    assert first.interrupted
    assert [row["epoch"] for row in first.rows + second.rows] == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(parameters_of(parts), parameters_of(whole))


def test_uint8_data_are_scaled_batch_by_batch():
    pixels = np.random.default_rng(5).integers(0, 256, size=(40, 6), dtype=np.uint8)
    data = Dataset(pixels, LABELS[:40], scale=1 / 255, shift=-0.5, classes=3)
    net, twin = classifier(), classifier()
    fit(net, data, optimizer=SGD(0.1), batch_size=16, epochs=2, validation=data)
    floats = pixels.astype(float) * (1 / 255) - 0.5
    fit(twin, floats, LABELS[:40], optimizer=SGD(0.1), batch_size=16, epochs=2)
    np.testing.assert_allclose(parameters_of(net), parameters_of(twin), rtol=1e-12, atol=1e-15)
    assert evaluate(net, data).loss == pytest.approx(evaluate(twin, floats, LABELS[:40]).loss, rel=1e-12)


def test_frozen_parameters_stay():
    net = classifier()
    before = {name: to_numpy(view).copy() for name, view in net.parameters.items()}
    net.freeze("W1", "b2")
    fit(net, X, LABELS, optimizer=Adam(0.01, weight_decay=0.1), epochs=2)
    for name, view in net.parameters.items():
        assert (to_numpy(view).tobytes() == before[name].tobytes()) == (name in ("W1", "b2"))


def test_it_learns():
    net = classifier()
    history = fit(
        net, X, LABELS, optimizer=SGD(0.1, momentum=0.9), batch_size=16, epochs=40, validation=(X, LABELS)
    )
    assert history.rows[-1]["validation_accuracy"] > 0.97
    assert history.rows[-1]["validation_loss"] < 0.2 * history.rows[0]["validation_loss"]


# ---- schedules


def test_schedules_have_their_documented_values():
    fractions = (0, 0.25, 0.49, 0.5, 0.74, 0.75, 0.99)
    assert [factor("constant", x) for x in fractions] == [1] * 7
    assert [factor("step", x) for x in fractions] == [1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    assert factor("cosine", 0) == 1
    assert factor("cosine", 1 / 3) == pytest.approx(0.75, rel=1e-15)
    assert factor("cosine", 0.5) == pytest.approx(0.5, rel=1e-15)
    assert factor("cosine", 2 / 3) == pytest.approx(0.25, rel=1e-15)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1, 1, 1, 1]),
        ("step", [1, 1, 0.1, 0.01]),
        ("cosine", [0.5 * (1 + math.cos(math.pi * e / 4)) for e in range(4)]),
        (lambda fraction: 1 - fraction, [1, 0.75, 0.5, 0.25]),
    ],
    ids=["constant", "step", "cosine", "function"],
)
def test_schedules_drive_the_optimizer(schedule, factors):
    net, twin = regressor(), regressor()
    y = TARGETS.copy()
    optimizer = SGD(0.2)
    history = fit(net, X, y, optimizer=optimizer, batch_size=103, epochs=4, schedule=schedule, shuffle=False)
    assert [row["learning_rate"] for row in history.rows] == [0.2 * f for f in factors]
    assert optimizer.lr == 0.2
    for f in factors:
        twin.train_step(X, y, SGD(0.2 * f))
    np.testing.assert_array_equal(parameters_of(net), parameters_of(twin))


# ---- validation, early stopping


def test_rows_have_their_keys_and_validation_is_evaluate():
    net = classifier()
    rows = Calls()
    history = fit(
        net,
        X[:80],
        LABELS[:80],
        optimizer=SGD(0.1),
        epochs=3,
        validation=(X[80:], LABELS[80:]),
        on_epoch=rows,
    )
    assert [row for (row,) in rows.calls] == history.rows
    assert [row["epoch"] for row in history.rows] == [1, 2, 3]
    found = evaluate(net, X[80:], LABELS[80:])
    assert history.rows[-1]["validation_loss"] == found.loss
    assert history.rows[-1]["validation_accuracy"] == found.accuracy
    assert history.rows[-1]["samples_per_second"] == pytest.approx(80 / history.rows[-1]["seconds"])
    assert list(history.rows[0]) == [
        "epoch",
        "train_loss",
        "validation_loss",
        "validation_accuracy",
        "learning_rate",
        "samples_per_second",
        "seconds",
    ]
    assert not history.interrupted
    assert not history.stopped_early


def test_without_validation_its_columns_are_none():
    history = fit(classifier(), X, LABELS, optimizer=SGD(0.1), epochs=1)
    assert history.rows[0]["validation_loss"] is None
    assert history.rows[0]["validation_accuracy"] is None
    assert history.best_epoch is None


def diverging(fraction):
    """A learning rate that helps for three epochs and then only harms."""
    return 1.0 if fraction < 0.29 else 300.0


def test_early_stopping_ends_with_the_best_parameters():
    net = regressor()
    y = np.tanh(X[:, :2])
    snapshots = []
    history = fit(
        net,
        X,
        y,
        optimizer=SGD(0.1),
        epochs=10,
        batch_size=20,
        schedule=diverging,
        validation=(X, y),
        patience=2,
        on_epoch=lambda row: snapshots.append(parameters_of(net)),
    )
    losses = [row["validation_loss"] for row in history.rows]
    best = int(np.argmin(losses))
    assert history.stopped_early
    assert history.best_epoch == best + 1 == 3
    assert len(losses) == best + 1 + 2
    np.testing.assert_array_equal(parameters_of(net), snapshots[best])
    assert evaluate(net, X, y).loss == losses[best]


def test_patience_counts_epochs_since_the_best_and_restores_at_the_end_too():
    net = regressor()
    y = np.tanh(X[:, :2])
    history = fit(
        net,
        X,
        y,
        optimizer=SGD(0.1),
        epochs=10,
        batch_size=20,
        schedule=diverging,
        validation=(X, y),
        patience=8,
    )
    assert len(history.rows) == 10
    assert not history.stopped_early
    assert history.best_epoch == 3
    assert evaluate(net, X, y).loss == history.rows[2]["validation_loss"]


# ---- progress and interruption


@pytest.mark.parametrize("samples", [1, 7, 103])
def test_on_step_is_called_about_fifty_times_an_epoch(samples):
    seen = Calls()
    history = fit(
        classifier(),
        X[:samples],
        LABELS[:samples],
        optimizer=SGD(0.1),
        batch_size=1,
        epochs=2,
        on_step=lambda step, steps, loss: seen(step, steps, loss()),
        step_losses=True,
    )
    stride = -(-samples // CALLS_PER_EPOCH)
    expected = [*range(stride, samples, stride), samples]
    assert [step for step, _, _ in seen.calls] == expected * 2
    assert {steps for _, steps, _ in seen.calls} == {samples}
    assert seen.calls[0][2] == pytest.approx(np.mean(history.steps[:stride]), rel=1e-15)


def test_ctrl_c_leaves_a_usable_network_and_the_history():
    net, twin = classifier(), classifier()
    optimizer = SGD(0.1)

    def interrupt(step, steps, loss):
        if len(finished) == 2 and step == 3:
            raise KeyboardInterrupt

    finished = []
    settings = {"batch_size": 10, "epochs": 9, "schedule": "step", "validation": (X, LABELS), "patience": 1}
    history = fit(
        net, X, LABELS, optimizer=optimizer, on_step=interrupt, on_epoch=finished.append, **settings
    )
    assert history.interrupted
    assert history.rows == finished
    assert len(finished) == 2
    assert optimizer.lr == 0.1
    assert optimizer.step == 2 * 11 + 3
    twin_optimizer = SGD(0.1)
    for epoch, steps in ((0, 11), (1, 11), (2, 3)):
        order = epoch_order(103, 0, epoch)
        for start in range(0, 10 * steps, 10):
            rows = order[start : start + 10]
            twin.train_step(X[rows], LABELS[rows], twin_optimizer)
    np.testing.assert_array_equal(parameters_of(net), parameters_of(twin))
    assert np.isfinite(evaluate(net, X, LABELS).loss)


def test_an_error_in_a_callback_comes_out_and_lr_is_put_back():
    optimizer = SGD(0.1)

    def fail(row):
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fit(classifier(), X, LABELS, optimizer=optimizer, schedule=lambda fraction: 0.5, on_epoch=fail)
    assert optimizer.lr == 0.1


# ---- the emulator


def digits(count):
    return load().train.head(count)


@needs_compiler
@pytest.mark.parametrize("make", [lambda: SGD(0.05, momentum=0.9), lambda: Adam(0.003)], ids=["SGD", "Adam"])
def test_the_emulator_follows_the_cpu(make):
    """20 steps on digits, uint8 scaled in the kernel, with clipping, a schedule and a short last batch."""
    histories = []
    for device in ("cpu", "emulator"):
        net = MLP([784, 12, 10], loss="cross_entropy", device=device, seed=1)
        histories.append(
            fit(
                net,
                digits(150),
                optimizer=make(),
                batch_size=32,
                epochs=4,
                schedule="cosine",
                clip_norm=2.0,
                validation=digits(40),
                step_losses=True,
            )
        )
    cpu, emulated = histories
    assert len(cpu.steps) == 20
    np.testing.assert_allclose(emulated.steps, cpu.steps, rtol=1e-5)
    for key in ("train_loss", "validation_loss", "validation_accuracy", "learning_rate"):
        assert [row[key] for row in emulated.rows] == pytest.approx([row[key] for row in cpu.rows], rel=1e-5)


@needs_compiler
def test_same_seed_same_bits_on_the_emulator():
    def trained(seed):
        net = MLP([784, 9, 10], loss="cross_entropy", device="emulator", seed=1)
        net.freeze("b1")
        fit(
            net,
            digits(70),
            optimizer=Adam(0.003),
            batch_size=32,
            epochs=2,
            seed=seed,
            patience=1,
            validation=digits(30),
        )
        return parameters_of(net).tobytes()

    assert trained(5) == trained(5)
    assert trained(5) != trained(6)
