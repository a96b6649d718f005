"""What the emulator itself costs: a launch, threads, barriers, shared memory, and its counters.

These times tell how large a shape a test may take; they say nothing about a GPU.  The kernels are here, so
that what is timed is the emulator and no kernel of the library.
"""

import numpy as np
import pytest

from handgrad import emulator

SOURCE = """
extern "C" __global__ void nothing() {}

extern "C" __global__ void add_one(float* x, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] += 1.0f;
}

extern "C" __global__ void sum_block(const float* x, float* out) {
  __shared__ float part[256];
  part[threadIdx.x] = x[blockIdx.x * 256 + threadIdx.x];
  for (int width = 128; width > 0; width /= 2) {
    __syncthreads();
    if (threadIdx.x < width) part[threadIdx.x] += part[threadIdx.x + width];
  }
  if (threadIdx.x == 0) out[blockIdx.x] = part[0];
}
"""
BLOCKS, THREADS = 64, 256

pytestmark = pytest.mark.parametrize("device", ["emulator"], indirect=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The kernels in a file; without a compiler there is nothing to time."""
    try:
        emulator.find_compiler()
    except emulator.CompilerNotFound as error:
        pytest.skip(str(error))
    file = tmp_path_factory.mktemp("kernels") / "costs.cu"
    file.write_text(SOURCE)
    return file


def test_an_empty_launch(source, device, measure):
    measure(lambda: emulator.launch(source, "nothing", (1,), (1,), ()))


def test_threads(source, device, measure):
    """16,384 threads without a barrier."""
    x = emulator.asarray(np.arange(BLOCKS * THREADS, dtype=np.float32))
    wanted = np.asarray(x) + 1
    arguments = (x, np.int32(x.size))
    emulator.launch(source, "add_one", (BLOCKS,), (THREADS,), arguments)
    np.testing.assert_array_equal(np.asarray(x), wanted)
    measure(lambda: emulator.launch(source, "add_one", (BLOCKS,), (THREADS,), arguments))


@pytest.mark.parametrize("order", ["forward", "random"])
def test_barriers(source, device, measure, order):
    """16,384 threads with eight barriers each, in two orders of the threads."""
    x = emulator.asarray(np.arange(BLOCKS * THREADS, dtype=np.float32))
    out = emulator.zeros((BLOCKS,), dtype=np.float32)

    def launch():
        with emulator.settings(order=order):
            emulator.launch(source, "sum_block", (BLOCKS,), (THREADS,), (x, out))

    launch()
    np.testing.assert_array_equal(np.asarray(out), np.asarray(x).reshape(BLOCKS, -1).sum(axis=1))
    measure(launch)


def test_counted_accesses(source, device, measure):
    """The same threads with every access to global memory counted."""
    from handgrad.emulator.counting import counting

    x = emulator.zeros((BLOCKS * THREADS,), dtype=np.float32)

    def launch():
        with counting() as launches:
            emulator.launch(source, "add_one", (BLOCKS,), (THREADS,), (x, np.int32(x.size)))
        return launches

    (counted,) = launch()
    np.testing.assert_array_equal(np.asarray(x), 1.0)
    assert [moved for moved in counted.distinct.values() if moved] == [
        x.nbytes
    ] * 2  # read once, written once
    measure(launch)
