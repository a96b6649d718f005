"""The command line: one module a verb, libraries imported inside the verb that uses them."""

from __future__ import annotations

from typing import Annotated

import typer

from handgrad.cli import bench, diagnose, doctor, evaluate, explain, kernels, lesson, predict, train
from handgrad.cli.errors import CommandGroup

app = typer.Typer(
    name="handgrad",
    cls=CommandGroup,
    help="Hand-written backpropagation: train, compare CPU and GPU, check kernels, find mistakes.",
    epilog="Exit codes: 0 done, 1 a check failed or the run did, 2 a wrong call, 130 interrupted, "
    "143 ended by SIGTERM.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from handgrad import __version__

        print(f"handgrad {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; goes before or after the verb.")
    ] = False,
) -> None:
    pass


app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.add_typer(bench.app, name="bench")
app.command("diagnose")(diagnose.diagnose)
app.command("explain")(explain.explain)
app.command("lesson")(lesson.lesson)
app.command("doctor")(doctor.doctor)
app.add_typer(kernels.app, name="kernels")


def main() -> None:
    """Entry point of the ``handgrad`` script."""
    app()
