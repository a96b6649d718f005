"""``handgrad kernels sass``: what the kernels' machine code holds, without a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from handgrad.cli.errors import FAILED
from handgrad.cli.options import JsonOption, KernelsOption, kernels_from

if TYPE_CHECKING:
    from rich.console import Console

    from handgrad.proof.figures import Figures

SCHEMA = "handgrad.sass/1"


def sass(
    kernel: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KERNEL]...",
            help="An op (linear, linear.forward), a kernel (linear_forward) or a whole expression; "
            "by default all that are watched.",
            show_default=False,
        ),
    ] = None,
    arch: Annotated[
        list[str] | None,
        typer.Option(
            "--arch", metavar="ARCH", help="sm_75, sm_80, ..., sm_120; may be repeated; all by default."
        ),
    ] = None,
    kernels: KernelsOption = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Compare with the snapshot; exit code 1 where a budget is exceeded."),
    ] = False,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Write the snapshot anew and show what changed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Tabulate registers, spills, occupancy and instructions, as NVRTC and ptxas make them.

    Compiled for each architecture with the flags of a launch, and disassembled: needs neither GPU, driver nor
    nvcc, but the extra machine-code.  Nothing here is measured.
    """
    from handgrad.cli.output import console, print_json
    from handgrad.proof import budgets
    from handgrad.proof.figures import measure

    archs = budgets.check_archs(arch or [])
    chosen = budgets.select(kernel or [])
    if refresh and (kernel or arch or kernels):
        raise ValueError(
            "--refresh: expected neither KERNEL, --arch nor --kernels; the snapshot holds them all"
        )
    out = console(as_json)
    with kernels_from(kernels), _progress(out) as progress:
        rows = measure(chosen, archs, progress=progress)
    for architecture in archs:
        _print_table(out, [row for row in rows if row.arch == architecture], architecture)
    if as_json:
        print_json({"schema": SCHEMA, "kernels": [row.as_row() for row in rows]})
    if any(row.occupancy is None for row in rows):
        out.print("occupancy: unknown without a C++ compiler; see `handgrad doctor`", soft_wrap=True)
    if refresh:
        _refresh(out, rows)
    elif check:
        _check(out, rows)


def _check(out: Console, rows: Sequence[Figures]) -> None:
    from rich.markup import escape

    from handgrad.proof import budgets
    from handgrad.proof.machine_code import load_nvrtc

    found = budgets.regressions(rows, budgets.read_snapshot())
    taken, here = budgets.snapshot_nvrtc(), load_nvrtc().version
    if taken != here:
        out.print(f"the snapshot was taken with NVRTC {taken}, this is {here}: register counts may differ")
    for line in found:
        out.print(f"[red]failed[/red] {escape(line)}", soft_wrap=True)
    for (kernel, arch), reason in budgets.SPILLS_LET_PASS.items():
        if any((row.kernel, row.arch) == (kernel, arch) for row in rows):
            out.print(f"let pass {escape(kernel)} on {arch}: {escape(reason)}", soft_wrap=True)
    out.print(f"{len(rows)} compared with the snapshot, {len(found)} over budget")
    if found:
        raise typer.Exit(FAILED)


def _refresh(out: Console, rows: Sequence[Figures]) -> None:
    from rich.markup import escape

    from handgrad.cli.output import short_path
    from handgrad.proof import budgets

    changes = budgets.differences(rows, budgets.read_snapshot())
    budgets.write_snapshot(rows)
    for line in changes:
        out.print(escape(line), soft_wrap=True)
    out.print(f"{short_path(budgets.SNAPSHOT)}: {len(rows)} rows, {len(changes)} changed", soft_wrap=True)


@contextlib.contextmanager
def _progress(out: Console) -> Iterator[Callable[[int, int], None] | None]:
    """A callback ``(done, total)`` that moves a bar; nothing where the output is no terminal."""
    if not out.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("compiling"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_table(out: Console, rows: Sequence[Figures], arch: str) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from handgrad.proof import budgets

    table = Table(
        title=f"machine code for {arch}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("kernel", overflow="fold")
    for heading in (
        *("regs", "spill\nst/ld", "local\nst/ld", "shared", "occu-\npancy", "FFMA", "DFMA", "HMMA"),
        *("LDG\n128", "LDS\n128", "BAR", "atomics\n(float)", "FMA:LDS"),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        over = bool(budgets.breaches(row))
        name = escape(row.kernel)
        table.add_row(
            f"[red]{name}[/red]" if over else name,
            str(row.registers),
            _pair(row.spill_stores, row.spill_loads),
            _pair(row.local_stores, row.local_loads),
            str(row.shared_bytes),
            "-" if row.occupancy is None else f"{row.occupancy:.0%}",
            *map(
                str, (row.ffma, row.dfma, row.hmma, row.global_loads_128, row.shared_loads_128, row.barriers)
            ),
            f"{row.atomics} ([red]{row.float_atomics}[/red])" if row.float_atomics else f"{row.atomics} (0)",
            "-" if row.fma_per_shared_word is None else f"{row.fma_per_shared_word:.2f}",
        )
    out.print(table)


def _pair(stores: int, loads: int) -> str:
    return f"[red]{stores}/{loads}[/red]" if stores or loads else "0"
