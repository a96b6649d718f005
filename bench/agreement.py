"""Correct before it is timed: results against float64 NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from handgrad.arrays import to_numpy

SHARE_OF_LARGEST = 1e-5  # of the largest element: some thirty times the rounding of these float32 sums


def assert_close(result: Any, wanted: Any) -> None:
    """Every element of ``result`` within :data:`SHARE_OF_LARGEST` of ``wanted``; nan fails."""
    found, expected = np.asarray(to_numpy(result), dtype=np.float64), np.asarray(wanted)
    assert found.shape == expected.shape
    largest = float(np.max(np.abs(expected), initial=0.0)) or 1.0
    assert np.all(np.abs(found - expected) <= SHARE_OF_LARGEST * largest)
