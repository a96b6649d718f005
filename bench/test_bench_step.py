"""The whole training step (forward, loss, backward, SGD) of the networks of ``handgrad bench``."""

import pytest

from handgrad.benchmark import reference
from handgrad.benchmark.runners import make
from handgrad.benchmark.workloads import Problem, Workload
from handgrad.throughput import Shape

SHAPES = [Shape(1024, 784, 256, 10), Shape(64, 784, 50, 10), Shape(4096, 784, 50, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.samples}x{s.inputs}-{s.hidden}-{s.outputs}")
def test_step(shape, device, measure):
    if device.kind == "emulator":
        shape = Shape(min(shape.samples, 64), shape.inputs, min(shape.hidden, 50), shape.outputs)
    problem = Problem.make(Workload(shape))
    runner = make("handgrad", str(device), 1, False)
    runner.prepare(problem)
    name, error = reference.disagreement(runner.loss_and_grad(), reference.loss_and_grad(problem))
    assert error <= reference.AGREEMENT, name
    measure(lambda: runner.run(1))
