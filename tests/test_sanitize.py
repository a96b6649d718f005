"""``handgrad kernels sanitize``: table, JSON, one's own kernels, replays, and one line for each mistake."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import handgrad, refused, report, succeeds

from handgrad.kernel import kernels_directory, use_kernels
from handgrad.proof import launch_description
from handgrad.proof.sanitize import DETECTORS, sanitize
from handgrad.proof.sanitizer_process import Task, build, run_tasks, tasks_of_headers
from handgrad.proof.workload import of_launch

EXAMPLE = Path(__file__).resolve().parent.parent / "docs" / "examples" / "row_sums.cu"
BARRIER = "    __syncthreads();  // this level is whole before the next one reads it\n"

FAULTY = """
__global__ void ends_never(volatile int* x) { while (x[0] == 0) {} }
__global__ void kills(int* x) { __builtin_trap(); }
__global__ void traps(int* x) { if (threadIdx.x == 3) __trap(); }
__global__ void sound(int* x) { x[threadIdx.x] = threadIdx.x; }
"""
FAULTY_LAUNCHES = """
kernel = ["ends_never", "kills", "traps", "sound"]
grid = 1
block = 32
args = [{ dtype = "int32", shape = 32 }]
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The documentation's example, in a folder of its own."""
    for suffix in (".cu", ".toml"):
        shutil.copy(EXAMPLE.with_suffix(suffix), tmp_path)
    return tmp_path / EXAMPLE.name


def without_barrier(source: Path) -> str:
    """Remove the barrier of the tree; ``file:line`` of the line that is then a race."""
    text = source.read_text()
    assert text.count(BARRIER) == 1
    source.write_text(text.replace(BARRIER, ""))
    (line,) = [i for i, line in enumerate(text.splitlines(), 1) if "+= partial[" in line]
    return f"{source.name}:{line}"


def failing(*arguments: Any) -> dict[str, Any]:
    """The JSON object of a search that finds something."""
    result = handgrad("kernels", "sanitize", *arguments, "--json")
    assert result.exit_code == 1, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_the_example_of_the_documentation_is_sanitized_in_ten_seconds(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HANDGRAD_CACHE", str(tmp_path / "cache"))  # compile included
    begun = time.perf_counter()
    text = succeeds("kernels", "sanitize", own)
    assert time.perf_counter() - begun < 10  # 4 s on two cores, with the emulator's own runtime
    assert "sanitizers, emulated on the CPU" in text
    assert text.splitlines()[-1].startswith("0 findings in 2 kernels")
    assert text.count("pass") == 2 * len(DETECTORS)


def test_a_missing_barrier_is_found_and_its_seed_replays_it(own: Path) -> None:
    place = without_barrier(own)
    found = failing(own)
    assert found["emulated"] is True
    by_detector = {row["detector"]: row for row in found["verdicts"] if row["kernel"] == "row_sums<float>"}
    assert list(by_detector) == list(DETECTORS)
    (race,) = by_detector["races"]["findings"]
    assert f"{race['file']}:{race['line']}" == place
    assert race["message"].count(place) == 2
    assert "no __syncwarp or __syncthreads lies between" in race["message"]
    (schedule,) = by_detector["schedules"]["findings"]
    assert schedule["seed"] in found["seeds"]
    assert by_detector["memory"]["passed"]
    again = handgrad("kernels", "sanitize", own, "--only", "schedules", "--seed", schedule["seed"])
    assert again.exit_code == 1
    assert f"threads in random order, seed {schedule['seed']}" in again.stdout
    assert "memory" not in again.stdout.splitlines()[1:4]


def test_a_wrong_size_is_found_in_memory_and_stops_the_unwatched_runs(own: Path) -> None:
    launches = own.with_suffix(".toml")
    launches.write_text(launches.read_text().replace("shared = 512 ", "shared = 508 "))
    found = failing(own)
    by_detector = {row["detector"]: row for row in found["verdicts"] if row["kernel"] == "row_sums<float>"}
    (memory,) = by_detector["memory"]["findings"]
    assert "just past the end of dynamic shared memory (508 bytes)" in memory["message"]
    assert by_detector["schedules"]["skipped"] == "not run: the memory findings come first"
    assert not by_detector["schedules"]["passed"]
    assert by_detector["schedules"]["runs"] == 0


def test_an_output_that_is_not_written_wholly(own: Path) -> None:
    launches = own.with_suffix(".toml")
    text = launches.read_text()
    launches.write_text(text.replace("shape = [5], fill", "shape = [7], fill"))
    found = failing(own, "--only", "initialisation")
    row = found["verdicts"][0]
    assert [one["message"] for one in row["findings"]] == [
        "2 of 7 elements of sums were not written by row_sums.cu:5"
    ]


def test_kernels_that_kill_or_never_end_are_findings(tmp_path: Path) -> None:
    source, launches = tmp_path / "faulty.cu", tmp_path / "faulty.toml"
    source.write_text(FAULTY)
    launches.write_text(FAULTY_LAUNCHES)
    tasks = [
        Task(name, ("synchronisation",), (0,), source=str(source), launches=str(launches))
        for name in ("ends_never", "kills", "traps", "sound")
    ]
    build(tasks)  # so that nothing but the kernel keeps a process silent
    never, kills, traps, sound = run_tasks(tasks, silence=3)
    assert "no answer within 3 s: the kernel does not end" in never.findings[0].message
    assert "the kernel's process died with signal SIGILL" in kills.findings[0].message
    assert "__trap by thread (3,0,0)" in traps.findings[0].message
    assert traps.findings[0].line == 4
    assert sound.passed
    assert sound.runs == 5


def test_one_of_the_projects_kernels_and_a_mutant_of_it(tmp_path: Path) -> None:
    found = report("kernels", "sanitize", "batch", "--seeds", 2)
    assert found["findings"] == 0
    assert {row["kernel"] for row in found["verdicts"]} == {
        f"batch.gather {dtype}" for dtype in ("float32", "float64", "int32")
    }
    assert all(row["passed"] and row["runs"] > 0 for row in found["verdicts"])

    kernels = Path(shutil.copytree(kernels_directory(), tmp_path / "kernels"))
    text = (kernels / "batch.cu").read_text()
    assert text.count("column < D;") == 1
    (kernels / "batch.cu").write_text(text.replace("column < D;", "column <= D;"))
    mutated = failing("batch", "--kernels", kernels, "--only", "memory")
    assert all(row["findings"] for row in mutated["verdicts"])
    assert {one["file"] for row in mutated["verdicts"] for one in row["findings"]} == {"batch.cu"}


PROMISES = (  # lines of last_block; each is found where it is left out
    "  __syncthreads();  // every thread of the block has written\n",
    "    __threadfence();  // the block's writes become visible before it counts as arrived\n",
    "  __syncthreads();  // the block learns its number\n",
    "    __threadfence();  // reads after this see what the other blocks wrote before their fence\n",
)


@pytest.mark.parametrize("line", ["", *PROMISES])
def test_what_the_headers_promise_is_tried(line: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(kernels_directory(), tmp_path / "kernels"))
    text = (folder / "common.cuh").read_text()
    assert not line or text.count(line) == 1
    (folder / "common.cuh").write_text(text.replace(line, ""))
    with use_kernels(folder):
        tasks = tasks_of_headers(DETECTORS, range(3))
        assert [task.kernel for task in tasks] == ["sum_by_last_block"]
        (described,) = launch_description.read(Path(tasks[0].launches))
        workload = of_launch(Path(tasks[0].source), described)
        verdicts = list(sanitize(tasks[0].kernel, [workload], DETECTORS, range(3)))
    failed = {verdict.detector for verdict in verdicts if verdict.findings}
    assert "races" in failed if line else not failed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere.cu",), "nowhere.cu"),
        (("lineal",), "expected a kernel of the catalogue"),
        (("--only", "speed"), "--only: expected some of memory, races"),
        (("--launch", "x.toml"), "--launch: expected a FILE.cu for it"),
        (("--seeds", "-1"), "--seeds"),
    ],
)
def test_a_wrong_call_is_told_in_one_line(arguments: tuple[str, ...], words: str) -> None:
    assert words in refused("kernels", "sanitize", *arguments)


def test_a_missing_launch_description_is_told_in_one_line(own: Path) -> None:
    own.with_suffix(".toml").unlink()
    assert "row_sums.toml, which is no file; it says how the kernels are launched" in refused(
        "kernels", "sanitize", own
    )


@pytest.mark.parametrize(
    ("old", "new", "words", "code"),
    [
        ("[128]", "[2048]", "block (2048, 1, 1): sm_80 allows sizes from 1 to (1024, 1024, 64)", 2),
        ('"int32", value', '"float32", value', "argument 2 (columns): expected int32", 2),
        ('"float32", shape', '"flot32", shape', "args[0]: dtype: expected one of float32", 2),
        ("grid = [5]", "", "grid is missing", 2),
        ("row_sums<float>", "row_sum<float>", "'row_sum' was not declared", 1),
    ],
)
def test_a_launch_that_does_not_fit(own: Path, old: str, new: str, words: str, code: int) -> None:
    launches = own.with_suffix(".toml")
    launches.write_text(launches.read_text().replace(old, new))
    assert words in refused("kernels", "sanitize", own, "--only", "memory", code=code)


def test_a_kernel_that_does_not_compile_gives_the_compilers_own_message(own: Path) -> None:
    own.write_text(own.read_text().replace("T sum = 0;", "T sum = nought;"))
    text = refused("kernels", "sanitize", own, code=1)
    assert "row_sums.cu:8: " in text
    assert "nought" in text


def test_without_a_compiler(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANDGRAD_CXX", "/nowhere/c++")
    assert "does not run as a C++ compiler" in refused("kernels", "sanitize", own, code=1)


@pytest.mark.slow
def test_every_kernel_of_the_project_passes() -> None:
    found = report("kernels", "sanitize")
    assert [row for row in found["verdicts"] if not row["passed"]] == []
    assert {row["detector"] for row in found["verdicts"]} == set(DETECTORS)
    kernels = {row["kernel"] for row in found["verdicts"]}
    assert "sum_by_last_block" in kernels, "what the headers promise"
    assert len(found["verdicts"]) == len(DETECTORS) * len(kernels)
    assert all(row["runs"] > 0 for row in found["verdicts"])
