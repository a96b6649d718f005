"""``handgrad kernels profile --shape``: one step of a plan, counted beside what the plan says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from handgrad.proof.plan_traffic import PlanProfile


def show(out: Console, profiles: Sequence[PlanProfile], as_json: bool) -> None:
    """Tables, and with ``as_json`` the object on stdout."""
    from handgrad.cli.output import print_json
    from handgrad.proof import traffic

    for one in profiles:
        _print(out, one)
    if as_json:
        print_json({"schema": traffic.SCHEMA, "emulated": True, "steps": [one.as_row() for one in profiles]})


def _print(out: Console, one: PlanProfile) -> None:
    from rich import box
    from rich.table import Table

    from handgrad.plans import paths

    out.print(str(one.plan), markup=False, highlight=False, soft_wrap=True)
    out.print(
        f"\none step of {one.shape} emulated on the CPU: {len(one.launches)} launches, the plan says "
        f"{len(one.plan.kernels)}",
        soft_wrap=True,
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("  buffer")
    for heading in ("compulsory", "expected", "requested", "distinct"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in one.buffers.items():
        differs = row.expected is not None and row.requested != row.expected
        requested = f"[yellow]{row.requested:,}[/yellow]" if differs else f"{row.requested:,}"
        planned = ("–" if count is None else f"{count:,}" for count in (row.compulsory, row.expected))
        table.add_row(f"  {name}", *planned, requested, f"{row.distinct:,}")
    out.print(table)
    if any(row.expected is None for row in one.buffers.values()):
        once = "moved once an epoch, or " if one.plan.path == paths.EPOCH else ""
        out.print(f"  –: {once}a few numbers for each block: not in the plan's formula\n", soft_wrap=True)
