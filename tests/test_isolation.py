"""Kernel checks in processes of their own: a fault, a hang or an interruption costs no more than it must."""

import math
import shutil
from pathlib import Path

import pytest

from handgrad import kernel
from handgrad.arrays import resolve_device
from handgrad.proof import correctness, isolation
from handgrad.proof.correctness import Group


def broken_gather(folder, statement):
    """A copy of kernels/ whose gather runs ``statement`` first."""
    copy = Path(shutil.copytree(kernel.kernels_directory(), folder / "kernels"))
    source = (copy / "batch.cu").read_text()
    place = "  const int row = "
    assert source.count(place) == 1
    (copy / "batch.cu").write_text(source.replace(place, f"  {statement}\n{place}"))
    return kernel.use_kernels(copy)


def test_a_process_that_dies_costs_its_own_case(tmp_path):
    with broken_gather(tmp_path, "if (rows == 33 && D == 10) __builtin_trap();"):
        cases = correctness.run("emulator", ["batch"], ["float64"], quick=True, isolate=True)
    group = Group("batch.gather", "float64", True).trials()
    assert [case.shape for case in cases] == [trial.shape for trial in group], "none is lost"
    for case in cases:
        died = (case.shape["rows"], case.shape["D"]) == (33, 10)
        assert case.passed == (not died), case
        assert not died or "its process died with signal SIGILL" in case.detail
        assert math.isnan(case.error) == died
    assert 0 < sum(not case.passed for case in cases) < isolation.MOST_DEATHS


def test_a_group_that_dies_again_and_again_is_given_up(tmp_path):
    with broken_gather(tmp_path, "__builtin_trap();"):
        cases = correctness.run("emulator", ["batch"], ["int32"], quick=True, isolate=True)
    assert len(cases) == len(Group("batch.gather", "int32", True).trials())
    reasons = [case.detail for case in cases if not case.passed]
    assert sum("its process died" in reason and "not run" not in reason for reason in reasons) == 3
    assert any("not run: 3 processes died before it" in reason for reason in reasons)


def test_a_gpu_is_checked_in_processes_of_its_own(cupy, monkeypatch):
    """There a fault leaves the process without a GPU."""
    asked = []
    monkeypatch.setattr(isolation, "run_isolated", lambda device, groups, counted: asked.append(device) or [])
    assert correctness.run("cuda", quick=True) == []
    assert [str(device) for device in asked] == ["cuda:0"]


def test_an_interrupted_check_starts_nothing_more():
    told = []

    def interrupt(done, total, case):
        told.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        correctness.run("emulator", ["loss"], ["float32"], quick=True, progress=interrupt, isolate=True)
    assert 1 <= len(told) <= 2


def test_isolated_cases_are_the_same():
    arguments = {"ops": ["linear.reduce_partials"], "dtypes": ["float32"], "quick": True}
    assert correctness.run("emulator", isolate=True, **arguments) == correctness.run("emulator", **arguments)


@pytest.mark.slow
def test_a_kernel_that_hangs_is_ended(tmp_path):
    with broken_gather(tmp_path, "for (volatile int forever = 1; forever && rows == 1 && D == 10;) {}"):
        group = Group("batch.gather", "float32", True)
        cases = list(isolation.cases_of(resolve_device("emulator"), group, silence=20))
    assert len(cases) == len(group.trials())
    failed = [case for case in cases if not case.passed]
    assert failed
    assert all("no answer within 20 s" in case.detail or "not run" in case.detail for case in failed)
    assert all((case.shape["rows"], case.shape["D"]) == (1, 10) for case in failed)


def test_a_kernel_that_does_not_compile_fails_its_cases(tmp_path):
    with broken_gather(tmp_path, "no such thing;"):
        cases = correctness.run("emulator", ["batch"], ["int32"], quick=True)
    failed = [case for case in cases if not case.passed]
    assert len(failed) == sum(case.shape["rows"] > 0 for case in cases)
    assert all("does not compile: batch.cu:" in case.detail for case in failed)
    assert all(math.isnan(case.error) for case in failed)
