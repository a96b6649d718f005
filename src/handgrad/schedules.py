"""Learning-rate schedules: the factor on the optimizer's ``lr`` in each epoch.

A schedule is a function of the part of the training that is done when the epoch begins, ``fraction`` =
epoch / epochs with epoch = 0, 1, ….

=============  =================================================================
name           factor
=============  =================================================================
``constant``   1
``step``       1 below 1/2, then 0.1, from 3/4 on 0.01
``cosine``     ½ (1 + cos(π fraction))   (arXiv:1608.03983, one period)
=============  =================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float], float]


def constant(fraction: float) -> float:
    """1 throughout."""
    return 1.0


def step(fraction: float) -> float:
    """1, a tenth from half of the training on, a hundredth from three quarters on."""
    return 1.0 if fraction < 0.5 else 0.1 if fraction < 0.75 else 0.01


def cosine(fraction: float) -> float:
    """½ (1 + cos(π fraction)): from 1 towards 0 along half a wave."""
    return 0.5 * (1 + math.cos(math.pi * fraction))


SCHEDULES: dict[str, Schedule] = {"constant": constant, "step": step, "cosine": cosine}


def factor(schedule: str | Schedule, fraction: float) -> float:
    """The factor that ``schedule`` (a name or a function) gives; ``ValueError`` if it gives no usable one."""
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule: expected {', '.join(SCHEDULES)} or a function, got {schedule!r}")
        return SCHEDULES[schedule](fraction)
    if not callable(schedule):
        raise ValueError(f"schedule: expected {', '.join(SCHEDULES)} or a function, got {schedule!r}")
    value = float(schedule(fraction))
    if not 0 <= value < math.inf:
        raise ValueError(
            f"schedule: expected a finite factor, 0 or above, got {value} at {fraction:g} of the training"
        )
    return value
