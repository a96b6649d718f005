"""One step of a plan, counted on the emulator, beside what the plan says."""

from __future__ import annotations

import pytest
from command_line import refused, report, succeeds
from small_networks import needs_compiler

from handgrad.plans import paths
from handgrad.proof.plan_traffic import profile_plan
from handgrad.proof.traffic import Shape

pytestmark = needs_compiler


PATHS = tuple(paths.MODULES)
LAUNCHES = {"R1": 2, "R2": 1, "R3": 2, "R4": 4}
# A few numbers for each block, of which plans say nothing.
CONTROL = ("hyperparameters", "steps", "ticket", "tickets", "barrier", "trainable")
KEYS = {"compulsory", "expected", "requested", "distinct"}


@pytest.mark.parametrize(
    ("loss", "rule", "N", "C"),
    [
        ("cross_entropy", "Momentum", 45, 3),
        pytest.param("mse", "Adam", 96, 1, marks=pytest.mark.slow),
        pytest.param("hinge", "Sgd", 70, 20, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", PATHS)
def test_every_buffer_is_asked_for_as_the_plan_says(path, loss, rule, N, C):
    found = profile_plan(Shape(N, 48, 20, C, loss, rule), path)
    assert found.plan.path == path
    assert len(found.launches) == LAUNCHES[path] == len(found.plan.kernels)
    assert [one.expression for one in found.launches] == [one.kernel.expression for one in found.plan.kernels]
    assert [(one.grid, one.shared) for one in found.launches] == [
        (one.grid, one.shared) for one in found.plan.kernels
    ]
    differing = {
        name: (one.expected, one.requested)
        for name, one in found.buffers.items()
        if one.expected != one.requested and name not in CONTROL
    }
    if path == "R2":  # of a step; these move once an epoch
        once = {"parameters", "state"} if rule != "Sgd" else {"parameters"}
        assert {name for name in differing if differing[name][0] is None} == once
        differing = {name: bytes for name, bytes in differing.items() if bytes[0] is not None}
    assert differing == {}


@pytest.mark.skipif("R1" not in PATHS, reason="without R1")
def test_r1_loads_x_once_and_keeps_its_partials_small():
    """The bars of 50,000 × 784 → 50 → 1, counted on a stand-in, and by formula on the whole."""
    found = profile_plan(Shape(64, 784, 50, 1, "mse"), "R1")
    X = found.buffers["X"]
    assert X.requested <= 1.05 * 4 * 64 * 784
    assert X.distinct <= 1.05 * 4 * 64 * 784
    from handgrad import plan
    from handgrad.network import MLP

    whole = plan(MLP([784, 50, 1], device="cpu"), 50_000, path="R1").traffic
    assert whole["X"]["expected"] <= 1.05 * 4 * 50_000 * 784
    assert whole["partials"]["expected"] <= 0.3 * 4 * 50_000 * 784


def test_the_command_prints_the_counts_beside_the_plan():
    found = report("kernels", "profile", "--shape", "33,20,12,3")
    (step,) = found["steps"]
    assert found["emulated"] is True
    assert step["step"] == "33,20,12,3"
    assert step["path"] == step["plan"]["path"] == paths.STEP_ORDER[0]
    assert step["launches"] == len(step["kernels"]) == len(step["plan"]["kernels"])
    assert {frozenset(one) for one in step["buffers"].values()} == {frozenset(KEYS)}
    assert step["buffers"]["X"]["requested"] == 33 * 20 * 4
    text = succeeds("kernels", "profile", "--shape", "33,20,12,3", "--path", PATHS[-1])
    assert f"plan {PATHS[-1]}" in text
    assert f"{LAUNCHES[PATHS[-1]]} launches, the plan says {LAUNCHES[PATHS[-1]]}" in text
    assert "predicted, not measured" in text


def test_the_layer_functions_are_still_profiled_one_by_one():
    found = report("kernels", "profile", "--shape", "10,4,12,3", "--by-op")
    ops = {one["op"] for one in found["launches"]}
    assert {"linear.forward", "loss.rows", "optimizer.update"} <= ops


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--path", "R1"), "--path: expected --shape with it, and neither KERNEL nor --by-op, got R1"),
        (("linear", "--shape", "4,3,2,1", "--path", "R1"), "--path: expected --shape with it, and neither"),
        (("--shape", "4,3,2,1", "--path", "R7"), "--path: expected one of R1, R2, R3, R4, got R7"),
        (("--shape", "4,3,2,1", "--path", "ops"), "--path: expected one of R1, R2, R3, R4, got ops; --by-op"),
        (("--shape", "4,3,2,1", "--gpu", "H100"), "--gpu: expected KERNEL or --by-op with it, got H100"),
    ],
)
def test_a_wrong_call_is_told_in_one_line(words, message):
    assert refused("kernels", "profile", *words).startswith(f"error: {message}")
