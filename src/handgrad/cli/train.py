"""``handgrad train``: train a network and leave a run directory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handgrad.cli import choices
from handgrad.cli.errors import wrong
from handgrad.cli.options import (
    BatchSizeOption,
    ClassesOption,
    DataOption,
    DeviceOption,
    JsonOption,
    KernelsOption,
    LimitOption,
    OptimizerOption,
    QuietOption,
    TargetOption,
    TaskOption,
    kernels_from,
)

if TYPE_CHECKING:
    from handgrad.cli.run_directory import RunDirectory


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
    optimizer: OptimizerOption = choices.Optimizer.momentum,
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
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="RUN",
            help="Go on with a run that was stopped or killed, from its newest checkpoint, to the same bits.",
        ),
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option(
            "--shards",
            metavar="N",
            min=1,
            help="Cut every batch into N shards, whose gradients are added in a fixed order: the bits depend "
            "on N, not on the number of ranks under mpiexec or srun. Default: 4; on one GPU: 1.",
        ),
    ] = None,
    on_nonfinite: Annotated[
        choices.OnNonfinite,
        typer.Option(
            "--on-nonfinite",
            help="At a NaN or inf in a loss or gradient: stop and name step, layer and batch, skip the step, "
            "or ignore it.",
        ),
    ] = choices.OnNonfinite.stop,
    checkpoint_every: Annotated[
        str,
        typer.Option(
            "--checkpoint-every",
            metavar="WHEN",
            help="Steps as 500, seconds as 30s, end, or auto: every 10 seconds, or more seldom where that "
            "would take more than 1 % of the time.",
        ),
    ] = "auto",
    out_directory: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="New or empty. Default: runs/<date>-<time>."),
    ] = None,
    target: TargetOption = None,
    task: TaskOption = choices.Task.auto,
    classes: ClassesOption = None,
    limit: LimitOption = None,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream", help="Leave the data on disk and read them in blocks (X.npy,y.npy, IDX, shards)."
        ),
    ] = False,
    block_rows: Annotated[
        int | None,
        typer.Option(
            "--block-rows",
            metavar="N",
            min=1,
            help="Shuffle in blocks of N rows and within them, on disk or in memory. Default: with --stream "
            "32 MiB of features, else all rows.",
        ),
    ] = None,
    no_plot: Annotated[bool, typer.Option("--no-plot", help="No curves.png.")] = False,
    kernels: KernelsOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a network and report its test accuracy.

    The test part is looked at after every epoch, for the report alone: nothing is chosen by it.
    Ctrl-C and SIGTERM save the run and say how to go on; after a crash, --resume goes on from the last
    checkpoint.

    The run's folder: config.json (all settings), metrics.jsonl (a line an epoch), weights.safetensors,
    checkpoints (the last two), curves.png. The same seed, data and device give the same weights, bit for bit.
    """
    import numpy as np

    from handgrad import checkpoint
    from handgrad.cli import resumption, run_directory
    from handgrad.cli.data import hold_out, streamed_data, training_data
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
        nonfinite_line,
        print_summary,
        summarize,
    )
    from handgrad.distributed import agreement
    from handgrad.distributed.ranks import DEFAULT_SHARDS, device_of, fail, join
    from handgrad.nonfinite import NonFiniteError
    from handgrad.resume import Checkpoints, Every, Progress, restore
    from handgrad.training import fit

    resumed: resumption.Resumed | None = ctx.obj
    ranks = join()
    if resumed is None:
        agreement.agree(ranks, agreement.call_facts(ctx))
    if resume is not None and resumed is None:
        resumption.go_on(ctx, resume, ranks, train)
        return
    try:
        every = Every.parse(checkpoint_every)
    except ValueError as error:
        raise ValueError(f"--checkpoint-every: {error}") from None
    if resumed is None and ranks.rank == 0:
        run_directory.check_out(out_directory)
    check_clip_norm(clip_norm)
    split: Any  # a Split or a StreamSplit
    if stream:
        how: dict[str, Any] = {"task": task, "classes": classes, "limit": limit}
        split = streamed_data(data, **how, block_rows=block_rows)
    else:
        split = training_data(data, target=target, task=task, classes=classes, limit=limit)
    training, watched = (split.train, split.test) if patience is None else hold_out(split.train, seed)
    if resumed is not None:
        resumed.check_data(training, watched, split.test)
    out = console(as_json, silent=ranks.rank > 0)
    with contextlib.ExitStack() as open_until_done:
        open_until_done.enter_context(kernels_from(kernels))
        interrupt = open_until_done.enter_context(Interrupt())
        words: dict[str, Any] = {
            "hidden": hidden,
            "activation": activation,
            "output": output,
            "loss": loss,
            "dtype": dtype,
            "device": device_of(device, ranks),
        }
        rates = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        if init is None:
            rule = build_optimizer(optimizer, choose_loss(split.train, loss), **rates)
            net = build_network(split.train, **words, seed=seed)
        else:
            net = load_network(init, split.train, **words)
            rule = build_optimizer(optimizer, net.loss_name, **rates)
        if shards is None:
            shards = DEFAULT_SHARDS if net.device.kind != "cuda" or ranks.size > 1 else 1
        if shards < ranks.size:
            remedy = "the same number as before gives the same bits on any number of ranks"
            raise wrong("--shards", f"at least {ranks.size}, one for each rank", shards, remedy)
        progress = Progress()
        if resumed is not None and resumed.newest is not None:
            path, content = resumed.newest
            net = checkpoint.network_of(content, path, net.device)
            progress = restore(content, path, net, rule)
        agreement.agree(ranks, agreement.state_facts(net, training, watched))
        directory: RunDirectory | None = None
        if ranks.rank == 0:
            if resumed is not None:
                directory = resumed.directory
                directory.rewrite_metrics(progress.rows)
            else:
                directory = run_directory.create(out_directory)
                open_until_done.enter_context(directory.locked())
                directory.write_config(describe_run(ctx, net, rule, data, split, training, watched, shards))
        checkpoints = Checkpoints(directory.checkpoints if directory is not None else None, every)
        if not quiet:
            line = headline(net, training, split, batch_size, shards, ranks.size)
            out.print(line, markup=False, soft_wrap=True)
            if resumed is not None:
                done = f"{progress.epoch} epochs and {progress.step} steps"
                out.print(f"going on after {done}", markup=False, soft_wrap=True)
        figures_of = "test" if patience is None else "validation"
        display = TrainingDisplay(out, epochs, len(training), figures_of, quiet)

        def stop_if_asked() -> None:
            code = max(ranks.gather(interrupt.exit_code if interrupt.asked else 0))
            if code:  # all ranks stop after the same step, whichever was told to
                interrupt.exit_code = code
                checkpoints.write()
                raise KeyboardInterrupt

        def on_step(step: int, steps: int, mean_loss: Callable[[], float]) -> None:
            stop_if_asked()
            display.step(step, steps, mean_loss)

        def on_epoch(row: dict[str, Any]) -> None:
            if directory is not None:
                directory.append_metrics(row)
            check_finite(row, rule.lr)
            if directory is not None:
                net.save(directory.weights)
            display.epoch(row)
            stop_if_asked()

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
                    block_rows=block_rows,
                    shards=shards,
                    ranks=ranks,
                    progress=progress,
                    checkpoints=checkpoints,
                    on_nonfinite=on_nonfinite.value,
                    on_step=on_step,
                    on_epoch=on_epoch,
                )
            except NonFiniteError as error:
                raise RuntimeError(nonfinite_line(error, rule.lr, directory)) from error
            except RuntimeError:
                interrupt.check()  # Ctrl-C ends a compiler that is at work, too: that is no failure
                raise
        seconds = time.perf_counter() - began
        if directory is not None:
            if not interrupt.at_once:
                net.save(directory.weights)
            if history.rows and not no_plot:
                draw_curves(directory, history, figures_of)
            stopping, saved = patience is not None, not interrupt.at_once
            report = summarize(net, history, split, stopping, seconds, directory, saved, checkpoints.seconds)
            print_summary(out, report, epochs)
            if as_json:
                print_json(report)
    if history.interrupted:
        if interrupt.at_once and ranks.size > 1:
            fail("", interrupt.exit_code)  # the others wait in an exchange that will not come
        raise typer.Exit(interrupt.exit_code)
