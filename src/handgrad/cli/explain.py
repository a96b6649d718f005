"""``handgrad explain``: what one forward and one backward pass do, quantity by quantity, with warnings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handgrad.cli import choices
from handgrad.cli.errors import wrong
from handgrad.cli.options import (
    ClassesOption,
    DeviceOption,
    JsonOption,
    KernelsOption,
    TargetOption,
    TaskOption,
    kernels_from,
)

if TYPE_CHECKING:
    from rich.console import Console

    from handgrad.datasets import Dataset
    from handgrad.gradients.explain import Explanation
    from handgrad.network import MLP


def explain(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]", help="A run's folder or a .safetensors file. Without: a new network."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="SPEC",
            help="As for train. Its test part where it has one, else all of it. Default: the run's own data; "
            "without a run mnist-subset.",
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", metavar="N", min=1, help="Look at the first N samples.")
    ] = 256,
    hidden: Annotated[
        list[str] | None,
        typer.Option("--hidden", metavar="H", help="Of a new network: 256,64, or none. Default: 128."),
    ] = None,
    activation: Annotated[
        choices.Activation | None, typer.Option("--activation", help="Of a new network. Default: relu.")
    ] = None,
    output: Annotated[
        choices.Activation | None, typer.Option("--output", help="Of a new network. Default: identity.")
    ] = None,
    loss: Annotated[
        choices.Loss | None,
        typer.Option("--loss", help="Of a new network. Default: cross_entropy for labels, mse for numbers."),
    ] = None,
    dtype: Annotated[
        choices.Dtype | None, typer.Option("--dtype", help="Of a new network. Default: float32.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of a new network's weights.")] = 0,
    target: TargetOption = None,
    task: TaskOption = choices.Task.auto,
    classes: ClassesOption = None,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE", help="The network as .png. Default: RUN/explain.png."),
    ] = None,
    device: DeviceOption = "auto",
    kernels: KernelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Explain a forward and a backward pass.

    Every intermediate with its formula, shape, norm, share of dead or saturated units,
    and gradient; warnings with what to try; a picture with values in green, gradients in red.
    """
    from handgrad.cli.output import console, print_json, short_path
    from handgrad.gradients.explain import explain as explain_pass

    out = console(as_json)
    if picture is not None and not picture.absolute().parent.is_dir():
        raise wrong("--picture", "a file in a folder that exists", picture, f"mkdir -p {picture.parent}")
    words: dict[str, Any] = {
        "hidden": hidden,
        "activation": activation,
        "output": output,
        "loss": loss,
        "dtype": dtype,
    }
    reading: dict[str, Any] = {"target": target, "task": task, "classes": classes}
    with kernels_from(kernels):
        if run is None:
            net, chosen, which = _new_network(data, words, reading, device, seed)
        else:
            net, chosen, which, folder = _network_of(run, data, words, reading, device)
            if picture is None and folder is not None:
                picture = folder / "explain.png"
        explained = explain_pass(net, chosen.head(samples))
    if picture is not None:
        explained.draw(picture)
    _print(out, explained, which, str(net.device))
    if picture is not None:
        out.print(f"picture: {short_path(picture)}", markup=False, soft_wrap=True)
    if as_json:
        where = {"run": run, "data": which, "device": str(net.device), "picture": picture}
        print_json(where | explained.to_dict())


def _new_network(
    data: str | None, words: dict[str, Any], reading: dict[str, Any], device: str, seed: int
) -> tuple[MLP, Dataset, str]:
    from handgrad.cli.data import training_data
    from handgrad.cli.network import build_network

    spec = data or "mnist-subset"
    split = training_data(spec, limit=None, test_fraction=0.0, **reading)  # nothing is trained
    net = build_network(split.train, **words, device=device, seed=seed)
    part, which = (split.test, "the test part of") if len(split.test) else (split.train, "all samples of")
    return net, part, f"{which} {spec}"


def _network_of(
    run: Path, data: str | None, words: dict[str, Any], reading: dict[str, Any], device: str
) -> tuple[MLP, Dataset, str, Path | None]:
    from handgrad import checkpoint
    from handgrad.cli import run_directory
    from handgrad.cli.data import test_part

    given = [name for name, value in words.items() if value is not None]
    given += [name for name, value in reading.items() if value not in (None, choices.Task.auto)]
    if given:
        raise wrong(f"--{given[0]}", "none with a run, which has its own", given[0], "leave it out")
    directory, weights = run_directory.find(run, "RUN")
    config = directory.read_config() if directory is not None else {}
    if data is None and not config:
        remedy = "give --data, or the run's folder"
        raise wrong("--data", "a data set with a bare weights file", "none", remedy)
    net = checkpoint.load(weights, device=device)
    chosen, which = test_part(net, data, config, streamed=False)
    return net, chosen, which, directory.path if directory is not None else None


def _print(out: Console, explained: Explanation, which: str, device: str) -> None:
    from rich import box
    from rich.table import Table

    from handgrad.gradients.explain import COLUMNS

    head = f"{explained.network}; loss {explained.loss:.4f} on {explained.samples:,} samples ({which}), "
    out.print(head + f"device {device}", markup=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1))
    for n, heading in enumerate(COLUMNS):
        numeric, backward = heading in ("norm", "rms"), n > COLUMNS.index("backward")
        style = ("red" if backward else "green") if numeric else None
        table.add_column(heading, justify="right" if numeric else "left", style=style, overflow="fold")
    for row in explained.rows():
        table.add_row(*row)
    out.print(table)
    for warning in explained.warnings:
        out.print(f"{warning.id} ({warning.where}): ", style="bold yellow", end="", markup=False)
        out.print(f"{warning.message}\n    try: {warning.remedy}", markup=False, soft_wrap=True)
    if not explained.warnings:
        out.print("nothing to warn of", markup=False)
