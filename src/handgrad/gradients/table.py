"""What is known of single mistakes, and the pairs that it leaves possible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Table:
    """For each mistake (row) and given stage (column), the mistake being made alone:

    ``touches``: it changes the stage.  ``near``: the stage then comes near the given one (a free constant is
    fitted to each stage by itself).  ``reshapes``: its shape is then not the right one, or the stage fails.
    ``fits``: the shape is that of the given one.
    """

    touches: Flags
    near: Flags
    reshapes: Flags
    fits: Flags

    @classmethod
    def of(cls, mistakes: int, stages: int) -> Table:
        """All False."""
        return cls(*(np.zeros((mistakes, stages), dtype=bool) for _ in range(4)))

    def pairs(self, agrees: Flags, right_fits: Flags, reads: Flags) -> Flags:
        """[i, j]: whether the two together may give every stage.

        A stage that neither changes must agree by itself, and one that only one changes must be near with
        that one.  Of one that both change the shape is known, unless both reshape it: that of the one that
        reshapes it, else the right one.  ``reads`` marks mistakes that look at other stages: those are not
        refused.
        """
        first, second = self.touches[:, None, :], self.touches[None, :, :]
        looks = (self.touches & reads[:, None])[:, None, :] | (self.touches & reads[:, None])[None, :, :]

        def of_first(flags: Flags) -> Any:
            return flags[:, None, :]

        def of_second(flags: Flags) -> Any:
            return flags[None, :, :]

        shape = of_first(self.reshapes) & of_second(self.reshapes)
        shape |= of_first(self.reshapes & self.fits) & ~of_second(self.reshapes)
        shape |= ~of_first(self.reshapes) & of_second(self.reshapes & self.fits)
        shape |= ~of_first(self.reshapes) & ~of_second(self.reshapes) & right_fits
        possible = (first & second & shape) | looks
        possible |= first & ~second & of_first(self.near)
        possible |= ~first & second & of_second(self.near)
        possible |= ~first & ~second & agrees
        return np.asarray(possible.all(axis=2))
