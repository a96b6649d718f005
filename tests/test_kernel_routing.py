"""The way from a ``Kernel`` to ``cupy.RawModule``, watched by a stand-in for CuPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stand_in_cupy import CompileException, CUDADriverError, CUDARuntimeError, OutOfMemoryError

from handgrad import kernel
from handgrad.kernel import Kernel, KernelError, use_kernels


@pytest.fixture
def sources(tmp_path: Path):
    """A folder of kernel sources, in use: one header, one kernel."""
    (tmp_path / "common.cuh").write_text("// one\n")
    (tmp_path / "scale.cu").write_text('#include "common.cuh"\n// scale\n')
    with use_kernels(tmp_path):
        yield tmp_path


SCALE = Kernel("scale.cu", "scale<float>")


def launch(cupy, *more, shared=0):
    x = cupy.asarray(np.ones(4, np.float32))
    SCALE((2, 1), (32, 1), x, *more, shared=shared)
    return x


def forget_compiled():
    """As a new process would."""
    kernel.sources_digest_cached.cache_clear()
    kernel._cuda_function.cache_clear()


def test_compiles_the_source_with_its_folder_and_the_standard(cupy, sources):
    launch(cupy, np.int32(4))
    (module,) = cupy.compiled
    assert module.code == (sources / "scale.cu").read_text()
    assert module.expressions == ("scale<float>",)
    assert f"-I{sources}" in module.options
    assert set(kernel.NVRTC_OPTIONS) <= set(module.options)


def test_launches_with_geometry_and_arguments(cupy, sources):
    x = launch(cupy, np.int32(4), np.float32(0.5), np.float64(0.25), shared=1024)
    (made,) = cupy.functions["scale<float>"].launches
    assert made.grid == (2, 1)
    assert made.block == (32, 1)
    assert made.shared == 1024
    assert made.args[0] is x
    assert [type(value) for value in made.args[1:]] == [np.int32, np.float32, np.float64]
    assert made.args[1:] == (4, 0.5, 0.25)


def test_compiles_once_a_process(cupy, sources):
    launch(cupy)
    launch(cupy)
    assert len(cupy.compiled) == 1
    assert len(cupy.functions["scale<float>"].launches) == 2


def test_a_changed_header_changes_the_options(cupy, sources):
    """CuPy's disk cache does not look into headers: an option that changes with them makes it compile."""
    launch(cupy)
    (sources / "common.cuh").write_text("// two\n")
    forget_compiled()
    launch(cupy)
    first, second = cupy.compiled
    assert first.code == second.code
    assert first.options != second.options


def test_a_new_or_renamed_header_changes_the_options(cupy, sources):
    launch(cupy)
    (sources / "intrinsics.cuh").write_text("")
    forget_compiled()
    launch(cupy)
    (sources / "intrinsics.cuh").rename(sources / "other.cuh")
    forget_compiled()
    launch(cupy)
    assert len({module.options for module in cupy.compiled}) == 3


def test_unchanged_sources_keep_the_options(cupy, sources):
    launch(cupy)
    (sources / "common.cuh").write_text("// one\n")  # written again, with the same content
    (sources / "another.cu").write_text("// a kernel that scale.cu does not see\n")
    forget_compiled()
    launch(cupy)
    first, second = cupy.compiled
    assert first.options == second.options


def test_none_is_a_null_pointer(cupy, sources):
    launch(cupy, None)
    null = cupy.functions["scale<float>"].launches[0].args[1]
    assert isinstance(null, np.uintp)
    assert null == 0


@pytest.mark.parametrize(
    ("shared", "limit"), [(0, 49152), (49152, 49152), (49153, 49153), (99 * 1024, 99 * 1024)]
)
def test_opts_in_above_48_kb_of_dynamic_shared_memory(cupy, sources, shared, limit):
    launch(cupy, shared=shared)
    assert cupy.functions["scale<float>"].max_dynamic_shared_size_bytes == limit


@pytest.mark.parametrize("value", [3, 0.5, True])
def test_bare_python_numbers_are_refused(cupy, sources, value):
    with pytest.raises(TypeError, match=r"argument 1 is a bare Python (int|float|bool); pass numpy"):
        launch(cupy, value)
    assert cupy.functions == {}


def test_numpy_arrays_are_refused(sources):
    with pytest.raises(TypeError, match="kernels take CuPy or emulated arrays, got NumPy"):
        SCALE((1,), (32,), np.ones(3, np.float32))


def test_a_mixture_is_refused(cupy, sources):
    with pytest.raises(TypeError, match="arrays of two kinds in one call"):
        launch(cupy, np.ones(3, np.float32))


def one_line(error: pytest.ExceptionInfo[KernelError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_compile_error_names_file_and_line(cupy, sources):
    cupy.compile_error = CompileException(
        "/tmp/tmp1/abc.cubin.cu(7): warning #177-D: unused\n"
        '/tmp/tmp1/abc.cubin.cu(9): error: identifier "x" is undefined\n'
        '/tmp/tmp1/abc.cubin.cu(11): error: expected a ";"\n2 errors detected.\n'
    )
    with pytest.raises(KernelError) as error:
        launch(cupy)
    assert one_line(error) == 'scale<float> does not compile: scale.cu(9): error: identifier "x" is undefined'


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (
            CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument"),
            r"CUDA_ERROR_INVALID_VALUE.*handgrad doctor",
        ),
        (
            CUDARuntimeError(
                "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version"
            ),
            r"driver is missing or too old.*handgrad\[cuda12x\]",
        ),
        (
            OutOfMemoryError("Out of memory allocating 1,000 bytes (allocated so far: 5 bytes)."),
            r"out of GPU memory.*1,000 bytes.*512 of 2,048 MiB free.*smaller batch",
        ),
        (CUDADriverError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"), r"out of GPU memory.*smaller batch"),
        (
            CUDADriverError("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access"),
            r"out of bounds.*start again.*kernels check",
        ),
        (
            RuntimeError("CuPy failed to load libnvrtc.so.13:\nOSError: cannot open"),
            r"NVRTC cannot be loaded.*handgrad\[cuda13x\]",
        ),
    ],
)
def test_a_launch_error_is_one_line_with_the_remedy(cupy, sources, raised, expected):
    cupy.function("scale<float>").fails_with = raised
    with pytest.raises(KernelError, match=expected) as error:
        launch(cupy)
    assert one_line(error).startswith("scale<float> grid (2, 1) block (32, 1): ")


def test_a_cooperative_launch_is_compiled_as_one(cupy, sources):
    x = cupy.asarray(np.ones(4, np.float32))
    SCALE((12,), (32,), x, shared=50 * 1024, cooperative=True)
    SCALE((13,), (32,), x)
    assert [module.cooperative for module in cupy.compiled] == [True, False]
    assert cupy.occupancy_asked == [(1234, 32, 50 * 1024)]
    assert [made.grid for made in cupy.functions["scale<float>"].launches] == [(12,), (13,)]


def test_a_cooperative_grid_above_residency_is_refused_before_cupy_shrinks_it(cupy, sources):
    x = cupy.asarray(np.ones(4, np.float32))
    with pytest.raises(KernelError) as error:
        SCALE((13,), (32,), x, cooperative=True)
    assert one_line(error) == (
        "scale<float>: a cooperative grid of 13 blocks: the GPU's 6 multiprocessors hold 2 each at a time, "
        "12 in all; launch fewer blocks"
    )
    assert cupy.functions["scale<float>"].launches == []


def test_kernels_directory_prefers_the_override(sources):
    assert kernel.kernels_directory() == sources
    other = sources / "copy"
    other.mkdir()
    (other / "common.cuh").touch()
    with use_kernels(other):
        assert kernel.kernels_directory() == other
    assert kernel.kernels_directory() == sources


def test_a_folder_without_the_headers_is_refused(tmp_path):
    with (
        pytest.raises(ValueError, match=r"kernels: .* has no common\.cuh; expected a copy"),
        use_kernels(tmp_path),
    ):
        pass
