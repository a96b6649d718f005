"""The emulated device: CUDA kernels compiled as C++ and run on the CPU, every CUDA thread a fiber.

An :class:`EmulatedArray` on a launch sends it here; this module is also what ``get_array_module`` of such an
array answers, with the few functions that launch code needs.  It shows errors of index arithmetic, barriers,
warp collectives and launch geometry; it says nothing about speed, weak memory ordering, or the chip.
"""

from handgrad.emulator.array import (
    EmulatedArray,
    arange,
    asarray,
    ascontiguousarray,
    empty,
    empty_like,
    full,
    ndarray,
    ones,
    zeros,
    zeros_like,
)
from handgrad.emulator.build import prebuild
from handgrad.emulator.compiler import Compiler, find_compiler
from handgrad.emulator.errors import CompilerNotFound, EmulatorError
from handgrad.emulator.launch import launch, reload_kernels
from handgrad.emulator.settings import Settings, current_settings, settings

__all__ = [
    "Compiler",
    "CompilerNotFound",
    "EmulatedArray",
    "EmulatorError",
    "Settings",
    "arange",
    "asarray",
    "ascontiguousarray",
    "current_settings",
    "empty",
    "empty_like",
    "find_compiler",
    "full",
    "launch",
    "ndarray",
    "ones",
    "prebuild",
    "reload_kernels",
    "settings",
    "zeros",
    "zeros_like",
]
