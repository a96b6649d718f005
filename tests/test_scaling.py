"""Efficiency against ranks: the model on paper, and a small measurement."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from command_line import refused, report

from handgrad.distributed import scaling
from handgrad.distributed.scaling import LINKS, Link, Problem, best_ranks, predict

SMALL = Problem(batch_size=64, sizes=(20, 10, 3), shards=4, steps=2)


def test_the_bytes_of_a_gradient():
    assert SMALL.gradient_bytes == 4 * (20 * 10 + 10 + 10 * 3 + 3)
    assert Problem().gradient_bytes == 1_628_200


def test_the_model_by_hand():
    link = Link("a wire", 1e-5, 1e9)
    assert predict(0.1, 0.002, 2_000_000, link, 1) == pytest.approx(0.102)
    assert predict(0.1, 0.002, 2_000_000, link, 5) == pytest.approx(0.02 + 0.002 + 4 * (1e-5 + 0.002))


@pytest.mark.parametrize("link", [*LINKS, Link("a slow wire", 1e-3, 1e7)], ids=lambda link: link.name)
@pytest.mark.parametrize("gradient_seconds", [1e-5, 1e-3, 0.1])
def test_more_ranks_than_the_best_number_are_slower(link, gradient_seconds):
    size = Problem().gradient_bytes
    times = {ranks: predict(gradient_seconds, 0.0, size, link, ranks) for ranks in range(1, 2000)}
    least = min(times, key=times.__getitem__)
    found = best_ranks(gradient_seconds, size, link)
    assert abs(found - least) <= 1
    assert times[found] <= 1.03 * times[least]


def test_one_rank_is_measured_without_mpi():
    found = scaling.report(SMALL, (1,))
    (row,) = found["ranks"]
    assert (row["ranks"], row["speedup"], row["efficiency"], row["exchange_seconds"]) == (1, 1.0, 1.0, 0.0)
    assert json.loads(json.dumps(found)) == {**found, "problem": {**found["problem"], "sizes": [20, 10, 3]}}
    lines = scaling.table(found).splitlines()
    assert lines[0] == "64×20→10→3, 4 shards, one thread a rank"
    assert lines[2].split() == ["1", f"{1e3 * row['seconds']:.2f}", "0.00", "1.00", "100%"]


def test_two_ranks_are_measured_against_one():
    pytest.importorskip("mpi4py", reason="needs the extra mpi")
    if not Path(sys.executable).with_name("mpiexec").exists():
        pytest.skip("no mpiexec beside this Python")
    one, two = scaling.measure(SMALL, (1, 2))
    assert two.ranks == 2
    assert two.speedup == pytest.approx(one.seconds / two.seconds)
    assert two.efficiency == pytest.approx(two.speedup / 2)
    assert 0 < two.exchange_seconds < two.seconds


def test_a_job_that_fails_is_told_in_a_line():
    with pytest.raises(RuntimeError, match=r"the job of 1 ranks failed: .*device: expected") as caught:
        scaling.measure(Problem(batch_size=8, sizes=(2, 2, 2), device="toaster"), (1,))
    assert "\n" not in str(caught.value)


def test_a_machine_without_mpiexec_is_told(monkeypatch):
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RuntimeError, match=r"no mpiexec found; pip install 'handgrad\[mpi\]'"):
        scaling._run(SMALL, 2)


def test_the_command():
    pytest.importorskip("mpi4py", reason="needs the extra mpi")
    if not Path(sys.executable).with_name("mpiexec").exists():
        pytest.skip("no mpiexec beside this Python")
    found = report("bench", "--scaling", "--shape", "64,20,10,3")
    assert found["problem"]["batch_size"] == 64
    assert found["problem"]["sizes"] == [20, 10, 3]
    assert [row["ranks"] for row in found["ranks"]][:2] == [1, 2]
    assert all(row["seconds"] > 0 for row in found["ranks"])


def test_the_command_takes_one_shape_with_classes():
    twice = ("--shape", "64,20,10,3", "--shape", "64,20,10,4")
    assert "--scaling: expected one --shape" in refused("bench", "--scaling", *twice)
    assert "--shape: expected at least 2 output units" in refused("bench", "--scaling", "--shape", "9,8,7,1")
