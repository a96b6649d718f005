"""``handgrad diagnose``: what is wrong with a backward pass, from a file that runs it or a saved attempt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from handgrad.cli.errors import FAILED, wrong
from handgrad.cli.options import JsonOption

LINES_SHOWN = 20  # of what the person's file printed
FLOAT_Y = (
    "The file sets neither y nor loss, so y was drawn as floats (N, C), as mse takes it. If your loss takes "
    "integer labels, pass --loss cross_entropy (or hinge), or set y in the file."
)

if TYPE_CHECKING:
    from handgrad.gradients.attempt import Attempt
    from handgrad.gradients.report import Diagnosis
    from handgrad.gradients.settings import Settings
    from handgrad.gradients.staged import Problem


class Numbers(NamedTuple):
    """Numbers of the training that a mistake can put into a gradient."""

    lr: float | None
    weight_decay: float | None


def diagnose(
    target: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="my.py, my.py:function, or attempt.npz with X, y, W1, b1, W2, b2, dW1, db1, dW2, db2 and "
            "any intermediates (Z1, A1, Z2, dZ2, dA1, dZ1).",
        ),
    ],
    activation: Annotated[
        str | None, typer.Option("--activation", metavar="F", help="Of the hidden layers. Default: relu.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", metavar="G", help="Of the last layer, with mse. Default: identity."),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            "--loss",
            metavar="LOSS",
            help="mse, bce, cross_entropy or hinge. Default: cross_entropy where y is a vector of integer "
            "labels, else mse; mse where the file sets no y.",
        ),
    ] = None,
    reduction: Annotated[
        str | None, typer.Option("--reduction", metavar="R", help="mean or sum. Default: mean.")
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout", metavar="L", help="Of the weights: in,out or out,in. Default: from the shapes."
        ),
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", metavar="LR", help="The learning rate, if any.")] = None,
    weight_decay: Annotated[
        float | None, typer.Option("--weight-decay", metavar="λ", help="λ of the term λ W. Default: 0.")
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="S", help="Seconds that a .py may run.")
    ] = 60.0,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.png", help="Draw each parameter's ratio and error map."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Name the mistake in a backward pass that you wrote by hand; exit code 1 if the gradient is wrong.

    A .py defines backward(X, y, params) -> {"W1": ..., "b1": ..., "W2": ..., "b2": ...}, params being a dict
    of W1 (D, H), b1, W2 (H, C), b2. It may set X, y, params, sizes (N, D, H, C), activation, output, loss,
    reduction, layout, lr and weight_decay as module variables, which the options override; data that it does
    not set are random, with distinct sizes. It runs in a process of its own.
    """
    from handgrad.cli.output import console, print_json
    from handgrad.gradients.attempt import checked_layout
    from handgrad.gradients.settings import Settings, check_numbers
    from handgrad.gradients.user_code import LONGEST

    out = console(as_json)
    if not 0 < timeout <= LONGEST:
        raise wrong("--timeout", f"a number above 0 and at most {LONGEST:.0f}", timeout)
    settings = Settings(activation, output, loss, reduction)
    numbers = Numbers(lr, weight_decay)
    settings.check()  # before the file is run: else an exception of the file would hide a wrong option
    check_numbers(lr, weight_decay)
    if layout is not None:
        checked_layout(layout)
    if target.lower().endswith(".npz"):
        found = _of_archive(_existing(Path(target)), settings, layout, numbers)
    else:
        found = _of_file(target, settings, layout, numbers, timeout)
    out.print(str(found), markup=False, soft_wrap=True)
    if plot is not None:
        if found.parameters or found.intermediates:
            found.plot(plot)
            out.print(f"\nwrote {plot}", markup=False, soft_wrap=True)
        else:
            print("no picture: there is no gradient to draw", file=sys.stderr)
    if as_json:
        print_json(found.to_dict())
    if not found.correct:
        raise typer.Exit(FAILED)


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(2, "no such file", str(path))
    if path.is_dir():
        raise wrong("FILE", "my.py, my.py:function or attempt.npz", f"the folder {path}")
    return path


def _of_archive(path: Path, settings: Settings, layout: str | None, numbers: Numbers) -> Diagnosis:
    from handgrad.gradients.archive import read_archive
    from handgrad.gradients.attempt import checked_layout, is_name, read
    from handgrad.gradients.from_arrays import diagnose_arrays
    from handgrad.gradients.settings import layout_of_weights

    archive = read_archive(path)
    if archive.X.ndim != 2:
        raise ValueError(f"{path}: X: expected a matrix (N, D), got shape {archive.X.shape}")
    stored = checked_layout(layout) if layout else layout_of_weights(archive.parameters, archive.X.shape[1])

    def read_known(problem: Problem) -> Attempt:
        known = {name: array for name, array in archive.values.items() if is_name(name, problem)}
        try:
            attempt = read(known, None, problem)
        except TypeError as error:  # an array of strings, say: a wrong call
            raise ValueError(f"{path}: {error}") from error
        ignored = [name for name in archive.values if name not in known]
        if ignored:
            attempt.notes.append(f"Ignored, as no name of this network: {', '.join(ignored)}.")
        return attempt

    return diagnose_arrays(
        archive.X,
        archive.y,
        archive.parameters,
        settings,
        read_known,
        stored=stored,
        layout=stored,
        lr=numbers.lr,
        weight_decay=numbers.weight_decay,
    )


def _of_file(
    target: str, settings: Settings, layout: str | None, numbers: Numbers, timeout: float
) -> Diagnosis:
    from dataclasses import asdict

    from handgrad.gradients.attempt import read
    from handgrad.gradients.diagnose import of_failure
    from handgrad.gradients.from_arrays import diagnose_arrays
    from handgrad.gradients.settings import Settings
    from handgrad.gradients.user_code import run_file

    name, _, function = target.rpartition(":") if ":" in target else (target, "", "")
    if not name.lower().endswith(".py"):
        raise wrong("FILE", "my.py, my.py:function or attempt.npz", target)
    path = _existing(Path(name))
    ran = run_file(
        path, function or None, {**asdict(settings), "layout": layout, **numbers._asdict()}, timeout
    )
    if ran.output.strip():
        lines = ran.output.rstrip().splitlines()[-LINES_SHOWN:]
        print("\n".join(f"{path.name} | {line}" for line in lines), file=sys.stderr)
    if ran.problem:
        raise ValueError(f"{path.name}: {ran.problem}")
    if ran.called.failure is not None:
        return of_failure(ran.called.failure, [FLOAT_Y] if ran.float_y else [])
    assert ran.X is not None
    assert ran.y is not None

    def read_returned(problem: Problem) -> Attempt:
        attempt = read(ran.called.values, None, problem)
        attempt.unit, attempt.torch = ran.unit, ran.torch
        return attempt

    return diagnose_arrays(
        ran.X,
        ran.y,
        ran.parameters,
        Settings(**{name: ran.settings[name] for name in asdict(settings)}),
        read_returned,
        stored="in,out",
        layout=ran.settings["layout"],
        lr=ran.settings["lr"],
        weight_decay=ran.settings["weight_decay"],
        called=ran.called,
    )
