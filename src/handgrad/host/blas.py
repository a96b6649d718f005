"""The BLAS that NumPy calls: what it is, how many threads it takes, and holding it to one."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

SMALL_PRODUCTS = (
    "SkylakeX",
    "Cooperlake",
    "SapphireRapids",
)  # OpenBLAS kernels that multiply without packing


@dataclass
class Blas:
    """NumPy's BLAS.

    name, version, architecture: as threadpoolctl gives them, "" where it does not know
    controllable: its threads can be held to one, for every thread that calls it
    """

    name: str = ""
    version: str = ""
    architecture: str = ""
    controllable: bool = False
    _library: Any = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _users: int = 0
    _threads: int = 1

    @property
    def small_products(self) -> bool:
        """Whether products of up to a million multiplications are done without packing the operands."""
        return self.name == "openblas" and self.architecture in SMALL_PRODUCTS

    def threads(self) -> int:
        """How many threads a call would take (without :meth:`hold`); 1 where that cannot be controlled."""
        if not self.controllable:
            return 1
        with self._lock:
            return self._threads if self._users else int(self._library.get_num_threads())

    def hold(self) -> None:
        """From now on one thread a call, until :meth:`release`; calls nest, also from several threads."""
        with self._lock:
            if self._users == 0:
                self._threads = int(self._library.get_num_threads())
                self._library.set_num_threads(1)
            self._users += 1

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """One thread a call inside the block, where that can be had."""
        if not self.controllable:
            yield
            return
        self.hold()
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """As many threads again as before :meth:`hold`."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._library.set_num_threads(self._threads)


@functools.cache
def find() -> Blas:
    """NumPy's BLAS, looked for once."""
    try:
        import threadpoolctl
    except ImportError:
        return Blas()
    found = [library for library in threadpoolctl.ThreadpoolController().lib_controllers
             if library.user_api == "blas"]  # fmt: skip
    own = [library for library in found if "numpy" in str(library.filepath)] or found
    if not own:
        return Blas()
    library = own[0]
    # With OpenMP the number of threads is each calling thread's own: holding it here would not reach others.
    controllable = library.internal_api == "openblas" and library.info().get("threading_layer") == "pthreads"
    return Blas(
        str(library.internal_api),
        str(library.version),
        str(library.info().get("architecture") or ""),
        controllable,
        library,
    )


def machine_cores() -> int:
    """The cores of the machine, whoever may use them."""
    return os.cpu_count() or 1


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
