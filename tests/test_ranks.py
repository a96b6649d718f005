"""``mpiexec -n R handgrad train``: the same bits on any number of ranks; failures end the job in a line.

Needs the extra ``mpi``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import handgrad, succeeds
from safetensors.numpy import load_file
from small_networks import needs_compiler

from handgrad.distributed.ranks import _wait_until_read
from handgrad.resume import listed

pytest.importorskip("mpi4py", reason="needs the extra mpi")
MPIEXEC = Path(sys.executable).with_name("mpiexec")
pytestmark = pytest.mark.skipif(not MPIEXEC.exists(), reason="no mpiexec beside this Python")

QUICK = (
    "train", "--limit", "600", "--epochs", "3", "--hidden", "24", "--device", "cpu", "--no-plot",
    "--batch-size", "64", "--optimizer", "adam",
)  # fmt: skip
SECONDS = 60

# The command line with a fault on one rank: the second exchange does it.
FAULTY = """
import os, signal, sys
from handgrad.cli import app
from handgrad.distributed import exchange, ranks
real, calls = exchange.HostExchange.__call__, []

def call(self, own, everyone):
    calls.append(1)
    if len(calls) == 2 and ranks.launched()[0] == 1:
        {fault}
    real(self, own, everyone)

exchange.HostExchange.__call__ = call
app(prog_name="handgrad")
"""


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def launch(ranks: int, *arguments: Any, program: tuple[str, ...] = ("-m", "handgrad.cli")) -> list[str]:
    return ["-n", str(ranks), sys.executable, *program, *map(str, arguments)]


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(MPIEXEC), *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def ends(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a job."""
    with start(*words) as running:
        out, err = running.communicate(timeout=SECONDS)
    return running.returncode, out, err


def run(ranks: int, *arguments: Any) -> str:
    code, out, err = ends(*launch(ranks, *arguments))
    assert code == 0, err
    return out


def told(err: str) -> list[str]:
    """The lines of handgrad itself, without what the launcher adds."""
    assert "Traceback" not in err
    return [line for line in err.splitlines() if line.startswith("error: ")]


def bits(run_directory: str) -> dict[str, bytes]:
    return {
        name: w.tobytes() for name, w in load_file(Path(run_directory) / "weights.safetensors").items()
    }  # fmt: skip


def rows(run_directory: str) -> list[dict[str, Any]]:
    lines = (Path(run_directory) / "metrics.jsonl").read_text().splitlines()
    times = ("seconds", "samples_per_second")
    return [{k: v for k, v in json.loads(line).items() if k not in times} for line in lines]


def test_the_bits_are_the_same_on_1_2_and_4_ranks_and_without_mpi():
    """600 rows in batches of 64: the last has 24."""
    succeeds(*QUICK, "--out", "alone")
    for ranks in (1, 2, 4):
        out = run(ranks, *QUICK, "--out", f"on{ranks}")
        assert out.count("epoch 3/3") == 1, "rank 0 alone reports"
        assert (f"on {ranks} ranks" in out) == (ranks > 1)
        assert bits(f"on{ranks}") == bits("alone")
        assert rows(f"on{ranks}") == rows("alone")
    assert {path.name for path in Path.cwd().iterdir()} == {"alone", "on1", "on2", "on4"}


@pytest.mark.slow
def test_three_ranks_and_shards_without_rows():
    """101 rows in batches of 50: the last is one row for 6 shards."""
    options = (*QUICK, "--limit", "101", "--batch-size", "50", "--shards", "6")
    succeeds(*options, "--out", "alone")
    run(3, *options, "--out", "on3")
    assert bits("on3") == bits("alone")
    assert rows("on3") == rows("alone")


@pytest.mark.slow
@needs_compiler
def test_the_emulator_gives_the_same_bits_on_2_ranks():
    options = (*QUICK, "--device", "emulator", "--limit", "80", "--hidden", "8")
    succeeds(*options, "--out", "alone")
    run(2, *options, "--out", "on2")
    assert bits("on2") == bits("alone")


@pytest.mark.slow
@needs_compiler
def test_whole_digits_on_cpu_and_emulator():
    for device, limit in (("cpu", 10_000), ("emulator", 1000)):
        options = ("train", "--epochs", "3", "--device", device, "--no-plot", "--limit", limit)
        succeeds(*options, "--out", f"{device}-alone")
        for ranks in (1, 2, 4):
            run(ranks, *options, "--out", f"{device}-{ranks}")
            assert bits(f"{device}-{ranks}") == bits(f"{device}-alone")
            assert rows(f"{device}-{ranks}") == rows(f"{device}-alone")


# ---- failures


def test_a_killed_rank_takes_the_job_down():
    began = time.monotonic()
    program = ("-c", FAULTY.format(fault="os.kill(os.getpid(), signal.SIGKILL)"))
    code, _, err = ends(*launch(2, *QUICK, "--out", "run", program=program))
    assert code != 0
    assert time.monotonic() - began < SECONDS / 2, "no hang"
    assert told(err) == []
    assert handgrad("train", "--resume", "run").exit_code == 0
    succeeds(*QUICK, "--out", "alone")
    assert bits("run") == bits("alone")


@pytest.mark.slow
def test_a_rank_that_fails_says_why_and_ends_the_job():
    program = ("-c", FAULTY.format(fault="raise RuntimeError('the cable is out')"))
    code, _, err = ends(*launch(2, *QUICK, "--out", "run", program=program))
    assert code == 1
    assert told(err) == ["error: rank 1 of 2: the cable is out"], err


def test_ctrl_c_twice_on_one_rank_is_no_hang():
    fault = "signal.raise_signal(signal.SIGINT); signal.raise_signal(signal.SIGINT)"
    code, _, err = ends(*launch(2, *QUICK, "--out", "run", program=("-c", FAULTY.format(fault=fault))))
    assert code == 130
    assert told(err) == []
    assert len(listed(Path("run/checkpoints"))) == 1
    assert not Path("run/weights.safetensors").exists()


def test_a_wrong_call_is_told_once():
    code, out, err = ends(*launch(2, *QUICK, "--limit", "0"))
    assert (code, out) == (2, "")
    assert len(told(err)) == 1
    assert "error: rank 0 of 2: " in err
    assert "--limit" in err
    code, _, err = ends(*launch(3, *QUICK, "--shards", "2"))
    assert code == 2
    assert len(told(err)) == 1
    assert "--shards: expected at least 3, one for each rank, got 2" in err


def test_ranks_that_differ_refuse_to_start():
    one, other = launch(1, *QUICK, "--lr", "0.1"), launch(1, *QUICK, "--lr", "0.2")
    code, _, err = ends(*one, ":", *other)
    assert code == 2
    (line,) = told(err)
    assert "the ranks do not agree on --lr (rank 0: 0.1, rank 1: 0.2)" in line
    assert not Path("runs").exists()


@pytest.mark.slow
def test_ranks_with_other_data_refuse_to_start():
    rows_of = [f"{i % 3},{i / 7:.4f},{i % 2}\n" for i in range(60)]
    for folder, last in (("a", "1,2.0,0\n"), ("b", "1,2.5,0\n")):
        Path(folder).mkdir()
        Path(folder, "d.csv").write_text("".join([*rows_of, last]))
    words = launch(1, *QUICK, "--data", "d.csv", "--out", "run")
    code, _, err = ends(
        "-wdir", str(Path("a").absolute()), *words, ":", "-wdir", str(Path("b").absolute()), *words
    )
    assert code == 2
    (line,) = told(err)
    assert "the ranks do not agree on the t" in line
    assert not Path("a/run").exists()


@pytest.mark.slow
def test_ranks_of_two_versions_refuse_to_start():
    other = "import handgrad; handgrad.__version__ = '9.9'; from handgrad.cli import app; app()"
    code, _, err = ends(*launch(1, *QUICK), ":", *launch(1, *QUICK, program=("-c", other)))
    assert code == 2
    (line,) = told(err)
    assert "the version of handgrad (rank 0: 0." in line
    assert "rank 1: 9.9)" in line


@pytest.mark.slow
def test_sigterm_stops_all_ranks_at_one_step_and_the_run_goes_on_anywhere():
    """The launcher passes it on to both ranks, at two instants; then four ranks go on."""
    options = (*QUICK, "--checkpoint-every", "end", "--epochs", "40")
    succeeds(*options, "--out", "alone")
    with start(*launch(2, *options, "--out", "run")) as running:
        for _ in range(200):
            if Path("run/weights.safetensors").exists():
                break
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=SECONDS)
    assert running.returncode == 143, err
    assert "go on:       handgrad train --resume run" in out
    assert len(listed(Path("run/checkpoints"))) == 2
    assert len(rows("run")) < 40
    out = run(4, "train", "--resume", "run")
    assert "going on after" in out
    assert bits("run") == bits("alone")
    assert rows("run") == rows("alone")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the rank in /proc")
def test_ctrl_c_on_one_rank_stops_both():
    options = (*QUICK, "--checkpoint-every", "end", "--epochs", "5000")
    with start(*launch(2, *options, "--out", "run")) as running:
        for _ in range(200):
            if Path("run/weights.safetensors").exists():
                break
            time.sleep(0.05)
        one = next(
            int(folder.name)
            for folder in Path("/proc").iterdir()
            if folder.name.isdecimal() and is_rank_1(folder)
        )  # fmt: skip
        os.kill(one, signal.SIGINT)
        out, err = running.communicate(timeout=SECONDS)
    assert running.returncode == 130, err
    assert "interrupted after" in out
    assert err.count("stopping after this step") == 1


def is_rank_1(folder: Path) -> bool:
    """Whether the process of this folder of /proc is rank 1 of the job in the working directory."""
    try:
        here = (folder / "cwd").readlink() == Path.cwd()
        return here and b"PMI_RANK=1\0" in (folder / "environ").read_bytes()
    except OSError:
        return False


def test_the_last_line_is_read_before_the_job_is_aborted():
    """A launcher that is slow to read."""
    reading, writing = os.pipe()
    read: list[str] = []
    with os.fdopen(reading) as launcher, os.fdopen(writing, "w") as stream:
        print("the last line", file=stream, flush=True)
        late = threading.Timer(0.3, lambda: read.append(launcher.readline()))
        late.start()
        _wait_until_read(stream)
        assert read == ["the last line\n"]
        late.join()
