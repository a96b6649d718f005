"""Scratch buffers that are kept between calls, so that a training step allocates nothing."""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import DTypeLike

from handgrad.arrays import Array


class Workspace:
    """Named scratch arrays, grown on demand and reused.

    An array that ``get`` returned is valid until the next ``get`` of the same name.  Give every net or thread
    its own workspace.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], Array] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: DTypeLike, xp: ModuleType) -> Array:
        """An uninitialised C-contiguous array; the same memory as last time where it is large enough."""
        return self._take(name, shape, dtype, xp, zeroed=False)

    def zeroed_once(self, name: str, shape: tuple[int, ...], dtype: DTypeLike, xp: ModuleType) -> Array:
        """Like :meth:`get`, but zero when first allocated (for tickets, which every kernel leaves at 0)."""
        return self._take(name, shape, dtype, xp, zeroed=True)

    def _take(
        self, name: str, shape: tuple[int, ...], dtype: DTypeLike, xp: ModuleType, zeroed: bool
    ) -> Array:
        size = int(np.prod(shape, dtype=np.int64))
        key = (name, np.dtype(dtype).str)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.size < size:
            buffer = (xp.zeros if zeroed else xp.empty)((max(size, 1),), dtype=dtype)
            self._buffers[key] = buffer
        return buffer[:size].reshape(shape)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(int(buffer.nbytes) for buffer in self._buffers.values())
