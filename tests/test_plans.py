"""Plans: one path for every problem, what a plan shows, and that training does what it says."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json

import numpy as np
import pytest
from captured_launches import Streams
from small_networks import needs_compiler

import handgrad as hg
from handgrad import emulator, gpus
from handgrad.arrays import to_device, to_numpy
from handgrad.emulator.launch import launch_through
from handgrad.network import MLP
from handgrad.ops import Workspace
from handgrad.ops.optimizer import SGD, Adam
from handgrad.ops.two_layer import Problem, StepArrays
from handgrad.plans import choice as choice_module
from handgrad.plans import model, paths, plan, training
from handgrad.plans.choice import choose, refusal_of
from handgrad.plans.graph import MOST_GRAPHS, CapturedLaunches
from handgrad.plans.problems import nearest_architecture

pytestmark = needs_compiler


PATHS = tuple(paths.MODULES)
STEP_PATHS = tuple(name for name in paths.STEP_ORDER if name in paths.MODULES)
KEYS = {
    *("path", "launches_per_step", "launches_per_epoch", "kernels", "partitions", "workspace_bytes"),
    *("traffic", "predicted_seconds", "reason", "tiling", "measured"),
}
PLACES = 8  # boundaries that are tried, at most
LAUNCHES = {"R1": 2, "R2": 0, "R3": 2, "R4": 4}


@pytest.fixture(autouse=True)
def unsaid(monkeypatch):
    monkeypatch.setattr(training, "_said", set())


def network(path=None, sizes=(20, 12, 3), loss="cross_entropy", device="emulator", **settings):
    return MLP(list(sizes), loss=loss, device=device, path=path, seed=3, **settings)


def data(N=45, D=20, C=3, loss="cross_entropy", seed=1, dtype="float32"):
    random = np.random.default_rng(seed)
    X = random.normal(size=(N, D)).astype(dtype)
    if loss in ("cross_entropy", "hinge"):
        return X, random.integers(0, C, N)
    return X, random.random((N, C)).astype(dtype)


def on_emulator(*arrays):
    return [to_device(array, "emulator") for array in arrays]


# ---- one path for every problem --------------------------------------------------------------------------


def problems():
    sizes = itertools.product((1, 64, 50_000), (1, 50, 784, 3000), (1, 50, 128, 129, 512), (1, 10, 100))
    for N, D, H, C in sizes:
        yield Problem(N, D, H, C)
        yield Problem(N, D, H, C, dtype="float64", precision="float64", inputs="float64", arch="sm_90")
        yield Problem(N, D, H, C, inputs="uint8", arch="sm_75", sms=40)
        for precision in ("tf32", "3xtf32", "bfloat16"):
            yield Problem(N, D, H, C, precision=precision, arch="sm_89")


def test_every_problem_has_exactly_one_path():
    found = set()
    for problem in problems():
        refusals = {name: refusal_of(problem, name) for name in STEP_PATHS}
        assert not all(refusals.values()), (problem, refusals)
        chosen = choose(problem).layout
        first = next(name for name in STEP_PATHS if not refusals[name])
        assert chosen.path == first
        assert chosen.problem == problem
        found.add(chosen.path)
        for why in refusals.values():
            assert "\n" not in why
    assert found == set(STEP_PATHS)


@pytest.mark.parametrize("path", PATHS)
def test_a_refusal_is_a_function_of_the_problem_and_lay_out_agrees(path):
    module = paths.module_of(path)
    for problem in itertools.islice(problems(), 0, None, 7):
        if module.refusal(problem):
            with pytest.raises(ValueError, match=r"R[1-4]: "):
                module.lay_out(problem)
        else:
            layout = module.lay_out(problem)
            assert layout.path == path
            assert layout.problem == problem
            assert all(size > 0 for one in layout.launches for size in (*one.grid, *one.block))


def boundaries_along(side, most, epoch=False, **fixed):
    """Each largest side up to ``most`` whose successor takes another path."""

    def path_at(value):
        return choose(Problem(**({"N": 33} | fixed | {side: value})), None, epoch).layout.path

    found, low = [], 1
    while path_at(low) != path_at(most):
        high = most
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if path_at(middle) == path_at(low) else (low, middle)
        found.append(low)
        low = high
    return found


def boundaries():
    """Sizes just below and just above each boundary of the choice for a step, one after the other."""
    found = []
    for side, fixed in (
        ("D", {"H": 50, "C": 3}),
        ("H", {"D": 20, "C": 3}),
        ("H", {"D": 500, "C": 3}),
        ("C", {"D": 20, "H": 12}),
        ("D", {"H": 100, "C": 1}),
    ):
        for last in boundaries_along(side, 4000, **fixed):
            found += [{**fixed, side: last}, {**fixed, side: last + 1}]
    return found


def test_there_are_boundaries_between_the_paths():
    sides, met = boundaries(), set()
    for below, above in zip(sides[::2], sides[1::2], strict=True):
        a, b = (choose(Problem(N=33, **sizes)).layout for sizes in (below, above))
        assert STEP_PATHS.index(a.path) < STEP_PATHS.index(b.path)
        assert refusal_of(b.problem, a.path), "the one above is refused by the path below"
        met.add((a.path, b.path))
    assert {("R1", "R3"), ("R3", "R4"), ("R1", "R4")} <= met
    assert len(sides) <= 2 * PLACES


@pytest.mark.parametrize("inputs", ["float32", "uint8"])
@pytest.mark.parametrize("precision", ["float32", "tf32", "3xtf32", "bfloat16"])
def test_the_paths_of_every_precision_and_type_of_x(precision, inputs):
    """R1 as far as its registers hold dW1, then R3 as far as H = 128 and C = 64, then R4: on both sides."""
    make = functools.partial(Problem, precision=precision, inputs=inputs, arch="sm_90")
    last = {"float32": 816, "tf32": 896, "3xtf32": 896, "bfloat16": 896}[precision]  # D of R1 with H = 50
    sides = {
        "R1": [(last, 50, 10)],
        "R3": [(last + 1, 50, 10), (784, 128, 10), (784, 128, 64)],
        "R4": [(784, 129, 10), (784, 128, 65)],
    }
    for path, shapes in sides.items():
        for D, H, C in shapes:
            assert choose(make(1000, D, H, C)).layout.path == path, (D, H, C)


@pytest.mark.parametrize(
    ("side", "fixed"),
    [("N", {"D": 784, "H": 50, "C": 10}), ("C", {"D": 64, "H": 32})],
    ids=str,
)
def test_whole_epochs_change_between_r2_and_steps_where_the_plan_says_why(side, fixed):
    places = boundaries_along(side, 3000, epoch=True, **fixed)
    assert places
    for last in places:
        for value in (last, last + 1):
            problem = Problem(**({"N": 33} | fixed | {side: value}))
            chosen = choose(problem, None, True)
            refusal = refusal_of(problem, "R2")
            if chosen.layout.path == "R2":
                assert refusal == ""
                assert chosen.reason.startswith("predicted faster: ")
            else:
                assert chosen.layout == choose(problem).layout, "the choice for a step"
                assert (f"R2 cannot: {refusal}" if refusal else "R2 is predicted slower: ") in chosen.reason


@pytest.mark.parametrize(
    "number", [0, 1, *(pytest.param(number, marks=pytest.mark.slow) for number in range(2, 2 * PLACES))]
)
def test_both_sides_of_a_boundary_are_right(number):
    """The gradient just below and just above, against float64 NumPy."""
    sides = boundaries()
    if number >= len(sides):
        pytest.skip("fewer boundaries than places for them")
    sizes = sides[number]
    D, H, C = sizes["D"], sizes["H"], sizes["C"]
    loss = "mse" if C == 1 else "cross_entropy"
    X, y = data(33, D, C, loss)
    net = network(None, (D, H, C), loss)
    exact = network(None, (D, H, C), loss, "cpu", dtype="float64")
    value, gradients = net.loss_and_grad(*on_emulator(X, y))
    reference, expected = exact.loss_and_grad(X.astype(np.float64), y)
    assert abs(float(value) - float(reference)) <= 1e-5 * abs(float(reference))
    for name, gradient in expected.items():
        error = np.linalg.norm(to_numpy(gradients[name]) - gradient) / np.linalg.norm(gradient)
        assert error <= 1e-5, name


# ---- asking for what cannot be ---------------------------------------------------------------------------


def test_asking_for_a_path_that_cannot_takes_the_next_and_says_so(capsys):
    net = network("R1", (20, 300, 3))
    shown = plan(net, 45)
    assert shown.path != "R1"
    assert shown.reason.startswith("R1 was asked for, but H = 300 is above")
    X, y = on_emulator(*data())
    for _ in range(2):
        net.loss_and_grad(X, y)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, "once, in one line"
    assert lines[0].startswith("handgrad: R1 was asked for, but H = 300 is above")
    assert lines[0].endswith(f"; {choose(plan(net, 45).layout.problem).layout.path} runs instead")


def test_a_precision_that_the_architecture_lacks_gives_way_to_float32(capsys):
    with emulator.settings(arch="sm_75"):
        net = network(precision="tf32")
        shown = plan(net, 45)
        assert shown.layout.problem.precision == "float32"
        assert shown.reason.startswith("precision tf32 was asked for, but ")
        assert "sm_75" in shown.reason
        net.loss_and_grad(*on_emulator(*data()))
    assert "float32 runs instead" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "R5"}, "path: expected one of R1, R2, R3, R4, ops, or None to have it chosen, got 'R5'"),
        ({"matmul": "mkl"}, "matmul: expected one of auto, kernels, cublas, got 'mkl'"),
        ({"matmul": "cublas"}, "matmul: expected 'kernels' on emulator, got 'cublas'; it needs a GPU"),
        (
            {"precision": "fp8"},
            "precision: with dtype float32, expected float32 or tf32 or 3xtf32 or bfloat16",
        ),
    ],
)
def test_a_network_with_a_wrong_setting_is_refused(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        network(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected a whole number, 1 or more, got 0"),
        ({"samples": 1.5}, "samples: expected a whole number, 1 or more, got 1.5"),
        ({"gpu": "abacus"}, "gpu: expected one of A100, H100, RTX 4090, L4, got 'abacus'"),
        ({"path": "R9"}, "path: expected one of R1, R2, R3, R4, got 'R9'"),
        ({"inputs": "int8"}, "inputs: expected float32 or uint8, got 'int8'"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan(network(device="cpu"), **({"batch_size": 8} | arguments))


def test_a_plan_is_for_two_layers():
    with pytest.raises(ValueError, match="plan: expected a network of two layers, as MLP"):
        plan(MLP([4, 3, 2, 1], device="cpu"), 8)


# ---- what a plan shows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_a_plan_has_the_keys_that_are_promised(path):
    shown = hg.plan(network(path, device="cpu"), 45, samples=100, path=path)
    row = shown.to_dict()
    assert set(row) == KEYS
    assert row["path"] == path, row["reason"]
    assert row["launches_per_step"] == LAUNCHES[path]
    assert row["launches_per_epoch"] == (1 if path == "R2" else 3 * (LAUNCHES[path] + 2))
    assert row["partitions"] >= 1
    assert row["workspace_bytes"] == shown.workspace_bytes > 0
    assert set(row["predicted_seconds"]) == {gpu.name for gpu in gpus.GPUS}
    assert all(0 < seconds < 1 for seconds in row["predicted_seconds"].values())
    assert {frozenset(one) for one in row["traffic"].values()} == {frozenset(("compulsory", "expected"))}
    assert row["traffic"]["X"]["compulsory"] in (45 * 20 * 4, 2 * 45 * 20 * 4)
    assert len(row["kernels"]) == (1 if path == "R2" else LAUNCHES[path])
    assert json.loads(json.dumps(row)) == row
    text = str(shown)
    assert "predicted, not measured" in text
    assert row["tiling"] == shown.layout.tiling.name
    assert row["measured"] is False
    words = (f"plan {path}", "A100", "S = ", "bytes of dynamic shared memory", row["reason"], row["tiling"])
    for word in words:
        assert word in text
    assert all(0 < share <= 1 for share in shown.wave_efficiency.values())


def test_a_named_gpu_is_planned_for():
    net = network(device="cpu")
    for gpu in gpus.GPUS:
        problem = plan(net, 50_000, gpu=gpu.name).layout.problem
        assert (problem.arch, problem.sms) == (gpu.arch, gpu.sms)
    assert plan(net, 50_000).layout.problem.sms == 108
    with emulator.settings(arch="sm_90", sms=132):
        problem = plan(network(), 50_000).layout.problem
        assert (problem.arch, problem.sms) == ("sm_90", 132)


@pytest.mark.parametrize(
    ("arch", "known"),
    [("sm_75", "sm_75"), ("sm_87", "sm_86"), ("sm_90", "sm_90"), ("sm_103", "sm_100"), ("sm_121", "sm_120")],
)
def test_an_architecture_that_is_not_known_counts_as_the_one_before_it(arch, known):
    assert nearest_architecture(arch) == known
    assert choice_module.gpu_like(Problem(4, 3, 2, 1, arch=known)) in gpus.GPUS


def test_an_architecture_that_is_too_old_is_refused():
    with pytest.raises(ValueError, match="device: expected a GPU of sm_75 or newer, got sm_70"):
        nearest_architecture("sm_70")


def test_partitions_come_from_the_shape_alone():
    for path in PATHS:
        found = {
            plan(network(device="cpu"), N, path=path, gpu=gpu).partitions for N in (45,) for gpu in gpus.GPUS
        }
        assert len(found) == 1, path


def test_the_optimizer_and_clipping_decide_the_last_launch():
    net = network(device="cpu")
    assert plan(net, 45, optimizer=Adam()).layout.problem.rule == "Adam"
    assert plan(net, 45, optimizer=SGD(0.1, momentum=0.5)).layout.problem.rule == "Momentum"
    clipped = plan(net, 45, optimizer=Adam(), clip_norm=1.0)
    assert clipped.layout.problem.rule == "Store"
    assert clipped.launches_per_step == len(clipped.kernels) + 2


def test_slices_that_no_cache_holds_are_moved_every_step():
    """R2 with weights of 65 MB, more than the L2 of an H100: read twice and written once a step."""
    net = network(device="cpu", sizes=(784, 20_000, 10))
    shown = plan(net, 64, path="R2", gpu="H100")
    slices = shown.layout.workspace["epoch.slices"]
    assert slices > gpus.find_gpu("H100").l2_bytes
    compulsory = sum(shown.layout.compulsory.values())
    assert shown.predictions["H100"].dram == pytest.approx((compulsory + 3 * slices) / 3.35e12)


def test_the_wave_efficiency_is_that_of_the_rounds():
    """R1: S partitions in rounds of as many blocks as are resident; R4: blocks of its largest launch."""
    net = network(device="cpu", sizes=(784, 50, 1), loss="mse")
    for gpu, sms in (("A100", 108), ("H100", 132), ("L4", 58)):
        shown = plan(net, 50_000, path="R1", gpu=gpu)
        (blocks,) = shown.kernels[0].grid
        S = shown.partitions
        assert blocks <= min(S, 2 * sms)
        slots = blocks if blocks < S else sms * -(-blocks // sms)
        assert shown.wave_efficiency[gpu] == pytest.approx(S / (-(-S // slots) * slots))
    shown = plan(network(device="cpu", sizes=(784, 512, 10)), 8192, path="R4", gpu="H100")
    blocks = max(int(np.prod(one.grid)) for one in shown.kernels)
    assert shown.wave_efficiency["H100"] == blocks / (-(-blocks // 132) * 132)


def test_the_model_adds_up():
    """Twice the samples take about twice the time, where that is not the launches'."""
    net = network(device="cpu", sizes=(784, 50, 1), loss="mse")
    small, large = (plan(net, N, path="R1").predictions["H100"] for N in (200_000, 400_000))
    assert 1.8 < large.seconds / small.seconds < 2.2
    one = plan(net, 50_000, path="R1")
    layout, gpu = one.layout, gpus.find_gpu("A100")
    assert model.predict(layout, gpu).dram == sum(layout.compulsory.values()) / 1.555e12
    assert model.predict(layout, gpu).arithmetic == pytest.approx(layout.operations / 19.5e12)
    captured, launched = model.predict(layout, gpu), model.predict(layout, gpu, captured=False)
    assert launched.seconds - captured.seconds == pytest.approx(2 * (3e-6 - 1.5e-6))
    assert "predicted, not measured" in str(captured)


# ---- training does what the plan says --------------------------------------------------------------------


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
