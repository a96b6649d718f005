"""``handgrad kernels check``: the table, the JSON, and a mutant that makes it fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import handgrad, refused, report, succeeds

from handgrad import arrays
from handgrad.arrays import cuda_problem
from handgrad.kernel import kernels_directory
from handgrad.plans import tuning

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


# ---- tune ------------------------------------------------------------------------------------------------

TUNE = ("kernels", "tune", "--shape", "64,20,12,3")


@pytest.mark.skipif(not cuda_problem(), reason="a GPU answers")
def test_without_a_gpu_there_is_one_line():
    for words in ((), ("--json",), ("--device", "cuda:1")):
        line = refused(*TUNE, *words, code=1)
        assert line == f"error: --device: {cuda_problem(1 if words[-1:] == ('cuda:1',) else 0)}"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--device", "emulator"), "--device: expected cuda or cuda:N, got emulator; only a GPU is measured"),
        (("--shape", "64,20,12"), "--shape: expected N,D,H,C, four whole numbers from 1 up, got '64,20,12'"),
        (
            ("--precision", "fp8"),
            "precision: with dtype float32, expected float32 or tf32 or 3xtf32 or bfloat16",
        ),
        (
            ("--dtype", "float64", "--precision", "tf32"),
            "precision: with dtype float64, expected float64, got",
        ),
    ],
)
def test_a_wrong_call_of_tune_is_told_in_one_line(words, line, monkeypatch):
    monkeypatch.setattr(arrays, "cuda_problem", lambda index=0: "")  # as if a GPU answered
    assert refused(*TUNE, *words).startswith(f"error: {line}")


def test_tune_measures_each_shape_with_what_was_asked_for(monkeypatch):
    """On a stand-in: the emulator for the GPU, and times that are made up."""
    asked = []

    def tune(net, batch_size, optimizer, samples, inputs):
        asked.append((net.sizes, net.loss_name, net.precision, net.activation, batch_size, optimizer.rule))
        asked[-1] += (samples, inputs)
        seconds = {"R4 (hidden 64x64x16/8x4)": 2e-5}
        epoch = tuning.TunedEpoch(samples, "R2", "cells 4x4", {"R2 (cells 4x4)": 4e-3}) if samples else None
        return tuning.Tuned("Testcard", "R4", "hidden 64x64x16/8x4", seconds, inputs or "float32", epoch)

    monkeypatch.setattr(arrays, "resolve_device", lambda device: arrays.Device("emulator"))
    monkeypatch.setattr(tuning, "tune", tune)
    words = (
        *TUNE,
        "--shape",
        "32,9,8,1",
        "--precision",
        "tf32",
        "--optimizer",
        "adam",
        "--activation",
        "tanh",
    )
    found = report(*words)
    assert asked == [
        ((20, 12, 3), "cross_entropy", "tf32", "tanh", 64, "Adam", None, None),
        ((9, 8, 1), "mse", "tf32", "tanh", 32, "Adam", None, None),
    ]
    assert found["steps"][0]["epoch"] is None
    assert [row["step"] for row in found["steps"]] == ["64,20,12,3", "32,9,8,1"]
    assert found["schema"] == "handgrad.tune/1"
    assert found["steps"][0]["seconds"] == {"R4 (hidden 64x64x16/8x4)": 2e-5}
    text = succeeds(*TUNE)
    assert "R4 (hidden 64x64x16/8x4) is the fastest on Testcard; measured, a step:" in text
    assert "      20.0 µs  R4 (hidden 64x64x16/8x4)" in text
    assert "epoch" not in text
    of_epochs = (*TUNE, "--inputs", "uint8", "--samples", "640")
    row = report(*of_epochs)["steps"][0]
    assert asked[-1][-2:] == (640, "uint8")
    assert (row["inputs"], row["epoch"]["winner"], row["epoch"]["tiling"]) == ("uint8", "R2", "cells 4x4")
    assert row["epoch"]["seconds"] == {"R2 (cells 4x4)": 4e-3}
    text = succeeds(*of_epochs)
    assert "measured, a step of uint8:" in text
    assert "an epoch of 640 samples: the fastest is R2 (cells 4x4); measured:" in text
    assert "    4000.0 µs  R2 (cells 4x4)" in text


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--samples", "63"), "samples: expected 64 or more, a batch, got 63"),
    ],
)
def test_epochs_shorter_than_a_batch_are_told_in_one_line(words, line, monkeypatch):
    """On the emulator in the place of the GPU."""

    def tune(net, batch_size, optimizer, samples, inputs):
        return tuning.measure_candidates(
            net, batch_size, optimizer, "Testcard", lambda run, xp: 1.0, samples, inputs
        )

    monkeypatch.setattr(arrays, "resolve_device", lambda device: arrays.Device("emulator"))
    monkeypatch.setattr(tuning, "tune", tune)
    assert refused(*TUNE, *words) == f"error: {line}"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--samples", "0"), "--samples: expected a number greater than or equal to 1, got '0'"),
        (("--inputs", "int8"), "--inputs: expected float32 or uint8, got int8"),
        (("--dtype", "float64", "--inputs", "float32"), "--inputs: expected float64 or uint8, got float32"),
    ],
)
def test_what_cannot_be_tuned_is_told_before_a_gpu_is_looked_for(words, line):
    assert refused(*TUNE, *words).startswith(f"error: {line}")
