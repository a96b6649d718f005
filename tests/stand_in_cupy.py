"""A stand-in for CuPy: arrays on a pretended GPU, and a record of every compilation and launch.

It has the few names that handgrad uses, with the exception types of the real one, so that the way from a
``Kernel`` to ``cupy.RawModule`` is exercised on machines without a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np


class CompileException(Exception):
    """``cupy.cuda.compiler.CompileException``."""


class CUDADriverError(RuntimeError):
    """``cupy.cuda.driver.CUDADriverError``."""


class CUDARuntimeError(RuntimeError):
    """``cupy.cuda.runtime.CUDARuntimeError``."""


class OutOfMemoryError(MemoryError):
    """``cupy.cuda.memory.OutOfMemoryError``."""


class StandInArray:
    """A ``cupy.ndarray``: knows its values, but is no numpy array."""

    def __init__(self, values: np.ndarray, device: int = 0) -> None:
        self.values = values
        self.device = SimpleNamespace(id=device)
        self.shape, self.dtype = values.shape, values.dtype

    def get(self) -> np.ndarray:
        return self.values.copy()

    def reshape(self, shape: tuple[int, ...]) -> StandInArray:
        return StandInArray(self.values.reshape(shape), self.device.id)


@dataclass
class StandInFunction:
    """A compiled kernel: notes its launches, or raises ``fails_with``."""

    expression: str
    max_dynamic_shared_size_bytes: int = 48 * 1024
    launches: list[SimpleNamespace] = field(default_factory=list)
    fails_with: Exception | None = None
    kernel: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(ptr=1234))

    def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int = 0) -> None:
        if self.fails_with is not None:
            raise self.fails_with
        self.launches.append(SimpleNamespace(grid=grid, block=block, args=args, shared=shared_mem))


class StandInCupy(ModuleType):
    """The module; ``compiled`` lists the RawModules made so far, ``functions`` the kernels by expression."""

    ndarray = StandInArray

    def __init__(self, gpus: int = 1) -> None:
        super().__init__("cupy")
        self.compiled: list[SimpleNamespace] = []
        self.functions: dict[str, StandInFunction] = {}
        self.current = 0
        self.compile_error: Exception | None = None
        self.device_count: int | Exception = gpus
        self.attributes = {
            "MultiProcessorCount": 6,
            "MaxSharedMemoryPerBlockOptin": 99 * 1024,
            "MaxRegistersPerBlock": 65536,
            "L2CacheSize": 2**20,
        }
        self.resident = 2  # blocks of any kernel on a multiprocessor
        self.occupancy_asked: list[tuple[int, int, int]] = []
        stand_in = self

        class Device:
            def __init__(self, index: int) -> None:
                self.id = index
                self.attributes = stand_in.attributes
                self.compute_capability = "89"

            def __enter__(self) -> Device:
                self.before, stand_in.current = stand_in.current, self.id
                return self

            def __exit__(self, *exc: object) -> None:
                stand_in.current = self.before

        self.cuda = SimpleNamespace(
            Device=Device,
            compiler=SimpleNamespace(CompileException=CompileException),
            driver=SimpleNamespace(
                CUDADriverError=CUDADriverError,
                occupancyMaxActiveBlocksPerMultiprocessor=self._occupancy,
            ),
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            runtime=SimpleNamespace(
                CUDARuntimeError=CUDARuntimeError,
                getDeviceCount=self._count,
                getDevice=lambda: self.current,
                memGetInfo=lambda: (512 * 2**20, 2048 * 2**20),
            ),
        )

    def _occupancy(self, function: int, block: int, shared: int) -> int:
        self.occupancy_asked.append((function, block, shared))
        return self.resident

    def _count(self) -> int:
        if isinstance(self.device_count, Exception):
            raise self.device_count
        return self.device_count

    def asarray(self, values: Any, dtype: Any = None) -> StandInArray:
        values = values.values if isinstance(values, StandInArray) else values
        return StandInArray(np.array(values, dtype=dtype), self.current)

    def ascontiguousarray(self, array: StandInArray) -> StandInArray:
        return StandInArray(np.ascontiguousarray(array.values), array.device.id)

    def function(self, expression: str) -> StandInFunction:
        """The kernel that ``expression`` compiles to (made beforehand to plan a failure)."""
        return self.functions.setdefault(expression, StandInFunction(expression))

    def RawModule(
        self,
        *,
        code: str,
        options: tuple[str, ...],
        name_expressions: tuple[str, ...],
        enable_cooperative_groups: bool = False,
    ) -> Any:
        if self.compile_error is not None:
            raise self.compile_error
        self.compiled.append(
            SimpleNamespace(
                code=code,
                options=options,
                expressions=name_expressions,
                cooperative=enable_cooperative_groups,
            )
        )
        return SimpleNamespace(get_function=self.function)
