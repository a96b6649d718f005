"""Measured winners, and the same network over the vendor's products."""

import json

import numpy as np
import pytest

import handgrad as hg
from handgrad import emulator
from handgrad.arrays import Device, to_device, to_numpy
from handgrad.network import MLP
from handgrad.ops import Workspace
from handgrad.ops.optimizer import SGD
from handgrad.plans import cublas, paths, tuning
from handgrad.plans.problems import problem_of

STEP_PATHS = [name for name in paths.STEP_ORDER if name in paths.MODULES]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A file of its own to remember in; what is built for the emulator stays where it is."""
    monkeypatch.setattr(tuning, "file", lambda: tmp_path / "deeper" / "plans.json")
    return tmp_path / "deeper" / "plans.json"


def measured(net, times):
    """Tune with times that are made up, each step run once."""
    left = iter(times)

    def measure(step, xp):
        step()
        return next(left)

    return tuning.measure_candidates(net, 45, None, "Testcard", measure)


def network(**settings):
    return MLP([20, 12, 3], loss="cross_entropy", device="emulator", seed=3, **settings)


def test_every_candidate_is_measured_and_the_fastest_remembered(cache):
    net = network()
    before = to_numpy(net.flat_parameters.flat).copy()
    times = [3.0 + number for number in range(len(STEP_PATHS))]
    times[-1] = 1.5
    found = measured(net, times)
    assert found.winner == STEP_PATHS[-1]
    assert found.seconds == dict(zip(STEP_PATHS, times, strict=True))
    assert "1500000.0 µs" in str(found)
    np.testing.assert_array_equal(to_numpy(net.flat_parameters.flat), before)
    (rows,) = json.loads(cache.read_text()).values()
    ((key, row),) = rows.items()
    assert key == "45x20x12x3 relu identity cross_entropy bias float32 float32 float32 Momentum"
    assert row == {"winner": found.winner, "seconds": found.seconds}
    measured(network(bias=False), times)
    assert len(json.loads(cache.read_text())["Testcard"]) == 2, "beside the first"


def test_the_winner_holds_for_its_device_shape_and_types_alone(cache, monkeypatch):
    net = network()
    measured(net, [2.0] * (len(STEP_PATHS) - 1) + [1.0])
    problem = problem_of(net, 45, rule="Momentum")
    assert tuning.winner(net, problem) is None, "the emulator is no GPU"
    monkeypatch.setattr(tuning, "device_name", lambda net: "Testcard")
    gpu = type("Net", (), {"device": Device("cuda"), "matmul": "auto"})()
    assert tuning.winner(gpu, problem) == STEP_PATHS[-1]
    assert tuning.winner(gpu, problem_of(net, 46, rule="Momentum")) is None
    assert tuning.winner(gpu, problem_of(net, 45, rule="Sgd")) is None
    monkeypatch.setattr(tuning, "device_name", lambda net: "Othercard")
    assert tuning.winner(gpu, problem) is None
    cache.write_text("{broken")
    assert tuning.winner(gpu, problem) is None


def test_cublas_wins_only_where_it_may(cache, monkeypatch):
    net = network()
    problem = problem_of(net, 45, rule="Momentum")
    tuning._remember(tuning.Tuned("Testcard", "cublas", {"cublas": 1.0}), problem)
    monkeypatch.setattr(tuning, "device_name", lambda net: "Testcard")
    for matmul, expected in (("auto", "cublas"), ("kernels", None)):
        gpu = type("Net", (), {"device": Device("cuda"), "matmul": matmul})()
        assert tuning.winner(gpu, problem) == expected


def test_a_folder_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tuning, "file", lambda: tmp_path / "file" / "plans.json")
    assert measured(network(), [1.0] * len(STEP_PATHS)).winner == STEP_PATHS[0]


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
