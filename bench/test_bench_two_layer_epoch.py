"""``ops.two_layer_epoch``: an epoch of images in batches of 64, 784 → 50 → 10, momentum, in one launch."""

import numpy as np
import pytest
from agreement import assert_close

from handgrad import MLP
from handgrad.arrays import to_numpy
from handgrad.kernel import device_limits
from handgrad.ops import Workspace, two_layer_epoch
from handgrad.ops.optimizer import SGD
from handgrad.ops.two_layer import Problem, StepArrays

BATCH, INPUTS, HIDDEN, OUTPUTS = 64, 784, 50, 10


def test_epoch(device, put, measure, rng):
    if device.kind == "cpu":
        pytest.skip("the CPU goes step by step; see test_bench_step.py")
    rows = 2 * BATCH if device.kind == "emulator" else 8 * BATCH
    pixels = rng.integers(256, size=(rows, INPUTS), dtype=np.uint8)
    labels = rng.integers(OUTPUTS, size=rows).astype(np.int32)
    order = rng.permutation(rows).astype(np.int32)
    sizes = [INPUTS, HIDDEN, OUTPUTS]
    net = MLP(sizes, loss="cross_entropy", device=device)
    exact = MLP(sizes, loss="cross_entropy", dtype="float64", device="cpu")
    exact.load_parameters(net.flat_parameters.to_numpy())
    optimizer = SGD(0.05, momentum=0.9)
    limits = device_limits(device.array_module)
    problem = Problem(
        *(BATCH, INPUTS, HIDDEN, OUTPUTS),
        **{"loss": "cross_entropy", "inputs": "uint8", "rule": "Momentum"},
        **{"arch": limits.arch, "sms": limits.sms},
    )
    layout = two_layer_epoch.lay_out(problem)
    losses = device.array_module.empty(rows // BATCH, dtype=np.float32)
    parameters = net.flat_parameters
    optimizer.bind(parameters)
    arrays = StepArrays(
        put(pixels), put(labels), 1 / 255, 0.0, parameters, None, optimizer, losses[:1], Workspace()
    )
    on_device = put(order)

    def epoch():
        two_layer_epoch.run(layout, arrays, on_device, BATCH, losses)

    epoch()
    args = (pixels, labels, order, BATCH, SGD(0.05, momentum=0.9))
    assert_close(to_numpy(losses), exact.train_epoch(*args, scale=1 / 255))
    measure(epoch)
