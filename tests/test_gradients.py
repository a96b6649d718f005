"""Gradients against PyTorch: golden data, and live where torch is installed; faults planted on purpose."""

import itertools

import numpy as np
import pytest
from devices import DEVICES, build_ahead, everything, network_on
from golden import make_golden
from reference_network import Bounded, assert_norm, assert_within, network

from handgrad.host.block import Block
from handgrad.ops import activation as activation_op
from handgrad.ops import linear, loss_numpy
from handgrad.ops import loss as loss_op

CASES = make_golden.read()
DTYPES = ("float32", "float64")
LOSSES = ("mse", "bce", "cross_entropy", "hinge")


def cases_of(activation, loss):
    return [
        case
        for case in CASES
        if case["config"]["activation"] == activation and case["config"]["loss"] == loss
    ]


def check(case, device, dtype, intermediates):
    """One case: every value that PyTorch gave, by name; float64 also norm-wise to 1e-12."""
    config, arrays = case["config"], case["arrays"]
    parameters = make_golden.parameters(arrays)
    net = network_on(device, config, parameters, dtype)
    found = everything(net, arrays["X"], arrays["y"], intermediates)
    inputs = {"X", "y", *parameters}
    if intermediates:
        assert set(found) == set(arrays) - inputs | {"X"}
    else:
        assert set(found) == {"loss", "dX", *(f"d{name}" for name in parameters)}
    bounds = network(config, arrays["X"], arrays["y"], parameters, dtype)
    for name, value in found.items():
        assert value.dtype == dtype, name
        assert_norm(bounds[name].value, arrays[name], 1e-12, f"the reference's {name}")
        assert_within(value, bounds[name], name)
        if dtype == "float64":
            assert_norm(value, arrays[name], 1e-12, name)


def launch_golden_cases():
    """Everything that the golden cases launch on the emulator."""
    for case, dtype, intermediates in itertools.product(CASES, DTYPES, (False, True)):
        arrays = case["arrays"]
        net = network_on("emulator", case["config"], make_golden.parameters(arrays), dtype)
        everything(net, arrays["X"], arrays["y"], intermediates)


@pytest.fixture(scope="module")
def kernels_built():
    """All kernels that the golden cases launch, built together."""
    build_ahead(launch_golden_cases)


def test_the_golden_data_hold_every_combination():
    combinations = {
        (c["activation"], c["loss"], c["output"], c["reduction"])
        for c in (case["config"] for case in CASES)
        if len(c["sizes"]) == 3
    }
    heads = [("mse", output) for output in activation_op.NAMES] + [(loss, "identity") for loss in LOSSES[1:]]
    assert combinations == {
        (activation, *head, reduction)
        for activation, head, reduction in itertools.product(activation_op.NAMES, heads, loss_op.REDUCTIONS)
    }
    assert {(len(case["config"]["sizes"]) - 1) for case in CASES} == {1, 2, 3, 4}
    without_bias = [case["config"] for case in CASES if not case["config"]["bias"]]
    assert {(c["activation"], c["loss"]) for c in without_bias} >= set(
        itertools.product(activation_op.NAMES, LOSSES)
    )
    assert make_golden.FILE.stat().st_size < 200_000


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", activation_op.NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", DEVICES)
def test_golden(device, dtype, activation, loss, request):
    if device == "emulator":
        request.getfixturevalue("kernels_built")
    for case in cases_of(activation, loss):
        for intermediates in (False, True):
            check(case, device, dtype, intermediates)


@pytest.mark.parametrize("case", CASES[::7], ids=lambda case: "-".join(map(str, case["config"].values())))
def test_block_by_block_agrees_with_step_by_step(case):
    """Their sums run in another order: they differ by no more than the bounds of both."""
    arrays, parameters = case["arrays"], make_golden.parameters(case["arrays"])
    for dtype in DTYPES:
        net = network_on("cpu", case["config"], parameters, dtype)
        bounds = network(case["config"], arrays["X"], arrays["y"], parameters, dtype)
        blocks, stepwise = (everything(net, arrays["X"], arrays["y"], kept) for kept in (False, True))
        for name, value in blocks.items():
            assert_within(value, Bounded(stepwise[name].astype(np.float64), 2 * bounds[name].error), name)


# ---- live ------------------------------------------------------------------------------------------------

NO_TORCH = "PyTorch is not installed: the stored golden data stand for it"


def random_case(seed):
    """A network of 1 to 4 layers of any widths, data and targets, by seed."""
    random = np.random.default_rng(seed)
    sizes = [int(size) for size in random.integers(1, 40, random.integers(2, 6))]
    loss, output = make_golden.LOSSES[seed % len(make_golden.LOSSES)]
    config = {
        "sizes": sizes,
        "activation": str(random.choice(activation_op.NAMES)),
        "output": output,
        "loss": loss,
        "reduction": str(random.choice(loss_op.REDUCTIONS)),
        "bias": bool(random.integers(2)),
    }
    drawn = make_golden.draw(sizes, int(random.integers(1, 60)), config["bias"], seed)
    return config, drawn["X"], make_golden.targets(drawn, loss), make_golden.parameters(drawn)


@pytest.mark.parametrize("seed", range(48))
def test_a_fresh_network_agrees_with_autograd(seed):
    pytest.importorskip("torch", reason=NO_TORCH)
    config, X, y, parameters = random_case(seed)
    expected = make_golden.autograd(config, X, y, parameters)
    in_float32 = network(config, X, y, parameters, "float32")
    for intermediates in (False, True):
        doubles = everything(network_on("cpu", config, parameters, "float64"), X, y, intermediates)
        singles = everything(network_on("cpu", config, parameters, "float32"), X, y, intermediates)
        for name in doubles.keys() - {"X"}:
            assert_norm(doubles[name], expected[name], 1e-12, name)
            assert_norm(in_float32[name].value, expected[name], 1e-12, f"the reference's {name}")
            assert_within(singles[name], in_float32[name], name)


def test_the_golden_data_are_what_torch_gives_now():
    pytest.importorskip("torch", reason=NO_TORCH)
    assert make_golden.largest_difference(CASES, make_golden.make()) < 1e-13


# ---- planted faults --------------------------------------------------------------------------------------


def two_layer(activation, loss, output="identity", reduction="mean"):
    wanted = {"activation": activation, "loss": loss, "output": output, "reduction": reduction, "bias": True}
    return next(
        case
        for case in CASES
        if len(case["config"]["sizes"]) == 3 and wanted.items() <= case["config"].items()
    )


def assert_noticed(case):
    """Both ways of computing gradients, in both dtypes, fail the check."""
    for dtype, intermediates in itertools.product(DTYPES, (False, True)):
        with pytest.raises(AssertionError, match=r"relative difference|the bound is"):
            check(case, "cpu", dtype, intermediates)


def pass_through(a, da, out, scratch):
    np.copyto(out, da)


@pytest.mark.parametrize("activation", [name for name in activation_op.NAMES if name != "identity"])
def test_a_dropped_mask_is_noticed(activation, monkeypatch):
    case = two_layer(activation, "mse")
    check(case, "cpu", "float64", intermediates=False)  # right as it stands
    monkeypatch.setitem(activation_op._BACKWARD, activation, pass_through)
    assert_noticed(case)


@pytest.mark.parametrize("output", [name for name in activation_op.NAMES if name != "identity"])
def test_a_dropped_output_derivative_is_noticed(output, monkeypatch):
    case = two_layer("identity", "mse", output)
    monkeypatch.setitem(activation_op._BACKWARD, output, pass_through)
    assert_noticed(case)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_dropped_division_by_the_samples_is_noticed(loss, monkeypatch):
    right, right_in_blocks = loss_op.forward_backward, Block.forward

    def without_division(Z, y, loss, output="identity", reduction="mean", out=None, workspace=None):
        value = right(Z, y, loss, output, reduction, workspace=workspace)[0]
        return value, right(Z, y, loss, output, "sum", out, workspace)[1]

    monkeypatch.setattr(loss_op, "forward_backward", without_division)
    monkeypatch.setattr(
        Block, "forward", lambda self, X, y, scale, step: right_in_blocks(self, X, y, None, step)
    )
    assert_noticed(two_layer("tanh", loss))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_gradient_of_the_loss_that_ignores_the_target_is_noticed(loss, monkeypatch):
    right = loss_numpy.BY_NAME[loss]

    class WithoutTarget(right):
        def __call__(self, Z, y, dZ):
            value = super().__call__(Z, y, dZ)
            super().__call__(Z, np.zeros_like(y), dZ)
            return value

    monkeypatch.setitem(loss_numpy.BY_NAME, loss, WithoutTarget)
    assert_noticed(two_layer("sigmoid", loss))


def plant_in_weight_gradients(monkeypatch, wrong):
    """``wrong(X, dZ, dW, db)`` changes what the right backward pass of a layer wrote; None is left alone."""
    right, right_products, right_sums = linear.backward_weight, Block._weight_product, Block._bias_gradient

    def step_by_step(X, dZ, dW=None, db=None, bias=True, workspace=None):
        dW, db = right(X, dZ, dW, db, bias, workspace)
        wrong(X, dZ, dW, db)
        return dW, db

    class Planted:
        def __init__(self, product):
            self.product = product

        def run(self, A):
            self.product.run(A)
            wrong(A.T, self.product.B, self.product.out, None)

        def calls(self, A):
            return [(self.run, (A,))]

    def sums(self, dZ, db):
        function, arguments = right_sums(self, dZ, db)
        return lambda: (function(*arguments), wrong(self.ones[:, None], dZ, None, db)), ()

    monkeypatch.setattr(linear, "backward_weight", step_by_step)
    monkeypatch.setattr(Block, "_weight_product", lambda self, *rest: Planted(right_products(self, *rest)))
    monkeypatch.setattr(Block, "_bias_gradient", sums)


@pytest.mark.parametrize("fault", ["averaged bias", "missing bias", "unscaled sum", "doubled weight"])
def test_a_wrong_parameter_gradient_is_noticed(fault, monkeypatch):
    def wrong(X, dZ, dW, db):
        if fault == "averaged bias" and db is not None:
            db /= len(X)
        elif fault == "missing bias" and db is not None:
            db[...] = 0
        elif fault == "unscaled sum" and dW is not None:
            dW[...] = X[:1].T @ dZ[:1]  # of one sample only
        elif fault == "doubled weight" and dW is not None:
            dW *= 1 + 1e-3

    plant_in_weight_gradients(monkeypatch, wrong)
    assert_noticed(two_layer("softplus", "cross_entropy"))


def test_a_nan_is_noticed(monkeypatch):
    def wrong(X, dZ, dW, db):
        if dW is not None:
            dW[-1, -1] = np.nan

    plant_in_weight_gradients(monkeypatch, wrong)
    assert_noticed(two_layer("relu", "mse"))
