"""A stand-in for CuPy's streams and graphs whose graphs hold launches of the emulator, and replay them.

What is launched between ``begin_capture`` and ``end_capture`` is noted and not run, as CUDA does it.
"""

from __future__ import annotations

import contextlib
from types import ModuleType
from typing import Any

from handgrad import emulator
from handgrad.emulator.launch import launch_through


class Graph:
    def __init__(self, launches: list[tuple[Any, ...]], log: list[str]) -> None:
        self.launches, self.log = launches, log

    def launch(self, stream: Stream) -> None:
        self.log.append(f"{len(self.launches)} replayed on the {stream.name}")
        for one in self.launches:
            emulator.launch(*one)


class Stream:
    def __init__(self, name: str, log: list[str], fails: bool = False) -> None:
        self.name, self.log, self.fails = name, log, fails
        self._captured: list[tuple[Any, ...]] = []
        self._noting = contextlib.ExitStack()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def begin_capture(self) -> None:
        self._captured = []
        self._noting.enter_context(launch_through(lambda *one: self._captured.append(one)))
        self.log.append(f"{self.name} captures")

    def end_capture(self) -> Graph:
        self._noting.close()
        if self.fails:
            raise RuntimeError("cudaErrorStreamCaptureInvalidated:\n operation failed")
        return Graph(self._captured, self.log)


class Streams(ModuleType):
    """The module: ``log`` has what happened in order."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__("cupy")
        self.log: list[str] = []
        stand_in = self

        class Cuda:
            @staticmethod
            def Stream(non_blocking: bool) -> Stream:
                assert non_blocking, "another stream's work would end the capture"
                return Stream("graph stream", stand_in.log, fails)

            @staticmethod
            def get_current_stream() -> Stream:
                return Stream("current stream", stand_in.log)

        self.cuda = Cuda
