"""The acceptance run in all but the timing: on the emulator, small."""

from __future__ import annotations

import dataclasses
import json

import pytest
from command_line import refused, report
from small_networks import needs_compiler

from handgrad import acceptance
from handgrad.acceptance import ceilings, rivals, stages, timing
from handgrad.acceptance import report as written
from handgrad.arrays import resolve_device
from handgrad.plans import paths
from handgrad.throughput import Shape

pytestmark = needs_compiler


SHAPE = Shape(48, 20, 12, 3)


@pytest.fixture
def small(monkeypatch):
    """One shape and one rival, in seconds."""
    limits = dataclasses.replace(stages.SMALL, shapes=(SHAPE,), rivals=("cublas", "torch eager"))
    monkeypatch.setattr(stages, "SMALL", limits)


def test_the_command_goes_through_and_writes_its_report(small, tmp_path):
    pytest.importorskip("torch")
    found = report("bench", "--device", "emulator", "--full", "--out", tmp_path)
    assert found["schema"] == "handgrad.acceptance/1"
    assert found["emulated"] is True
    figures = {one["name"]: one for one in found["figures"]}
    assert set(figures) == {*paths.NAMES, "cublas", "torch eager"}
    for name in paths.MODULES:
        one = figures[name]
        assert one["median_seconds"] > 0, one["note"]
        assert one["of_bound"] == pytest.approx(one["median_seconds"] / one["bound"])
        assert one["error"] <= timing.AGREEMENT["float32"]
        assert one["launches"] == {"R1": 2, "R2": 1, "R3": 2, "R4": 4}[name]
        assert len(one["seconds"]) == 2
    assert figures["torch eager"]["median_seconds"] > 0
    assert "on the CPU" in figures["torch eager"]["note"]
    missing = {one["what"]: one["why"] for one in found["not_run"]}
    assert missing[f"cublas {SHAPE}"] == "needs a GPU"
    assert missing["checks"] == "handgrad kernels check runs them"
    assert json.loads((tmp_path / "acceptance.json").read_text()) == found
    text = (tmp_path / "acceptance.md").read_text()
    assert "its times say nothing about a GPU" in text
    assert f"| {SHAPE} | R1 | float32 |" in text
    assert f"- cublas {SHAPE}: needs a GPU" in text


def test_a_wrong_gradient_is_not_timed(monkeypatch):
    """A path whose step is not that of NumPy: here, because NumPy's learning rate is another."""
    device = resolve_device("emulator")
    top = ceilings.Ceilings("emulator", 1e9, {"float32": 1e9})
    good = timing.time_path("R1", SHAPE, "float32", device, top, 0.01, 2)
    assert good.seconds
    assert good.error <= 1e-5
    monkeypatch.setattr(timing, "SGD", lambda lr, momentum=0.0: timing_SGD(lr * (1 if momentum else 1.01)))
    bad = timing.time_path("R1", SHAPE, "float32", device, top, 0.01, 2)
    assert bad.seconds == []
    assert bad.error == pytest.approx(0.01, rel=0.05)
    assert bad.note.startswith("not timed: the gradient is off by 9.")


timing_SGD = timing.SGD


def test_the_bound_is_made_of_measured_ceilings():
    top = ceilings.Ceilings("emulator", 2e9, {"float32": 1e12, "float64": 5e11})
    assert top.bound(4_000_000, 1_000_000, "float32") == 2e-3
    assert top.bound(1_000, 3_000_000_000, "float32") == 3e-3
    found = ceilings.measure(resolve_device("emulator"), 1, 32)
    assert found.copy > 0
    assert set(found.product) == {"float32", "float64"}


def test_a_worker_that_dies_loses_one_figure(monkeypatch):
    """The process ends in the middle of its list; another one does the rest."""
    program = (
        "import sys, json\n"
        "for path, sizes, word in json.loads(sys.stdin.read())['work']:\n"
        "    if path == 'R3': print('CUDA error: gone', file=sys.stderr); sys.exit(7)\n"
        "    row = {'name': path, 'shape': 'x', 'precision': word, 'seconds': [1.0]}\n"
        "    print(json.dumps(row), flush=True)\n"
    )
    started = []

    class Popen(timing.subprocess.Popen):
        def __init__(self, command, **options):
            started.append(command)
            super().__init__([command[0], "-c", program], **options)

    monkeypatch.setattr(timing.subprocess, "Popen", Popen)
    work = [(path, SHAPE, "float32") for path in ("R1", "R3", "R4")]
    found = timing.measure(work, "emulator", ceilings.Ceilings("emulator", 1.0, {}), 0.01, 2, 60)
    assert [one.name for one in found] == ["R1", "R3", "R4"]
    assert found[1].note == "the process ended with code 7: CUDA error: gone"
    assert found[2].seconds == [1.0]
    assert len(started) == 2


def test_time_that_is_over_is_told():
    found = timing.measure([("R1", SHAPE, "float32")], "emulator", ceilings.Ceilings("x", 1.0, {}), 1, 2, 0.0)
    assert [(one.seconds, one.note) for one in found] == [([], "out of time")]
    slow = rivals.measure("torch eager", SHAPE, "emulator", 0.1, 2, limit=0.01)
    assert slow.note.startswith("ended after ")


def test_a_rival_that_is_not_there_says_so():
    assert (
        rivals.measure("tiny-cuda-nn", SHAPE, "emulator", 0.1, 2, 60).note == "tiny-cuda-nn is not installed"
    )


def test_checks_go_kernel_by_kernel(monkeypatch):
    """What fails is listed; what finds no time is not called passed."""
    not_run: list[dict[str, str]] = []
    limits = dataclasses.replace(stages.SMALL, checks="quick")
    monkeypatch.setattr("handgrad.proof.correctness.chosen_ops", lambda wanted: wanted or ["loss.rows"])
    found = stages._check(resolve_device("emulator"), limits, 60.0, not_run, lambda text: None)
    assert found["passed"] > 10
    assert found["failed"] == not_run == []
    stages._check(resolve_device("emulator"), limits, -1.0, not_run, lambda text: None)
    assert not_run == [{"what": "check loss.rows (quick)", "why": "out of time"}]


def test_the_report_lists_failures():
    found = {
        "device": "cuda:0", "emulated": False, "seconds": 3.0, "figures": [], "not_run": [],
        "machine": {"gpu": {"arch": "sm_90", "sms": 132}},
        "ceilings": {"copy_bytes_per_second": 3e12, "operations_per_second": {"float32": 6e13}},
        "checks": {"passed": 5, "failed": ["loss.rows float32: off"]},
    }  # fmt: skip
    text = written.markdown(found)
    assert "copy 3e+03 GB/s; products 60 Tflop/s in float32" in text
    assert "5 cases passed, 1 failed" in text
    assert "failed: loss.rows float32: off" in text
    assert "Everything ran." in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--device", "cpu"), "--device: expected cuda, cuda:N or emulator with --full, got cpu"),
        (
            ("--device", "emulator", "--device", "cuda"),
            "--device: expected one GPU, or the emulator",
        ),
    ],
)
def test_a_wrong_call_is_told_in_one_line(words, message):
    assert refused("bench", "--full", *words).startswith(f"error: {message}")


def test_the_cpu_runs_no_kernels():
    with pytest.raises(ValueError, match="which runs no kernels"):
        acceptance.run("cpu")
