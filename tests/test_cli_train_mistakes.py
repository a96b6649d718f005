"""``handgrad train`` refuses: wrong settings, bad data, folders that hold something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import refused, succeeds
from training_runs import QUICK, metrics, numbers_csv


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_loss_that_blows_up_ends_the_run():
    arguments = ("train", "--data", numbers_csv(), "--lr", "1e6", "--quiet", "--device", "cpu", "--out")
    line = refused(*arguments, "named", code=1)
    assert "epoch 1, step " in line
    assert "--lr (it was 1e+06)" in line
    line = refused(*arguments, "run", "--on-nonfinite", "ignore", code=1)
    assert "--lr" in line
    assert "1e+06" in line
    assert metrics("run")[-1]["train_loss"] is None  # JSON has no nan


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--data", "nowhere"), ("nowhere", "mnist-subset")),
        (("--hidden", "0"), ("--hidden", "'0'")),
        (("--hidden", "12,x"), ("--hidden", "'x'", "256,64")),
        (("--loss", "mse"), ("--loss", "cross_entropy", "mse", "--task regression")),
        (("--loss", "bce"), ("--loss", "10 classes", "bce")),
        (("--output", "tanh"), ("--output", "cross_entropy", "tanh")),
        (("--lr", "0"), ("--lr", "above 0", "0")),
        (("--lr", "nan"), ("--lr", "nan")),
        (("--momentum", "1"), ("--momentum", "below 1", "1.0")),
        (("--optimizer", "adam", "--momentum", "0.5"), ("--momentum", "adam", "0.5")),
        (("--weight-decay", "-1"), ("--weight-decay", "-1.0")),
        (("--clip-norm", "0"), ("--clip-norm", "above 0")),
        (("--limit", "5", "--patience", "1"), ("--patience", "10", "5")),
        (("--target", "a"), ("--target", "mnist-subset")),
        (("--device", "gpu"), ("device", "'gpu'")),
        (("--kernels", "."), ("kernels", "common.cuh")),
        (("--init", "nowhere"), ("--init", "nowhere")),
    ],
)
def test_a_wrong_setting_is_told_in_one_line_and_leaves_nothing(arguments, words):
    device = () if "--device" in arguments else ("--device", "cpu")
    line = refused("train", *arguments, *device)
    for word in words:
        assert word in line
    assert not Path("runs").exists()


def test_losses_of_labels_are_refused_for_numbers():
    assert "--task classification" in refused("train", "--data", numbers_csv(), "--loss", "hinge")


def test_out_is_never_written_over():
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    assert "full, which holds files" in refused("train", *QUICK, "--out", "full")
    assert "the file full/notes.txt" in refused("train", *QUICK, "--out", "full/notes.txt")
    assert Path("full/notes.txt").read_text() == "mine"
    Path("empty").mkdir()
    succeeds("train", *QUICK, "--quiet", "--out", "empty")
    assert Path("empty/config.json").is_file()


def test_a_folder_that_cannot_be_written_is_told(monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied", "runs")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert refused("train", *QUICK) == "error: runs: Permission denied"


def write_truncated_pair() -> None:
    np.save("X.npy", np.ones((9, 2)))
    np.save("y.npy", np.arange(9) % 2)
    Path("X.npy").write_bytes(Path("X.npy").read_bytes()[:-8])


BAD_DATA = {
    "an empty file": (lambda: Path("d.csv").write_text(""), "d.csv"),
    "not a number": (lambda: Path("d.csv").write_text("1,2,0\n1,x,1\n"), "d.csv"),
    "nan": (lambda: Path("d.csv").write_text("1,2,0\n1,nan,1\n"), "d.csv"),
    "labels from 1": (lambda: Path("d.csv").write_text("1,2,1\n1,3,2\n" * 9), "d.csv"),
    "no archive": (lambda: Path("d.npz").write_bytes(b"PK\x03\x04 and so on"), "d.npz"),
    "a pickle": (
        lambda: np.savez("d.npz", X=np.array([{}, {}], dtype=object), y=np.array([0, 1])),
        "d.npz",
    ),
    "lengths that differ": (lambda: np.savez("d.npz", X=np.ones((4, 2)), y=np.arange(3)), "d.npz"),
    "truncated": (lambda: write_truncated_pair(), "X.npy,y.npy"),
    "a folder without IDX files": (lambda: Path("d").mkdir(), "d"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD_DATA)
def test_bad_data_are_told_in_one_line(fault):
    make, spec = BAD_DATA[fault]
    make()
    line = refused("train", "--data", spec, "--device", "cpu")
    assert spec.split(",")[0] in line
    assert "; " in line  # a remedy follows
    assert not Path("runs").exists()
