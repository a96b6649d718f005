"""What ``handgrad bench`` times of other libraries: the same step, and the same numbers."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from handgrad.benchmark import reference, runners
from handgrad.benchmark.process import Failed, SessionHere, SessionProcess, ask
from handgrad.benchmark.runners import PEERS, Unavailable, make
from handgrad.benchmark.workloads import LEARNING_RATE, Problem, Workload
from handgrad.throughput import Shape, make_problem

STEPS = (Workload(Shape(40, 20, 8, 1)), Workload(Shape(40, 20, 8, 3)))
QUICK = [peer.key for peer in PEERS if peer.key != "torch-compiled"]
ALL = [*QUICK, pytest.param("torch-compiled", marks=pytest.mark.slow)]


def runner_of(key: str) -> runners.Runner:
    """The peer's runner in this process; skipped where the library is not installed."""
    for module in next(peer for peer in PEERS if peer.key == key).modules:
        pytest.importorskip(module)
    return make(key, "cpu", 1, True)


def parameters_after(problem: Problem, batches: list[np.ndarray]) -> float:
    """The loss of the last batch of plain SGD from the problem's parameters, in float64."""
    parameters = {name: value.astype(np.float64) for name, value in problem.parameters.items()}
    loss = np.nan
    for rows in batches:
        part = replace(problem, X=problem.X[rows], y=problem.y[rows], parameters=parameters)
        loss, gradients = reference.loss_and_grad(part)
        parameters = {name: parameters[name] - LEARNING_RATE * gradients[name] for name in parameters}
    return loss


@pytest.mark.parametrize("key", ALL)
@pytest.mark.parametrize("workload", STEPS, ids=str)
def test_gradients_and_steps_are_those_of_float64(key, workload):
    runner = runner_of(key)
    problem = Problem.make(workload, seed=1)
    runner.prepare(problem)
    name, error = reference.disagreement(runner.loss_and_grad(), reference.loss_and_grad(problem))
    assert 0 < error < 1e-5, name
    runner.run(3)
    everything = np.arange(40)
    assert runner.loss() == pytest.approx(parameters_after(problem, [everything] * 3), rel=1e-5)


@pytest.mark.parametrize("key", ["handgrad", "torch-eager", "jax"])
@pytest.mark.parametrize("workload", STEPS, ids=str)
def test_an_epoch_visits_the_batches_in_the_given_order(key, workload):
    runner = runner_of(key)
    problem = Problem.make(replace(workload, rows=120), seed=1)
    runner.prepare(problem)
    runner.run(2)
    batches = list(problem.order.reshape(3, 40)) * 2
    assert runner.loss() == pytest.approx(parameters_after(problem, batches), rel=1e-5)


def test_an_epoch_of_scikit_learn_has_all_batches():
    """It shuffles by itself, so that the loss is near that of our order and not the same."""
    runner = runner_of("sklearn")
    problem = Problem.make(replace(STEPS[1], rows=120), seed=1)
    runner.prepare(problem)
    name, error = reference.disagreement(runner.loss_and_grad(), reference.loss_and_grad(problem))
    assert error < 1e-5, name
    runner.run(2)
    assert runner.estimator.t_ == 120 * 3  # samples seen: two epochs, and the one that made the parameters
    assert runner.loss() == pytest.approx(
        parameters_after(problem, list(problem.order.reshape(3, 40))), rel=0.1
    )


@pytest.mark.parametrize("key", QUICK)
def test_the_square_product_is_a_product(key):
    multiply = runner_of(key).product(48)
    result = multiply()
    if result is not None:
        a = np.random.default_rng(0).random((48, 48), dtype=np.float32)
        np.testing.assert_allclose(np.asarray(result), a @ a, rtol=1e-5)


def test_the_reference_against_central_differences():
    for workload in STEPS:
        problem = Problem.make(workload, seed=2)
        problem = replace(problem, parameters={k: v.astype(float) for k, v in problem.parameters.items()})
        loss, gradients = reference.loss_and_grad(problem)
        for name, gradient in gradients.items():
            direction = np.random.default_rng(3).standard_normal(gradient.shape)
            sides = []
            for step in (1e-6, -1e-6):
                moved = {**problem.parameters, name: problem.parameters[name] + step * direction}
                sides.append(reference.loss_and_grad(replace(problem, parameters=moved))[0])
            slope = (sides[0] - sides[1]) / 2e-6
            assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-6), name
        assert np.isfinite(loss)


def test_rows_near_a_kink_are_replaced():
    """Else float32 and float64 may take different sides, and a right gradient looks wrong."""
    workload = Workload(Shape(3000, 78, 256, 10))
    problem = Problem.make(workload)
    Z1 = problem.X.astype(np.float64) @ problem.parameters["W1"].astype(np.float64)
    assert np.abs(Z1).min() >= 2e-5
    drawn, _ = make_problem(workload.shape)
    replaced = (drawn != problem.X).any(axis=1)
    assert 0 < replaced.sum() < 100
    assert np.abs(drawn[replaced].astype(np.float64) @ problem.parameters["W1"]).min(axis=1).max() < 2e-5


def test_the_largest_disagreement_is_found():
    wanted = reference.loss_and_grad(Problem.make(STEPS[0]))
    wrong = {**wanted[1], "b1": wanted[1]["b1"] * 1.001}
    assert reference.disagreement((wanted[0], wrong), wanted) == ("b1", pytest.approx(1e-3))
    wrong["W2"] = wanted[1]["W2"] * np.nan
    assert reference.disagreement((wanted[0], wrong), wanted)[0] == "W2"
    wrong["W2"] = wanted[1]["W2"].T
    name, error = reference.disagreement((wanted[0], wrong), wanted)
    assert (name, np.isnan(error)) == ("W2", True)


def test_no_gpu_for_a_peer_is_told():
    for key in ("torch-eager", "jax"):
        session = SessionHere(key, "cuda:0", 1, True, 0, None)
        try:
            runner_of(key)
        finally:
            session.close()
        with pytest.raises(Unavailable, match=r"finds no (GPU|cuda:0)"):
            session.receive()


def test_a_process_answers_and_its_death_is_told():
    session = SessionProcess("handgrad", "cpu", 1, True, 5, None)
    try:
        assert session.receive() is None
        assert ask(session, "prepare", workload=STEPS[0]) == Problem.make(STEPS[0], 5).digest()
        found, wanted = ask(session, "loss_and_grad"), reference.loss_and_grad(Problem.make(STEPS[0], 5))
        assert reference.disagreement(found, wanted)[1] < 1e-5
        with pytest.raises(Failed, match="TypeError"):
            ask(session, "prepare")
        assert "handgrad" in ask(session, "describe")["versions"]
        os.kill(session._process.pid, signal.SIGKILL)
        with pytest.raises(Failed, match="died with signal SIGKILL"):
            ask(session, "loss")
    finally:
        session.close()


def test_a_process_that_hangs_is_ended(monkeypatch):
    session = SessionProcess("handgrad", "cpu", 1, True, 0, None)
    try:
        session.receive()
        os.kill(session._process.pid, signal.SIGSTOP)
        monkeypatch.setattr("handgrad.benchmark.process.SILENCE", 0.2)
        with pytest.raises(Failed, match=r"no answer within .* the process was ended"):
            ask(session, "describe")
        assert session._process.wait(10) == -signal.SIGKILL
    finally:
        session.close()


def test_one_thread_means_one_core_and_one_blas_thread():
    session = SessionProcess("handgrad", "cpu", 1, True, 0, None)
    try:
        session.receive()
        assert {library["num_threads"] for library in ask(session, "describe")["blas"]} == {1}
        if hasattr(os, "sched_getaffinity"):
            assert len(os.sched_getaffinity(session._process.pid)) == 1
    finally:
        session.close()
