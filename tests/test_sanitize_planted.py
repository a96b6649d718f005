"""Each detector finds its planted fault under every random order of threads, and is silent on the twin."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from planted_kernels import KINDS, is_fault, launches, places, source

from handgrad import emulator
from handgrad.emulator import EmulatorError
from handgrad.emulator.watched import MODES, SEARCHES, searching
from handgrad.proof.launch_description import LaunchDescription
from handgrad.proof.sanitize import DETECTORS, sanitize
from handgrad.proof.workload import Outcome, of_launch

SEEDS = range(20)
LEAST = {"memory": 6, "races": 6, "initialisation": 4, "synchronisation": 4, "schedules": 2}
CASES = [(kind, launch) for kind in KINDS for launch in launches(kind)]
FAULTS = [case for case in CASES if is_fault(case[1].kernel)]
TWINS = [case for case in CASES if not is_fault(case[1].kernel)]
QUICK = {  # one or two of each kind
    *("static_shared", "misaligned_vector", "missing_barrier", "plain_sum_of_blocks", "last_block_sums"),
    *("unwritten_static", "copy_without_wait", "divergent_barrier", "deadlock", "compaction"),
    *("grid_without_barrier", "block_leaves"),
}


def name_of(value: object) -> str:
    return value.kernel if isinstance(value, LaunchDescription) else str(value)


def quick(cases: list[tuple[str, LaunchDescription]]) -> list[tuple[str, LaunchDescription]]:
    return [(kind, launch) for kind, launch in cases if launch.kernel.split("<")[0] in QUICK]


def build(cases: list[tuple[str, LaunchDescription]]) -> None:
    for mode in ("plain", *dict.fromkeys(MODES.values())):
        emulator.prebuild([(source(kind), launch.kernel) for kind, launch in cases], mode=mode)


@pytest.fixture(scope="module")
def some_built() -> None:
    build(quick(CASES))


@pytest.fixture(scope="module")
def all_built() -> None:
    build(CASES)


def run(kind: str, launch: LaunchDescription, **order: object) -> Outcome:
    search = searching(kind) if kind in SEARCHES else contextlib.nullcontext()
    with emulator.settings(**order), search:  # type: ignore[arg-type]
        return of_launch(source(kind), launch).run()


def found(kind: str, launch: LaunchDescription, **order: object) -> tuple[str, str]:
    """The kind of fault that a run shows, and the message."""
    try:
        outcome = run(kind, launch, **order)
    except EmulatorError as error:
        return error.fault, str(error)
    return outcome.problems[0] if outcome.problems else ("", "")


def require_found(kind: str, launch: LaunchDescription, seeds: range) -> None:
    orders = [{"order": "forward"}, {"order": "reverse"}]
    orders += [{"order": "random", "copies": "random", "seed": seed} for seed in seeds]  # type: ignore[dict-item]
    if kind == "schedules":
        first = run(kind, launch)
        differing = sum(not same(first, run(kind, launch, **order)) for order in orders)
        assert differing > len(seeds) / 2
        return
    for order in orders:
        fault, message = found(kind, launch, **order)
        assert fault == kind, f"{order}: {message or 'nothing found'}"
        assert any(place in message for place in places(kind, launch.kernel)), message
        assert "\n" not in message


def same(one: Outcome, other: Outcome) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one.results, other.results, strict=True))


def require_silence(kind: str, launch: LaunchDescription, seeds: range) -> None:
    verdicts = list(sanitize(launch.kernel, [of_launch(source(kind), launch)], DETECTORS, seeds))
    assert [verdict.detector for verdict in verdicts] == list(DETECTORS)
    assert [verdict.findings for verdict in verdicts] == [()] * len(DETECTORS)
    assert all(verdict.passed and verdict.runs >= 2 for verdict in verdicts)


def test_there_are_enough_of_them() -> None:
    names = {kind: {launch.kernel.split("<")[0] for of, launch in FAULTS if of == kind} for kind in KINDS}
    assert {kind: len(of) >= LEAST[kind] for kind, of in names.items()} == dict.fromkeys(KINDS, True)
    assert sum(len(of) for of in names.values()) >= 24
    for kind in KINDS:
        assert names[kind] <= {launch.kernel.split("<")[0] for of, launch in TWINS if of == kind}


@pytest.mark.usefixtures("some_built")
@pytest.mark.parametrize(("kind", "launch"), quick(FAULTS), ids=name_of)
def test_fault_is_found(kind: str, launch: LaunchDescription) -> None:
    require_found(kind, launch, SEEDS[:4])


@pytest.mark.usefixtures("some_built")
@pytest.mark.parametrize(("kind", "launch"), quick(TWINS), ids=name_of)
def test_twin_is_silent(kind: str, launch: LaunchDescription) -> None:
    require_silence(kind, launch, SEEDS[:4])


@pytest.mark.slow
@pytest.mark.usefixtures("all_built")
@pytest.mark.parametrize(("kind", "launch"), FAULTS, ids=name_of)
def test_every_fault_is_found_under_every_seed(kind: str, launch: LaunchDescription) -> None:
    require_found(kind, launch, SEEDS)


@pytest.mark.slow
@pytest.mark.usefixtures("all_built")
@pytest.mark.parametrize(("kind", "launch"), TWINS, ids=name_of)
def test_every_twin_is_silent(kind: str, launch: LaunchDescription) -> None:
    require_silence(kind, launch, SEEDS)
