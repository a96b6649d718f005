"""For people's own backward passes: what is wrong with them, and where."""

from __future__ import annotations

from handgrad.gradients.diagnose import diagnose
from handgrad.gradients.report import Cause, Comparison, Diagnosis

__all__ = ["Cause", "Comparison", "Diagnosis", "diagnose"]
