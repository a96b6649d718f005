"""The array-module switch: the array decides which code runs.

=====================  =======================  ==================================================
arrays                 ``device=``              forward and backward run as
=====================  =======================  ==================================================
``numpy.ndarray``      ``"cpu"``                NumPy
``cupy.ndarray``       ``"cuda"``, ``"cuda:1"``  the kernels in ``kernels/*.cu``, compiled through CuPy
``EmulatedArray``      ``"emulator"``           the same kernels and launch code, run on the CPU
=====================  =======================  ==================================================

NumPy in, NumPy out; CuPy in, CuPy out; a mixture raises ``TypeError``.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = Any  # numpy.ndarray, cupy.ndarray or EmulatedArray: the three share the interface that is used here

_announced: set[str] = set()


class DeviceError(RuntimeError):
    """A device that was asked for cannot be used; the message names the remedy."""


@dataclass(frozen=True)
class Device:
    """Where arrays live: ``kind`` is "cpu", "cuda" or "emulator"; ``index`` counts GPUs from 0."""

    kind: str
    index: int = 0
    reason: str = ""

    def __str__(self) -> str:
        return f"cuda:{self.index}" if self.kind == "cuda" else self.kind

    @property
    def array_module(self) -> ModuleType:
        """``numpy``, ``cupy`` or ``handgrad.emulator``."""
        if self.kind == "cpu":
            return np
        if self.kind == "emulator":
            from handgrad import emulator

            return emulator
        return _import_cupy()

    def __enter__(self) -> Device:
        if self.kind == "cuda":
            entered = _import_cupy().cuda.Device(self.index)
            entered.__enter__()
            _current.devices.append(entered)
        return self

    def __exit__(self, *exc: object) -> None:
        if self.kind == "cuda":
            _current.devices.pop().__exit__(*exc)


class _Current(threading.local):
    """The GPUs that ``with device:`` blocks have made current in this thread, the innermost last."""

    def __init__(self) -> None:
        self.devices: list[Any] = []


_current = _Current()


def get_array_module(*arrays: Array) -> ModuleType:
    """The module whose functions make and work on ``arrays``: numpy, cupy or handgrad.emulator.

    Python and NumPy scalars and ``None`` fit every module.  Arrays of two modules raise ``TypeError``.
    """
    found: ModuleType | None = None
    first: Array = None
    for array in arrays:
        module = _module_of(array)
        if module is None:
            continue
        if found is None:
            found, first = module, array
        elif module is not found:
            raise TypeError(
                f"arrays of two kinds in one call: {_kind_name(first)} and {_kind_name(array)}; "
                "move one with handgrad.to_device(array, device) or handgrad.to_numpy(array)"
            )
    return np if found is None else found


def _module_of(array: Array) -> ModuleType | None:
    if array is None or isinstance(array, (bool, int, float, np.generic)):
        return None
    emulator = sys.modules.get("handgrad.emulator")  # an EmulatedArray exists only once this is imported
    if emulator is not None and isinstance(array, emulator.EmulatedArray):
        return emulator
    if isinstance(array, np.ndarray):
        return np
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(array, cupy.ndarray):
        return cupy
    raise TypeError(
        f"expected a numpy, cupy or emulated array, got {_kind_name(array)}; "
        "convert it with numpy.asarray(...) or cupy.asarray(...)"
    )


def _kind_name(array: Array) -> str:
    return f"{type(array).__module__}.{type(array).__qualname__}"


def resolve_device(device: str | Device = "auto") -> Device:
    """Turn ``"auto" | "cpu" | "cuda" | "cuda:N" | "emulator"`` into a usable :class:`Device`.

    ``"auto"`` takes CUDA where a GPU answers, else the CPU, and says once on stderr which and why.
    An explicit ``"cuda"`` without a GPU raises :class:`DeviceError` with the remedy.
    """
    if isinstance(device, Device):
        return device
    if device == "cpu":
        return Device("cpu", reason="asked for")
    if device == "emulator":
        from handgrad import emulator

        emulator.find_compiler()  # raises with what to install
        return Device("emulator", reason="asked for")
    match = re.fullmatch(r"cuda(?::(\d+))?", device) if isinstance(device, str) else None
    if match:
        index = int(match[1] or 0)
        problem = cuda_problem(index)
        if problem:
            raise DeviceError(problem)
        return Device("cuda", index, reason="asked for")
    if device == "auto":
        problem = cuda_problem(0)
        chosen = Device("cpu", reason=problem) if problem else Device("cuda", 0, reason="a GPU answers")
        if "auto" not in _announced:
            _announced.add("auto")
            print(f"handgrad: device {chosen} ({chosen.reason})", file=sys.stderr)
        return chosen
    raise ValueError(f"device: expected 'auto', 'cpu', 'cuda', 'cuda:N' or 'emulator', got {device!r}")


def cuda_problem(index: int = 0) -> str:
    """Why GPU number ``index`` cannot be used, with the remedy, as one line; "" where it can."""
    try:
        cupy = _import_cupy()
    except DeviceError as error:
        return str(error)
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except Exception as error:  # CUDARuntimeError: no driver, or one that is too old for this CuPy
        return cuda_error_message(error)
    if index >= count:
        return (
            f"no GPU number {index}: {count} present (numbers 0 to {count - 1}); use --device cuda:0 or cpu"
        )
    return ""


def cuda_error_message(error: BaseException) -> str:
    """One line for an exception out of CuPy or CUDA: what happened and the remedy."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "InsufficientDriver" in text or "insufficient for CUDA runtime" in text:
        return (
            f"the NVIDIA driver is missing or too old for this CuPy ({text}); "
            "install a newer driver, or pip install 'handgrad[cuda12x]'"
        )
    if "NoDevice" in text:
        return f"no NVIDIA GPU found ({text}); use --device cpu or --device emulator"
    if type(error).__name__ == "OutOfMemoryError" or "OUT_OF_MEMORY" in text or "MemoryAllocation" in text:
        return f"out of GPU memory ({text.rstrip('.')}{_free_memory()}); use a smaller batch size"
    if "IllegalAddress" in text or "ILLEGAL_ADDRESS" in text or "MISALIGNED" in text:
        return (
            f"a kernel touched memory out of bounds ({text}); this GPU context is dead, so start again, and "
            "`handgrad kernels check --device emulator` names the kernel"
        )
    if "libnvrtc" in text or "nvrtc" in text.lower():
        return f"NVRTC cannot be loaded ({text}); pip install 'handgrad[cuda13x]'"
    return f"CUDA error: {text}; `handgrad doctor` shows what is missing"


def _free_memory() -> str:
    cupy = sys.modules.get("cupy")
    try:
        free, total = cupy.cuda.runtime.memGetInfo() if cupy else (0, 0)
    except Exception:  # after an error that killed the context
        return ""
    return f"; {free / 2**20:,.0f} of {total / 2**20:,.0f} MiB free" if total else ""


def _import_cupy() -> ModuleType:
    try:
        import cupy
    except Exception as error:  # a broken installation raises more than ImportError
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            detail = "CuPy is not installed"
        else:
            detail = "CuPy cannot be imported (" + " ".join(str(error).split()) + ")"
        raise DeviceError(
            f"{detail}; pip install 'handgrad[cuda13x]' (or cuda12x, to match the driver)"
        ) from error
    return cupy  # type: ignore[no-any-return]


def to_device(array: Array, device: str | Device, dtype: DTypeLike | None = None) -> Array:
    """``array`` as a C-contiguous array on ``device``; copied only where it must be."""
    target = resolve_device(device)
    xp = target.array_module
    host_or_same = array if _module_of(array) is xp else to_numpy(array)
    with target:
        moved = xp.ascontiguousarray(xp.asarray(host_or_same, dtype=dtype))
    return moved.reshape(np.shape(array))  # ascontiguousarray makes 0-d arrays 1-d


def to_numpy(array: Array) -> NDArray[Any]:
    """``array`` as a base ``numpy.ndarray``, from any device (shares memory with CPU and emulated arrays)."""
    if isinstance(array, (bool, int, float, np.generic, list, tuple)):
        return np.asarray(array)
    if isinstance(array, np.ndarray):
        return array.view(np.ndarray)
    if array is None:
        raise TypeError("expected an array, got None")
    _module_of(array)  # refuses everything but the third kind, CuPy's
    return np.asarray(array.get())


def synchronize(xp: ModuleType) -> None:
    """Wait until everything launched on the current device of ``xp`` is done (only CUDA runs ahead)."""
    if xp.__name__ == "cupy":
        xp.cuda.get_current_stream().synchronize()


@contextlib.contextmanager
def on_device_of(array: Array) -> Iterator[None]:
    """Make the GPU that holds ``array`` current (nothing to do on the CPU)."""
    module = _module_of(array)
    if module is not None and module.__name__ == "cupy":
        with array.device:
            yield
    else:
        yield
