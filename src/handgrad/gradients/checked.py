"""What a gradient check compares: a function of named float64 arrays, and its gradients as a backward pass
gives them.  One shape for networks (:mod:`handgrad.gradients.checked_network`) and for the ops and people's
own functions (:mod:`handgrad.gradients.checked_function`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.gradients.differences import Point

Floats = NDArray[Any]
Comparison = tuple[str, tuple[int, ...], float, float, float, float]


@dataclass
class Checked:
    """A function of ``arrays`` (float64, moved in place by the check) and the gradients to be checked.

    ``comparisons``: further pairs (name, index, analytic, numeric, error, allowed) to be reported
    ``value``: what the function gave before its backward pass ran
    ``problems``: gradients that are missing or have a wrong shape
    """

    arrays: dict[str, Floats]
    gradients: dict[str, Floats]
    evaluate: Callable[[], Point]
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float64))
    evaluate_complex: Callable[[Mapping[str, Any]], Any] | None = None
    value: float | None = None
    problems: list[str] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    is_network: bool = False
