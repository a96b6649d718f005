"""Training steps over shards: the same bits on any number of ranks and threads.

Of a batch of n rows, shard s with n_s rows gives ``g_s``, the gradient of its own mean loss; the batch's is

    g = Σ_s (n_s / n) g_s        (Σ_s g_s for reduction="sum"),        loss likewise,

added in the tree of :mod:`handgrad.distributed.shards`.  An empty shard gives zeros.  The losses travel with
the gradients: one exchange a step.  On the CPU a shard is computed with one BLAS thread, since the bits of a
product depend on their number; large shards are computed in several threads at once instead.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from handgrad.arrays import Array
from handgrad.distributed.exchange import Exchange, choose
from handgrad.distributed.ranks import Ranks
from handgrad.distributed.shards import cut, owned, tree
from handgrad.network import MLP
from handgrad.network_arguments import row_numbers
from handgrad.ops import batch
from handgrad.ops.workspace import Workspace
from handgrad.parameters import ALIGNMENT, Gradients

if TYPE_CHECKING:
    from handgrad.ops.optimizer import Optimizer

# Floating-point operations of a shard below which handing it to a thread costs more than it gains.
LEAST_FOR_A_THREAD = 20_000_000
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


class ShardedSteps:
    """Takes the place of ``net`` for :meth:`train_epoch`: each batch in ``shards`` shards, over ``ranks``.

    ``threads``: how many shards to compute at once on the CPU; None: as many as this process has cores.
    Raises ``ValueError`` for more ranks than shards.
    """

    def __init__(self, net: MLP, shards: int, ranks: Ranks | None = None, threads: int | None = None) -> None:
        self.net, self.shards, self.ranks = net, shards, ranks or Ranks()
        self._tree = tree(shards, self.ranks.size)
        self._own_shards = owned(shards, self.ranks.rank, self.ranks.size)
        self.exchange: Exchange | None = None
        self.exchanged_by = ""
        if self.ranks.size > 1:
            self.exchange, self.exchanged_by = choose(self.ranks, net.device)
        wanted = cores(self.ranks) if threads is None else threads
        self.threads = min(wanted, len(self._own_shards)) if net.device.kind == "cpu" else 1
        self._pool: ThreadPoolExecutor | None = None
        with net.device:
            self._allocate()

    def _allocate(self) -> None:
        """Rows of one buffer: a gradient each, laid out as the parameters, and its loss behind it."""
        net, count = self.net, len(self._own_shards)
        self._size = int(net.flat_parameters.flat.size)
        length = self._size + ALIGNMENT // net.dtype.itemsize
        slots = max(map(len, self._tree.roots))
        rows = _aligned(net, (max(count, slots), length))
        self._rows = [rows[i] for i in range(count)]
        self._gradients = [_gradients_in(net, row[: self._size]) for row in self._rows]
        # A network for each shard: scratch memory is not shared between threads.
        self._nets = [_twin(net) if self.threads > 1 else net for _ in range(count)]
        self._workspaces = [Workspace() for _ in range(count)]
        self._sent = rows[:slots]
        self._received = _aligned(net, (self.ranks.size, slots, length)) if self.ranks.size > 1 else None
        if self._received is None:
            self._standing = dict(enumerate(self._rows))
        else:
            self._standing = {
                shard: self._received[rank, slot]
                for rank, roots in enumerate(self._tree.roots)
                for slot, shard in enumerate(roots)
            }

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Around the training: one BLAS thread a shard, and threads for the shards."""
        if self.net.device.kind != "cpu":
            yield
            return
        import threadpoolctl

        with threadpoolctl.threadpool_limits(limits=1, user_api="blas"):
            if self.threads == 1:
                yield
                return
            with ThreadPoolExecutor(self.threads, "handgrad-shard") as self._pool:
                yield
            self._pool = None

    def train_epoch(
        self,
        X: Array,
        y: Array,
        order: Array,
        batch_size: int,
        optimizer: Optimizer,
        clip_norm: float | None = None,
        scale: float = 1.0,
        shift: float = 0.0,
    ) -> Array:
        """As :meth:`handgrad.MLP.train_epoch`; every rank gets the same losses and parameters."""
        net = self.net
        y = net._targets(y)
        numbers = row_numbers(order, int(X.shape[0]))
        steps = -(-len(numbers) // batch_size)
        with net.device:
            rows = net.xp.asarray(numbers)
            losses = net.xp.empty((steps,), dtype=net.dtype)
            for step in range(steps):
                part = rows[step * batch_size : (step + 1) * batch_size]
                self._compute(X, y, part, scale, shift)
                total = self._add()
                losses[step : step + 1] = total[self._size : self._size + 1]
                optimizer.update(net.flat_parameters, total[: self._size], clip_norm)
        return losses

    def _compute(self, X: Array, y: Array, rows: Array, scale: float, shift: float) -> None:
        """The gradients and losses of this rank's shards, each in its row of the buffer."""
        net, N = self.net, len(rows)
        cuts = cut(N, self.shards)[self._own_shards.start : self._own_shards.stop]
        in_threads = self._pool is not None and self._work(N) >= LEAST_FOR_A_THREAD
        together: tuple[Array, Array] | None = None
        if net.xp is np and not in_threads:  # fewer calls, the same numbers
            together = self._gather(0, X, y, rows[cuts[0].start : cuts[-1].stop], scale, shift)

        def shard(i: int) -> None:
            count, row = cuts[i].stop - cuts[i].start, self._rows[i]
            if count == 0:
                row[...] = 0
                return
            if together is None:
                inputs, targets = self._gather(i, X, y, rows[cuts[i]], scale, shift)
            else:
                own = slice(cuts[i].start - cuts[0].start, cuts[i].stop - cuts[0].start)
                inputs, targets = together[0][own], together[1][own]
            loss, _ = self._nets[i].loss_and_grad(inputs, targets, out=self._gradients[i])
            row[self._size : self._size + 1] = loss.reshape(1)
            if net.reduction == "mean" and count < N:
                row *= net.dtype.type(count / N)

        settings = np.geterr()

        def in_a_thread(i: int) -> None:
            with np.errstate(**settings):  # a new thread would warn of what the caller lets pass
                shard(i)

        if self._pool is not None and in_threads:
            for future in [self._pool.submit(in_a_thread, i) for i in range(len(self._rows))]:
                future.result()
        else:
            for i in range(len(self._rows)):
                shard(i)

    def _gather(
        self, i: int, X: Array, y: Array, rows: Array, scale: float, shift: float
    ) -> tuple[Array, Array]:
        """These rows of the data, in the scratch memory of shard ``i``."""
        net, workspace = self.net, self._workspaces[i]
        inputs = workspace.get("X", (len(rows), *X.shape[1:]), net.dtype, net.xp)
        batch.gather(X, rows, out=inputs, scale=scale, shift=shift, dtype=net.dtype)
        targets = workspace.get("y", (len(rows), *y.shape[1:]), y.dtype, net.xp)
        batch.gather(y, rows, out=targets)
        return inputs, targets

    def _work(self, rows: int) -> float:
        """Floating-point operations of a shard, about."""
        return 6.0 * rows / self.shards * self._size

    def _add(self) -> Array:
        """The sums over all shards: gradients, then the loss."""
        first = self._own_shards.start
        for a, b in self._tree.inside[self.ranks.rank]:
            self._rows[a - first] += self._rows[b - first]
        if self.exchange is not None:
            for slot, shard in enumerate(self._tree.roots[self.ranks.rank]):
                if shard - first != slot:
                    self._sent[slot] = self._rows[shard - first]
            self.exchange(self._sent, self._received)
        for a, b in self._tree.outside:
            self._standing[a] += self._standing[b]
        return self._standing[0]


def cores(ranks: Ranks) -> int:
    """The cores for this rank: what BLAS was told to take, or its share of those of the machine."""
    for name in THREAD_VARIABLES:
        value = os.environ.get(name, "")
        if value.isdecimal() and int(value):
            return int(value)
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, here // ranks.local_size)


def _aligned(net: MLP, shape: tuple[int, ...]) -> Array:
    """Zeros that start at a multiple of 256 bytes, as rows then do."""
    from handgrad.parameters import FlatParameters

    count = int(np.prod(shape))
    return FlatParameters({"all": (count,)}, net.dtype, net.xp).flat[:count].reshape(shape)


def _gradients_in(net: MLP, flat: Array) -> Gradients:
    buffer = net.flat_parameters.like()
    buffer.flat = flat
    buffer.views = buffer.split(flat)
    return Gradients(buffer)


def _twin(net: MLP) -> MLP:
    """Another network over the same parameters."""
    config: dict[str, Any] = net.config() | {"init": "zeros"}
    twin = MLP(**config, device=net.device)
    twin.flat_parameters = net.flat_parameters
    return twin
