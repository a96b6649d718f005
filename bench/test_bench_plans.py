"""A training step through each path, on each device that has kernels."""

import pytest

from handgrad import throughput
from handgrad.plans import paths


@pytest.mark.parametrize("path", [name for name in paths.STEP_ORDER if name in paths.MODULES])
def test_step_of_a_path(path, device, measure):
    if device.kind == "cpu":
        pytest.skip("the CPU runs no kernels")
    shape = throughput.Shape(64, 784, 50, 10)
    step = throughput.Step(shape, device, throughput.make_problem(shape))
    step.net.path = path
    step.gradient_error()  # raises where a gradient is wrong
    measure(step.run)
