"""Measured arrangements: only when asked, only where clearly better, remembered, and never in the way."""

import dataclasses
import json
import time

import numpy as np
import pytest
from devices import network_on, problem
from reference_network import assert_within, network

from handgrad.host import arrangement, blas, remembered, tuning
from handgrad.host.engine import _blocks
from handgrad.network import MLP

SIZES = (20, 12, 3)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HANDGRAD_CACHE", str(tmp_path / "cache"))
    arrangement.cut.cache_clear()
    yield tmp_path / "cache"
    arrangement.cut.cache_clear()


def times(monkeypatch, seconds):
    """``seconds(cut)`` stands for the measured time of a row."""
    monkeypatch.setattr(tuning, "_seconds_per_row", lambda layout, cut, clock: seconds(cut))


def test_what_is_clearly_better_is_used_and_remembered(monkeypatch, folder):
    net = MLP(SIZES, device="cpu")
    rule = arrangement.cut(SIZES, 40, 4)
    times(monkeypatch, lambda cut: 1.0 if cut == rule else 0.5 + abs(cut.block - 20))
    tuned = tuning.tune(net, 40)
    assert tuned.remembered
    assert (tuned.rule, tuned.cut.block, tuned.rule_seconds, tuned.seconds) == (rule, 20, 1.0, 0.5)
    assert arrangement.cut(SIZES, 40, 4) == tuned.cut != rule
    for other in ((SIZES, 39, 4), (SIZES, 40, 8), ((20, 12, 4), 40, 4)):
        assert arrangement.cut(*other) == arrangement.rule(*other)
    content = json.loads((folder / "host.json").read_text())
    assert list(content) == [remembered.machine()]
    monkeypatch.setattr(remembered, "machine", lambda: "another machine")
    arrangement.cut.cache_clear()
    assert arrangement.cut(SIZES, 40, 4) == rule


def test_a_little_better_is_not_worth_other_bits(monkeypatch):
    rule = arrangement.cut(SIZES, 40, 4)
    times(monkeypatch, lambda cut: 1.0 if cut == rule else 0.98)
    tuned = tuning.tune(MLP(SIZES, device="cpu"), 40)
    assert tuned.cut == rule
    assert tuned.seconds == tuned.rule_seconds


def test_without_a_writable_cache_nothing_changes(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HANDGRAD_CACHE", str(tmp_path / "file" / "cache"))
    rule = arrangement.cut(SIZES, 40, 4)
    times(monkeypatch, lambda cut: 1.0 if cut == rule else 0.5)
    assert not tuning.tune(MLP(SIZES, device="cpu"), 40).remembered
    assert arrangement.cut(SIZES, 40, 4) == rule


@pytest.mark.parametrize(
    "entry",
    [
        {"block": 0, "forward": [0, 0], "weight": [0, 0], "input": [0, 0]},
        {"block": 99, "forward": [0, 0], "weight": [0, 0], "input": [0, 0]},
        {"block": 8, "forward": [0], "weight": [0, 0], "input": [0, 0]},
        {"block": 8, "forward": [0, -4], "weight": [0, 0], "input": [0, 0]},
        {"block": 8, "forward": ["a", 0], "weight": [0, 0], "input": [0, 0]},
        {"block": 8},
        [],
    ],
    ids=str,
)
def test_entries_that_make_no_sense_are_passed_over(entry):
    assert remembered.remember(SIZES, 40, 4, entry)
    assert arrangement.cut(SIZES, 40, 4) == arrangement.rule(SIZES, 40, 4)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"machine": 3}', "\x00"])
def test_a_damaged_file_counts_as_empty(folder, text):
    folder.mkdir()
    (folder / "host.json").write_text(text)
    rule = arrangement.rule(SIZES, 40, 4)
    assert arrangement.cut(SIZES, 40, 4) == rule
    assert remembered.remember(SIZES, 40, 4, dataclasses.asdict(rule) | {"block": 7})
    arrangement.cut.cache_clear()
    assert arrangement.cut(SIZES, 40, 4).block == 7


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_a_tuned_network_computes_the_same(loss):
    """Measured in earnest; whatever came out, a network that was at work before is cut anew."""
    config, X, y, parameters = problem(loss, SIZES, samples=50)
    net = network_on("cpu", config, parameters, "float64")
    y = y if y.dtype.kind in "iu" else y.astype(np.float64)
    net.loss_and_grad(X, y)
    rule = arrangement.cut(SIZES, 50, 8)
    tuned = tuning.tune(net, 50)
    assert tuned.rule == rule
    assert 0 < tuned.seconds <= tuned.rule_seconds
    remembered.remember(SIZES, 50, 8, dataclasses.asdict(tuned.cut) | {"block": 9, "forward": [4, 2]})
    arrangement.cut.cache_clear()
    net._engine = None
    value, gradients = net.loss_and_grad(X, y)
    assert {n for n, _ in net._engine.parts[0].blocks} == {9, 5}
    bounds = network(config, X, y, parameters, "float64")
    assert_within(value, bounds["loss"], "loss")
    for name in net.parameters:
        assert_within(gradients[name], bounds[f"d{name}"], name)


def test_where_blas_has_its_threads_they_are_measured_and_remembered_apart(monkeypatch):
    """A step that is left to BLAS's threads: other entries, the time that passes, and BLAS not held."""
    sizes, seen = (500, 400, 2), []
    monkeypatch.setattr(
        tuning, "_seconds_per_row", lambda layout, cut, clock: seen.append((blas.find()._users, clock)) or 1.0
    )
    tuned = tuning.tune(MLP(sizes, device="cpu"), 50)
    assert set(seen) == {(0, time.perf_counter)}
    assert tuned.cut == tuned.rule == arrangement.rule(sizes, 50, 4, shared=True)
    assert remembered.find(sizes, 50, 4, shared=True) == json.loads(json.dumps(dataclasses.asdict(tuned.cut)))
    assert remembered.find(sizes, 50, 4) is None
    del seen[:]
    tuning.tune(MLP(SIZES, device="cpu"), 50)
    if blas.find().controllable:
        assert set(seen) == {(1, time.thread_time)}
        assert remembered.find(SIZES, 50, 4) is not None


def test_arguments():
    net = MLP(SIZES, device="cpu")
    with pytest.raises(ValueError, match="batch_size: expected a whole number, 1 or more, got 0"):
        tuning.tune(net, 0)
    net.xp = None
    with pytest.raises(ValueError, match="net: expected a network on the CPU, got one on"):
        tuning.tune(net, 1)


def test_rows_are_divided_evenly():
    assert _blocks(0, 64, 64) == ((0, 64),)
    assert _blocks(10, 522, 384) == ((10, 266), (266, 522))
    for start, stop, most in ((0, 1, 1), (3, 1000, 96), (0, 25_000, 576), (5, 105, 7)):
        blocks = _blocks(start, stop, most)
        assert [block[0] for block in blocks] == [start, *(block[1] for block in blocks[:-1])]
        assert blocks[-1][1] == stop
        assert all(0 < end - begin <= most for begin, end in blocks)
