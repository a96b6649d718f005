"""The JSON document of a measurement: every raw sample, and what is computed from them.

Table, pictures, page and comparison read this document and nothing else, so that a stored one gives the same
report again.  Medians are over samples; a ratio is the median over the rounds of two contestants' samples of
the same round, with quartiles.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from handgrad import throughput
from handgrad.benchmark import ceilings
from handgrad.benchmark.measure import Products, Record, Series, Settings
from handgrad.benchmark.runners import NAMES
from handgrad.benchmark.workloads import REGIMES, Workload

SCHEMA = "handgrad.bench/2"
OWN = "handgrad"
CLOCK = (
    "time.perf_counter around several repetitions in one process, the device synchronised before and after; "
    "one repetition beforehand is not timed; contestants take turns round by round, each in its own process"
)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, middle, high = np.percentile(np.asarray(values, dtype=float), (25, 50, 75))
    return float(low), float(middle), float(high)


def spread(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """``{"median", "low", "high"}``: low and high are the quartiles."""
    low, middle, high = quartiles(values)
    return {"median": middle * scale, "low": low * scale, "high": high * scale}


def make(record: Record, settings: Settings, *, started: datetime, seconds: float) -> dict[str, Any]:
    """The document; of an unfinished record, what there is."""
    from handgrad import __version__

    measured = [series for series in record.series if series.seconds]
    results = [_result(series) for series in measured]
    products = [_products(found) for found in record.products if found.parts[0]["seconds"]]
    return {
        "schema": SCHEMA,
        "handgrad": __version__,
        "complete": record.complete,
        "started": started.astimezone(UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "clock": CLOCK,
        "settings": {
            "devices": list(settings.devices),
            "peers": [peer.key for peer in settings.peers],
            "threads": settings.threads,
            "threads_fixed": settings.fixed,
            "seconds_per_workload": settings.seconds,
            "rounds": settings.rounds,
            "seed": settings.seed,
        },
        "machine": machine(),
        "notes": list(record.notes),
        "contestants": [
            {
                "peer": one.key,
                "name": NAMES[one.key],
                "device": one.device,
                **one.info,
                "square_product": _square(one.square_seconds),
                "not_measured": one.dropped,
            }
            for one in record.contestants
        ],
        "bandwidth": {device: dict(found) for device, found in record.bandwidth.items()},
        "results": results,
        "ratios": ratios(results),
        "products": products,
        "against_products": against_products(results, products),
        "stages": [
            {
                **_of_workload(workload),
                "device": device,
                "stages": [{"name": name, "seconds": taken} for name, taken in stages.items()],
            }
            for workload, device, stages in record.stages
        ],
        "scaling": [],
    }


def machine() -> dict[str, Any]:
    """The CPU, its cores, the system, and the variables that change a BLAS."""
    return {
        "system": platform.platform(),
        "cpu": throughput.cpu_name(),
        "cores": cores(),
        "blas": throughput.blas(),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if re.match(r"(OPENBLAS|OMP|MKL|GOTO|BLIS|VECLIB|KMP|XLA|TORCHINDUCTOR)_", name)
        },
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _of_workload(workload: Workload) -> dict[str, Any]:
    shape = workload.shape
    return {
        "workload": str(workload),
        "kind": workload.kind,
        "group": workload.group,
        "regime": workload.regime,
        "samples": shape.samples,
        "inputs": shape.inputs,
        "hidden": shape.hidden,
        "outputs": shape.outputs,
        "rows": workload.samples,
        "loss": shape.loss,
        "flops": workload.flops,
        "compulsory_bytes": workload.compulsory_bytes,
    }


def _square(seconds: Sequence[float]) -> dict[str, Any] | None:
    if not seconds:
        return None
    gflops = [2 * ceilings.SQUARE**3 / taken / 1e9 for taken in seconds]
    return {"size": ceilings.SQUARE, "gflops": spread(gflops), "best": max(gflops), "seconds": list(seconds)}


def _result(series: Series) -> dict[str, Any]:
    workload = series.workload
    low, middle, high = quartiles(series.seconds)
    return {
        **_of_workload(workload),
        "peer": series.key,
        "name": NAMES[series.key],
        "device": series.device,
        "measured": True,
        "milliseconds": spread(series.seconds, 1e3),
        "samples_per_second": {
            "median": workload.samples / middle,
            "low": workload.samples / high,
            "high": workload.samples / low,
        },
        "gflops": workload.flops / middle / 1e9,
        "square_gflops": (_square(series.square_seconds) or {}).get("gflops", {}).get("median"),
        "gradient_error": series.gradient_error,
        "final_loss": series.loss,
        "threads": series.threads,
        "repetitions": series.repetitions,
        "seconds": list(series.seconds),
    }


def _products(found: Products) -> dict[str, Any]:
    parts = [
        {**part, "milliseconds": spread(part["seconds"], 1e3)} for part in found.parts if part["seconds"]
    ]
    together = np.sum([part["seconds"] for part in parts], axis=0)
    return {
        **_of_workload(found.workload),
        "device": found.device,
        "parts": parts,
        "milliseconds": spread(together, 1e3),
        "seconds": together.tolist(),
    }


def paired(of: Sequence[float], against: Sequence[float]) -> dict[str, float]:
    """Quartiles of ``against / of`` over the rounds that both have: how many times as fast ``of`` is."""
    both = min(len(of), len(against))
    return spread(np.asarray(against[:both], float) / np.asarray(of[:both], float))


def ratios(results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """This library against each peer on the same device, and its GPUs against its CPU, by workload."""
    found = []
    results = list(results)
    for own in results:
        if own["peer"] != OWN:
            continue
        for other in results:
            same_device = other["device"] == own["device"] and other["peer"] != OWN
            cpu = other["peer"] == OWN and other["device"] == "cpu" != own["device"]
            if other["workload"] != own["workload"] or other["group"] != own["group"]:
                continue
            if same_device or cpu:
                found.append(
                    {
                        "workload": own["workload"],
                        "group": own["group"],
                        "device": own["device"],
                        "against": other["peer"],
                        "against_device": other["device"],
                        "times_as_fast": paired(own["seconds"], other["seconds"]),
                        "square_gflops": [own["square_gflops"], other["square_gflops"]],
                    }
                )
    return found


def against_products(
    results: Sequence[Mapping[str, Any]], products: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """A step's time in units of its bare matrix products, and its rate as a share of the square product's."""
    found = []
    for bare in products:
        for own in results:
            same = own["workload"] == bare["workload"] and own["device"] == bare["device"]
            if own["peer"] != OWN or own["group"] != "shapes" or not same:
                continue
            share = own["gflops"] / own["square_gflops"] if own["square_gflops"] else None
            found.append(
                {
                    "workload": own["workload"],
                    "device": own["device"],
                    "step_over_products": paired(bare["seconds"], own["seconds"]),
                    "share_of_square_rate": share,
                }
            )
    return found


def where(document: Mapping[str, Any]) -> str:
    """The machine in a line: CPU, cores, BLAS with its kernels, GPUs."""
    found = document["machine"]
    libraries = ", ".join(
        f"{library['internal_api']} {library['version']} ({library['architecture']} kernels)"
        for library in found["blas"]
    )
    gpus = {one["device"]: one["gpu"] for one in document["contestants"] if one.get("gpu")}
    named = "".join(f"; {device}: {name}" for device, name in gpus.items())
    return f"{found['cpu']}, {count(found['cores'], 'core')}, {libraries or 'BLAS unknown'}{named}"


def ms(value: float) -> str:
    """Milliseconds in three digits, or in as many as there are before the point."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def count(number: int, noun: str) -> str:
    """As "1 thread" or "2 threads"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def regime_words(regime: str) -> str:
    """As "R1, one-kernel step: …"; "" for none."""
    return f"{regime}, {REGIMES[regime]}" if regime else ""
