"""Tilings: what each path offers, and that a step by any of them is right, as planned and always the same."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import two_layer_steps
from devices import build_ahead
from small_networks import needs_compiler
from test_plans_covering import run_case
from two_layer_steps import counted

from handgrad.ops import tilings, two_layer
from handgrad.ops.two_layer import Problem
from handgrad.plans import paths
from handgrad.plans.choice import lay_out, refusal_of, tilings_of
from handgrad.proof.trials.two_layer_tilings import SHAPES, chosen, tiling_trials

pytestmark = needs_compiler

MOST_VALUES = 6  # of a part: tuning measures each at most once

TRIALS = [
    (name, trial)
    for name in paths.STEP_ORDER
    for dtype in two_layer.PRECISIONS
    for trial in tiling_trials(f"tilings.{name}", paths.MODULES[name], name, dtype)
]
QUICK = 6  # every so many in the default run


@pytest.fixture(scope="module", autouse=True)
def built():
    build_ahead(lambda: [run_case(trial) for _, trial in TRIALS[::QUICK]])


def problems():
    """Small and large, in every precision."""
    sides = ((1, 64, 1000, 60_000), (1, 70, 784, 3000), (1, 50, 128, 512, 4000), (1, 10, 100))
    for N, D, H, C in itertools.product(*sides):
        for dtype, precisions in two_layer.PRECISIONS.items():
            for precision in precisions:
                yield Problem(N, D, H, C, dtype=dtype, precision=precision, inputs=dtype, arch="sm_90")


def offers():
    """(path, problem, its tilings)."""
    for problem in problems():
        for name in paths.NAMES:
            if not refusal_of(problem, name):
                yield name, problem, tilings_of(problem, name)


# ---- what is offered -------------------------------------------------------------------------------------


def test_few_are_offered_by_names_that_tell_them_apart_and_the_first_is_the_rules():
    most = 0
    for name, problem, offered in offers():
        module = paths.module_of(name)
        assert module.lay_out(problem) == module.lay_out(problem, offered[0])
        assert len({one.name for one in offered}) == len(set(offered)) == len(offered), (name, problem)
        for field in dataclasses.fields(offered[0]):
            assert len({getattr(one, field.name) for one in offered}) <= MOST_VALUES, (name, field.name)
        most = max(most, len(offered))
    assert most > 50, "there is something to choose"


def test_tuning_part_by_part_reaches_every_tiling():
    """The parts up to any one as a tiling has them, and the rest as the rule has them, are offered too."""
    for name, problem, offered in offers():
        parts = [dataclasses.astuple(one) for one in offered]
        for one in parts:
            for number in range(len(one)):
                assert (*one[:number], *parts[0][number:]) in parts, (name, problem, one)


def test_neither_the_multiprocessors_nor_the_optimizer_change_what_is_offered():
    for name, problem, offered in itertools.islice(offers(), 0, None, 5):
        for changes in ({"sms": 7}, {"rule": "Adam"}):
            assert tilings_of(dataclasses.replace(problem, **changes), name) == offered


def test_a_tiling_that_is_not_offered_is_refused_in_one_line():
    small, large = Problem(40, 20, 12, 3), Problem(8192, 784, 512, 10)
    other = tilings_of(large, "R4")[0]
    with pytest.raises(ValueError, match=r"path R4: hidden 128x128x8/8x16, .* is none of its tilings for"):
        paths.module_of("R4").lay_out(small, other)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((8192, 784, 512, 10), {"hidden": 6, "weight": 4, "blocks": 4}),
        ((8192, 784, 512, 100), {"hidden": 6, "weight": 3, "blocks": 4}),
        ((60_000, 3000, 2000, 10), {"hidden": 3, "weight": 4, "blocks": 1}),
        ((64, 784, 50, 10), {"hidden": 2, "weight": 2, "blocks": 1}),
    ],
)
def test_what_r4_offers(shape, expected):
    offered = tilings_of(Problem(*shape), "R4")
    assert {part: len({getattr(one, part) for one in offered}) for part in expected} == expected


def test_tiles_that_cannot_win_are_left_out():
    """Longer than the result; one round where a smaller one makes one; small where a large one makes many."""
    big, tall, small, tiny = (
        SimpleNamespace(BM=BM, BN=BN) for BM, BN in ((128, 128), (128, 64), (64, 64), (64, 32))
    )
    every = (big, tall, small, tiny)

    def kept(rows, columns, blocks, tiles=every, **more):
        return tilings.worth_trying(tiles, rows, columns, lambda one: blocks[tiles.index(one)], **more)

    assert kept(1000, 1000, (100, 200, 400, 800)) == every
    assert kept(64, 1000, (100, 200, 400, 800)) == (big, small, tiny), "the first is the rule's"
    assert kept(1000, 64, (100, 200, 400, 800), (small, big, tall, tiny)) == (small, tall, tiny)
    assert kept(1000, 1000, (20, 40, 58, 59)) == (big, small, tiny)
    assert kept(9000, 9000, (1056, 2112, 4224, 8448)) == (big, tall)
    assert kept(9000, 9000, (1055, 1056, 4220, 8440)) == (big, tall, small)
    assert kept(9000, 9000, (99, 200, 400, 800), enough=99) == (big, tall)


# ---- a step by any of them -------------------------------------------------------------------------------


def test_the_array_covers_every_tile():
    """What a path offers for its shapes is in some trial, but for the rule's own tilings."""
    for name in paths.STEP_ORDER:
        texts = [str(trial) for path, trial in TRIALS if path == name]
        part = {"R1": "tile", "R3": "forward", "R4": "hidden"}[name]
        for shape in SHAPES[name]:
            problem = Problem(*shape, arch="sm_90")
            if refusal_of(problem, name):
                continue
            for one in tilings_of(problem, name)[1:]:
                assert any(f"{part} {getattr(one, part)}" in text for text in texts), (name, one.name)


@pytest.mark.parametrize(
    "trial",
    [
        pytest.param(trial, id=str(trial), marks=() if number % QUICK == 0 else pytest.mark.slow)
        for number, (_, trial) in enumerate(TRIALS)
    ],
)
def test_against_the_reference(trial):
    assert run_case(trial) == []


STEPS = {
    "R1": (Problem(1104, 64, 64, 3, loss="cross_entropy", rule="Store"), (1, 0)),
    "R1, split": (Problem(2500, 24, 16, 4, rule="Store"), (0, 1)),
    "R3": (Problem(2000, 144, 20, 2, loss="cross_entropy", rule="Store"), (1, 0, 1, 0)),
    "R4": (Problem(600, 4000, 40, 3, rule="Store"), (1, 1, 1)),
    "R4, tf32": (Problem(65, 68, 3752, 20, precision="tf32", rule="Store"), (2, 3, 0)),
}


def step(name, **changes):
    """A step by another tiling than the rule's, which is left out of the layout's memory too."""
    problem, numbers = STEPS[name]
    problem = dataclasses.replace(problem, **changes)
    path = paths.MODULES[name[:2]]
    one = two_layer_steps.Step(path, problem)
    tiling = chosen(path.tilings(problem), numbers)
    assert tiling != one.layout.tiling
    one.layout = path.lay_out(problem, tiling)
    return one


@pytest.mark.parametrize("name", STEPS)
def test_traffic_and_memory_are_what_the_layout_says(name):
    one = step(name)
    launches, found = counted(one)
    wanted = {buffer: moved for buffer, moved in one.layout.requested.items() if moved}
    wanted["partials"] = wanted.get("partials", 0) + wanted.pop("b2_partials", 0)  # as they are counted
    found["X"] = found.get("X", 0) + found.pop("x", 0)  # as the kernel calls it
    assert found == {buffer: moved for buffer, moved in wanted.items() if moved}
    assert [launch.expression for launch in launches] == [o.kernel.expression for o in one.layout.launches]
    assert one.workspace.nbytes == sum(one.layout.workspace.values())


@pytest.mark.parametrize("name", STEPS)
def test_the_bits_follow_from_the_tiling_and_not_from_the_multiprocessors(name):
    found = {step(name, sms=sms).run().bits() for sms in (1, 7)}
    assert len(found) == 1
    problem, _ = STEPS[name]
    rule = two_layer_steps.Step(paths.MODULES[name[:2]], problem).run()
    assert rule.layout.tiling != step(name).layout.tiling


@pytest.mark.parametrize("name", ["R1, split", "R3", "R4"])
def test_another_split_gives_other_bits(name):
    """So that a test of equal bits means something: the order of sums is the tiling's."""
    problem, _ = STEPS[name]
    assert two_layer_steps.Step(paths.MODULES[name[:2]], problem).run().bits() != step(name).run().bits()
    assert np.isfinite(step(name).run().loss).all()


@pytest.mark.parametrize("H", [64, 100, 128])
def test_the_splits_of_r3_make_no_more_than_one_round_of_a_large_gpu(H):
    """The tiles of dW1 by splits, and the blocks of dW2, against two on each of 132 multiprocessors."""
    launch = lay_out(Problem(50_000, 784, H, 10, loss="cross_entropy", arch="sm_90"), "R3").launches[-1]
    assert launch.name == "pair_backward"
    assert 0.9 * 264 <= launch.grid[0] <= 264
