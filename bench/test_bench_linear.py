"""``ops.linear``: the three products of a layer, at the sizes of ``handgrad bench``."""

import numpy as np
import pytest
from agreement import assert_close

from handgrad.ops import linear
from handgrad.ops.workspace import Workspace

SHAPES = [(1024, 784, 256), (1024, 256, 10), (64, 784, 50), (64, 50, 10)]  # N, D, H
EMULATED_SAMPLES = 64  # of the rows, on the emulator


@pytest.fixture(params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def shape(request, device):
    N, D, H = request.param
    return (min(N, EMULATED_SAMPLES) if device.kind == "emulator" else N), D, H


def test_forward(shape, put, measure, rng):
    N, D, H = shape
    x, w, b = rng.random((N, D)), rng.standard_normal((D, H)) / np.sqrt(D), rng.standard_normal(H)
    X, W, B = put(x), put(w), put(b)
    A = linear.forward(X, W, B, activation="relu")
    assert_close(A, np.maximum(x @ w + b, 0.0))
    measure(lambda: linear.forward(X, W, B, activation="relu", out=A))


def test_backward_input(shape, put, measure, rng):
    N, H, C = shape
    dz, w = rng.standard_normal((N, C)), rng.standard_normal((H, C)) / np.sqrt(C)
    a = np.maximum(rng.standard_normal((N, H)), 0.0)
    dZ, W, A = put(dz), put(w), put(a)
    dX = linear.backward_input(dZ, W, A, activation="relu")
    assert_close(dX, np.where(a > 0, dz @ w.T, 0.0))
    measure(lambda: linear.backward_input(dZ, W, A, activation="relu", out=dX))


def test_backward_weight(shape, put, measure, rng):
    N, D, H = shape
    x, dz = rng.random((N, D)), rng.standard_normal((N, H))
    X, dZ = put(x), put(dz)
    workspace = Workspace()
    dW, db = linear.backward_weight(X, dZ, workspace=workspace)
    assert_close(dW, x.T @ dz)
    assert_close(db, dz.sum(axis=0))
    measure(lambda: linear.backward_weight(X, dZ, dW=dW, db=db, workspace=workspace))
