"""Path R3 against the float64 reference: results, determinism, limits, traffic."""

import dataclasses

import numpy as np
import pytest
import two_layer_steps
from devices import build_ahead
from two_layer_steps import counted, covering

from handgrad import emulator
from handgrad.arrays import to_numpy
from handgrad.kernel import Kernel, catalogue
from handgrad.ops import two_layer_pair
from handgrad.ops.optimizer import SGD
from handgrad.ops.two_layer import Problem
from handgrad.proof.correctness import compare
from handgrad.proof.counters import global_traffic, shared_traffic
from handgrad.proof.guarded import Memory
from handgrad.proof.trials import trials

SMALL = Problem(150, 20, 10, 3, loss="cross_entropy", rule="Store")  # three tiles of samples, two splits


def Step(problem, *arguments, **keywords):
    return two_layer_steps.Step(two_layer_pair, problem, *arguments, **keywords)


ALL = list(covering())
QUICK = ALL[::9]


@pytest.fixture(scope="module", autouse=True)
def built():
    def run():
        for problem in (*QUICK, SMALL):
            Step(problem).run()

    build_ahead(run)


@pytest.mark.parametrize(
    "problem", [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in ALL], ids=str
)
def test_against_the_reference(problem):
    Step(problem).run().assert_right()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("N", "D", "H"), [(70, 783, 128), (300, 785, 65), (20, 1500, 100), (600, 9, 128)])
def test_large_and_ragged_shapes(N, D, H, dtype):
    types = {"dtype": dtype, "precision": dtype, "inputs": dtype}
    Step(Problem(N, D, H, 5, "tanh", loss="hinge", rule="Store", **types)).run().assert_right()


def test_misaligned_rows():
    step = Step(SMALL)
    memory = emulator.empty(step.X.size + 1)
    memory[1:] = step.X.reshape(-1)
    step.arrays.X = memory[1:].reshape(step.X.shape)
    step.run().assert_right()


UPDATES = [
    trial for trial in trials("two_layer.pair_backward", "float32", quick=True) if "setting" in trial.setting
]


@pytest.mark.parametrize("trial", UPDATES, ids=str)
def test_the_rule_is_applied(trial):
    """Every optimizer, with frozen parameters, without bias, after some steps: parameters and state."""
    memory = Memory(emulator, trial.seed)
    with np.errstate(all="ignore"):
        outputs = trial.run(memory)
        found = {one.name: compare(to_numpy(one.array), one.expected(), one.exact).problem for one in outputs}
    assert not any(found.values()), found
    assert not memory.problems()


def test_frozen_parameters_stay():
    step = Step(dataclasses.replace(SMALL, rule="Sgd"), SGD(0.1))
    step.parameters.freeze("W1", "b2")
    step.run()
    after = step.parameters.to_numpy()
    changed = {name for name in after if (after[name] != step.before[name]).any()}
    assert changed == {"b1", "W2"}


def test_two_launches_and_no_allocation_after_the_first_step(monkeypatch):
    step, launched = Step(SMALL), []
    step.run()
    held = step.workspace.nbytes
    call = Kernel.__call__
    monkeypatch.setattr(
        Kernel, "__call__", lambda self, *a, **k: (launched.append(self), call(self, *a, **k))
    )
    monkeypatch.setattr(emulator, "empty", None)
    monkeypatch.setattr(emulator, "zeros", None)
    step.run()
    assert launched == [launch.kernel for launch in step.layout.launches]
    assert len(launched) == 2
    assert step.workspace.nbytes == held == sum(step.layout.workspace.values())


def test_an_empty_batch():
    """The mean over no sample is NaN, its gradient 0."""
    step = Step(dataclasses.replace(SMALL, N=0)).run()
    assert np.isnan(to_numpy(step.loss)[0])
    assert not to_numpy(step.gradient).any()
    assert [launch.name for launch in step.layout.launches] == ["pair_backward"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0.5}, "scale and shift are for X of uint8"),
        ({"X": np.float64}, "X must be float32, got float64"),
    ],
)
def test_inputs_that_do_not_fit(change, message):
    step = Step(SMALL)
    if "X" in change:
        step.arrays.X = emulator.asarray(step.X.astype(change["X"]))
    else:
        step.arrays.scale = change["scale"]
    with pytest.raises((TypeError, ValueError), match=message):
        step.run()


# ---- determinism -----------------------------------------------------------------------------------------


def test_the_bits_do_not_depend_on_the_multiprocessors():
    results = {Step(dataclasses.replace(SMALL, N=700, sms=sms)).run().bits() for sms in (1, 4, 7, 132)}
    assert len(results) == 1


def test_the_bits_do_not_depend_on_the_order_of_blocks_and_threads():
    expected = Step(SMALL).run().bits()
    for seed in range(20):
        with emulator.settings(order="random", seed=seed):
            assert Step(SMALL).run().bits() == expected


# ---- layout ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"D": 5000, "H": 128}, ""),
        ({"H": 129}, "H = 129 is above 128"),
        ({"D": 2**25, "H": 100}, "D H = 3355443200 is above 2145386495"),
        ({"C": 64}, ""),
        ({"C": 65}, "C = 65 is above 64"),
        ({"precision": "bfloat16"}, "R3 computes in float32, not in bfloat16"),
        ({"inputs": "uint8"}, "R3 takes X of float32, not of uint8"),
        ({"H": 128, "C": 64, "arch": "sm_75"}, "sm_75 has 65536"),
    ],
)
def test_refusals(changes, reason):
    problem = dataclasses.replace(SMALL, **changes)
    found = two_layer_pair.refusal(problem)
    assert (reason in found) if reason else found == ""
    if reason:
        with pytest.raises(ValueError, match="path R3: "):
            two_layer_pair.lay_out(problem)


def test_partitions_cover_the_samples_once():
    for N in (1, 64, 65, 1000, 50_000, 10**6):
        g = two_layer_pair.geometry(Problem(N, 1000, 100, 3))
        assert g.chunk % g.forward.BM == 0
        assert (g.partitions - 1) * g.chunk < N <= g.partitions * g.chunk
        assert g.partitions <= two_layer_pair.MOST_PARTITIONS


# ---- traffic ---------------------------------------------------------------------------------------------

ALIGNED = Problem(300, 160, 128, 1, rule="Store")  # rows of whole sectors; two tiles of dW1 along H


@pytest.mark.parametrize("changes", [{}, {"H": 32, "rule": "Momentum", "C": 3, "loss": "hinge"}])
def test_traffic_is_what_the_layout_says(changes):
    problem = dataclasses.replace(ALIGNED, **changes)
    step = Step(problem, SGD(0.1, momentum=0.5) if changes else None)
    _, found = counted(step)
    expected = dict(step.layout.requested)
    if changes:  # the kernel's names
        expected |= {"gradient": expected.pop("parameters"), "state1": expected.pop("momentum")}
        expected["hyperparameters"] = found["hyperparameters"]  # a few numbers a block, as the rule needs
    assert found == {name: moved for name, moved in expected.items() if moved}


def test_main_loops_are_coalesced_and_free_of_bank_conflicts():
    forward, backward = counted(Step(ALIGNED))[0]
    for counts, buffers in ((forward, ("X", "W1")), (backward, ("X", "dZ1"))):
        for name in buffers:
            assert global_traffic(counts)[name]["load"].coalescing <= 1.1
        for access, one in shared_traffic(counts).items():
            assert one.conflicts <= 1.1, access
    assert global_traffic(forward)["dZ1"]["store"].coalescing <= 1.1
    assert global_traffic(backward)["weight_partials"]["store"].coalescing <= 1.1


def test_the_catalogue_lists_few():
    for op in ("two_layer.pair_forward", "two_layer.pair_backward"):
        assert len(next(entry for entry in catalogue() if entry.op == op).expressions) <= 40
