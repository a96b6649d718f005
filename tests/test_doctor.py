"""``handgrad doctor``: every lack is found and comes with the command that mends it."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from stand_in_cupy import CUDARuntimeError

import handgrad
from handgrad import doctor, emulator, kernel
from handgrad.doctor import Driver, Finding

NEW_DRIVER = Driver((13, 0), ("cuda:0 NVIDIA H100, sm_90, 79.6 GiB",))


def named(findings: list[Finding], name: str) -> Finding:
    (found,) = (finding for finding in findings if finding.name == name)
    return found


@pytest.fixture
def driver(monkeypatch):
    """Sets what the machine's NVIDIA driver is."""

    def use(found: Driver | None) -> None:
        monkeypatch.setattr(doctor, "find_driver", lambda: found)

    return use


def test_reports_everything_that_is_asked_for():
    findings = doctor.report()
    names = [finding.name for finding in findings]
    for name in ("Python", "platform", "handgrad", "NumPy", "BLAS", "BLAS threads", "NVIDIA driver", "GPU",
                 "CuPy", "NVRTC", "C++ compiler", "kernel cache", "kernels", "devices"):  # fmt: skip
        assert name in names
    assert named(findings, "NumPy").value == np.__version__
    assert named(findings, "handgrad").value.startswith(handgrad.__version__)
    assert str(kernel.kernels_directory()) in named(findings, "kernels").value


def test_every_lack_has_a_remedy_and_nothing_else_has_one():
    for finding in doctor.report():
        assert finding.status in ("ok", "warning", "missing")
        assert (finding.remedy == "") == (finding.status == "ok"), finding
        assert "\n" not in finding.value + finding.remedy


# GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_cupy")
def test_no_driver(driver):
    driver(None)
    findings = doctor.report()
    assert named(findings, "NVIDIA driver").status == "missing"
    assert "install the NVIDIA driver" in named(findings, "NVIDIA driver").remedy
    assert "--device emulator" in named(findings, "GPU").remedy
    assert named(findings, "devices").value == "cpu, emulator"


@pytest.mark.usefixtures("no_cupy")
@pytest.mark.parametrize(
    ("version", "extra"), [((13, 2), "cuda13x"), ((13, 0), "cuda13x"), ((12, 9), "cuda12x")]
)
def test_a_gpu_without_cupy_names_the_extra_that_the_driver_can_run(driver, version, extra):
    driver(Driver(version, NEW_DRIVER.gpus))
    findings = doctor.report()
    assert named(findings, "GPU") == Finding("GPU", "ok", NEW_DRIVER.gpus[0])
    for name in ("CuPy", "NVRTC"):
        assert named(findings, name).status == "missing"
        assert named(findings, name).remedy == f"pip install 'handgrad[{extra}]'"


def test_a_broken_cupy(driver, monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("raise OSError('libcublas.so.13: cannot open\\nshared object file')\n")
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    driver(NEW_DRIVER)
    found = named(doctor.report(), "CuPy")
    assert found.status == "missing"
    assert found.value == "cannot be imported: libcublas.so.13: cannot open shared object file"
    assert found.remedy == "pip install 'handgrad[cuda13x]'"


def test_an_old_driver(driver, no_cupy):
    driver(Driver((11, 8), NEW_DRIVER.gpus))
    found = named(doctor.report(), "NVIDIA driver")
    assert (found.status, found.value) == ("warning", "runs up to CUDA 11.8")
    assert "install a driver" in found.remedy


def test_a_driver_without_gpus(driver, no_cupy):
    driver(Driver((13, 0), ()))
    found = named(doctor.report(), "GPU")
    assert found.status == "missing"
    assert "CUDA_VISIBLE_DEVICES" in found.remedy


def test_a_working_gpu(driver, cupy):
    driver(NEW_DRIVER)
    cupy.__version__ = "14.2.0"
    cupy.cuda.nvrtc = SimpleNamespace(getVersion=lambda: (13, 0))
    findings = doctor.report()
    assert named(findings, "CuPy") == Finding("CuPy", "ok", "14.2.0")
    assert named(findings, "NVRTC") == Finding("NVRTC", "ok", "13.0")
    assert "cuda" in named(findings, "devices").value.split(", ")
    assert named(findings, "CuPy's kernel cache").status == "ok"


def test_a_cupy_that_is_too_new_for_the_driver(driver, cupy):
    driver(Driver((12, 4), NEW_DRIVER.gpus))
    cupy.__version__ = "14.2.0"
    cupy.device_count = CUDARuntimeError("cudaErrorInsufficientDriver: insufficient for CUDA runtime version")
    found = named(doctor.report(), "CuPy")
    assert found.status == "warning"
    assert "too old for this CuPy" in found.value
    assert found.remedy == "pip install 'handgrad[cuda12x]'"


def test_a_cupy_without_nvrtc(driver, cupy):
    def fail() -> None:
        raise RuntimeError("CuPy failed to load libnvrtc.so.13:\n  OSError: cannot open shared object file")

    driver(NEW_DRIVER)
    cupy.__version__ = "14.2.0"
    cupy.cuda.nvrtc = SimpleNamespace(getVersion=fail)
    found = named(doctor.report(), "NVRTC")
    assert found.status == "missing"
    assert "failed to load libnvrtc.so.13: OSError" in found.value
    assert found.remedy == "pip install 'handgrad[cuda13x]'"


class StandInDriverLibrary:
    """libcuda: the functions that the doctor calls, with two GPUs."""

    def __init__(self, version: int = 13010, count: int = 2, init: int = 0) -> None:
        self.version, self.count, self.init = version, count, init

    def cuDriverGetVersion(self, version) -> int:
        version._obj.value = self.version
        return 0

    def cuInit(self, flags: int) -> int:
        return self.init

    def cuDeviceGetCount(self, count) -> int:
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, device, number: int) -> int:
        device._obj.value = number
        return 0

    def cuDeviceGetName(self, name, size: int, device) -> int:
        name.value = [b"NVIDIA A100-SXM4-80GB", b"NVIDIA L4"][device.value]
        return 0

    def cuDeviceTotalMem_v2(self, memory, device) -> int:
        memory._obj.value = [80, 24][device.value] * 2**30
        return 0

    def cuDeviceGetAttribute(self, value, attribute: int, device) -> int:
        value._obj.value = {75: 8, 76: [0, 9][device.value]}[attribute]
        return 0


def test_asks_the_driver_itself(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: StandInDriverLibrary())
    assert doctor.find_driver() == Driver(
        (13, 1), ("cuda:0 NVIDIA A100-SXM4-80GB, sm_80, 80.0 GiB", "cuda:1 NVIDIA L4, sm_89, 24.0 GiB")
    )


def test_a_driver_library_without_a_device(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: StandInDriverLibrary(init=100))  # CUDA_ERROR_NO_DEVICE
    assert doctor.find_driver() == Driver((13, 1), ())


def test_no_driver_library(monkeypatch):
    def fail(name: str) -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", fail)
    assert doctor.find_driver() is None


# BLAS, compiler, caches, libraries -------------------------------------------------------------------------


@pytest.fixture
def blas(monkeypatch):
    """Sets the BLAS that NumPy has loaded, on a machine of four cores, with a clean environment."""
    for name in (*doctor.SLOWING_VARIABLES, *doctor.THREAD_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor, "_cores", lambda: 4)

    def use(architecture: str = "SkylakeX", threads: int = 4, api: str = "openblas") -> None:
        library = {
            "internal_api": api,
            "version": "0.3.31",
            "num_threads": threads,
            "architecture": architecture,
        }
        monkeypatch.setattr(doctor.throughput, "blas", lambda: [library])

    return use


def test_blas_as_it_should_be(blas):
    blas()
    findings = doctor.report()
    assert named(findings, "BLAS") == Finding("BLAS", "ok", "openblas 0.3.31, SkylakeX kernels")
    assert named(findings, "BLAS threads") == Finding("BLAS threads", "ok", "4 of 4 cores")


def test_a_slowed_blas_is_pointed_out_and_left_alone(blas, monkeypatch):
    blas("Prescott")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")
    monkeypatch.setattr(doctor, "_own_architecture", lambda: "Zen")
    found = named(doctor.report(), "BLAS")
    assert found.status == "warning"
    assert (
        found.value
        == "openblas 0.3.31, Prescott kernels, set by OPENBLAS_CORETYPE=Prescott; this CPU's own: Zen"
    )
    assert found.remedy.endswith("env -u OPENBLAS_CORETYPE handgrad bench")
    assert doctor.os.environ["OPENBLAS_CORETYPE"] == "Prescott"


def test_the_l2_size_alone_slows_too(blas, monkeypatch):
    blas()
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "512")
    assert "OPENBLAS_L2_SIZE=512" in named(doctor.report(), "BLAS").value


def test_another_blas_does_not_read_openblas_variables(blas, monkeypatch):
    blas(api="mkl")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert named(doctor.report(), "BLAS").status == "ok"


def test_the_own_kernels_are_asked_for_without_the_variables(monkeypatch):
    asked = {}

    def run(command, env, **rest):
        asked.update(env)
        return SimpleNamespace(stdout='["Zen"]')

    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "512")
    monkeypatch.setattr(subprocess, "run", run)
    assert doctor._own_architecture() == "Zen"
    assert asked
    assert not set(asked) & set(doctor.SLOWING_VARIABLES)


def test_fewer_threads_by_environment(blas, monkeypatch):
    blas(threads=1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = named(doctor.report(), "BLAS threads")
    assert found.status == "warning"
    assert found.value == "1 of 4 cores, set by OMP_NUM_THREADS=1"
    assert found.remedy == "unset OMP_NUM_THREADS"


def test_a_missing_library(monkeypatch):
    def version(name: str) -> str:
        if name == "matplotlib":
            raise metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(metadata, "version", version)
    findings = doctor.report()
    assert named(findings, "matplotlib") == Finding(
        "matplotlib", "missing", "not installed", "pip install matplotlib"
    )
    assert named(findings, "rich").value == "1.0"


def test_no_compiler(monkeypatch):
    def find() -> None:
        raise emulator.CompilerNotFound("the emulator needs a C++ compiler and none was found: install g++")

    monkeypatch.setattr(emulator, "find_compiler", find)
    findings = doctor.report()
    assert named(findings, "C++ compiler") == Finding(
        "C++ compiler", "missing", "the emulator needs a C++ compiler and none was found", "install g++"
    )
    assert "emulator" not in named(findings, "devices").value


def test_a_cache_folder_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HANDGRAD_CACHE", str(tmp_path / "file"))  # a file where a folder is needed
    found = named(doctor.report(), "kernel cache")
    assert found.status == "warning"
    assert "temporary" in found.value
    assert "HANDGRAD_CACHE" in found.remedy


def test_no_kernels(monkeypatch):
    def fail() -> Path:
        raise kernel.KernelError("kernel sources not found beside /x; reinstall handgrad")

    monkeypatch.setattr(kernel, "kernels_directory", fail)
    found = named(doctor.report(), "kernels")
    assert found.status == "missing"
    assert found.remedy == "pip install --force-reinstall handgrad"


# The command -----------------------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "handgrad.cli", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_command_prints_a_table_and_the_remedies():
    done = command()
    assert (done.returncode, done.stderr) == (0, "")
    assert "NumPy" in done.stdout
    for finding in doctor.report():
        if finding.remedy:
            assert finding.remedy in " ".join(done.stdout.split())


def test_the_command_prints_one_json_object():
    done = command("--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["schema"] == "handgrad.doctor/1"
    assert {"name": "NumPy", "status": "ok", "value": np.__version__, "remedy": ""} in report["findings"]
    # other tests of this process may have loaded libraries with a BLAS of their own
    assert {finding["name"] for finding in report["findings"]} == {f.name for f in doctor.report()}
