"""``handgrad kernels sanitize``: search kernels for faults, emulated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handgrad.cli.errors import FAILED, wrong
from handgrad.cli.options import JsonOption, KernelsOption, kernels_from

if TYPE_CHECKING:
    from rich.console import Console

    from handgrad.proof.sanitize import Verdict
    from handgrad.proof.sanitizer_process import Task

WHERE = "emulated on the CPU"


def sanitize(
    kernels: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KERNEL…|FILE.cu]",
            help="Kernels of the project (linear, linear.forward; all by default), or a source of your own.",
        ),
    ] = None,
    launch: Annotated[
        Path | None,
        typer.Option(
            "--launch",
            metavar="FILE.toml",
            help="How the kernels of FILE.cu are launched; by default the .toml of the same name beside it.",
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            "--only", metavar="DETECTORS", help="Some detectors, as in memory,races; all by default."
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option("--seeds", metavar="N", min=0, help="Random orders of threads, with seeds 0 to N - 1."),
    ] = 20,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="SEED", min=0, help="This random order alone: replays a finding."),
    ] = None,
    folder: KernelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search kernels for faults on the emulator: no GPU; exit code 1 if there are any.

    memory: accesses out of bounds or misaligned.  races: between threads of a warp, a block or blocks.
    initialisation: reads of memory that nobody wrote, or of asynchronous copies not waited for.
    synchronisation: divergent barriers, lanes outside their mask, deadlocks.  schedules: results that depend
    on the order of threads.  A FILE.cu of your own needs a launch description: see docs/sanitize.md.
    """
    from handgrad.cli.output import console, print_json
    from handgrad.cli.progress import counted
    from handgrad.proof import sanitizer_process

    out = console(as_json)
    detectors = _detectors(only)
    chosen_seeds = tuple(range(seeds)) if seed is None else (seed,)
    with kernels_from(folder), counted(out) as progress:
        tasks = _tasks(kernels or [], launch, detectors, chosen_seeds)
        sanitizer_process.build(tasks)
        verdicts = sanitizer_process.run_tasks(tasks, progress)
    findings = [finding for verdict in verdicts for finding in verdict.findings]
    _print(out, verdicts, detectors)
    if as_json:
        import dataclasses

        rows = [{**dataclasses.asdict(verdict), "passed": verdict.passed} for verdict in verdicts]
        print_json({"emulated": True, "findings": len(findings), "seeds": chosen_seeds, "verdicts": rows})
    if findings:
        raise typer.Exit(FAILED)


def _detectors(only: str | None) -> tuple[str, ...]:
    from handgrad.proof.sanitize import DETECTORS

    if only is None:
        return DETECTORS
    words = [word.strip() for word in only.split(",") if word.strip()]
    for word in words or [only]:
        if word not in DETECTORS:
            raise wrong("--only", f"some of {', '.join(DETECTORS)}", repr(word))
    return tuple(name for name in DETECTORS if name in words)


def _tasks(
    kernels: Sequence[str], launch: Path | None, detectors: Sequence[str], seeds: Sequence[int]
) -> list[Task]:
    from handgrad.proof import correctness, sanitizer_process

    files = [word for word in kernels if word.endswith((".cu", ".cuh"))]
    if not files:
        if launch is not None:
            raise wrong("--launch", "a FILE.cu for it", "none", "write handgrad kernels sanitize FILE.cu")
        ops = correctness.chosen_ops(kernels or None)
        tasks = sanitizer_process.tasks_of_ops(ops, correctness.chosen_dtypes(None), detectors, seeds)
        return tasks if kernels else tasks + sanitizer_process.tasks_of_headers(detectors, seeds)
    if len(kernels) > 1:
        raise wrong("KERNEL", "one FILE.cu, or kernels of the project", " ".join(kernels))
    source = Path(files[0])
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file")
    description = launch or source.with_suffix(".toml")
    if not description.is_file():
        remedy = "it says how the kernels are launched: see docs/sanitize.md"
        raise wrong("--launch", "a launch description", f"{description}, which is no file", remedy)
    return sanitizer_process.tasks_of_file(source.resolve(), description.resolve(), detectors, seeds)


def _print(out: Console, verdicts: Sequence[Verdict], detectors: Sequence[str]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"sanitizers, {WHERE}", title_justify="left")
    table.add_column("kernel")
    by_kernel: dict[str, dict[str, Verdict]] = {}
    for verdict in verdicts:
        by_kernel.setdefault(verdict.kernel, {})[verdict.detector] = verdict
    columns = [name for name in _order() if any(name in row for row in by_kernel.values())]
    for name in columns:
        table.add_column(name)
    for kernel, row in by_kernel.items():
        table.add_row(escape(kernel), *(_cell(row.get(name)) for name in columns))
    out.print(table)
    count = 0
    for verdict in verdicts:
        for finding in verdict.findings:
            count += 1
            named = verdict.kernel in finding.message
            subject = "" if named else f"{verdict.kernel}: "
            replay = f"; replay it with --seed {finding.seed}" if finding.seed is not None else ""
            text = f"{verdict.detector}: {subject}{finding.message} ({finding.setting}){replay}"
            out.print(f"[red]found[/red] {escape(text)}", soft_wrap=True)
    runs = sum(verdict.runs for verdict in verdicts)
    out.print(f"{count} findings in {len(by_kernel)} kernels, {runs} runs, {WHERE}")


def _order() -> tuple[str, ...]:
    from handgrad.proof.sanitize import DETECTORS

    return DETECTORS


def _cell(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    if verdict.findings:
        return f"[red]{len(verdict.findings)} found[/red]"
    return "not run" if verdict.skipped else "pass"
