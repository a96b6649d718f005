"""What ``handgrad train`` writes and says about a run: config.json, head line, summary, curves.png."""

from __future__ import annotations

import platform
import shlex
import time
from typing import TYPE_CHECKING, Any

from handgrad.cli.data import absolute
from handgrad.cli.output import short_path
from handgrad.cli.threads import takes_one_thread

if TYPE_CHECKING:
    import typer
    from rich.console import Console

    from handgrad.cli.run_directory import RunDirectory
    from handgrad.datasets import Dataset, Split
    from handgrad.network import MLP
    from handgrad.nonfinite import NonFiniteError
    from handgrad.ops.optimizer import Optimizer
    from handgrad.training import History

CONFIG_SCHEMA = "handgrad.run/1"


def describe_run(
    ctx: typer.Context,
    net: MLP,
    rule: Optimizer,
    data: str,
    split: Split,
    training: Dataset,
    watched: Dataset,
    shards: int,
) -> dict[str, Any]:
    """All that made the run, for config.json; ``evaluate`` and ``predict`` read the part "data"."""
    import numpy as np

    from handgrad import __version__
    from handgrad.cli.resumption import FORGOTTEN
    from handgrad.datasets.digest import digest

    options = ctx.params
    columns = getattr(training, "columns", None)  # a stream has none
    again = {name: value for name, value in options.items() if name not in FORGOTTEN}
    again["data"] = absolute(data)
    again["shards"] = shards
    again["device"] = net.device.kind if options["device"] == "auto" else options["device"]
    for name in ("init", "kernels"):
        again[name] = options[name] and options[name].absolute()
    return {
        "schema": CONFIG_SCHEMA,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {
            "handgrad": __version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "options": again,  # what --resume starts again with
        "device": str(net.device),
        "network": net.config(),
        "data": {
            "spec": absolute(data),
            "target": options["target"],
            "feature_names": columns and columns.features,
            "target_name": columns and columns.target,
            "task": options["task"],
            "classes": options["classes"],
            "limit": options["limit"],
            "stream": options["stream"],
            "block_rows": getattr(training, "block_rows", options["block_rows"]),
            "sha256": digest(training),
            "validation_sha256": None if watched is split.test else digest(watched),
            "test_sha256": digest(split.test),
            "scale": training.scale,
            "shift": training.shift,
            "training_samples": len(training),
            "test_samples": len(split.test),
        },
        "training": {
            "optimizer": rule.config(),
            "batch_size": options["batch_size"],
            "epochs": options["epochs"],
            "schedule": options["schedule"],
            "clip_norm": options["clip_norm"],
            "patience": options["patience"],
            "seed": options["seed"],
            "shards": shards,
            "one_blas_thread": takes_one_thread(net, options["batch_size"]),
            "init": options["init"],
            "validation": "test part" if options["patience"] is None else "a tenth of the training part",
        },
    }


def headline(
    net: MLP, training: Dataset, split: Split, batch_size: int, shards: int = 1, ranks: int = 1
) -> str:
    """The network, the data and the device, in a line."""
    count = sum(int(view.size) for view in net.parameters.values())
    widths = "→".join(map(str, net.sizes))
    threads = ", 1 BLAS thread" if shards == 1 and takes_one_thread(net, batch_size) else ""
    threads += f", {shards} shards a batch" if shards > 1 else ""
    threads += f" on {ranks} ranks" if ranks > 1 else ""
    return (
        f"{widths} ({net.activation}, {net.loss_name}; {count:,} parameters) on {net.device}{threads}; "
        f"{len(training):,} training and {len(split.test):,} test samples of {training.name}"
    )


def draw_curves(directory: RunDirectory, history: History, figures_of: str) -> None:
    """curves.png from the history."""
    from handgrad import plots

    plots.curves(history.rows, directory.curves, validation=figures_of, best_epoch=history.best_epoch)


def summarize(
    net: MLP,
    history: History,
    split: Split,
    stopping: bool,
    seconds: float,
    directory: RunDirectory,
    saved: bool,
    checkpoint_seconds: float,
) -> dict[str, Any]:
    """The result: the figures on the test part, measured once more where early stopping restored weights."""
    from handgrad.training import evaluate

    last = history.rows[-1] if history.rows else {}
    loss, accuracy = last.get("validation_loss"), last.get("validation_accuracy")
    if history.interrupted:
        loss, accuracy = None, None  # not of the weights that were saved
    elif stopping:
        found = evaluate(net, split.test)
        loss, accuracy = found.loss, found.accuracy
    return {
        "run": str(directory.path),
        "device": str(net.device),
        "sizes": list(net.sizes),
        "epochs": len(history.rows),
        "interrupted": history.interrupted,
        "saved": saved,
        "stopped_early": history.stopped_early,
        "best_epoch": history.best_epoch,
        "train_loss": last.get("train_loss"),
        "test_loss": loss,
        "test_accuracy": accuracy,
        "test_samples": len(split.test),
        "seconds": seconds,
        "skipped_steps": len(history.skipped),
        "checkpoint_seconds": checkpoint_seconds,
        "history": history.rows,
    }


def nonfinite_line(error: NonFiniteError, lr: float, directory: RunDirectory | None) -> str:
    """What a NaN or inf ended, in the words of the command line."""
    kept = ""
    if directory is not None:
        run = shlex.quote(short_path(directory.path))
        kept = f"; the last good checkpoint is kept: handgrad train --resume {run} --on-nonfinite skip"
    return f"{error.place}; train with a smaller --lr (it was {lr:g}), or with --clip-norm 1{kept}"


def print_summary(out: Console, report: dict[str, Any], epochs: int) -> None:
    """The last lines: the test figures and where the run lies; after Ctrl-C how to go on."""
    from pathlib import Path

    run = shlex.quote(short_path(Path(report["run"])))

    def say(line: str) -> None:
        out.print(line, markup=False, soft_wrap=True)

    if report["interrupted"]:
        kept = "it is saved" if report["saved"] else "its last checkpoint is whole"
        say(f"interrupted after {report['epochs']} of {epochs} epochs; {kept} in {run}")
        if report["saved"]:
            say(f"look at it:  handgrad evaluate {run}")
        say(f"go on:       handgrad train --resume {run}")
        return
    if report["best_epoch"] is not None:
        stopped = "stopped early; " if report["stopped_early"] else ""
        say(f"{stopped}the weights are those of epoch {report['best_epoch']}, the best by validation loss")
    accuracy = report["test_accuracy"]
    figures = f"test loss {report['test_loss']:.4f}"
    if accuracy is not None:
        figures = f"test accuracy {accuracy:.2%} ({figures})"
    if report["skipped_steps"]:
        say(f"{report['skipped_steps']} steps were skipped for a NaN or inf in them")
    say(f"{figures} on {report['test_samples']:,} samples, after {report['seconds']:.1f} s of training")
    say(f"the run is in {run}; look closer with: handgrad evaluate {run}")
