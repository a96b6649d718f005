"""Path R1 against the float64 reference: results, determinism, partitions, limits, traffic."""

import dataclasses

import numpy as np
import pytest
import two_layer_steps
from devices import build_ahead
from two_layer_steps import counted, covering

from handgrad import emulator
from handgrad.arrays import to_numpy
from handgrad.kernel import Kernel, catalogue
from handgrad.ops import two_layer_step, two_layer_step_tiles
from handgrad.ops.optimizer import SGD, Adam
from handgrad.ops.two_layer import Problem
from handgrad.proof import budgets
from handgrad.proof.correctness import compare
from handgrad.proof.counters import global_traffic, shared_traffic
from handgrad.proof.guarded import Memory
from handgrad.proof.trials import trials

SMALL = Problem(50, 20, 10, 3, loss="cross_entropy", rule="Store")
LARGE = Problem(64, 784, 50, 1, rule="Store")  # the tile of 16 x 10 elements a thread


def Step(problem, *arguments, **keywords):
    return two_layer_steps.Step(two_layer_step, problem, *arguments, **keywords)


ALL = list(covering())
QUICK = ALL[::9]


@pytest.fixture(scope="module", autouse=True)
def built():
    def run():
        for problem in (*QUICK, SMALL, LARGE):
            Step(problem).run()

    build_ahead(run)


@pytest.mark.parametrize(
    "problem", [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in ALL], ids=str
)
def test_against_the_reference(problem):
    Step(problem).run().assert_right()


def test_the_large_tile():
    Step(LARGE).run().assert_right()


@pytest.mark.slow
@pytest.mark.parametrize(("D", "H"), [(783, 50), (785, 49), (300, 128), (512, 64), (1000, 10)])
def test_large_and_ragged_shapes(D, H):
    Step(dataclasses.replace(LARGE, N=50, D=D, H=H, C=3, activation="tanh")).run().assert_right()


@pytest.mark.slow
def test_float64_is_sliced_over_D():
    problem = Problem(
        30, 784, 50, 10, loss="hinge", rule="Store", dtype="float64", precision="float64", inputs="float64"
    )
    step = Step(problem).run()
    assert two_layer_step.geometry(problem).tile.slices == 2
    step.assert_right()


TENSOR_CORES = [
    trial for trial in trials("two_layer.step", "float32", quick=False) if "tf32" in trial.setting
]
TENSOR_CORES += [
    trial for trial in trials("two_layer.step", "float32", quick=False) if "bfl" in trial.setting
]


@pytest.mark.parametrize(
    "trial",
    [t if "integers" in t.setting else pytest.param(t, marks=pytest.mark.slow) for t in TENSOR_CORES],
    ids=str,
)
def test_tensor_cores(trial):
    """Every tile in every precision, against products of operands that are rounded first."""
    memory = Memory(emulator, trial.seed)
    with np.errstate(all="ignore"):
        outputs = trial.run(memory)
        found = {one.name: compare(to_numpy(one.array), one.expected(), one.exact).problem for one in outputs}
    assert not any(found.values()), found
    assert not memory.problems()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "inputs"),
    [("tf32", "float32"), ("3xtf32", "float32"), ("3xtf32", "uint8"), ("bfloat16", "float32")],
)
def test_traffic_and_bank_conflicts_of_tensor_cores(precision, inputs):
    step = Step(dataclasses.replace(LARGE, N=160, D=416, precision=precision, inputs=inputs))
    launches, found = counted(step)
    assert found == {name: moved for name, moved in step.layout.requested.items() if moved}
    assert shared_traffic(launches[0])["load"].conflicts <= 1.1


@pytest.mark.parametrize(
    "change",
    [
        {"D": 32},
        {"D": 35},
        {"D": 416, "H": 50, "precision": "3xtf32"},
        {"D": 415, "H": 41, "precision": "3xtf32"},
    ],
)
def test_bytes_are_scaled_in_the_kernel(change):
    """The scale is a power of two and the shift a whole number: X is exact, as the reference takes it."""
    Step(dataclasses.replace(SMALL, **change, inputs="uint8"), scale=1 / 128, shift=-1.0).run().assert_right()


def test_float_inputs_have_no_scale():
    with pytest.raises(ValueError, match="scale and shift are for X of uint8"):
        Step(SMALL, scale=0.5).run()


def test_inputs_of_another_type_are_refused():
    step = Step(SMALL)
    step.arrays.X = emulator.asarray(step.X.astype(np.float64))
    with pytest.raises(TypeError, match="X must be float32, got float64"):
        step.run()


def test_misaligned_rows():
    step = Step(SMALL)
    memory = emulator.empty(step.X.size + 1)
    memory[1:] = step.X.reshape(-1)
    step.arrays.X = memory[1:].reshape(step.X.shape)
    step.run().assert_right()


@pytest.mark.parametrize(
    ("rule", "make"), [("Momentum", lambda: SGD(0.1, momentum=0.9)), ("Adam", lambda: Adam(0.01))]
)
def test_the_rule_is_applied(rule, make):
    """Three steps against the optimizer on the gradient that Store leaves: the same but for rounding."""
    optimizer, other = make(), make()
    step, stored = Step(dataclasses.replace(SMALL, rule=rule), optimizer), Step(SMALL)
    for _ in range(3):
        step.run()
        stored.run()
        other.update(stored.parameters, stored.gradient)
        after, expected = to_numpy(step.parameters.flat), to_numpy(stored.parameters.flat)
        np.testing.assert_allclose(after, expected, rtol=0, atol=8 * 2.0**-24)
        assert to_numpy(step.loss) == pytest.approx(to_numpy(stored.loss), rel=8 * 2.0**-24)
        step.parameters.flat[...] = stored.parameters.flat  # the next step starts from the same numbers
    assert optimizer.step == 3


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
    """The mean over no sample is NaN, its gradient 0; nothing of the first launch runs."""
    step = Step(dataclasses.replace(SMALL, N=0)).run()
    assert np.isnan(to_numpy(step.loss)[0])
    assert not to_numpy(step.gradient).any()
    assert [launch.name for launch in step.layout.launches] == ["reduce_and_update"]


# ---- determinism -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [dataclasses.replace(SMALL, N=1100), dataclasses.replace(LARGE, N=200)])
def test_the_bits_do_not_depend_on_the_multiprocessors(problem):
    results = {Step(dataclasses.replace(problem, sms=sms)).run().bits() for sms in (1, 4, 7, 132)}
    assert len(results) == 1


def test_the_bits_do_not_depend_on_the_order_of_threads():
    expected = Step(SMALL).run().bits()
    for seed in range(20):
        with emulator.settings(order="random", seed=seed, copies="random"):
            assert Step(SMALL).run().bits() == expected


def test_one_buffer_gives_the_bits_of_two():
    """Where shared memory has no room for two tiles of X, the same sums are formed in the same order."""
    here, there = (dataclasses.replace(LARGE, N=80, arch=arch) for arch in ("sm_80", "sm_86"))
    assert [two_layer_step.geometry(p).buffers for p in (here, there)] == [2, 1]
    with emulator.settings(arch="sm_86"):
        expected = Step(there).run().bits()
    assert Step(here).run().bits() == expected


# ---- layout ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"D": 816}, ""),
        ({"D": 817}, "dW1 of D = 817 by H = 50 is more than the registers hold"),
        ({"D": 304, "H": 128}, ""),
        ({"D": 10, "H": 129}, "H = 129 is above 128"),
        ({"N": 2**31 - 2**21}, "N = 2145386496 is above 2145386495"),
        ({"D": 64, "C": 64}, ""),
        ({"D": 64, "C": 65}, "C = 65 is above 64"),
        ({"precision": "tf32", "D": 896, "H": 56, "arch": "sm_90"}, ""),
        ({"precision": "tf32", "D": 64, "H": 57}, "dW1 of D = 64 by H = 57 is more than the registers hold"),
        ({"precision": "bfloat16", "D": 897}, "dW1 of D = 897 by H = 50 is more than the registers hold"),
        ({"precision": "3xtf32", "arch": "sm_75"}, "sm_75 has no tensor cores for 3xtf32"),
        ({"D": 1500, "H": 10}, ""),
        ({"D": 4096, "H": 10}, "a tile of D = 4096, H = 10, C = 1 takes"),
        ({"arch": "sm_75"}, "sm_75 has 65536"),
    ],
)
def test_refusals(changes, reason):
    problem = dataclasses.replace(LARGE, **changes)
    found = two_layer_step.refusal(problem)
    assert (reason in found) if reason else found == ""
    if reason:
        with pytest.raises(ValueError, match="path R1: "):
            two_layer_step.lay_out(problem)


def test_partitions_cover_the_samples_once():
    for N, D, H, C in [
        (1, 1, 1, 1),
        (17, 784, 50, 1),
        (1000, 20, 10, 3),
        (50_000, 784, 50, 1),
        (10**6, 16, 8, 2),
    ]:
        problem = Problem(N, D, H, C)
        found = two_layer_step.chunks(N, D, D * H + H + H * C + C, 16)
        assert len(set(found)) == len(found) <= 1 + len(two_layer_step.SPREAD_OVER)
        for tiling in two_layer_step.tilings(problem):
            assert tiling.chunk in found
            assert tiling.chunk % 16 == 0
            S = two_layer_step.geometry(problem, tiling).partitions
            assert (S - 1) * tiling.chunk < N <= S * tiling.chunk


def test_the_partitions_of_the_large_batch():
    """8 S P ≤ 0.3 · 4 N D, and S keeps A100 and H100 at work."""
    layout = two_layer_step.lay_out(Problem(50_000, 784, 50, 1))
    P = 784 * 50 + 50 + 50 + 1
    assert 8 * layout.partitions * P <= 0.3 * 4 * 50_000 * 784
    chunk = two_layer_step.geometry(layout.problem).chunk
    for sms in (108, 132):
        assert 50_000 / sms / (chunk * -(-layout.partitions // sms)) > 0.8


# ---- traffic ---------------------------------------------------------------------------------------------

ALIGNED = Problem(400, 112, 64, 1, rule="Store")  # 16-byte rows, the tile of 8 x 8 elements
STAND_IN = dataclasses.replace(LARGE, N=160)


@pytest.mark.parametrize(
    "problem",
    [ALIGNED, pytest.param(STAND_IN, marks=pytest.mark.slow), dataclasses.replace(ALIGNED, inputs="uint8")],
)
def test_traffic_is_what_the_layout_says(problem):
    step = Step(problem)
    _, found = counted(step)
    assert found == {name: moved for name, moved in step.layout.requested.items() if moved}
    assert found["X"] == problem.N * problem.D * problem.input_itemsize


@pytest.mark.parametrize("problem", [ALIGNED, pytest.param(STAND_IN, marks=pytest.mark.slow)])
def test_main_loops_are_coalesced_and_free_of_bank_conflicts(problem):
    counts = counted(Step(problem))[0][0]
    X, W1, partials = (global_traffic(counts)[name] for name in ("X", "W1", "partials"))
    assert X["load"].coalescing <= 1.1
    assert W1["load"].coalescing <= 1.1
    assert partials["store"].coalescing <= 1.1
    shared = shared_traffic(counts)
    assert shared["load"].conflicts <= 1.1


def test_the_catalogue_lists_few_and_has_every_tile():
    entry = next(entry for entry in catalogue() if entry.op == "two_layer.step")
    assert len(entry.expressions) <= 40
    for dtype, shapes in two_layer_step_tiles.ACCUMULATORS.items():
        for ROWS, TM, TN in shapes:
            cpp = {"float32": "float", "float64": "double"}[dtype]
            assert any(f"FmaTile<{cpp}, {ROWS}, {TM}, {TN}, " in e for e in entry.expressions)


def test_tensor_core_tiles_are_watched_and_use_tensor_cores():
    rows = [row for row in budgets.read_snapshot() if "MmaTile" in row.kernel and row.arch != "sm_75"]
    assert len({row.kernel for row in rows}) == 3
    assert all(row.hmma > 0 for row in rows)
    spilling = {(row.kernel, row.arch) for row in rows if row.spill_stores}
    assert spilling == set(budgets.SPILLS_LET_PASS)
