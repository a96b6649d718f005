"""The pytest-benchmark suites in ``bench/``: every benchmark names its device, so they can be grouped."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark")

ROOT = Path(__file__).parents[1]
STEMS = ("activation", "batch", "linear", "loss", "optimizer", "step", "epoch", "emulator")


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_benchmark_names_its_device():
    collected = re.findall(r"^(bench/\S+)", run("bench", "--collect-only"), re.MULTILINE)
    assert len(collected) > 100
    files = {line.split("::")[0] for line in collected}
    assert {f"bench/test_bench_{stem}.py" for stem in STEMS} <= files
    for line in collected:
        assert re.search(r"[\[-](cpu|cuda|emulator)[\]-]", line), line


@pytest.mark.slow
def test_the_devices_are_groups(tmp_path: Path):
    """The command of the documentation, on the smallest suites; the comparison with an earlier run, too."""
    short = (
        "bench/test_bench_batch.py", "bench/test_bench_emulator.py", "--benchmark-group-by=param:device",
        "--benchmark-max-time=0.01", "--benchmark-min-rounds=1", f"--benchmark-storage={tmp_path}",
    )  # fmt: skip
    text = run(*short, "--benchmark-save=before")
    assert "benchmark 'device=cpu'" in text
    assert "benchmark 'device=emulator'" in text
    (saved,) = tmp_path.rglob("*_before.json")
    assert len(json.loads(saved.read_text())["benchmarks"]) > 5
    assert "(0001_before)" in run(*short, "--benchmark-compare=0001")
