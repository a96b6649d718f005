"""Launches that repeat, captured in a CUDA graph: the host then issues one call a step.

The first time, the launches run as they are, which compiles kernels and allocates their workspace; the second
time they are captured, which takes a stream of its own, and from then on replayed on the current stream.  A
graph has the addresses of its arrays in it, so it belongs to a key that names them; lr and the step count
live in device memory and go on counting.  The results are those of the launches themselves, bit for bit.

On the emulator the launches run as they are.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable
from types import ModuleType
from typing import Any

MOST_GRAPHS = 8  # kept; the one that was not used for longest goes


class CapturedLaunches:
    """Runs launches on the array module ``xp``, through graphs where it is CuPy."""

    def __init__(self, xp: ModuleType) -> None:
        self._xp = xp
        self._graphs: OrderedDict[Hashable, Any] = OrderedDict()  # None: seen once
        self._stream: Any = None
        self.can_capture = xp.__name__ == "cupy"

    def run(self, key: Hashable, launches: Callable[[], None]) -> None:
        """``launches()``, the same for the same ``key``, which has the addresses of all arrays in it."""
        if not self.can_capture:
            launches()
        elif self._graphs.get(key) is not None:
            self._graphs.move_to_end(key)
            self._graphs[key].launch(self._xp.cuda.get_current_stream())
        elif key in self._graphs:
            graph = self._capture(launches)
            if graph is None:
                launches()
            else:
                self._graphs[key] = graph
                graph.launch(self._xp.cuda.get_current_stream())
        else:
            launches()
            self._graphs[key] = None
            if len(self._graphs) > MOST_GRAPHS:
                self._graphs.popitem(last=False)

    def _capture(self, launches: Callable[[], None]) -> Any:
        """The graph; None where the driver refuses, which is said once and not tried again."""
        if self._stream is None:
            self._stream = self._xp.cuda.Stream(non_blocking=True)
        try:
            with self._stream:
                self._stream.begin_capture()
                try:
                    launches()
                finally:
                    graph = self._stream.end_capture()
            return graph
        except RuntimeError as error:  # of the driver or the runtime
            self.can_capture = False
            text = " ".join(str(error).split())
            print(f"handgrad: launches are not captured in a CUDA graph ({text})", file=sys.stderr)
            return None
