"""Path R3 against the float64 reference: results, determinism, limits, traffic."""

import dataclasses
import itertools

import numpy as np
import pytest
import two_layer_steps
from devices import build_ahead
from two_layer_steps import counted, covering

from handgrad import emulator
from handgrad.arrays import to_numpy
from handgrad.kernel import Kernel, catalogue
from handgrad.ops import two_layer_pair, two_layer_pair_tiles
from handgrad.ops.optimizer import SGD
from handgrad.ops.two_layer import PRECISIONS, Problem
from handgrad.ops.two_layer_general_tiles import BROAD, MEDIUM, MEDIUM_DOUBLE, NARROW, NARROW_DOUBLE
from handgrad.ops.two_layer_pair_tiles import DEEP
from handgrad.proof.correctness import compare
from handgrad.proof.counters import global_traffic, shared_traffic
from handgrad.proof.guarded import Memory
from handgrad.proof.trials import trials

SMALL = Problem(150, 20, 10, 3, loss="cross_entropy", rule="Store")  # five tiles of samples, two splits


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


TENSOR = PRECISIONS["float32"][1:]
FORWARD, BACKWARD = (
    trials(f"two_layer.pair_{one}", "float32", quick=True) for one in ("forward", "backward")
)
PRODUCTS = [
    *(one for one in FORWARD if any(word in one.setting for word in ("uint8", *TENSOR))),
    *(one for one in BACKWARD if "integers" in one.setting),
    *(one for one in trials("two_layer.pair_backward", "float64", quick=True) if "uint8" in one.setting),
]


def test_products_are_tried_in_every_precision_and_type_of_x():
    for precision, inputs in itertools.product(TENSOR, ("float32", "uint8")):
        own = [str(one) for one in PRODUCTS if f"{precision}," in str(one) and f" {inputs}" in str(one)]
        assert any("integers" in one for one in own), (precision, inputs)
        assert any("integers" not in one for one in own), (precision, inputs)


@pytest.mark.parametrize("trial", PRODUCTS, ids=str)
def test_tensor_cores_and_bytes(trial):
    """Against products of operands that are rounded first; small integers bit for bit."""
    assert wrong(trial) == {}


UPDATES = [trial for trial in BACKWARD if "setting" in trial.setting]


@pytest.mark.parametrize("trial", UPDATES, ids=str)
def test_the_rule_is_applied(trial):
    """Every optimizer, with frozen parameters, without bias, after some steps: parameters and state."""
    assert wrong(trial) == {}


def wrong(trial):
    """What the outputs of a trial differ in, and writes to what is not its own."""
    memory = Memory(emulator, trial.seed)
    with np.errstate(all="ignore"):
        outputs = trial.run(memory)
        found = {one.name: compare(to_numpy(one.array), one.expected(), one.exact).problem for one in outputs}
    found["memory"] = "; ".join(memory.problems())
    return {name: problem for name, problem in found.items() if problem}


def test_frozen_parameters_stay():
    step = Step(dataclasses.replace(SMALL, rule="Sgd"), SGD(0.1))
    step.parameters.freeze("W1", "b2")
    step.run()
    after = step.parameters.to_numpy()
    changed = {name for name in after if (after[name] != step.before[name]).any()}
    assert changed == {"b1", "W2"}


@pytest.mark.parametrize(
    "changes", [{}, {"inputs": "uint8"}, {"precision": "bfloat16", "inputs": "uint8", "H": 65}], ids=str
)
def test_two_launches_and_no_allocation_after_the_first_step(changes, monkeypatch):
    step, launched = Step(dataclasses.replace(SMALL, **changes)), []
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


KINDS = [
    pytest.param({}, id="float32"),
    pytest.param({"inputs": "uint8", "precision": "bfloat16"}, id="bfloat16 of bytes"),
    pytest.param({"precision": "3xtf32", "H": 65, "D": 36}, id="3xtf32"),
]


@pytest.mark.parametrize("changes", KINDS)
def test_the_bits_do_not_depend_on_the_multiprocessors(changes, monkeypatch):
    problem = dataclasses.replace(SMALL, N=700, **changes)
    results = {Step(dataclasses.replace(problem, sms=sms)).run().bits() for sms in (1, 4, 7, 132)}
    call = Kernel.__call__

    def narrower(self, grid, block, *arguments, shared=0):
        """Fewer blocks than partitions go through all of them."""
        grid = (3,) if self.expression.startswith("pair_forward") else grid
        call(self, grid, block, *arguments, shared=shared)

    monkeypatch.setattr(Kernel, "__call__", narrower)
    step = Step(problem)
    assert step.layout.launches[0].grid[0] > 3
    assert results == {step.run().bits()}


@pytest.mark.parametrize("changes", KINDS)
def test_the_bits_do_not_depend_on_the_order_of_blocks_and_threads(changes):
    problem = dataclasses.replace(SMALL, **changes)
    expected = Step(problem).run().bits()
    for seed in range(20):
        with emulator.settings(order="random", seed=seed, copies="random"):
            assert Step(problem).run().bits() == expected


# ---- layout ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"D": 5000, "H": 128}, ""),
        ({"H": 129}, "H = 129 is above 128"),
        ({"D": 2**25, "H": 100}, "D H = 3355443200 is above 2145386495"),
        ({"C": 64}, ""),
        ({"C": 65}, "C = 65 is above 64"),
        ({"precision": "bfloat16", "inputs": "uint8"}, ""),
        ({"inputs": "uint8", "arch": "sm_75"}, ""),
        *(
            (
                {"precision": one, "arch": "sm_75"},
                f"precision {one}: sm_75 multiplies neither tf32 nor bfloat16",
            )
            for one in TENSOR
        ),
        ({"H": 128, "C": 17, "arch": "sm_75"}, ""),
        ({"H": 128, "C": 64, "arch": "sm_75"}, "C = 64 takes 113424 bytes of shared memory; sm_75 has 65536"),
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
        assert g.partitions <= two_layer_pair_tiles.MOST_PARTITIONS


@pytest.mark.parametrize(
    ("N", "H", "C", "precision", "tile"),
    [
        (8064, 64, 3, "float32", "64x64x16/8x8/2"), (8065, 64, 3, "float32", "128x64x16/8x8"),
        (4032, 65, 3, "float32", "32x128x16/8x8/2"), (4033, 65, 3, "float32", "64x128x16/8x8"),
        (8065, 32, 3, "float32", "128x32x16/8x8/2"), (8065, 33, 3, "float32", "128x64x16/8x8"),
        (8065, 33, 16, "float32", "128x64x16/8x8"), (8065, 33, 64, "float32", "32x64x16/8x8/4"),
        (9999, 128, 3, "float64", "32x128x8/4x8"), (9999, 64, 3, "tf32", "128x64x16/64x32"),
        (60, 64, 3, "tf32", "32x64x16/16x32"),
    ],
)  # fmt: skip
def test_the_first_kernels_tile_changes_where_it_should(N, H, C, precision, tile):
    """With the samples, the width, and where every architecture has the shared memory."""
    dtype = "float64" if precision == "float64" else "float32"
    problem = Problem(N, 9, H, C, dtype=dtype, precision=precision, inputs=dtype, arch="sm_90")
    assert str(two_layer_pair.geometry(problem).forward) == tile


def test_the_tile_of_dW1_changes_where_it_should():
    choose = two_layer_pair_tiles.choose_backward_tile
    chosen = [
        choose(D, H, "float32") for D, H in ((65, 32), (64, 33), (65, 33), (64, 64), (64, 65), (65, 128))
    ]
    assert chosen == [NARROW, MEDIUM, BROAD, MEDIUM, DEEP, BROAD]
    assert [choose(99, H, "float64") for H in (32, 33)] == [NARROW_DOUBLE, MEDIUM_DOUBLE]
    sizes = ((99, 32), (99, 64), (64, 65), (65, 65))
    assert [str(choose(D, H, "tf32")) for D, H in sizes] == [
        *("128x32x16/32x32", "64x64x16/32x32", "64x64x16/32x32", "128x64x16/64x32")
    ]


# ---- traffic ---------------------------------------------------------------------------------------------

ALIGNED = Problem(300, 160, 128, 1, rule="Store")  # rows of whole sectors; two tiles of dW1 along H


UPDATED = {"rule": "Momentum", "C": 3, "loss": "hinge"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"H": 32, **UPDATED},
        {"H": 33, **UPDATED},  # rows of no whole vectors
        {"inputs": "uint8", "D": 161, "H": 60},
        {"precision": "tf32", **UPDATED},
        {"precision": "bfloat16", "inputs": "uint8", "H": 64},
        {"N": 8100, "D": 12, "H": 64},  # large tiles
    ],
    ids=str,
)
def test_traffic_is_what_the_layout_says(changes):
    problem = dataclasses.replace(ALIGNED, **changes)
    updates = problem.rule == "Momentum"
    step = Step(problem, SGD(0.1, momentum=0.5) if updates else None)
    _, found = counted(step)
    expected = dict(step.layout.requested)
    if updates:  # the kernel's names
        expected |= {"gradient": expected.pop("parameters"), "state1": expected.pop("momentum")}
        expected["hyperparameters"] = found["hyperparameters"]  # a few numbers a block, as the rule needs
    assert found == {name: moved for name, moved in expected.items() if moved}


@pytest.mark.parametrize("changes", [{}, {"H": 64}, {"N": 8100, "D": 16, "H": 64}], ids=str)
def test_main_loops_are_coalesced_and_free_of_bank_conflicts(changes):
    forward, backward = counted(Step(dataclasses.replace(ALIGNED, **changes)))[0]
    for counts, buffers in ((forward, ("X", "W1")), (backward, ("X", "dZ1"))):
        for name in buffers:
            assert global_traffic(counts)[name]["load"].coalescing <= 1.1
        for access, one in shared_traffic(counts).items():
            assert one.conflicts <= 1.1, access
    assert global_traffic(forward)["dZ1"]["store"].coalescing <= 1.1
    assert global_traffic(backward)["weight_partials"]["store"].coalescing <= 1.1


@pytest.mark.parametrize("precision", TENSOR)
@pytest.mark.parametrize("H", [32, 64, 128])
def test_tensor_cores_load_without_bank_conflicts(precision, H):
    """Only pairs of A1, once a tile, meet in a bank on their way to shared memory."""
    forward, backward = counted(Step(dataclasses.replace(ALIGNED, H=H, precision=precision)))[0]
    assert shared_traffic(forward)["load"].conflicts <= 1.1
    assert shared_traffic(forward)["store"].conflicts <= 1.2
    for access, one in shared_traffic(backward).items():
        assert one.conflicts <= 1.1, access


def test_the_catalogue_lists_few():
    for op in ("two_layer.pair_forward", "two_layer.pair_backward"):
        assert len(next(entry for entry in catalogue() if entry.op == op).expressions) <= 40
