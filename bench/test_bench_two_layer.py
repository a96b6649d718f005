"""The fused steps R1 and R3 of 784→50→1 and 784→128→10 in float32, gradients included (the rule Store)."""

import numpy as np
import pytest
from agreement import assert_close

from handgrad.ops import Workspace, two_layer_pair, two_layer_step
from handgrad.ops.two_layer import Problem, StepArrays
from handgrad.parameters import FlatParameters

N = 4096
EMULATED_N = 64


@pytest.mark.parametrize(
    ("path", "H", "C"), [(two_layer_step, 50, 1), (two_layer_pair, 50, 1), (two_layer_pair, 128, 10)]
)
def test_step(path, H, C, device, put, measure, rng):
    if device.kind == "cpu":
        pytest.skip("R1 and R3 are kernels; bench/test_bench_step.py times the step on a CPU")
    xp, D, samples = device.array_module, 784, EMULATED_N if device.kind == "emulator" else N
    X, y = (rng.standard_normal((samples, side)).astype(np.float32) for side in (D, C))
    parameters = FlatParameters({"W1": (D, H), "b1": (H,), "W2": (H, C), "b2": (C,)}, np.float32, xp)
    parameters.copy_from(
        {name: 0.1 * rng.standard_normal(shape) for name, shape in parameters.shapes.items()}
    )
    gradient, loss = parameters.like(), xp.zeros(1, dtype=np.float32)
    arrays = StepArrays(put(X), put(y), 1.0, 0.0, parameters, gradient.flat, None, loss, Workspace())
    layout = path.lay_out(Problem(samples, D, H, C, rule="Store"))
    path.run(layout, arrays)
    W1, b1, W2, b2 = (value.astype(np.float64) for value in parameters.to_numpy().values())
    A1 = np.maximum(X.astype(np.float64) @ W1 + b1, 0)
    residual = A1 @ W2 + b2 - y
    dZ2 = 2 * residual / residual.size
    dZ1 = dZ2 @ W2.T * (A1 > 0)
    assert_close(loss, np.mean(residual**2, keepdims=True).reshape(1))
    assert_close(gradient.views["W1"], X.T.astype(np.float64) @ dZ1)
    assert_close(gradient.views["W2"], A1.T @ dZ2)
    measure(lambda: path.run(layout, arrays))
