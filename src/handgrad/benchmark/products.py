"""The bare matrix products of a step, each in the arrangement that is fastest in the BLAS that is there.

The five products of a two-layer step, without input gradient:
``X W1``, ``A1 W2``, ``A1ᵀ dZ2``, ``dZ2 W2ᵀ``, ``Xᵀ dZ1``.  Their times together are the floor under a step
that calls this BLAS.  Arrangements that are tried: as written; transposed (a column-major result); the
rows in blocks; the rows shared among threads that each call a BLAS of one thread; the hidden units padded
with zeros to a multiple of 16 or 64.  On a GPU: as written.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from handgrad.arrays import resolve_device, synchronize
from handgrad.benchmark.workloads import Problem
from handgrad.throughput import limit_blas_threads

BLOCKS = (1024, 4096)
PADDINGS = (16, 64)
TRIALS = 3  # in turns, of the arrangements that are near the fastest at first sight
NEAR = 1.5  # times the fastest
SHORTEST = 1e-3  # seconds of a sample: shorter products are repeated

Call = Callable[[], Any]


@dataclass(frozen=True)
class Arrangement:
    """A way to compute a product, with so many BLAS threads; ``repeats``: calls of a sample."""

    words: str
    call: Call
    threads: int
    repeats: int = 1


@dataclass(frozen=True)
class Product:
    """C = A B, (m, k) × (k, n); ``over_rows``: the samples are summed over (k), else they are rows (m)."""

    name: str
    A: Any
    B: Any
    over_rows: bool

    @property
    def flops(self) -> int:
        return 2 * int(self.A.shape[0]) * int(self.A.shape[1]) * int(self.B.shape[1])


class Products:
    """The five products of a problem's step on a device."""

    def __init__(self, problem: Problem, device: str, threads: int) -> None:
        self.device = resolve_device(device)
        self.xp, self.threads = self.device.array_module, threads
        self.problem = problem
        self._pool = ThreadPoolExecutor(threads) if threads > 1 and self.xp is np else None
        self._chosen: list[Arrangement] = []

    def find(self) -> list[dict[str, Any]]:
        """Name, shape, FLOPs and best arrangement of each product."""
        found = []
        self._chosen = []
        with self.device:
            for group in self._variants():
                best = self._fastest(
                    [
                        replace(way, words=f"{way.words}, hidden units padded to {width}") if width else way
                        for width, product in group
                        for way in self._arrangements(product)
                    ]
                )
                plain = group[0][1]
                self._chosen.append(best)
                found.append(
                    {
                        "name": plain.name,
                        "shape": [int(plain.A.shape[0]), int(plain.A.shape[1]), int(plain.B.shape[1])],
                        "flops": plain.flops,
                        "arrangement": best.words,
                    }
                )
        return found

    def _fastest(self, ways: list[Arrangement]) -> Arrangement:
        """The least of several trials in turns; with as many repeats as a sample needs."""
        first = []
        for way in ways:
            self._seconds(way)
            first.append(self._seconds(way))
        repeats = max(1, round(SHORTEST / max(min(first), 1e-9)))
        near = [
            replace(way, repeats=repeats)
            for way, taken in zip(ways, first, strict=True)
            if taken <= NEAR * min(first)
        ]
        least = [min(each) for each in zip(*(map(self._seconds, near) for _ in range(TRIALS)), strict=True)]
        return near[int(np.argmin(least))]

    def sample(self) -> Iterator[float]:
        """Seconds of each product, in its best arrangement."""
        with self.device:
            for way in self._chosen:
                self._seconds(replace(way, repeats=1))  # the others' turns have emptied the caches
                yield self._seconds(way)

    def _variants(self) -> list[list[tuple[int, Product]]]:
        """For each product: (0, as it is), then (width, padded) where that changes anything."""
        shape = self.problem.workload.shape
        widths = [0]
        if self.xp is np:
            padded = {-(-shape.hidden // multiple) * multiple for multiple in PADDINGS}
            widths += sorted(padded - {shape.hidden})
        groups: list[list[tuple[int, Product]]] = [[], [], [], [], []]
        for width in widths:
            for group, product in zip(groups, self._five(width or shape.hidden), strict=True):
                group.append((width, product))
        return groups

    def _five(self, hidden: int) -> list[Product]:
        shape, xp = self.problem.workload.shape, self.xp
        N, D, H, C = shape.samples, shape.inputs, hidden, shape.outputs
        X = xp.asarray(self.problem.batch[0])
        W1, W2 = xp.ones((D, H), dtype=np.float32), xp.ones((H, C), dtype=np.float32)
        A1, dZ2 = xp.ones((N, H), dtype=np.float32), xp.ones((N, C), dtype=np.float32)
        return [
            Product("X W1", X, W1, False),
            Product("A1 W2", A1, W2, False),
            Product("A1ᵀ dZ2", A1.T, dZ2, True),
            Product("dZ2 W2ᵀ", dZ2, W2.T, False),
            Product("Xᵀ dZ1", X.T, A1, True),
        ]

    def _arrangements(self, product: Product) -> Iterator[Arrangement]:
        """Every way to compute ``product``; its call returns the product."""
        A, B, xp = product.A, product.B, self.xp
        m, n = int(A.shape[0]), int(B.shape[1])
        rows = int(A.shape[1]) if product.over_rows else m
        out, turned = xp.empty((m, n), dtype=np.float32), xp.empty((n, m), dtype=np.float32)
        if xp is not np:
            yield Arrangement("as written", lambda: xp.matmul(A, B, out=out), 1)
            return
        for threads in (self.threads, 1) if self.threads > 1 else (1,):
            on = f"{threads} thread{'s' if threads > 1 else ''}"
            yield Arrangement(f"as written, {on}", lambda: np.matmul(A, B, out=out), threads)
            yield Arrangement(f"transposed, {on}", lambda: np.matmul(B.T, A.T, out=turned).T, threads)
            for block in BLOCKS:
                if rows > block:
                    call = self._in_parts(product, _parts(rows, -(-rows // block)), out)
                    yield Arrangement(f"blocks of {block} rows, {on}", call, threads)
        if self._pool is not None and rows >= 16 * self.threads:
            shared = self._in_parts(product, _parts(rows, self.threads), out, self._pool)
            yield Arrangement("rows shared among threads", shared, 1)

    def _in_parts(
        self, product: Product, parts: list[slice], out: Any, pool: ThreadPoolExecutor | None = None
    ) -> Call:
        A, B = product.A, product.B
        each: Any = pool.map if pool is not None else map
        if not product.over_rows:

            def fill() -> Any:
                list(each(lambda rows: np.matmul(A[rows], B, out=out[rows]), parts))
                return out

            return fill
        sums = np.empty((len(parts) if pool is not None else 1, *out.shape), dtype=np.float32)

        def add() -> Any:
            if pool is not None:
                numbered = list(enumerate(parts))
                list(each(lambda part: np.matmul(A[:, part[1]], B[part[1]], out=sums[part[0]]), numbered))
                return np.add.reduce(sums, axis=0, out=out)
            np.matmul(A[:, parts[0]], B[parts[0]], out=out)
            for rows in itertools.islice(parts, 1, None):
                np.matmul(A[:, rows], B[rows], out=sums[0])
                np.add(out, sums[0], out=out)
            return out

        return add

    def _seconds(self, way: Arrangement) -> float:
        """Of one call, the mean of a sample's."""
        with limit_blas_threads(way.threads if self.xp is np and self.threads > 1 else None):
            synchronize(self.xp)
            begin = time.perf_counter()
            for _ in range(way.repeats):
                way.call()
            synchronize(self.xp)
            return (time.perf_counter() - begin) / way.repeats


def _parts(rows: int, count: int) -> list[slice]:
    edges = [rows * part // count for part in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]
