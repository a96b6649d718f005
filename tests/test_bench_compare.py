"""``handgrad bench compare``: what changed, by more than the spread or not, and what else differs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from bench_documents import document
from command_line import handgrad, refused, report, succeeds

from handgrad.benchmark.compare import compare


@pytest.fixture(scope="module")
def before() -> dict[str, Any]:
    return document()


@pytest.fixture(scope="module")
def after() -> dict[str, Any]:
    return document(speed=2.0, seed=1)


@pytest.fixture
def files(before, after, tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "b").mkdir()
    (tmp_path / "a.json").write_text(json.dumps(before))
    (tmp_path / "b" / "bench.json").write_text(json.dumps(after))
    return tmp_path / "a.json", tmp_path / "b"


def test_a_document_with_itself_has_not_changed(before):
    found = compare(before, before)
    assert found["differences"] == []
    assert found["only_before"] == found["only_after"] == []
    assert len(found["rows"]) == len(before["results"])
    for row in found["rows"]:
        assert row["change"] == "within the spread"
        assert row["times_as_fast"]["median"] == 1.0
        assert row["times_as_fast"]["low"] < 1.0 < row["times_as_fast"]["high"]


def test_what_became_faster_and_what_did_not(before, after):
    rows = compare(before, after)["rows"]
    large = [row for row in rows if row["peer"] == "handgrad" and row["workload"].startswith("50,000")]
    assert [row["change"] for row in large] == ["faster"]
    assert large[0]["times_as_fast"]["median"] == pytest.approx(2.0, rel=0.1)
    back = [row for row in compare(after, before)["rows"] if row["peer"] == "handgrad"]
    assert {row["change"] for row in back if row["workload"].startswith("50,000")} == {"slower"}
    peers = [row["change"] for row in rows if row["peer"] != "handgrad"]
    assert peers.count("within the spread") >= 0.97 * len(peers)


def test_the_range_is_that_of_the_quartiles(before, after):
    row = next(row for row in compare(before, after)["rows"] if row["peer"] == "jax")
    a, b = row["before_milliseconds"], row["after_milliseconds"]
    assert row["times_as_fast"] == {
        "median": a["median"] / b["median"],
        "low": a["low"] / b["high"],
        "high": a["high"] / b["low"],
    }


def test_another_machine_version_kernel_and_load_are_named(before):
    other = copy.deepcopy(before)
    other["machine"]["cpu"] = "another CPU"
    other["machine"]["environment"] = {"OPENBLAS_CORETYPE": "Prescott"}
    other["settings"]["threads"] = 1
    other["complete"] = False
    jax = next(one for one in other["contestants"] if one["peer"] == "jax")
    jax["versions"] = {"jax": "2.0"}
    jax["blas"][0] = {**jax["blas"][0], "architecture": "SSE2"}
    jax["square_product"]["gflops"] = {"median": 9.0, "low": 8.0, "high": 10.0}
    words = "\n".join(compare(before, other)["differences"])
    for part in (
        "another CPU", "Prescott", "threads: 2 before, 1 after", "'2.0'", "SSE2", "not in the same state",
        "after was interrupted",
    ):  # fmt: skip
        assert part in words, part


def test_what_only_one_has(before):
    fewer = {**before, "results": [row for row in before["results"] if row["peer"] != "sklearn"]}
    assert {row["peer"] for row in compare(before, fewer)["only_before"]} == {"sklearn"}
    assert {row["peer"] for row in compare(fewer, before)["only_after"]} == {"sklearn"}


def test_on_the_command_line(files):
    found = report("bench", "compare", *files)
    assert found["schema"] == "handgrad.bench.compare/1"
    assert any(row["change"] == "faster" for row in found["rows"])
    text = succeeds("bench", "compare", *files)
    assert "within the spread" in text
    assert "50,000×784→50→1" in text


def test_files_that_are_no_reports(files, tmp_path: Path):
    (tmp_path / "no.json").write_text("{")
    (tmp_path / "other.json").write_text('{"schema": "handgrad.bench/1"}')
    assert "no.json" in refused("bench", "compare", files[0], tmp_path / "no.json")
    assert "run handgrad bench again" in refused("bench", "compare", tmp_path / "other.json", files[0])
    assert "missing.json" in refused("bench", "compare", files[0], tmp_path / "missing.json")
    assert handgrad("bench", "compare", files[0]).exit_code == 2
