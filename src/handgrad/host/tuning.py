"""Measuring how a network's step is best cut on this machine, once.

The rules of :mod:`handgrad.host.arrangement` need no measurement, and are what every network starts with.
``tune`` tries other blocks and tiles, keeps the best one where it is clearly better, and remembers it: from
then on this network, with this batch size, is cut so on this machine.  Another cut sums in another order, so
tuning changes the last bits of results; that is why nothing tunes by itself.

Processor time of a single thread is measured, not wall time: another program at work disturbs it little.
"""

from __future__ import annotations

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
from handgrad.host.products import Product

if TYPE_CHECKING:
    from handgrad.network import MLP

TILES = (0, 4, 6, 8, 12, 16, 24, 32, 48, 64)
BLOCKS = (1 / 2, 1, 2)  # of the rule's
REPEATS = 3
MARGIN = 0.97  # of the rule's time: what is not clearly faster is not worth other bits


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What :func:`tune` found.

    cut: the arrangement from now on; rule: that without tuning
    seconds, rule_seconds: processor time of forward, loss and backward a row
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
    flops = batch_size * arrangement.row_flops(net.sizes)
    parts = arrangement.parts(batch_size, flops, net.flat_parameters.flat.nbytes)
    rows = min(-(-batch_size // parts), arrangement.MOST_BLOCK)
    library = blas.find()
    library.hold()
    try:
        rule = arrangement.rule(net.sizes, rows, net.dtype.itemsize)
        blocks = sorted({max(1, min(rows, round(rule.block * factor))) for factor in BLOCKS})
        candidates = [rule, *(_with_best_tiles(layout, n) for n in blocks)]
        seconds = [_seconds_per_row(layout, cut) for cut in candidates]
    finally:
        library.release()
    best = int(np.argmin(seconds))
    if seconds[best] > MARGIN * seconds[0]:
        best = 0
    kept = remembered.remember(net.sizes, rows, net.dtype.itemsize, dataclasses.asdict(candidates[best]))
    arrangement.cut.cache_clear()
    if net._engine is not None:
        net._engine = None  # its plans are cut as before
    return Tuned(candidates[best], rule, seconds[best], seconds[0], kept)


def _with_best_tiles(layout: Layout, n: int) -> Cut:
    """Blocks of ``n`` rows, each product in the tiles that take the least time by themselves."""
    random = np.random.default_rng(0)
    dtype, pairs = layout.dtype, list(itertools.pairwise(layout.sizes))

    def matrix(rows: int, columns: int) -> NDArray[Any]:
        return random.random((rows, columns)).astype(dtype)

    forward, weight, inputs = [], [], []
    for layer, (d, h) in enumerate(pairs, 1):
        A, W, dZ = matrix(n, d), matrix(d, h), matrix(n, h)
        forward.append(_best_tile(W, np.empty((n, h), dtype), A))
        weight.append(_best_tile(dZ, np.empty((d, h), dtype), A.T))
        inputs.append(_best_tile(W.T, np.empty((n, d), dtype), dZ) if layer > 1 else 0)  # there is no dX
    return Cut(n, tuple(forward), tuple(weight), tuple(inputs))


def _best_tile(B: NDArray[Any], out: NDArray[Any], A: NDArray[Any]) -> int:
    products = [(tile, Product(B, out, tile)) for tile in TILES if tile < len(out)]
    times = _least_times([lambda product=product: product.run(A) for _, product in products])  # type: ignore[misc]
    return products[int(np.argmin(times))][0]


def _seconds_per_row(layout: Layout, cut: Cut) -> float:
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

    return _least_times([sweep])[0] / len(X)


def _least_times(functions: Iterable[Callable[[], Any]]) -> list[float]:
    """The least processor time of each, in seconds; taken in turns."""
    run = list(functions)
    least = [float("inf")] * len(run)
    for repeat in range(REPEATS + 1):
        for position, function in enumerate(run):
            start = time.thread_time()
            function()
            if repeat:  # the first is for caches
                least[position] = min(least[position], time.thread_time() - start)
    return least
