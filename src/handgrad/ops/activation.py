"""Elementwise activation functions.

=========  =======================  ==========================================
name       forward a = f(z)         backward dz = da ∘ f'(z), from the output a
=========  =======================  ==========================================
relu       max(z, 0)                da where a > 0, else 0 (so f'(0) = 0)
sigmoid    1 / (1 + e^-z)           da ∘ a (1 - a)
tanh       tanh z                   da ∘ (1 - a)(1 + a)
softplus   log(1 + e^z)             da ∘ -expm1(-a)
identity   z                        da
=========  =======================  ==========================================

Any shape; float32 or float64.  Kernels: ``kernels/activation.cu``.  Test: ``tests/test_activation.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.arrays import Array, on_device_of
from handgrad.kernel import Entry, Kernel
from handgrad.ops import checks
from handgrad.ops.checks import DType

Floats = NDArray[Any]

NAMES = ("relu", "sigmoid", "tanh", "softplus", "identity")
FUNCTORS = {name: name.capitalize() for name in NAMES}  # their names in kernels/activation.cuh

THREADS = 256
MAX_BLOCKS = 4096


def forward(z: Array, name: str, out: Array | None = None) -> Array:
    """``f(z)``, elementwise; ``out`` may be ``z`` itself."""
    functor_of(name)
    xp, dtype = checks.require_floats("activation.forward", z=z)
    out = checks.require_output("activation.forward", "out", out, z.shape, dtype, xp)
    if xp is np:
        _FORWARD[name](z, out, Scratch(z))
        return out
    z = checks.contiguous(xp, z)
    _launch("activation_forward", name, dtype, z, out)
    return out


def backward(a: Array, da: Array, name: str, out: Array | None = None) -> Array:
    """``dz = da ∘ f'(z)`` from the output ``a = f(z)``; ``out`` may be ``da`` itself."""
    functor_of(name)
    op = "activation.backward"
    xp, dtype = checks.require_floats(op, a=a, da=da)
    checks.require_shape(op, "da", da, tuple(a.shape), "of a")
    out = checks.require_output(op, "out", out, a.shape, dtype, xp)
    if xp is np:
        _BACKWARD[name](a, da, out, Scratch(a))
        return out
    _launch("activation_backward", name, dtype, checks.contiguous(xp, a), checks.contiguous(xp, da), out)
    return out


def functor_of(name: str) -> str:
    """The C++ functor of an activation; an unknown name raises ``ValueError``."""
    if name not in FUNCTORS:
        raise ValueError(f"activation: expected one of {', '.join(NAMES)}, got {name!r}")
    return FUNCTORS[name]


def kernel(function: str, name: str, dtype: DType, width: int) -> Kernel:
    """The instantiation of ``activation_forward`` or ``activation_backward``."""
    return Kernel("activation.cu", f"{function}<{checks.CPP_NAMES[dtype.name]}, {FUNCTORS[name]}, {width}>")


def _launch(function: str, name: str, dtype: DType, *arrays: Array) -> None:
    n = arrays[0].size
    if n == 0:
        return
    if n >= checks.INT_LIMIT:
        raise ValueError(f"{function}: {n} elements; the kernel takes up to {checks.INT_LIMIT}")
    width = checks.vector_width(dtype, 0, *arrays)  # the tail is taken one by one: any n will do
    blocks = min(-(-n // (THREADS * width)), MAX_BLOCKS)
    with on_device_of(arrays[0]):
        kernel(function, name, dtype, width)((blocks,), (THREADS,), *arrays, np.int32(n))


# ---- NumPy: in place, with temporaries from a Scratch ------------------------------------------------------


# Bytes, from which on a second operand of the same size costs more than a row that is used again and again.
LARGE = 2**19


class Scratch:
    """Temporaries for arrays of one shape, dtype and order, made when first asked for and kept."""

    def __init__(self, like: Floats) -> None:
        self._like = like

    @functools.cached_property
    def values(self) -> Floats:
        """Of the dtype itself."""
        return np.empty_like(self._like)

    @functools.cached_property
    def zeros(self) -> Floats:
        """Zeros, as many or a row of them: the maximum with an array is quicker than with a scalar."""
        if self._like.nbytes >= LARGE and self._like.flags.c_contiguous:
            return np.zeros(self._like.shape[-1], dtype=self._like.dtype)
        return np.zeros_like(self._like)

    @functools.cached_property
    def mask(self) -> NDArray[np.bool_]:
        """Truth values."""
        return np.empty_like(self._like, dtype=bool)

    @functools.cached_property
    def bits(self) -> NDArray[Any]:
        """Signed integers as wide as the dtype."""
        return np.empty_like(self._like, dtype=f"i{self._like.itemsize}")


def _relu(z: Floats, out: Floats, scratch: Scratch) -> None:
    np.maximum(z, scratch.zeros, out=out)


def _sigmoid(z: Floats, out: Floats, scratch: Scratch) -> None:
    np.negative(z, out=out)
    with np.errstate(over="ignore"):  # e^-z = inf gives 1 / inf = 0, the right limit
        np.exp(out, out=out)
    out += 1
    np.reciprocal(out, out=out)


def _tanh(z: Floats, out: Floats, scratch: Scratch) -> None:
    np.tanh(z, out=out)


def _softplus(z: Floats, out: Floats, scratch: Scratch) -> None:
    positive = np.maximum(z, 0, out=scratch.values)
    np.abs(z, out=out)
    np.negative(out, out=out)
    np.exp(out, out=out)
    np.log1p(out, out=out)
    out += positive


def _identity(z: Floats, out: Floats, scratch: Scratch) -> None:
    if out is not z:
        np.copyto(out, z)


def _relu_backward(a: Floats, da: Floats, out: Floats, scratch: Scratch) -> None:
    # Selects by the product of the bits, as a whole number, with 1 or 0: what stands where a > 0 is false,
    # NaN included, becomes 0.
    np.greater(a, 0, out=scratch.mask)
    np.copyto(scratch.bits, scratch.mask)
    np.multiply(da.view(scratch.bits.dtype), scratch.bits, out=out.view(scratch.bits.dtype))


def _sigmoid_backward(a: Floats, da: Floats, out: Floats, scratch: Scratch) -> None:
    slope = np.subtract(1, a, out=scratch.values)
    slope *= a
    np.multiply(da, slope, out=out)


def _tanh_backward(a: Floats, da: Floats, out: Floats, scratch: Scratch) -> None:
    slope = np.subtract(1, a, out=scratch.values)
    slope *= np.add(1, a, out=scratch.bits.view(a.dtype))
    np.multiply(da, slope, out=out)


def _softplus_backward(a: Floats, da: Floats, out: Floats, scratch: Scratch) -> None:
    slope = np.negative(a, out=scratch.values)
    np.expm1(slope, out=slope)
    np.negative(slope, out=slope)
    np.multiply(da, slope, out=out)


def _identity_backward(a: Floats, da: Floats, out: Floats, scratch: Scratch) -> None:
    if out is not da:
        np.copyto(out, da)


_FORWARD: dict[str, Callable[[Floats, Floats, Scratch], None]] = {
    "relu": _relu,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "softplus": _softplus,
    "identity": _identity,
}
_BACKWARD: dict[str, Callable[[Floats, Floats, Floats, Scratch], None]] = {
    "relu": _relu_backward,
    "sigmoid": _sigmoid_backward,
    "tanh": _tanh_backward,
    "softplus": _softplus_backward,
    "identity": _identity_backward,
}


# ---- catalogue -------------------------------------------------------------------------------------------

_LAUNCH = f"grid min(⌈n / ({THREADS} V)⌉, {MAX_BLOCKS}), block {THREADS}; V = 16 bytes where aligned, else 1"


def _expressions(function: str) -> tuple[str, ...]:
    return tuple(
        kernel(function, name, dtype, width).expression
        for dtype in checks.FLOATS
        for name in NAMES
        for width in (1, 16 // dtype.itemsize)
    )


def _forward_bytes(n: int, itemsize: int = 4) -> dict[str, int]:
    return {"z": n * itemsize, "a": n * itemsize}


def _backward_bytes(n: int, itemsize: int = 4) -> dict[str, int]:
    return {"a": n * itemsize, "da": n * itemsize, "dz": n * itemsize}


CATALOGUE = (
    Entry("activation.forward", "activation.cu", _expressions("activation_forward"), _LAUNCH, _forward_bytes),
    Entry(
        "activation.backward", "activation.cu", _expressions("activation_backward"), _LAUNCH, _backward_bytes
    ),
)
