"""Two reports beside each other: what became faster or slower by more than the spread, what else differs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from handgrad.benchmark.report import SCHEMA
from handgrad.benchmark.report_form import REPORT, misfit

Row = Mapping[str, Any]

SURE = 0.95
KEY = ("group", "workload", "peer", "device")


def load(path: Path) -> dict[str, Any]:
    """The document in ``path`` (bench.json, or the folder that holds it); ``ValueError`` where it is none."""
    file = path / "bench.json" if path.is_dir() else path
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file}: expected the JSON that handgrad bench writes, got no JSON ({str(error)[:200]})"
        ) from None
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        raise ValueError(
            f"{file}: expected a report of schema {SCHEMA}, got {str(schema)[:60]}; run handgrad bench again"
        )
    problem = misfit(found, REPORT)
    if problem:
        raise ValueError(f"{file}: not as handgrad bench writes it: {problem}; run handgrad bench again")
    return dict(found)


def compare(before: Row, after: Row) -> dict[str, Any]:
    """What both have, row by row, what only one has, and in what machine, versions and settings they differ.

    ``times_as_fast``: before ÷ after, of the medians; ``low`` and ``high`` of the quartiles farthest apart.
    ``change`` is faster or slower only where at least :data:`SURE` of all pairs of a sample before and one
    after say so: of two sets of seven samples without any difference, one in 400 would.
    """
    old = {tuple(row[key] for key in KEY): row for row in before["results"]}
    new = {tuple(row[key] for key in KEY): row for row in after["results"]}
    return {
        "schema": "handgrad.bench.compare/1",
        "rows": [_compared(old[key], new[key]) for key in old if key in new],
        "only_before": [dict(zip(KEY, key, strict=True)) for key in old if key not in new],
        "only_after": [dict(zip(KEY, key, strict=True)) for key in new if key not in old],
        "differences": differences(before, after),
    }


def _compared(old: Row, new: Row) -> dict[str, Any]:
    a, b = old["milliseconds"], new["milliseconds"]
    faster = float(np.mean(np.array(old["seconds"])[:, None] > np.array(new["seconds"])))
    slower = float(np.mean(np.array(old["seconds"])[:, None] < np.array(new["seconds"])))
    change = "faster" if faster >= SURE else "slower" if slower >= SURE else "within the spread"
    return {
        **{key: old[key] for key in KEY},
        "name": old["name"],
        "before_milliseconds": a,
        "after_milliseconds": b,
        "times_as_fast": {
            "median": a["median"] / b["median"],
            "low": a["low"] / b["high"],
            "high": a["high"] / b["low"],
        },
        "change": change,
        "threads": [old.get("threads"), new.get("threads")],
    }


def differences(before: Row, after: Row) -> list[str]:
    """In words, whatever makes the two reports hard to compare."""
    found = []
    for name, old, new in (
        *((key, before["machine"].get(key), after["machine"].get(key)) for key in ("cpu", "cores", "system")),
        ("environment", before["machine"]["environment"], after["machine"]["environment"]),
        *((key, before["settings"][key], after["settings"][key]) for key in ("threads", "rounds", "seed")),
        ("seconds a workload", *(d["settings"]["seconds_per_workload"] for d in (before, after))),
    ):
        if old != new:
            found.append(f"{name}: {old} before, {new} after")
    infos = [
        {(one["peer"], one["device"]): one for one in document["contestants"]} for document in (before, after)
    ]
    for key, old in infos[0].items():
        new = infos[1].get(key)
        if new is None:
            continue
        for what in ("versions", "gpu"):
            if old.get(what) != new.get(what):
                found.append(f"{old['name']} on {key[1]}: {old.get(what)} before, {new.get(what)} after")
        kernels = [
            [
                (library["internal_api"], library.get("version"), library.get("architecture"))
                for library in one.get("blas") or ()
            ]
            for one in (old, new)
        ]
        if kernels[0] != kernels[1]:
            found.append(f"{old['name']} on {key[1]}: BLAS {kernels[0]} before, {kernels[1]} after")
        rates: list[Any] = [(one.get("square_product") or {}).get("gflops") for one in (old, new)]
        if all(rates) and (rates[0]["low"] > rates[1]["high"] or rates[0]["high"] < rates[1]["low"]):
            found.append(
                f"{old['name']} on {key[1]}: its own square product ran at {rates[0]['median']:.0f} GFLOP/s "
                f"before and {rates[1]['median']:.0f} after: the machine was not in the same state"
            )
    for word, document in (("before", before), ("after", after)):
        if not document["complete"]:
            found.append(f"the measurement {word} was interrupted")
    return found
