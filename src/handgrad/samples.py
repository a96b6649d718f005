"""Samples on a network's device, checked against what the network takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from handgrad.arrays import Array, Device, to_device, to_numpy

if TYPE_CHECKING:
    from handgrad.network import MLP
    from handgrad.streaming.streamed_samples import StreamedSamples

CHECKED_ROWS = 4096  # rows whose finiteness is looked at together


@dataclass(frozen=True)
class Samples:
    """X (N, D) as it is stored and y, on one device; the network sees ``X * scale + shift``."""

    X: Array
    y: Array
    scale: float = 1.0
    shift: float = 0.0

    def __len__(self) -> int:
        return int(self.X.shape[0])

    def part(self, first: int, last: int) -> Samples:
        """Rows ``first`` .. ``last`` - 1, as views."""
        return replace(self, X=self.X[first:last], y=self.y[first:last])


def prepare_any(
    net: MLP, data: Any, y: Any = None, name: str = "X", y_name: str = "y"
) -> Samples | StreamedSamples:
    """:func:`prepare`; a stream (:mod:`handgrad.streaming`) stays on disk."""
    if y is None and hasattr(data, "for_network"):
        streamed: StreamedSamples = data.for_network(net)
        return streamed
    return prepare(net, data, y, name, y_name)


def prepare(net: MLP, data: Any, y: Any = None, name: str = "X", y_name: str = "y") -> Samples:
    """``data`` (a data set with X, y, scale and shift, or an array with its targets ``y``) for ``net``.

    uint8 features stay uint8; on a device other features become the network's dtype.  Labels (cross_entropy,
    hinge) are (N,) integers 0 .. C-1; targets (mse, bce) become (N, C) of the network's dtype, where (N,)
    will do for C = 1.  Raises ``TypeError`` in one line for arrays of another library, as PyTorch's tensors,
    and ``ValueError`` for whatever else does not fit.
    """
    scale, shift = 1.0, 0.0
    if y is None and not isinstance(data, np.ndarray) and hasattr(data, "X") and hasattr(data, "y"):
        X, y, scale, shift = data.X, data.y, float(data.scale), float(data.shift)
    else:
        X = data
    if y is None:
        raise ValueError(
            f"{y_name}: expected targets, got None; give arrays {name} and {y_name}, or a Dataset"
        )
    X, y = _as_array(X, name), _as_array(y, y_name)
    _check_features(X, net.sizes[0], name)
    if len(X) != len(y):
        raise ValueError(f"{name} has {len(X)} samples but {y_name} has {len(y)}")
    if len(X) == 0:
        raise ValueError(f"{name}: no samples; expected at least one")
    _check_finite(X, name)
    return Samples(_move_features(X, net), _targets(y, net, y_name), scale, shift)


def _as_array(values: Any, name: str) -> Array:
    """An array of numbers; lists are converted, arrays of any device are left where they are."""
    array = values if hasattr(values, "dtype") else np.asarray(values)
    if not hasattr(array.dtype, "kind"):
        kind = f"{type(array).__module__}.{type(array).__qualname__}"
        on_host = getattr(getattr(array, "device", None), "type", "cpu") == "cpu"
        detached = getattr(array, "requires_grad", False) or not on_host
        remedy = f"{name}.detach().cpu().numpy()" if detached else f"{name}.numpy()"
        raise TypeError(
            f"{name}: expected a NumPy, CuPy or emulated array, got {kind}; convert with {remedy}"
        )
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name}: expected numbers, got {array.dtype}")
    if array.ndim == 0:
        raise ValueError(f"{name}: expected an array, got a single number")
    return array


def _check_features(X: Array, inputs: int, name: str) -> None:
    if X.ndim != 2:
        raise ValueError(
            f"{name}: expected a matrix (N, {inputs}), got shape {tuple(X.shape)}; "
            f"flatten with {name}.reshape(len({name}), -1)"
        )
    if X.shape[1] != inputs:
        raise ValueError(
            f"{name}: expected {inputs} columns, as many as the network's inputs, got {X.shape[1]}"
        )


def _check_finite(array: Array, name: str) -> None:
    if array.dtype.kind != "f":
        return
    xp, array = _computing_module(array)
    for start in range(0, len(array), CHECKED_ROWS):
        rows = array[start : start + CHECKED_ROWS]
        if not bool(xp.isfinite(rows).all()):
            rows = to_numpy(rows)
            place = np.argwhere(~np.isfinite(rows))[0]
            indices = ", ".join(str(int(i)) for i in (place[0] + start, *place[1:]))
            raise ValueError(f"{name}: {rows[tuple(place)]} at {name}[{indices}]; expected finite numbers")


def _move_features(X: Array, net: MLP) -> Array:
    if net.device.kind == "cpu":
        return to_numpy(X)  # gathering converts; memory-mapped data stays on disk
    return to_device(X, net.device, X.dtype if X.dtype == np.uint8 else net.dtype)


def _targets(y: Array, net: MLP, name: str) -> Array:
    loss, C = net.loss_name, net.sizes[-1]
    if loss in ("cross_entropy", "hinge"):
        if y.ndim != 1 or y.dtype.kind not in "iu":
            raise ValueError(
                f"{name}: {loss} takes integer labels (N,), got {y.dtype} of shape {tuple(y.shape)}; "
                f"convert with {name}.astype(int)"
            )
        _check_range(y, 0, C - 1, f"labels of {loss} with {C} outputs", name)
        return to_numpy(y) if net.device.kind == "cpu" else to_device(y, net.device, np.int32)
    if y.ndim == 1 and C == 1:
        y = y.reshape(-1, 1)
    if y.ndim != 2 or y.shape[1] != C:
        labels = "; labels go with loss='cross_entropy'" if y.ndim == 1 and y.dtype.kind in "iu" else ""
        raise ValueError(f"{name}: {loss} takes targets (N, {C}), got shape {tuple(y.shape)}{labels}")
    _check_finite(y, name)
    if loss == "bce":
        _check_range(y, 0, 1, "targets of bce", name)
    return to_device(y, net.device, net.dtype)


def _check_range(y: Array, low: int, high: int, meaning: str, name: str) -> None:
    _, y = _computing_module(y)
    outside = (y < low) | (y > high)
    if bool(outside.any()):
        place = np.argwhere(to_numpy(outside))[0]
        indices = ", ".join(str(int(i)) for i in place)
        value = to_numpy(y[tuple(int(i) for i in place)])
        raise ValueError(f"{name}: {meaning} lie in {low} .. {high}, got {value} at {name}[{indices}]")


def _computing_module(array: Array) -> tuple[ModuleType, Array]:
    """cupy and the array, or numpy and the array as a base ndarray."""
    if isinstance(array, np.ndarray):
        return np, to_numpy(array)
    return Device("cuda").array_module, array
