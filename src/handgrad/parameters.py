"""Parameters in one flat contiguous buffer, with named views.

::

    flat   | W1 ........ 0 0 | b1 . 0 0 0 | W2 ... 0 | b2 0 0 0 |
             offsets["W1"]     offsets["b1"] ...               views start at multiples of 256 bytes

Gradients and optimizer state have the same layout, so that one launch updates everything, one exchange sums
all gradients, and kernels read 16 bytes at a time without a tail.  The padding is zero and stays zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from handgrad.arrays import Array, on_device_of, to_numpy

ALIGNMENT = 256  # bytes: what cudaMalloc guarantees, and the chunk that one trainable flag stands for


class FlatParameters:
    """Named arrays as views of one buffer.

    Parameters
    ----------
    shapes: name -> shape, in the order of the buffer
    dtype: float32 or float64
    xp: the array module that allocates (``numpy``, ``cupy`` or ``handgrad.emulator``)

    Attributes
    ----------
    flat: (size,) the whole buffer, padding included; 256-byte aligned, a whole number of 256-byte chunks
    views: name -> view of ``flat`` in its shape
    offsets: name -> index in ``flat`` of the view's first element
    trainable: (size * itemsize / 256,) uint8 on the device: 1 where an optimizer may change the chunk
    frozen: names whose chunks have the flag 0
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: DTypeLike, xp: ModuleType) -> None:
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise ValueError(f"dtype: expected float32 or float64, got {self.dtype}")
        self.xp = xp
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(shape) for name, shape in shapes.items()}
        self.chunk = ALIGNMENT // self.dtype.itemsize  # elements a chunk
        self.offsets: dict[str, int] = {}
        size = 0
        for name, shape in self.shapes.items():
            self.offsets[name] = size
            size += -(-math.prod(shape) // self.chunk) * self.chunk
        self.flat: Array = _aligned_zeros(size, self.dtype) if xp is np else xp.zeros(size, dtype=self.dtype)
        self.views: dict[str, Array] = self.split(self.flat)
        self._flags: NDArray[np.uint8] = np.ones(size // self.chunk, dtype=np.uint8)
        self.trainable: Array = xp.asarray(self._flags.copy())
        self.frozen: frozenset[str] = frozenset()

    def split(self, flat: Array) -> dict[str, Array]:
        """Name -> view of ``flat`` ((size,), the layout of this set) in its shape."""
        return {
            name: flat[start : start + math.prod(self.shapes[name])].reshape(self.shapes[name])
            for name, start in self.offsets.items()
        }

    def like(self) -> FlatParameters:
        """Another set of the same names, shapes, dtype and device, all zero and nothing frozen."""
        with on_device_of(self.flat):
            return FlatParameters(self.shapes, self.dtype, self.xp)

    def freeze(self, *names: str) -> None:
        """Keep these parameters as they are: no optimizer changes a bit of them, nor of their state."""
        self._mark(names, self.frozen | frozenset(names))

    def unfreeze(self, *names: str) -> None:
        """Let optimizers change these parameters again; without names, all of them."""
        self._mark(names, self.frozen - frozenset(names) if names else frozenset())

    def _mark(self, names: tuple[str, ...], frozen: frozenset[str]) -> None:
        self._check_names(names)
        self.frozen = frozen
        for name, start in self.offsets.items():
            stop = start + math.prod(self.shapes[name])
            self._flags[start // self.chunk : -(-stop // self.chunk)] = name not in frozen
        with on_device_of(self.flat):
            self.trainable[...] = self.xp.asarray(
                self._flags
            )  # the same device array: kernels keep its address

    def trainable_slices(self) -> list[slice]:
        """The stretches of ``flat`` that may change, padding included, as few slices as possible."""
        edges = np.flatnonzero(np.diff(self._flags.astype(np.int8), prepend=0, append=0)) * self.chunk
        return [slice(int(a), int(b)) for a, b in zip(edges[0::2], edges[1::2], strict=True)]

    def copy_from(self, values: Mapping[str, Any]) -> None:
        """Copy arrays in by name, from any device, converted to this dtype; names left out keep their values.

        Raises ``ValueError`` for an unknown name or a wrong shape, before anything is written.
        """
        self._check_names(tuple(values))
        for name, value in values.items():
            if np.shape(value) != self.shapes[name]:
                raise ValueError(f"{name}: expected shape {self.shapes[name]}, got {np.shape(value)}")
        with on_device_of(self.flat):
            for name, value in values.items():
                host = np.ascontiguousarray(to_numpy(value), dtype=self.dtype).reshape(self.shapes[name])
                self.views[name][...] = self.xp.asarray(host)

    def to_numpy(self) -> dict[str, NDArray[Any]]:
        """Name -> a copy as a base ``numpy.ndarray``, from any device."""
        return {name: to_numpy(view).copy() for name, view in self.views.items()}

    def _check_names(self, names: tuple[str, ...]) -> None:
        for name in names:
            if name not in self.shapes:
                raise ValueError(f"no parameter {name!r}; expected one of {', '.join(self.shapes)}")

    def __repr__(self) -> str:
        parts = (
            f"{name}{list(shape)}{' frozen' if name in self.frozen else ''}"
            for name, shape in self.shapes.items()
        )
        return f"FlatParameters({', '.join(parts)}; {self.dtype}, {self.flat.nbytes} bytes)"


def _aligned_zeros(size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """(size,) zeros that start at a multiple of 256 bytes; NumPy itself promises 16."""
    memory = np.zeros(size * dtype.itemsize + ALIGNMENT, dtype=np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size * dtype.itemsize].view(dtype)


class Gradients(dict[str, Array]):
    """Parameter name → gradient, a view of one flat buffer (``.flat``).

    ``intermediates`` holds what :meth:`MLP.loss_and_grad` was asked to keep beside, by name (Z1, A1, dZ1, …);
    ``gradients["dZ1"]`` finds those too, while iteration goes over the parameters alone.
    """

    def __init__(self, buffer: FlatParameters) -> None:
        super().__init__(buffer.views)
        self.buffer = buffer
        self.intermediates: dict[str, Array] = {}

    def __missing__(self, name: str) -> Array:
        if name in self.intermediates:
            return self.intermediates[name]
        raise KeyError(name)

    @property
    def flat(self) -> Array:
        """All gradients in one array, padded as ``MLP.flat_parameters`` is."""
        return self.buffer.flat
