"""Throughput: shapes, statistics, turns, the check before the timing."""

from __future__ import annotations

import numpy as np
import pytest

from handgrad import throughput
from handgrad.arrays import resolve_device
from handgrad.throughput import Result, Shape, Step

SMALL = Shape(64, 20, 8, 3)


@pytest.fixture(autouse=True)
def no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "WARM_UP_SECONDS", 0.0)


def step_on(device: str, shape: Shape = SMALL) -> Step:
    return Step(shape, resolve_device(device), throughput.make_problem(shape))


def test_the_published_shapes():
    assert [str(shape) for shape in throughput.SHAPES] == [
        "50,000×784→50→1",
        "8,192×784→512→10",
        "1,024×784→256→10",
        "64×784→50→10",
    ]
    assert [shape.loss for shape in throughput.SHAPES] == ["mse", *["cross_entropy"] * 3]


def test_flops_are_those_of_the_five_products():
    """X W1, A1 W2, A1ᵀ dZ2, dZ2 W2ᵀ, Xᵀ dZ1: 2 operations a multiply-add."""
    N, D, H, C = 64, 20, 8, 3
    assert SMALL.flops == 2 * (N * D * H + N * H * C + H * N * C + N * C * H + D * N * H)


def test_shapes_from_words():
    assert throughput.parse_shape("64, 784,50,10") == Shape(64, 784, 50, 10)
    for text in ("1,2,3", "1,2,3,0", "1,2,3,x", "", "1,2,3,4,5", "-1,2,3,4", "1.5,2,3,4"):
        with pytest.raises(ValueError, match="--shape: expected N,D,H,C"):
            throughput.parse_shape(text)


def test_medians_and_quartiles():
    result = Result(SMALL, "cpu", 0.0, seconds_per_step=[0.004, 0.001, 0.002, 0.003, 0.005])
    assert result.quartiles == pytest.approx((0.002, 0.003, 0.004))
    assert result.samples_per_second == pytest.approx(64 / 0.003)
    described = result.as_dict()
    assert described["samples_per_second"]["low"] == pytest.approx(64 / 0.004)
    assert described["samples_per_second"]["high"] == pytest.approx(64 / 0.002)
    assert described["milliseconds_per_step"]["median"] == pytest.approx(3.0)
    assert described["milliseconds_per_step"]["quartiles"] == pytest.approx([2.0, 4.0])
    assert described["gflops_per_second"] == pytest.approx(SMALL.flops / 0.003 / 1e9)


@pytest.mark.parametrize("device", ["cpu", "emulator"])
@pytest.mark.parametrize("shape", [SMALL, Shape(33, 7, 5, 1)])
def test_the_step_agrees_with_float64(device, shape):
    assert 0 < step_on(device, shape).gradient_error() < 1e-5


@pytest.mark.parametrize("fault", ["scaled", "nan"])
def test_a_wrong_gradient_is_found(fault, monkeypatch):
    step = step_on("cpu")
    real = step.net.loss_and_grad

    def wrong(X, y):
        loss, gradients = real(X, y)
        gradients["b1"][...] = gradients["b1"] * (1.001 if fault == "scaled" else np.nan)
        return loss, gradients

    monkeypatch.setattr(step.net, "loss_and_grad", wrong)
    with pytest.raises(RuntimeError, match="b1 differs from float64 NumPy"):
        step.gradient_error()


def test_devices_take_turns(monkeypatch):
    order = []
    monkeypatch.setattr(Step, "seconds", lambda self, steps: order.append(self.name) or 0.01)
    steps = [step_on("cpu"), step_on("cpu")]
    for name, step in zip("ab", steps, strict=True):
        step.name = name
    results = [Result(SMALL, name, 0.0, steps_per_sample=4) for name in "ab"]
    throughput._take_turns(list(zip(steps, results, strict=True)), seconds=0.06, say=lambda words: None)
    assert order == ["a", "b"] * 6  # six samples of 0.01 s are the 0.06 s that were given
    assert results[0].seconds_per_step == pytest.approx([0.0025] * 6)


def test_five_samples_however_long_they_take(monkeypatch):
    monkeypatch.setattr(Step, "seconds", lambda self, steps: 100.0)
    result = Result(SMALL, "cpu", 0.0)
    throughput._take_turns([(step_on("cpu"), result)], seconds=1.0, say=lambda words: None)
    assert len(result.seconds_per_step) == throughput.FEWEST_ROUNDS


def test_a_sample_holds_as_many_steps_as_its_share_of_the_time(monkeypatch):
    monkeypatch.setattr(Step, "warm_up", lambda self: 0.001)
    monkeypatch.setattr(Step, "seconds", lambda self, steps: 0.001 * steps)
    (result,) = throughput.measure(["cpu"], [SMALL], seconds=0.3)
    assert result.steps_per_sample == 20  # 0.3 s / 15 rounds / 0.001 s
    assert len(result.seconds_per_step) == throughput.ROUNDS


@pytest.mark.parametrize("faster", [None, 1])
def test_the_cpu_takes_the_faster_number_of_threads(faster, monkeypatch):
    monkeypatch.setattr(throughput, "thread_variables", dict)
    monkeypatch.setattr(Step, "seconds", lambda self, steps: 0.1 if self.blas_threads == faster else 0.2)
    step = step_on("cpu")
    assert step.warm_up() == pytest.approx(0.1)
    assert step.blas_threads == faster


def test_threads_that_the_environment_sets_are_left_alone(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    monkeypatch.setattr(Step, "seconds", lambda self, steps: 0.1 if self.blas_threads == 1 else 0.2)
    step = step_on("cpu")
    step.warm_up()
    assert step.blas_threads is None
    assert throughput.thread_variables()["OPENBLAS_NUM_THREADS"] == "2"
    assert "OPENBLAS_NUM_THREADS=2 sets the CPU's threads" in throughput.blas_notes()


def test_training_steps_do_train():
    """What is timed is a step that lowers the loss."""
    step = step_on("cpu")
    before = float(step.net.loss(step.X, step.y))
    step.seconds(200)
    assert float(step.net.loss(step.X, step.y)) < before


def test_no_gpu_is_explained(no_cupy):
    devices, problem = throughput.available_devices()
    assert devices == ["cpu"]
    assert "CuPy is not installed" in problem
