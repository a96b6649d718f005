"""How many threads the CPU's matrix products take while a network trains."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from handgrad.throughput import limit_blas_threads, thread_variables

if TYPE_CHECKING:
    from handgrad.network import MLP

# Below this, sharing a product among threads gains little, and costs much where another program has a core:
# each product then waits for that core's time slice (tried: 2 cores, both busy, batch 64, 784→128→10: 3,000
# samples a second with two threads, 60,000 with one).
SMALL_PRODUCT = 100_000_000  # floating-point operations, about two milliseconds of one core


def takes_one_thread(net: MLP, batch_size: int) -> bool:
    """Whether the largest product of a step is small, and nobody has said how many threads to take."""
    if net.device.kind != "cpu" or thread_variables():
        return False
    largest = max(inputs * outputs for inputs, outputs in zip(net.sizes[:-1], net.sizes[1:], strict=True))
    return 2 * batch_size * largest < SMALL_PRODUCT


def blas_threads(net: MLP, batch_size: int) -> AbstractContextManager[Any]:
    """One BLAS thread inside the block where :func:`takes_one_thread`, else as it is."""
    return limit_blas_threads(1 if takes_one_thread(net, batch_size) else None)
