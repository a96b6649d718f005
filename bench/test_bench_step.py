"""The whole training step (forward, loss, backward, SGD) of the networks of ``handgrad bench``."""

import pytest

from handgrad import throughput

SMALL = [
    throughput.Shape(1024, 784, 256, 10),
    throughput.Shape(64, 784, 50, 10),
    throughput.Shape(4096, 784, 50, 1),
]


@pytest.mark.parametrize("shape", SMALL, ids=lambda s: f"{s.samples}x{s.inputs}-{s.hidden}-{s.outputs}")
def test_step(shape, device, measure):
    if device.kind == "emulator":
        shape = throughput.Shape(min(shape.samples, 64), shape.inputs, min(shape.hidden, 50), shape.outputs)
    step = throughput.Step(shape, device, throughput.make_problem(shape))
    step.gradient_error()  # raises where a gradient is wrong
    measure(step.run)
