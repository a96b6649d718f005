"""The epoch in one launch (R2): equal to the step-by-step path, whatever the cells, schedule and device."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from small_networks import needs_compiler
from two_layer_epochs import MAKE, NOT_KEPT, TOLERANCE, is_kept, order_of, training

from handgrad import emulator
from handgrad.arrays import to_numpy
from handgrad.emulator.counting import counting
from handgrad.emulator.watched import MODES, SEARCHES, searching
from handgrad.kernel import kernels_directory
from handgrad.ops import activation as activation_op
from handgrad.ops import loss as loss_op
from handgrad.ops import two_layer_epoch, two_layer_epoch_cells
from handgrad.ops.optimizer import SGD
from handgrad.ops.two_layer import Problem
from handgrad.proof.covering import pairwise

pytestmark = needs_compiler


def prebuild(cases: list[dict[str, Any]], mode: str = "plain") -> None:
    layouts = [training(**case).layout for case in cases]
    file = kernels_directory() / two_layer_epoch.FILE
    emulator.prebuild([(file, layout.launches[0].kernel.expression) for layout in layouts], mode=mode)


FEW: list[dict[str, Any]] = [
    {"optimizer": "momentum"},
    {"optimizer": "momentum", "sms": NOT_KEPT},
    {
        "optimizer": "sgd",
        "loss": "mse",
        "output": "sigmoid",
        "activation": "relu",
        "D": 24,
        "reduction": "sum",
    },
    {"optimizer": "adamw", "loss": "hinge", "inputs": "uint8", "D": 24, "sms": NOT_KEPT},
    {"optimizer": "adam", "loss": "bce", "activation": "softplus", "dtype": "float64", "bias": False},
    {"optimizer": "nesterov", "loss": "bce", "inputs": "uint8", "activation": "sigmoid", "C": 1},
]
MANY = [
    {name: value for name, value in row.items() if value is not None}
    for row in pairwise(
        {
            "activation": activation_op.NAMES,
            "loss": loss_op.NAMES,
            "optimizer": tuple(MAKE),
            "dtype": ("float32", "float64"),
            "inputs": (None, "uint8"),
            "bias": (True, False),
            "reduction": ("mean", "sum"),
            "sms": (108, NOT_KEPT),
            "N": (1, 13, 33),
            "D": (1, 22, 24, 65),
            "H": (1, 11, 50),
            "C": (1, 3, 17),
        }
    )
]
SMALL = {"N": 9, "D": 9, "H": 8, "rows": 30}


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    prebuild(FEW)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_three_epochs_equal_the_step_by_step_path(case: dict[str, Any]) -> None:
    """A short batch at the end of each; uint8 X is scaled and shifted in the kernel."""
    run = training(**case)
    assert is_kept(run.layout) == ("sms" not in case)
    assert run.layout.partitions > 1
    for epoch in range(3):
        order = order_of(60, 3 * run.problem.N + 5, epoch)
        losses, expected = run.epoch(order), run.exact_epoch(order)
        bound = TOLERANCE * np.finfo(run.problem.dtype).eps * np.abs(expected).max()
        np.testing.assert_allclose(losses, expected, rtol=0, atol=bound)
    run.require_equal()
    assert run.optimizer.step == 3 * 4


@pytest.mark.slow
@pytest.mark.parametrize("case", MANY, ids=str)
def test_all_losses_activations_and_rules(case: dict[str, Any]) -> None:
    if case["loss"] in ("mse", "bce") and case["reduction"] == "sum":
        case = case | {"N": min(case["N"], 13)}  # a step of lr 0.1 times a sum of many diverges
    run = training(**case)
    for epoch in range(2):
        order = order_of(60, min(60, 2 * run.problem.N + 1), epoch)
        losses, expected = run.epoch(order), run.exact_epoch(order)
        bound = 4 * TOLERANCE * np.finfo(run.problem.dtype).eps * max(np.abs(expected).max(), 1)
        np.testing.assert_allclose(losses, expected, rtol=0, atol=bound)
    run.require_equal(4 * TOLERANCE)


@pytest.mark.parametrize(("count", "batches"), [(1, 1), (13, 1), (14, 2), (26, 2)])
def test_batches_of_every_length(count: int, batches: int) -> None:
    run = training(**FEW[0])
    losses = run.epoch(order_of(60, count))
    assert losses.shape == (batches,)
    np.testing.assert_allclose(losses, run.exact_epoch(order_of(60, count)), rtol=1e-5)
    run.require_equal()


def test_more_steps_than_rules_are_prepared_at_once() -> None:
    """Batches of one sample; the bias correction of Adam follows the step."""
    run = training(**(FEW[4] | {"N": 1, "rows": 90}))
    order = order_of(90, 2 * two_layer_epoch_cells.RULES + 3)
    np.testing.assert_allclose(run.epoch(order), run.exact_epoch(order), rtol=1e-12)
    run.require_equal()
    assert run.optimizer.step == 67


def test_no_row_is_no_step() -> None:
    run = training(**FEW[0])
    before = run.bits()
    assert run.epoch(np.zeros(0, np.int32)).shape == (0,)
    assert run.bits() == before
    assert run.optimizer.step == 0


def test_whole_numbers_are_exact() -> None:
    """One step in which every product and sum is a small integer times a power of two: bit for bit."""
    run = training(**(FEW[2] | {"output": "identity", "activation": "identity"}))
    rng = np.random.default_rng(0)
    whole = {n: rng.integers(-2, 3, v.shape) for n, v in run.exact.parameters.items()}
    X, y = rng.integers(-2, 3, run.X.shape).astype(np.float32), rng.integers(-2, 3, run.y.shape)
    optimizer, exact_optimizer = SGD(2.0**-6), SGD(2.0**-6)
    optimizer.bind(run.net.flat_parameters)
    for net in (run.net, run.exact):
        net.load_parameters(whole)
    run.X, run.y, run.optimizer, run.exact_optimizer = X, y.astype(np.float32), optimizer, exact_optimizer
    run.arrays = dataclasses.replace(
        run.arrays, X=emulator.asarray(run.X), y=emulator.asarray(run.y), optimizer=optimizer
    )
    order = order_of(60, 13)
    np.testing.assert_array_equal(run.epoch(order), run.exact_epoch(order))
    for name, value in run.exact.parameters.items():
        np.testing.assert_array_equal(to_numpy(run.net.parameters[name]), value, err_msg=name)


@pytest.mark.parametrize("frozen", [("W1",), ("b1", "W2"), ("b2",), ("W1", "b1", "W2", "b2")])
def test_frozen_parameters_keep_every_bit_and_their_state(frozen: tuple[str, ...]) -> None:
    run = training(**FEW[0], frozen=frozen)
    before = {name: to_numpy(run.net.parameters[name]).copy() for name in frozen}
    order = order_of(60, 30)
    run.epoch(order)
    run.exact_epoch(order)
    run.require_equal()
    for name, value in before.items():
        np.testing.assert_array_equal(to_numpy(run.net.parameters[name]), value)
        assert not to_numpy(run.optimizer.state_arrays()[f"momentum.{name}"]).any()


def test_an_unknown_label_gives_nan_and_reads_nothing_else() -> None:
    run = training(**FEW[0])
    run.arrays.y[3] = 3
    order = np.arange(26, dtype=np.int32)
    losses = run.epoch(order)
    assert np.isnan(losses).all()
    again = training(**FEW[0])
    again.arrays.y[20] = -1
    assert np.isnan(again.epoch(order)).tolist() == [False, True]


def test_x_that_starts_anywhere() -> None:
    run, other = training(**FEW[2]), training(**FEW[2])
    room = emulator.empty(run.X.size + 1, np.float32)
    room[1:] = run.X.ravel()
    other.arrays.X = room[1:].reshape(run.X.shape)
    order = order_of(60, 30)
    np.testing.assert_array_equal(run.epoch(order), other.epoch(order))
    assert run.bits() == other.bits()


# ---- the same bits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [
        FEW[0],
        {"optimizer": "momentum", "activation": "relu", "N": 45, "D": 20, "H": 12, "rows": 100},
        {"optimizer": "adam", "activation": "sigmoid", "loss": "bce", "N": 45, "D": 64, "H": 16, "C": 1},
    ],
    ids=str,
)
def test_bits_do_not_depend_on_the_multiprocessors(case: dict[str, Any]) -> None:
    """Nor on where the slices lie, nor on the architecture."""
    found, places = set(), set()
    for arch, sms in (("sm_80", 1), ("sm_80", 4), ("sm_80", 7), ("sm_80", 132), ("sm_75", 132), ("sm_90", 3)):
        run = training(**case | {"arch": arch, "sms": sms})
        places.add(is_kept(run.layout))
        losses = [run.epoch(order_of(60, 44, epoch)).tobytes() for epoch in range(2)]
        found.add((run.bits(), *losses))
    assert places == {True, False}
    assert len(found) == 1


@pytest.mark.parametrize("case", FEW[:2], ids=str)
def test_bits_do_not_depend_on_the_schedule(case: dict[str, Any]) -> None:
    found = set()
    for seed in range(20):
        run = training(**case)
        with emulator.settings(order=("forward", "reverse", "lifo", "random")[min(seed, 3)], seed=seed):
            found.add((run.epoch(order_of(60, 31)).tobytes(), run.bits()))
    assert len(found) == 1


@pytest.mark.slow
@pytest.mark.parametrize("case", [FEW[2], FEW[3], FEW[4]], ids=str)
@pytest.mark.parametrize("search", SEARCHES)
def test_searches_of_other_kernels(search: str, case: dict[str, Any]) -> None:
    for order in ("forward", "reverse", "random"):
        run = training(**case | SMALL)
        with emulator.settings(order=order, seed=2), searching(search):
            run.epoch(order_of(30, 23))
        run.exact_epoch(order_of(30, 23))
        run.require_equal()


@pytest.mark.parametrize("search", SEARCHES)
def test_no_search_finds_anything(search: str) -> None:
    prebuild([case | SMALL for case in FEW[:2]], mode=MODES[search])
    for case in FEW[:2]:
        for order in ("forward", "random"):
            run = training(**case | SMALL)
            with emulator.settings(order=order, seed=2), searching(search):
                run.epoch(order_of(30, 23))
            run.exact_epoch(order_of(30, 23))
            run.require_equal()


def test_the_shared_memory_is_what_the_kernel_takes() -> None:
    """To the last element: with 16 bytes less it writes past the end."""
    run = training(**FEW[0] | SMALL)
    launch = run.layout.launches[0]
    shorter = dataclasses.replace(launch, shared=launch.shared - 16)
    run.layout = dataclasses.replace(run.layout, launches=(shorter,))
    with searching("memory"), pytest.raises(emulator.EmulatorError, match="end of dynamic shared memory"):
        run.epoch(order_of(30, 23))
    assert int(run.arrays.workspace.zeroed_once("epoch.barrier", (1,), np.uint32, emulator)[0]) == 0


# ---- the embedded digits ---------------------------------------------------------------------------------


def test_three_epochs_of_the_embedded_digits() -> None:
    """784 → 12 → 10, uint8 images: as MLP.train_epoch on NumPy, and it learns."""
    from handgrad.datasets import load

    digits = load("mnist-subset")
    X, y = digits.train.X[:200], digits.train.y[:200].astype(np.int32)
    run = training(optimizer="momentum", rows=200, N=64, D=784, H=12, C=10, activation="relu", inputs="uint8")
    run.X, run.y = X.reshape(200, 784), y
    run.arrays.X, run.arrays.y = emulator.asarray(run.X), emulator.asarray(y)
    run.arrays.shift = 0.0
    means = []
    for epoch in range(3):
        order = order_of(200, 200, epoch)
        losses, expected = run.epoch(order), run.exact_epoch(order)
        np.testing.assert_allclose(losses, expected, rtol=1e-4)
        means.append(losses.mean())
    run.require_equal(400)
    assert means[2] < 0.8 * means[0]


# ---- layout, traffic, refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", [FEW[0], FEW[1], FEW[2]], ids=str)
def test_traffic_is_what_the_layout_says(case: dict[str, Any]) -> None:
    """Per buffer, in two whole batches; two barriers a step; no bank conflicts in the products of X."""
    run = training(**case)
    with counting() as launches:
        run.epoch(order_of(60, 26))
    (counts,) = launches
    assert counts.collectives["grid_barrier"] == 2 * 2
    moved: dict[str, int] = {}
    for place in counts.places:
        moved[place.buffer] = moved.get(place.buffer, 0) + place.lanes * place.bytes
    for buffer, nbytes in run.layout.requested.items():
        assert moved[buffer] == 2 * nbytes, buffer
    order = to_numpy(order_of(60, 26))
    assert counts.distinct["X", "load"] <= (len(order) + 1) * (run.X[0].nbytes + 64)
    lines = (kernels_directory() / two_layer_epoch.FILE).read_text().splitlines()
    for name in ("x0", "x1", "x"):
        (number,) = [i for i, line in enumerate(lines, 1) if f" {name} = load_vector<" in line]
        places = [p for p in counts.places if p.line == number and p.buffer == "shared memory"]
        assert places
        assert sum(p.wavefronts for p in places) <= 1.1 * sum(p.least_wavefronts for p in places), name


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rule": "Store"}, "the epoch has no gradient to store"),
        ({"precision": "tf32"}, "products of tf32 are not done here, only float32"),
        ({"C": 33}, "C = 33 is above 32"),
        ({"N": 0}, "a batch has no samples"),
        ({"N": 5000}, "no slices of N = 5000 by D = 784 and H = 128 fit the shared memory of a block"),
        ({"N": 512, "arch": "sm_75"}, r"a block needs \d+ bytes of shared memory, and sm_75 has 65536"),
    ],
)
def test_refusals(changes: dict[str, Any], reason: str) -> None:
    usual = {"N": 128, "D": 784, "H": 128, "C": 10, "loss": "cross_entropy"}
    assert two_layer_epoch.refusal(Problem(**usual)) == ""
    problem = Problem(**usual | changes)
    with pytest.raises(ValueError, match=f"R2: {reason}"):
        two_layer_epoch.lay_out(problem)


def test_wrong_arguments_are_named() -> None:
    run = training(**FEW[0])
    losses = emulator.empty(1)
    order = emulator.asarray(order_of(60, 13))
    call = two_layer_epoch.run
    with pytest.raises(ValueError, match="batch_size must be the layout's N = 13, got 12"):
        call(run.layout, run.arrays, order, 12, losses)
    with pytest.raises(TypeError, match="order must be int32"):
        call(run.layout, run.arrays, order.astype(np.int64), 13, losses)
    with pytest.raises(ValueError, match="losses must have shape of the result = "):
        call(run.layout, run.arrays, order, 13, emulator.empty(2))
    run.arrays.X = run.arrays.X.astype(np.float64)
    with pytest.raises(TypeError, match=r"X must be float32 \(rows, 22\), got float64"):
        call(run.layout, run.arrays, order, 13, losses)
