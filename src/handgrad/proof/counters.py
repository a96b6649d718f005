"""The traffic of a launch by buffer: bytes, coalescing, bank conflicts, barriers.  Counted on the emulator.

Of each buffer and access (load, store, atomic):

* ``requested_bytes``: what the lanes ask for, each for itself;
* ``moved_bytes``: the 32-byte sectors of every warp's request, as bytes: what leaves the first-level cache's
  side of a multiprocessor if it holds nothing;
* ``distinct_bytes``: the distinct sectors of the whole launch, as bytes: what leaves DRAM if the second-level
  cache holds everything;
* ``coalescing``: sectors against the least that each request's distinct bytes would fill.

Of shared memory: wavefronts against the least, which is what bank conflicts add.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from handgrad.emulator.counting import ACCESSES, SECTOR_BYTES, SHARED, LaunchCounts, PlaceCounts


@dataclass(frozen=True)
class GlobalTraffic:
    """What a launch did to one buffer by one kind of access."""

    requests: int
    requested_bytes: int
    sectors: int
    least_sectors: int
    distinct_bytes: int

    @property
    def moved_bytes(self) -> int:
        """The sectors, as bytes."""
        return SECTOR_BYTES * self.sectors

    @property
    def coalescing(self) -> float:
        """Sectors a request against the least possible: 1 is best."""
        return self.sectors / self.least_sectors


@dataclass(frozen=True)
class SharedTraffic:
    """What a launch did to shared memory by one kind of access."""

    requests: int
    requested_bytes: int
    wavefronts: int
    least_wavefronts: int

    @property
    def conflicts(self) -> float:
        """Wavefronts against the least possible: 1 is free of bank conflicts."""
        return self.wavefronts / self.least_wavefronts


def global_traffic(counts: LaunchCounts) -> dict[str, dict[str, GlobalTraffic]]:
    """Traffic by buffer, in the order of the arguments, and access; untouched buffers are empty."""
    buffers = [*counts.arrays, *dict.fromkeys(place.buffer for place in counts.places)]
    return {
        buffer: {
            access: GlobalTraffic(
                _sum(places, "requests"),
                _requested(places),
                _sum(places, "sectors"),
                _sum(places, "least_sectors"),
                counts.distinct.get((buffer, access), 0),
            )
            for access, places in _by_access(counts, buffer).items()
        }
        for buffer in buffers
        if buffer != SHARED
    }


def shared_traffic(counts: LaunchCounts) -> dict[str, SharedTraffic]:
    """Traffic of shared memory by access; empty where the kernel uses none."""
    return {
        access: SharedTraffic(
            _sum(places, "requests"),
            _requested(places),
            _sum(places, "wavefronts"),
            _sum(places, "least_wavefronts"),
        )
        for access, places in _by_access(counts, SHARED).items()
    }


def _by_access(counts: LaunchCounts, buffer: str) -> dict[str, list[PlaceCounts]]:
    found = {
        access: [place for place in counts.places if (place.buffer, place.access) == (buffer, access)]
        for access in ACCESSES
    }
    return {access: places for access, places in found.items() if places}


def _sum(places: Iterable[PlaceCounts], name: str) -> int:
    return sum(getattr(place, name) for place in places)


def _requested(places: Iterable[PlaceCounts]) -> int:
    return sum(place.lanes * place.bytes for place in places)
