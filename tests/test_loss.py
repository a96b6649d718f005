"""The losses against Python's math module, sample by sample; their gradients against differences."""

import math

import numpy as np
import pytest
from devices import DEVICES, build_ahead

from handgrad import emulator
from handgrad.arrays import to_device, to_numpy
from handgrad.ops import Workspace, loss
from handgrad.ops.activation import NAMES as OUTPUTS

pytestmark = pytest.mark.filterwarnings("error")

TOLERANCE = {"float32": 1e-6, "float64": 1e-14}  # about 16 roundings, relative to the largest number met
KINDS = (
    *(("mse", output) for output in OUTPUTS),
    *((n, "identity") for n in ("bce", "cross_entropy", "hinge")),
)
N, C = 23, 5

devices = pytest.mark.parametrize("device", DEVICES)
dtypes = pytest.mark.parametrize("dtype", TOLERANCE)
kinds = pytest.mark.parametrize(("name", "output"), KINDS)


@pytest.fixture(scope="module", autouse=True)
def built():
    def run():
        for dtype in TOLERANCE:
            for name, output in KINDS:
                for columns in (1, C) if name in ("cross_entropy", "hinge") else (C,):
                    Z, y = drawn(name, dtype, (3, columns))
                    loss.forward_backward(emulator.asarray(Z), emulator.asarray(y), name, output)

    build_ahead(run)


def drawn(name, dtype, shape=(N, C), seed=0):
    """Logits and targets."""
    rng = np.random.default_rng(seed)
    Z = (2 * rng.normal(size=shape)).astype(dtype)
    if name == "mse":
        return Z, rng.normal(size=shape).astype(dtype)
    if name == "bce":
        return Z, rng.integers(0, 2, size=shape).astype(dtype)
    return Z, rng.integers(0, shape[1], size=shape[0]).astype(np.int32)


def g(output, z):
    return {
        "identity": lambda: z,
        "relu": lambda: max(z, 0.0),
        "sigmoid": lambda: 1 / (1 + math.exp(-z)),
        "tanh": lambda: math.tanh(z),
        "softplus": lambda: math.log1p(math.exp(z)),
    }[output]()


def of_sample(name, output, z, y):
    """The loss of one row of logits, summed over its columns, as a textbook has it."""
    if name == "mse":
        return sum((g(output, a) - b) ** 2 for a, b in zip(z, y, strict=True))
    if name == "bce":
        right = (g("sigmoid", a if b == 1 else -a) for a, b in zip(z, y, strict=True))
        return -sum(math.log(p) for p in right)
    if name == "cross_entropy":
        return math.log(sum(math.exp(a) for a in z)) - z[y]
    return sum(max(0.0, a - z[y] + 1) for j, a in enumerate(z) if j != y)


def by_hand(name, output, reduction, Z, y):
    total = math.fsum(of_sample(name, output, [float(a) for a in z], t) for z, t in zip(Z, y, strict=True))
    count = 1 if reduction == "sum" else Z.size if name in ("mse", "bce") else len(Z)
    return total / count


def run(device, Z, y, name, *arguments, **keywords):
    value, dZ = loss.forward_backward(
        to_device(Z, device), to_device(y, device), name, *arguments, **keywords
    )
    return float(to_numpy(value)), to_numpy(dZ)


# ---- against the formulas --------------------------------------------------------------------------------


@devices
@dtypes
@kinds
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_follows_its_formula(device, dtype, name, output, reduction):
    Z, y = drawn(name, dtype)
    value, dZ = loss.forward_backward(to_device(Z, device), to_device(y, device), name, output, reduction)
    assert (value.shape, value.dtype, dZ.shape, dZ.dtype) == ((), dtype, (N, C), dtype)
    expected = by_hand(name, output, reduction, Z, y)
    assert float(to_numpy(value)) == pytest.approx(expected, rel=TOLERANCE[dtype])


@devices
@kinds
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_gradient_is_the_slope(device, name, output, reduction):
    """Central differences in float64 of the loss written out."""
    Z, y = drawn(name, "float64")
    _, dZ = run(device, Z, y, name, output, reduction)
    h = 1e-5
    for place in np.ndindex(Z.shape):
        up, down = Z.copy(), Z.copy()
        up[place] += h
        down[place] -= h
        difference = by_hand(name, output, reduction, up, y) - by_hand(name, output, reduction, down, y)
        assert dZ[place] == pytest.approx(difference / (2 * h), rel=1e-6, abs=1e-8)


@devices
@dtypes
@kinds
def test_the_gradient_of_float32_is_that_of_float64(device, dtype, name, output):
    Z, y = drawn(name, dtype)
    target = y.astype(np.float64) if name in ("mse", "bce") else y
    _, expected = run("cpu", Z.astype(np.float64), target, name, output)
    _, dZ = run(device, Z, y, name, output)
    np.testing.assert_allclose(dZ, expected, rtol=0, atol=TOLERANCE[dtype] * abs(expected).max())


@devices
@dtypes
def test_known_values(device, dtype):
    Z = np.array([[0, 0], [math.log(3), 0]], dtype)
    value, dZ = run(device, Z, np.array([0, 1]), "cross_entropy", reduction="sum")
    assert value == pytest.approx(math.log(2) + math.log(4), rel=TOLERANCE[dtype])
    np.testing.assert_allclose(dZ, [[-0.5, 0.5], [0.75, -0.75]], atol=TOLERANCE[dtype])
    value, dZ = run(device, np.array([[3, 1, 2.5], [0, 5, 5]], dtype), np.array([0, 2]), "hinge")
    assert value == (0.5 + 1) / 2  # the margins -1, 0.5 and -4, 1
    np.testing.assert_array_equal(dZ, [[-0.5, 0, 0.5], [0, 0.5, -0.5]])
    value, dZ = run(device, np.array([[3.0, -1.0]], dtype), np.array([[1.0, 1.0]], dtype), "mse")
    assert value == (4 + 4) / 2
    np.testing.assert_array_equal(dZ, [[2, -2]])
    value, dZ = run(device, np.zeros((1, 2), dtype), np.array([[1.0, 0.0]], dtype), "bce")
    assert value == pytest.approx(math.log(2), rel=TOLERANCE[dtype])
    np.testing.assert_array_equal(dZ, [[-0.25, 0.25]])


@devices
@dtypes
def test_a_margin_of_exactly_zero_is_not_violated(device, dtype):
    value, dZ = run(device, np.array([[2, 1, 1]], dtype), np.array([0]), "hinge")
    assert value == 0
    np.testing.assert_array_equal(dZ, [[0, 0, 0]])


# ---- extremes --------------------------------------------------------------------------------------------


@devices
@dtypes
def test_logits_of_ten_thousand(device, dtype):
    """Neither an overflow nor a lost gradient."""
    Z = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 1e4]], dtype)
    value, dZ = run(device, Z, np.array([1, 2]), "cross_entropy", reduction="sum")
    assert value == pytest.approx(2e4 + math.log(2), rel=TOLERANCE[dtype])
    np.testing.assert_array_equal(dZ, [[1, -1, 0], [0, 0.5, -0.5]])
    value, dZ = run(device, Z, np.array([1, 2]), "hinge", reduction="sum")
    assert value == (2e4 + 1) + (1e4 + 1) + 1
    np.testing.assert_array_equal(dZ, [[1, -2, 1], [0, 1, -1]])
    value, dZ = run(device, Z, np.array([[0, 0, 0], [1, 1, 1]], dtype), "bce", reduction="sum")
    assert value == pytest.approx(1e4 + math.log(2) + 1e4, rel=TOLERANCE[dtype])
    np.testing.assert_array_equal(dZ, [[1, 0, 0.5], [-1, 0, 0]])


@devices
@dtypes
@pytest.mark.parametrize("name", ["cross_entropy", "hinge"])
def test_one_class_for_all(device, dtype, name):
    Z, _ = drawn(name, dtype)
    y = np.full(N, C - 1)
    value, dZ = run(device, Z, y, name)
    assert value == pytest.approx(by_hand(name, "identity", "mean", Z, y), rel=TOLERANCE[dtype])
    np.testing.assert_allclose(dZ.sum(axis=1), 0, atol=TOLERANCE[dtype])
    alone, nothing = run(device, Z[:, :1].copy(), np.zeros(N, int), name)  # a class that is the only one
    assert alone == 0
    np.testing.assert_array_equal(nothing, 0)


@devices
@dtypes
@kinds
def test_an_empty_batch(device, dtype, name, output):
    """Its sum is 0, its mean is not a number."""
    Z, y = drawn(name, dtype, (0, C))
    total, dZ = run(device, Z, y, name, output, "sum")
    assert total == 0
    assert (dZ.shape, dZ.dtype) == ((0, C), dtype)
    assert math.isnan(run(device, Z, y, name, output, "mean")[0])


@devices
@pytest.mark.parametrize("name", ["mse", "bce"])
def test_not_a_number_shows_in_the_loss(device, name):
    Z, y = drawn(name, "float32")
    Z[3, 2] = np.nan
    value, dZ = run(device, Z, y, name)
    assert math.isnan(value)
    assert np.isnan(dZ).sum() == 1
    assert math.isnan(dZ[3, 2])


@devices
@pytest.mark.parametrize("name", ["cross_entropy", "hinge"])
def test_not_a_number_shows_in_the_loss_and_spoils_its_row_alone(device, name):
    Z, y = drawn(name, "float32")
    _, clean = run(device, Z, y, name)
    Z[3, 2] = np.nan
    value, dZ = run(device, Z, y, name)
    assert math.isnan(value)
    others = np.arange(N) != 3
    np.testing.assert_array_equal(dZ[others], clean[others])
    if name == "cross_entropy":
        assert np.isnan(dZ[3]).all()


# ---- labels ----------------------------------------------------------------------------------------------


@devices
@pytest.mark.parametrize("name", ["cross_entropy", "hinge"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.int64])
def test_labels_of_any_whole_type(device, name, kind):
    Z, y = drawn(name, "float32")
    value, dZ = run(device, Z, y.astype(kind), name)
    expected, slope = run(device, Z, y, name)
    assert value == expected
    np.testing.assert_array_equal(dZ, slope)


@pytest.mark.parametrize("label", [2**32 + 1, -(2**32) + 1, -1, C], ids=str)
def test_a_label_beyond_int32_is_not_wrapped_around_on_a_device(label):
    Z, _ = drawn("cross_entropy", "float32")
    y = np.full(N, 1, dtype=np.int64)
    y[3] = label
    value, dZ = loss.forward_backward(emulator.asarray(Z), emulator.asarray(y), "cross_entropy")
    assert np.isnan(to_numpy(value))
    assert np.flatnonzero(np.isnan(to_numpy(dZ)).any(axis=1)).tolist() == [3]


@pytest.mark.parametrize(("label", "sample"), [(-1, 0), (C, 4), (2**31 - 1, 22)])
@pytest.mark.parametrize("name", ["cross_entropy", "hinge"])
def test_a_label_that_no_column_has(name, label, sample):
    """Named on the CPU; on a device, where looking would wait for it, the loss and the row are NaN."""
    Z, y = drawn(name, "float32")
    _, clean = run("emulator", Z, y, name)
    y[sample] = label
    with pytest.raises(
        ValueError, match=rf"labels must lie in 0 \.\. {C - 1}, got {label} for sample {sample}"
    ):
        run("cpu", Z, y, name)
    value, dZ = run("emulator", Z, y, name)
    assert math.isnan(value)
    assert np.isnan(dZ[sample]).all()
    others = np.arange(N) != sample
    np.testing.assert_array_equal(dZ[others], clean[others])


# ---- memory ----------------------------------------------------------------------------------------------


@devices
@kinds
def test_the_gradient_goes_where_it_is_wanted(device, name, output):
    Z, y = (to_device(values, device) for values in drawn(name, "float32"))
    before = to_numpy(Z).copy(), to_numpy(y).copy()
    value, dZ = loss.forward_backward(Z, y, name, output)
    out = to_device(np.full((N, C), np.nan, np.float32), device)
    again, same = loss.forward_backward(Z, y, name, output, out=out)
    assert same is out
    assert to_numpy(again).tobytes() == to_numpy(value).tobytes()
    assert to_numpy(out).tobytes() == to_numpy(dZ).tobytes()
    np.testing.assert_array_equal(to_numpy(Z), before[0])
    np.testing.assert_array_equal(to_numpy(y), before[1])


@devices
@pytest.mark.parametrize("name", ["mse", "cross_entropy"])
def test_logits_and_targets_of_any_layout(device, name):
    Z, y = drawn(name, "float32")
    expected = run(device, Z, y, name)
    apart = to_device(np.repeat(Z, 2, axis=1), device)[:, ::2]
    targets = to_device(np.repeat(y, 2, axis=0), device)[::2]
    value, dZ = loss.forward_backward(apart, targets, name)
    assert float(to_numpy(value)) == pytest.approx(expected[0], rel=TOLERANCE["float32"])
    np.testing.assert_allclose(to_numpy(dZ), expected[1], rtol=TOLERANCE["float32"])


@pytest.mark.parametrize("name", ["mse", "cross_entropy"])
def test_a_workspace_is_used_again(name):
    """Large after small and small after large, the ticket at 0 in between: the bits of a fresh one."""
    workspace = Workspace()
    for rows in (1, 700, 3, 700):  # 700 rows: several blocks
        Z, y = (emulator.asarray(values) for values in drawn(name, "float32", (rows, C)))
        value, dZ = loss.forward_backward(Z, y, name, workspace=workspace)
        fresh, same = loss.forward_backward(Z, y, name)
        assert to_numpy(value).tobytes() == to_numpy(fresh).tobytes()
        assert to_numpy(dZ).tobytes() == to_numpy(same).tobytes()
        held = workspace.nbytes
    loss.forward_backward(Z, y, name, workspace=workspace)
    assert workspace.nbytes == held


@pytest.mark.parametrize("name", ["bce", "hinge"])
def test_the_order_of_blocks_changes_no_bit(name):
    Z, y = (emulator.asarray(values) for values in drawn(name, "float32", (700, C)))
    results = set()
    for order, seed in (("forward", 0), ("reverse", 0), ("lifo", 0), ("random", 1), ("random", 2)):
        with emulator.settings(order=order, seed=seed):
            results.add(tuple(to_numpy(array).tobytes() for array in loss.forward_backward(Z, y, name)))
    assert len(results) == 1


def test_lanes_that_share_a_row():
    expected = {1: 1, 2: 2, 3: 4, 4: 4, 5: 8, 8: 8, 9: 16, 16: 16, 17: 32, 32: 32, 33: 32, 1000: 32}
    assert {columns: loss.lanes_of(columns) for columns in expected} == expected


# ---- mistakes of the caller ------------------------------------------------------------------------------

Z0, FLOATS, LABELS = np.zeros((N, C), np.float32), np.zeros((N, C), np.float32), np.zeros(N, np.int32)

MISTAKES = {
    "unknown loss": (
        (Z0, FLOATS, "mae"), {}, ValueError,
        "loss: expected one of mse, bce, cross_entropy, hinge, got 'mae'",
    ),
    "unknown reduction": (
        (Z0, FLOATS, "mse", "identity", "max"), {}, ValueError,
        "reduction: expected one of mean, sum, got 'max'",
    ),
    "unknown output": (
        (Z0, FLOATS, "mse", "softmax"), {}, ValueError,
        "activation: expected one of relu, sigmoid, tanh, softplus, identity, got 'softmax'",
    ),
    "an output on top of logits": (
        (Z0, FLOATS, "bce", "sigmoid"), {}, ValueError,
        "output: bce is computed from the logits, so output must be 'identity', got 'sigmoid'",
    ),
    "targets of another shape": (
        (Z0, np.zeros((N, C + 1), np.float32), "mse"), {}, ValueError,
        rf"loss mse: y must have shape \(N, C\) like the output = \({N}, {C}\), got \({N}, {C + 1}\)",
    ),
    "targets of another type": (
        (Z0, np.zeros((N, C)), "mse"), {}, TypeError,
        "loss mse: y is float64 but Z is float32; use one of them for both",
    ),
    "labels for bce": (
        (Z0, LABELS, "bce"), {}, TypeError,
        "loss bce: y must be float32 or float64, got int32",
    ),
    "labels as columns": (
        (Z0, np.zeros((N, C), np.int32), "hinge"), {}, ValueError,
        rf"loss hinge: y must have shape \(N,\), one label a sample, = \({N},\), got \({N}, {C}\)",
    ),
    "labels with fractions": (
        (Z0, np.zeros(N, np.float32), "cross_entropy"), {}, TypeError,
        "loss cross_entropy: y must be integer labels, got float32",
    ),
    "no columns": (
        (np.zeros((N, 0), np.float32), LABELS, "cross_entropy"), {}, ValueError,
        "loss cross_entropy: Z has no columns, so no label fits",
    ),
    "logits in a row": (
        (np.zeros(N, np.float32), LABELS, "hinge"), {}, ValueError,
        r"loss hinge: Z must be a matrix \(N, C\), got 1 dimensions",
    ),
    "shape of out": (
        (Z0, FLOATS, "mse"), {"out": np.zeros((N, 1), np.float32)}, ValueError,
        "loss mse: out must have shape of the result",
    ),
    "type of out": (
        (Z0, FLOATS, "mse"), {"out": np.zeros((N, C))}, TypeError,
        "loss mse: out must be float32, got float64",
    ),
}  # fmt: skip


@devices
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(device, mistake):
    positional, keywords, error, message = MISTAKES[mistake]

    def moved(value):
        return to_device(value, device) if isinstance(value, np.ndarray) else value

    with pytest.raises(error, match=message) as caught:
        loss.forward_backward(*map(moved, positional), **{name: moved(v) for name, v in keywords.items()})
    assert len(str(caught.value).splitlines()) == 1


def test_kinds_of_array_are_not_mixed():
    with pytest.raises(TypeError, match="arrays of two kinds in one call"):
        loss.forward_backward(Z0, emulator.asarray(FLOATS), "mse")
    with pytest.raises(TypeError, match="arrays of two kinds in one call"):
        loss.forward_backward(emulator.asarray(Z0), LABELS, "hinge")
