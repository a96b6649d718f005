"""The command line's frame: help, version, errors in one line, exit codes, interrupts, pipes."""

from __future__ import annotations

import enum
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import handgrad, process, refused, report, succeeds

import handgrad as hg
from handgrad.cli import choices, errors, output
from handgrad.datasets import DataError, LabelError
from handgrad.ops import activation, loss
from handgrad.training import SCHEDULES

VERBS = ("train", "evaluate", "predict", "bench", "diagnose", "explain", "lesson", "doctor", "kernels")


def test_help_names_every_verb_and_the_exit_codes():
    text = succeeds("--help")
    for verb in VERBS:
        assert f"\n  {verb} " in text
    assert "130 interrupted" in " ".join(text.split())


@pytest.mark.parametrize("verb", [*VERBS, "kernels check", "kernels sanitize", "kernels sass"])
def test_every_verb_has_help(verb):
    assert succeeds(*verb.split(), "--help").startswith(f"Usage: handgrad {verb} ")


def test_help_is_quick(tmp_path):
    """Libraries are imported by the verb that uses them; 0.2 s of the interpreter's own time is plenty."""
    code = (
        "import sys, time; begin = time.process_time()\n"
        "from handgrad.cli import app\n"
        "try: app(['--help'], prog_name='handgrad')\n"
        "except SystemExit: pass\n"
        "print(time.process_time() - begin, 'matplotlib' in sys.modules, 'safetensors' in sys.modules,"
        " 'threadpoolctl' in sys.modules, 'cupy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *imported = done.stdout.splitlines()[-1].split()
    assert imported == ["False"] * 4
    assert float(seconds) < 1.0  # about 0.2: the bound leaves room for a busy machine


def test_version():
    assert succeeds("--version") == f"handgrad {hg.__version__}\n"


def test_no_arguments_show_the_help_and_are_a_wrong_call():
    result = handgrad()
    assert result.exit_code == 2
    assert "\n  train " in result.stderr
    assert not result.stderr.startswith("error")


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (choices.Activation, activation.NAMES),
        (choices.Loss, loss.NAMES),
        (choices.Schedule, SCHEDULES),
    ],
)
def test_choices_are_what_the_library_knows(choice: type[enum.StrEnum], names):
    assert set(choice) == set(names)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trian",), ("'trian'", "train")),
        (("train", "--epoch", "3"), ("--epoch", "handgrad train --help")),
        (("train", "--epochs", "x"), ("--epochs", "'x'")),
        (("train", "--epochs", "0"), ("--epochs", "1", "'0'")),
        (("train", "--epochs=0"), ("--epochs", "1", "'0'")),
        (("train", "--epochs"), ("--epochs",)),
        (("train", "--batch-size", "-1"), ("--batch-size", "'-1'")),
        (("train", "--schedule", "linear"), ("--schedule", "'linear'", "cosine")),
        (("train", "extra"), ("extra",)),
        (("evaluate",), ("RUN",)),
        (("evaluate", "nowhere"), ("RUN", "nowhere", "does not exist")),
        (("predict", "nowhere"), ("DATA",)),
        (("bench", "--shape", "1,2"), ("--shape", "N,D,H,C", "'1,2'")),
        (("bench", "--shape", "1,2,0,4"), ("--shape", "'1,2,0,4'")),
        (("bench", "--seconds", "0"), ("--seconds", "above 0", "0.0")),
        (("bench", "--device", "gpu"), ("device", "'gpu'")),
        (("kernels", "chekc"), ("'chekc'", "check")),
        (("kernels", "check", "--device", "cpu"), ("--device", "emulator", "cpu")),
        (("kernels", "check", "--op", "softmax"), ("op", "linear.forward", "'softmax'")),
        (("kernels", "check", "--dtype", "int8"), ("--dtype", "'int8'", "float32")),
    ],
)
def test_a_wrong_call_is_told_in_one_line(arguments, words):
    line = refused(*arguments)
    for word in words:
        assert word in line


def test_a_device_that_is_not_there_is_no_wrong_call(no_cupy):
    line = refused("train", "--device", "cuda", code=1)
    assert "--device" in line
    assert "pip install 'handgrad[cuda13x]'" in line


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_the_traceback_wherever_it_stands(place):
    call = ["train", "--data", "nowhere"]
    result = handgrad(*(["--debug", *call] if place == "before" else [*call, "--debug"]))
    assert result.exit_code == 2
    assert "Traceback (most recent call last)" in result.stderr
    assert "DataError" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: nowhere: ")


def test_debug_after_two_dashes_is_an_argument():
    assert errors.take_debug(["evaluate", "--", "--debug"]) == (["evaluate", "--", "--debug"], False)
    assert errors.take_debug(["--debug", "train"]) == (["train"], True)


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (ValueError("lr: expected\n 1, got 2"), "lr: expected 1, got 2", 2),
        (FileNotFoundError(2, "No such file or directory", "x.csv"), "x.csv: No such file or directory", 2),
        (PermissionError(13, "Permission denied", "runs"), "runs: Permission denied", 2),
        (
            OSError(28, "No space left on device", "w.safetensors"),
            "w.safetensors: No space left on device",
            1,
        ),
        (hg.DeviceError("no GPU found; use --device cpu"), "--device: no GPU found; use --device cpu", 1),
        (RuntimeError("a kernel failed"), "a kernel failed", 1),
        (MemoryError(), "out of memory; use a smaller --batch-size or --limit", 1),
        (KeyError("W1"), "KeyError: 'W1'; run again with --debug for the traceback", 1),
        (TypeError("x"), "TypeError: x; run again with --debug for the traceback", 1),
        (ValueError(), "ValueError: ; run again with --debug for the traceback", 1),
        (KeyboardInterrupt(), "interrupted", 130),
        (BrokenPipeError(), "", 141),
        (
            DataError('d.csv: label 9; give classes=10 or say task="regression"'),
            "d.csv: label 9; give --classes 10 or say --task regression",
            2,
        ),
        (LabelError("d.csv: label 9", "give classes=10"), "d.csv: label 9, give --classes 10", 2),
    ],
)
def test_each_kind_of_failure_has_its_line_and_code(error, line, code):
    assert errors.describe(error) == (line, code)


def test_a_process_exits_with_the_code_and_without_traceback(tmp_path):
    with process("train", "--data", "nowhere", cwd=tmp_path) as running:
        out, err = running.communicate(timeout=60)
    assert running.returncode == 2
    assert out == ""
    assert err.splitlines() == [err.strip()]
    assert err.startswith("error: nowhere: ")
    assert list(tmp_path.iterdir()) == []  # a wrong call leaves nothing behind


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    """``handgrad train … | head -1``: quiet, exit code 141 as a shell gives it."""
    with process(
        "train", "--limit", "200", "--epochs", "400", "--no-plot", "--device", "cpu", cwd=tmp_path
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.readline()
        running.stdout.close()
        error = running.stderr.read()
        assert running.wait(timeout=60) == 141
    assert error == ""


def test_an_interrupt_outside_of_a_training_ends_quietly(tmp_path):
    with process(
        "bench", "--device", "cpu", "--shape", "2000,784,256,10", "--seconds", "60", cwd=tmp_path
    ) as running:
        assert running.stdout is not None
        running.stdout.readline()  # it is running
        time.sleep(2.0)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in out + err


def test_json_has_neither_nan_nor_foreign_types(capsys):
    import numpy as np

    values = {"a": float("nan"), "b": np.float32(0.5), "c": np.arange(2), "d": Path("x"), "e": (None, np.inf)}
    output.print_json(values)
    assert json.loads(capsys.readouterr().out) == {
        "a": None,
        "b": 0.5,
        "c": [0, 1],
        "d": "x",
        "e": [None, None],
    }


def test_a_number_between_colons_is_printed_as_it_stands(tmp_path, monkeypatch):
    """Rich would print ":100:" as an emoji."""
    monkeypatch.chdir(tmp_path)
    text = succeeds(
        "train", "--limit", "64", "--epochs", "1", "--no-plot", "--device", "cpu", "--out", ":100:/r"
    )
    assert "the run is in :100:/r; look closer with: handgrad evaluate :100:/r" in text
    mutants = report("kernels", "mutate", "--list")["mutants"]
    places = [f"{m['file']}:100:{m['column']}  " for m in mutants if m["line"] == 100]
    listing = succeeds("kernels", "mutate", "--list")
    assert places
    assert [place for place in places if place not in listing] == []
