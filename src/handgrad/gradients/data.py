"""The right side: a network and a batch as a :class:`~handgrad.gradients.staged.Problem` in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from handgrad.arrays import to_numpy
from handgrad.gradients.attempt import as_float64
from handgrad.gradients.settings import check_numbers
from handgrad.gradients.staged import Floats, Problem
from handgrad.network import MLP
from handgrad.ops.loss import ELEMENTWISE


def problem_of(net: MLP, X: Any, y: Any, lr: float | None, weight_decay: float) -> Problem:
    """Checked and converted; ``ValueError`` names the argument, what was expected and what came."""
    if not isinstance(net, MLP):
        raise TypeError(f"net: expected a handgrad.MLP, got {type(net).__name__}")
    check_numbers(lr, weight_decay)
    parameters = {name: np.array(to_numpy(view), dtype=np.float64) for name, view in net.parameters.items()}
    for name, value in parameters.items():
        _require_finite(f"net.parameters[{name!r}]", value)
    inputs, _ = as_float64(X, "X")
    if inputs.ndim != 2 or inputs.shape[1] != net.sizes[0] or not len(inputs):
        raise ValueError(f"X: expected shape (N, {net.sizes[0]}) with N above 0, got {inputs.shape}")
    _require_finite("X", inputs)
    targets = _targets(y, len(inputs), net)
    return Problem(
        X=inputs,
        y=targets,
        parameters=parameters,
        activation=net.activation,
        output=net.output,
        loss=net.loss_name,
        reduction=net.reduction,
        weight_decay=float(weight_decay),
        lr=None if lr is None else float(lr),
    )


def _targets(y: Any, N: int, net: MLP) -> Floats:
    C = net.sizes[-1]
    targets, _ = as_float64(y, "y")
    if net.loss_name in ELEMENTWISE:
        if C == 1 and targets.ndim == 1:
            targets = targets[:, None]
        if targets.shape != (N, C):
            raise ValueError(f"y: expected shape ({N}, {C}) for {net.loss_name}, got {targets.shape}")
        _require_finite("y", targets)
        return targets
    if targets.shape == (N, C) and C > 1 and _one_hot(targets):
        return np.asarray(targets.argmax(axis=1))
    if targets.shape == (N, 1):
        targets = targets[:, 0]
    if targets.shape != (N,):
        raise ValueError(f"y: expected {N} labels, shape ({N},), for {net.loss_name}, got {targets.shape}")
    labels = targets.astype(np.int64)
    if not np.array_equal(labels, targets) or labels.min() < 0 or labels.max() >= C:
        raise ValueError(
            f"y: expected integer labels in 0 .. {C - 1}, got {targets.min():g} .. {targets.max():g}"
        )
    return labels


def _one_hot(rows: Floats) -> bool:
    return bool(np.isin(rows, (0.0, 1.0)).all() and (rows.sum(axis=1) == 1).all())


def _require_finite(name: str, array: Floats) -> None:
    if not np.all(np.isfinite(array)):
        where = ", ".join(str(int(i)) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{name}: expected finite numbers, got {array[~np.isfinite(array)][0]} at [{where}]")
