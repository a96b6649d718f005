"""What the emulator pretends to be: an architecture with its launch limits, and an order of threads.

:func:`settings` holds inside a ``with`` block; outside of any, the environment variables
``HANDGRAD_EMULATOR_ARCH``, ``HANDGRAD_EMULATOR_ORDER``, ``HANDGRAD_EMULATOR_SEED`` and
``HANDGRAD_EMULATOR_SMS`` do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

# Shared memory that one block may use after opting in, in bytes: CUDA C++ Programming Guide, table
# "Technical Specifications per Compute Capability".
SHARED_BYTES_PER_BLOCK = {
    "sm_75": 64 * 1024,
    "sm_80": 163 * 1024,
    "sm_86": 99 * 1024,
    "sm_89": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "sm_120": 99 * 1024,
}
# What one multiprocessor holds at a time, of the same table: threads, blocks, bytes of shared memory (each
# block takes RESERVED_SHARED_BYTES more than it asks for, but on sm_75).
THREADS_PER_SM = dict(zip(SHARED_BYTES_PER_BLOCK, (1024, 2048, 1536, 1536, 2048, 2048, 1536), strict=True))
BLOCKS_PER_SM = dict(zip(SHARED_BYTES_PER_BLOCK, (16, 32, 16, 24, 32, 32, 24), strict=True))
SHARED_BYTES_PER_SM = {
    arch: kilobytes * 1024
    for arch, kilobytes in zip(SHARED_BYTES_PER_BLOCK, (64, 164, 100, 100, 228, 228, 100), strict=True)
}
RESERVED_SHARED_BYTES = 1024
# L2 cache of one GPU of each architecture (T4, A100, A10, RTX 4090, H100, B200, RTX 5090), in bytes: what
# launch code is told of, nothing more.
L2_BYTES = {
    arch: megabytes * 2**20
    for arch, megabytes in zip(SHARED_BYTES_PER_BLOCK, (4, 40, 6, 72, 50, 126, 96), strict=True)
}
# The same on all of them.
STATIC_SHARED_BYTES = 48 * 1024
THREADS_PER_BLOCK = 1024
BLOCK_LIMITS = (1024, 1024, 64)
GRID_LIMITS = (2**31 - 1, 65535, 65535)

ORDERS = ("forward", "reverse", "lifo", "random")
LANDINGS = ("late", "early", "random")


@dataclass(frozen=True)
class Settings:
    """``arch`` sets the limits of a launch; ``order`` the order in which blocks and ready threads run.

    ``"forward"`` lowest first, ``"reverse"`` highest first, ``"lifo"`` lets a group of threads that a barrier
    released run ahead, ``"random"`` draws by ``seed``: the same seed gives the same order.

    ``copies`` says when asynchronous copies land: ``"late"`` at the wait that covers them, ``"early"`` when
    they are issued, ``"random"`` at either.

    ``sms``: the multiprocessors that launch code is told of, and that bound a cooperative grid; results do
    not depend on them.
    """

    arch: str = "sm_80"
    order: str = "forward"
    seed: int = 0
    copies: str = "late"
    sms: int = 108

    def __post_init__(self) -> None:
        if self.arch not in SHARED_BYTES_PER_BLOCK:
            raise ValueError(f"arch: expected one of {', '.join(SHARED_BYTES_PER_BLOCK)}, got {self.arch!r}")
        for name, words in (("order", ORDERS), ("copies", LANDINGS)):
            if getattr(self, name) not in words:
                raise ValueError(f"{name}: expected one of {', '.join(words)}, got {getattr(self, name)!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**64:
            raise ValueError(f"seed: expected an integer from 0 to 2**64 - 1, got {self.seed!r}")
        if isinstance(self.sms, bool) or not isinstance(self.sms, int) or not 1 <= self.sms <= 1024:
            raise ValueError(f"sms: expected a number of multiprocessors, 1 to 1024, got {self.sms!r}")


def resident_blocks(arch: str, threads: int, shared: int) -> int:
    """Blocks of ``threads`` threads and ``shared`` bytes of shared memory that one multiprocessor holds at a
    time, 0 where it holds none; registers, which the emulator knows nothing of, may allow fewer."""
    reserved = 0 if arch == "sm_75" else RESERVED_SHARED_BYTES
    warps = -(-threads // 32)
    by_shared = SHARED_BYTES_PER_SM[arch] // (shared + reserved) if shared + reserved else BLOCKS_PER_SM[arch]
    return min(BLOCKS_PER_SM[arch], THREADS_PER_SM[arch] // 32 // warps, by_shared)


_chosen: ContextVar[Settings | None] = ContextVar("handgrad_emulator_settings", default=None)


def current_settings() -> Settings:
    """The settings that a launch made now would run under."""
    return _chosen.get() or _from_environment()


@contextlib.contextmanager
def settings(
    arch: str | None = None,
    order: str | None = None,
    seed: int | None = None,
    copies: str | None = None,
    sms: int | None = None,
) -> Iterator[Settings]:
    """Run launches inside the block under these settings; what is not given stays as it is outside.

    >>> with settings(arch="sm_90", order="random", seed=7):
    ...     pass
    """
    given = {"arch": arch, "order": order, "seed": seed, "copies": copies, "sms": sms}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    inner = dataclasses.replace(current_settings(), **changes)
    token = _chosen.set(inner)
    try:
        yield inner
    finally:
        _chosen.reset(token)


@functools.cache
def _from_environment() -> Settings:
    given = {}
    for field in ("arch", "order", "seed", "sms"):
        text = os.environ.get(f"HANDGRAD_EMULATOR_{field.upper()}")
        if text:
            given[field] = int(text) if field in ("seed", "sms") and text.isdecimal() else text
    try:
        return Settings(**given)  # type: ignore[arg-type]  # the wrong ones are named
    except ValueError as error:
        field = str(error).split(":")[0]
        raise ValueError(f"environment variable HANDGRAD_EMULATOR_{field.upper()}: {error}") from None
