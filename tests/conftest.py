"""What every test may ask for: a stand-in for CuPy, and a clean state of the device announcement.

Ctrl-C is also put in order: a shell's background job starts with the signal ignored, which programs under
test would inherit.  And where all tests run, a process beside them builds the kernels that they will launch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stand_in_cupy import StandInCupy

from handgrad import arrays, kernel

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("COLUMNS", None)  # the width of the terminal, which pytest -n hands on to its processes


FILES_OF_A_WHOLE_RUN = 30  # test files; fewer are soon done without
BUILDER = pytest.StashKey[subprocess.Popen[bytes]]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build ahead on another processor, where there is one that runs no tests."""
    if hasattr(session.config, "workerinput"):  # one of several processes that share the tests (pytest -n)
        return
    files = {item.path for item in session.items}
    if len(files) < FILES_OF_A_WHOLE_RUN or (os.cpu_count() or 1) < 2 or session.config.option.collectonly:
        return
    command = [sys.executable, str(Path(__file__).with_name("prebuild.py"))]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    session.config.stash[BUILDER] = subprocess.Popen(command, **quiet)


def pytest_unconfigure(config: pytest.Config) -> None:
    """What is left to build nobody needs."""
    builder = config.stash.get(BUILDER, None)
    if builder is not None:
        builder.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)  # it tidies up
        builder.wait()


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
