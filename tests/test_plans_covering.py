"""Activations × losses × paths × precisions against the float64 reference: a pairwise covering array."""

from __future__ import annotations

import numpy as np
import pytest
import reference_network
from small_networks import needs_compiler

from handgrad.arrays import resolve_device, to_device, to_numpy
from handgrad.network import MLP
from handgrad.ops import activation, two_layer
from handgrad.ops.optimizer import SGD
from handgrad.ops.two_layer_general_tiles import FEW
from handgrad.plans import paths
from handgrad.plans.choice import refusal_of
from handgrad.proof.correctness import _execute, compare
from handgrad.proof.covering import pairwise
from handgrad.proof.trials.two_layer_paths import path_trials

pytestmark = needs_compiler


SEED = 20261
STEP_PATHS = tuple(name for name in paths.STEP_ORDER if name in paths.MODULES)
LOSSES = (
    *(("mse", name) for name in activation.NAMES),
    *((name, "identity") for name in ("bce", "cross_entropy", "hinge")),
)
PRECISIONS = (*two_layer.PRECISIONS["float32"], "float64")
SHAPES = ((1, 3, 1, 1), (31, 20, 10, 3), (33, 65, 63, 17), (127, 50, 12, 2), (45, 783, 50, 10))
FACTORS = {
    "path": STEP_PATHS,
    "activation": activation.NAMES,
    "loss": LOSSES,
    "precision": PRECISIONS,
    "reduction": ("mean", "sum"),
    "bias": (True, False),
    "pixels": (False, True),
    "shape": SHAPES,
    "x": ("aligned", "misaligned"),
}


def rows():
    """The array's rows as problems that their path takes; pixels or a precision that it lacks are numbers of
    the dtype instead."""
    found = []
    for row in pairwise(FACTORS, seed=SEED):
        dtype = "float64" if row["precision"] == "float64" else "float32"
        loss, output = row["loss"]
        problem = {
            **dict(zip("NDHC", row["shape"], strict=True)),
            **{name: row[name] for name in ("activation", "reduction", "bias", "precision")},
            **{"loss": loss, "output": output, "dtype": dtype},
            "inputs": "uint8" if row["pixels"] else dtype,
        }
        for relaxed in ({}, {"inputs": dtype}, {"precision": dtype}, {"inputs": dtype, "precision": dtype}):
            if not refusal_of(two_layer.Problem(**{**problem, **relaxed}), row["path"]):
                problem |= relaxed
                break
        found.append((row["path"], problem, row["x"]))
    return found


ROWS = rows() if STEP_PATHS else []


def test_the_array_covers_what_it_should():
    taken = [(path, p) for path, p, _ in ROWS if not refusal_of(two_layer.Problem(**p), path)]
    assert len(taken) >= 0.9 * len(ROWS)
    for path in STEP_PATHS:
        own = [p for name, p in taken if name == path]
        assert {p["activation"] for p in own} == set(activation.NAMES)
        assert {(p["loss"], p["output"]) for p in own} == set(LOSSES)
        assert {p["dtype"] for p in own} == {"float32", "float64"}


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(ROWS)))
def test_a_row_is_within_the_bounds_of_the_reference(number):
    path, problem, x = ROWS[number]
    trials = path_trials(f"plans.{path}", paths.MODULES[path], [given(path, problem, x)])
    if not trials:
        assert refusal_of(two_layer.Problem(**problem), path)
        return
    (trial,) = trials
    case = run_case(trial)
    assert case == [], (path, problem)


def given(path, problem, x):
    """A trial's row; R4 multiplies in the second layer as in the first where it is wide."""
    wide = path == "R4" and problem["C"] > FEW
    return {**problem, "x": x, "second": problem["precision"] if wide else ""}


def run_case(trial):
    """What is wrong with the trial's outputs, and with memory that is not its own."""
    with np.errstate(all="ignore"):
        outputs, problems = _execute(resolve_device("emulator"), trial)
        for output, got in outputs:
            found = compare(got, output.expected(), output.exact)
            problems += [f"{output.name}: {found.problem}"] if found.problem else []
    return problems


@pytest.mark.parametrize("path", STEP_PATHS)
def test_a_row_of_each_path(path):
    """The first of each path in the default run; -m slow runs them all."""
    number = next(number for number, row in enumerate(ROWS) if row[0] == path)
    test_a_row_is_within_the_bounds_of_the_reference(number)


EPOCH_ROWS = pairwise(
    {
        "activation": activation.NAMES,
        "loss": LOSSES,
        "dtype": ("float32", "float64"),
        "reduction": ("mean", "sum"),
        "bias": (True, False),
        "shape": SHAPES[1:4],
    },
    seed=SEED,
)


@pytest.mark.skipif("R2" not in paths.MODULES, reason="without R2")
@pytest.mark.parametrize(
    "number", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, len(EPOCH_ROWS)))]
)
def test_an_epoch_of_one_batch_moves_the_parameters_by_the_gradient(number):
    """R2 with SGD: w - lr g, g within the reference's bound, and w rounded."""
    row = EPOCH_ROWS[number]
    N, D, H, C = row["shape"]
    (loss, output), dtype = row["loss"], row["dtype"]
    random = np.random.default_rng(number)
    X = random.normal(size=(N, D)).astype(dtype)
    labels = loss in ("cross_entropy", "hinge")
    y = random.integers(0, C, N).astype(np.int32) if labels else random.random((N, C)).astype(dtype)
    config = {"sizes": [D, H, C], "activation": row["activation"], "output": output, "loss": loss}
    config |= {"reduction": row["reduction"], "bias": row["bias"]}
    net = MLP(**config, dtype=dtype, device="emulator", path="R2", seed=number)
    before = net.flat_parameters.to_numpy()
    expected = reference_network.network(config, X, y, before, dtype, input_grad=False)
    losses = net.train_epoch(*(to_device(a, "emulator") for a in (X, y)), np.arange(N), N, SGD(lr := 0.125))
    assert {key[0] for key in net._planned._bound} == {"R2"}
    reference_network.assert_within(to_numpy(losses)[0], expected["loss"], "loss")
    u = reference_network.ROUNDOFF[dtype]
    for name, after in net.flat_parameters.to_numpy().items():
        gradient = expected[f"d{name}"]
        value = before[name].astype(np.float64) - lr * gradient.value
        bound = lr * gradient.error + 2 * u * (np.abs(value) + lr * np.abs(gradient.value))
        reference_network.assert_within(after, reference_network.Bounded(value, bound), name)


def test_a_planted_fault_is_found(monkeypatch):
    """The comparison itself: a gradient that is off by a thousandth fails."""
    path, problem, x = next(row for row in ROWS if row[1]["precision"] == "float32" and row[1]["N"] > 1)
    assert not refusal_of(two_layer.Problem(**problem), path)
    (trial,) = path_trials("plans", paths.MODULES[path], [given(path, problem, x)])
    right = paths.MODULES[path].run

    def wrong(layout, arrays):
        right(layout, arrays)
        arrays.gradient *= 1.001

    monkeypatch.setattr(paths.MODULES[path], "run", wrong)
    assert run_case(trial)
