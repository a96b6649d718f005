"""``ops.loss``: the loss and dZ in one pass, over 1024 samples."""

import numpy as np
import pytest
from agreement import assert_close

from handgrad.ops import loss
from handgrad.ops.workspace import Workspace

N, C = 1024, 10


def reference(name, z, y):
    """The mean loss and its gradient, in float64."""
    if name == "mse":
        return np.mean((z - y) ** 2), 2 * (z - y) / z.size
    if name == "bce":
        p = 1 / (1 + np.exp(-z))
        return np.mean(np.logaddexp(0, z) - z * y), (p - y) / z.size
    one_hot = np.eye(C)[y]
    if name == "cross_entropy":
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        return -np.mean(np.log(p[one_hot > 0])), (p - one_hot) / N
    margins = np.where(one_hot > 0, 0.0, np.maximum(0.0, z - z[one_hot > 0][:, None] + 1))
    violated = (margins > 0).astype(float)
    return margins.sum() / N, (violated - one_hot * violated.sum(axis=1, keepdims=True)) / N


@pytest.mark.parametrize("name", ["mse", "bce", "cross_entropy", "hinge"])
def test_forward_backward(name, put, measure, rng):
    z = rng.standard_normal((N, C)).astype(np.float32).astype(np.float64)  # hinge: the same side of each kink
    y = rng.random((N, C)) if name in ("mse", "bce") else rng.integers(C, size=N, dtype=np.int32)
    Z, targets = put(z), put(y)
    workspace = Workspace()
    value, dZ = loss.forward_backward(Z, targets, name, workspace=workspace)
    wanted_value, wanted_dZ = reference(name, z, y)
    assert_close(value, wanted_value)
    assert_close(dZ, wanted_dZ)
    measure(lambda: loss.forward_backward(Z, targets, name, out=dZ, workspace=workspace))
