"""A function for the gradient check: an op, people's own two passes, or a function and its gradient."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from handgrad.arrays import Array, get_array_module, to_numpy
from handgrad.gradients.checked import Checked, Floats
from handgrad.gradients.differences import Point
from handgrad.ops import activation as activation_op
from handgrad.ops import batch, linear, optimizer
from handgrad.ops import loss as loss_op


def checked_function(
    function: Any,
    inputs: Any,
    y: Any,
    gradient: Callable[..., Any] | None,
    backward: Callable[..., Any] | None,
    settings: Mapping[str, Any],
    seed: int,
) -> Checked:
    """A function with its gradient or its backward pass, an op, or an object with both passes."""
    if gradient is not None and backward is not None:
        raise TypeError("gradcheck: give gradient= (of a scalar function) or backward=, not both")
    op = _OPS.get(_key(function))
    if op is None and (function in (batch, optimizer) or function is batch.gather):
        raise TypeError("gradcheck: handgrad.ops.batch and .optimizer have no backward pass to check")
    arguments = _Arguments(function if op is None else op.forward, inputs)
    keywords = dict(settings)
    if y is not None:
        keywords["y"] = _like_floats(y, arguments.xp)
    if op is not None:
        forward: Callable[..., Any] = op.forward
        if gradient is not None or backward is not None:
            raise TypeError("gradcheck of an op checks the op's own backward pass; leave yours out")
        gradient, backward = op.gradient, op.backward
    elif gradient is None and backward is None and _is_layer(function):
        forward = function.forward

        def backward(upstream: Any, *_: Any, **__: Any) -> Any:
            return function.backward(upstream)

    else:
        forward = function
    if not callable(forward):
        kind = type(function).__name__
        raise TypeError(f"gradcheck: expected an MLP, an op, a function or a layer, got {kind}")

    result = forward(*arguments.args(), **arguments.keywords(), **keywords)
    both = gradient is None and backward is None
    if both and not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(
            "gradcheck: with neither gradient= nor backward=, the function must return (value, gradients); "
            f"got {type(result).__name__}"
        )
    cached = backward is not None and isinstance(result, tuple) and len(result) == 2
    takes_first = both or cached or (op is not None and op.forward is loss_op.forward_backward)
    out = result[0] if takes_first else result
    host = _host(out)
    if host.dtype.name not in ("float32", "float64"):
        raise TypeError(f"gradcheck: the function must return float32 or float64 numbers, got {host.dtype}")
    if backward is None and host.size != 1:
        raise ValueError(
            f"gradcheck: gradient= is for a scalar function, but it returns shape {host.shape}; "
            "give backward=, which takes the upstream gradient"
        )
    random = np.random.Generator(np.random.PCG64(seed))
    upstream = np.ones(host.shape) if backward is None else random.standard_normal(host.shape)

    def value_of(found: Any) -> Any:
        found = _host(found[0] if takes_first else found)
        if found.shape != upstream.shape:
            raise ValueError(f"the function's result changed shape, from {upstream.shape} to {found.shape}")
        return np.sum(upstream * found)

    value = float(value_of(result))
    if both:
        given = result[1]
    elif backward is None:
        assert gradient is not None
        given = gradient(*arguments.args(), **arguments.keywords(), **keywords)
    else:
        weights = _like(out, upstream.astype(host.dtype))
        if cached:
            given = backward(weights, result[1])
        else:
            given = backward(weights, *arguments.args(), **arguments.keywords(), **keywords)
    arguments.check_untouched()
    checked = Checked(
        arrays=arguments.floats,
        gradients={},
        evaluate=lambda: Point(
            float(value_of(forward(*arguments.args(), **arguments.keywords(), **keywords)))
        ),
        dtype=host.dtype,
        value=value,
    )
    if op is None and arguments.xp is np:
        checked.evaluate_complex = lambda moved: value_of(
            forward(*arguments.args(moved), **arguments.keywords(moved), **keywords)
        )
    _name_gradients(given, arguments, checked)
    return checked


class _Arguments:
    """The inputs of a function: float64 working copies of the floats, by name; constants as they are."""

    def __init__(self, function: Callable[..., Any], inputs: Any) -> None:
        self.by_name = isinstance(inputs, Mapping)
        if isinstance(inputs, Mapping):
            given = {str(name): value for name, value in inputs.items()}
        else:
            listed = isinstance(inputs, list) and len(inputs) > 0
            several = isinstance(inputs, tuple) or (
                listed and all(hasattr(value, "shape") for value in inputs)
            )
            values = list(inputs) if several else [inputs]
            given = dict(zip(_names(function, len(values)), values, strict=True))
        self.given = given
        self.floats: dict[str, Floats] = {}
        for name, value in given.items():
            host = _host(value)
            number = isinstance(value, (int, float, list)) and host.dtype.kind in "if"
            if number or host.dtype.kind == "f":
                self.floats[name] = np.array(host, dtype=np.float64, order="C")
        if not self.floats:
            raise ValueError("gradcheck: no float input to differentiate; convert with X.astype(float)")
        self.untouched = {name: array.copy() for name, array in self.floats.items()}
        self.xp: Any = None  # PyTorch's arrays have no module here
        if not any(hasattr(value, "detach") for value in given.values()):
            self.xp = get_array_module(*(value for value in given.values() if hasattr(value, "shape")))

    def _values(self, moved: Mapping[str, Any] | None) -> dict[str, Any]:
        values = dict(self.given)
        for name, array in self.floats.items():
            array = array if moved is None else moved[name]
            values[name] = _like(self.given[name], array)
        return values

    def args(self, moved: Mapping[str, Any] | None = None) -> list[Any]:
        """Positional arguments, with ``moved`` arrays in place of the working ones where given."""
        return [] if self.by_name else list(self._values(moved).values())

    def keywords(self, moved: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Keyword arguments."""
        return self._values(moved) if self.by_name else {}

    def check_untouched(self) -> None:
        """``ValueError`` if the function wrote into its inputs."""
        for name, array in self.floats.items():
            if not np.array_equal(array, self.untouched[name], equal_nan=True):
                raise ValueError(f"gradcheck: the function changed its input {name} in place; let it copy")


def _is_layer(function: Any) -> bool:
    return callable(getattr(function, "forward", None)) and callable(getattr(function, "backward", None))


def _names(function: Callable[..., Any], count: int) -> list[str]:
    """The names of the first parameters of ``function``, where it has so many."""
    function = getattr(function, "forward", function)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        parameters = ()  # type: ignore[assignment]
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return names[:count] if len(names) >= count else [f"input {i}" for i in range(count)]


def _name_gradients(given: Any, arguments: _Arguments, checked: Checked) -> None:
    names = list(arguments.floats)
    if isinstance(given, Mapping):
        found = {name: given.get(name, given.get(f"d{name}")) for name in names}
    elif isinstance(given, (tuple, list)) and not (
        len(names) == 1 and len(given) != 1 and len(arguments.given) == 1
    ):
        wanted = list(arguments.given) if len(given) == len(arguments.given) else names
        if len(given) != len(wanted):
            checked.problems.append(f"{len(given)} gradients for {len(names)} inputs ({', '.join(names)})")
            return
        found = dict(zip(wanted, given, strict=True))
    elif len(names) == 1:
        found = {names[0]: given}
    else:
        checked.problems.append(f"one gradient for {len(names)} inputs ({', '.join(names)})")
        return
    for name in names:
        if found[name] is None:
            checked.problems.append(f"{name}: no gradient")
            continue
        host, shape = _host(found[name]).astype(np.float64), checked.arrays[name].shape
        if host.shape != shape and host.size == checked.arrays[name].size == 1:
            host = host.reshape(shape)
        if host.shape != shape:
            turned = " (it is transposed)" if host.shape == shape[::-1] else ""
            checked.problems.append(f"{name}: the gradient has shape {host.shape}, expected {shape}{turned}")
            continue
        checked.gradients[name] = host


def _host(value: Any) -> Floats:
    if hasattr(value, "detach"):
        return np.asarray(value.detach().cpu().numpy())
    if isinstance(value, (complex, list)):
        return np.asarray(value)
    return to_numpy(value)


def _like(original: Any, array: Any) -> Any:
    """``array`` as the kind of array that ``original`` is; a number where it is 0-d."""
    if hasattr(original, "detach"):
        import torch

        return torch.from_numpy(array.copy())
    xp = get_array_module(original) if hasattr(original, "shape") else np
    if xp is np and array.ndim == 0:
        return array[()]
    return array if xp is np else xp.asarray(array)


def _like_floats(y: Any, xp: Any) -> Any:
    """Float targets in float64, on the module of the inputs; labels as they are."""
    if xp is None or not hasattr(y, "dtype"):
        return y
    return y.astype(np.float64) if y.dtype.kind == "f" else y


# ---- the ops ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Op:
    """An op's forward function, and its backward in terms of the forward's arguments."""

    forward: Callable[..., Any]
    backward: Callable[..., Any] | None = None
    gradient: Callable[..., Any] | None = None


def _linear_backward(
    upstream: Array, X: Array, W: Array, b: Array | None = None, activation: str = "identity"
) -> dict[str, Array]:
    Y = linear.forward(X, W, b, activation)
    dZ = activation_op.backward(Y, upstream, activation)
    dW, db = linear.backward_weight(X, dZ, bias=b is not None)
    return {"X": linear.backward_input(dZ, W), "W": dW, "b": db}


def _activation_backward(upstream: Array, z: Array, name: str) -> Array:
    return activation_op.backward(activation_op.forward(z, name), upstream, name)


def _loss_gradient(Z: Array, y: Array, **settings: Any) -> dict[str, Array]:
    return {"Z": loss_op.forward_backward(Z, y, **settings)[1]}


def _key(function: Any) -> Any:
    return function if isinstance(function, ModuleType) or inspect.isfunction(function) else None


_LINEAR = _Op(linear.forward, backward=_linear_backward)
_ACTIVATION = _Op(activation_op.forward, backward=_activation_backward)
_LOSS = _Op(loss_op.forward_backward, gradient=_loss_gradient)
_OPS: Mapping[Any, _Op] = {
    linear: _LINEAR,
    linear.forward: _LINEAR,
    activation_op: _ACTIVATION,
    activation_op.forward: _ACTIVATION,
    loss_op: _LOSS,
    loss_op.forward_backward: _LOSS,
}
