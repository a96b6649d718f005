"""``handgrad bench``: tables, JSON, files, partial results, peers that are not there."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import threadpoolctl
from command_line import handgrad, process, refused, report, succeeds

from handgrad import throughput
from handgrad.benchmark import ceilings, measure, reference, session
from handgrad.benchmark.process import Failed, SessionHere
from handgrad.cli import bench_files

SMALL = ("bench", "--shape", "64,20,8,1", "--shape", "32,20,8,3", "--seconds", "0.02", "--threads", "1")
ALONE = (*SMALL, "--device", "cpu", "--peer", "none")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Short, small, without processes, and with this process's BLAS threads put back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "SessionProcess", SessionHere)
    monkeypatch.setattr(session, "WARM_UP_SECONDS", 0.005)
    monkeypatch.setattr(ceilings, "SQUARE", 64)
    monkeypatch.setattr(ceilings, "BUFFER_BYTES", 2**20)
    threads = {library["num_threads"] for library in throughput.blas()}
    yield
    threadpoolctl.threadpool_limits(limits=max(threads), user_api="blas")


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the measurement of so small networks."""
    monkeypatch.setattr(bench_files, "_draw", lambda directory, document: [])


def test_without_a_gpu_it_says_so_and_shows_the_cpu(no_cupy):
    found = report(*SMALL, "--peer", "none")
    assert "no GPU here" in found["notes"][0]
    assert [row["device"] for row in found["results"]] == ["cpu", "cpu"]
    assert list(Path.cwd().iterdir()) == []  # --json alone writes no files


def test_the_report_keeps_every_sample():
    found = report(*ALONE)
    assert found["schema"] == "handgrad.bench/2"
    assert found["complete"] is True
    assert {"cpu", "cores", "blas", "environment", "system", "python"} <= set(found["machine"])
    assert [(row["samples"], row["outputs"], row["loss"]) for row in found["results"]] == [
        (64, 1, "mse"),
        (32, 3, "cross_entropy"),
    ]
    for row in found["results"]:
        samples = sorted(row["seconds"])
        assert len(samples) >= measure.FEWEST_ROUNDS
        taken = row["milliseconds"]
        assert samples[0] * 1e3 <= taken["low"] <= taken["median"] <= taken["high"] <= samples[-1] * 1e3
        assert row["samples_per_second"]["median"] == pytest.approx(row["samples"] / taken["median"] * 1e3)
        assert row["gflops"] == pytest.approx(row["flops"] / taken["median"] / 1e6)
        assert 0 <= row["gradient_error"] <= reference.AGREEMENT
        assert row["square_gflops"] > 0


def test_products_stages_and_ceilings_are_there():
    found = report(*ALONE)
    for bare in found["products"]:
        names = [part["name"] for part in bare["parts"]]
        assert names == ["X W1", "A1 W2", "A1ᵀ dZ2", "dZ2 W2ᵀ", "Xᵀ dZ1"]
        assert sum(part["flops"] for part in bare["parts"]) == bare["flops"]
        for position, together in enumerate(bare["seconds"]):
            assert together == pytest.approx(sum(part["seconds"][position] for part in bare["parts"]))
    assert [row["workload"] for row in found["stages"]] == ["64×20→8→1", "32×20→8→3"]
    for row in found["stages"]:
        assert all(len(stage["seconds"]) == measure.STAGE_SAMPLES for stage in row["stages"])
    assert found["bandwidth"]["cpu"]["copy"] > 0
    assert found["bandwidth"]["cpu"]["read"] > 0
    (own,) = found["contestants"]
    assert own["square_product"]["size"] == 64
    assert own["square_product"]["gflops"]["median"] > 0


def test_tables_and_files():
    text = succeeds(*ALONE, "--out", "figures")
    assert "64×20→8→1" in text
    assert "32×20→8→3" in text
    assert "wrote bench.json" in text
    assert json.loads(Path("figures/bench.json").read_text())["complete"] is True


def test_the_usual_place_is_below_runs(no_pictures):
    succeeds(*ALONE)
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("bench-")


def test_the_emulator_beside_the_cpu(no_pictures):
    text = succeeds(
        *SMALL[:3], "--seconds", "0.02", "--device", "cpu", "--device", "emulator", "--out", "figures",
        "--peer", "none",
    )  # fmt: skip
    assert "say nothing about a GPU" in text
    found = json.loads(Path("figures/bench.json").read_text())
    assert [row["device"] for row in found["results"]] == ["cpu", "emulator"]
    (ratio,) = found["ratios"]
    assert (ratio["device"], ratio["against"], ratio["against_device"]) == ("emulator", "handgrad", "cpu")
    assert ratio["times_as_fast"]["median"] < 1


def test_blas_settings_that_slow_down_are_pointed_out(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")
    monkeypatch.setattr(
        throughput,
        "blas",
        lambda: [{"internal_api": "openblas", "version": "0", "num_threads": 1, "architecture": "Prescott"}],
    )
    assert any("OPENBLAS_CORETYPE=Prescott" in note for note in report(*ALONE)["notes"])


def test_an_interrupt_keeps_what_was_measured(no_pictures, monkeypatch):
    real, calls = session.Session.sample, []

    def sample(self, repetitions):
        calls.append(self.problem.workload)
        if len([one for one in calls if one.shape.outputs == 3]) > 3:
            raise KeyboardInterrupt
        return real(self, repetitions)

    monkeypatch.setattr(session.Session, "sample", sample)
    result = handgrad(*ALONE, "--out", "figures")
    assert result.exit_code == 130
    assert "interrupted" in result.stdout
    found = json.loads(Path("figures/bench.json").read_text())
    assert found["complete"] is False
    assert len(found["results"][0]["seconds"]) >= measure.FEWEST_ROUNDS
    assert len(found["results"][1]["seconds"]) == 3


def test_a_wrong_step_is_not_timed(monkeypatch):
    from handgrad.network import MLP

    real = MLP.loss_and_grad

    def doubled(self, *arguments, **options):
        loss, gradients = real(self, *arguments, **options)
        gradients["W2"][...] *= 2
        return loss, gradients

    monkeypatch.setattr(MLP, "loss_and_grad", doubled)
    result = handgrad(*ALONE, "--json")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "error: 64×20→8→1 on cpu: W2 differs" in result.stderr
    assert "nothing is timed" in result.stderr


def test_what_was_right_until_then_is_reported(no_pictures, monkeypatch):
    """A step that is wrong on the second network: exit code 1, and the figures of the first."""
    from handgrad.network import MLP

    real = MLP.loss_and_grad

    def doubled(self, *arguments, **options):
        loss, gradients = real(self, *arguments, **options)
        gradients["W2"][...] *= 2 if self.sizes[-1] == 3 else 1
        return loss, gradients

    monkeypatch.setattr(MLP, "loss_and_grad", doubled)
    result = handgrad(*ALONE, "--out", "figures")
    assert result.exit_code == 1
    assert "error: 32×20→8→3 on cpu: W2 differs" in result.stderr
    found = json.loads(Path("figures/bench.json").read_text())
    assert [row["workload"] for row in found["results"]] == ["64×20→8→1"]
    assert found["complete"] is False
    assert "ended early" in found["notes"][-1]


def test_a_peer_that_is_not_installed_is_a_note(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("torch", "jax") else real(name)
    )
    found = report(*SMALL, "--device", "cpu", "--peer", "torch-eager", "--peer", "jax")
    assert {row["peer"] for row in found["results"]} == {"handgrad"}
    for name in ("PyTorch eager", "JAX jit"):
        assert any(name in note and "handgrad[peers]" in note for note in found["notes"])


def test_a_peer_that_cannot_start_is_a_note(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)  # as with a broken installation
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    found = report(*SMALL, "--device", "cpu", "--peer", "sklearn")
    assert found["complete"] is True
    assert any("scikit-learn on cpu: not measured" in note for note in found["notes"])


def test_a_peer_that_dies_meanwhile_is_a_note(monkeypatch):
    """Its samples until then stay, and all others go on."""
    pytest.importorskip("sklearn")
    monkeypatch.setattr(measure.Settings, "takes_part", lambda self, key, workload: True)
    real, calls = SessionHere.receive, []

    def receive(self):
        value = real(self)
        if self._session is not None and self._session.runner.__class__.__name__ == "SklearnRunner":
            calls.append(value)
            if len(calls) == 7:  # started, described, prepared, gradients, warmed up, sample, square, sample
                raise Failed("its process died with signal SIGKILL")
        return value

    monkeypatch.setattr(SessionHere, "receive", receive)
    found = report(*SMALL, "--device", "cpu", "--peer", "sklearn")
    assert found["complete"] is True
    assert [row["workload"] for row in found["results"] if row["peer"] == "handgrad"] == [
        "64×20→8→1",
        "32×20→8→3",
    ]
    (dead,) = [row for row in found["results"] if row["peer"] == "sklearn"]
    assert len(dead["seconds"]) == 1
    assert any("64×20→8→1 stopped: its process died" in note for note in found["notes"])


@pytest.mark.slow
def test_one_thread_and_no_folder_to_write_to_but_the_report_s(tmp_path: Path):
    """In processes as a user has them, with neither a home nor a cache."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("HANDGRAD_CACHE", "XDG_CACHE_HOME", "MPLCONFIGDIR")
    }
    environment |= {"HOME": "/proc/nowhere", "HANDGRAD_CACHE": "/proc/nowhere/cache"}
    running = process(*ALONE, "--out", "figures", cwd=tmp_path, env=environment)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    assert "Traceback" not in out + err
    found = json.loads(Path("figures/bench.json").read_text())
    assert found["complete"] is True
    assert {row["threads"] for row in found["results"]} == {1}
    assert {file.name for file in Path("figures").iterdir() if file.suffix != ".json"} == {
        "bench.html", "throughput.png", "throughput.svg", "roofline.png", "roofline.svg", "stages.png",
        "stages.svg",
    }  # fmt: skip


@pytest.mark.slow
def test_ctrl_c_leaves_a_report_and_no_process(tmp_path: Path):
    arguments = (
        "--device",
        "cpu",
        "--peer",
        "none",
        "--threads",
        "1",
        "--seconds",
        "600",
        "--out",
        "figures",
    )
    with process("bench", "--shape", "640,200,80,3", *arguments, cwd=tmp_path) as running:
        time.sleep(8.0)
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        assert len(children) == 1
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in out + err
    assert "what was measured until now" in out
    assert not Path(f"/proc/{children[0]}").exists()
    found = json.loads(Path("figures/bench.json").read_text())
    assert found["complete"] is False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--out", "file"), ("--out", "a folder")),
        (("--peer", "tensorflow"), ("--peer", "torch-eager", "'tensorflow'")),
        (("--threads", "4096"), ("--threads", "4096")),
        (("--seconds", "-1"), ("--seconds", "above 0")),
    ],
)
def test_wrong_calls(arguments, words):
    Path("file").write_text("")
    line = refused(*ALONE[:-2], *arguments)
    assert all(word in line for word in words)
