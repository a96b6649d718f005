"""``handgrad evaluate``: loss, accuracy, accuracy of each class, and the confusion matrix of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from handgrad.cli.errors import wrong
from handgrad.cli.options import DeviceOption, JsonOption, KernelsOption, LimitOption, kernels_from

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import Console


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder or a .safetensors file.")],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="SPEC",
            help="As for train. Its test part where it has one, else all of it. The columns of a .csv are "
            "found by their names in the training where both have a header. Default: the run's own data.",
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture", metavar="FILE", help="The confusion matrix as .png. Default: RUN/confusion.png."
        ),
    ] = None,
    device: DeviceOption = "auto",
    limit: LimitOption = None,
    kernels: KernelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Loss, accuracy and confusion matrix of a run.

    The picture of the confusion matrix goes into the run's folder.
    """
    from handgrad import checkpoint, plots, training
    from handgrad.cli import run_directory
    from handgrad.cli.data import labels_for, test_part
    from handgrad.cli.output import console, print_json, short_path

    out = console(as_json)
    if picture is not None and not picture.absolute().parent.is_dir():
        raise wrong("--picture", "a file in a folder that exists", picture, f"mkdir -p {picture.parent}")
    directory, weights = run_directory.find(run, "RUN")
    config = directory.read_config() if directory is not None else {}
    if data is None and not config:
        raise wrong(
            "--data", "a data set with a bare weights file", "none", "give --data, or the run's folder"
        )
    with kernels_from(kernels):
        net = checkpoint.load(weights, device=device)
        if picture is not None and net.loss_name == "mse":
            expected = "none with a regression, which has no confusion matrix"
            raise wrong("--picture", expected, picture, "leave it out")
        samples, which = test_part(net, data, config, streamed=True)
        if limit is None and data is None:
            limit = config["data"]["limit"]
        samples = samples if limit is None else samples.head(limit)
        with labels_for(net):  # of a stream they are read here
            found = training.evaluate(net, samples)
    report: dict[str, Any] = {
        "run": str(run),
        "data": which,
        "device": str(net.device),
        "samples": found.samples,
        "loss": found.loss,
        "accuracy": found.accuracy,
        "class_accuracy": None,
        "confusion": None,
        "picture": None,
    }
    if found.confusion is not None:
        if picture is None and directory is not None:
            picture = directory.path / "confusion.png"
        if picture is not None:
            plots.confusion_matrix(found.confusion, picture)
        report["class_accuracy"] = class_accuracy(found.confusion)
        report["confusion"] = found.confusion
        report["picture"] = picture
    accuracy = "" if found.accuracy is None else f"accuracy {found.accuracy:.2%}, "
    out.print(
        f"{accuracy}loss {found.loss:.4f} on {found.samples:,} samples ({which}), device {net.device}",
        markup=False,
        soft_wrap=True,
    )
    if found.confusion is not None:
        _print_classes(out, found.confusion)
    if report["picture"] is not None:
        out.print(f"confusion matrix: {short_path(Path(report['picture']))}", markup=False, soft_wrap=True)
    if as_json:
        print_json(report)


def class_accuracy(confusion: NDArray[np.int64]) -> list[float | None]:
    """The share of each true class that was found; None where it does not occur."""
    totals = confusion.sum(axis=1)
    return [
        float(right / total) if total else None
        for right, total in zip(np.diagonal(confusion), totals, strict=True)
    ]


def _print_classes(out: Console, confusion: NDArray[np.int64]) -> None:
    from rich.table import Table

    table = Table()
    for heading in ("class", "samples", "accuracy", "most often taken for"):
        table.add_column(heading, justify="right")
    for true, share in enumerate(class_accuracy(confusion)):
        wrong_counts = confusion[true].copy()
        wrong_counts[true] = 0
        worst = int(wrong_counts.argmax())
        mistaken = f"{worst} ({wrong_counts[worst]}×)" if wrong_counts[worst] else ""
        shown = "" if share is None else f"{share:.2%}"
        table.add_row(str(true), f"{confusion[true].sum():,}", shown, mistaken)
    out.print(table)
