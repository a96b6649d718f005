"""``handgrad train``: train a network and leave a run directory."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from handgrad.cli import choices
from handgrad.cli.errors import INTERRUPTED
from handgrad.cli.options import (
    BatchSizeOption,
    ClassesOption,
    DataOption,
    DeviceOption,
    JsonOption,
    KernelsOption,
    LimitOption,
    QuietOption,
    TargetOption,
    TaskOption,
    kernels_from,
)


def train(
    ctx: typer.Context,
    data: DataOption = "mnist-subset",
    hidden: Annotated[
        list[str] | None,
        typer.Option(
            "--hidden",
            metavar="H",
            help="Width of the hidden layer. More layers: 256,64, or repeat the option. "
            "none: a linear model. Default: 128.",
        ),
    ] = None,
    activation: Annotated[
        choices.Activation | None,
        typer.Option("--activation", help="f of the hidden layers. Default: relu."),
    ] = None,
    output: Annotated[
        choices.Activation | None,
        typer.Option("--output", help="g of the last layer, for --loss mse. Default: identity."),
    ] = None,
    loss: Annotated[
        choices.Loss | None,
        typer.Option("--loss", help="Default: cross_entropy for labels, mse for numbers."),
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", metavar="N", min=1, help="Passes over the data.")] = 15,
    batch_size: BatchSizeOption = 64,
    optimizer: Annotated[
        choices.Optimizer, typer.Option("--optimizer", help="The update rule.")
    ] = choices.Optimizer.momentum,
    lr: Annotated[
        float | None,
        typer.Option(
            "--lr",
            metavar="LR",
            help="Learning rate. Default: 0.1, for --loss mse 0.01; adam and adamw: 0.001.",
        ),
    ] = None,
    momentum: Annotated[
        float | None,
        typer.Option("--momentum", metavar="M", help="For momentum and nesterov. Default: 0.9."),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option("--weight-decay", metavar="W", help="Default: 0.0005; adamw: 0.01; adam: 0."),
    ] = None,
    clip_norm: Annotated[
        float | None,
        typer.Option("--clip-norm", metavar="C", help="The largest norm that a gradient may have."),
    ] = None,
    schedule: Annotated[
        choices.Schedule, typer.Option("--schedule", help="How the learning rate falls over the epochs.")
    ] = choices.Schedule.cosine,
    patience: Annotated[
        int | None,
        typer.Option(
            "--patience",
            metavar="N",
            min=1,
            help="Stop after N epochs without a better loss on a tenth of the training samples, held out "
            "for this, and keep the best epoch's weights.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the first weights and the order.")] = 0,
    device: DeviceOption = "auto",
    dtype: Annotated[choices.Dtype | None, typer.Option("--dtype", help="Default: float32.")] = None,
    init: Annotated[
        Path | None,
        typer.Option("--init", metavar="RUN", help="Start from a run's network (folder or .safetensors)."),
    ] = None,
    out_directory: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="New or empty. Default: runs/<date>-<time>."),
    ] = None,
    target: TargetOption = None,
    task: TaskOption = choices.Task.auto,
    classes: ClassesOption = None,
    limit: LimitOption = None,
    no_plot: Annotated[bool, typer.Option("--no-plot", help="No curves.png.")] = False,
    kernels: KernelsOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a network and report its test accuracy.

    The test part is looked at after every epoch, for the report alone: nothing is chosen by it.
    Ctrl-C saves the weights and says how to go on.

    The run's folder: config.json (all settings), metrics.jsonl (a line an epoch), weights.safetensors,
    curves.png. The same seed, data and device give the same weights, bit for bit.
    """
    import numpy as np

    from handgrad.cli import run_directory
    from handgrad.cli.data import hold_out, training_data
    from handgrad.cli.network import (
        build_network,
        build_optimizer,
        check_clip_norm,
        choose_loss,
        load_network,
    )
    from handgrad.cli.output import console, print_json
    from handgrad.cli.progress import Interrupt, TrainingDisplay, check_finite
    from handgrad.cli.threads import blas_threads
    from handgrad.cli.training_report import (
        describe_run,
        draw_curves,
        headline,
        print_summary,
        summarize,
    )
    from handgrad.training import fit

    run_directory.check_out(out_directory)
    check_clip_norm(clip_norm)
    split = training_data(data, target=target, task=task, classes=classes, limit=limit)
    training, watched = (split.train, split.test) if patience is None else hold_out(split.train, seed)
    out = console(as_json)
    with kernels_from(kernels), Interrupt() as interrupt:
        words: dict[str, Any] = {
            "hidden": hidden,
            "activation": activation,
            "output": output,
            "loss": loss,
            "dtype": dtype,
            "device": device,
        }
        rates = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        if init is None:
            rule = build_optimizer(optimizer, choose_loss(split.train, loss), **rates)
            net = build_network(split.train, **words, seed=seed)
        else:
            net = load_network(init, split.train, **words)
            rule = build_optimizer(optimizer, net.loss_name, **rates)
        directory = run_directory.create(out_directory)
        directory.write_config(describe_run(ctx, net, rule, data, split, training))
        if not quiet:
            out.print(headline(net, training, split, batch_size), markup=False, soft_wrap=True)
        figures_of = "test" if patience is None else "validation"
        display = TrainingDisplay(out, epochs, len(training), figures_of, quiet)

        def on_step(step: int, steps: int, mean_loss: Callable[[], float]) -> None:
            interrupt.check()
            display.step(step, steps, mean_loss)

        def on_epoch(row: dict[str, Any]) -> None:
            directory.append_metrics(row)
            check_finite(row, rule.lr)
            net.save(directory.weights)
            display.epoch(row)
            interrupt.check()

        began = time.perf_counter()
        # A loss that overflows is told by check_finite, in a line.
        with display, blas_threads(net, batch_size), np.errstate(all="ignore"):
            try:
                history = fit(
                    net,
                    training,
                    optimizer=rule,
                    batch_size=batch_size,
                    epochs=epochs,
                    validation=watched,
                    schedule=schedule.value,
                    clip_norm=clip_norm,
                    patience=patience,
                    seed=seed,
                    on_step=on_step,
                    on_epoch=on_epoch,
                )
            except RuntimeError:
                interrupt.check()  # Ctrl-C ends a compiler that is at work, too: that is no failure
                raise
        seconds = time.perf_counter() - began
        net.save(directory.weights)
        if history.rows and not no_plot:
            draw_curves(directory, history, figures_of)
        report = summarize(net, history, split, patience is not None, seconds, directory)
    print_summary(out, report, ctx, epochs)
    if as_json:
        print_json(report)
    if history.interrupted:
        raise typer.Exit(INTERRUPTED)
