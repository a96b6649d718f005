"""train_step and train_epoch against a loop written out in NumPy, and the devices against each other."""

import itertools

import numpy as np
import pytest
from devices import DEVICES, SIZES, build_ahead, on

import handgrad as hg
from handgrad import emulator
from handgrad.arrays import get_array_module, to_device, to_numpy
from handgrad.network import MLP

ROWS = 23
SCALE, SHIFT = 1 / 255, -0.25


def data(loss="mse", kind="uint8", seed=4):
    """X (23, 7) as uint8 or float, and targets."""
    random = np.random.default_rng(seed)
    X = random.integers(0, 256, (ROWS, 7)).astype(np.uint8)
    if kind != "uint8":
        X = (X * SCALE + SHIFT).astype(kind)
    y = random.integers(0, 3, ROWS) if loss == "cross_entropy" else random.standard_normal((ROWS, 3))
    return X, y


def literal_epochs(orders, batch, lr, momentum=0.0, clip_norm=None, loss="mse", reduction="mean", frozen=()):
    """A two-layer ReLU network by the textbook, in float64: its parameters and the loss of every step."""
    net = MLP(SIZES, dtype="float64", device="cpu", seed=6)
    W1, b1, W2, b2 = (np.array(net.parameters[name]) for name in ("W1", "b1", "W2", "b2"))
    images, y = data(loss)
    X = images.astype(np.float64) * SCALE + SHIFT
    velocity = [np.zeros_like(p) for p in (W1, b1, W2, b2)]
    losses = []
    for order in orders:
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            x, t = X[rows], y[rows]
            z1 = x @ W1 + b1
            a1 = np.maximum(z1, 0)
            z2 = a1 @ W2 + b2
            if loss == "mse":
                losses.append(((z2 - t) ** 2).sum())
                dz2, divisor = 2 * (z2 - t), z2.size
            else:
                p = np.exp(z2 - z2.max(axis=1, keepdims=True))
                p /= p.sum(axis=1, keepdims=True)
                losses.append(-np.log(p[np.arange(len(t)), t]).sum())
                dz2, divisor = p - np.eye(3)[t], len(t)
            if reduction == "mean":  # over the rows that are there, also in the short last batch
                losses[-1] /= divisor
                dz2 = dz2 / divisor
            dz1 = (dz2 @ W2.T) * (z1 > 0)
            gradients = [x.T @ dz1, dz1.sum(0), a1.T @ dz2, dz2.sum(0)]
            trained = [k for k, name in enumerate(("W1", "b1", "W2", "b2")) if name not in frozen]
            if clip_norm is not None:
                norm = np.sqrt(sum((gradients[k] ** 2).sum() for k in trained))
                gradients = [g * min(1, clip_norm / (norm + 1e-6)) for g in gradients]
            for k in trained:
                velocity[k] = momentum * velocity[k] + gradients[k]
                (W1, b1, W2, b2)[k][...] -= lr * velocity[k]
    return {"W1": W1, "b1": b1, "W2": W2, "b2": b2}, np.array(losses)


def orders(epochs=3):
    """Shuffled row numbers of every epoch."""
    random = np.random.default_rng(9)
    return [random.permutation(ROWS) for _ in range(epochs)]


def trained(device, dtype="float64", kind="uint8", batch=6, loss="mse", lr=0.05, frozen=(), **settings):
    """A network after three epochs of 23 rows in batches of 6 (the last of 5), and every step's loss."""
    momentum, clip_norm = settings.pop("momentum", 0.0), settings.pop("clip_norm", None)
    net = MLP(SIZES, loss=loss, dtype=dtype, device=device, seed=6, **settings)
    net.freeze(*frozen)
    X, y = (to_device(array, device) for array in data(loss, kind))
    optimizer = hg.SGD(lr, momentum=momentum)
    scale, shift = (SCALE, SHIFT) if kind == "uint8" else (1.0, 0.0)
    losses = [
        net.train_epoch(X, y, order, batch, optimizer, clip_norm, scale=scale, shift=shift)
        for order in orders()
    ]
    assert all(get_array_module(part) is net.xp and part.dtype == dtype for part in losses)
    return net, np.concatenate([to_numpy(part) for part in losses])


@pytest.fixture(scope="module")
def kernels_built():
    def run():
        for dtype, loss in itertools.product(("float32", "float64"), ("mse", "cross_entropy")):
            for momentum, clip_norm in ((0.9, 1.0), (0.0, None)):
                trained("emulator", dtype, loss=loss, momentum=momentum, clip_norm=clip_norm)
        trained("emulator", "float64", "float64")

    build_ahead(run)


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "emulator":
        request.getfixturevalue("kernels_built")
    return request.param


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kind": "float64"},
        {"momentum": 0.9},
        {"momentum": 0.9, "clip_norm": 0.5},
        {"loss": "cross_entropy", "momentum": 0.9},
        {"loss": "cross_entropy", "reduction": "sum", "lr": 0.01},
        {"reduction": "sum", "lr": 0.003},
        {"frozen": ("W2", "b1"), "clip_norm": 0.5},
        {"batch": 1},
        {"batch": ROWS},
        {"batch": 1000},
    ],
    ids=str,
)
def test_epochs_are_the_textbook_s(device, settings):
    net, losses = trained(device, **settings)
    literal = {k: v for k, v in settings.items() if k != "kind"}
    expected, expected_losses = literal_epochs(orders(), **{"batch": 6, "lr": 0.05} | literal)
    # 3 epochs in float64 from the same start; every step adds some u to the parameters
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-12)
    for name, value in expected.items():
        np.testing.assert_allclose(
            to_numpy(net.parameters[name]), value, rtol=1e-11, atol=1e-13, err_msg=name
        )


def test_the_short_last_batch_counts_by_its_own_length(device):
    """Divided by the full batch, the gradient of the last 5 rows would be 5/6 of what it is."""
    net = MLP(SIZES, dtype="float64", device=device, seed=6)
    X, y = (to_device(array, device) for array in data(kind="float64"))
    start = {name: to_numpy(view).copy() for name, view in net.parameters.items()}
    _, gradients = net.loss_and_grad(X[18:], y[18:])
    net.train_epoch(X, y, np.arange(18, ROWS), 6, hg.SGD(0.05))
    for name, view in net.parameters.items():
        expected = start[name] - 0.05 * to_numpy(gradients[name])
        np.testing.assert_allclose(to_numpy(view), expected, rtol=1e-14, atol=1e-16)


def test_a_step_is_the_gradient_s_and_returns_the_loss_before_it(device):
    net = MLP(SIZES, dtype="float64", device=device, seed=6)
    X, y = (to_device(array, device) for array in data(kind="float64"))
    before, gradients = net.loss_and_grad(X, y)
    flat = to_numpy(net.flat_parameters.flat).copy()
    loss = net.train_step(X, y, hg.SGD(0.05))
    assert get_array_module(loss) is net.xp
    assert loss.shape == ()
    assert float(to_numpy(loss)) == float(to_numpy(before))
    moved = flat - 0.05 * to_numpy(gradients.flat)
    np.testing.assert_allclose(to_numpy(net.flat_parameters.flat), moved, rtol=1e-14, atol=1e-16)
    assert float(to_numpy(net.loss(X, y))) < float(to_numpy(before))


# ---- the same bits, and nearly the same numbers ----------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_two_runs_give_the_same_bits(device, dtype):
    settings = {"loss": "cross_entropy", "momentum": 0.9, "clip_norm": 1.0}
    (net, losses), (again, losses_again) = (trained(device, dtype, **settings) for _ in range(2))
    np.testing.assert_array_equal(losses, losses_again)
    np.testing.assert_array_equal(to_numpy(net.flat_parameters.flat), to_numpy(again.flat_parameters.flat))


@pytest.mark.parametrize("order", ["reverse", "lifo", "random"])
def test_the_order_of_threads_does_not_change_a_bit(order, kernels_built):
    settings = {"loss": "cross_entropy", "momentum": 0.9, "clip_norm": 1.0}
    net, losses = trained("emulator", "float32", **settings)
    with emulator.settings(order=order, seed=5):
        again, losses_again = trained("emulator", "float32", **settings)
    np.testing.assert_array_equal(losses, losses_again)
    np.testing.assert_array_equal(to_numpy(net.flat_parameters.flat), to_numpy(again.flat_parameters.flat))


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_other_devices_follow_the_cpu_over_twenty_steps(loss, activation):
    """20 steps of 64 rows in float32: losses and weights within 1e-4 relative."""
    random = np.random.default_rng(2)
    X = random.standard_normal((640, 21)).astype(np.float32)
    y = (X[:, :5].argmax(axis=1) if loss == "cross_entropy" else np.sin(X[:, :5])).astype(
        np.int64 if loss == "cross_entropy" else np.float32
    )
    order = np.concatenate([random.permutation(640) for _ in range(2)])
    runs = {}

    def run(device):
        net = MLP([21, 34, 5], activation=activation, loss=loss, device=device, seed=1)
        there = to_device(X, device), to_device(y, device)
        losses = net.train_epoch(*there, order, 64, hg.SGD(0.1, momentum=0.9))
        runs[device] = to_numpy(losses).copy(), to_numpy(net.flat_parameters.flat).copy()

    build_ahead(lambda: run("emulator"))
    for device in DEVICES:
        run(device)
    losses, weights = runs.pop("cpu")
    assert len(losses) == 20
    assert losses[-1] < 0.8 * losses[0]
    for device, (its_losses, its_weights) in runs.items():
        np.testing.assert_allclose(its_losses, losses, rtol=1e-4, err_msg=device)
        assert np.linalg.norm(its_weights - weights) < 1e-4 * np.linalg.norm(weights)


# ---- orders and their mistakes ---------------------------------------------------------------------------


def test_an_order_may_be_empty_repeat_rows_or_live_on_the_device(device):
    net = MLP(SIZES, dtype="float64", device=device, seed=6)
    X, y = (to_device(array, device) for array in data(kind="float64"))
    start = to_numpy(net.flat_parameters.flat).copy()
    losses = net.train_epoch(X, y, np.arange(0), 6, hg.SGD(0.05))
    assert losses.shape == (0,)
    np.testing.assert_array_equal(to_numpy(net.flat_parameters.flat), start)
    runs = []
    for order in (
        [3, 3, 0, 22],
        np.array([3, 3, 0, 22], np.uint8),
        to_device(np.array([3, 3, 0, 22]), device),
    ):
        twin = MLP(SIZES, dtype="float64", device=device, seed=6)
        runs.append(to_numpy(twin.train_epoch(X, y, order, 3, hg.SGD(0.05))).tolist())
    assert runs[0] == runs[1] == runs[2]
    assert len(runs[0]) == 2
    row = to_device(np.array([3, 3, 0]), "cpu")
    inputs, targets = (to_device(to_numpy(array)[row], device) for array in (X, y))
    alone = to_numpy(net.loss(inputs, targets))
    np.testing.assert_allclose(runs[0][0], alone, rtol=4 * np.finfo(np.float64).eps)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"order": [0, 23]}, IndexError, r"order: expected row numbers 0 \.\. 22, got 23"),
        ({"order": [-1, 2]}, IndexError, r"order: expected row numbers 0 \.\. 22, got -1"),
        ({"order": [0.0, 1.0]}, TypeError, r"order: expected row numbers, integers \(n,\), got float64"),
        ({"order": [[0, 1]]}, TypeError, r"integers \(n,\), got int64 of shape \(1, 2\)"),
        ({"batch_size": 0}, ValueError, "batch_size: expected a whole number, 1 or more, got 0"),
        ({"batch_size": 2.5}, ValueError, "batch_size: expected a whole number, 1 or more, got 2.5"),
        ({"rows_of_y": 22}, ValueError, "y: expected 23 targets, one a row of X, got 22"),
        ({"columns_of_y": 2}, ValueError, r"y: expected shape \(N, 3\), got \(23, 2\)"),
    ],
    ids=str,
)
def test_a_wrong_order_batch_or_target_changes_nothing(device, arguments, error, message):
    net = MLP(SIZES, device=device, seed=6)
    start = to_numpy(net.flat_parameters.flat).copy()
    X, y = data(kind="float32")
    y = y[: arguments.get("rows_of_y", ROWS), : arguments.get("columns_of_y", 3)].astype(np.float32)
    settings = {"order": [0, 1], "batch_size": 1} | {
        k: arguments[k] for k in ("order", "batch_size") if k in arguments
    }
    with pytest.raises(error, match=message):
        net.train_epoch(to_device(X, device), to_device(y, device), **settings, optimizer=hg.SGD(0.1))
    np.testing.assert_array_equal(to_numpy(net.flat_parameters.flat), start)


def test_rows_on_another_device_are_refused(device):
    net, _, _ = on(device)
    other = "emulator" if device == "cpu" else "cpu"
    X, y = data(kind="float32")
    with pytest.raises(TypeError, match=f"X: expected an array on {device}, got "):
        net.train_epoch(to_device(X, other), to_device(y, device), [0], 1, hg.SGD(0.1))
    with pytest.raises(TypeError, match=f"y: expected an array on {device}, got "):
        net.train_epoch(to_device(X, device), to_device(y, other), [0], 1, hg.SGD(0.1))


def test_memory_mapped_rows(tmp_path):
    X, y = data()
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    runs = []
    for rows in (X, mapped):
        net = MLP(SIZES, device="cpu", seed=6)
        runs.append(net.train_epoch(rows, y, orders(1)[0], 6, hg.SGD(0.05), scale=SCALE, shift=SHIFT))
    np.testing.assert_array_equal(*runs)
