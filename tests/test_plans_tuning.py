"""Measured winners, and the same network over the vendor's products."""

import json

import numpy as np
import pytest

import handgrad as hg
from handgrad import emulator
from handgrad.arrays import Device, to_device, to_numpy
from handgrad.emulator.launch import launch_through
from handgrad.gpus import GPUS
from handgrad.network import MLP
from handgrad.ops import Workspace
from handgrad.ops.optimizer import SGD
from handgrad.ops.two_layer import Problem
from handgrad.plans import cublas, model, paths, remembered, tuning, winners
from handgrad.plans.choice import lay_out, tilings_of
from handgrad.plans.problems import problem_of

STEP_PATHS = paths.STEP_ORDER
SIZES = (20, 12, 3)
WIDE = (68, 500, 3)  # of a batch of 1200: R3 cannot; R4 has a choice in each of its parts


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A file of its own to remember in; what is built for the emulator stays where it is."""
    monkeypatch.setattr(remembered, "file", lambda: tmp_path / "deeper" / "plans.json")
    return tmp_path / "deeper" / "plans.json"


def network(sizes=SIZES, **settings):
    return MLP(list(sizes), loss="cross_entropy", device="emulator", seed=3, **settings)


def measured(net, time_of, N=45, runs=True):
    """Tune with times that are made up, ``time_of(path, tiling)``; each step's launches are looked at."""
    taken = []
    step = tuning._step

    def noted(net, problem, one, *rest):
        taken.append(one)
        return step(net, problem, one, *rest)

    def measure(run, xp):
        launched, one = [], taken[-1]
        with launch_through(lambda source, expression, *_: launched.append(expression)):
            run()
        layout = lay_out(problem_of(net, N, rule="Momentum"), one.path, one.tiling)
        assert launched == [each.kernel.expression for each in layout.launches], "it runs what it is for"
        if runs:
            run()
        return time_of(one.path, one.tiling)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "_step", noted)
        found = tuning.measure_candidates(net, N, None, "Testcard", measure)
    assert [one.name for one in taken] == list(found.seconds), "each once"
    return found, taken


def by_path(**seconds):
    """The same for every tiling of a path."""
    return lambda path, tiling: seconds[path]


def on_testcard(net, monkeypatch, matmul="auto"):
    """``net`` as the file knows it: on a GPU of that name."""
    monkeypatch.setattr(winners, "device_name", lambda net: "Testcard")
    return type("Net", (), {"device": Device("cuda"), "matmul": matmul})()


def test_every_path_is_measured_by_its_rule_and_the_fastest_remembered(cache):
    net = network()
    before = to_numpy(net.flat_parameters.flat).copy()
    found, taken = measured(net, by_path(R1=3.0, R3=8.0, R4=1.5))
    problem = problem_of(net, 45, rule="Momentum")
    rules = [tilings_of(problem, name)[0] for name in STEP_PATHS]
    assert [(one.path, one.tiling) for one in taken[:3]] == list(zip(STEP_PATHS, rules, strict=True))
    assert {one.path for one in taken[3:]} <= {"R4"}, "the others are not near"
    assert (found.winner, found.tiling) == ("R4", rules[-1].name)
    assert found.seconds[f"R1 ({rules[0].name})"] == 3.0
    lines = str(found).splitlines()
    assert lines[0] == f"R4 ({rules[-1].name}) is the fastest on Testcard; measured, a step:"
    assert len(lines) == 1 + len(found.seconds)
    assert f"1500000.0 µs  R4 ({rules[-1].name})" in str(found)
    np.testing.assert_array_equal(to_numpy(net.flat_parameters.flat), before)
    (rows,) = json.loads(cache.read_text()).values()
    ((key, row),) = rows.items()
    assert key == "45x20x12x3 relu identity cross_entropy bias float32 float32 float32 Momentum"
    assert row == {"winner": "R4", "tiling": found.tiling, "seconds": found.seconds}
    measured(network(bias=False), by_path(R1=3.0, R3=8.0, R4=1.5))
    assert len(json.loads(cache.read_text())["Testcard"]) == 2, "beside the first"


# ---- among the tilings of a path -------------------------------------------------------------------------


def times(path, tiling):
    """R4 with 32 columns of A1 and 128 of dW1 at 512 blocks is the fastest; R1 is far off."""
    if path != "R4":
        return 9.0
    return 4.0 - (tiling.hidden.BN == 32) - (tiling.weight.BN == 128) - (tiling.blocks == 512)


def test_parts_of_a_tiling_are_tuned_one_after_another():
    net = network(WIDE)
    found, taken = measured(net, times, N=12_000, runs=False)
    offered = tilings_of(problem_of(net, 12_000, rule="Momentum"), "R4")
    values = {part: len({getattr(one, part) for one in offered}) for part in ("hidden", "weight", "blocks")}
    assert min(values.values()) >= 3
    (best,) = (one for one in taken if one.path == "R4" and one.tiling.name == found.tiling)
    assert (best.tiling.hidden.BN, best.tiling.weight.BN, best.tiling.blocks) == (32, 128, 512)
    assert found.seconds[best.name] == 1.0
    of_r4 = [one.tiling for one in taken if one.path == "R4"]
    assert len(of_r4) <= 1 + sum(count - 1 for count in values.values()) < len(offered) / 3
    parts = [of_r4[0].changes(one) for one in of_r4[1:]]
    assert parts[0] == ("hidden",)
    assert parts[-1] == ("hidden", "weight", "blocks")


def test_a_path_that_is_near_is_gone_through_and_one_that_is_not_is_left():
    net = network()
    tilings = {name: tilings_of(problem_of(net, 45, rule="Momentum"), name) for name in STEP_PATHS}
    assert all(len(tilings[name]) > 1 for name in ("R3", "R4"))
    _, taken = measured(net, by_path(R1=2.0, R3=2.9, R4=3.1), runs=False)
    counts = {name: sum(one.path == name for one in taken) for name in STEP_PATHS}
    assert counts["R3"] > 1
    assert counts["R4"] == 1


def test_noise_does_not_move_the_tiling_from_the_rules():
    """Another has to be faster by two in a hundred before tuning goes on from it."""
    problem = problem_of(network(), 45, rule="Momentum")
    rule = tilings_of(problem, "R4")[0]

    def noisy(path, tiling):
        return {"R1": 9.0, "R3": 9.0}.get(path, 1.0 if tiling == rule else 0.99)

    found, taken = measured(network(), noisy, runs=False)
    assert len([one for one in taken if one.path == "R4"]) > 1
    assert found.tiling == rule.name


def test_the_winner_is_read_again_shown_and_trained_with(monkeypatch):
    """On a stand-in for a GPU: the emulator under the name of a measured card."""
    net = network()
    problem = problem_of(net, 45, rule="Momentum")
    rule, *others = tilings_of(problem, "R4")
    found, _ = measured(net, lambda path, one: 1.0 if path == "R4" and one == others[0] else 9.0, runs=False)
    assert (found.winner, found.tiling) == ("R4", others[0].name)
    gpu = on_testcard(net, monkeypatch)
    assert winners.winner(gpu, problem) == winners.Candidate("R4", others[0])

    right = winners.winner
    monkeypatch.setattr(winners, "winner", lambda net, problem, epoch=False: right(gpu, problem, epoch))
    optimizer = SGD(0.1, momentum=0.9)
    shown = hg.plan(net, 45, optimizer=optimizer)
    assert shown.path == "R4"
    assert shown.reason == f"R4 with {others[0].name} was measured to be the fastest on this GPU"
    row = shown.to_dict()
    assert (row["tiling"], row["measured"]) == (others[0].name, True)
    assert f"  tiling     {others[0].name}\n" in str(shown)
    assert "; measured on this GPU\n" in str(shown)
    assert shown.layout == lay_out(problem, "R4", others[0]) != lay_out(problem, "R4")
    random = np.random.default_rng(0)
    X = to_device(random.normal(size=(45, 20)).astype(np.float32), "emulator")
    y = to_device(random.integers(0, 3, 45).astype(np.int32), "emulator")
    net.train_step(X, y, optimizer)
    ((path, _, tiling),) = net._planned._bound
    assert (path, tiling) == ("R4", others[0])
    by_rule = hg.plan(net, 46, optimizer=optimizer)
    assert by_rule.to_dict()["measured"] is False
    assert "; by rule\n" in str(by_rule)
    asked = network(path="R4")
    asked.train_step(X, y, SGD(0.1, momentum=0.9))
    assert next(iter(asked._planned._bound))[2] == rule, "path= fixes it"


def test_predictions_are_those_of_the_tiling():
    problem = Problem(12_000, *WIDE)
    rule, *others = tilings_of(problem, "R4")
    shown = hg.plans.Plan(winners.choice_of(problem, winners.Candidate("R4", others[-1])), 12_000)
    by_gpu = {gpu.name: model.on_gpu(problem, gpu) for gpu in GPUS}
    for tiling in (rule, others[-1]):
        expected = {name: model.predict(lay_out(on, "R4", tiling), name) for name, on in by_gpu.items()}
        assert (shown.predictions == expected) == (tiling is not rule)


def test_blocks_that_are_resident_are_those_of_the_tiling():
    """R1: two blocks of 4 x 4 elements a thread on a multiprocessor, one of 8 x 8."""
    problem = Problem(60_000, 64, 64, 3)
    layouts = {str(one.tile): lay_out(problem, "R1", one) for one in tilings_of(problem, "R1")}
    blocks = {name: model.resident_blocks(layout) for name, layout in layouts.items()}
    assert blocks == {"16/4x4/8": 2 * problem.sms, "16/8x8/8": problem.sms}


def test_files_of_older_versions_and_foreign_ones_are_read(cache, monkeypatch):
    net = network()
    problem = problem_of(net, 45, rule="Momentum")
    gpu = on_testcard(net, monkeypatch)
    rule, *others = tilings_of(problem, "R4")
    foreign = tilings_of(problem_of(net, 4500, rule="Momentum"), "R1")[-1]
    rows = {
        None: {"winner": "R4", "seconds": {"R4": 1.0}},  # of a version without tilings
        others[0].name: {"winner": "R4", "tiling": others[0].name},
    }
    for name, row in rows.items():
        remembered.remember("Testcard", problem, row)
        expected = rule if name is None else others[0]
        assert winners.winner(gpu, problem) == winners.Candidate("R4", expected)
    for path, name in (
        ("R4", "hidden 7x7x7/1x1, weight 64x32x16/4x4, blocks 256"), ("R4", foreign.name), ("R4", ""),
        ("R4", ["hidden"]), ("R4", 3), ("R1", others[0].name), ("R2", rule.name), ("R9", rule.name),
        (None, rule.name), (["R4"], rule.name),
    ):  # fmt: skip
        remembered.remember("Testcard", problem, {"winner": path, "tiling": name})
        assert winners.winner(gpu, problem) is None, (path, name)


def test_the_winner_holds_for_its_device_shape_and_types_alone(cache, monkeypatch):
    net = network()
    found, _ = measured(net, by_path(R1=2.0, R3=9.0, R4=1.0), runs=False)
    problem = problem_of(net, 45, rule="Momentum")
    assert winners.winner(net, problem) is None, "the emulator is no GPU"
    gpu = on_testcard(net, monkeypatch)
    assert winners.winner(gpu, problem).tiling.name == found.tiling
    assert winners.winner(gpu, problem_of(net, 46, rule="Momentum")) is None
    assert winners.winner(gpu, problem_of(net, 45, rule="Sgd")) is None
    monkeypatch.setattr(winners, "device_name", lambda net: "Othercard")
    assert winners.winner(gpu, problem) is None
    monkeypatch.setattr(winners, "device_name", lambda net: "Testcard")
    cache.write_text("{broken")
    assert winners.winner(gpu, problem) is None


def test_cublas_wins_only_where_it_may(monkeypatch):
    net = network()
    problem = problem_of(net, 45, rule="Momentum")
    remembered.remember("Testcard", problem, {"winner": "cublas", "tiling": "", "seconds": {"cublas": 1.0}})
    for matmul, expected in (("auto", winners.Candidate("cublas")), ("kernels", None)):
        assert winners.winner(on_testcard(net, monkeypatch, matmul), problem) == expected


def test_a_folder_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(remembered, "file", lambda: tmp_path / "file" / "plans.json")
    assert measured(network(), by_path(R1=1.0, R3=1.0, R4=1.0), runs=False)[0].winner == "R1"


def test_without_a_gpu_there_is_nothing_to_tune():
    with pytest.raises(ValueError, match="tune: expected a network on a GPU, got emulator; without one"):
        hg.tune(network(), 45)


@pytest.mark.parametrize("loss", ["mse", "bce", "cross_entropy", "hinge"])
@pytest.mark.parametrize("sizes", [(7, 5, 3), (6, 5, 4, 3)], ids=str)
@pytest.mark.parametrize("device", ["cpu", "emulator"])
def test_the_vendors_products_give_the_same_gradient(loss, sizes, device):
    """With NumPy's matmul in the place of CuPy's: the formulas, buffers and kernels around the products."""
    random = np.random.default_rng(0)
    X = random.normal(size=(11, sizes[0]))
    y = random.integers(0, 3, 11) if loss in ("cross_entropy", "hinge") else random.random((11, 3))
    for bias in (True, False):
        net = MLP(sizes, activation="tanh", loss=loss, bias=bias, dtype="float64", device=device, seed=1)
        exact = MLP(sizes, activation="tanh", loss=loss, bias=bias, dtype="float64", device="cpu", seed=1)
        expected_loss, expected = exact.loss_and_grad(X, y)
        xp = net.xp
        if device == "emulator":
            xp.matmul = np.matmul
        try:
            gradient = net.flat_parameters.like()
            for workspace in (Workspace(),) * 2:  # the second time in the same buffers
                found = cublas.loss_and_gradient(
                    net, to_device(X, device), net._targets(to_device(y, device)), gradient.flat, workspace
                )
        finally:
            if device == "emulator":
                del xp.matmul
        np.testing.assert_allclose(to_numpy(found), to_numpy(expected_loss), rtol=1e-13)
        for name, value in gradient.to_numpy().items():
            np.testing.assert_allclose(value, to_numpy(expected[name]), rtol=0, atol=1e-14, err_msg=name)


def test_cublas_trains(monkeypatch):
    """Steps and an epoch through CublasTraining follow those of the CPU."""
    random = np.random.default_rng(0)
    X, y = random.random((23, 7)), random.integers(0, 3, 23).astype(np.int32)
    nets = [
        MLP([7, 5, 3], loss="cross_entropy", dtype="float64", device=d, seed=1) for d in ("emulator", "cpu")
    ]
    monkeypatch.setattr(emulator, "matmul", np.matmul, raising=False)
    monkeypatch.setattr(nets[0], "_planned", cublas.CublasTraining(nets[0]))
    found = []
    for net in nets:
        given = [to_device(array, net.device) for array in (X, y)]
        optimizer = SGD(0.1, momentum=0.9)
        losses = [net.train_epoch(*given, np.arange(23)[::-1], 6, optimizer)]
        losses.append(net.train_step(*given, optimizer).reshape(1))
        net.loss_and_grad(*given)
        found.append((np.concatenate([to_numpy(one) for one in losses]), to_numpy(net.flat_parameters.flat)))
    for got, expected in zip(*found, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12)
