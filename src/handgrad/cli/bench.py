"""``handgrad bench``: this library on the CPU and on each GPU, beside other libraries."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handgrad.cli.bench_files import check_out, finish
from handgrad.cli.bench_options import OutOption, ThreadsOption, choose_threads
from handgrad.cli.bench_scaling import scaling
from handgrad.cli.errors import INTERRUPTED, wrong
from handgrad.cli.options import JsonOption, KernelsOption, kernels_from

if TYPE_CHECKING:
    from handgrad.benchmark.measure import Settings
    from handgrad.benchmark.runners import Peer

app = typer.Typer(rich_markup_mode=None)
app.command("scaling")(scaling)

ROUNDS, LONG_ROUNDS = 7, 15
BUSY = 0.25  # load a core, before the run, above which the report says so
SECONDS, LONG_SECONDS = 0.4, 3.0


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            metavar="DEVICE",
            help="Measure on this device; may be repeated. Default: the CPU and every GPU. "
            "The emulator is measured only when named, on a small shape.",
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            "--shape",
            metavar="N,D,H,C",
            help="Samples, inputs, hidden and output units, instead of the usual shapes and sweeps; may be "
            "repeated. C = 1 is a regression (mse), more are classes (cross entropy).",
        ),
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="The acceptance run of one GPU (or of the emulator, small): ceilings, every path against "
            "its bound and against other libraries, every kernel against NumPy. Under ten minutes.",
        ),
    ] = False,
    by_ranks: Annotated[
        bool,
        typer.Option("--scaling", help="A data-parallel step by the number of ranks; needs handgrad[mpi]."),
    ] = False,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            "--peer",
            metavar="NAME",
            help="Beside this library: torch-eager, torch-compiled, jax, sklearn, or none; may be repeated. "
            "Default: all that are installed.",
        ),
    ] = None,
    threads: ThreadsOption = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds",
            metavar="S",
            help="Time for each workload of each library. Default: 0.4, with --long 3.",
        ),
    ] = None,
    long: Annotated[
        bool,
        typer.Option(
            "--long",
            help="More rounds and seconds, the sweep over hidden units, the compiled peer everywhere, and "
            "scaling with rows, hidden units and threads: a quarter of an hour.",
        ),
    ] = False,
    out_directory: OutOption = None,
    kernels: KernelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time training steps on CPU and GPU, beside the libraries that are installed.

    A step is forward, loss, backward and SGD on data that lie on the device. Every
    library has a process of its own and the same data; its gradients are first
    checked against float64; all take turns. Ctrl-C keeps what was measured until
    then.
    """
    if context.invoked_subcommand is not None:
        return
    from handgrad.benchmark import measure
    from handgrad.benchmark import report as reports
    from handgrad.cli.bench_table import print_scaling, print_tables
    from handgrad.cli.output import console, print_json

    if seconds is not None and not seconds > 0:
        raise wrong("--seconds", "a number above 0", seconds)
    check_out(out_directory)
    out = console(as_json)
    if by_ranks:
        from handgrad.cli.bench_ranks import bench_ranks

        bench_ranks(out, shape or (), device or (), as_json)
        return
    if full:
        from handgrad.cli.acceptance import acceptance

        with kernels_from(kernels):
            acceptance(out, device, out_directory, as_json)
        return
    record = measure.Record()
    settings = _settings(device, shape, peer, threads, seconds, long, kernels, record)
    for note in record.notes:
        out.print(f"note: {note}", markup=False, soft_wrap=True)
    minutes = measure.estimated_seconds(settings) / 60
    out.print(
        f"measuring {len(settings.workloads)} workloads, {settings.rounds} rounds: "
        f"about {minutes:.1f} minutes" + ("; then scaling" if long else ""),
        markup=False,
    )
    out.file.flush()
    started, begin = datetime.now(UTC), time.perf_counter()
    curves: list[dict[str, Any]] = []
    shown = len(record.notes)
    failure: RuntimeError | None = None
    try:
        with out.status("measuring") as status:
            measure.measure(settings, record, status.update)
            if long and "cpu" in settings.devices:
                from handgrad.benchmark import scaling as scale

                record.complete = False
                scale.measure(scale.everything(settings.threads), curves, record.note, status.update)
                record.complete = True
    except KeyboardInterrupt:
        out.print("interrupted: what was measured until now follows")
    except RuntimeError as error:  # a wrong step of ours, or its process died
        if not any(series.seconds for series in record.series):
            raise
        failure = error
        record.note(f"ended early: {error}")
    for note in record.notes[shown:]:
        out.print(f"note: {note}", markup=False, soft_wrap=True)
    document = reports.make(record, settings, started=started, seconds=time.perf_counter() - begin)
    document["scaling"] = curves
    if document["results"]:
        print_tables(out, document)
        print_scaling(out, document)
    finish(document, out, out_directory, as_json)
    if as_json:
        print_json(document)
    if failure is not None:
        raise failure
    if not record.complete:
        raise typer.Exit(INTERRUPTED)


def _settings(
    device: list[str] | None,
    shape: list[str] | None,
    peer: list[str] | None,
    threads: int | None,
    seconds: float | None,
    long: bool,
    kernels: Path | None,
    record: Any,
) -> Settings:
    from handgrad import throughput
    from handgrad.arrays import resolve_device
    from handgrad.benchmark import measure, workloads

    record.notes += throughput.blas_notes() + busy_notes()
    if device:
        devices = [str(resolve_device(name)) for name in dict.fromkeys(device)]
    else:
        devices, problem = throughput.available_devices()
        if problem:
            record.notes.insert(0, f"no GPU here: {problem}. The CPU's figures follow")
    if "emulator" in devices:
        record.note("the emulator runs the kernels on the CPU: its times say nothing about a GPU")
    chosen: list[workloads.Workload]
    if shape:
        chosen = [workloads.Workload(throughput.parse_shape(text)) for text in shape]
    elif "emulator" in devices:
        chosen = list(workloads.EMULATED)
    else:
        chosen = [*workloads.SHAPES, *workloads.epochs(), *workloads.batch_sweep(long)]
        chosen += workloads.hidden_sweep() if long else []
    count, fixed = choose_threads(threads)
    return measure.Settings(
        devices=tuple(devices),
        peers=_peers(peer, record),
        workloads=tuple(chosen),
        seconds=seconds or (LONG_SECONDS if long else SECONDS),
        rounds=LONG_ROUNDS if long else ROUNDS,
        threads=count,
        fixed=fixed,
        kernels=None if kernels is None else str(kernels),
        compiled_everywhere=long,
    )


def _peers(names: Sequence[str] | None, record: Any) -> tuple[Peer, ...]:
    import importlib.util

    from handgrad.benchmark.runners import PEERS

    own, others = PEERS[0], PEERS[1:]
    known = [one.key for one in others]
    for name in names or ():
        if name not in (*known, "none"):
            raise wrong("--peer", f"one of {', '.join(known)}, or none", repr(name))
    chosen = [own]
    for one in others:
        if names and one.key not in names:
            continue
        missing = [module for module in one.modules if importlib.util.find_spec(module) is None]
        if missing:
            record.note(
                f"{one.name}: not measured: {', '.join(missing)} is not installed "
                "(pip install 'handgrad[peers]')"
            )
        else:
            chosen.append(one)
    return tuple(chosen)


def busy_notes() -> list[str]:
    """That other programs use the machine, where they do."""
    import os

    from handgrad.benchmark.report import cores

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load < BUSY * cores():
        return []
    return [
        f"other programs were using the machine (load {load:.1f} on {cores()} cores before the run): the "
        "times are longer than on a quiet one, and the more so the more threads a library takes"
    ]


@app.command("compare")
def compare(
    before: Annotated[
        Path, typer.Argument(metavar="A.json", help="A bench.json, or the folder that it is in.")
    ],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="The one to be compared with it.")],
    as_json: JsonOption = False,
) -> None:
    """Show what changed between two reports, with the spread.

    A workload counts as faster or slower only where 95 % of all pairs of samples say so.
    """
    from handgrad.benchmark import compare as comparison
    from handgrad.cli.bench_table import print_comparison
    from handgrad.cli.output import console, print_json

    found = comparison.compare(comparison.load(before), comparison.load(after))
    print_comparison(console(as_json), found)
    if as_json:
        print_json(found)
