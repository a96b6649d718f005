"""Measuring how a network's step is best cut on this machine, once.

The rules of :mod:`handgrad.host.arrangement` need no measurement, and are what every network starts with.
``tune`` tries other blocks and tiles, keeps the best one where it is clearly better, and remembers it: from
then on this network, with this batch size, is cut so on this machine.  Another cut sums in another order, so
tuning changes the last bits of results; that is why nothing tunes by itself.

The processor time of a single thread is measured, which other programs disturb little; where BLAS shares the
products among its threads, the time that passes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from handgrad.host import arrangement, blas, remembered
from handgrad.host.arrangement import Cut
from handgrad.host.block import Block, Layout, Memory
from handgrad.host.network import engine_of
from handgrad.host.products import Product

if TYPE_CHECKING:
    from handgrad.network import MLP

TILES = (0, 4, 6, 8, 12, 16, 24, 32, 48, 64)
BLOCKS = (1 / 2, 1, 2)  # of the rule's
REPEATS = 3
MARGIN = 0.97  # of the rule's time: what is not clearly faster is not worth other bits

Clock = Callable[[], float]  # seconds


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What :func:`tune` found.

    cut: the arrangement from now on; rule: that without tuning
    seconds, rule_seconds: of forward, loss and backward a row: processor time, or time passed where BLAS has
        its threads
    remembered: it was written to the cache folder
    """

    cut: Cut
    rule: Cut
    seconds: float
    rule_seconds: float
    remembered: bool


def tune(net: MLP, batch_size: int) -> Tuned:
    """Measure arrangements for ``net`` (on the CPU) in steps of ``batch_size`` rows and remember the best.

    Takes a few seconds.  ``ValueError`` for a network elsewhere or a batch size below 1.
    """
    if net.xp is not np:
        raise ValueError(f"net: expected a network on the CPU, got one on {net.device}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected a whole number, 1 or more, got {batch_size!r}")
    layout = Layout(net.sizes, net.activation, net.output, net.loss_name, net.bias, net.dtype)
    plan = engine_of(net).plan(batch_size)
    rows = min(-(-batch_size // len(plan.ranges)), arrangement.MOST_BLOCK)
    clock = time.perf_counter if plan.shared else time.thread_time
    with contextlib.ExitStack() as held:
        if not plan.shared:
            held.enter_context(blas.find().held())
        rule = arrangement.rule(net.sizes, rows, net.dtype.itemsize, plan.shared)
        blocks = sorted({max(1, min(rows, round(rule.block * factor))) for factor in BLOCKS})
        candidates = [rule, *(_with_best_tiles(layout, n, clock) for n in blocks)]
        seconds = [_seconds_per_row(layout, cut, clock) for cut in candidates]
    best = int(np.argmin(seconds))
    if seconds[best] > MARGIN * seconds[0]:
        best = 0
    entry = dataclasses.asdict(candidates[best])
    kept = remembered.remember(net.sizes, rows, net.dtype.itemsize, entry, plan.shared)
    arrangement.cut.cache_clear()
    net._engine = None  # its plans are cut as before
    return Tuned(candidates[best], rule, seconds[best], seconds[0], kept)


def _with_best_tiles(layout: Layout, n: int, clock: Clock) -> Cut:
    """Blocks of ``n`` rows, each product in the tiles that take the least time by themselves."""
    random = np.random.default_rng(0)
    dtype, pairs = layout.dtype, list(itertools.pairwise(layout.sizes))

    def matrix(rows: int, columns: int) -> NDArray[Any]:
        return random.random((rows, columns)).astype(dtype)

    forward, weight, inputs = [], [], []
    for layer, (d, h) in enumerate(pairs, 1):
        A, W, dZ = matrix(n, d), matrix(d, h), matrix(n, h)
        forward.append(_best_tile(W, np.empty((n, h), dtype), A, clock))
        weight.append(_best_tile(dZ, np.empty((d, h), dtype), A.T, clock))
        # There is no dX.
        inputs.append(_best_tile(W.T, np.empty((n, d), dtype), dZ, clock) if layer > 1 else 0)
    return Cut(n, tuple(forward), tuple(weight), tuple(inputs))


def _best_tile(B: NDArray[Any], out: NDArray[Any], A: NDArray[Any], clock: Clock) -> int:
    products = [(tile, Product(B, out, tile)) for tile in TILES if tile < len(out)]
    times = _least_times([lambda product=product: product.run(A) for _, product in products], clock)  # type: ignore[misc]
    return products[int(np.argmin(times))][0]


def _seconds_per_row(layout: Layout, cut: Cut, clock: Clock) -> float:
    """Of one block among many: its gradients are added."""
    from handgrad.parameters import FlatParameters

    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (d, h) in enumerate(itertools.pairwise(layout.sizes), 1):
        shapes |= {f"W{layer}": (d, h), f"b{layer}": (h,)}
    parameters, gradients, added = (FlatParameters(shapes, layout.dtype, np) for _ in range(3))
    parameters.flat[...] = 0.1 * random.standard_normal(parameters.flat.shape)
    block = Block(
        layout,
        cut.block,
        cut,
        parameters.views,
        gradients.views,
        added.views,
        Memory(cut.block, layout.dtype),
    )
    rows = max(1, 8192 // cut.block)
    X = random.random((rows * cut.block, layout.sizes[0])).astype(layout.dtype)
    labels = layout.loss in ("cross_entropy", "hinge")
    y = np.zeros(cut.block, np.int64) if labels else np.zeros((cut.block, layout.sizes[-1]), layout.dtype)

    def sweep() -> None:
        for start in range(0, len(X), cut.block):
            block.forward(X[start : start + cut.block], y, 1.0, 1)
            block.backward(X[start : start + cut.block], False)

    return _least_times([sweep], clock)[0] / len(X)


def _least_times(functions: Iterable[Callable[[], Any]], clock: Clock) -> list[float]:
    """The least time of each, in seconds; taken in turns."""
    run = list(functions)
    least = [float("inf")] * len(run)
    for repeat in range(REPEATS + 1):
        for position, function in enumerate(run):
            start = clock()
            function()
            if repeat:  # the first is for caches
                least[position] = min(least[position], clock() - start)
    return least
