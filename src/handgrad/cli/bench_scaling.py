"""``handgrad bench scaling``: exponents of a training's time by rows, hidden units and threads."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from handgrad.cli.bench_files import check_out, finish
from handgrad.cli.bench_options import OutOption, ThreadsOption, choose_threads
from handgrad.cli.errors import INTERRUPTED
from handgrad.cli.options import JsonOption


def scaling(
    rows: Annotated[
        int,
        typer.Option(
            "--rows",
            metavar="N",
            min=1000,
            help="The most rows: 784 bytes each, written to a temporary folder.",
        ),
    ] = 1_000_000,
    limit: Annotated[
        int,
        typer.Option("--limit", metavar="MB", min=16, help="What a training over mapped rows may allocate."),
    ] = 64,
    threads: ThreadsOption = None,
    out_directory: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time a training by rows (on a disk, past the memory), hidden units and threads; fit exponents."""
    from handgrad.benchmark import measure
    from handgrad.benchmark import report as reports
    from handgrad.benchmark import scaling as scale
    from handgrad.cli.bench_table import print_scaling
    from handgrad.cli.output import console, print_json

    check_out(out_directory)
    out = console(as_json)
    count, fixed = choose_threads(threads)
    settings = measure.Settings((), (), (), threads=count, fixed=fixed)
    record = measure.Record()
    curves: list[dict[str, Any]] = []
    started, begin = datetime.now(UTC), time.perf_counter()
    plan = scale.everything(count, rows, limit * 2**20)
    out.print(f"scaling up to {rows:,} rows ({rows * 788 / 1e9:.1f} GB on a disk)", markup=False)
    try:
        with out.status("measuring") as status:
            scale.measure(plan, curves, record.note, status.update)
        record.complete = True
    except KeyboardInterrupt:
        out.print("interrupted: what was measured until now follows")
    for note in record.notes:
        out.print(f"note: {note}", markup=False, soft_wrap=True)
    document = reports.make(record, settings, started=started, seconds=time.perf_counter() - begin)
    document["scaling"] = curves
    print_scaling(out, document)
    finish(document, out, out_directory, as_json)
    if as_json:
        print_json(document)
    if not record.complete:
        raise typer.Exit(INTERRUPTED)
