"""Scaling: fitted exponents, and training on rows that are mapped from a disk."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from bench_documents import curve
from command_line import handgrad, refused

import handgrad as hg
from handgrad.benchmark import mapped, scaling
from handgrad.benchmark.process import Failed, SessionHere, SessionProcess, ask
from handgrad.benchmark.scaling_pictures import exponent_words, in_memory_words
from handgrad.cli import bench_files
from handgrad.throughput import Shape

HAS_PROC = Path("/proc/self/status").is_file()
SMALL = scaling.Plan(
    rows=(1000, 3000), hidden=(8, 16, 32), threads=(1,), rounds=2, batch=64, shapes=(Shape(64, 20, 8, 3),)
)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law(exponent):
    points = [scaling._point(x, [3e-6 * x**exponent]) for x in (10, 100, 1000, 10_000)]
    found = scaling.fit(points, 10)
    assert found["exponent"] == pytest.approx(exponent)
    assert found["factor"] == pytest.approx(3e-6)
    assert found["r_squared"] == pytest.approx(1.0)
    assert found["standard_error"] == pytest.approx(0.0, abs=1e-9)


def test_fixed_costs_are_left_out_of_the_fit():
    points = [scaling._point(x, [1e-6 * x + 0.1 * (x < 1000)]) for x in (10, 100, 1000, 10_000, 100_000)]
    assert scaling.fit(points, 1000)["exponent"] == pytest.approx(1.0)
    assert scaling.fit(points, 10)["exponent"] < 0.5
    assert scaling.fit(points, 10_000) is None  # two points: no fit


def test_the_standard_error_covers_the_exponent():
    """Over many noisy curves, two standard errors of a fit through 8 points hold about nine in ten."""
    rng = np.random.default_rng(0)
    x = np.logspace(2, 6, 8)
    inside = 0
    for _ in range(300):
        points = [scaling._point(int(v), [1e-6 * v * np.exp(rng.normal(0, 0.1))]) for v in x]
        found = scaling.fit(points, 1)
        inside += abs(found["exponent"] - 1.0) < 2 * found["standard_error"]
    assert 0.85 < inside / 300 < 0.97


def test_words():
    assert exponent_words(curve("rows", 1.0)) == "t ∝ N^1.00 ± 0.00 from 1,000 on"
    assert exponent_words(curve("threads", -1.0)) == ""
    assert in_memory_words(curve("rows", 1.0)).startswith("100,000 rows mapped from a disk take 1.05 times")
    assert in_memory_words(curve("hidden", 1.0)) == ""


def test_every_curve_has_its_points():
    curves, notes = [], []
    scaling.measure(SMALL, curves, notes.append, lambda words: None, start=_here_without_limit)
    assert [one["over"] for one in curves] == ["hidden", "rows"]
    assert notes == ["scaling with threads: not measured, there is one core"]
    hidden, rows = curves
    assert [point["x"] for point in hidden["points"]] == [8, 16, 32]
    assert [point["x"] for point in rows["points"]] == [1000, 3000]
    assert all(len(point["seconds"]) == 2 and min(point["seconds"]) > 0 for point in rows["points"])
    assert rows["in_memory"]["rows"] == 3000


def test_threads_each_have_a_process_of_that_many():
    asked, curves = [], []

    def start(key, device, threads, fixed, seed, kernels):
        asked.append((threads, fixed))
        return SessionHere(key, device, 1, True, seed, kernels)

    plan = scaling.Plan(rows=(), hidden=(), threads=(1, 2, 3), rounds=2, shapes=SMALL.shapes)
    scaling.measure(plan, curves, print, lambda words: None, start=start)
    assert asked == [(1, True), (2, True), (3, True)]
    assert [point["x"] for point in curves[0]["points"]] == [1, 2, 3]


def test_no_room_on_the_disk_is_a_note(monkeypatch):
    monkeypatch.setattr(scaling.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**6))
    curves, notes = [], []
    plan = scaling.Plan(rows=(10_000,), hidden=(), threads=(1,))
    scaling.measure(plan, curves, notes.append, lambda words: None, start=_here_without_limit)
    assert curves == []
    assert "fewer --rows, or set TMPDIR" in notes[-1]


def test_points_until_a_failure_stay():
    class Dying(SessionHere):
        def receive(self):
            problem = getattr(self._session, "problem", None)
            if problem is not None and problem.workload.shape.hidden == 32:
                raise Failed("its process died with signal SIGKILL")
            return super().receive()

    curves, notes = [], []
    plan = scaling.Plan(rows=(), hidden=(8, 16, 32), threads=(1,), rounds=2, batch=64)
    scaling.measure(plan, curves, notes.append, lambda words: None, start=Dying)
    assert [point["x"] for point in curves[0]["points"]] == [8, 16]
    assert notes[-1] == "scaling with hidden units: stopped: its process died with signal SIGKILL"


def test_mapped_rows_train_as_rows_in_memory_do(tmp_path: Path, monkeypatch):
    """The same last loss as an epoch over the same bytes as one array, to the bit; over three parts."""
    monkeypatch.setattr(mapped, "PART", 1024)
    assert mapped.write_rows(tmp_path, 2500) == 2500 * 788
    found = mapped.train(str(tmp_path), 2500)
    assert found["loss"] == mapped.train(str(tmp_path), 2500, mapped=False)["loss"]

    X = np.fromfile(tmp_path / "X.u8", np.uint8).reshape(2500, 784)
    y = np.fromfile(tmp_path / "y.i4", np.int32)
    assert (y.min(), y.max()) == (0, 9)
    net = hg.MLP([784, 50, 10], loss="cross_entropy", device="cpu", seed=0)
    optimizer = hg.SGD(lr=1e-3)
    for rows in (1024, 2500):  # the untimed batch, then the epoch
        losses = net.train_epoch(X[:rows], y[:rows], np.arange(rows), 1024, optimizer, scale=1 / 255)
    assert found["loss"] == float(losses[-1])


@pytest.mark.slow
@pytest.mark.skipif(not HAS_PROC, reason="needs /proc")
def test_the_resident_size_does_not_grow_with_the_rows(tmp_path: Path):
    """Five times the limit on the disk, and the peak stays where a fifth of it left it."""
    limit = 64 * 2**20
    rows = 5 * limit // 784
    mapped.write_rows(tmp_path, rows)
    peaks = {}
    for count in (rows // 5, rows):
        session = SessionProcess("handgrad", "cpu", 1, True, 0, None)
        try:
            session.receive()
            found = ask(session, "train_mapped", folder=str(tmp_path), rows=count, mapped=True, limit=limit)
            peaks[count] = found["peak_growth"]
        finally:
            session.close()
    assert peaks[rows] < peaks[rows // 5] + 8e6
    assert peaks[rows] < limit


@pytest.mark.slow
@pytest.mark.skipif(not HAS_PROC or sys.platform != "linux", reason="needs RLIMIT_DATA of Linux")
def test_the_limit_is_real(tmp_path: Path):
    """What does not fit is refused: rows in memory under the limit that mapped rows keep to."""
    mapped.write_rows(tmp_path, 200_000)
    session = SessionProcess("handgrad", "cpu", 1, True, 0, None)
    try:
        session.receive()
        with pytest.raises(Failed, match="MemoryError"):
            ask(session, "train_mapped", folder=str(tmp_path), rows=200_000, mapped=False, limit=64 * 2**20)
    finally:
        session.close()


def test_on_the_command_line(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scaling, "SessionProcess", _here_without_limit)
    monkeypatch.setattr(scaling, "everything", lambda threads, rows, limit: SMALL)
    result = handgrad("bench", "scaling", "--rows", "3000", "--threads", "1", "--out", "figures")
    assert result.exit_code == 0, result.stderr
    assert "3,000" in result.stdout
    found = json.loads(Path("figures/bench.json").read_text())
    assert [one["over"] for one in found["scaling"]] == ["hidden", "rows"]
    assert found["results"] == []
    assert "Time by rows" in Path("figures/bench.html").read_text()
    assert Path("figures/scaling-rows.png").is_file()


def test_an_interrupt_keeps_the_curves_until_then(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_files, "_draw", lambda directory, document: [])
    monkeypatch.setattr(scaling, "SessionProcess", _here_without_limit)
    monkeypatch.setattr(scaling, "everything", lambda threads, rows, limit: SMALL)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(scaling, "_over_rows", interrupted)
    result = handgrad("bench", "scaling", "--threads", "1", "--out", "figures")
    assert result.exit_code == 130
    found = json.loads(Path("figures/bench.json").read_text())
    assert (found["complete"], len(found["scaling"][0]["points"])) == (False, 3)


def test_wrong_calls():
    assert "--rows" in refused("bench", "scaling", "--rows", "10")
    assert "--limit" in refused("bench", "scaling", "--limit", "1")


def _here_without_limit(*arguments):
    """A session in this process, which must not be limited."""

    class Here(SessionHere):
        def send(self, command, **named):
            if command == "train_mapped":
                named["limit"] = None
            super().send(command, **named)

    return Here(*arguments)
