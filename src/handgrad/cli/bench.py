"""``handgrad bench``: samples a second on the CPU and on each GPU, side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handgrad.cli.errors import INTERRUPTED, wrong
from handgrad.cli.options import JsonOption, KernelsOption, kernels_from

if TYPE_CHECKING:
    from rich.console import Console

    from handgrad.throughput import Result


def bench(
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
            help="Samples, inputs, hidden and output units; may be repeated. C = 1 is a regression (mse), "
            "more are classes (cross entropy).",
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="S", help="Time for each shape on each device.")
    ] = 3.0,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="The acceptance run of one GPU (or of the emulator, small): ceilings, every path against "
            "its bound and against other libraries, every kernel against NumPy. Under ten minutes.",
        ),
    ] = False,
    out_directory: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Where bench.json and throughput.png go. Default: runs/bench-<date>-<time>; "
            "with --json only when named.",
        ),
    ] = None,
    kernels: KernelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time a training step on CPU and GPU.

    A step is forward, loss, backward and SGD on data that lie on the device. It is
    first checked against float64 NumPy. Ctrl-C keeps what was measured until then.
    """
    from handgrad import throughput
    from handgrad.arrays import resolve_device
    from handgrad.cli.output import console, print_json

    if not seconds > 0:
        raise wrong("--seconds", "a number above 0", seconds)
    out = console(as_json)
    if full:
        from handgrad.cli.acceptance import acceptance

        _check_out(out_directory)
        with kernels_from(kernels):
            acceptance(out, device, out_directory, as_json)
        return
    notes = throughput.blas_notes()
    if device:
        devices = [str(resolve_device(name)) for name in dict.fromkeys(device)]
    else:
        devices, problem = throughput.available_devices()
        if problem:
            notes.insert(0, f"no GPU here: {problem}. The CPU's figures follow")
    if shape:
        shapes: Sequence[throughput.Shape] = [throughput.parse_shape(text) for text in shape]
    else:
        shapes = throughput.EMULATED_SHAPES if "emulator" in devices else throughput.SHAPES
    if "emulator" in devices:
        notes.append("the emulator runs the kernels on the CPU: its times say nothing about a GPU")
    _check_out(out_directory)

    for note in notes:
        out.print(f"note: {note}", markup=False, soft_wrap=True)
    results: list[Result] = []
    complete = False
    try:
        with kernels_from(kernels), out.status("measuring") as status:
            throughput.measure(devices, shapes, seconds=seconds, results=results, progress=status.update)
        complete = True
    except KeyboardInterrupt:
        out.print("interrupted: what was measured until now follows")
    report = throughput.report(results, complete=complete, notes=notes)
    measured = [result for result in results if result.seconds_per_step]
    if measured:
        _print_table(out, measured, report)
    if out_directory is None and not as_json and measured:
        out_directory = Path("runs") / time.strftime("bench-%Y-%m-%d-%H%M%S")
    if out_directory is not None:
        _write(out_directory, report, out)
    if as_json:
        print_json(report)
    if not complete:
        raise typer.Exit(INTERRUPTED)


def _check_out(directory: Path | None) -> None:
    if directory is not None and directory.exists() and not directory.is_dir():
        raise wrong("--out", "a folder", f"the file {directory}")


def _write(directory: Path, report: dict[str, Any], out: Console) -> None:
    from handgrad import plots
    from handgrad.checkpoint import write_atomically
    from handgrad.cli.output import plain, short_path

    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plain(report), indent=1, allow_nan=False) + "\n"
    write_atomically(directory / "bench.json", text.encode())
    files = ["bench.json"]
    if report["results"]:
        plots.throughput(report["results"], directory / "throughput.png", title=_where(report["machine"]))
        files.append("throughput.png")
    out.print(f"wrote {' and '.join(files)} in {short_path(directory)}", markup=False, soft_wrap=True)


def _print_table(out: Console, results: Sequence[Result], report: dict[str, Any]) -> None:
    from rich.table import Table

    cpu = {result.shape: result for result in results if result.device == "cpu"}
    compares = any(result.device != "cpu" and result.shape in cpu for result in results)
    out.print(f"a training step on {_where(report['machine'])}", markup=False, soft_wrap=True)
    table = Table()
    for heading in ("network", "loss", "device"):
        table.add_column(heading)
    for heading in ("ms a step", "quartiles", "samples/s", "GFLOP/s", *(["against cpu"] if compares else [])):
        table.add_column(heading, justify="right")
    for previous, result in zip([None, *results], results, strict=False):
        begins = previous is None or previous.shape != result.shape
        if begins:
            table.add_section()
        low, middle, high = result.quartiles
        row = [
            str(result.shape) if begins else "",
            result.shape.loss if begins else "",
            result.device if result.blas_threads is None else f"cpu, {count(result.blas_threads, 'thread')}",
            f"{middle * 1e3:.3g}",
            f"{low * 1e3:.3g} – {high * 1e3:.3g}",
            f"{result.samples_per_second:,.0f}",
            f"{result.shape.flops / middle / 1e9:,.1f}",
        ]
        if compares and result.device != "cpu" and result.shape in cpu:
            row.append(f"{result.samples_per_second / cpu[result.shape].samples_per_second:.2f}×")
        table.add_row(*row)
    out.print(table)


def count(number: int, noun: str) -> str:
    """As "1 thread" or "2 threads"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _where(machine: dict[str, Any]) -> str:
    blas = ", ".join(
        f"{library['internal_api']} {library['version']} ({library['architecture']} kernels)"
        for library in machine["blas"]
    )
    gpus = "".join(f"; {device}: {name}" for device, name in machine.get("gpus", {}).items())
    return f"{machine['cpu']}, {machine['cores']} cores, {blas or 'BLAS unknown'}{gpus}"
