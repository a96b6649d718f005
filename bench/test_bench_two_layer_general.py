"""The launches of R4, one by one and as a step, at the sizes of ``handgrad bench``."""

import numpy as np
import pytest
from agreement import assert_close

from handgrad.arrays import to_numpy
from handgrad.ops import Workspace
from handgrad.ops import two_layer_general as path
from handgrad.ops.two_layer import Problem, StepArrays
from handgrad.ops.two_layer_general_geometry import Geometry
from handgrad.parameters import FlatParameters

SHAPES = [(8192, 784, 512, 10), (1024, 784, 256, 10), (1024, 784, 256, 100)]  # N, D, H, C
EMULATED_SAMPLES = 64  # of the rows, on the emulator


@pytest.fixture(params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def problem(request, device):
    if device.kind == "cpu":
        pytest.skip("a path of kernels: the CPU has none")
    N, D, H, C = request.param
    N, D = (EMULATED_SAMPLES, 84) if device.kind == "emulator" else (N, D)
    return Problem(N, D, H, C, loss="mse", rule="Store")


def test_hidden(problem, put, measure, rng):
    p = problem
    x, w, b = rng.random((p.N, p.D)), rng.normal(size=(p.D, p.H)) / np.sqrt(p.D), rng.normal(size=p.H)
    X, W1, b1, A1 = put(x), put(w), put(b), put(np.zeros((p.N, p.H)))
    path.hidden(Geometry(p), X, 1.0, 0.0, W1, b1, A1)
    assert_close(A1, np.maximum(x @ w + b, 0))
    measure(lambda: path.hidden(Geometry(p), X, 1.0, 0.0, W1, b1, A1))


def test_step(problem, device, put, measure, rng):
    p = problem
    shapes = {"W1": (p.D, p.H), "b1": (p.H,), "W2": (p.H, p.C), "b2": (p.C,)}
    values = {name: rng.normal(size=shape) / np.sqrt(shape[0]) for name, shape in shapes.items()}
    x, y = rng.random((p.N, p.D)), rng.normal(size=(p.N, p.C))
    xp = device.array_module
    with device:
        parameters = FlatParameters(shapes, p.dtype, xp)
        parameters.copy_from(values)
        gradient, loss = parameters.like().flat, xp.empty(1, dtype=np.float32)
        arrays = StepArrays(put(x), put(y), 1.0, 0.0, parameters, gradient, None, loss, Workspace())
        layout = path.lay_out(p)
        path.run(layout, arrays)
    a = np.maximum(x @ values["W1"] + values["b1"], 0)
    dZ2 = 2 * (a @ values["W2"] + values["b2"] - y) / (p.N * p.C)
    dZ1 = np.where(a > 0, dZ2 @ values["W2"].T, 0)
    found = {name: to_numpy(one) for name, one in parameters.split(gradient).items()}
    for name, wanted in {"W1": x.T @ dZ1, "b1": dZ1.sum(0), "W2": a.T @ dZ2, "b2": dZ2.sum(0)}.items():
        assert_close(found[name], wanted)
    measure(lambda: path.run(layout, arrays))
