"""``handgrad lesson``: the list, a lesson, its failure, refusals."""

from pathlib import Path

import numpy as np
import pytest
from command_line import handgrad, refused, report, succeeds

from handgrad import lessons
from handgrad.lessons import staged
from handgrad.lessons.regression import problem


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_verb_lists_the_lessons():
    lines = succeeds("lesson").splitlines()
    assert [line.split()[0] for line in lines] == list(lessons.LESSONS)
    assert lessons.title("staged") in lines[3]
    assert list(report("lesson")["lessons"]) == list(lessons.LESSONS)


def test_the_verb_runs_a_lesson(folder):
    text = succeeds("lesson", "sigmoid-neuron", "--out", "pictures")
    assert "0.7310585786   0.73       =" in text
    assert (folder / "pictures" / "single_gates.png").exists()
    found = report("lesson", "gates")
    assert found["passed"] is True
    assert found["pictures"] == []
    assert found["sections"][0]["rows"][0] == {
        "quantity": "x y",
        "here": -12.0,
        "published": "-12",
        "note": "",
        "within": 0.0,
        "agrees": True,
    }


@pytest.mark.parametrize("name", ["sigmoid-classes", "homework"])
def test_a_lesson_without_pictures_says_so(name, folder):
    line = f"lesson {name} has no pictures: --out is left aside"
    assert succeeds("lesson", name, "--out", "pictures").splitlines()[-1] == line
    assert "no pictures" not in succeeds("lesson", name)


def test_pictures_are_of_digits(folder):
    np.savez("d.npz", X=np.random.default_rng(0).random((40, 9)), y=np.arange(40) / 40)
    found = succeeds("lesson", "regression", "--data", "d.npz", "--out", "pictures").splitlines()
    assert found[-1] == "lesson regression has no pictures of these data: --out is left aside"


def test_the_verb_fails_with_its_lesson(monkeypatch):
    monkeypatch.setattr(staged, "by_hand", lambda x, y: (0.0, (1.0, 1.0)))
    result = handgrad("lesson", "staged")
    assert result.exit_code == 1
    assert "FAILED: the code by hand gives the same" in result.stdout


def test_wrong_calls_of_the_verb(monkeypatch):
    monkeypatch.delenv("HANDGRAD_MNIST", raising=False)
    assert "expected one of regression, gates" in refused("lesson", "backprop")
    assert "takes no data" in refused("lesson", "gates", "--full")
    assert "HANDGRAD_MNIST" in refused("lesson", "softmax", "--full")
    assert "no such file" in refused("lesson", "softmax", "--data", "nothing.npz")


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ([0, 1, 2, 3, 14] * 8, "y.npy: row 4 is label 14; lesson softmax takes labels 0, 1, 2, …, all of"),
        ([0] * 40, "y.npy: every label is 0; lesson softmax takes labels 0, 1, 2, …, all of which occur"),
        ([1, 2] * 20, "y.npy: labels run from 1 to 2; lesson softmax takes labels 0, 1, 2, …, all of"),
        ([-1.0, 1.0] * 20, "X.npy,y.npy: lesson softmax takes labels 0, 1, 2, …, but the targets are other"),
    ],
)
def test_data_that_the_softmax_has_no_use_for(targets, words, tmp_path, monkeypatch):
    """One line, without the options of ``train``."""
    monkeypatch.chdir(tmp_path)
    np.save("X.npy", np.random.default_rng(0).random((40, 9), dtype=np.float32))
    np.save("y.npy", np.array(targets))
    line = refused("lesson", "softmax", "--data", "X.npy,y.npy")
    assert line.startswith(f"error: {words}")
    assert "--" not in line


def test_the_regression_takes_sorted_data_and_all_of_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("X.npy", np.random.default_rng(0).random((40, 9), dtype=np.float32))
    np.save("y.npy", np.arange(40) / 40)
    X, y, _ = problem("X.npy,y.npy")
    assert len(X) == len(y) == 40
    assert y[-1] == 39 / 40


def test_the_regression_has_no_use_for_zeros(folder):
    """Every attempt at the gradient of W1 gives 0, right or wrong."""
    np.savez("d.npz", X=np.zeros((40, 9)), y=np.arange(40) / 40)
    line = refused("lesson", "regression", "--data", "d.npz")
    assert line.startswith("error: lesson regression: expected features other than 0, got 0 throughout in 40")
