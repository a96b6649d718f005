"""``handgrad predict``: a run's predictions for new data."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handgrad.cli.errors import wrong
from handgrad.cli.options import (
    BatchSizeOption,
    DeviceOption,
    JsonOption,
    KernelsOption,
    LimitOption,
    kernels_from,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from handgrad.network import MLP

CLASS_LOSSES = ("cross_entropy", "hinge")


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder or a .safetensors file.")],
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="What --data takes, or features alone: X.npy, a .npz with X, a .csv without target, whose "
            "columns are found by their names in the training where both have a header. "
            "Of data with a test part, that part is taken.",
        ),
    ],
    out_file: Annotated[
        Path,
        typer.Option("--out", metavar="FILE", help="A .csv or a .npy; an earlier file is replaced."),
    ] = Path("predictions.csv"),
    batch_size: BatchSizeOption = 1024,
    device: DeviceOption = "auto",
    limit: LimitOption = None,
    kernels: KernelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run's predictions for new data.

    One line a sample, in the order of DATA. Classes: the class and each class's
    probability (the score, for hinge). Regression: the values. A .npy
    holds the probabilities, scores or values as one array (samples, outputs).
    """
    from handgrad import checkpoint
    from handgrad.cli import data as samples_of
    from handgrad.cli import run_directory
    from handgrad.cli.output import console, print_json, short_path
    from handgrad.datasets.numpy_files import npy_bytes

    out = console(as_json)
    if out_file.suffix not in (".csv", ".npy"):
        raise wrong("--out", "a name that ends in .csv or .npy", out_file)
    if not out_file.absolute().parent.is_dir():
        raise wrong("--out", "a file in a folder that exists", out_file, f"mkdir -p {out_file.parent}")
    directory, weights = run_directory.find(run, "RUN")
    with kernels_from(kernels):
        net = checkpoint.load(weights, device=device)
        config = directory.read_config() if directory is not None and directory.config.is_file() else {}
        features = samples_of.features(data, net.sizes[0], config)
        if limit is not None:
            features = features.head(limit)
        values = samples_of.predictions(net, features, batch_size)
    content = as_csv(values, net).encode() if out_file.suffix == ".csv" else npy_bytes(values)
    checkpoint.write_atomically(out_file, content)
    report = {
        "run": str(run),
        "data": data,
        "device": str(net.device),
        "samples": len(values),
        "out": str(out_file),
    }
    if as_json:
        print_json(report)
    else:
        out.print(f"{len(values):,} predictions in {short_path(out_file)}", markup=False, soft_wrap=True)


def as_csv(values: NDArray[Any], net: MLP) -> str:
    """A line of names, then a line a sample: its number, its class, and every output."""
    classes = net.loss_name in CLASS_LOSSES
    prefix = {"cross_entropy": "probability_", "bce": "probability_", "hinge": "score_"}.get(
        net.loss_name, "y"
    )
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(
        ["sample", *(["class"] if classes else []), *(f"{prefix}{j}" for j in range(values.shape[1]))]
    )
    for number, row in enumerate(values):
        chosen = [int(row.argmax())] if classes else []
        table.writerow([number, *chosen, *(f"{value:.9g}" for value in row)])
    return text.getvalue()
