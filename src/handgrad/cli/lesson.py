"""``handgrad lesson``: published worked examples, each with its own numbers beside the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from handgrad.cli.errors import FAILED
from handgrad.cli.options import JsonOption


def lesson(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Which one. Without: a list of them.")
    ] = None,
    out_directory: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Draw the lesson's pictures into DIR.")
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="regression, softmax: the published number of digits, from HANDGRAD_MNIST or --data "
            "(regression: some minutes).",
        ),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="SPEC", help="regression, softmax: other data, as for train."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Work through a published example of backpropagation.

    Prints the lesson's numbers beside the published ones, marks misprints, and tries
    every claim: exit code 1 if one fails.
    """
    from handgrad import lessons
    from handgrad.cli.output import console, print_json

    out = console(as_json)
    if name is None:
        titles = {known: lessons.title(known) for known in lessons.LESSONS}
        width = max(map(len, titles))
        for known, title in titles.items():
            out.print(f"{known:{width}}  {title}", markup=False, soft_wrap=True)
        if as_json:
            print_json({"lessons": titles})
        return
    settings: dict[str, Any] = {"data": data, "full": full}
    found = lessons.run(name, out_directory, **settings)
    out.print(str(found), markup=False, soft_wrap=True)
    if out_directory is not None and not found.pictures:
        of_data = " of these data" if data is not None else ""
        out.print(f"\nlesson {name} has no pictures{of_data}: --out is left aside", markup=False)
    if as_json:
        print_json(found.to_dict())
    if not found.passed:
        raise typer.Exit(FAILED)
