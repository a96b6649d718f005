"""Time by stage: each stage of a step alone, over the whole batch, by the functions of ``handgrad.ops``.

The step itself may work through the batch in blocks and join stages, so that the stages together may take
longer than the step; a report says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from handgrad.arrays import resolve_device, synchronize, to_device
from handgrad.benchmark.workloads import LEARNING_RATE, Problem
from handgrad.ops import linear
from handgrad.ops import loss as loss_op
from handgrad.ops.optimizer import SGD
from handgrad.ops.workspace import Workspace
from handgrad.parameters import FlatParameters

STAGES = {
    "A1": "A1 = f(X W1 + b1)",
    "Z2": "Z2 = A1 W2 + b2",
    "loss": "loss, dZ2",
    "dW2": "dW2, db2",
    "dZ1": "dZ1 = dZ2 W2ᵀ ∘ f′",
    "dW1": "dW1, db1",
    "update": "update",
}


def measure(problem: Problem, device: str, samples: int) -> dict[str, list[float]]:
    """Stage → seconds of each of ``samples`` runs, the stages in turns."""
    target = resolve_device(device)
    with target:
        calls = _calls(problem, target.array_module, device)
        for call in calls.values():
            call()
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(samples):
            for name, call in calls.items():
                synchronize(target.array_module)
                begin = time.perf_counter()
                call()
                synchronize(target.array_module)
                taken[name].append(time.perf_counter() - begin)
    return taken


def _calls(problem: Problem, xp: Any, device: str) -> dict[str, Callable[[], Any]]:
    shape = problem.workload.shape
    N, f = shape.samples, "relu"
    X, y = (to_device(array, device) for array in problem.batch)
    shapes = {name: value.shape for name, value in problem.parameters.items()}
    parameters, gradients = FlatParameters(shapes, np.float32, xp), FlatParameters(shapes, np.float32, xp)
    parameters.copy_from(problem.parameters)
    W1, b1, W2, b2 = (parameters.views[name] for name in ("W1", "b1", "W2", "b2"))
    dW1, db1, dW2, db2 = (gradients.views[name] for name in ("W1", "b1", "W2", "b2"))
    A1, dZ1 = xp.empty((N, shape.hidden), dtype=np.float32), xp.empty((N, shape.hidden), dtype=np.float32)
    Z2, dZ2 = xp.empty((N, shape.outputs), dtype=np.float32), xp.empty((N, shape.outputs), dtype=np.float32)
    workspace = Workspace()
    optimizer = SGD(lr=LEARNING_RATE)
    return {
        "A1": lambda: linear.forward(X, W1, b1, f, out=A1),
        "Z2": lambda: linear.forward(A1, W2, b2, "identity", out=Z2),
        "loss": lambda: loss_op.forward_backward(
            Z2, y, shape.loss, "identity", "mean", out=dZ2, workspace=workspace
        ),
        "dW2": lambda: linear.backward_weight(A1, dZ2, dW2, db2, workspace=workspace),
        "dZ1": lambda: linear.backward_input(dZ2, W2, A1, f, out=dZ1),
        "dW1": lambda: linear.backward_weight(X, dZ1, dW1, db1, workspace=workspace),
        "update": lambda: optimizer.update(parameters, gradients.flat, None),
    }
