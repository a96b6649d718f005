"""``handgrad kernels mutate``: whether the kernel checks notice faults planted in the kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handgrad.cli.errors import FAILED
from handgrad.cli.options import JsonOption, KernelsOption, kernels_from

if TYPE_CHECKING:
    from rich.console import Console

    from handgrad.proof.mutation import Verdict
    from handgrad.proof.mutation_operators import Mutant

MOST_JOBS = 64


def mutate(
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Of the selection; by default the recorded one.")
    ] = None,
    count: Annotated[
        int | None,
        typer.Option("--count", metavar="N", min=1, help="Mutants to select; by default as recorded."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="FILE", help="Of this file alone, linear.cu; may be repeated."),
    ] = None,
    number: Annotated[
        list[int] | None,
        typer.Option(
            "--number", metavar="K", min=1, help="This mutant, instead of a selection; may be repeated."
        ),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the selected mutants, run none.")] = False,
    jobs: Annotated[
        int, typer.Option("--jobs", metavar="N", min=1, max=MOST_JOBS, help="Mutants at a time.")
    ] = 1,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget the results of earlier runs on these sources.")
    ] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Make the verdicts the record that the tests draw from.")
    ] = False,
    kernels: KernelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Plant faults in copies of the kernels and count those that check and sanitize notice, emulated.

    A mutant whose machine code is the same is equivalent; every other one that compiles counts.  Results are
    kept, so a run that is stopped goes on where it was.  Exit code 1 where less than 97 % are caught, or one
    survives for which no reason is on record.
    """
    from handgrad.cli.output import console, print_json
    from handgrad.proof import mutation, mutation_record

    if record and (seed is not None or count is not None or only or number or listed or kernels):
        raise ValueError(
            "--record: expected no --seed, --count, --only, --number, --list or --kernels with it"
        )
    out = console(as_json)
    with kernels_from(kernels):
        chosen = _chosen(
            mutation.all_mutants(),
            mutation.SEED if seed is None else seed,
            count,
            only or (),
            number or (),
        )
        if listed:
            for mutant in chosen:
                out.print(f"{mutant}   {mutant.context}", markup=False, soft_wrap=True)
            if as_json:
                print_json({"mutants": [asdict(mutant) for mutant in chosen]})
            return
        with _progress(out) as progress:
            verdicts = mutation.run(chosen, jobs, progress, fresh)
    if record:
        mutation_record.write(verdicts, mutation.SEED, mutation.COUNT)
    unexplained = _print(out, verdicts, each=bool(number))
    counted = mutation.tally(v for v in verdicts if not v.apart)
    if as_json:
        print_json(_report(verdicts))
    if counted.share < mutation.LEAST_SHARE or unexplained:
        raise typer.Exit(FAILED)


def _chosen(
    mutants: Sequence[Mutant], seed: int, count: int | None, only: Sequence[str], numbers: Sequence[int]
) -> list[Mutant]:
    from handgrad.cli.errors import wrong
    from handgrad.proof import mutation

    for wanted in numbers:
        if wanted > len(mutants):
            raise wrong("--number", f"1 to {len(mutants)}, the mutants there are", wanted)
    if numbers:
        return [mutants[wanted - 1] for wanted in numbers]
    files = sorted({mutant.file for mutant in mutants})
    for file in only:
        if file not in files:
            raise wrong("--only", f"one of {', '.join(files)}", file)
    if only:
        mutants = [mutant for mutant in mutants if mutant.file in only]
    return mutation.select(mutants, seed, mutation.COUNT if count is None else count)


@contextlib.contextmanager
def _progress(out: Console) -> Iterator[Any]:
    """A callback for the run: a bar on a terminal, a line for each mutant elsewhere."""
    if not out.is_terminal:
        yield lambda done, total, verdict: out.print(
            f"{done}/{total}  {verdict.verdict:12}  {verdict.mutant}", markup=False, soft_wrap=True
        )
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, verdict: bar.update(
            task, completed=done, total=total, description=f"{verdict.mutant.file} {verdict.verdict}"
        )


def _print(out: Console, verdicts: Sequence[Verdict], each: bool) -> int:
    """The tables, and a line for each survivor; the number of survivors without a reason."""
    from rich.table import Table

    from handgrad.proof import mutation, mutation_record
    from handgrad.proof.mutation_check import SURVIVED
    from handgrad.proof.mutation_operators import OPERATORS

    if each:
        for verdict in verdicts:
            out.print(f"{verdict.mutant}   {verdict.mutant.context}", markup=False, soft_wrap=True)
            words = ", ".join(filter(None, (verdict.verdict, verdict.by, verdict.detail)))
            out.print(f"      {words} ({verdict.seconds:.1f} s)", markup=False, soft_wrap=True)
    else:
        title = "faults planted in the kernels, emulated"
        table = Table("operator", title=title, title_justify="left")
        for heading in (*mutation.VERDICTS, "share"):
            table.add_column(heading, justify="right")
        for operator in OPERATORS:
            _add_row(table, operator, [v for v in verdicts if v.mutant.operator == operator])
        table.add_section()
        _add_row(table, "all but fence", [v for v in verdicts if not v.apart])
        out.print(table)
    survivors = [v for v in verdicts if v.verdict == SURVIVED and not v.apart]
    unexplained = 0
    for verdict in survivors:
        reason = mutation_record.reason_for(verdict.mutant)
        unexplained += reason is None
        words = "no reason on record" if reason is None else reason.text
        out.print(f"survived {verdict.mutant}: {words}", markup=False, soft_wrap=True)
    return unexplained


def _add_row(table: Any, name: str, verdicts: Sequence[Verdict]) -> None:
    from handgrad.proof import mutation

    found = mutation.tally(verdicts)
    counts = (found.caught, found.survived, found.equivalent, found.not_compiled)
    share = f"{found.share:.1%}" if found.caught + found.survived else ""
    table.add_row(name, *(str(count) for count in counts), share)


def _report(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    from handgrad.proof import mutation, mutation_record

    def counts(chosen: Sequence[Verdict]) -> dict[str, Any]:
        found = mutation.tally(chosen)
        return {**asdict(found), "share": found.share}

    def row(verdict: Verdict) -> dict[str, Any]:
        reason = mutation_record.reason_for(verdict.mutant)
        kept = {**asdict(verdict.mutant), "verdict": verdict.verdict, "by": verdict.by}
        return {
            **kept,
            "detail": verdict.detail,
            "seconds": verdict.seconds,
            "reason": reason and reason.text,
        }

    return {
        "device": "emulator",
        "counted": counts([v for v in verdicts if not v.apart]),
        "fences": counts([v for v in verdicts if v.apart]),
        "mutants": [row(verdict) for verdict in verdicts],
    }
