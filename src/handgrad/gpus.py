"""The time that a kernel or a step can take at best on a named GPU: predicted, not measured.

    seconds = max(bytes / bandwidth, operations / rate) + launches · launch cost

Bytes and operations are counted (by the emulator or by hand; a multiply-add is two operations), bandwidth
and rate are NVIDIA's published peaks, in :data:`GPUS`.  No kernel reaches both peaks, so the prediction is a
lower bound, and good for comparing plans rather than for promises.

Sources, dense rates (half of those that a data sheet marks "with sparsity"), boost clocks:

* A100: the 40 GB SXM4 module.  `A100 data sheet
  <https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet.pdf>`_;
  multiprocessors, clock and L2: *NVIDIA A100 Tensor Core GPU Architecture*, table 4.
* H100: the SXM5 module with HBM3.  `H100 data sheet
  <https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet>`_; the rest: *NVIDIA H100
  Tensor Core GPU Architecture*, table 3 and appendix.
* RTX 4090: `NVIDIA Ada GPU Architecture
  <https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf>`_, appendix A
  (bfloat16 with float32 accumulation, which GeForce cards run at half the rate).
* L4: `L4 product page <https://www.nvidia.com/en-us/data-center/l4/>`_; multiprocessors and clock: *NVIDIA L4
  Tensor Core GPU* product brief.

Outside tensor cores a multiprocessor's float32 rate is lanes · 2 · clock, as ``tests/test_gpus.py`` checks.
float64 is that of the ordinary units, not of tensor cores; ``3xtf32`` takes three tf32 products for one.

The launch cost is an assumption, the same for all: 3 µs from the end of one small kernel to the work of the
next one in the same stream, when the host is ahead.  `Getting started with CUDA graphs
<https://developer.nvidia.com/blog/cuda-graphs/>`_ finds gaps of about 1 µs; filling and draining the chip
adds to them.  A host that cannot keep ahead takes longer, a captured graph less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LABEL = "predicted, not measured"
PRECISIONS = ("float64", "float32", "tf32", "3xtf32", "bfloat16")
LAUNCH_SECONDS = 3e-6


@dataclass(frozen=True)
class Gpu:
    """Published peaks of one GPU: bytes a second, operations a second by precision, and its make."""

    name: str
    arch: str
    sms: int
    lanes: int  # float32 lanes of a multiprocessor
    clock: float  # boost, Hz
    bandwidth: float  # DRAM, bytes/s
    l2_bytes: int
    float64: float  # operations/s, as the following
    float32: float
    tf32: float
    bfloat16: float
    launch_seconds: float = LAUNCH_SECONDS

    def rate(self, precision: str) -> float:
        """Operations a second in ``precision``; ``ValueError`` for one that is none of :data:`PRECISIONS`."""
        if precision not in PRECISIONS:
            raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
        return self.tf32 / 3 if precision == "3xtf32" else float(getattr(self, precision))


MB, T, MHZ = 2**20, 1e12, 1e6

GPUS = (
    Gpu("A100", "sm_80", 108, 64, 1410 * MHZ, 1.555 * T, 40 * MB, 9.7 * T, 19.5 * T, 156 * T, 312 * T),
    Gpu("H100", "sm_90", 132, 128, 1980 * MHZ, 3.35 * T, 50 * MB, 33.5 * T, 66.9 * T, 494.7 * T, 989.4 * T),
    Gpu(
        "RTX 4090", "sm_89", 128, 128, 2520 * MHZ, 1.008 * T, 72 * MB, 1.29 * T, 82.6 * T, 82.6 * T, 165.2 * T
    ),
    Gpu("L4", "sm_89", 58, 128, 2040 * MHZ, 0.3 * T, 48 * MB, 0.473 * T, 30.3 * T, 60 * T, 121 * T),
)


@dataclass(frozen=True)
class Prediction:
    """A predicted time and its parts, in seconds.  As text it always says that it is predicted."""

    gpu: Gpu
    precision: str
    memory: float
    arithmetic: float
    launches: float

    @property
    def seconds(self) -> float:
        """max(memory, arithmetic) + launches."""
        return max(self.memory, self.arithmetic) + self.launches

    @property
    def bound(self) -> str:
        """What takes most of the time: "memory", "arithmetic" or "launches"."""
        parts = {"memory": self.memory, "arithmetic": self.arithmetic, "launches": self.launches}
        return max(parts, key=parts.__getitem__)

    def __str__(self) -> str:
        what = f"{self.seconds * 1e6:.1f} µs on {self.gpu.name} in {self.precision}"
        return f"{what}, bound by {self.bound} ({LABEL})"


def find_gpu(name: str | Gpu) -> Gpu:
    """The GPU of that name, whatever its case and blanks; ``ValueError`` with the names there are."""
    if isinstance(name, Gpu):
        return name
    for one in GPUS if isinstance(name, str) else ():
        if _plain(one.name) == _plain(name):
            return one
    raise ValueError(f"gpu: expected one of {', '.join(one.name for one in GPUS)}, got {name!r}")


def _plain(name: str) -> str:
    return "".join(name.split()).lower().removeprefix("rtx")


def predict(
    bytes: float, operations: float, launches: int, gpu: str | Gpu, precision: str = "float32"
) -> Prediction:
    """The prediction for ``bytes`` of DRAM traffic, ``operations`` and ``launches`` on a GPU.

    Raises ``ValueError`` for a count that is negative or not finite, an unknown GPU or precision.
    """
    for what, number in (("bytes", bytes), ("operations", operations), ("launches", launches)):
        if not (math.isfinite(number) and number >= 0):
            raise ValueError(f"{what}: expected a finite number, 0 or above, got {number}")
    chosen = find_gpu(gpu)
    return Prediction(
        gpu=chosen,
        precision=precision,
        memory=bytes / chosen.bandwidth,
        arithmetic=operations / chosen.rate(precision),
        launches=launches * chosen.launch_seconds,
    )


def predicted_seconds(
    bytes: float, operations: float, launches: int, gpu: str | Gpu, precision: str = "float32"
) -> float:
    """:func:`predict`'s seconds: max(bytes / bandwidth, operations / rate) + launches · launch cost."""
    return predict(bytes, operations, launches, gpu, precision).seconds
