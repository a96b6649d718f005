"""A training step (forward, loss, backward, SGD) through each path, on each device that has kernels."""

import numpy as np
import pytest

from handgrad.benchmark import reference
from handgrad.benchmark.workloads import Problem, Shape, Workload
from handgrad.network import MLP
from handgrad.ops.optimizer import SGD
from handgrad.plans import paths, plan

LR = 0.5


@pytest.mark.parametrize("path", paths.STEP_ORDER)
def test_step_of_a_path(path, device, put, measure):
    if device.kind == "cpu":
        pytest.skip("the CPU runs no kernels")
    shape = Shape(64 if device.kind == "emulator" else 4096, 784, 50, 10)
    problem = Problem.make(Workload(shape))
    net = MLP([784, 50, 10], loss="cross_entropy", device=str(device), path=path, matmul="kernels")
    net.load_parameters(problem.parameters)
    assert plan(net, shape.samples).path == path
    X, y = put(problem.X), put(problem.y)
    with device:
        loss = float(net.train_step(X, y, SGD(lr=LR))[()])
        after = net.flat_parameters.to_numpy()
    steps = {
        name: (value.astype(np.float64) - after[name]) / LR for name, value in problem.parameters.items()
    }
    name, error = reference.disagreement((loss, steps), reference.loss_and_grad(problem))
    assert error <= reference.AGREEMENT, name
    optimizer = SGD(lr=1e-3)
    measure(lambda: net.train_step(X, y, optimizer))
