"""An epoch of shuffled mini-batches: ``MLP.train_epoch`` with SGD, from float32 rows and from uint8."""

import numpy as np
import pytest
from agreement import assert_close

from handgrad.arrays import to_device
from handgrad.network import MLP
from handgrad.ops.optimizer import SGD

# rows, batch, D, H, C
SIZES = [(2048, 128, 784, 256, 10), (1024, 64, 784, 50, 10)]
EMULATED = (64, 32, 40, 16, 10)
LR = 0.1


def losses_of(x, y, order, batch, parameters):
    """The loss of every batch of plain SGD with cross entropy, in float64, from the formulas."""
    W1, b1, W2, b2 = (parameters[name].astype(np.float64) for name in ("W1", "b1", "W2", "b2"))
    losses = []
    for start in range(0, len(order), batch):
        X, labels = x[order[start : start + batch]], y[order[start : start + batch]]
        N = len(X)
        A1 = np.maximum(X @ W1 + b1, 0.0)
        Z2 = A1 @ W2 + b2
        p = np.exp(Z2 - Z2.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        losses.append(-np.mean(np.log(p[np.arange(N), labels])))
        p[np.arange(N), labels] -= 1.0
        dZ2 = p / N
        dZ1 = np.where(A1 > 0, dZ2 @ W2.T, 0.0)
        W2, b2 = W2 - LR * (A1.T @ dZ2), b2 - LR * dZ2.sum(axis=0)
        W1, b1 = W1 - LR * (X.T @ dZ1), b1 - LR * dZ1.sum(axis=0)
    return np.array(losses)


@pytest.mark.parametrize("stored", ["float32", "uint8"])
@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: f"{s[0]}by{s[1]}-{s[2]}-{s[3]}-{s[4]}")
def test_epoch(sizes, stored, device, measure, rng):
    rows, batch, D, H, C = EMULATED if device.kind == "emulator" else sizes
    pixels = rng.integers(256, size=(rows, D), dtype=np.uint8)
    y = rng.integers(C, size=rows, dtype=np.int32)
    order = rng.permutation(rows)
    scale = 1 / 255 if stored == "uint8" else 1.0
    X = pixels if stored == "uint8" else (pixels / 255).astype(np.float32)
    net = MLP([D, H, C], loss="cross_entropy", device=str(device), seed=1)
    wanted = losses_of(pixels / 255, y, order, batch, net.flat_parameters.to_numpy())
    X, y = to_device(X, device), to_device(y, device)
    optimizer = SGD(lr=LR)
    with device:
        assert_close(net.train_epoch(X, y, order, batch, optimizer, scale=scale), wanted)
    measure(lambda: net.train_epoch(X, y, order, batch, optimizer, scale=scale))
