"""The dense layer against sums written out, on the CPU and through the kernels, and its launch geometry."""

import math
from fractions import Fraction

import numpy as np
import pytest
from devices import DEVICES, build_ahead

from handgrad import emulator
from handgrad.arrays import to_device, to_numpy
from handgrad.kernel import Kernel
from handgrad.ops import Workspace, linear
from handgrad.ops.activation import NAMES
from handgrad.ops.linear import COLUMN, MEDIUM, NARROW, SKINNY, SLIM, WIDE, choose_tile, split_samples

DTYPES = {"float32": 2.0**-24, "float64": 2.0**-53}  # unit roundoff
N, D, H, C = 11, 7, 6, 3

devices = pytest.mark.parametrize("device", DEVICES)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
names = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module", autouse=True)
def built():
    """The layer of this size in every activation and type, built at once."""

    def run():
        for dtype in DTYPES:
            on = Layer("emulator", dtype)
            for name in NAMES:
                linear.forward(on.X, on.W, on.b, name)
                linear.backward_input(on.dY, on.W, on.X, name)
            linear.backward_weight(on.X, on.dY)

    build_ahead(run)


class Layer:
    """X (N, D), W (D, H), b (H,), dY (N, H) on a device, and on the host as XX, WW, bb, dYdY."""

    def __init__(self, device, dtype, shape=(N, D, H), draw=None, seed=0):
        rng = np.random.default_rng(seed)
        draw = draw or rng.normal
        samples, inputs, outputs = shape
        shapes = {"X": (samples, inputs), "W": (inputs, outputs), "b": (outputs,), "dY": (samples, outputs)}
        for name, sides in shapes.items():
            values = np.asarray(draw(size=sides), dtype=dtype)
            setattr(self, 2 * name, values)
            setattr(self, name, to_device(values, device))


def small_integers(size):
    return np.random.default_rng(4).integers(-8, 9, size=size)


def f(name, z):
    """Python's own floating point."""
    return {
        "relu": lambda: max(z, 0.0),
        "sigmoid": lambda: 1 / (1 + math.exp(-z)),
        "tanh": lambda: math.tanh(z),
        "softplus": lambda: math.log1p(math.exp(z)),
        "identity": lambda: z,
    }[name]()


def slope(name, a):
    """f' from a = f(z)."""
    return {
        "relu": 1.0 if a > 0 else 0.0,
        "sigmoid": a * (1 - a),
        "tanh": 1 - a * a,
        "softplus": 1 - math.exp(-a),
        "identity": 1.0,
    }[name]


def dot(left, right):
    """Σ left right without rounding, and Σ |left right|."""
    terms = [Fraction(float(x)) * Fraction(float(y)) for x, y in zip(left, right, strict=True)]
    return float(sum(terms)), float(sum(map(abs, terms)))


# ---- against sums written out ----------------------------------------------------------------------------


@devices
@dtypes
@names
@pytest.mark.parametrize("bias", [True, False])
def test_forward(device, dtype, name, bias):
    on = Layer(device, dtype)
    Y = linear.forward(on.X, on.W, on.b if bias else None, name)
    assert (Y.shape, Y.dtype) == ((N, H), dtype)
    for n, h in np.ndindex(N, H):
        total, magnitude = dot(on.XX[n], on.WW[:, h])
        z = total + float(on.bb[h]) * bias
        bound = 4 * DTYPES[dtype] * (math.sqrt(D) * magnitude + 2 * abs(z) + 2 * abs(f(name, z)))
        assert abs(float(to_numpy(Y)[n, h]) - f(name, z)) <= bound


@devices
@dtypes
@names
def test_backward_input(device, dtype, name):
    """(dY Wᵀ) ∘ f'(A), for the layer below, whose output A is drawn from the range of f."""
    on = Layer(device, dtype)
    A = np.array([[f(name, float(z)) for z in row] for row in on.XX]).astype(dtype)
    dX = linear.backward_input(on.dY, on.W, to_device(A, device), name)
    assert (dX.shape, dX.dtype) == ((N, D), dtype)
    for n, d in np.ndindex(N, D):
        total, magnitude = dot(on.dYdY[n], on.WW[d])
        expected = total * slope(name, float(A[n, d]))
        bound = 4 * DTYPES[dtype] * (math.sqrt(H) * magnitude + 4 * abs(expected) + abs(total))
        assert abs(float(to_numpy(dX)[n, d]) - expected) <= bound


@devices
@dtypes
def test_backward_input_of_the_identity_needs_no_output(device, dtype):
    on = Layer(device, dtype)
    without = linear.backward_input(on.dY, on.W)
    np.testing.assert_array_equal(to_numpy(linear.backward_input(on.dY, on.W, on.X)), to_numpy(without))


@devices
@dtypes
def test_backward_weight(device, dtype):
    on = Layer(device, dtype)
    dW, db = linear.backward_weight(on.X, on.dY)
    assert (dW.shape, dW.dtype, db.shape, db.dtype) == ((D, H), dtype, (H,), dtype)
    for h in range(H):
        total, magnitude = dot(np.ones(N), on.dYdY[:, h])
        assert abs(float(to_numpy(db)[h]) - total) <= 4 * math.sqrt(N) * DTYPES[dtype] * magnitude
        for d in range(D):
            total, magnitude = dot(on.XX[:, d], on.dYdY[:, h])
            assert abs(float(to_numpy(dW)[d, h]) - total) <= 4 * math.sqrt(N) * DTYPES[dtype] * magnitude
    alone, none = linear.backward_weight(on.X, on.dY, bias=False)
    assert none is None
    np.testing.assert_array_equal(to_numpy(alone), to_numpy(dW))


@devices
@names
def test_gradients_are_the_slopes(device, name):
    """Central differences in float64 of L = Σ R ∘ f(X W + b), through the op itself."""
    on = Layer(device, "float64")
    R = np.random.default_rng(9).normal(size=(N, H))
    step = 1e-6

    def total(**moved):
        X, W, b = (to_device(moved.get(n, getattr(on, 2 * n)), device) for n in ("X", "W", "b"))
        return float((to_numpy(linear.forward(X, W, b, name)) * R).sum())

    A = to_numpy(linear.forward(on.X, on.W, on.b, name))
    dZ = to_device(R * np.vectorize(lambda a: slope(name, a))(A), device)
    dW, db = linear.backward_weight(on.X, dZ)
    gradients = {"X": linear.backward_input(dZ, on.W), "W": dW, "b": db}
    for letter, gradient in gradients.items():
        values = getattr(on, 2 * letter)
        for place in list(np.ndindex(values.shape))[::5]:
            change = np.zeros_like(values)
            change[place] = step
            slope_there = (total(**{letter: values + change}) - total(**{letter: values - change})) / (
                2 * step
            )
            assert to_numpy(gradient)[place] == pytest.approx(slope_there, rel=1e-7, abs=1e-8)


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")  # ∞ - ∞, which the mask drops
@devices
@dtypes
def test_the_mask_drops_what_is_infinite(device, dtype):
    on = Layer(device, dtype)
    dY = to_device(np.full((N, H), np.inf, dtype), device)
    A = to_device(np.zeros((N, D), dtype), device)
    np.testing.assert_array_equal(to_numpy(linear.backward_input(dY, on.W, A, "relu")), 0)


# ---- sizes and memory ------------------------------------------------------------------------------------


@devices
@pytest.mark.parametrize("shape", [(0, D, H), (N, 0, H), (N, D, 0), (0, 0, 0)])
def test_empty_sides(device, shape):
    on = Layer(device, "float32", shape)
    samples, inputs, outputs = shape
    Y = linear.forward(on.X, on.W, on.b, "tanh")
    np.testing.assert_allclose(to_numpy(Y), np.tanh(np.zeros((samples, outputs)) + on.bb), rtol=1e-6)
    np.testing.assert_array_equal(to_numpy(linear.backward_input(on.dY, on.W)), on.dYdY @ on.WW.T)
    dW, db = linear.backward_weight(on.X, on.dY)
    np.testing.assert_array_equal(to_numpy(dW), on.XX.T @ on.dYdY)
    np.testing.assert_allclose(to_numpy(db), on.dYdY.sum(axis=0), rtol=1e-5)
    assert (dW.shape, db.shape) == ((inputs, outputs), (outputs,))


@devices
def test_results_go_where_they_are_wanted(device):
    on = Layer(device, "float32")
    places = {"Y": (N, H), "dX": (N, D), "dW": (D, H), "db": (H,)}
    out = {name: to_device(np.full(shape, np.nan, np.float32), device) for name, shape in places.items()}
    assert linear.forward(on.X, on.W, on.b, out=out["Y"]) is out["Y"]
    assert linear.backward_input(on.dY, on.W, out=out["dX"]) is out["dX"]
    dW, db = linear.backward_weight(on.X, on.dY, out["dW"], out["db"])
    assert dW is out["dW"]
    assert db is out["db"]
    np.testing.assert_array_equal(to_numpy(out["Y"]), to_numpy(linear.forward(on.X, on.W, on.b)))
    np.testing.assert_array_equal(to_numpy(out["dX"]), to_numpy(linear.backward_input(on.dY, on.W)))
    for given, fresh in zip((dW, db), linear.backward_weight(on.X, on.dY), strict=True):
        np.testing.assert_array_equal(to_numpy(given), to_numpy(fresh))


@devices
def test_inputs_of_any_layout_are_left_as_they_are(device):
    """A transpose, every second column, and a start off the 16-byte boundary give what a copy gives."""
    on = Layer(device, "float32", draw=small_integers)
    Wt = to_device(on.WW.T.copy(), device).T
    wide = to_device(np.repeat(on.XX, 2, axis=1), device)[:, ::2]
    shifted = to_device(np.concatenate(([0], on.XX.ravel())).astype(np.float32), device)[1:].reshape(N, D)
    for X in (wide, shifted):
        assert (to_numpy(linear.forward(X, Wt, on.b)) == on.XX @ on.WW + on.bb).all()
        assert (to_numpy(linear.backward_weight(X, on.dY)[0]) == on.XX.T @ on.dYdY).all()
        assert (
            to_numpy(linear.backward_input(on.dY, Wt, X, "relu")) == on.dYdY @ on.WW.T * (on.XX > 0)
        ).all()
        assert (to_numpy(X) == on.XX).all()
    assert (to_numpy(Wt) == on.WW).all()


# ---- fixed order of the sums -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def split():
    """1000 samples in eight partitions, on the emulator; seven do not fill the last one."""
    on = Layer("emulator", "float32", (1000, 20, 10), seed=2)
    tile = choose_tile(20, 10)
    assert split_samples(1000, 20, 10, tile) == (8, 128)
    return on


def test_partitions_are_added_in_rising_order(split):
    """Bit for bit what their own products give, added one after the other in float32."""
    dW, db = linear.backward_weight(split.X, split.dY)
    parts = [
        linear.backward_weight(split.X[start : start + 128], split.dY[start : start + 128])
        for start in range(0, 1000, 128)
    ]
    for got, place in ((dW, 0), (db, 1)):
        total = to_numpy(parts[0][place]).copy()
        for part in parts[1:]:
            total += to_numpy(part[place])
        assert to_numpy(got).tobytes() == total.tobytes()


def test_the_bits_depend_on_nothing_but_the_shape(split):
    expected = [to_numpy(array).tobytes() for array in linear.backward_weight(split.X, split.dY)]
    workspace = Workspace()
    for arch, order, seed in (("sm_75", "reverse", 0), ("sm_90", "lifo", 0), ("sm_120", "random", 5)):
        with emulator.settings(arch=arch, order=order, seed=seed):
            again = linear.backward_weight(split.X, split.dY, workspace=workspace)
        assert [to_numpy(array).tobytes() for array in again] == expected


def test_a_sample_does_not_depend_on_its_batch():
    on = Layer("emulator", "float32", (130, D, H))
    whole = to_numpy(linear.forward(on.X, on.W, on.b, "tanh"))
    for n in (0, 64, 129):
        alone = linear.forward(on.X[n : n + 1], on.W, on.b, "tanh")
        assert to_numpy(alone).tobytes() == whole[n : n + 1].tobytes()


def test_a_workspace_is_used_again(split):
    workspace = Workspace()
    first = [to_numpy(a).copy() for a in linear.backward_weight(split.X, split.dY, workspace=workspace)]
    held = workspace.nbytes
    assert held >= 8 * 21 * 10 * 4
    smaller = linear.backward_weight(split.X[:300], split.dY[:300, :5], workspace=workspace)
    fresh = linear.backward_weight(split.X[:300], split.dY[:300, :5])
    again = linear.backward_weight(split.X, split.dY, workspace=workspace)
    assert workspace.nbytes == held
    for one, other in zip((*first, *smaller), (*again, *fresh), strict=True):
        assert to_numpy(one).tobytes() == to_numpy(other).tobytes()


# ---- geometry --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "columns", "tile"),
    [
        *((10**6, columns, COLUMN) for columns in (0, 1)),
        *((1, columns, SLIM) for columns in (2, 4)),
        *((10**6, columns, SKINNY) for columns in (5, 10, 16)),
        *((1, columns, NARROW) for columns in (17, 32)),
        *((10**6, columns, MEDIUM) for columns in (33, 50, 64)),
        (1, 65, MEDIUM),
        (63 * 128, 128, MEDIUM),  # 63 tiles of 128 x 128
        (63 * 128 + 1, 128, WIDE),  # 64
        (63 * 128 + 1, 65, WIDE),
        (8 * 128, 8 * 128, WIDE),
        (7 * 128, 9 * 128, MEDIUM),
    ],
)
def test_the_tile_follows_from_rows_and_columns(rows, columns, tile):
    assert choose_tile(rows, columns) == tile


def test_every_tile_fits_a_block():
    for tile in linear.TILES:
        assert tile.threads % 32 == 0
        assert 32 <= tile.threads <= 1024
        assert tile.threads >= tile.BN, "a thread sums a column of the bias"


@pytest.mark.parametrize(
    ("samples", "inputs", "outputs", "expected"),
    [
        (0, 784, 50, (1, 128)),
        (1, 784, 50, (1, 128)),
        (128, 784, 50, (1, 128)),
        (129, 784, 50, (2, 128)),
        (50_000, 784, 50, (20, 2512)),  # 13 tiles, so 20 partitions: 2500 samples, rounded up to slabs of 16
        (50_000, 50, 1, (241, 208)),  # one tile: 256 partitions wanted, 196 samples in each
        (10**6, 8192, 8192, (1, 10**6)),  # 4096 tiles are enough
    ],
)
def test_samples_are_split_by_the_shape_alone(samples, inputs, outputs, expected):
    tile = choose_tile(inputs, outputs)
    S, chunk = split_samples(samples, inputs, outputs, tile)
    assert (S, chunk) == expected
    assert (S - 1) * chunk < max(samples, 1) <= S * chunk
    assert chunk % tile.BK == 0


def test_a_grid_has_at_most_65535_tiles_of_columns():
    assert linear._grid(SLIM, 1, 65_535 * 4, "op") == (1, 65_535)
    with pytest.raises(ValueError, match="op: 262141 columns; the kernel takes up to 262140"):
        linear._grid(SLIM, 1, 65_535 * 4 + 1, "op")


# ---- the naive kernels, which say what the tiled ones compute --------------------------------------------


@dtypes
@pytest.mark.parametrize("draw", [small_integers, None], ids=["exact", "normal"])
def test_naive_and_tiled_kernels_agree(dtype, draw):
    rows, inner, columns = shape = (70, 33, 20)
    on = Layer("emulator", dtype, shape, draw)
    cpp = {"float32": "float", "float64": "double"}[dtype]
    Y, dX, dW, db = (
        emulator.empty(s, dtype) for s in ((rows, columns), (rows, inner), (inner, columns), columns)
    )

    def launch(expression, threads, *arguments):
        sizes = (np.int32(size) for size in arguments[-3:])
        Kernel("linear_naive.cu", expression)((-(-threads // 64),), (64,), *arguments[:-3], *sizes)

    launch(f"naive_forward<{cpp}, Relu>", Y.size, on.X, on.W, on.b, Y, *shape)
    launch(f"naive_backward_input<{cpp}, Relu>", dX.size, on.dY, on.W, on.X, dX, rows, columns, inner)
    launch(f"naive_backward_weight<{cpp}>", dW.size + columns, on.X, on.dY, dW, db, *shape)
    shipped = (
        linear.forward(on.X, on.W, on.b, "relu"),
        linear.backward_input(on.dY, on.W, on.X, "relu"),
        *linear.backward_weight(on.X, on.dY),
    )
    for naive, tiled in zip((Y, dX, dW, db), shipped, strict=True):
        tolerance = 0 if draw else 70 * DTYPES[dtype] * 10  # K u times what sums of 70 normal products reach
        np.testing.assert_allclose(to_numpy(naive), to_numpy(tiled), rtol=0, atol=tolerance)
        assert np.isfinite(to_numpy(tiled)).all()
