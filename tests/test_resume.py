"""Exact resume: a training that goes on from a checkpoint ends in the bits of one that was never stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_networks import needs_compiler

from handgrad import MLP, SGD, Adam, AdamW, checkpoint, fit, resume, to_numpy
from handgrad.checkpoint import CheckpointError
from handgrad.resume import Checkpoints, Every, Progress, listed, newest, restore

RNG = np.random.default_rng(11)
X = RNG.standard_normal((103, 5))
Y = RNG.integers(0, 3, 103)
TIMES = ("seconds", "samples_per_second")
OPTIMIZERS = {
    "SGD": lambda: SGD(0.1),
    "momentum": lambda: SGD(0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "Adam": lambda: Adam(0.01),
    "AdamW": lambda: AdamW(0.01),
}


def network(device: str = "cpu") -> MLP:
    return MLP([5, 8, 3], loss="cross_entropy", device=device, seed=3)


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def bits(net: MLP) -> bytes:
    return bytes(to_numpy(net.flat_parameters.flat).tobytes())


def stopped_at(step: int):
    """An ``on_step`` that ends the training after so many steps, as a kill would: nothing is written."""
    seen = []

    def on_step(done: int, steps: int, loss: Any) -> None:
        seen.append(done)
        if len(seen) == step:
            raise KeyboardInterrupt

    return on_step


def continued(folder: Path, net: MLP, optimizer: Any) -> Progress:
    found = newest(folder, lambda line: pytest.fail(line))
    assert found is not None
    return restore(found[1], found[0], net, optimizer)


@pytest.mark.parametrize("rule", OPTIMIZERS)
@pytest.mark.parametrize("stop", [1, 11, 17])
def test_a_stopped_training_goes_on_to_the_same_bits(rule, stop, tmp_path):
    """11 steps an epoch, a checkpoint every 3: stopped anywhere, at most 2 steps are lost."""
    settings = {
        "batch_size": 10, "epochs": 3, "schedule": "cosine", "clip_norm": 0.5, "seed": 4,
        "validation": (X[:40], Y[:40]), "step_losses": True,
    }  # fmt: skip
    whole, whole_rule = network(), OPTIMIZERS[rule]()
    expected = fit(whole, X, Y, optimizer=whole_rule, on_step=stopped_at(1000), **settings)

    first = network()
    checkpoints = Checkpoints(tmp_path / "c", Every(steps=3))
    fit(
        first,
        X,
        Y,
        optimizer=OPTIMIZERS[rule](),
        checkpoints=checkpoints,
        on_step=stopped_at(stop),
        **settings,
    )

    net, optimizer = network(), OPTIMIZERS[rule]()
    net.load_parameters({name: np.zeros(view.shape) for name, view in net.parameters.items()})
    progress = continued(tmp_path / "c", net, optimizer)
    assert 0 <= stop - (progress.epoch * 11 + progress.step) <= 2 + (stop % 11 == 0)
    found = fit(net, X, Y, optimizer=optimizer, progress=progress, on_step=stopped_at(1000), **settings)
    assert bits(net) == bits(whole)
    assert timeless(found.rows) == timeless(expected.rows)
    assert found.steps == expected.steps
    for name, state in whole_rule.state_arrays().items():
        np.testing.assert_array_equal(optimizer.state_arrays()[name], state)


def test_early_stopping_remembers_its_best_epoch(tmp_path):
    """The best epoch lies before the stop, and the waiting began before it."""

    def rate(fraction: float) -> float:
        return 1.0 if fraction < 0.29 else 300.0

    y = np.tanh(X[:, :2])
    settings = {
        "batch_size": 20, "epochs": 10, "schedule": rate, "validation": (X, y), "patience": 3,
    }  # fmt: skip

    def regressor() -> MLP:
        return MLP([5, 8, 2], activation="tanh", dtype="float64", device="cpu", seed=3)

    whole = regressor()
    expected = fit(whole, X, y, optimizer=SGD(0.1), **settings)
    assert expected.best_epoch == 3
    assert len(expected.rows) == 6
    for stop in (3 * 6, 4 * 6 + 2, 5 * 6 + 4):  # steps
        folder = tmp_path / str(stop)
        first, net, optimizer = regressor(), regressor(), SGD(0.1)
        kept = Checkpoints(folder, Every(steps=1))
        fit(first, X, y, optimizer=SGD(0.1), checkpoints=kept, on_step=stopped_at(stop), **settings)
        progress = continued(folder, net, optimizer)
        found = fit(net, X, y, optimizer=optimizer, progress=progress, **settings)
        assert (found.best_epoch, found.stopped_early) == (3, True)
        assert timeless(found.rows) == timeless(expected.rows)
        assert bits(net) == bits(whole)


def test_a_finished_training_has_nothing_left_to_do(tmp_path):
    net, again = network(), network()
    fit(net, X, Y, optimizer=SGD(0.1), epochs=2, checkpoints=Checkpoints(tmp_path / "c", Every()))
    optimizer = SGD(0.1)
    progress = continued(tmp_path / "c", again, optimizer)
    assert (progress.epoch, progress.step) == (2, 0)
    history = fit(again, X, Y, optimizer=optimizer, epochs=2, progress=progress)
    assert len(history.rows) == 2
    assert bits(again) == bits(net)


@needs_compiler
def test_the_emulator_goes_on_too(tmp_path):
    settings = {"batch_size": 30, "epochs": 2, "seed": 1}
    whole, first, net = (network("emulator") for _ in range(3))
    fit(whole, X, Y, optimizer=Adam(0.01), **settings)
    kept = Checkpoints(tmp_path / "c", Every(steps=1))
    fit(first, X, Y, optimizer=Adam(0.01), checkpoints=kept, on_step=stopped_at(6), **settings)
    optimizer = Adam(0.01)
    progress = continued(tmp_path / "c", net, optimizer)
    assert (progress.epoch, progress.step) == (1, 2)
    fit(net, X, Y, optimizer=optimizer, progress=progress, **settings)
    assert bits(net) == bits(whole)


# ---- files


def kept_states(folder: Path, steps: int = 9) -> list[Path]:
    fit(
        network(), X, Y, optimizer=SGD(0.1, momentum=0.9), batch_size=10, epochs=1,
        checkpoints=Checkpoints(folder, Every(steps=3)), on_step=stopped_at(steps + 1),
    )  # fmt: skip
    return listed(folder)


def test_the_last_two_are_kept_under_names_that_say_where(tmp_path):
    names = [path.name for path in kept_states(tmp_path / "c")]
    assert names == ["000000-000000006.safetensors", "000000-000000009.safetensors"]
    assert {path.name for path in (tmp_path / "c").iterdir()} == set(names)
    for path in listed(tmp_path / "c"):
        assert checkpoint.load(path, device="cpu").sizes == (5, 8, 3)  # as any saved network


def flipped(content: bytes) -> bytes:
    place = len(content) - 40
    return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]


DAMAGES = {
    "bit flipped": flipped,
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a network without a training": None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_one_is_told_and_the_one_before_used(damage, tmp_path):
    before, last = kept_states(tmp_path / "c")
    change = DAMAGES[damage]
    if change is None:
        network().save(last)
    else:
        last.write_bytes(change(last.read_bytes()))
    told: list[str] = []
    found = newest(tmp_path / "c", told.append)
    assert found is not None
    assert found[0] == before
    assert len(told) == 1
    assert f"set aside as {last.name}.damaged, going on from {before.name}" in told[0]
    assert listed(tmp_path / "c") == [before]
    assert resume.progress_of(found[1], before).step == 6

    before.write_bytes(flipped(before.read_bytes()))
    with pytest.raises(CheckpointError, match="no checkpoint before it is left"):
        newest(tmp_path / "c", told.append)
    assert before.exists()


def test_one_of_a_newer_version_is_not_taken_for_damage(tmp_path, monkeypatch):
    kept_states(tmp_path / "c", steps=6)
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 2)
    kept_states(tmp_path / "c", steps=9)
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 1)
    with pytest.raises(CheckpointError, match="newer than this handgrad reads"):
        newest(tmp_path / "c", lambda line: pytest.fail(line))
    assert len(listed(tmp_path / "c")) == 2


def test_without_checkpoints_there_is_none(tmp_path):
    assert newest(tmp_path, lambda line: pytest.fail(line)) is None
    assert newest(tmp_path / "nowhere", lambda line: pytest.fail(line)) is None


# ---- how often


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def written_at(every: Every, tmp_path: Path, cost: float, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps after which there were checkpoints, where a step takes a second and a checkpoint ``cost``."""
    clock, written = Clock(), []
    real = checkpoint.save

    def save(*arguments: Any) -> None:
        clock.now += cost
        written.append(arguments[3]["step"])
        real(*arguments)

    monkeypatch.setattr(checkpoint, "save", save)
    kept = Checkpoints(tmp_path, every, clock)
    progress = Progress()
    net, rule = network(), SGD(0.1)
    rule.bind(net.flat_parameters)
    kept.follow(net, rule, progress)
    for _ in range(1000):
        clock.now += 1.0
        progress.step += 1
        kept.after_steps(1)
    return written


def test_checkpoints_come_by_steps_by_seconds_or_at_the_ends(tmp_path, monkeypatch):
    assert written_at(Every(steps=400), tmp_path / "a", 0.0, monkeypatch) == [0, 400, 800]
    assert written_at(Every(seconds=300), tmp_path / "b", 0.0, monkeypatch) == [0, 300, 600, 900]
    assert written_at(Every(), tmp_path / "d", 0.0, monkeypatch) == [0]


def test_auto_spends_a_hundredth_of_the_time(tmp_path, monkeypatch):
    assert written_at(Every(automatic=True), tmp_path / "a", 0.0, monkeypatch) == [*range(0, 1001, 10)]
    written = written_at(Every(automatic=True), tmp_path / "b", 2.0, monkeypatch)
    assert written == [0, 200, 400, 600, 800, 1000]


@pytest.mark.parametrize(
    ("text", "every"),
    [
        ("auto", Every(automatic=True)),
        ("500", Every(steps=500)),
        ("30s", Every(seconds=30.0)),
        ("2.5s", Every(seconds=2.5)),
        ("end", Every()),
    ],
)
def test_the_words_of_checkpoint_every(text, every):
    assert Every.parse(text) == every


@pytest.mark.parametrize("text", ["", "0", "0s", "-3", "3m", "nan", "1e9s", "often", "9" * 20])
def test_other_words_are_refused(text):
    with pytest.raises(ValueError, match="expected steps as 500, seconds as 30s, auto or end"):
        Every.parse(text)


def test_a_checkpoint_without_numbers_is_no_checkpoint_of_a_training(tmp_path):
    path = tmp_path / "000000-000000000.safetensors"
    checkpoint.save(network(), path, SGD(0.1), {"epoch": 1})
    with pytest.raises(CheckpointError, match="not a checkpoint of a training"):
        resume.progress_of(checkpoint.read(path), path)
    assert json.loads(checkpoint.read(path)[0]["training"]) == {"epoch": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": "1"}, {"step": -1}, {"epoch": True}, {"waited": 1.5}, {"seconds": "long"},
        {"best_epoch": "first"}, {"rows": {}}, {"rows": [1]}, {"epoch": 0, "rows": [{}]},
        {"stopped_early": 1},
    ],
    ids=str,
)  # fmt: skip
def test_numbers_of_the_wrong_kind_are_told(change, tmp_path):
    path = kept_states(tmp_path / "c")[-1]
    training = json.loads(checkpoint.read(path)[0]["training"])
    resume.progress_of(checkpoint.read(path), path)
    checkpoint.save(network(), path, SGD(0.1), training | change)
    with pytest.raises(CheckpointError, match="not a checkpoint of a training"):
        resume.progress_of(checkpoint.read(path), path)
