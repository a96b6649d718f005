"""``handgrad kernels``: prove the kernels."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from handgrad.cli import choices, mutate, profile, sanitize, sass, tune
from handgrad.cli.errors import FAILED
from handgrad.cli.options import DeviceOption, JsonOption, KernelsOption, kernels_from

if TYPE_CHECKING:
    from rich.console import Console

    from handgrad.proof.correctness import Case

app = typer.Typer(help="Check the CUDA kernels.", no_args_is_help=True, rich_markup_mode=None)

MOST_FAILURES_LISTED = 20


@app.command("check")
def check(
    device: DeviceOption = "auto",
    op: Annotated[
        list[str] | None,
        typer.Option("--op", metavar="OP", help="This op alone: linear, or linear.forward; may be repeated."),
    ] = None,
    dtype: Annotated[
        list[choices.Dtype] | None,
        typer.Option("--dtype", help="This type alone; may be repeated."),
    ] = None,
    kernels: KernelsOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small part of the grid.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare every kernel with the float64 NumPy reference; exit code 1 if any case fails.

    Runs over a grid of shapes, dtypes and extremes, elementwise within each kernel's rounding bound, with
    poisoned outputs and canaries past their ends.  Without a GPU the same kernels run emulated.
    """
    from handgrad.cli.output import console, plain, print_json
    from handgrad.proof import correctness

    out = console(as_json)
    target = _device_with_kernels(device)
    with kernels_from(kernels), _progress(out) as progress:
        cases = correctness.run(target, ops=op or None, dtypes=dtype or None, quick=quick, progress=progress)
    failed = [case for case in cases if not case.passed]
    _print_table(out, cases, failed, target)
    if as_json:
        rows = [
            {
                "op": case.op,
                "kernel": case.kernel,
                "dtype": str(case.dtype),
                "shape": plain(case.shape),
                "error": case.error,
                "bound": case.bound,
                "passed": bool(case.passed),
                "detail": case.detail,
            }
            for case in cases
        ]
        print_json(
            {"device": target, "passed": len(cases) - len(failed), "failed": len(failed), "cases": rows}
        )
    if failed:
        raise typer.Exit(FAILED)


def _device_with_kernels(device: str) -> str:
    """The device to check on, by name: "auto" without a GPU is the emulator, since NumPy runs no kernels."""
    from handgrad.arrays import cuda_problem, resolve_device
    from handgrad.cli.errors import wrong

    if device == "cpu":
        raise wrong("--device", "cuda, cuda:N or emulator", device, "the CPU's own path runs no kernels")
    if device == "auto":
        device = "emulator" if cuda_problem() else "cuda"
    return str(resolve_device(device))


@contextlib.contextmanager
def _progress(out: Console) -> Iterator[Callable[[int, int, str], None] | None]:
    """A callback ``(done, total, case)`` that moves a bar; nothing where the output is no terminal."""
    if not out.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, case: bar.update(task, completed=done, total=total, description=case)


def _print_table(out: Console, cases: Sequence[Case], failed: Sequence[Case], device: str) -> None:
    from rich.markup import escape
    from rich.table import Table

    where = "emulator (the kernels emulated on the CPU)" if device == "emulator" else device
    table = Table(title=f"kernels against float64 NumPy, on {where}", title_justify="left")
    for heading in ("op", "kernel", "dtype"):
        table.add_column(heading)
    for heading in ("cases", "failed", "worst error/bound"):
        table.add_column(heading, justify="right")
    groups: dict[tuple[str, str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.op, case.kernel, str(case.dtype)), []).append(case)
    for (op, kernel, dtype), members in groups.items():
        worst = max(members, key=_share_of_bound)
        misses = sum(not case.passed for case in members)
        table.add_row(
            op,
            escape(kernel),
            dtype,
            str(len(members)),
            f"[red]{misses}[/red]" if misses else "0",
            f"{_share_of_bound(worst):.3f}",
        )
    out.print(table)
    for case in failed[:MOST_FAILURES_LISTED]:
        shape = " ".join(f"{name}={size}" for name, size in case.shape.items())
        text = (
            f"{case.op} {case.dtype} {shape}: error {case.error:.3e}, bound {case.bound:.3e}; {case.detail}"
        )
        out.print(f"[red]failed[/red] {escape(text)}", soft_wrap=True)
    if len(failed) > MOST_FAILURES_LISTED:
        out.print(f"and {len(failed) - MOST_FAILURES_LISTED} more; --json lists every case")
    out.print(f"{len(cases) - len(failed)} passed, {len(failed)} failed on {where}")


def _share_of_bound(case: Case) -> float:
    """error / bound; a case that failed otherwise (nan, an unwritten output) counts as infinite."""
    if not case.passed and not case.error > case.bound:
        return math.inf
    if case.error == 0:
        return 0.0
    return case.error / case.bound if case.bound else math.inf


app.command("profile")(profile.profile)
app.command("sass")(sass.sass)
app.command("sanitize")(sanitize.sanitize)
app.command("mutate")(mutate.mutate)
app.command("tune")(tune.tune)
