"""``handgrad bench``: table, picture, JSON, partial results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import handgrad, refused, report, succeeds

from handgrad import throughput

SMALL = ("bench", "--shape", "64,20,8,1", "--shape", "32,20,8,3", "--seconds", "0.02")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(throughput, "WARM_UP_SECONDS", 0.01)


def test_without_a_gpu_it_says_so_and_shows_the_cpu(no_cupy):
    found = report(*SMALL)
    assert "no GPU here" in found["notes"][0]
    assert [row["device"] for row in found["results"]] == ["cpu", "cpu"]
    assert list(Path.cwd().iterdir()) == []  # --json alone writes no files


def test_the_report_keeps_every_sample():
    found = report(*SMALL, "--device", "cpu")
    assert found["schema"] == "handgrad.bench/1"
    assert found["complete"] is True
    assert {"cpu", "cores", "blas", "environment", "versions"} <= set(found["machine"])
    assert [(row["samples"], row["outputs"], row["loss"]) for row in found["results"]] == [
        (64, 1, "mse"),
        (32, 3, "cross_entropy"),
    ]
    for row in found["results"]:
        samples = sorted(row["seconds_per_step"])
        assert len(samples) >= throughput.FEWEST_ROUNDS
        low, high = row["milliseconds_per_step"]["quartiles"]
        median = row["milliseconds_per_step"]["median"]
        assert samples[0] * 1e3 <= low <= median <= high <= samples[-1] * 1e3
        assert row["samples_per_second"]["median"] == pytest.approx(row["samples"] / median * 1e3)
        assert 0 <= row["gradient_error"] <= throughput.AGREEMENT


def test_table_files_and_picture():
    text = succeeds(*SMALL, "--device", "cpu", "--out", "figures")
    assert "64×20→8→1" in text
    assert "32×20→8→3" in text
    assert "against cpu" not in text
    assert "wrote bench.json and throughput.png in figures" in text
    assert json.loads(Path("figures/bench.json").read_text())["complete"] is True
    assert Path("figures/throughput.png").read_bytes().startswith(b"\x89PNG")


def test_the_usual_place_is_below_runs():
    succeeds(*SMALL, "--device", "cpu")
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("bench-")


def test_the_emulator_beside_the_cpu():
    text = succeeds(
        *SMALL[:3], "--seconds", "0.02", "--device", "cpu", "--device", "emulator", "--out", "figures"
    )
    assert "against cpu" in text
    assert "say nothing about a GPU" in text
    assert [row["device"] for row in json.loads(Path("figures/bench.json").read_text())["results"]] == [
        "cpu",
        "emulator",
    ]


def test_blas_settings_that_slow_down_are_pointed_out(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")
    monkeypatch.setattr(
        throughput,
        "blas",
        lambda: [{"internal_api": "openblas", "version": "0", "num_threads": 1, "architecture": "Prescott"}],
    )
    assert any("OPENBLAS_CORETYPE=Prescott" in note for note in report(*SMALL, "--device", "cpu")["notes"])


def test_an_interrupt_keeps_what_was_measured(monkeypatch):
    real, calls = throughput.Step.seconds, []

    def seconds(self, steps):
        calls.append(self.shape)
        if self.shape.outputs == 3 and len(calls) - calls.index(self.shape) > 5:
            raise KeyboardInterrupt
        return real(self, steps)

    monkeypatch.setattr(throughput.Step, "seconds", seconds)
    monkeypatch.setattr(throughput, "WARM_UP_SECONDS", 0.0)
    result = handgrad(*SMALL, "--device", "cpu", "--out", "figures")
    assert result.exit_code == 130
    assert "interrupted" in result.stdout
    found = json.loads(Path("figures/bench.json").read_text())
    assert found["complete"] is False
    assert len(found["results"][0]["seconds_per_step"]) >= throughput.FEWEST_ROUNDS
    assert 0 < len(found["results"][1]["seconds_per_step"]) < throughput.FEWEST_ROUNDS


def test_a_wrong_step_is_not_timed(monkeypatch):
    from handgrad.network import MLP

    real = MLP.loss_and_grad

    def doubled(self, *arguments, **options):
        loss, gradients = real(self, *arguments, **options)
        if self.dtype == "float32":
            gradients["W2"][...] *= 2
        return loss, gradients

    monkeypatch.setattr(MLP, "loss_and_grad", doubled)
    result = handgrad(*SMALL, "--device", "cpu", "--json")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "error: 64×20→8→1 on cpu: W2 differs" in result.stderr
    assert "nothing is timed" in result.stderr


def test_out_must_be_a_folder():
    Path("file").write_text("")
    assert "--out" in refused(*SMALL, "--device", "cpu", "--out", "file")
