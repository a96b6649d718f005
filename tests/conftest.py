"""What every test may ask for: a stand-in for CuPy, and a clean state of the device announcement.

Ctrl-C is also put in order: a shell's background job starts with the signal ignored, which programs under
test would inherit.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest
from stand_in_cupy import StandInCupy

from handgrad import arrays, kernel

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInCupy]:
    """A stand-in for CuPy with one GPU, which records what is compiled and launched."""
    stand_in = StandInCupy()
    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    kernel.sources_digest_cached.cache_clear()
    kernel._cuda_function.cache_clear()
    yield stand_in
    kernel.sources_digest_cached.cache_clear()
    kernel._cuda_function.cache_clear()


@pytest.fixture
def no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without CuPy."""
    monkeypatch.setitem(sys.modules, "cupy", None)  # makes `import cupy` raise ModuleNotFoundError


@pytest.fixture
def unannounced(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not yet said which device "auto" took."""
    monkeypatch.setattr(arrays, "_announced", set())
