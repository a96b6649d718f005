"""``handgrad train``: the run directory, figures, seeds, interrupts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import handgrad, process, refused, report, succeeds
from safetensors.numpy import load_file
from training_runs import QUICK, config, metrics, numbers_csv, write_csv

import handgrad as hg
from handgrad import checkpoint, datasets
from handgrad.cli import data as samples_of
from handgrad.cli import network, run_directory
from handgrad.host.engine import Engine
from handgrad.training import evaluate


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_embedded_digits_are_learnt_in_a_minute():
    """The promise of the README's first command."""
    found = report("train")
    assert found["test_accuracy"] >= 0.935
    assert found["test_samples"] == 2000
    assert found["seconds"] < 60


def test_a_run_leaves_its_folder():
    found = report("train", "--limit", "300", "--epochs", "2", "--device", "cpu")
    run = Path(found["run"])
    assert run.parent == Path("runs")
    assert {file.name for file in run.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "weights.safetensors",
        "checkpoints",
        "curves.png",
    }
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")

    rows = metrics(run)
    assert rows == found["history"]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[-1]["validation_accuracy"] == found["test_accuracy"]
    assert rows[0]["learning_rate"] > rows[1]["learning_rate"]  # cosine

    # Bare NumPy over the stored weights gives the accuracy that was reported.
    weights = load_file(run / "weights.safetensors")
    test = datasets.load("mnist-subset").test.head(300)
    X, labels = test.batch(np.arange(300), dtype=np.float64)
    scores = np.maximum(X @ weights["W1"] + weights["b1"], 0) @ weights["W2"] + weights["b2"]
    assert np.mean(scores.argmax(axis=1) == labels) == found["test_accuracy"]

    described = config(run)
    assert described["network"]["sizes"] == [784, 128, 10]
    assert described["data"]["limit"] == 300
    assert described["training"]["optimizer"] == {
        "optimizer": "SGD",
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.0005,
    }


def test_two_runs_at_once_take_two_folders(monkeypatch):
    monkeypatch.setattr(run_directory.time, "strftime", lambda form: "2026-01-02-030405")
    folders = [run_directory.create(None).path for _ in range(3)]
    assert [folder.name for folder in folders] == [
        "2026-01-02-030405",
        "2026-01-02-030405-2",
        "2026-01-02-030405-3",
    ]


def test_plain_lines_where_there_is_no_terminal():
    lines = succeeds("train", *QUICK).splitlines()
    assert lines[0].startswith("784→16→10 (relu, cross_entropy; 12,730 parameters) on cpu")
    assert "300 training and 300 test samples of mnist-subset" in lines[0]
    for number, line in enumerate(lines[1:3], start=1):
        assert line.startswith(f"epoch {number}/2  loss ")
        assert "  test loss " in line
        assert "  accuracy " in line
        assert line.endswith(" samples/s")
        assert "\x1b" not in line
        assert "\r" not in line
    assert lines[3].startswith("test accuracy ")
    assert "handgrad evaluate runs/" in lines[4]
    assert len(lines) == 5


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_bar_moves_on_a_terminal(tmp_path):
    import pty

    master, slave = pty.openpty()
    command = [sys.executable, "-m", "handgrad.cli", "train", *QUICK, "--epochs", "30"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=slave, stdout=slave, stderr=slave,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"},
    ) as running:  # fmt: skip
        os.close(slave)
        seen = b""
        with contextlib.suppress(OSError):  # the end of a pseudo-terminal
            while part := os.read(master, 65536):
                seen += part
    os.close(master)
    text = seen.decode()
    assert running.returncode == 0, text
    assert "━" in text
    assert "epoch 30/30  loss " in text
    assert text.rstrip().splitlines()[-1].startswith("the run is in ")


def test_a_terminal_without_the_signs_is_no_failure(tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    with process("train", *QUICK, cwd=tmp_path, env=environment, encoding="latin-1") as running:
        out, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    assert out.startswith("784?16?10")


def test_a_compiler_that_ctrl_c_ended_is_an_interrupt(monkeypatch):
    def interrupted(self, *arguments, **options):
        signal.raise_signal(signal.SIGINT)
        raise RuntimeError("g++ failed")

    monkeypatch.setattr(Engine, "step", interrupted)
    result = handgrad("train", *QUICK, "--shards", "1")
    assert result.exit_code == 130
    assert "g++" not in result.stderr


def test_quiet_gives_the_result_alone():
    assert len(succeeds("train", *QUICK, "--quiet").splitlines()) == 2


def test_json_stands_alone_on_stdout():
    result = handgrad("train", *QUICK, "--json")
    assert json.loads(result.stdout)["epochs"] == 2
    assert result.stdout.count("\n") == 1
    assert "epoch 2/2" in result.stderr


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov", "adam", "adamw"])
def test_the_same_seed_gives_the_same_bits(optimizer):
    options = (*QUICK, "--optimizer", optimizer, "--quiet")
    for out, seed in (("a", "7"), ("b", "7"), ("c", "8")):
        succeeds("train", *options, "--seed", seed, "--out", out)
    one, two, other = (load_file(f"{out}/weights.safetensors") for out in "abc")
    assert {name: w.tobytes() for name, w in one.items()} == {name: w.tobytes() for name, w in two.items()}
    assert one["W1"].tobytes() != other["W1"].tobytes()


def test_every_setting_reaches_the_training():
    succeeds(
        "train", "--limit", "256", "--device", "cpu", "--no-plot", "--quiet", "--out", "run",
        "--hidden", "24,12", "--activation", "tanh", "--loss", "hinge", "--epochs", "4", "--batch-size", "50",
        "--optimizer", "nesterov", "--lr", "0.02", "--momentum", "0.8", "--weight-decay", "0.001",
        "--clip-norm", "1.5", "--schedule", "step", "--seed", "3", "--dtype", "float64",
    )  # fmt: skip
    split = datasets.load("mnist-subset")
    net = hg.MLP([784, 24, 12, 10], activation="tanh", loss="hinge", dtype="float64", device="cpu", seed=3)
    from handgrad.training import fit

    fit(
        net,
        split.train.head(256),
        optimizer=hg.SGD(0.02, momentum=0.8, nesterov=True, weight_decay=0.001),
        batch_size=50,
        epochs=4,
        schedule="step",
        clip_norm=1.5,
        seed=3,
    )
    stored = checkpoint.load("run/weights.safetensors", device="cpu")
    assert stored.config() == net.config()
    for name, value in net.parameters.items():
        np.testing.assert_allclose(stored.parameters[name], value, rtol=1e-9, atol=1e-12)
    assert config("run")["training"]["clip_norm"] == 1.5


def test_numbers_are_learnt_with_mse():
    found = report("train", "--data", numbers_csv(), "--epochs", "60", "--no-plot", "--device", "cpu")
    assert found["test_accuracy"] is None
    assert found["test_loss"] < 0.05  # the variance of the targets is about 5
    assert config(found["run"])["network"]["loss"] == "mse"
    assert found["sizes"] == [2, 128, 1]


def test_a_linear_model_has_no_hidden_layer():
    found = report(
        "train",
        "--data",
        numbers_csv(),
        "--hidden",
        "none",
        "--epochs",
        "60",
        "--no-plot",
        "--weight-decay",
        "0",
    )
    assert found["sizes"] == [2, 1]
    weights = load_file(Path(found["run"]) / "weights.safetensors")
    np.testing.assert_allclose(weights["W1"].ravel(), [2.0, -1.0], atol=0.02)
    np.testing.assert_allclose(weights["b1"], [0.5], atol=0.02)


def test_two_classes_may_take_bce():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((300, 2))
    spec = write_csv(Path("two.csv"), X, (X.sum(axis=1) > 0).astype(int))
    found = report("train", "--data", spec, "--loss", "bce", "--epochs", "10", "--no-plot", "--device", "cpu")
    assert found["sizes"] == [2, 128, 1]
    assert found["test_accuracy"] > 0.9


def test_target_and_task_choose_what_is_learnt():
    Path("d.csv").write_text("a,b,c\n" + "".join(f"{i % 3},{i / 7:.4f},{i}\n" for i in range(60)))
    found = report("train", "--data", "d.csv", "--target", "a", *QUICK[2:])
    assert found["sizes"] == [2, 16, 3]
    found = report("train", "--data", "d.csv", "--target", "a", "--task", "regression", *QUICK[2:])
    assert found["sizes"] == [2, 16, 1]


def test_init_goes_on_from_a_run():
    first = report("train", *QUICK, "--out", "first")
    second = report("train", *QUICK, "--init", "first", "--out", "second")
    assert second["history"][0]["train_loss"] < first["history"][-1]["train_loss"]
    by_file = report("train", *QUICK, "--init", "first/weights.safetensors", "--out", "third")
    assert by_file["test_loss"] == second["test_loss"]
    assert config("second")["training"]["init"] == "first"


def test_init_refuses_what_contradicts_the_run():
    succeeds("train", *QUICK, "--quiet", "--out", "first")
    for option, value, word in (
        ("--hidden", "17", "16"),
        ("--activation", "tanh", "relu"),
        ("--loss", "hinge", "cross_entropy"),
        ("--dtype", "float64", "float32"),
    ):
        line = refused("train", "--init", "first", "--device", "cpu", option, value)
        assert option in line
        assert word in line
        assert value in line
    line = refused("train", "--init", "first", "--data", numbers_csv(), "--device", "cpu")
    assert "mse or bce" in line
    assert not Path("runs").exists()


def test_patience_stops_by_a_part_of_the_training_samples():
    found = report(
        "train", "--limit", "400", "--epochs", "200", "--patience", "2", "--schedule", "constant",
        "--no-plot", "--out", "run", "--device", "cpu",
    )  # fmt: skip
    assert found["stopped_early"]
    assert found["epochs"] == found["best_epoch"] + 2
    described = config("run")
    assert described["data"]["training_samples"] == 360
    assert described["training"]["validation"] == "a tenth of the training part"
    losses = [row["validation_loss"] for row in found["history"]]
    assert losses[found["best_epoch"] - 1] == min(losses)
    # The test figures are of the weights that were kept, over samples that nothing was chosen by.
    net = checkpoint.load("run/weights.safetensors", device="cpu")
    wanted = evaluate(net, datasets.load("mnist-subset").test.head(400))
    assert found["test_loss"] == wanted.loss
    assert found["test_accuracy"] == wanted.accuracy


def test_held_out_samples_are_no_training_samples():
    X = np.arange(40.0).reshape(20, 2)
    train = datasets.Dataset(X, np.arange(20), classes=20)
    kept, held = samples_of.hold_out(train, seed=0)
    assert len(kept) == 18
    assert len(held) == 2
    assert sorted([*kept.y, *held.y]) == list(range(20))
    np.testing.assert_array_equal(held.X, X[held.y])
    np.save("X.npy", X)
    mapped = datasets.Dataset(np.load("X.npy", mmap_mode="r"), np.arange(20), classes=20)
    kept, held = samples_of.hold_out(mapped, seed=0)
    assert list(held.y) == [18, 19]
    assert isinstance(held.X, np.memmap)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    arguments = ("--limit", "2000", "--epochs", "5000", "--lr", "0.01", "--device", "cpu", "--out", "run")
    with process("train", *arguments, cwd=tmp_path) as running:
        assert running.stdout is not None
        running.stdout.readline()
        for _ in range(2):
            running.stdout.readline()  # two epochs
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in err
    done = len(metrics("run"))
    assert done >= 2
    assert f"interrupted after {done} of 5000 epochs" in out
    assert "handgrad evaluate run\n" in out
    assert out.splitlines()[-1] == "go on:       handgrad train --resume run"
    assert checkpoint.load("run/weights.safetensors", device="cpu").sizes == (784, 128, 10)
    assert Path("run/curves.png").is_file()
    assert report("evaluate", "run", "--device", "cpu")["samples"] == 2000


def test_ctrl_c_in_the_middle_of_an_epoch_leaves_a_whole_step(monkeypatch):
    """The signal comes in the third step; the weights are those of three whole steps."""
    real, calls = Engine.step, []

    def step(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return real(self, *arguments, **options)

    monkeypatch.setattr(Engine, "step", step)
    result = handgrad(
        "train", "--limit", "1000", "--batch-size", "100", *QUICK[2:], "--shards", "1", "--out", "run"
    )
    assert result.exit_code == 130
    assert len(calls) == 3
    assert "stopping after this step" in result.stderr
    assert "interrupted after 0 of 2 epochs" in result.stdout
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    monkeypatch.setattr(Engine, "step", real)
    net = hg.MLP([784, 16, 10], loss="cross_entropy", device="cpu", seed=0)
    train = datasets.load("mnist-subset").train.head(1000)
    from handgrad.training import epoch_order

    order = epoch_order(1000, 0, 0)
    optimizer = hg.SGD(0.1, momentum=0.9, weight_decay=5e-4)
    for rows in (order[:100], order[100:200], order[200:300]):
        net.train_step(*train.batch(rows), optimizer)
    stored = load_file("run/weights.safetensors")
    for name, value in net.parameters.items():
        np.testing.assert_allclose(stored[name], value, rtol=1e-5, atol=1e-7)


def test_the_emulator_trains_as_the_cpu_does():
    """20 steps on the kernels emulated, within 1e-4 of NumPy."""
    rows = {}
    for device in ("cpu", "emulator"):
        found = report(
            "train", "--limit", "160", "--batch-size", "16", "--epochs", "2", "--hidden", "12", "--no-plot",
            "--device", device,
        )  # fmt: skip
        assert found["device"] == device
        rows[device] = found["history"]
    for one, other in zip(rows["cpu"], rows["emulator"], strict=True):
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
        assert other["validation_loss"] == pytest.approx(one["validation_loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("words", "widths"),
    [(None, [128]), (["64"], [64]), (["64,32", "16"], [64, 32, 16]), (["none"], []), ([" 8 , 9"], [8, 9])],
)
def test_hidden_widths(words, widths):
    assert network.parse_hidden(words) == widths
