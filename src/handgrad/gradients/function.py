"""Calling the person's own ``f(X, y, params) -> grads``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.gradients.failure import Failure, failure_of


@dataclass
class Called:
    """What two calls on the same data gave.

    ``repeated`` is the factor from the first result to the second: 1 where they are equal, 2 where gradients
    add up; None where it is no one number or was not tried.  ``changed`` names parameters that the function
    changed in place.
    """

    values: Any = None
    failure: Failure | None = None
    repeated: float | None = None
    changed: list[str] = field(default_factory=list)


def call(
    function: Callable[..., Any],
    X: Any,
    y: Any,
    parameters: Mapping[str, NDArray[Any]],
    layout: str | None,
    file: str | None = None,
) -> Called:
    """Call it twice, with fresh copies; parameters are of X's kind and dtype, weights in ``layout``."""
    stored = {
        name: value.T if layout == "out,in" and value.ndim == 2 else value
        for name, value in parameters.items()
    }
    called = Called()
    results = []
    for attempt in range(2):
        given = {name: like(X, value) for name, value in stored.items()}
        before = {name: np.array(_host(value)) for name, value in given.items()}
        try:
            results.append(function(_copy(X), _copy(y), given))
        except Exception as error:
            if attempt == 0:
                called.failure = failure_of(error, file)
                return called
            break
        if attempt == 0:
            called.changed = [name for name in stored if not np.array_equal(before[name], _host(given[name]))]
            results[0] = _frozen(results[0])
    called.values = results[0]
    if len(results) == 2:
        called.repeated = _factor(results[0], results[1])
    return called


def like(X: Any, value: NDArray[Any]) -> Any:
    """A copy of ``value`` of X's kind, on its device, in its dtype if that is a float."""
    module = type(X).__module__.split(".")[0]
    if module == "torch":
        torch = sys.modules["torch"]
        dtype = X.dtype if X.dtype.is_floating_point else torch.float64
        return torch.tensor(np.ascontiguousarray(value), dtype=dtype, device=X.device)
    if module == "cupy":
        cupy = sys.modules["cupy"]
        return cupy.asarray(np.ascontiguousarray(value), dtype=X.dtype if X.dtype.kind == "f" else np.float64)
    dtype = getattr(X, "dtype", np.dtype(np.float64))
    return np.array(value, dtype=dtype if dtype.kind == "f" else np.float64, order="C")


def _copy(value: Any) -> Any:
    for name in ("clone", "copy"):
        if hasattr(value, name):
            return getattr(value, name)()
    return value


def _host(value: Any) -> NDArray[Any]:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    elif type(value).__module__.split(".")[0] == "cupy":
        value = value.get()
    return np.asarray(value)


def _frozen(values: Any) -> Any:
    """Copies, so that a second call cannot change the first result."""
    if isinstance(values, Mapping):
        return {name: _frozen(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_frozen(value) for value in values]
    return _copy(values) if hasattr(values, "shape") else values


def _factor(first: Any, second: Any) -> float | None:
    """The constant c with second = c · first in every array; None where there is none."""
    factors: list[float] = []
    for a, b in _pairs(first, second):
        if a.shape != b.shape:
            return None
        if not np.any(a) and not np.any(b):
            continue
        c = float((a * b).sum() / ((a * a).sum() or 1.0))
        if not np.allclose(b, c * a, rtol=1e-3, atol=1e-6 * float(np.abs(a).max(initial=0.0))):
            return None
        factors.append(c)
    return factors[0] if factors and np.allclose(factors, factors[0], rtol=1e-3) else None


def _pairs(first: Any, second: Any) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """The arrays of both results, place by place."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for name in first.keys() & second.keys():
            yield from _pairs(first[name], second[name])
    elif isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        for a, b in zip(first, second, strict=False):
            yield from _pairs(a, b)
    elif hasattr(first, "shape") and hasattr(second, "shape"):
        yield np.asarray(_host(first), dtype=np.float64), np.asarray(_host(second), dtype=np.float64)
