"""Plans: training does what they say, and captured launches do the same."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
from captured_launches import Streams
from planned import LAUNCHES, PATHS, STEP_PATHS, data, network, on_emulator
from small_networks import needs_compiler

import handgrad as hg
from handgrad import emulator
from handgrad.arrays import to_numpy
from handgrad.emulator.launch import launch_through
from handgrad.network import MLP
from handgrad.ops import Workspace
from handgrad.ops.optimizer import SGD, Adam
from handgrad.ops.two_layer import Problem, StepArrays
from handgrad.plans import choice as choice_module
from handgrad.plans import plan, training
from handgrad.plans.choice import choose, refusal_of
from handgrad.plans.graph import MOST_GRAPHS, CapturedLaunches

pytestmark = needs_compiler


@pytest.fixture(autouse=True)
def unsaid(monkeypatch):
    monkeypatch.setattr(training, "_said", set())


def expressions(run):
    """The kernels that ``run`` launches, without running them."""
    found = []
    with launch_through(lambda source, expression, *_: found.append(expression)):
        run()
    return found


@pytest.mark.parametrize("path", STEP_PATHS)
@pytest.mark.parametrize("make", [lambda: SGD(0.1), lambda: Adam()], ids=["sgd", "adam"])
def test_a_step_launches_what_its_plan_lists(path, make):
    net, optimizer = network(path), make()
    X, y = on_emulator(*data())
    launched = expressions(lambda: net.train_step(X, y, optimizer))
    shown = plan(net, 45, optimizer=optimizer, path=path)
    assert launched == [one.kernel.expression for one in shown.kernels]
    assert len(launched) == shown.launches_per_step == LAUNCHES[path]
    clipped = expressions(lambda: net.train_step(X, y, optimizer, clip_norm=1.0))
    assert len(clipped) == plan(net, 45, optimizer=optimizer, clip_norm=1.0).launches_per_step


@pytest.mark.parametrize("path", PATHS)
def test_an_epoch_launches_what_its_plan_says(path):
    net, optimizer = network(path), SGD(0.1, momentum=0.9)
    X, y = data(100)
    X, y = on_emulator(X, y.astype(np.int32))
    order = np.random.default_rng(0).permutation(100)
    launched = expressions(lambda: net.train_epoch(X, y, order, 45, optimizer))
    shown = plan(net, 45, samples=100, optimizer=optimizer)
    assert shown.path == path
    assert len(launched) == shown.launches_per_epoch


@pytest.mark.parametrize("path", PATHS)
def test_the_workspace_is_as_large_as_the_plan_says_and_nothing_is_allocated_later(path, monkeypatch):
    net, optimizer = network(path), Adam(0.01)
    X, y = data(135)
    X, y = on_emulator(X, y.astype(np.int32))
    order = np.random.default_rng(0).permutation(135)
    net.train_epoch(X, y, order, 45, optimizer)
    (bound,) = net._planned._bound.values()
    gathered = 0 if path == "R2" else 45 * (20 + 1) * 4
    assert (
        bound.workspace.nbytes == plan(net, 45, samples=135, optimizer=optimizer).workspace_bytes + gathered
    )
    allocated = []
    allocate = emulator.array._allocate
    monkeypatch.setattr(
        emulator.array, "_allocate", lambda shape, dtype: allocated.append(shape) or allocate(shape, dtype)
    )
    net.train_epoch(X, y, order, 45, optimizer)
    assert allocated == [(3,), (135,)], "the losses that are given back and the order that came from the host"


@pytest.mark.parametrize("path", PATHS)
def test_the_bits_do_not_depend_on_the_multiprocessors(path):
    X, y = on_emulator(*data(135))
    order = np.random.default_rng(0).permutation(135)
    found = set()
    for sms in (1, 4, 7, 132):
        with emulator.settings(sms=sms):
            net, optimizer = network(path), Adam(0.01)
            losses = net.train_epoch(X, y, order, 60, optimizer)
            found.add((to_numpy(losses).tobytes(), to_numpy(net.flat_parameters.flat).tobytes()))
    assert len(found) == 1


@pytest.mark.parametrize("path", PATHS)
def test_fit_trains_on_the_embedded_digits(path):
    """96 digits, three epochs, from uint8: the same losses as the CPU to rounding, and falling."""
    from handgrad import datasets

    digits = datasets.load("mnist-subset").train
    X, y = digits.X[:96], digits.y[:96]
    histories = {}
    for device in ("emulator", "cpu"):
        net = MLP([784, 16, 10], loss="cross_entropy", device=device, path=path, seed=0)
        sliced = digits.__class__(**{**vars(digits), "X": X, "y": y})
        history = hg.fit(net, sliced, optimizer=Adam(0.01), batch_size=40, epochs=3)
        histories[device] = [row["train_loss"] for row in history.rows]
        if device == "emulator":
            used = {key[0] for key in net._planned._bound}
            assert used == {path}
    np.testing.assert_allclose(histories["emulator"], histories["cpu"], rtol=1e-4)
    assert histories["emulator"][-1] < 0.8 * histories["emulator"][0]


@pytest.mark.parametrize("path", STEP_PATHS)
def test_uint8_stays_uint8_into_the_kernels(path):
    """The same steps as from floats made beforehand, without a float copy of the batch."""
    random = np.random.default_rng(2)
    images = random.integers(0, 256, (90, 20)).astype(np.uint8)
    y = random.integers(0, 3, 90).astype(np.int32)
    order = random.permutation(90)
    nets = [network(path), network(path)]
    X, floats = on_emulator(images, (images * np.float32(1 / 255) - np.float32(0.5)).astype(np.float32))
    (labels,) = on_emulator(y)
    stored = nets[0].train_epoch(X, labels, order, 45, Adam(0.01), scale=1 / 255, shift=-0.5)
    scaled = nets[1].train_epoch(floats, labels, order, 45, Adam(0.01))
    np.testing.assert_allclose(to_numpy(stored), to_numpy(scaled), rtol=1e-5)
    parameters = [to_numpy(net.flat_parameters.flat) for net in nets]
    np.testing.assert_allclose(*parameters, rtol=0, atol=1e-6)
    (bound,) = nets[0]._planned._bound.values()
    assert bound.layout.path == path
    takes_pixels = not refusal_of(dataclasses.replace(bound.layout.problem, inputs="uint8"), path)
    assert (bound.layout.problem.inputs == "uint8") == takes_pixels


def test_an_empty_batch_and_intermediates_take_the_layer_functions():
    net = network()
    X, y = on_emulator(*data())
    loss, gradients = net.loss_and_grad(X[:0], y[:0])
    assert np.isnan(float(loss))
    assert not to_numpy(gradients.flat).any()
    _, kept = net.loss_and_grad(X, y, intermediates=True)
    _, fused = net.loss_and_grad(X, y)
    for name in fused:
        np.testing.assert_allclose(to_numpy(kept[name]), to_numpy(fused[name]), rtol=0, atol=1e-6)


# ---- captured launches -----------------------------------------------------------------------------------


def test_captured_steps_give_the_bits_of_steps_that_are_not(monkeypatch):
    """Replayed launches go on counting steps, and read the learning rate that is set between them."""
    X, y = data(135)
    X, y = on_emulator(X, y.astype(np.int32))  # other labels would be converted, to another place each time
    order = np.random.default_rng(0).permutation(135)
    found = []
    for captured in (False, True):
        streams = Streams()
        if captured:
            through = functools.partial(CapturedLaunches, streams)
            monkeypatch.setattr(training, "CapturedLaunches", lambda _, through=through: through())
        net, optimizer = network("R1"), Adam(0.01)
        losses = [to_numpy(net.train_epoch(X, y, order, 45, optimizer))]
        optimizer.lr = 0.003
        losses.append(to_numpy(net.train_epoch(X, y, order, 45, optimizer)))
        for start in (0, 45) * 3:  # two batches in turn, each with a graph of its own
            losses.append(to_numpy(net.train_step(X[start : start + 45], y[start : start + 45], optimizer)))
        assert optimizer.step == 12
        together = np.concatenate([one.reshape(-1) for one in losses])
        found.append((together.tobytes(), to_numpy(net.flat_parameters.flat).tobytes()))
        if captured:
            replayed = ["2 replayed on the current stream"] * 5
            assert streams.log[:6] == ["graph stream captures", *replayed], "at the second of six steps"
            assert len(streams.log) == 6 + 2 * 3, "captured and replayed twice each"
    assert found[0] == found[1]


def test_a_graph_belongs_to_every_array_and_scalar_of_its_step():
    parameters = network().flat_parameters
    X, y, loss, gradient = (
        emulator.zeros((4, 20)),
        emulator.zeros(4),
        emulator.zeros(1),
        parameters.like().flat,
    )
    optimizer = Adam()
    arrays = StepArrays(X, y, 1.0, 0.0, parameters, gradient, optimizer, loss, Workspace())
    changes = {
        "X": X.copy(), "y": y.copy(), "scale": 0.5, "shift": 1.0, "parameters": network().flat_parameters,
        "gradient": gradient.copy(), "optimizer": Adam(), "loss": loss.copy(),
    }  # fmt: skip
    keys = {training.captured_key(arrays)}
    for name, value in changes.items():
        rule = value if name == "optimizer" else Adam() if name == "parameters" else optimizer
        changed = dataclasses.replace(arrays, **{"optimizer": rule, name: value})
        keys.add(training.captured_key(changed))
        assert training.captured_key(changed) == training.captured_key(changed)
    assert len(keys) == 1 + len(changes)


def test_other_arrays_are_other_graphs():
    streams, ran = Streams(), []
    captured = CapturedLaunches(streams)
    for key in ("a", "b", "a", "b", "a"):
        captured.run(key, lambda: ran.append(1))
    assert [line for line in streams.log if "captures" in line] == ["graph stream captures"] * 2
    assert len(ran) == 4, "each key runs as it is once, and once more while it is captured"
    for number in range(MOST_GRAPHS + 3):
        captured.run(number, lambda: None)
    assert len(captured._graphs) == MOST_GRAPHS


def test_a_driver_that_cannot_capture_is_told_once(capsys):
    ran = []
    captured = CapturedLaunches(Streams(fails=True))
    for _ in range(4):
        captured.run("a", lambda: ran.append(1))
    assert captured.can_capture is False
    assert len(ran) == 5, "the capture that failed ran nothing on the device"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("handgrad: launches are not captured in a CUDA graph (cudaErrorStreamCapture")


def test_the_choice_is_remembered():
    problem = Problem(45, 20, 12, 3)
    assert choose(problem) is choose(problem)
    assert choice_module.lay_out(problem, "R1") is choice_module.lay_out(problem, "R1")
