"""The acceptance report as Markdown, and its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILES = ("acceptance.json", "acceptance.md")


def write(found: dict[str, Any], folder: Path) -> None:
    """``acceptance.json`` with every raw sample, ``acceptance.md`` with the tables."""
    from handgrad.checkpoint import write_atomically

    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FILES[0], (json.dumps(found, indent=1) + "\n").encode())
    write_atomically(folder / FILES[1], markdown(found).encode())


def markdown(found: dict[str, Any]) -> str:
    """What a person reads first: ceilings, checks, each figure beside its bound, what did not run."""
    top, checks, gpu = found["ceilings"], found["checks"], found["machine"]["gpu"]
    lines = [f"# Acceptance run on {found['device']}", ""]
    if found["emulated"]:
        lines += [
            "**Emulated on the CPU: the run works; its times say nothing about a GPU.**",
            "",
        ]
    products = ", ".join(
        f"{rate / 1e12:.3g} Tflop/s in {name}" for name, rate in top["operations_per_second"].items()
    )
    lines += [
        f"{gpu['arch']}, {gpu['sms']} multiprocessors; {found['seconds']:.0f} s in all.",
        "",
        f"- measured ceilings: copy {top['copy_bytes_per_second'] / 1e9:.3g} GB/s; products {products}",
        f"- kernels against float64 NumPy: {checks['passed']} cases passed, {len(checks['failed'])} failed",
        *(f"  - failed: {line}" for line in checks["failed"]),
        "",
        "| shape | step | precision | µs | bound µs | of bound | launches | gradient off by | note |",
        "|---|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for one in found["figures"]:
        if one["median_seconds"] is None:
            continue
        cells = (
            *(one["shape"], one["name"], one["precision"]),
            f"{one['median_seconds'] * 1e6:.1f}",
            "" if one["bound"] is None else f"{one['bound'] * 1e6:.1f}",
            "" if one["of_bound"] is None else f"{one['of_bound']:.2f}",
            "" if one["launches"] is None else str(one["launches"]),
            "" if one["error"] is None else f"{one['error']:.1e}",
            one["note"],
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## What did not run", ""]
    lines += [f"- {one['what']}: {one['why']}" for one in found["not_run"]] or ["Everything ran."]
    return "\n".join(lines) + "\n"
