"""Weights between this library's layout, (in, out), and PyTorch's, (out, in)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.arrays import Array, to_numpy


def from_torch(state: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """``{"W1", "b1", "W2", …}`` from the state dict of an ``nn.Sequential`` of linear layers.

    ``state`` holds tensors or arrays; names end in ``weight``, (out, in), or ``bias``, (out,), layer after
    layer.  Every W is the transpose, as a C-contiguous copy.  Raises ``TypeError`` for what is no such dict,
    ``ValueError`` for other names, and for shapes that do not follow from one another.
    """
    _check_mapping("from_torch", state, "a state dict", "module.state_dict()")
    parameters: dict[str, NDArray[Any]] = {}
    layer, width = 0, 0  # outputs of the layer
    for name, tensor in state.items():
        array = np.array(_on_host("from_torch", name, tensor))
        if name.endswith("weight") and array.ndim == 2:
            if layer and array.shape[1] != width:
                raise ValueError(
                    f"from_torch: {name} has shape {array.shape}, but the layer before gives {width} outputs"
                )
            layer, width = layer + 1, array.shape[0]
            parameters[f"W{layer}"] = np.ascontiguousarray(array.T)
        elif name.endswith("bias") and array.ndim == 1 and layer:
            if array.shape != (width,):
                raise ValueError(
                    f"from_torch: {name} has shape {array.shape}, expected ({width},) like its weight"
                )
            if f"b{layer}" in parameters:
                raise ValueError(f"from_torch: layer {layer} has two biases; {name} has no weight before it")
            parameters[f"b{layer}"] = array
        else:
            raise ValueError(
                f"from_torch: expected '….weight' (out, in) and '….bias' (out,), got {name!r} {array.shape}"
            )
    return parameters


def to_torch(parameters: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
    """A state dict (NumPy arrays) for ``nn.Sequential(Linear, activation, Linear, …)`` from ``{"W1", …}``.

    Layer l gets the names ``"{2l-2}.weight"``, (out, in), and ``"{2l-2}.bias"``; wrap the values in
    ``torch.from_numpy`` and pass the dict to ``load_state_dict``.  Raises ``TypeError`` for what is no dict
    of arrays, ``ValueError`` for other names and shapes.
    """
    _check_mapping("to_torch", parameters, "parameters by name", "net.parameters")
    state: dict[str, NDArray[Any]] = {}
    for name, value in parameters.items():
        match = re.fullmatch(r"([Wb])([1-9]\d*)", name)
        if not match:
            raise ValueError(f"to_torch: expected names like W1 and b1, got {name!r}")
        module = 2 * (int(match[2]) - 1)
        array = _on_host("to_torch", name, value)
        if array.ndim != (2 if match[1] == "W" else 1):
            shape = "(in, out)" if match[1] == "W" else "(out,)"
            raise ValueError(f"to_torch: {name}: expected shape {shape}, got {array.shape}")
        state[f"{module}.{'weight' if match[1] == 'W' else 'bias'}"] = np.array(array.T, order="C")
    return state


def _check_mapping(function: str, given: Any, expected: str, remedy: str) -> None:
    if not isinstance(given, Mapping):
        raise TypeError(f"{function}: expected {expected}, got {type(given).__name__}; give {remedy}")
    for name in given:
        if not isinstance(name, str):
            raise TypeError(f"{function}: expected names as keys, got {name!r}; give {remedy}")


def _on_host(function: str, name: str, value: Any) -> NDArray[Any]:
    """A tensor's, or an array's, numbers as a NumPy array."""
    if hasattr(value, "detach"):
        host: NDArray[Any] = value.detach().cpu().numpy()
        return host
    try:
        return to_numpy(value)
    except TypeError as error:
        raise TypeError(f"{function}: {name}: {error}") from None
