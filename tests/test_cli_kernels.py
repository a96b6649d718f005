"""``handgrad kernels check``: the table, the JSON, and a mutant that makes it fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import handgrad, report, succeeds

from handgrad.kernel import kernels_directory

GATHER = ("kernels", "check", "--quick", "--op", "batch.gather")


def test_the_report_has_a_row_a_case():
    found = report(*GATHER)
    assert found["device"] == "emulator"
    assert found["failed"] == 0
    assert found["passed"] == len(found["cases"]) > 0
    for case in found["cases"]:
        assert {"op", "kernel", "dtype", "shape", "error", "bound", "passed"} <= set(case)
        assert case["op"] == "batch.gather"
        assert case["passed"] is True


def test_the_table_says_that_it_is_emulated():
    text = succeeds(*GATHER, "--dtype", "float32")
    assert "emulator (the kernels emulated on the CPU)" in text
    assert "batch.gather" in text
    assert "float64" not in text.split("NumPy")[1]
    assert text.splitlines()[-1].endswith("passed, 0 failed on emulator (the kernels emulated on the CPU)")


def test_a_mutant_fails_by_name_with_exit_code_1(tmp_path: Path):
    """The shift of a gather with the wrong sign."""
    kernels = Path(shutil.copytree(kernels_directory(), tmp_path / "kernels"))
    source = (kernels / "batch.cu").read_text()
    line = "static_cast<T>(pixels[j]) * scale + shift"
    assert source.count(line) == 1, "the mutant needs its line"
    (kernels / "batch.cu").write_text(source.replace(line, line.replace("+", "-")))

    result = handgrad(*GATHER, "--kernels", kernels)
    assert result.exit_code == 1
    assert "failed batch.gather" in result.stdout
    found = json.loads(handgrad(*GATHER, "--kernels", kernels, "--json").stdout)
    assert found["failed"] > 0
    assert found["failed"] + found["passed"] == len(found["cases"])
    assert succeeds(*GATHER)  # without --kernels, the sound sources again


@pytest.mark.parametrize("option", [("--kernels", "nowhere"), ("--op", "gather"), ("--device", "tpu")])
def test_a_wrong_call_is_told_in_one_line(option):
    result = handgrad("kernels", "check", *option)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
