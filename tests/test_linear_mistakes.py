"""What the dense layer says to wrong arguments: the argument, what was expected, what came."""

import numpy as np
import pytest
from devices import DEVICES

from handgrad import emulator
from handgrad.arrays import to_device
from handgrad.ops import linear

N, D, H = 11, 7, 6

devices = pytest.mark.parametrize("device", DEVICES)


def floats(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


MISTAKES = {  # keywords for forward (X, W, b), backward_input (dZ, W, A) or backward_weight (X, dZ)
    "rows of W": (
        linear.forward, {"W": floats(D + 1, H)}, ValueError,
        rf"\(D, H\), D being the columns of X, = \({D}, {H}\), got \({D + 1}, {H}\)",
    ),
    "length of b": (
        linear.forward, {"b": floats(H + 1)}, ValueError,
        rf"linear.forward: b must have shape \(H,\) = \({H},\), got \({H + 1},\)",
    ),
    "X a vector": (
        linear.forward, {"X": floats(D)}, ValueError,
        r"linear.forward: X must be a matrix \(N, D\), got 1 dimensions",
    ),
    "W of another type": (
        linear.forward, {"W": floats(D, H, dtype="float64")}, TypeError,
        "linear.forward: W is float64 but X is float32; use one of them for both",
    ),
    "X of bytes": (
        linear.forward, {"X": np.zeros((N, D), np.uint8)}, TypeError,
        "linear.forward: X must be float32 or float64, got uint8",
    ),
    "unknown activation": (
        linear.forward, {"activation": "swish"}, ValueError,
        "activation: expected one of relu, sigmoid, tanh, softplus, identity, got 'swish'",
    ),
    "shape of out": (
        linear.forward, {"out": floats(N, H + 1)}, ValueError,
        r"linear.forward: out must have shape of the result",
    ),
    "type of out": (
        linear.forward, {"out": floats(N, H, dtype="float64")}, TypeError,
        "linear.forward: out must be float32, got float64",
    ),
    "columns of dZ": (
        linear.backward_input, {"W": floats(D, H + 1)}, ValueError,
        r"linear.backward_input: W must have shape \(H, C\), C being the columns of dZ,",
    ),
    "shape of A": (
        linear.backward_input, {"A": floats(N, D + 1)}, ValueError,
        rf"linear.backward_input: A must have shape \(N, H\) = \({N}, {D}\), got \({N}, {D + 1}\)",
    ),
    "no A": (
        linear.backward_input, {"activation": "tanh", "A": None}, ValueError,
        r"linear.backward_input: A \(the output of the tanh\) is needed for its derivative, got None",
    ),
    "rows of dZ": (
        linear.backward_weight, {"dZ": floats(N + 1, H)}, ValueError,
        r"linear.backward_weight: dZ must have shape \(N, H\), N being the rows of X,",
    ),
    "type of dW": (
        linear.backward_weight, {"dW": floats(D, H, dtype="float64")}, TypeError,
        "linear.backward_weight: dW must be float32, got float64",
    ),
    "shape of db": (
        linear.backward_weight, {"db": floats(H + 1)}, ValueError,
        "linear.backward_weight: db must have shape of the result",
    ),
}  # fmt: skip
RIGHT = {
    linear.forward: {"X": floats(N, D), "W": floats(D, H), "b": floats(H)},
    linear.backward_input: {"dZ": floats(N, H), "W": floats(D, H), "A": floats(N, D)},
    linear.backward_weight: {"X": floats(N, D), "dZ": floats(N, H)},
}


@devices
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(device, mistake):
    op, wrong, error, message = MISTAKES[mistake]
    arguments = {
        name: to_device(value, device) if isinstance(value, np.ndarray) else value
        for name, value in (RIGHT[op] | wrong).items()
    }
    with pytest.raises(error, match=message) as caught:
        op(**arguments)
    assert len(str(caught.value).splitlines()) == 1


@devices
def test_results_are_contiguous(device):
    transposed = to_device(floats(H, N), device).T
    on = {name: to_device(value, device) for name, value in RIGHT[linear.forward].items()}
    with pytest.raises(ValueError, match=r"linear\.forward: out must be C-contiguous"):
        linear.forward(**on, out=transposed)


def test_kinds_of_array_are_not_mixed():
    X, W = floats(N, D), floats(D, H)
    with pytest.raises(TypeError, match="arrays of two kinds in one call"):
        linear.forward(X, emulator.asarray(W))
    with pytest.raises(TypeError, match="out is not the same kind of array as the inputs"):
        linear.forward(X, W, out=emulator.empty((N, H)))
