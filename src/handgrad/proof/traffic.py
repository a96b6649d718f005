"""Profiles of launches without a GPU: counted traffic beside the bytes that any kernel would have to move.

``handgrad kernels profile`` prints what :func:`profile_steps` gives, and ``profile_file`` of
``proof/file_traffic.py``.  Everything is counted on the emulator (``proof/counters.py``); operations come
from formulas; times are predicted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from handgrad import emulator, gpus
from handgrad.emulator.counting import ELSEWHERE, SECTOR_BYTES, SHARED, LaunchCounts, PlaceCounts, counting
from handgrad.emulator.launch import launch_through
from handgrad.kernel import Entry, catalogue
from handgrad.proof import operations
from handgrad.proof.counters import GlobalTraffic, SharedTraffic, global_traffic, shared_traffic
from handgrad.proof.step_calls import Call, Expected, calls

SCHEMA = "handgrad.profile/1"

COALESCING_BAR = 1.1  # sectors of a request against the least, where rows are whole sectors
CONFLICTS_BAR = 1.1  # wavefronts of shared memory against the least

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Shape:
    """A step of D → H → C with N samples; ``stands_for`` a larger one that launches the same kernels."""

    N: int
    D: int
    H: int
    C: int
    loss: str
    rule: str = "Momentum"
    stands_for: str = ""

    def __str__(self) -> str:
        return f"{self.N},{self.D},{self.H},{self.C}"


# The README's steps, and smaller ones that launch the same kernels with the same alignment of every row.
FULL = (
    Shape(50_000, 784, 50, 1, "mse"),
    Shape(8192, 784, 512, 10, "cross_entropy", "Adam"),
    Shape(1024, 784, 256, 10, "cross_entropy"),
    Shape(64, 784, 50, 10, "cross_entropy", "Sgd"),
)
STAND_INS = (
    Shape(512, 784, 50, 1, "mse", stands_for="50000,784,50,1"),
    Shape(2048, 32, 512, 10, "cross_entropy", "Adam", stands_for="8192,784,512,10"),
    Shape(256, 112, 256, 10, "hinge", stands_for="1024,784,256,10"),
    Shape(64, 784, 50, 10, "cross_entropy", "Sgd"),
)


def shape_of(text: str) -> Shape:
    """``"N,D,H,C"``, with mse where C is 1 and cross_entropy otherwise; ``ValueError`` for anything else."""
    sizes = text.split(",")
    if len(sizes) != 4 or not all(re.fullmatch(r"[1-9]\d{0,8}", size.strip()) for size in sizes):
        raise ValueError(f"--shape: expected N,D,H,C, four whole numbers from 1 up, got {text!r}")
    N, D, H, C = map(int, sizes)
    return Shape(N, D, H, C, "mse" if C == 1 else "cross_entropy")


@dataclass(frozen=True)
class Profile:
    """One launch: what was counted, and what was to be expected of it where that is known."""

    counts: LaunchCounts
    expected: Expected | None = None
    shape: Shape | None = None

    @cached_property
    def buffers(self) -> dict[str, dict[str, GlobalTraffic]]:
        """Traffic of global memory by buffer and access."""
        return global_traffic(self.counts)

    @cached_property
    def shared(self) -> dict[str, SharedTraffic]:
        """Traffic of shared memory by access."""
        return shared_traffic(self.counts)

    @property
    def blocks(self) -> int:
        """Blocks of the grid."""
        product = 1
        for size in self.counts.grid:
            product *= size
        return product

    def compulsory(self, buffer: str) -> int | None:
        """The bytes of ``buffer`` (perhaps several arguments) that any kernel would have to move."""
        if self.expected is None:
            return None
        names = buffer.split(", ")
        if not any(name in self.expected.compulsory for name in names):
            return 0
        return sum(self.expected.compulsory.get(name, 0) for name in names)

    def total(self, name: str) -> int:
        """``"requested_bytes"``, ``"moved_bytes"`` or ``"distinct_bytes"`` of all buffers."""
        return sum(getattr(one, name) for accesses in self.buffers.values() for one in accesses.values())

    @property
    def intensity(self) -> float | None:
        """Operations for each distinct byte."""
        if self.expected is None or not self.total("distinct_bytes"):
            return None
        return self.expected.operations / self.total("distinct_bytes")

    @property
    def aligned(self) -> bool | None:
        """Whether every row is a whole number of sectors, so that the bar of coalescing holds."""
        if self.expected is None:
            return None
        return all(size % SECTOR_BYTES == 0 for size in self.expected.row_bytes)

    def over(self) -> list[str]:
        """One line for each access that is over its bar, with the lines of the source that make it."""
        found = []
        for buffer, accesses in self.buffers.items():
            for access, one in accesses.items():
                if one.coalescing > COALESCING_BAR:
                    where = self._places(buffer, access, "sectors")
                    found.append(f"{buffer} {access}: {one.coalescing:.2f} times the least sectors, {where}")
        for access, one_shared in self.shared.items():
            if one_shared.conflicts > CONFLICTS_BAR:
                where = self._places(SHARED, access, "wavefronts")
                found.append(
                    f"shared {access}: {one_shared.conflicts:.2f} times the least wavefronts, {where}"
                )
        return found

    def out_of_bounds(self) -> list[str]:
        """One line for each place that accesses memory which the kernel was not given."""
        return [
            f"{place.access} of {place.lanes * place.bytes} bytes in no memory that the kernel was given, "
            f"{_line(place)}"
            for place in self.counts.places
            if place.buffer == ELSEWHERE
        ]

    def _places(self, buffer: str, access: str, cost: str) -> str:
        worst = [
            place
            for place in self.counts.places
            if (place.buffer, place.access) == (buffer, access)
            and getattr(place, cost) > 1.1 * getattr(place, f"least_{cost}")
        ]
        return ", ".join(dict.fromkeys(_line(place) for place in worst)) or "in sum"

    def predict(self, gpu: str) -> gpus.Prediction | None:
        """The time at best on ``gpu``, where the operations are known: predicted, not measured."""
        if self.expected is None:
            return None
        precision = "float64" if "double" in self.counts.expression else "float32"
        return gpus.predict(self.total("distinct_bytes"), self.expected.operations, 1, gpu, precision)

    def as_row(self, chosen_gpus: Sequence[str] = ()) -> dict[str, Any]:
        """For JSON, as docs/profile.md describes it."""
        counts, expected = self.counts, self.expected
        predictions = [one for one in map(self.predict, chosen_gpus) if one is not None]
        return {
            "op": expected.op if expected else None,
            "kernel": counts.expression,
            "file": counts.source.name,
            "shape": expected.shape if expected else None,
            "step": str(self.shape) if self.shape else None,
            "stands_for": (self.shape.stands_for or None) if self.shape else None,
            "aligned": self.aligned,
            "grid": counts.grid,
            "block": counts.block,
            "static_shared_bytes": counts.static_shared,
            "dynamic_shared_bytes": counts.shared,
            "compulsory_bytes": sum(expected.compulsory.values()) if expected else None,
            **{name: self.total(name) for name in ("requested_bytes", "moved_bytes", "distinct_bytes")},
            "operations": expected.operations if expected else None,
            "operations_source": operations.SOURCE if expected else None,
            "operations_per_distinct_byte": self.intensity,
            "barriers": counts.barriers,
            "barriers_per_block": counts.barriers / self.blocks,
            "collectives": counts.collectives,
            "buffers": [
                {
                    "name": name,
                    "bytes": counts.arrays.get(name),
                    "compulsory_bytes": self.compulsory(name),
                    "accesses": {access: _global_row(one) for access, one in accesses.items()},
                }
                for name, accesses in self.buffers.items()
            ],
            "shared_memory": {access: _shared_row(one) for access, one in self.shared.items()},
            "places": [vars(place) for place in counts.places],
            "over_bar": self.over(),
            "out_of_bounds": self.out_of_bounds(),
            "predicted_not_measured": [
                {"gpu": one.gpu.name, "seconds": one.seconds, "bound": one.bound} for one in predictions
            ],
        }


def _global_row(one: GlobalTraffic) -> dict[str, Any]:
    return {**vars(one), "moved_bytes": one.moved_bytes, "coalescing": one.coalescing}


def _shared_row(one: SharedTraffic) -> dict[str, Any]:
    return {**vars(one), "conflicts": one.conflicts}


def _line(place: PlaceCounts) -> str:
    return f"{place.file}:{place.line}" if place.file else "a line unknown"


# ---- kernels of the catalogue ----------------------------------------------------------------------------


def selected(names: Sequence[str]) -> tuple[Entry, ...]:
    """The catalogue's kernels that ``names`` name, all where there are none.

    A name is an op ("linear", "linear.forward") or a kernel ("linear_forward"); ``ValueError`` for others.
    """
    entries = catalogue()
    for name in names:
        if not any(_is_named(entry, name) for entry in entries):
            there = ", ".join(f"{entry.op} ({entry.name})" for entry in entries)
            raise ValueError(f"kernel: expected one of {there}, or one FILE.cu, got {name!r}")
    return tuple(entry for entry in entries if not names or any(_is_named(entry, name) for name in names))


def _is_named(entry: Entry, name: str) -> bool:
    return name in (entry.op, entry.op.partition(".")[0], entry.name)


def profile_steps(
    shapes: Sequence[Shape], names: Sequence[str] = (), progress: Progress | None = None
) -> list[Profile]:
    """Profiles of the launches of steps of these shapes; of the kernels that ``names`` name.

    An instantiation that several shapes launch is profiled at the first of them.  ``progress(done, total,
    what)`` is told of every call.  Raises ``ValueError`` for an unknown name, ``EmulatorError`` for kernels
    that do not compile or do what a GPU forbids.
    """
    wanted = {entry.name for entry in selected(names)}
    work = [
        (shape, call)
        for shape in shapes
        for call in calls(shape.N, shape.D, shape.H, shape.C, shape.loss, shape.rule)
        if wanted & set(call.launches)
    ]
    known = [_launched(call) for _, call in work]
    emulator.prebuild({pair: None for pairs in known for pair in pairs}, mode="count")
    first = {
        expression: shape
        for (shape, _), pairs in zip(reversed(work), reversed(known), strict=True)
        for _, expression in pairs
    }
    found: list[Profile] = []
    for done, ((shape, call), pairs) in enumerate(zip(work, known, strict=True)):
        if progress:
            progress(done, len(work), next(iter(call.launches.values())).op)
        new = {
            expression
            for _, expression in pairs
            if first[expression] is shape and expression.split("<")[0] in wanted
        }
        if new:
            found += [one for one in _profile(shape, call) if one.counts.expression in new]
    return found


def _profile(shape: Shape, call: Call) -> Iterator[Profile]:
    with counting() as launches:
        call.run()
    for counts in launches:
        yield Profile(counts, call.launches.get(counts.expression.split("<")[0]), shape)


def _launched(call: Call) -> dict[tuple[Path, str], None]:
    """What the call launches, without running it."""
    found: dict[tuple[Path, str], None] = {}

    def note(source: Path, expression: str, *launch: Any) -> None:
        found[source, expression] = None

    with launch_through(note):
        call.run()
    return found
