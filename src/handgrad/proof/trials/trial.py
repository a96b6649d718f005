"""One trial: a call of an op whose every output is known."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

from handgrad.proof.guarded import Memory, Output

SAMPLES = (0, 1, 31, 33, 127, 1000)  # N
INPUTS = (1, 3, 783, 784, 785)  # D
HIDDEN = (1, 50, 63, 65, 129)  # H
OUTPUTS = (1, 2, 10, 17)  # C


@dataclass(frozen=True)
class Trial:
    """A call of ``op`` (as the catalogue names it) on arrays that ``run`` takes from a Memory.

    ``run`` gives the call's outputs.  ``setting`` says what ``shape`` does not; the two tell the trial from
    all others.  ``schedules``: small enough to be repeated under many orders of threads.
    """

    op: str
    dtype: str
    shape: dict[str, int]
    setting: str
    run: Callable[[Memory], list[Output]]
    schedules: bool = False

    def __str__(self) -> str:
        sizes = " ".join(f"{name}={size}" for name, size in self.shape.items())
        return f"{self.op} {self.dtype} {sizes} ({self.setting})"

    @property
    def seed(self) -> int:
        """Of its random numbers: the same whatever else runs."""
        return zlib.crc32(str(self).encode())
