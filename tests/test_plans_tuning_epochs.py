"""Measured winners of whole epochs, R2 against steps, and of training from uint8; the clock is a stand-in."""

import json
import re

import numpy as np
import pytest
from small_networks import needs_compiler

import handgrad as hg
from handgrad import emulator
from handgrad.arrays import Device, to_device, to_numpy
from handgrad.emulator.launch import launch_through
from handgrad.network import MLP
from handgrad.ops.optimizer import SGD
from handgrad.plans import remembered, tuning, winners
from handgrad.plans.choice import choose, lay_out, tilings_of
from handgrad.plans.problems import problem_of
from handgrad.plans.winners import Candidate

pytestmark = needs_compiler

SIZES = (20, 12, 3)
N, SAMPLES = 45, 100  # three batches, the last of ten
OF_STEPS = {"R1": 3.0, "R3": 9.0, "R4": 2.0}  # made up, a step
GATHERS = 2


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A file of its own to remember in."""
    monkeypatch.setattr(remembered, "file", lambda: tmp_path / "plans.json")
    return tmp_path / "plans.json"


@pytest.fixture
def testcard(monkeypatch):
    """The emulator under the name of a measured card: what is remembered for it is looked up."""
    right = winners.winner

    def winner(net, problem, epoch=False):
        gpu = type("Net", (), {"device": Device("cuda"), "matmul": net.matmul})()
        return right(gpu, problem, epoch)

    monkeypatch.setattr(winners, "device_name", lambda net: "Testcard")
    monkeypatch.setattr(winners, "winner", winner)


def network(sizes=SIZES, **settings):
    return MLP(list(sizes), loss="cross_entropy", device="emulator", seed=3, **settings)


def problem_like(inputs=None, sizes=SIZES, rule="Momentum"):
    return problem_of(network(sizes), N, rule=rule, inputs=inputs)


def launched_by(run):
    """The launches' expressions, and what the run gives back."""
    launched = []
    with launch_through(lambda source, expression, *_: launched.append(expression)):
        found = run()
    return launched, found


def measured(times, sizes=SIZES, samples=SAMPLES, inputs=None, **settings):
    """Tune with times that are made up, by candidate; the runs that were timed, by the candidate's name."""
    net, runs, taken = network(sizes, **settings), {}, []
    steps, epochs = tuning._step, tuning._epoch

    def step(net, problem, one, *rest):
        taken.append(("step", one))
        return steps(net, problem, one, *rest)

    def epoch(net, problem, one, *rest):
        taken.append(("epoch", one))
        return epochs(net, problem, one, *rest)

    def measure(run, xp):
        kind, one = taken[-1]
        runs[kind, one.name] = launched_by(run)[0]
        return times(kind, one)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "_step", step)
        patch.setattr(tuning, "_epoch", epoch)
        found = tuning.measure_candidates(net, N, None, "Testcard", measure, samples, inputs)
    return found, runs


def of_epochs(r2, steps=9.0):
    """R4 is the fastest step; an epoch of R2 takes ``r2(cells)``, one of steps ``steps``."""

    def times(kind, one):
        if kind == "step":
            return OF_STEPS[one.path]
        return r2(one.tiling.cells) if one.path == "R2" else steps

    return times


def expressions(path, tiling=None, inputs=None, sizes=SIZES):
    return launches_of(lay_out(problem_like(inputs, sizes), path, tiling))


def launches_of(layout):
    return [one.kernel.expression for one in layout.launches]


def data(inputs="float32", D=SIZES[0], rows=SAMPLES):
    random = np.random.default_rng(0)
    X = random.integers(0, 256, (rows, D)).astype(np.uint8)
    X = X if inputs == "uint8" else (X / 255).astype(inputs)
    y = random.integers(0, 3, rows).astype(np.int32)
    return to_device(X, "emulator"), to_device(y, "emulator"), random.permutation(rows)


# ---- epochs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", ["float32", "uint8"])
def test_an_epoch_of_r2_wins_where_it_is_faster(inputs, cache, testcard):
    """With cells that are not its rule's; the step's winner is R4, and remembered beside it."""
    rule, *others = tilings_of(problem_like(inputs), "R2")
    best = others[0]
    found, runs = measured(of_epochs(lambda cells: 4.0 if cells == best.cells else 5.0), inputs=inputs)
    assert (found.winner, found.inputs) == ("R4", inputs)
    epoch = found.epoch
    assert (epoch.winner, epoch.tiling, epoch.samples) == ("R2", best.name, SAMPLES)
    steps = f"steps of R4 ({found.tiling})"
    assert list(epoch.seconds) == [steps, *(f"R2 ({one.name})" for one in (rule, *others))]
    assert (epoch.seconds[steps], epoch.seconds[f"R2 ({best.name})"]) == (9.0, 4.0)
    lines = str(found).splitlines()
    assert f"an epoch of 100 samples: the fastest is R2 ({best.name}); measured:" in lines
    assert f"   4000000.0 µs  R2 ({best.name})" in lines

    for one in (rule, *others):  # each was timed by what it is for: one launch
        assert runs["epoch", f"R2 ({one.name})"] == expressions("R2", one, inputs)
    step = expressions("R4", inputs=inputs)
    assert runs["step", f"R4 ({found.tiling})"] == step
    ran = runs["epoch", f"R4 ({found.tiling})"]
    last = launches_of(choose(problem_of(network(), SAMPLES % N, rule="Momentum", inputs=inputs)).layout)
    assert len(ran) == 2 * (len(step) + GATHERS) + len(last) + GATHERS
    assert ran[-len(last) :] == last, "by rule, none was measured"
    assert [one for one in ran if "gather" not in one][: len(step)] == step

    rows = json.loads(cache.read_text())["Testcard"]
    key = f"45x20x12x3 relu identity cross_entropy bias float32 float32 {inputs} Momentum"
    assert {name: (row["winner"], row["tiling"]) for name, row in rows.items()} == {
        key: ("R4", found.tiling),
        f"{key} epoch": ("R2", best.name),
    }
    assert rows[f"{key} epoch"]["seconds"] == epoch.seconds

    net, optimizer = network(), SGD(0.1, momentum=0.9)
    shown = hg.plan(net, N, samples=SAMPLES, optimizer=optimizer, inputs=inputs)
    reason = f"R2 with {best.name} was measured to be the fastest for whole epochs on this GPU"
    assert (shown.path, shown.reason, shown.launches_per_epoch) == ("R2", reason, 1)
    assert (shown.to_dict()["tiling"], shown.to_dict()["measured"]) == (best.name, True)
    single = hg.plan(net, N, optimizer=optimizer, inputs=inputs, epoch=False)
    assert (single.path, single.tiling) == ("R4", found.tiling), "of steps"
    X, y, order = data(inputs)
    launched, _ = launched_by(lambda: net.train_epoch(X, y, order, N, optimizer))
    assert launched == expressions("R2", best, inputs)
    assert [key[2] for key in net._planned._bound] == [best], "with these cells"
    clipped, _ = launched_by(lambda: net.train_epoch(X, y, order, N, optimizer, clip_norm=1.0))
    assert not any("epoch" in one for one in clipped), "clipping by the norm knows no R2"
    assert hg.plan(net, N, optimizer=optimizer, inputs=inputs, clip_norm=1.0).path != "R2"


@pytest.mark.parametrize("inputs", ["float32", "uint8"])
def test_an_epoch_of_r2_loses_where_it_is_slower(inputs, testcard):
    """Though the model predicts it faster; equal seconds leave the steps."""
    problem = problem_like(inputs)
    assert choose(problem, None, True).layout.path == "R2"
    found, runs = measured(of_epochs(lambda cells: 9.0), inputs=inputs)
    assert (found.epoch.winner, found.epoch.tiling) == ("steps", "")
    assert "an epoch of 100 samples: the fastest is one of steps; measured:" in str(found)
    assert winners.winner(network(), problem, epoch=True) == Candidate("steps")
    net, optimizer = network(), SGD(0.1, momentum=0.9)
    shown = hg.plan(net, N, samples=SAMPLES, optimizer=optimizer, inputs=inputs)
    assert (shown.path, shown.tiling) == ("R4", found.tiling)
    assert shown.reason.endswith(
        "was measured to be the fastest on this GPU; an epoch of R2 was measured to be slower"
    )
    X, y, order = data(inputs)
    launched, _ = launched_by(lambda: net.train_epoch(X, y, order, N, optimizer))
    assert launched == runs["epoch", f"R4 ({found.tiling})"], "as it was timed"
    asked, _ = launched_by(lambda: network(path="R2").train_epoch(X, y, order, N, SGD(0.1, momentum=0.9)))
    assert asked == expressions("R2", inputs=inputs), "path= fixes it"


def test_fit_takes_the_epochs_winner(testcard):
    others = tilings_of(problem_like(), "R2")[1:]
    X, y, _ = data()
    kept = {}
    for seconds in (4.0, 11.0):
        measured(of_epochs(lambda cells, value=seconds: value if cells == others[1].cells else 10.0))
        net = network()
        hg.fit(net, X, y, epochs=2, batch_size=N, optimizer=SGD(0.1, momentum=0.9))
        kept[seconds] = {(path, tiling) for path, _, tiling in net._planned._bound}
    assert kept[4.0] == {("R2", others[1])}
    assert {path for path, _ in kept[11.0]} == {"R4", choose(problem_like()).layout.path}, "the last is short"


def test_a_step_alone_leaves_the_epoch_as_it_was(cache, testcard):
    """Without samples nothing is said of epochs; and the epoch's winner outlives another step's."""
    found, runs = measured(of_epochs(lambda cells: 1.0), samples=None)
    assert found.epoch is None
    assert "epoch" not in str(found)
    assert {kind for kind, _ in runs} == {"step"}
    assert len(json.loads(cache.read_text())["Testcard"]) == 1
    assert hg.plan(network(), N, optimizer=SGD(0.1, momentum=0.9)).path == "R4", "measured, not predicted"
    measured(of_epochs(lambda cells: 1.0))
    measured(of_epochs(lambda cells: 99.0), samples=None)
    assert hg.plan(network(), N, optimizer=SGD(0.1, momentum=0.9)).path == "R2"


def test_other_cells_are_left_where_r2_is_far_off():
    rule, *others = tilings_of(problem_like(), "R2")
    found, _ = measured(of_epochs(lambda cells: 9.1, steps=6.0))
    assert list(found.epoch.seconds)[1:] == [f"R2 ({rule.name})"]
    near, _ = measured(of_epochs(lambda cells: 8.9, steps=6.0))
    assert len(near.epoch.seconds) == 2 + len(others)
    noise, _ = measured(of_epochs(lambda cells: 1.0 if cells == rule.cells else 0.99))
    assert noise.epoch.tiling == rule.name


def test_where_r2_cannot_the_steps_are_all_there_is(cache):
    found, runs = measured(of_epochs(lambda cells: 1.0), samples=N, precision="tf32")
    assert {kind for kind, _ in runs} == {"step"}
    assert found.epoch == tuning.TunedEpoch(
        N, "steps", "", {}, "products of tf32 are not done here, only float32"
    )
    line = (
        "an epoch of 45 samples is one of steps: R2 cannot, products of tf32 are not done here, only float32"
    )
    assert str(found).splitlines()[-1] == line
    assert len(json.loads(cache.read_text())["Testcard"]) == 1, "nothing was measured of epochs"


def test_the_winner_of_an_epoch_holds_for_its_problem_alone(testcard):
    problem = problem_like()
    rule, *others = tilings_of(problem, "R2")
    remembered.remember("Testcard", problem, {"winner": "R2", "tiling": others[0].name}, epoch=True)
    net = network()
    assert winners.winner(net, problem, epoch=True) == Candidate("R2", others[0])
    assert winners.winner(net, problem) is None, "of steps"
    for other in (problem_like("uint8"), problem_like(rule="Sgd"), problem_like(sizes=(24, 12, 3))):
        assert winners.winner(net, other, epoch=True) is None
    of_r4 = tilings_of(problem, "R4")[0].name
    for row in (
        ("R4", of_r4), ("R2", "cells 1x1"), ("R2", ""), ("R2", 3), (["R2"], rule.name), (None, rule.name),
        ("cublas", ""), ("R2", of_r4),
    ):  # fmt: skip
        remembered.remember(
            "Testcard", problem, dict(zip(("winner", "tiling"), row, strict=True)), epoch=True
        )
        assert winners.winner(net, problem, epoch=True) is None, row
    remembered.remember("Testcard", problem, {"winner": "steps"}, epoch=False)
    assert winners.winner(net, problem) is None, "steps are of an epoch"
    remembered.remember("Testcard", problem, {"winner": "steps", "steps": "cublas"}, epoch=True)
    for matmul, expected in (("auto", Candidate("steps")), ("kernels", None)):
        assert winners.winner(network(matmul=matmul), problem, epoch=True) == expected


def test_steps_that_won_an_epoch_run_though_they_are_no_paths(testcard):
    """cuBLAS's; and those by rule, where the step's own winner is not known to this version."""
    problem, optimizer = problem_like(), SGD(0.1, momentum=0.9)
    by_rule = choose(problem)
    assert choose(problem, None, True).layout.path == "R2"
    remembered.remember("Testcard", problem, {"winner": "steps", "steps": "R4"}, epoch=True)
    shown = hg.plan(network(), N, optimizer=optimizer)
    assert shown.layout == by_rule.layout
    assert shown.reason == f"{by_rule.reason}; an epoch of R2 was measured to be slower"
    net, (X, y, order) = network(), data()
    launched, _ = launched_by(lambda: net.train_epoch(X, y, order, N, optimizer))
    assert not any("epoch" in one for one in launched)
    remembered.remember("Testcard", problem, {"winner": "cublas", "tiling": ""})
    remembered.remember("Testcard", problem, {"winner": "steps", "steps": "cublas"}, epoch=True)
    found = winners.decide(network(), problem, epoch=True)
    assert (found.cublas, found.steps) == (True, True)
    reason = "cublas was measured to be the fastest on this GPU; an epoch of R2 was measured to be slower"
    assert hg.plan(network(), N, optimizer=optimizer).reason == reason
    remembered.remember("Testcard", problem, {"winner": "R2", "tiling": "cells 12x4"}, epoch=True)
    found = winners.decide(network(), problem, epoch=True)
    assert (found.choice.layout.path, found.cublas) == ("R2", False), "it was faster than cuBLAS's steps"
    assert winners.decide(network(), problem).cublas


def test_the_same_bits_by_the_cells_that_were_measured(testcard):
    """On any number of multiprocessors; other cells give others."""
    X, y, order = data()
    found = {}
    for one in tilings_of(problem_like(), "R2"):
        times = of_epochs(lambda cells, best=one.cells: 1.0 if cells == best else 2.0)
        measured(times)
        bits = set()
        for sms in (1, 132):
            with emulator.settings(sms=sms):
                net = network()
                net.train_epoch(X, y, order, N, SGD(0.1, momentum=0.9))
            bits.add(to_numpy(net.flat_parameters.flat).tobytes())
        (found[one.name],) = bits
    assert len(set(found.values())) == len(found) > 1


# ---- uint8 -----------------------------------------------------------------------------------------------


def test_steps_of_uint8_have_a_winner_of_their_own(cache, testcard):
    """Which training from uint8 takes, and training from floats does not."""
    rule, *others = tilings_of(problem_like("uint8"), "R4")

    def times(kind, one):
        return 1.0 if one == Candidate("R4", others[0]) else 1.2 if one.path == "R4" else 9.0

    found, runs = measured(times, inputs="uint8", samples=None)
    assert (found.winner, found.tiling, found.inputs) == ("R4", others[0].name, "uint8")
    assert str(found).splitlines()[0].endswith("is the fastest on Testcard; measured, a step of uint8:")
    assert runs["step", f"R4 ({others[0].name})"] == expressions("R4", others[0], "uint8")
    assert any("unsigned char" in one for one in runs["step", f"R4 ({rule.name})"])
    (key,) = json.loads(cache.read_text())["Testcard"]
    assert key == "45x20x12x3 relu identity cross_entropy bias float32 float32 uint8 Momentum"
    optimizer = SGD(0.1, momentum=0.9)
    assert hg.plan(network(), N, optimizer=optimizer, inputs="uint8").tiling == others[0].name
    assert hg.plan(network(), N, optimizer=optimizer).to_dict()["measured"] is False
    for inputs, expected in (("uint8", {others[0]}), ("float32", set())):
        net = network()
        X, y, order = data(inputs, rows=90)
        net.train_epoch(X, y, order, N, SGD(0.1, momentum=0.9), scale=1 / 255 if inputs == "uint8" else 1.0)
        assert {tiling for path, _, tiling in net._planned._bound if path == "R4"} == expected


def test_uint8_rows_that_are_no_whole_words_are_timed_and_run_as_floats(testcard):
    """They are scaled as they are gathered; where R2 is slower than that, there is none of floats either."""
    sizes = (21, 12, 3)
    found, runs = measured(of_epochs(lambda cells: 10.0), sizes=sizes, inputs="uint8")
    assert found.epoch.winner == "steps"
    ran = runs["epoch", f"R4 ({found.tiling})"]
    first = choose(problem_like(sizes=sizes)).layout.path
    steps = [one for one in ran if "gather" not in one]
    assert steps[: len(steps) // 3] == expressions(first, sizes=sizes), "floats by rule, none was measured"
    net = network(sizes)
    X, y, order = data("uint8", 21)
    launched, _ = launched_by(lambda: net.train_epoch(X, y, order, N, SGD(0.1, momentum=0.9), scale=1 / 255))
    assert launched == ran


# ---- arguments -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ({"samples": 44}, "samples: expected 45 or more, a batch, got 44"),
        ({"samples": 0}, "samples: expected a whole number, 1 or more, got 0"),
        ({"samples": 1.5}, "samples: expected a whole number, 1 or more, got 1.5"),
        ({"inputs": "int8"}, "inputs: expected float32 or uint8, got 'int8'"),
        ({"inputs": "float64"}, "inputs: expected float32 or uint8, got 'float64'"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(words, line, cache):
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        measured(of_epochs(lambda cells: 1.0), **words)
    assert not cache.exists()


def test_a_batch_of_none_and_a_precision_that_there_is_not_are_told_in_one_line():
    with pytest.raises(ValueError, match=r"^batch_size: expected a whole number, 1 or more, got 0$"):
        tuning.measure_candidates(network(), 0, None, "Testcard", lambda run, xp: 1.0)
    with (
        emulator.settings(arch="sm_75"),
        pytest.raises(ValueError, match=r"^tune: precision tf32: sm_75 multiplies neither tf32 nor bfloat16"),
    ):
        tuning.measure_candidates(network(precision="tf32"), N, None, "Testcard", lambda run, xp: 1.0)
