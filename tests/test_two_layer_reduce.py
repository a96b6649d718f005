"""Ordered sums of partial gradients with the optimizer's rule on them, and what the fused paths share."""

import math

import numpy as np
import pytest
from small_networks import needs_compiler

from handgrad import emulator, kernel
from handgrad.arrays import to_numpy
from handgrad.kernel import DeviceLimits, device_limits, kernels_directory
from handgrad.ops import Workspace, two_layer_reduce
from handgrad.ops.optimizer import SGD, Adam, AdamW
from handgrad.ops.two_layer import Problem, StepArrays
from handgrad.parameters import FlatParameters

pytestmark = needs_compiler


SIZES = {"D": 37, "H": 19, "C": 5}
SHAPES = {"W1": (37, 19), "b1": (19,), "W2": (19, 5), "b2": (5,)}
MAKE = {
    "Store": lambda: None,
    "sgd": lambda: SGD(0.1, weight_decay=0.03),
    "momentum": lambda: SGD(0.05, momentum=0.9, nesterov=True),
    "adam": lambda: Adam(0.01),
    "adamw": lambda: AdamW(0.01, weight_decay=0.1),
}


@pytest.fixture(scope="module", autouse=True)
def built():
    file = kernels_directory() / two_layer_reduce.FILE
    emulator.prebuild([(file, text) for entry in two_layer_reduce.CATALOGUE for text in entry.expressions])


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


def set_up(dtype, optimizer, S=11, losses=7, own=0, seed=3, **settings):
    """A problem with the arrays of its last launch; partials in (S, P), NaN in their padding."""
    rng = np.random.default_rng(seed)
    rule = optimizer.rule if optimizer else "Store"
    problem = Problem(29, **SIZES, dtype=dtype, precision=dtype, inputs=dtype, rule=rule, **settings)
    parameters = FlatParameters(SHAPES, dtype, emulator)
    parameters.copy_from({name: rng.normal(size=shape) for name, shape in SHAPES.items()})
    partials = np.full((S, problem.flat_size), np.nan, dtype)
    tail = np.full((own, problem.flat_size - problem.offsets["b2"]), np.nan, dtype)
    for name, size in problem.sizes.items():
        start = problem.offsets[name]
        partials[:, start : start + size] = rng.normal(size=(S, size))
    tail[:, : SIZES["C"]] = rng.normal(size=(own, SIZES["C"]))
    arrays = StepArrays(
        None,
        None,
        1.0,
        0.0,
        parameters,
        parameters.like().flat,
        optimizer,
        emulator.empty(1, dtype),
        Workspace(),
    )
    given = [emulator.asarray(a) for a in (partials, rng.normal(size=losses).astype(dtype), tail)]
    return problem, arrays, given


def in_order(rows):
    """The sum in rising order, in the type of the rows; NaN (padding) counts as 0."""
    total = np.zeros(rows.shape[1:], rows.dtype)
    for row in to_numpy(rows):
        total += np.nan_to_num(row)
    return total


@pytest.mark.parametrize("S", [0, 1, 7, 8, 40])
def test_the_gradient_is_the_sum_in_rising_order_bit_for_bit(dtype, S):
    problem, arrays, (partials, losses, _) = set_up(dtype, None, S, losses=200)
    two_layer_reduce.reduce(problem, arrays, partials, losses)
    np.testing.assert_array_equal(to_numpy(arrays.gradient), in_order(partials))
    expected = to_numpy(in_order(losses.reshape(-1, 1)))[0] * np.dtype(dtype).type(problem.loss_scale)
    assert to_numpy(arrays.loss)[0] == expected


def test_b2_may_have_partials_of_its_own(dtype):
    problem, arrays, (partials, losses, tail) = set_up(dtype, None, S=6, own=9)
    two_layer_reduce.reduce(problem, arrays, partials, losses, tail)
    expected = in_order(partials)
    expected[problem.offsets["b2"] :] = in_order(tail)
    np.testing.assert_array_equal(to_numpy(arrays.gradient), expected)


@pytest.mark.parametrize("name", [name for name in MAKE if name != "Store"])
def test_the_rule_is_that_of_the_optimizer(dtype, name):
    """Five steps, b1 frozen, beside NumPy in float64 with the gradient summed in the same order."""
    optimizer, exact = MAKE[name](), MAKE[name]()
    problem, arrays, _ = set_up(dtype, optimizer)
    arrays.parameters.freeze("b1")
    reference = FlatParameters(SHAPES, np.float64, np)
    reference.copy_from(arrays.parameters.to_numpy())
    reference.freeze("b1")
    b1 = arrays.parameters.to_numpy()["b1"]
    for step in range(5):
        _, _, (partials, losses, _) = set_up(dtype, optimizer, seed=step)
        two_layer_reduce.reduce(problem, arrays, partials, losses)
        summed = arrays.parameters.like()
        summed.flat[...] = in_order(partials)
        gradient = reference.like()
        gradient.copy_from(summed.to_numpy())
        exact.update(reference, gradient)
    assert optimizer.step == 5
    for slot, view in optimizer.state_arrays().items():
        same = exact.state_arrays()[slot]
        np.testing.assert_allclose(view, same, rtol=0, atol=60 * np.finfo(dtype).eps * np.abs(same).max())
    np.testing.assert_array_equal(arrays.parameters.to_numpy()["b1"], b1)
    got, expected = arrays.parameters.to_numpy(), reference.to_numpy()
    for parameter in SHAPES:
        bound = 60 * np.finfo(dtype).eps * np.abs(expected[parameter]).max()
        np.testing.assert_allclose(got[parameter], expected[parameter], rtol=0, atol=bound)


def test_the_loss_is_the_mean_or_the_sum(dtype):
    for settings, scale in (
        ({"loss": "mse"}, 1 / (29 * 5)),
        ({"loss": "cross_entropy"}, 1 / 29),
        ({"loss": "hinge", "reduction": "sum"}, 1.0),
    ):
        problem, arrays, (partials, losses, _) = set_up(dtype, None, **settings)
        two_layer_reduce.reduce(problem, arrays, partials, losses)
        np.testing.assert_allclose(to_numpy(arrays.loss), to_numpy(losses).sum() * scale, rtol=1e-5)
    assert math.isnan(Problem(0, 1, 1, 1).loss_scale)
    assert Problem(0, 1, 1, 1, reduction="sum").loss_scale == 1.0


def test_bits_do_not_depend_on_the_multiprocessors():
    found = set()
    for sms in (1, 4, 7, 132):
        with emulator.settings(sms=sms):
            assert device_limits(emulator).sms == sms
            problem, arrays, (partials, losses, _) = set_up("float32", MAKE["adam"]())
            two_layer_reduce.reduce(problem, arrays, partials, losses)
            found.add(to_numpy(arrays.parameters.flat).tobytes())
    assert len(found) == 1


def test_a_wrong_layout_is_refused():
    problem, arrays, (partials, losses, _) = set_up("float32", None)
    with pytest.raises(ValueError, match=r"two_layer.reduce: partials must have shape \(S, P\)"):
        two_layer_reduce.reduce(problem, arrays, partials[:, :-64], losses)


# ---- the problem and the device --------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_the_problem_lays_parameters_out_as_they_are(dtype, bias):
    problem = Problem(3, **SIZES, bias=bias, dtype=dtype, precision=dtype, inputs="uint8")
    shapes = {name: shape for name, shape in SHAPES.items() if bias or name[0] == "W"}
    parameters = FlatParameters(shapes, dtype, np)
    assert problem.flat_size == parameters.flat.size
    for name, start in parameters.offsets.items():
        assert problem.offsets[name] == start
        assert problem.sizes[name] == math.prod(shapes[name])
    assert problem.input_itemsize == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"D": 0}, "D: expected 1 or more, got 0"),
        ({"dtype": "float16"}, "dtype: expected float32 or float64, got 'float16'"),
        (
            {"precision": "fp8"},
            "precision: with dtype float32, expected float32 or tf32 or 3xtf32 or bfloat16, got",
        ),
        (
            {"dtype": "float64", "precision": "tf32"},
            "precision: with dtype float64, expected float64, got 'tf32'",
        ),
        ({"inputs": "float64"}, "inputs: expected float32 or uint8, got 'float64'"),
        ({"rule": "SGD"}, "rule: expected one of Sgd, Momentum, Adam, Store, got 'SGD'"),
        ({"loss": "huber"}, "loss: expected one of mse"),
        ({"activation": "gelu"}, "activation: expected"),
    ],
)
def test_a_problem_that_no_path_knows_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Problem(**({"N": 4, "D": 3, "H": 2, "C": 1} | wrong))


def test_the_limits_of_a_gpu_are_its_attributes(cupy):
    kernel._cuda_limits.cache_clear()
    try:
        assert device_limits(cupy) == DeviceLimits("sm_89", 6, 99 * 1024, 65536, 2**20)
    finally:
        kernel._cuda_limits.cache_clear()


def test_device_limits():
    with emulator.settings(arch="sm_89", sms=58):
        assert device_limits(emulator) == DeviceLimits("sm_89", 58, 99 * 1024, 65536, 72 * 2**20)
    with pytest.raises(ValueError, match="device: expected a GPU or the emulator, got the CPU"):
        device_limits(np)
    with (
        pytest.raises(ValueError, match="sms: expected a number of multiprocessors, 1 to 1024, got 0"),
        emulator.settings(sms=0),
    ):
        pass
