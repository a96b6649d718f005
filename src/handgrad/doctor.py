"""What is here and what is missing, each lack with the command that mends it (``handgrad doctor``).

Everything is looked at and nothing is changed: neither settings nor installed packages, and a GPU's memory is
not touched.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import handgrad
from handgrad import arrays, emulator, kernel, throughput
from handgrad.emulator import compiler

OK, WARNING, MISSING = "ok", "warning", "missing"

LIBRARIES = ("typer", "rich", "matplotlib", "safetensors", "threadpoolctl")
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
SLOWING_VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


@dataclass(frozen=True)
class Finding:
    """One thing looked at: ``status`` is "ok", "warning" or "missing"; ``remedy`` is "" where all is well."""

    name: str
    status: str
    value: str
    remedy: str = ""


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver: the newest CUDA version that it can run, as (13, 0), and the GPUs that it names."""

    cuda: tuple[int, int]
    gpus: tuple[str, ...]

    @property
    def extra(self) -> str:
        """The extra of handgrad whose CuPy this driver can run."""
        return "cuda13x" if self.cuda >= (13, 0) else "cuda12x"


def report() -> list[Finding]:
    """All findings, in the order in which one would mend them."""
    driver = find_driver()
    looks: tuple[Callable[[], list[Finding]], ...] = (
        _versions,
        _libraries,
        _blas,
        lambda: _gpu(driver),
        lambda: _cupy(driver),
        _compiler,
        _caches,
        _kernels,
        _devices,
    )
    findings: list[Finding] = []
    for look in looks:
        findings += look()
    return findings


def _versions() -> list[Finding]:
    old = sys.version_info < (3, 11)
    return [
        Finding(
            "Python",
            WARNING if old else OK,
            f"{platform.python_version()} ({sys.executable})",
            "install Python 3.11 or newer" if old else "",
        ),
        Finding("platform", OK, f"{platform.platform()}, {throughput.cpu_name()}, {_cores()} cores"),
        Finding("handgrad", OK, f"{handgrad.__version__} ({Path(handgrad.__file__).parent})"),
        Finding("NumPy", OK, np.__version__),
    ]


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _libraries() -> list[Finding]:
    """The libraries of the command line; the package itself does without them."""
    return [_distribution(name, f"pip install {name}") for name in LIBRARIES]


def _distribution(name: str, remedy: str) -> Finding:
    try:
        return Finding(name, OK, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, MISSING, "not installed", remedy)


# ---- BLAS ------------------------------------------------------------------------------------------------


def _blas() -> list[Finding]:
    try:
        libraries = throughput.blas()
    except ImportError:
        return [Finding("BLAS", WARNING, "not known without threadpoolctl", "pip install threadpoolctl")]
    if not libraries:
        return [
            Finding("BLAS", WARNING, "none that threadpoolctl knows", "pip install --force-reinstall numpy")
        ]
    findings = []
    for library in libraries:
        described = f"{library['internal_api']} {library['version']}, {library['architecture']} kernels"
        slowing = [name for name in SLOWING_VARIABLES if os.environ.get(name)]
        if slowing and library["internal_api"] == "openblas":
            settings = ", ".join(f"{name}={os.environ[name]}" for name in slowing)
            own = _own_architecture()
            without = " ".join(f"-u {name}" for name in slowing)
            findings.append(
                Finding(
                    "BLAS",
                    WARNING,
                    f"{described}, set by {settings}" + (f"; this CPU's own: {own}" if own else ""),
                    f"may be slower so; compare with: env {without} handgrad bench",
                )
            )
        else:
            findings.append(Finding("BLAS", OK, described))
        findings.append(_threads(int(library["num_threads"])))
    return findings


def _threads(threads: int) -> Finding:
    cores = _cores()
    limits = [name for name in THREAD_VARIABLES if os.environ.get(name)]
    if threads < cores and limits:
        names = ", ".join(f"{name}={os.environ[name]}" for name in limits)
        return Finding(
            "BLAS threads",
            WARNING,
            f"{threads} of {cores} cores, set by {names}",
            f"unset {' '.join(limits)}",
        )
    return Finding("BLAS threads", OK, f"{threads} of {cores} cores")


def _own_architecture() -> str:
    """The kernels that OpenBLAS takes by itself: asked in a process without the variables; "" if unknown."""
    code = (
        "import json, numpy, threadpoolctl\n"
        "print(json.dumps([i.get('architecture') for i in threadpoolctl.threadpool_info()"
        " if i.get('user_api') == 'blas']))"
    )
    clean = {name: value for name, value in os.environ.items() if name not in SLOWING_VARIABLES}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env=clean, capture_output=True, text=True, timeout=30, check=True
        )
        return str(json.loads(done.stdout)[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return ""


# ---- GPU -------------------------------------------------------------------------------------------------


def find_driver() -> Driver | None:
    """The NVIDIA driver, asked through its own library, so that CuPy need not be installed; None without."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        library = ctypes.CDLL(name)
        version, count = ctypes.c_int(), ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(version)):
            return None
        cuda = (version.value // 1000, version.value % 1000 // 10)
        if library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count)):
            return Driver(cuda, ())
        return Driver(cuda, tuple(_describe_gpu(library, number) for number in range(count.value)))
    except (OSError, AttributeError):
        return None


def _describe_gpu(library: Any, number: int) -> str:
    major_attribute, minor_attribute = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
    device, major, minor, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    library.cuDeviceGet(ctypes.byref(device), number)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    library.cuDeviceGetAttribute(ctypes.byref(major), major_attribute, device)
    library.cuDeviceGetAttribute(ctypes.byref(minor), minor_attribute, device)
    gib = memory.value / 2**30
    return (
        f"cuda:{number} {name.value.decode(errors='replace')}, sm_{major.value}{minor.value}, {gib:.1f} GiB"
    )


def _gpu(driver: Driver | None) -> list[Finding]:
    if driver is None:
        remedy = (
            "install the NVIDIA driver if there is a GPU; without one use --device cpu or --device emulator"
        )
        return [
            Finding("NVIDIA driver", MISSING, "not found", remedy),
            Finding("GPU", MISSING, "none", remedy),
        ]
    version = f"runs up to CUDA {driver.cuda[0]}.{driver.cuda[1]}"
    if driver.cuda < (12, 0):
        found = Finding("NVIDIA driver", WARNING, version, "install a driver for CUDA 12 or newer")
    else:
        found = Finding("NVIDIA driver", OK, version)
    if not driver.gpus:
        remedy = "check `nvidia-smi` and CUDA_VISIBLE_DEVICES; use --device cpu or --device emulator"
        return [found, Finding("GPU", MISSING, "the driver names none", remedy)]
    return [found, *(Finding("GPU", OK, gpu) for gpu in driver.gpus)]


def _cupy(driver: Driver | None) -> list[Finding]:
    extra = driver.extra if driver else "cuda13x"
    install = f"pip install 'handgrad[{extra}]'"
    try:
        import cupy
    except Exception as error:  # a broken installation raises more than ImportError
        absent = isinstance(error, ModuleNotFoundError) and error.name == "cupy"
        value = "not installed" if absent else "cannot be imported: " + " ".join(str(error).split())
        remedy = install if driver else f"{install}, on a machine with an NVIDIA GPU"
        return [Finding("CuPy", MISSING, value, remedy), Finding("NVRTC", MISSING, "comes with CuPy", remedy)]
    problem = arrays.cuda_problem() if driver else ""
    cupy_finding = Finding(
        "CuPy", WARNING if problem else OK, f"{cupy.__version__}" + (f", {problem}" if problem else ""),
        install if problem else "",
    )  # fmt: skip
    try:
        major, minor = cupy.cuda.nvrtc.getVersion()
        nvrtc = Finding("NVRTC", OK, f"{major}.{minor}")
    except Exception as error:  # CuPy loads it when it is first asked
        nvrtc = Finding("NVRTC", MISSING, " ".join(str(error).split()), install)
    return [cupy_finding, nvrtc]


# ---- emulator, folders, devices --------------------------------------------------------------------------


def _compiler() -> list[Finding]:
    try:
        return [Finding("C++ compiler", OK, str(emulator.find_compiler()))]
    except emulator.CompilerNotFound as error:
        reason, _, remedy = str(error).partition(": ")
        return [Finding("C++ compiler", MISSING, reason, remedy)]


def _caches() -> list[Finding]:
    folder = compiler.cache_directory()
    usual = folder.name == "emulator"
    found = [
        Finding(
            "kernel cache",
            OK if usual else WARNING,
            str(folder) if usual else f"{folder}, temporary: the usual folder cannot be written",
            "" if usual else "export HANDGRAD_CACHE=/a/folder/that/can/be/written",
        )
    ]
    if "cupy" in sys.modules:
        cupy_cache = Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")
        nearest = next(path for path in (cupy_cache, *cupy_cache.parents) if path.exists())
        writable = os.access(nearest, os.W_OK)
        found.append(
            Finding(
                "CuPy's kernel cache",
                OK if writable else WARNING,
                str(cupy_cache) + ("" if writable else " cannot be written"),
                "" if writable else "export CUPY_CACHE_DIR=/a/folder/that/can/be/written",
            )
        )
    return found


def _kernels() -> list[Finding]:
    try:
        folder = kernel.kernels_directory()
    except kernel.KernelError as error:
        return [Finding("kernels", MISSING, str(error), "pip install --force-reinstall handgrad")]
    return [Finding("kernels", OK, f"{folder} ({len(list(folder.glob('*.cu')))} files)")]


def _devices() -> list[Finding]:
    """Which ``--device`` values work here."""
    usable = ["cpu"]
    if not arrays.cuda_problem():
        usable.append("cuda")
    try:
        emulator.find_compiler()
        usable.append("emulator")
    except emulator.CompilerNotFound:
        pass
    return [Finding("devices", OK, ", ".join(usable))]
