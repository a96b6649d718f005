"""``ops.activation``: a = f(z) and dz = da ∘ f'(a), over 1024 × 256 elements."""

import numpy as np
import pytest
from agreement import assert_close

from handgrad.ops import activation

SHAPE = (1024, 256)
REFERENCE = {
    "relu": (lambda z: np.maximum(z, 0.0), lambda z: np.where(z > 0, 1.0, 0.0)),
    "sigmoid": (lambda z: 1 / (1 + np.exp(-z)), lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "softplus": (lambda z: np.logaddexp(0, z), lambda z: 1 / (1 + np.exp(-z))),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_forward(name, put, measure, rng):
    z = rng.standard_normal(SHAPE)
    Z = put(z)
    A = activation.forward(Z, name)
    assert_close(A, REFERENCE[name][0](z))
    measure(lambda: activation.forward(Z, name, out=A))


@pytest.mark.parametrize("name", REFERENCE)
def test_backward(name, put, measure, rng):
    z, da = rng.standard_normal(SHAPE), rng.standard_normal(SHAPE)
    f, derivative = REFERENCE[name]
    A, dA = put(f(z)), put(da)
    dZ = activation.backward(A, dA, name)
    assert_close(dZ, da * derivative(z))
    measure(lambda: activation.backward(A, dA, name, out=dZ))
