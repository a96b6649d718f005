"""``handgrad train --stream``: the same run as in memory, continued, on ranks, evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import handgrad, refused, report, succeeds
from safetensors.numpy import load_file

from handgrad import datasets
from handgrad.resume import listed
from handgrad.streaming import write_shards

QUICK = (
    "train", "--epochs", "2", "--hidden", "8", "--device", "cpu", "--no-plot", "--quiet",
    "--batch-size", "32",
)  # fmt: skip


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def digits() -> str:
    split = datasets.load("mnist-subset")
    parts = {"X": split.train.X, "y": split.train.y, "X_test": split.test.X, "y_test": split.test.y}
    for name, array in parts.items():
        np.save(f"{name}.npy", array[:500])
    return "X.npy,y.npy,X_test.npy,y_test.npy"


def bits(run: str) -> dict[str, bytes]:
    return {name: w.tobytes() for name, w in load_file(Path(run) / "weights.safetensors").items()}


def test_a_streamed_run_is_the_run_in_memory(digits):
    memory = report(*QUICK, "--data", digits, "--block-rows", "70", "--out", "memory")
    disk = report(*QUICK, "--data", digits, "--block-rows", "70", "--stream", "--out", "disk")
    assert bits("disk") == bits("memory")
    assert disk["test_accuracy"] == memory["test_accuracy"]
    succeeds(*QUICK, "--data", digits, "--out", "plain")
    succeeds(*QUICK, "--data", digits, "--stream", "--out", "one-block")  # 32 MiB cover it
    assert bits("one-block") == bits("plain") != bits("memory")
    found = report("evaluate", "disk", "--device", "cpu")
    assert found["accuracy"] == disk["test_accuracy"]
    named = ("run", "data", "picture")
    one, other = (
        {k: v for k, v in report("explain", run, "--device", "cpu").items() if k not in named}
        for run in ("memory", "disk")
    )
    assert one == other


def test_shards_are_trained_on_evaluated_and_gone_on_with(digits):
    X, y = np.load("X.npy"), np.load("y.npy")
    write_shards(Path("set"), X, y, 120)
    write_shards(Path("set"), np.load("X_test.npy"), np.load("y_test.npy"), 200, part="test")
    options = (*QUICK, "--block-rows", "70", "--checkpoint-every", "5", "--patience", "3")
    succeeds(*options, "--data", digits, "--stream", "--out", "npy")
    whole = report(*options, "--data", "set", "--stream", "--out", "shards")
    assert bits("shards") == bits("npy")
    listed(Path("shards/checkpoints"))[-1].unlink()
    again = report("train", "--resume", "shards")
    assert again["test_loss"] == whole["test_loss"]
    assert bits("shards") == bits("npy")
    for named in ((), ("--data", "set"), ("--data", Path("set").absolute())):
        assert report("evaluate", "shards", *named, "--device", "cpu")["samples"] == 500


def test_a_streamed_run_on_two_ranks(digits):
    pytest.importorskip("mpi4py", reason="needs the extra mpi")
    import test_ranks

    options: tuple[Any, ...] = (*QUICK, "--data", digits, "--stream", "--block-rows", "70")
    succeeds(*options, "--out", "alone")
    test_ranks.run(2, *options, "--out", "on2")
    assert bits("on2") == bits("alone")


def test_what_cannot_be_streamed_is_told(digits):
    line = refused(*QUICK, "--stream")
    assert "--data: expected X.npy,y.npy, a directory of IDX files or one of shards with --stream" in line
    assert "leave --stream out" in line
    assert "no such file" in refused(*QUICK, "--data", "a.npy,b.npy", "--stream")
    assert not Path("runs").exists()


def test_changed_files_are_noticed(digits):
    succeeds(*QUICK, "--data", digits, "--stream", "--out", "run")
    X = np.load("X.npy")
    X[3, 300] ^= 1
    np.save("X.npy", X)
    line = refused("train", "--resume", "run")
    assert "the files changed" in line
    assert handgrad("evaluate", "run", "--device", "cpu").exit_code == 0
    y_test = np.load("y_test.npy")
    y_test[7] = 12
    np.save("y_test.npy", y_test)
    line = refused("evaluate", "run", "--device", "cpu")
    assert "y_test.npy: row 7 is label 12, but the network has 10 classes, 0 to 9; give data" in line
