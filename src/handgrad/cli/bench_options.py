"""Options that ``bench`` and ``bench scaling`` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from handgrad.cli.errors import wrong

OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Where bench.json, the page and the pictures go. Default: runs/bench-<date>-<time>; "
        "with --json only when named.",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        help="CPU threads, the same for every library. Default: all cores, where each library may take one "
        "instead if that is faster for it.",
    ),
]


def choose_threads(given: int | None) -> tuple[int, bool]:
    """Threads, and whether they are fixed: by the option, else by the environment, else all cores."""
    from handgrad import throughput
    from handgrad.benchmark.report import cores

    if given is not None:
        if given > cores():
            raise wrong("--threads", f"at most {cores()}, the cores that are there", given)
        return given, True
    named = [int(value) for value in throughput.thread_variables().values() if value.isdigit() and int(value)]
    return (min([*named, cores()]), True) if named else (cores(), False)
