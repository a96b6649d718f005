"""``handgrad train --resume``: kills, signals, damage, full disks, two processes; never a lost bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import handgrad, process, refused, report, succeeds
from safetensors.numpy import load_file

from handgrad import checkpoint
from handgrad.cli.run_directory import RunDirectory
from handgrad.resume import listed

QUICK = (
    "train", "--limit", "300", "--epochs", "4", "--hidden", "16", "--device", "cpu", "--no-plot", "--quiet",
    "--batch-size", "20", "--optimizer", "adam", "--checkpoint-every", "7",
)  # fmt: skip
LONG = (*QUICK, "--epochs", "5000")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows(run: str | Path) -> list[dict[str, Any]]:
    lines = (Path(run) / "metrics.jsonl").read_text().splitlines()
    times = ("seconds", "samples_per_second")
    return [{k: v for k, v in json.loads(line).items() if k not in times} for line in lines]


def same_run(one: str | Path, two: str | Path) -> None:
    a, b = (load_file(Path(run) / "weights.safetensors") for run in (one, two))
    assert {name: w.tobytes() for name, w in a.items()} == {name: w.tobytes() for name, w in b.items()}
    assert rows(one) == rows(two)


def until(condition: Any, running: subprocess.Popen[str]) -> None:
    for _ in range(600):
        if condition():
            return
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    pytest.fail("it did not come")


def forget_since(run: str, epoch: int, step: int) -> None:
    """Leave a finished run as a kill after this checkpoint would have: later ones are taken away."""
    for path in listed(Path(run) / "checkpoints"):
        if path.name > f"{epoch:06d}-{step:09d}.safetensors":
            path.unlink()


def test_a_killed_run_goes_on_to_the_same_bits():
    options = (*QUICK, "--epochs", "30")
    with process(*options, "--out", "run", cwd=Path.cwd()) as running:
        until(lambda: Path("run/metrics.jsonl").is_file(), running)
        running.kill()
    assert running.returncode == -signal.SIGKILL
    succeeds("train", "--resume", "run")
    succeeds(*options, "--checkpoint-every", "end", "--out", "whole")
    same_run("run", "whole")


def test_a_run_without_a_checkpoint_starts_at_its_beginning():
    succeeds(*QUICK, "--out", "whole")
    shutil.copytree("whole", "run")
    shutil.rmtree("run/checkpoints")
    found = handgrad("train", "--resume", "run")
    assert found.exit_code == 0
    assert "run has no checkpoint yet: from its beginning" in found.stderr
    same_run("run", "whole")


@pytest.mark.parametrize(
    "place",
    [(0, 7), pytest.param((1, 6), marks=pytest.mark.slow), pytest.param((3, 11), marks=pytest.mark.slow)],
)
def test_every_checkpoint_leads_to_the_same_end(place, monkeypatch):
    """15 steps an epoch; all checkpoints are kept here, and the run continued from one of them."""
    monkeypatch.setattr("handgrad.resume.KEPT", 1000)
    whole = report(*QUICK, "--out", "whole")
    names = [path.name for path in listed(Path("whole/checkpoints"))]
    assert f"{place[0]:06d}-{place[1]:09d}.safetensors" in names
    shutil.copytree("whole", "run")
    forget_since("run", *place)
    (Path("run") / "weights.safetensors").unlink(missing_ok=True)
    with (Path("run") / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 5, "train_')  # what a kill in the middle of a line leaves
    (Path("run") / ".config.json.1234abcd.part").write_text("{")
    again = report("train", "--resume", "run")
    assert again["test_accuracy"] == whole["test_accuracy"]
    assert [row["epoch"] for row in again["history"]] == [1, 2, 3, 4]
    same_run("run", "whole")
    assert not list(Path("run").glob(".*.part"))


def test_a_finished_run_is_reported_again():
    first = report(*QUICK, "--out", "run")
    again = report("train", "--resume", "run")
    assert (again["test_loss"], again["epochs"]) == (first["test_loss"], 4)
    assert 0 < first["checkpoint_seconds"] < first["seconds"]
    assert again["checkpoint_seconds"] == 0


@pytest.mark.slow
def test_patience_goes_on():
    options = (*QUICK[:-2], "--checkpoint-every", "1", "--epochs", "40", "--patience", "2", "--lr", "0.03")
    whole = report(*options, "--out", "whole")
    assert whole["stopped_early"]
    with process(*options, "--out", "run", cwd=Path.cwd()) as running:
        until(lambda: len(listed(Path("run/checkpoints"))) == 2, running)
        running.kill()
    again = report("train", "--resume", "run")
    assert (again["best_epoch"], again["stopped_early"]) == (whole["best_epoch"], True)
    same_run("run", "whole")


def test_sigterm_writes_a_checkpoint_and_ends_with_143():
    with process(*LONG, "--checkpoint-every", "end", "--out", "run", cwd=Path.cwd()) as running:
        until(lambda: Path("run/weights.safetensors").is_file(), running)
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 143
    assert "stopping after this step; a second signal stops at once" in err
    assert "Traceback" not in err
    assert out.splitlines()[-1] == "go on:       handgrad train --resume run"
    state = json.loads(checkpoint.read(listed(Path("run/checkpoints"))[-1])[0]["training"])
    assert state["epoch"] == len(rows("run")) >= 1
    stored = load_file("run/weights.safetensors")
    kept = load_file(listed(Path("run/checkpoints"))[-1])
    assert {name: w.tobytes() for name, w in stored.items()} == {n: kept[n].tobytes() for n in stored}


def test_ctrl_c_twice_does_not_wait(monkeypatch):
    """The second comes in the middle of a step: what is on disk is the last whole checkpoint."""
    from handgrad import SGD, Adam

    real, calls = Adam._apply, []

    def apply(self: Any, w: Any, *rest: Any) -> None:
        calls.append(1)
        if len(calls) == 10:
            w[:] = 1e9  # half a step
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        real(self, w, *rest)

    monkeypatch.setattr(Adam, "_apply", apply)
    assert SGD._apply is not apply
    result = handgrad(*QUICK, "--out", "run")
    assert result.exit_code == 130
    assert "its last checkpoint is whole in run" in result.stdout
    monkeypatch.setattr(Adam, "_apply", real)
    assert not Path("run/weights.safetensors").exists()
    assert listed(Path("run/checkpoints"))[-1].name == "000000-000000007.safetensors"
    succeeds("train", "--resume", "run")
    succeeds(*QUICK, "--out", "whole")
    same_run("run", "whole")


# ---- what is refused, what is told


def test_one_process_at_a_time():
    with process(*LONG, "--out", "run", cwd=Path.cwd()) as running:
        until(lambda: Path("run/weights.safetensors").is_file(), running)
        line = refused("train", "--resume", "run")
        running.kill()
    assert "run: another process is training in this run; wait for its end or stop it" in line


def test_options_that_make_another_run_are_refused():
    succeeds(*QUICK, "--out", "run")
    for words in (("--lr", "0.5"), ("--data", "mnist-subset"), ("--epochs", "9"), ("--out", "other")):
        line = refused("train", "--resume", "run", *words)
        assert f"{words[0]}: expected no such option beside --resume" in line
    assert "which is none" in refused("train", "--resume", "nowhere")
    Path("empty").mkdir()
    assert "a run's folder with config.json" in refused("train", "--resume", "empty")
    line = refused(*QUICK, "--checkpoint-every", "often")
    assert (
        line == "error: --checkpoint-every: expected steps as 500, seconds as 30s, auto or end, got 'often'"
    )


def test_changed_data_are_refused():
    text = "a,b,y\n" + "".join(f"{i % 3},{i / 7:.4f},{i % 2}\n" for i in range(60))
    Path("d.csv").write_text(text)
    succeeds(*QUICK, "--data", "d.csv", "--out", "run")
    Path("d.csv").write_text(text.replace("2,2.0000,", "2,2.0001,"))
    line = refused("train", "--resume", "run")
    assert "--resume: expected the data of the run in" in line
    assert "the files changed, in their training part" in line


@pytest.mark.parametrize(
    ("options", "part"),
    [("", "test"), ("--stream", "test"), ("--patience 3", "test"), ("--stream --patience 3", "validation")],
)
def test_changed_data_of_the_other_parts_are_refused(options, part):
    """The first feature of one sample of ``part`` is changed."""
    rng = np.random.default_rng(0)
    arrays = {"X": rng.random((60, 3)), "y": np.arange(60) % 2, "X_test": rng.random((9, 3))}
    for name, array in (arrays | {"y_test": np.arange(9) % 2}).items():
        np.save(f"{name}.npy", array)
    succeeds(*QUICK, *options.split(), "--data", "X.npy,y.npy,X_test.npy,y_test.npy", "--out", "run")
    succeeds("train", "--resume", "run")
    name, row = ("X_test", 4) if part == "test" else ("X", 57)  # of a stream the last tenth is held out
    arrays[name][row, 0] += 1
    np.save(f"{name}.npy", arrays[name])
    line = refused("train", "--resume", "run")
    assert line.endswith(f"got others: the files changed, in their {part} part")
    config = json.loads(Path("run/config.json").read_text())
    del config["data"][f"{part}_sha256"]  # as an older handgrad wrote it
    Path("run/config.json").write_text(json.dumps(config))
    succeeds("train", "--resume", "run")


def test_a_damaged_newest_checkpoint_is_told():
    succeeds(*QUICK, "--out", "whole")
    shutil.copytree("whole", "run")
    last = listed(Path("run/checkpoints"))[-1]
    content = bytearray(last.read_bytes())
    content[-100] ^= 1
    last.write_bytes(content)
    found = handgrad("train", "--resume", "run")
    assert found.exit_code == 0
    told = [line for line in found.stderr.splitlines() if "damaged" in line]
    assert len(told) == 1
    assert "its contents do not give its checksum" in told[0]
    same_run("run", "whole")


def disk_full(folder: Path, *arguments: Any, code: int = 1) -> str:
    """The one line on stderr of a training that finds no room in ``folder``."""
    with process(*arguments, cwd=folder) as running:
        _, err = running.communicate(timeout=60)
    assert running.returncode == code, err
    lines = err.splitlines()
    assert len(lines) == 1, err
    return lines[0]


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on file sizes")
def test_a_file_that_finds_no_room_is_told_and_harms_nothing():
    """A limit on the size of files, below that of a checkpoint, stands in for a full disk everywhere."""
    import resource

    succeeds(*QUICK, "--out", "whole")
    shutil.copytree("whole", "run")
    forget_since("run", 3, 11)
    before = {path.name: path.read_bytes() for path in Path("run/checkpoints").iterdir()}
    with process(
        "train", "--resume", "run", cwd=Path.cwd(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
    ) as running:  # fmt: skip
        _, err = running.communicate(timeout=60)
    assert running.returncode == 1
    assert err.count("\n") == 1
    assert err.startswith("error: run/weights.safetensors: ") or err.startswith("error: run/checkpoints/")
    assert "File too large" in err
    assert {path.name: path.read_bytes() for path in Path("run/checkpoints").iterdir()} == before
    succeeds("train", "--resume", "run")
    same_run("run", "whole")


def test_a_full_disk_is_told_and_harms_nothing(tmp_path):
    """A real one: a tmpfs of 300 kB, where mounting is permitted."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no permission to mount a small file system")
    try:
        succeeds(*QUICK, "--out", "whole")
        line = disk_full(small, *QUICK, "--hidden", "24", "--out", "run")
        assert "No space left on device" in line
        assert line.startswith("error: run/")
        for path in listed(small / "run/checkpoints"):
            checkpoint.read(path)  # whole
        assert not list((small / "run/checkpoints").glob(".*.part"))
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_told():
    Path("locked").mkdir(mode=0o500)
    assert "locked/run: Permission denied" in refused(*QUICK, "--out", "locked/run")


def test_a_folder_that_refuses_writing_is_told(monkeypatch):
    """As above, for root too: the file system says no at the first checkpoint."""
    real = Path.open

    def refuse(self: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if mode == "xb" and self.parent.name == "checkpoints":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", refuse)
    line = refused(*QUICK, "--out", "run")
    assert line == "error: run/checkpoints/000000-000000000.safetensors: Permission denied"


def test_what_a_kill_leaves_before_the_run_began_is_no_obstacle():
    Path("run").mkdir()
    (Path("run") / ".config.json.0123abcd.part").write_text("{")
    succeeds(*QUICK, "--out", "run")
    with RunDirectory(Path("run")).locked():
        assert "another process" in refused("train", "--resume", "run")
