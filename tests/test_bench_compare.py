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
from handgrad.benchmark.report_form import REPORT, misfit


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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("machine"), "machine is missing"),
        (
            lambda d: d["settings"].update(threads="two"),
            "settings.threads: expected a whole number, got 'two'",
        ),
        (lambda d: d.update(complete=1), "complete: expected true or false, got 1"),
        (lambda d: d.update(results={}), "results: expected a list, got {}"),
        (
            lambda d: d["results"][1].update(seconds=[]),
            "results[1].seconds: expected a list of numbers above 0",
        ),
        (
            lambda d: d["results"][0]["milliseconds"].update(median=float("nan")),
            "results[0].milliseconds.median: expected a number above 0, got nan",
        ),
        (
            lambda d: d["contestants"][0]["blas"].append(3),
            "contestants[0].blas[1]: expected an object, got 3",
        ),
    ],
)
def test_a_damaged_report_is_told_by_place(change, words, before, files, tmp_path: Path):
    damaged = copy.deepcopy(before)
    change(damaged)
    (tmp_path / "damaged.json").write_text(json.dumps(damaged))
    line = refused("bench", "compare", tmp_path / "damaged.json", files[0])
    assert f"damaged.json: not as handgrad bench writes it: {words}" in line
    assert line.endswith("run handgrad bench again")


def test_a_report_of_an_unknown_blas_is_compared(before):
    """threadpoolctl may not know version and architecture; a peer may have no BLAS, a GPU no threads."""
    other = copy.deepcopy(before)
    other["contestants"][0]["blas"] = [{"internal_api": "blas", "version": None}]
    other["contestants"][1]["blas"] = None
    for row in other["results"]:
        row["threads"] = None
    assert misfit(other, REPORT) == ""
    assert "BLAS" in "\n".join(compare(before, other)["differences"])
