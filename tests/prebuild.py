"""Builds the kernels that the tests launch on the emulator: conftest.py runs this beside the first of them.

They share the emulator's cache: what is not built when a test needs it, the test builds itself.
"""

from __future__ import annotations

import contextlib

from devices import build_ahead
from test_gradients import launch_golden_cases

from handgrad import emulator
from handgrad.emulator.build import KERNELS_A_UNIT
from handgrad.proof.correctness import Group, launched
from handgrad.proof.trials import DTYPES, TRIALS


def main() -> None:
    """Those that a test file needs together, a few at a time, so that an interrupt need not wait long."""
    for op in TRIALS:
        groups = [Group(op, dtype, quick=True) for dtype in DTYPES]
        pairs = list(launched([group for group in groups if group.trials()]))
        for start in range(0, len(pairs), KERNELS_A_UNIT):
            with contextlib.suppress(emulator.EmulatorError, emulator.CompilerNotFound):
                emulator.prebuild(pairs[start : start + KERNELS_A_UNIT], workers=1)
    with contextlib.suppress(emulator.EmulatorError, emulator.CompilerNotFound):
        build_ahead(launch_golden_cases, workers=1)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
