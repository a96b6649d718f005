"""784 → 50 → 1, ReLU, mean squared error, on MNIST's images: the digit as a number to be regressed on.

By default on the images in the package; on the first 50,000 training images where ``HANDGRAD_MNIST`` names a
folder with MNIST's four IDX files.
"""

import os

import numpy as np
import pytest
from devices import DEVICES, build_ahead, everything, network_on
from golden import make_golden
from reference_network import assert_norm, assert_within, network

import handgrad as hg
from handgrad import datasets
from handgrad.arrays import to_device, to_numpy
from handgrad.network import MLP

CONFIG = {
    "sizes": [784, 50, 1],
    "activation": "relu",
    "output": "identity",
    "loss": "mse",
    "reduction": "mean",
    "bias": True,
}
ROWS, SUBSET_ROWS, EMULATED_ROWS = 50_000, 2_000, 600
NO_TORCH = "PyTorch is not installed: the gradients are compared with a formula in NumPy"
PARAMETERS = ("W1", "b1", "W2", "b2")


def regression(dataset, rows):
    """X (rows, 784) in [0, 1] as float32, the digits (rows,), and weights that float32 holds exactly."""
    X = dataset.X[:rows].astype(np.float32) / np.float32(255)
    net = MLP(CONFIG["sizes"], device="cpu", seed=0)
    parameters = {name: np.array(view, dtype=np.float64) for name, view in net.parameters.items()}
    return X, dataset.y[:rows].astype(np.float32), parameters


@pytest.fixture(scope="module")
def subset():
    return regression(datasets.load("mnist-subset").train, SUBSET_ROWS)


@pytest.fixture(scope="module")
def whole():
    folder = os.environ.get("HANDGRAD_MNIST")
    if not folder:
        pytest.skip("HANDGRAD_MNIST names no folder with MNIST's four IDX files")
    X, y, parameters = regression(datasets.load(folder).train, ROWS)
    assert X.shape == (ROWS, 784)
    return X, y, parameters


def by_blocks(X, y, parameters, block=500):
    """Loss and gradients as sums over blocks of samples, each gradient written out; in float64."""
    W1, b1, W2, b2 = (parameters[name] for name in PARAMETERS)
    N, w2 = len(X), W2[:, 0]
    loss = 0.0
    found = {f"d{name}": np.zeros_like(parameters[name]) for name in PARAMETERS}
    for start in range(0, N, block):
        x, t = X[start : start + block].astype(np.float64), y[start : start + block].astype(np.float64)
        z = np.einsum("nd,dh->nh", x, W1, optimize=True) + b1
        alive = z > 0
        diff = np.where(alive, z, 0) @ w2 + b2[0] - t  # (n,)
        loss += np.square(diff).sum() / N
        slope = 2 / N * diff
        hidden = slope[:, None] * w2 * alive  # (n, 50): ∂loss/∂z
        for unit in range(len(w2)):
            samples = alive[:, unit]
            found["dW1"][:, unit] += hidden[samples, unit] @ x[samples]
            found["dW2"][unit, 0] += slope[samples] @ z[samples, unit]
        found["db1"] += hidden.sum(axis=0)
        found["db2"] += slope.sum()
    return {"loss": np.asarray(loss), **found}


def gradients_of(device, dtype, X, y, parameters):
    """Loss and gradients of the network on the host."""
    net = network_on(device, CONFIG, parameters, dtype)
    loss, gradients = net.loss_and_grad(
        to_device(X, device, dtype), to_device(y, device, dtype)
    )  # y (N,) for one output
    found = {"loss": loss, **{f"d{name}": value for name, value in gradients.items()}}
    return {name: to_numpy(value) for name, value in found.items()}


def check(device, X, y, parameters, expected):
    """float64 norm-wise to 1e-12, float32 within the elementwise bound."""
    bounds = network(CONFIG, X, y[:, None], parameters, "float32", input_grad=False)
    singles = gradients_of(device, "float32", X, y, parameters)
    doubles = gradients_of(device, "float64", X, y, parameters)
    assert set(expected) == set(singles) == set(doubles)
    for name, right in expected.items():
        assert_norm(bounds[name].value, right, 1e-12, f"the reference's {name}")
        assert_within(singles[name], bounds[name], name)
        assert_norm(doubles[name], right, 1e-12, name)


def autograd(X, y, parameters):
    """PyTorch's, in float64, with every intermediate."""
    pytest.importorskip("torch", reason=NO_TORCH)
    return make_golden.autograd(CONFIG, X.astype(np.float64), y.astype(np.float64)[:, None], parameters)


def test_gradients_agree_with_sums_over_blocks(subset):
    check("cpu", *subset, by_blocks(*subset))


def test_gradients_agree_with_autograd(subset):
    found = autograd(*subset)
    check("cpu", *subset, {name: found[name] for name in ("loss", *(f"d{n}" for n in PARAMETERS))})


def test_every_intermediate_agrees_with_autograd(subset):
    X, y, parameters = subset
    expected = autograd(X, y, parameters)
    found = everything(network_on("cpu", CONFIG, parameters, "float64"), X, y, intermediates=True)
    assert {"Z1", "A1", "Z2", "Y_hat", "dZ2", "dA1", "dZ1", "dX"} <= set(found)
    for name in found.keys() - {"X"}:
        assert_norm(found[name], expected[name], 1e-12, name)


@pytest.mark.parametrize("device", DEVICES[1:])
def test_gradients_on_a_device(device, subset):
    X, y, parameters = subset[0][:EMULATED_ROWS], subset[1][:EMULATED_ROWS], subset[2]
    if device == "emulator":
        build_ahead(
            lambda: [gradients_of(device, dtype, X, y, parameters) for dtype in ("float32", "float64")]
        )
    check(device, X, y, parameters, by_blocks(X, y, parameters))


def test_the_gradient_without_the_mask_is_far_off(subset):
    """What the formula gives that forgets the ReLU's derivative: the comparisons above would notice."""
    X, y, parameters = subset
    found = everything(network_on("cpu", CONFIG, parameters, "float64"), X, y, intermediates=True)
    unmasked = X.astype(np.float64).T @ (found["dZ2"] @ parameters["W2"].T)
    difference = np.linalg.norm(unmasked - found["dW1"]) / np.linalg.norm(found["dW1"])
    assert difference > 0.1


def test_a_few_steps_lower_the_loss(subset):
    X, y, parameters = subset
    net = network_on("cpu", CONFIG, parameters, "float32")
    optimizer = hg.SGD(0.01)
    losses = [float(net.train_step(X, y, optimizer)) for _ in range(20)]
    assert losses[0] > 20  # predictions near 0, digits from 0 to 9
    assert losses[-1] < 6  # below the digits' variance, 8.3: more than the mean has been learnt


# ---- all 50,000 images -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_images_agree_with_sums_over_blocks(whole):
    check("cpu", *whole, by_blocks(*whole))


@pytest.mark.slow
def test_all_images_agree_with_autograd(whole):
    found = autograd(*whole)
    check("cpu", *whole, {name: found[name] for name in ("loss", *(f"d{n}" for n in PARAMETERS))})


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES[1:])
def test_all_images_on_a_device(device, whole):
    check(device, *whole, by_blocks(*whole))
