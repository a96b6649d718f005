"""A network for the gradient check: its loss on the host in float64, its gradients from its own device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from handgrad.arrays import to_device, to_numpy
from handgrad.gradients import rounding
from handgrad.gradients.checked import Checked, Comparison, Floats
from handgrad.gradients.differences import Point
from handgrad.gradients.staged import Problem
from handgrad.network import MLP
from handgrad.ops import activation as activation_op
from handgrad.ops import linear
from handgrad.ops import loss as loss_op
from handgrad.samples import prepare

# Allowed error of what the network gives in its own dtype: relative for the loss, of the array's largest for
# the gradients.  Beyond these, and only then, the rounding of this very network is bounded.
LOSS_RTOL = {"float64": 1e-12, "float32": 1e-5}
OWN_RTOL = 1e-3


def checked_network(net: MLP, X: Any, y: Any, input_grad: bool) -> Checked:
    """The loss of ``net`` at (X, y), with respect to its parameters and, on request, X."""
    samples = prepare(net, X, y)
    host_X = (to_numpy(samples.X).astype(net.dtype) * net.dtype.type(samples.scale)).astype(np.float64)
    host_X += samples.shift
    host_y = to_numpy(samples.y)
    if host_y.dtype.kind == "f":
        host_y = host_y.astype(np.float64)
    arrays = {name: to_numpy(view).astype(np.float64) for name, view in net.parameters.items()}
    loss, own = _loss_and_gradients(net, host_X, host_y, input_grad)
    double = own
    if net.dtype != np.float64:
        twin = MLP(**{**net.config(), "dtype": "float64"}, device=net.device)
        twin.load_parameters(arrays)
        _, double = _loss_and_gradients(twin, host_X, host_y, input_grad)
    inputs = arrays | {"X": host_X}  # the same arrays, which the check moves in place
    checked = Checked(
        arrays=inputs if input_grad else arrays,
        gradients=double,
        evaluate=lambda: _loss_and_kinks(net, inputs, host_y),
        is_network=True,
    )
    checked.comparisons.append(_loss_comparison(net, inputs, host_y, loss, checked.evaluate().value))
    if net.dtype != np.float64:
        checked.comparisons += _own_dtype(net, inputs, host_y, own, double)
    return checked


def _loss_comparison(
    net: MLP, arrays: Mapping[str, Floats], y: Floats, own: float, value: float
) -> Comparison:
    """The network's own loss against that on the host."""
    allowed = LOSS_RTOL[net.dtype.name] * abs(value)
    if abs(own - value) > allowed:
        problem = _problem(net, arrays, y)
        logits = problem.forward[f"Z{net.layers}"]
        dZ = rounding.values(problem.right[f"dZ{net.layers}"])
        allowed += float(np.sum(np.abs(dZ) * rounding.errors(logits)))  # what the logits' rounding moves
        terms = np.abs(rounding.values(logits)).max(axis=1)  # and that of the terms of the loss
        allowed += 8 * problem.unit * float(terms.sum() if net.reduction == "sum" else terms.mean())
    return "loss", (), own, value, abs(own - value), allowed


def _loss_and_gradients(net: MLP, X: Floats, y: Floats, input_grad: bool) -> tuple[float, dict[str, Floats]]:
    targets = y if y.dtype.kind in "iu" else y.astype(net.dtype)
    loss, gradients = net.loss_and_grad(
        to_device(X.astype(net.dtype), net.device), to_device(targets, net.device), input_grad=input_grad
    )
    found = {name: to_numpy(value).astype(np.float64) for name, value in gradients.items()}
    if input_grad:
        found["X"] = to_numpy(gradients["dX"]).astype(np.float64)
    return float(to_numpy(loss)), found


def _loss_and_kinks(net: MLP, arrays: Mapping[str, Floats], y: Floats) -> Point:
    """The loss and how far every ReLU is from 0 and every margin of the hinge."""
    kinks: dict[str, Floats] = {}
    A = arrays["X"]
    for layer in range(1, net.layers + 1):
        Z = linear.forward(A, arrays[f"W{layer}"], arrays.get(f"b{layer}"))
        function = net.activation if layer < net.layers else net.output
        if function == "relu":
            kinks[f"Z{layer} relu"] = Z
        if layer < net.layers:
            A = activation_op.forward(Z, function)
    loss, _ = loss_op.forward_backward(Z, y, net.loss_name, net.output, net.reduction)
    if net.loss_name == "hinge":
        rows = np.arange(len(y))
        margins = Z - Z[rows, y][:, None] + 1
        margins[rows, y] = -1.0
        kinks["margin hinge"] = margins
    return Point(float(loss), kinks)


def _own_dtype(
    net: MLP, arrays: Mapping[str, Floats], y: Floats, own: Mapping[str, Floats], double: Mapping[str, Floats]
) -> list[Comparison]:
    """The worst entry of every float32 gradient, against the float64 gradient."""
    bounds: Mapping[str, Any] = {}
    found = []
    for name, right in double.items():
        if not right.size:
            continue
        error = np.abs(own[name] - right)
        allowed = np.full(right.shape, OWN_RTOL * max(float(np.abs(right).max()), 1e-30))
        if not np.all(error <= allowed):
            bounds = bounds or _rounding_bounds(net, arrays, y)
            allowed = np.maximum(allowed, bounds[name])
        excess = np.where(np.isfinite(error), error / allowed, np.inf)
        place = tuple(int(i) for i in np.unravel_index(int(np.argmax(excess)), right.shape))
        numbers = (float(array[place]) for array in (own[name], right, error, allowed))
        found.append((f"{name} as {net.dtype}", place, *numbers))
    return found  # type: ignore[return-value]


def _rounding_bounds(net: MLP, arrays: Mapping[str, Floats], y: Floats) -> dict[str, Floats]:
    """How far rounding may take every gradient, kinks within rounding included."""
    right = _problem(net, arrays, y).right
    stages = {name: "dA0" if name == "X" else f"d{name}" for name in arrays}
    return {name: rounding.errors(right[stage]) for name, stage in stages.items()}


def _problem(net: MLP, arrays: Mapping[str, Floats], y: Floats) -> Problem:
    """The network in numbers that carry their rounding error in the network's dtype."""
    parameters = {name: array for name, array in arrays.items() if name != "X"}
    unit = float(np.finfo(net.dtype).eps)
    names = (net.activation, net.output, net.loss_name, net.reduction)
    return Problem(arrays["X"], y, parameters, *names, unit=unit)
