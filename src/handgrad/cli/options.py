"""Options that several verbs share, written once."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from handgrad.cli import choices

DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="SPEC",
        help="mnist-subset, a folder with the four IDX files, FILE.npz, FILE.csv, or X.npy,y.npy.",
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or emulator.")
]
KernelsOption = Annotated[
    Path | None,
    typer.Option("--kernels", metavar="DIR", help="Take the kernel sources from DIR (a copy of kernels/)."),
]
TargetOption = Annotated[
    str | None,
    typer.Option("--target", metavar="COLUMN", help="The target column of a .csv, by name or number from 0."),
]
TaskOption = Annotated[
    choices.Task,
    typer.Option("--task", help="Take the targets for labels or for numbers, whatever their dtype."),
]
ClassesOption = Annotated[
    int | None,
    typer.Option("--classes", metavar="N", min=1, help="The number of classes, where some do not occur."),
]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", min=1, help="Use the first N samples of each part: a quick look."),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON object on stdout, everything else on stderr.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only the result, no progress.")]
OptimizerOption = Annotated[choices.Optimizer, typer.Option("--optimizer", help="The update rule.")]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", metavar="N", min=1, help="Samples a step.")]


def kernels_from(folder: Path | None) -> AbstractContextManager[Any]:
    """Take the kernel sources from ``folder`` inside the block, where one is given."""
    from handgrad.kernel import use_kernels

    return use_kernels(folder) if folder is not None else nullcontext()
