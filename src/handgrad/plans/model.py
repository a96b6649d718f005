"""The time that a layout takes at best on a named GPU: predicted, not measured.

::

    step = max(DRAM / u, L2 / u, arithmetic) + launches * launch cost + barriers * barrier cost

    DRAM = compulsory bytes / bandwidth          L2 = requested bytes / (64 bytes * clock * multiprocessors)
    arithmetic = sum over the launches of operations / (rate * v)
    v: the share of the chip that the blocks of a launch keep busy; u: the largest v of a step

R2's are those of the block that has most to do, on a multiprocessor of its own.

Peaks and the cost of a launch: :mod:`handgrad.gpus`.  64 bytes a clock is the width of the way from L2 to a
multiprocessor (`NVIDIA A100 Tensor Core GPU Architecture`, "A100 L2 Cache": 5120 bytes a clock for 80 of them
in use).  Two costs are assumptions, the same for all GPUs: a launch inside a captured graph costs 1.5 µs, for
the host is out of its way; a barrier over the grid 1.5 µs, a round trip of two atomics to L2 and its skew.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from handgrad.gpus import LABEL, Gpu, find_gpu
from handgrad.ops import two_layer_epoch
from handgrad.ops.two_layer import Layout, Problem
from handgrad.plans import paths

CAPTURED_LAUNCH_SECONDS = 1.5e-6
BARRIER_SECONDS = 1.5e-6
L2_BYTES_PER_CLOCK = 64
GATHERS = 2  # launches that pick a batch's rows out of X and y


@dataclass(frozen=True)
class StepTime:
    """A predicted time of one step and its parts, in seconds.  As text it says that it is predicted.

    ``dram``, ``l2``: with the whole chip; ``utilization``: the share of it that moves them; ``arithmetic``:
    with the shares that the launches keep busy.
    """

    gpu: Gpu
    dram: float
    l2: float
    arithmetic: float
    launches: float
    barriers: float
    utilization: float

    @property
    def seconds(self) -> float:
        """Of one step."""
        moving = max(self.dram, self.l2) / self.utilization
        return max(moving, self.arithmetic) + self.launches + self.barriers

    @property
    def bound(self) -> str:
        """What takes most of the time."""
        parts = {
            "DRAM": self.dram / self.utilization,
            "L2": self.l2 / self.utilization,
            "arithmetic": self.arithmetic,
            "launches": self.launches,
            "barriers": self.barriers,
        }
        return max(parts, key=parts.__getitem__)

    def __str__(self) -> str:
        return f"{self.seconds * 1e6:.1f} µs on {self.gpu.name}, bound by {self.bound} ({LABEL})"


def on_gpu(problem: Problem, gpu: Gpu) -> Problem:
    """The same problem, laid out for ``gpu``."""
    return dataclasses.replace(problem, arch=gpu.arch, sms=gpu.sms)


def predict(layout: Layout, gpu: Gpu | str, captured: bool = True) -> StepTime:
    """The time of one step of ``layout``, which was made for this GPU."""
    chosen = find_gpu(gpu)
    if layout.path == paths.EPOCH:
        return _of_an_epoch(layout, chosen)
    launch = CAPTURED_LAUNCH_SECONDS if captured else chosen.launch_seconds
    shares, rate = launch_shares(layout), chosen.rate(layout.problem.precision)
    return StepTime(
        chosen,
        dram=sum(layout.compulsory.values()) / chosen.bandwidth,
        l2=sum(layout.requested.values()) / (L2_BYTES_PER_CLOCK * chosen.clock * chosen.sms),
        arithmetic=sum(
            one.operations / (rate * share) for one, share in zip(layout.launches, shares, strict=True)
        ),
        launches=len(layout.launches) * launch,
        barriers=0.0,
        utilization=max(shares),
    )


def _of_an_epoch(layout: Layout, gpu: Gpu) -> StepTime:
    """A step of R2: its busiest block on a multiprocessor of its own, and the barriers."""
    parts = two_layer_epoch.pieces(layout)
    slices = layout.workspace.get("epoch.slices", 0)  # of weights and state that are not in shared memory
    moved = 3 * slices if slices > gpu.l2_bytes else 0
    return StepTime(
        gpu,
        dram=(sum(layout.compulsory.values()) + moved) / gpu.bandwidth,
        l2=parts.l2_bytes / (L2_BYTES_PER_CLOCK * gpu.clock),
        arithmetic=2 * parts.multiply_adds * gpu.sms / gpu.rate(layout.problem.precision),
        launches=0.0,
        barriers=parts.barriers * BARRIER_SECONDS,
        utilization=1.0,
    )


def launch_shares(layout: Layout) -> tuple[float, ...]:
    """Of each launch, what part of its rounds of blocks does work: pieces / (rounds * slots), in (0, 1].

    The pieces of R1's first launch are its S partitions, and a slot is a block's place: as many blocks loop
    over them as the GPU holds.  Those of the others are their blocks, one a multiprocessor.
    """
    pieces = [math.prod(one.grid) for one in layout.launches]
    slots = [layout.problem.sms] * len(pieces)
    if layout.path == "R1" and len(pieces) > 1:
        pieces[0], slots[0] = layout.partitions, resident_blocks(layout)
    return tuple(n / (-(-n // places) * places) for n, places in zip(pieces, slots, strict=True))


def wave_efficiency(layout: Layout) -> float:
    """That of the launch with most operations."""
    shares = launch_shares(layout)
    return shares[max(range(len(shares)), key=lambda i: layout.launches[i].operations)]


def resident_blocks(layout: Layout) -> int:
    """Blocks of R1's first kernel that the GPU holds at once, as its own grid has it."""
    one = paths.module_of(layout.path).lay_out(dataclasses.replace(layout.problem, sms=1), layout.tiling)
    return max(1, math.prod(one.launches[0].grid)) * layout.problem.sms
