"""kill -9 at random instants of a short training: each run goes on to the bits of one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from handgrad import checkpoint
from handgrad.cli import app
from handgrad.resume import listed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, kill and /proc"),
]
KILLS = 50
SECONDS = 60
OPTIONS = (
    "train", "--limit", "300", "--epochs", "4", "--hidden", "16", "--device", "cpu", "--no-plot", "--quiet",
    "--batch-size", "20", "--optimizer", "adam", "--checkpoint-every", "4", "--patience", "4",
)  # fmt: skip


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def result(run: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    times = ("seconds", "samples_per_second")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [{k: v for k, v in json.loads(line).items() if k not in times} for line in lines]
    return {name: w.tobytes() for name, w in load_file(run / "weights.safetensors").items()}, rows


def words_for(run: Path) -> list[str]:
    """How to begin the run, or to go on with it."""
    if (run / "config.json").exists():
        return ["train", "--resume", str(run), "--quiet"]
    return [*OPTIONS, "--out", str(run)]


def everything_is_whole(run: Path) -> None:
    """What a kill leaves can be read by ``evaluate``."""
    kept = listed(run / "checkpoints")
    for path in (*kept, *run.glob("weights.safetensors")):
        checkpoint.load(path, device="cpu")
    assert not list(run.glob("checkpoints/*.damaged"))
    if (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) > 1:
        assert kept, "a checkpoint was lost"


def started(words: list[str]) -> int:
    """The command in a fork of this process, which has imported everything: its process id."""
    pid = os.fork()
    if pid == 0:
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            app(words, prog_name="handgrad")
        except SystemExit as end:
            os._exit(int(end.code or 0))
        finally:
            os._exit(99)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_kills_of_one_process(tmp_path):
    assert ended(started([*OPTIONS, "--out", "warm"])) == 0
    began = time.perf_counter()
    assert ended(started([*OPTIONS, "--out", "whole"])) == 0
    took = time.perf_counter() - began
    expected = result(Path("whole"))
    instants, places = random.Random(7), set()
    for number in range(KILLS):
        run = Path(f"run{number}")
        pid = started(words_for(run))
        time.sleep(instants.uniform(0, took))
        os.kill(pid, signal.SIGKILL)
        killed = ended(pid) == -signal.SIGKILL
        everything_is_whole(run)
        kept = listed(run / "checkpoints")
        places.add(kept[-1].name if killed and kept else "")
        assert ended(started(words_for(run))) == 0
        assert result(run) == expected, f"kill {number}"
    assert len(places) > 5, "the instants fall all over the training"


RANK = """
import os
from handgrad.cli import app
open(f"pid-{os.environ['PMI_RANK']}", "w").write(str(os.getpid()))
app(prog_name="handgrad")
"""


def job(words: list[str]) -> subprocess.Popen[bytes]:
    for path in Path.cwd().glob("pid-*"):
        path.unlink()
    mpiexec = str(Path(sys.executable).with_name("mpiexec"))
    command = [mpiexec, "-n", "2", sys.executable, "-c", RANK, *words]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def pids(running: subprocess.Popen[bytes]) -> list[int]:
    """The process ids of both ranks, once they have imported everything."""
    while running.poll() is None:
        found = [path.read_text() for path in sorted(Path.cwd().glob("pid-*"))]
        if len(found) == 2 and all(found):
            return [int(text) for text in found]
        time.sleep(0.01)
    return []


def killed(rank: int) -> bool:
    """Whether it was there to be killed: it may have ended before its launcher."""
    try:
        os.kill(rank, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def test_kills_of_one_of_two_ranks():
    """Of each run up to five: rank 0, which writes, or rank 1."""
    pytest.importorskip("mpi4py", reason="needs the extra mpi")
    with job([*OPTIONS, "--out", "whole"]) as running:
        pids(running)
        began = time.perf_counter()
        assert running.wait(SECONDS) == 0
        took = time.perf_counter() - began
    expected = result(Path("whole"))
    instants, kills, number = random.Random(8), 0, 0
    while kills < KILLS:
        run, number = Path(f"run{number}"), number + 1
        for _ in range(5):
            with job(words_for(run)) as running:
                ranks = pids(running)
                time.sleep(instants.uniform(0, took))
                kills += bool(ranks) and killed(instants.choice(ranks))
                running.wait(SECONDS)
            everything_is_whole(run)
        with job(words_for(run)) as running:
            assert running.wait(SECONDS) == 0, running.stderr and running.stderr.read()
        assert result(run) == expected, f"run {number}"
