"""A report of ``handgrad bench`` made from invented samples, as a measurement would make it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np

from handgrad.benchmark import measure, report, runners, scaling, stages, workloads


class Silent:
    """A session that nobody asks."""


def document(speed: float = 1.0, seed: int = 0) -> dict[str, Any]:
    """Every part of a report; ``speed``: this library is so many times as fast as in the document with 1."""
    rng = np.random.default_rng(seed)
    record = measure.Record(notes=["invented figures"], complete=True)
    rates = {
        "handgrad": 60e9 * speed,
        "torch-eager": 30e9,
        "torch-compiled": 28e9,
        "jax": 45e9,
        "sklearn": 15e9,
    }
    everything = [
        *workloads.SHAPES, *workloads.epochs(), *workloads.batch_sweep(), *workloads.hidden_sweep(),
    ]  # fmt: skip
    for key in rates:
        record.contestants.append(
            measure.Contestant(
                key, "cpu", Silent(),
                {
                    "versions": {key: "1.0"},
                    "blas": [
                        {"internal_api": "blas", "version": "1", "num_threads": 2, "architecture": "AVX512"}
                    ],
                },
                [0.09 + 0.001 * k for k in range(5)],
            )
        )  # fmt: skip
    for workload in everything:
        for peer in runners.PEERS:
            if not peer.takes_part(workload):
                continue
            middle = workload.flops / rates[peer.key] + 2e-5 * workload.steps
            record.series.append(
                measure.Series(
                    workload, peer.key, "cpu", 1e-7, 2, 3, list(middle * rng.uniform(0.95, 1.05, 7)),
                    [0.09, 0.091], 2.3,
                )
            )  # fmt: skip
    for workload in workloads.SHAPES:
        parts = [
            {
                "name": name, "shape": [1, 1, 1], "flops": workload.flops // 5, "arrangement": "as written",
                "seconds": list(workload.flops / 5 / 7e10 * rng.uniform(0.95, 1.05, 7)),
            }
            for name in ("X W1", "A1 W2", "A1ᵀ dZ2", "dZ2 W2ᵀ", "Xᵀ dZ1")
        ]  # fmt: skip
        record.products.append(measure.Products(workload, "cpu", parts))
        record.stages.append(
            (workload, "cpu", {name: list(rng.uniform(1e-4, 1e-3, 5)) for name in stages.STAGES})
        )
    record.bandwidth["cpu"] = {"copy": 20e9, "read": 25e9}
    settings = measure.Settings(("cpu",), runners.PEERS, tuple(everything), threads=2)
    found = report.make(record, settings, started=datetime(2026, 1, 2, tzinfo=UTC), seconds=60.0)
    found["scaling"] = [curve("rows", 1.0), curve("hidden", 0.9), curve("threads", -0.9)]
    return found


def curve(over: str, exponent: float) -> dict[str, Any]:
    """t = x to the power of ``exponent`` ms, without noise."""
    values = {"rows": scaling.ROWS, "hidden": scaling.HIDDEN, "threads": (1, 2, 4)}[over]
    made = scaling._curve(over, "a step of 8,192×784→512→10")
    made["points"] = [
        scaling._point(x, [1e-3 * x**exponent * k for k in (0.99, 1.0, 1.01)], peak_growth=5e6)
        for x in values
    ]
    if over != "threads":
        made["fit"] = scaling.fit(made["points"], values[0])
    if over == "rows":
        made |= {
            "limit": 64 * 2**20, "part_bytes": 25e6, "row_bytes": 784,
            "in_memory": {"rows": 100_000, "mapped": [1.0, 1.1], "in_memory": [1.0, 1.0]},
        }  # fmt: skip
    return made
