"""R4 against float64 NumPy: whole steps of any shape, its launches, its partitions, what it refuses."""

import dataclasses
import itertools

import numpy as np
import pytest
import reference_network
from devices import build_ahead
from reference_network import assert_within
from small_networks import needs_compiler

from handgrad import emulator
from handgrad.arrays import to_numpy
from handgrad.kernel import Kernel
from handgrad.ops import Workspace
from handgrad.ops import loss as loss_op
from handgrad.ops import two_layer_general as path
from handgrad.ops.activation import NAMES
from handgrad.ops.optimizer import SGD, Adam
from handgrad.ops.two_layer import Problem, StepArrays
from handgrad.ops.two_layer_general_geometry import Geometry
from handgrad.ops.two_layer_general_tiles import (
    BROAD,
    LONG,
    MEDIUM,
    MEDIUM_DOUBLE,
    NARROW,
    SKINNY,
    SKINNY_DOUBLE,
    SLIM,
    SMALL_DOUBLE,
    WIDE,
    MmaTile,
    choose_output_tile,
    choose_tile,
)
from handgrad.parameters import FlatParameters
from handgrad.proof.covering import pairwise

pytestmark = needs_compiler


# What one rounding may change, by precision; 3xtf32 loses what the small parts of its operands would give.
ROUNDOFF = {
    "float32": 2.0**-24,
    "float64": 2.0**-53,
    "3xtf32": 2.0**-24 + 2.0**-22,
    "tf32": 2.0**-11,
    "bfloat16": 2.0**-8,
}
PIXELS = (1 / 128, -1.0)  # scale and shift of uint8, exact


class Step:
    """A problem with numbers in it: normal ones, or small integers, whose products are exact."""

    def __init__(self, problem, kind="normal", seed=0, offset=0):
        self.problem = p = problem
        rng = np.random.default_rng(seed)

        def draw(*shape):
            return (rng.integers(-1, 2, shape) if kind == "integers" else rng.normal(size=shape)).astype(
                p.dtype
            )

        shapes = {"W1": (p.D, p.H), "b1": (p.H,), "W2": (p.H, p.C), "b2": (p.C,)}
        shapes = {name: shape for name, shape in shapes.items() if p.bias or name[0] == "W"}
        values = {name: draw(*shape) for name, shape in shapes.items()}
        if kind == "normal":
            values = {name: value / np.sqrt(len(value)).astype(p.dtype) for name, value in values.items()}
        self.parameters = FlatParameters(shapes, p.dtype, emulator)
        self.parameters.copy_from(values)
        pixels = p.inputs == "uint8"
        self.X = rng.integers(0, 256, (p.N, p.D)).astype(np.uint8) if pixels else draw(p.N, p.D)
        self.scale, self.shift = PIXELS if pixels else (1.0, 0.0)
        if p.loss in loss_op.ELEMENTWISE:
            self.y = rng.integers(0, 2, (p.N, p.C)).astype(p.dtype)
        else:
            self.y = rng.integers(0, p.C, p.N).astype(np.int32)
        at = emulator.zeros(offset + self.X.size, self.X.dtype)[offset:].reshape(self.X.shape)
        at[...] = self.X
        self.arrays = StepArrays(
            X=at,
            y=emulator.asarray(self.y),
            scale=self.scale,
            shift=self.shift,
            parameters=self.parameters,
            gradient=self.parameters.like().flat,
            optimizer=None,
            loss=emulator.empty(1, p.dtype),
            workspace=Workspace(),
        )

    def run(self):
        """Loss and gradients by name."""
        path.run(path.lay_out(self.problem), self.arrays)
        gradients = self.parameters.split(self.arrays.gradient)
        return {name: to_numpy(one).copy() for name, one in {"loss": self.arrays.loss, **gradients}.items()}

    def expected(self):
        p = self.problem
        config = {"sizes": [p.D, p.H, p.C], "activation": p.activation, "output": p.output}
        config |= {"loss": p.loss, "reduction": p.reduction}
        X = self.X * self.scale + self.shift if p.inputs == "uint8" else self.X
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(reference_network.ROUNDOFF, p.dtype, ROUNDOFF[p.precision])
            found = reference_network.network(config, X, self.y, self.parameters.to_numpy(), p.dtype, False)
        return {"loss": found["loss"], **{name: found[f"d{name}"] for name in self.parameters.shapes}}

    def check(self):
        got, expected = self.run(), self.expected()
        assert_within(got["loss"][0], expected["loss"], "loss")
        for name in self.parameters.shapes:
            assert_within(got[name], expected[name], name)


def problem(N, D, H, C, dtype="float32", **more):
    return Problem(
        N, D, H, C, **{"dtype": dtype, "inputs": dtype, "precision": dtype, "rule": "Store"} | more
    )


# ---- whole steps -----------------------------------------------------------------------------------------

STEPS = {
    "one sample": problem(1, 1, 1, 1),
    "odd": problem(131, 37, 33, 3, activation="tanh", loss="bce"),
    "aligned, split": problem(300, 36, 64, 10, loss="cross_entropy"),
    "wide output, odd": problem(67, 35, 63, 17, loss="hinge", activation="sigmoid", bias=False),
    "wide output": problem(129, 36, 64, 132, loss="cross_entropy", activation="softplus"),
    "pixels": problem(131, 36, 40, 2, inputs="uint8", loss="mse", output="sigmoid"),
    "float64": problem(131, 35, 64, 16, "float64", loss="mse", reduction="sum", activation="tanh"),
    "tf32": problem(67, 100, 132, 10, precision="tf32", loss="cross_entropy"),
    "3xtf32": problem(67, 99, 131, 18, precision="3xtf32", loss="cross_entropy", activation="tanh"),
    "bfloat16": problem(131, 36, 64, 20, precision="bfloat16", loss="mse", activation="tanh"),
}


@pytest.fixture(scope="module", autouse=True)
def built():
    build_ahead(lambda: [Step(one).run() for one in STEPS.values()])


@pytest.mark.parametrize("name", STEPS)
def test_a_step_agrees_with_numpy(name):
    Step(STEPS[name]).check()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_pair_of_choices_agrees_with_numpy(dtype):
    """Activations, outputs, losses, precisions, types of X and ragged sizes: a pairwise covering array."""
    factors = {
        "N": (1, 31, 33, 127, 300),
        "D": (1, 3, 84, 85),
        "H": (1, 50, 63, 65, 129),
        "C": (1, 2, 10, 17, 65),
        "activation": NAMES,
        "loss": loss_op.NAMES,
        "reduction": loss_op.REDUCTIONS,
        "bias": (True, False),
        "precision": ("float32", "tf32", "3xtf32", "bfloat16") if dtype == "float32" else ("float64",),
        "inputs": (dtype, "uint8"),
        "offset": (0, 1),
    }
    steps = []
    for row in pairwise(factors):
        offset = row.pop("offset")
        output = row["activation"] if row["loss"] == "mse" else "identity"
        steps.append(Step(problem(**row, dtype=dtype, output=output), offset=offset))
    build_ahead(lambda: [one.run() for one in steps])
    for one in steps:
        one.check()


def test_a_step_of_small_integers_is_exact():
    for precision in ("float32", "tf32", "3xtf32", "bfloat16"):
        p = problem(40, 36, 32, 4, precision=precision, reduction="sum", activation="identity")
        one = Step(p, "integers")
        got, expected = one.run(), one.expected()
        for name, value in got.items():
            np.testing.assert_array_equal(value.reshape(-1), np.reshape(expected[name].value, -1), name)


def test_x_may_begin_anywhere():
    """Where it is not aligned, the loads are narrower, and the bits the same."""
    for p, offset in ((STEPS["aligned, split"], 1), (STEPS["pixels"], 3)):
        shifted, aligned = Step(p, offset=offset).run(), Step(p).run()
        for name, value in aligned.items():
            np.testing.assert_array_equal(shifted[name], value, name)


@pytest.mark.parametrize("name", ["odd", "wide output, odd"])
def test_the_first_step_of_an_optimizer(name):
    """As the optimizer's own kernel does it from the gradient."""
    for optimizer, other in ((SGD(0.1, momentum=0.9), SGD(0.1, momentum=0.9)), (Adam(0.01), Adam(0.01))):
        stored, fused = Step(STEPS[name]), Step(dataclasses.replace(STEPS[name], rule=optimizer.rule))
        stored.run()
        gradients = stored.parameters.like()
        gradients.flat[...] = stored.arrays.gradient
        other.update(stored.parameters, gradients)
        optimizer.bind(fused.parameters)
        fused.arrays.optimizer, fused.arrays.gradient = optimizer, None
        path.run(path.lay_out(fused.problem), fused.arrays)
        np.testing.assert_array_equal(fused.parameters.flat, stored.parameters.flat)
        assert optimizer.step == 1


# ---- extremes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reduction", "loss"), [("mean", np.nan), ("sum", 0.0)])
def test_no_samples(reduction, loss):
    one = Step(problem(0, 3, 4, 2, reduction=reduction))
    one.arrays.gradient[...] = 5
    got = one.run()
    assert len(path.lay_out(one.problem).launches) == 1
    np.testing.assert_array_equal(got.pop("loss"), [loss])
    assert all((value == 0).all() for value in got.values())


@pytest.mark.parametrize("C", [10, 17])
def test_unknown_labels_give_nan(C):
    one = Step(problem(40, 36, 32, C, loss="cross_entropy"))
    one.arrays.y[3] = C
    got = one.run()
    assert np.isnan(got["loss"]).all()
    assert np.isnan(got["b2"]).all()


def test_dead_units_drop_what_is_infinite():
    """relu's derivative selects: an infinite weight behind a dead unit leaves no trace in dW1."""
    one = Step(problem(40, 36, 32, 4, loss="mse"))
    one.parameters.views["b1"][...] = -1e4
    one.parameters.views["W2"][...] = np.inf
    with np.errstate(invalid="ignore"):
        got = one.run()
    assert (got["W1"] == 0).all()
    assert (got["b1"] == 0).all()
    assert np.isnan(got["loss"]).all(), "0 times infinity, in the logits"


# ---- determinism -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["aligned, split", "wide output, odd", "3xtf32"])
def test_the_same_bits_in_every_order_of_threads(name):
    first = Step(STEPS[name]).run()
    for order, seed in (("reverse", 0), ("lifo", 0), *(("random", seed) for seed in range(3))):
        with emulator.settings(order=order, seed=seed, copies="random"):
            again = Step(STEPS[name]).run()
        for one, value in first.items():
            np.testing.assert_array_equal(again[one], value, f"{one}, {order} {seed}")


@pytest.mark.parametrize("name", ["aligned, split", "wide output, odd"])
def test_the_same_bits_on_any_number_of_multiprocessors(name):
    """Partitions come from the shape; a grid of fewer blocks goes through all of them."""
    layouts = [
        path.lay_out(dataclasses.replace(STEPS[name], sms=sms, arch=arch))
        for sms, arch in itertools.product((1, 4, 7, 132), ("sm_75", "sm_90"))
    ]
    keep = {(one.partitions, one.launches, tuple(one.workspace.items())) for one in layouts}
    assert len(keep) == 1
    first = Step(STEPS[name]).run()
    geometry = Geometry(STEPS[name])
    assert geometry.partitions * geometry.output_partitions > 1
    launch = Kernel.__call__

    def narrower(self, grid, block, *args, shared=0):
        if self.expression.startswith("general_output"):
            grid = (1,)
        if self.expression.startswith("general_weight"):
            grid = (grid[0], 1)
        launch(self, grid, block, *args, shared=shared)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Kernel, "__call__", narrower)
        again = Step(STEPS[name]).run()
    for one, value in first.items():
        np.testing.assert_array_equal(again[one], value, one)


# ---- launches, memory, refusals --------------------------------------------------------------------------


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_four_launches_and_allocates_once(name, monkeypatch):
    one, launched = Step(STEPS[name]), []
    one.run()
    held = one.arrays.workspace.nbytes
    layout = path.lay_out(one.problem)
    assert held == sum(layout.workspace.values())
    monkeypatch.setattr(emulator, "empty", lambda *_, **__: pytest.fail("a step allocates"))
    launch = emulator.launch
    monkeypatch.setattr(emulator, "launch", lambda *args: (launched.append(args), launch(*args)))
    path.run(layout, one.arrays)
    assert one.arrays.workspace.nbytes == held
    assert [(args[1], tuple(args[2]), tuple(args[3])) for args in launched] == [
        (one.kernel.expression, one.grid, one.block) for one in layout.launches
    ]
    assert len(launched) == 4


def test_sm_75_has_no_tensor_cores_for_these():
    for precision in ("tf32", "3xtf32", "bfloat16"):
        p = problem(5, 5, 5, 5, precision=precision, arch="sm_75")
        assert path.refusal(p) == (
            f"precision {precision}: sm_75 multiplies neither tf32 nor bfloat16; take float32"
        )
        with pytest.raises(ValueError, match="R4: precision"):
            path.lay_out(p)
    assert path.refusal(problem(5, 5, 5, 5, arch="sm_75")) == ""
    with emulator.settings(arch="sm_75"):
        Step(dataclasses.replace(STEPS["odd"], arch="sm_75")).check()


def test_arrays_are_those_of_the_problem():
    one = Step(STEPS["odd"])
    one.arrays.scale = 2.0
    with pytest.raises(ValueError, match="R4: X is float32, so scale and shift must be 1 and 0"):
        one.run()
    one.arrays.X = one.arrays.X[:5]
    with pytest.raises(ValueError, match=r"R4: X must have shape \(N, D\) = \(131, 37\), got \(5, 37\)"):
        one.run()
    for change, message in (
        ({"X": one.X.astype(np.float64)}, "R4: X must be float32, as the problem says, got float64"),
        ({"y": one.y[:, :2]}, r"R4: y must have shape \(N, C\) or \(N,\) = \(131, 3\), got \(131, 2\)"),
        ({"y": one.y.astype(np.int32)}, "R4: y must be float32, got int32"),
    ):
        wrong = Step(STEPS["odd"])
        for name, value in change.items():
            setattr(wrong.arrays, name, emulator.asarray(value))
        with pytest.raises((TypeError, ValueError), match=message):
            wrong.run()


@pytest.mark.parametrize(
    ("size", "tile"),
    [
        ((5000, 1, "float32"), NARROW), ((5000, 32, "float32"), NARROW), ((5000, 33, "float32"), MEDIUM),
        ((5000, 64, "float32"), MEDIUM), ((8064, 65, "float32"), MEDIUM), ((8065, 65, "float32"), WIDE),
        ((8065, 65, "float64"), MEDIUM_DOUBLE), ((8065, 65, "tf32"), MmaTile("tf32", 128, 128, 16, 64, 64)),
        ((8065, 65, "3xtf32"), MmaTile("3xtf32", 128, 64, 16, 64, 32)),
        ((64, 65, "float32", True), MEDIUM), ((65, 65, "float32", True), WIDE),
        ((65, 65, "float32", True, True), BROAD), ((64, 65, "float32", True, True), MEDIUM),
        ((65, 65, "float32", True, True, True), MEDIUM), ((65, 65, "float32", True, False, True), WIDE),
        ((65, 65, "3xtf32", True), MmaTile("3xtf32", 64, 64, 16, 32, 32)),
        ((65, 65, "3xtf32", True, True, True), MmaTile("3xtf32", 64, 64, 16, 32, 32)),
        ((65, 65, "float64", True, True), SMALL_DOUBLE),
        ((65, 65, "bfloat16", True, True), MmaTile("bfloat16", 128, 64, 16, 64, 32)),
    ],
)  # fmt: skip
def test_tiles_change_where_they_should(size, tile):
    assert choose_tile(*size) == tile


def test_tiles_of_the_second_layer_change_where_they_should():
    chosen = [choose_output_tile(C, "float32") for C in (1, 4, 5, 16, 17)]
    assert chosen == [SLIM, SLIM, SKINNY, SKINNY, LONG]
    assert [choose_output_tile(C, "float64") for C in (4, 5, 16, 17)] == [
        SLIM,
        SKINNY_DOUBLE,
        SKINNY_DOUBLE,
        SMALL_DOUBLE,
    ]
    assert choose_output_tile(17, "bfloat16").precision == "bfloat16"
    assert choose_output_tile(16, "bfloat16") == SKINNY
    assert not Geometry(problem(5, 5, 5, 16)).stores_dZ1
    assert Geometry(problem(5, 5, 5, 17)).stores_dZ1
