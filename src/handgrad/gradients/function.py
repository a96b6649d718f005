"""Calling the person's own ``f(X, y, params) -> grads``."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.gradients.attempt import as_float64
from handgrad.gradients.failure import Failure, failure_of, wrong_arguments


@dataclass
class Called:
    """What two calls on the same data gave.

    ``repeated`` is the factor from the first result to the second: 1 where they are equal, 2 where gradients
    add up, nan where they differ by no one number; None where it is not known: the second call raised
    (``raised_again``), or the results are no numbers.  ``changed`` names parameters that the function changed
    in place, replaced or took out of the dict; ``changed_data`` names X and y if it changed them in place.
    """

    values: Any = None
    failure: Failure | None = None
    repeated: float | None = None
    raised_again: Failure | None = None
    changed: list[str] = field(default_factory=list)
    changed_data: list[str] = field(default_factory=list)


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
        data = {"X": _copy(X), "y": _copy(y)}
        try:
            results.append(function(data["X"], data["y"], given))
        except (Exception, SystemExit) as error:
            if attempt == 0:
                called.failure = wrong_arguments(function, error) or failure_of(error, file)
                return called
            called.raised_again = failure_of(error, file)
        if attempt == 0:
            called.changed = [name for name in stored if not _same(before[name], given.get(name))]
            called.changed_data = [
                name for name, value in (("X", X), ("y", y)) if not _same(value, data[name])
            ]
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
    if isinstance(value, (list, tuple)):
        return copy.deepcopy(value)  # rows are lists too
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


def _same(before: Any, value: Any) -> bool:
    """Whether ``value``, anything that the function left there, still holds the numbers of ``before``."""
    try:
        a, b = _host(before), _host(value)
        return np.array_equal(a, b, equal_nan=a.dtype.kind == b.dtype.kind == "f")
    except Exception:  # no array of numbers any more, as [1, [2]]
        return False


def _frozen(values: Any) -> Any:
    """Copies, so that a second call cannot change the first result."""
    if isinstance(values, Mapping):
        return {name: _frozen(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_frozen(value) for value in values]
    return _copy(values) if hasattr(values, "shape") else values


def _factor(first: Any, second: Any) -> float | None:
    """The constant c with second = c · first in every array: 1 where all are 0 or equal, NaN for NaN.

    nan where there is no such constant; None where something is no array of numbers.
    """
    before, after = _gradients(first), _gradients(second)
    if before.keys() != after.keys():
        return math.nan
    factors: list[float] = []
    for name, value in before.items():
        if value is None or after[name] is None:
            if value is not after[name]:
                return math.nan
            continue
        try:
            a, b = (as_float64(array, str(name))[0] for array in (value, after[name]))
        except (TypeError, ValueError, RuntimeError):
            return None
        if a.shape != b.shape:
            return math.nan
        finite = np.isfinite(a)
        if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
            return math.nan
        if np.any(a[finite]) or np.any(b[finite]):
            factors.append(_ratio(a[finite], b[finite]))
    if not factors:
        return 1.0
    return factors[0] if np.allclose(factors, factors[0], rtol=1e-3) else math.nan


def _ratio(a: NDArray[Any], b: NDArray[Any]) -> float:
    """c with b = c · a, both finite; nan where there is none."""
    scale = float(np.abs(a).max()) or 1.0
    with np.errstate(over="ignore"):
        a, b = a / scale, b / scale  # of order 1, so that no square overflows or vanishes
    c = float((a * b).sum() / ((a * a).sum() or 1.0))
    return c if np.allclose(b, c * a, rtol=1e-3, atol=1e-6) else math.nan


def _gradients(values: Any) -> Mapping[Any, Any]:
    """The gradients by name or place, without a loss beside them."""
    if isinstance(values, Mapping):
        return values
    if not isinstance(values, (list, tuple)):
        return {0: values}
    dicts = [item for item in values if isinstance(item, Mapping)]
    return dicts[0] if len(dicts) == 1 else dict(enumerate(values))
