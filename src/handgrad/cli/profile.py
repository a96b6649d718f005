"""``handgrad kernels profile``: the memory traffic of kernels, counted on the emulator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handgrad.cli.errors import FAILED, wrong
from handgrad.cli.options import JsonOption, KernelsOption, kernels_from

if TYPE_CHECKING:
    from rich.console import Console

    from handgrad.proof.traffic import Profile, Shape

WHERE = "emulated on the CPU"


def profile(
    kernels: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KERNEL|FILE.cu]...",
            help="An op (linear, linear.forward) or a kernel (linear_forward), or one file of your own; "
            "by default all kernels of the project.",
            show_default=False,
        ),
    ] = None,
    launch: Annotated[
        Path | None,
        typer.Option(
            "--launch",
            metavar="FILE.toml",
            help="How the kernels of FILE.cu are launched; by default the .toml beside it.",
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            "--shape",
            metavar="N,D,H,C",
            help="A step of N samples through D → H → C; may be repeated. Without KERNEL, one step by its "
            "plan, beside what the plan says. By default small ones that launch the kernels of the README's "
            "steps.",
        ),
    ] = None,
    path: Annotated[
        str | None,
        typer.Option("--path", metavar="R1", help="With --shape: this path, where it can do the shape."),
    ] = None,
    by_op: Annotated[
        bool, typer.Option("--by-op", help="With --shape: the layer functions one by one, not the plan.")
    ] = False,
    full_size: Annotated[
        bool, typer.Option("--full-size", help="The README's steps themselves: a minute or two.")
    ] = False,
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            "--gpu",
            metavar="NAME",
            help="Also predict (not measure) a kernel's time at best on this GPU: A100, H100, ...; may be "
            "repeated. A plan predicts for every GPU without it; not with FILE.cu, whose operations are "
            "unknown.",
        ),
    ] = None,
    folder: KernelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count what kernels do to memory, access by access: no GPU.

    Of each buffer: the bytes that any kernel would have to move, those requested, moved (32-byte sectors of
    each warp's request) and distinct, and the sectors against the least possible; of shared memory:
    wavefronts against the least possible; barriers and warp collectives.  Emulated: the counts are exact, and
    say nothing of time.  Exit code 1 where a kernel accesses memory that it was not given.  docs/profile.md
    describes the figures and the JSON.
    """
    from handgrad import gpus
    from handgrad.cli.output import console, print_json
    from handgrad.cli.progress import counted
    from handgrad.plans import paths
    from handgrad.proof import traffic

    out = console(as_json)
    by_plan = bool(shape) and not kernels and not full_size and not by_op
    if path is not None and not by_plan:
        raise wrong("--path", "--shape with it, and neither KERNEL nor --by-op", path)
    if path is not None and path not in paths.NAMES:
        raise wrong(
            "--path", f"one of {', '.join(paths.NAMES)}", path, "--by-op profiles the layer functions"
        )
    if gpu and by_plan:
        raise wrong(
            "--gpu", "KERNEL or --by-op with it", " ".join(gpu), "a plan predicts for every GPU as it is"
        )
    chosen_gpus = [gpus.find_gpu(name).name for name in gpu or []]
    if by_plan:
        from handgrad.cli import plan_profile
        from handgrad.proof.plan_traffic import profile_plan

        with kernels_from(folder), counted(out) as progress:
            shapes = _shapes(shape, full_size)
            found = []
            for done, one in enumerate(shapes):
                if progress is not None:
                    progress(done, len(shapes), str(one))
                found.append(profile_plan(one, path))
        plan_profile.show(out, found, as_json)
        return
    with kernels_from(folder):
        files = [word for word in kernels or [] if word.endswith((".cu", ".cuh"))]
        if files:
            if shape or full_size:
                raise wrong("--shape", "none with a FILE.cu", "one", "its launch description has the shapes")
            if gpu:
                remedy = (
                    "a predicted time needs the kernel's operations, known of the project's kernels alone"
                )
                raise wrong("--gpu", "none with a FILE.cu", " ".join(gpu), remedy)
            from handgrad.proof.file_traffic import profile_file

            source, description = _file_and_launch(kernels or [], launch)
            profiles = profile_file(source, description)
        else:
            if launch is not None:
                raise wrong("--launch", "a FILE.cu for it", "none", "write handgrad kernels profile FILE.cu")
            with counted(out) as progress:
                profiles = traffic.profile_steps(_shapes(shape, full_size), kernels or [], progress)
    _print(out, profiles, chosen_gpus)
    if as_json:
        print_json(
            {
                "schema": traffic.SCHEMA,
                "emulated": True,
                "bars": {"coalescing": traffic.COALESCING_BAR, "conflicts": traffic.CONFLICTS_BAR},
                "launches": [one.as_row(chosen_gpus) for one in profiles],
            }
        )
    if any(one.out_of_bounds() for one in profiles):
        raise typer.Exit(FAILED)


def _shapes(given: Sequence[str] | None, full_size: bool) -> tuple[Shape, ...]:
    from handgrad.proof import traffic

    if given and full_size:
        raise wrong("--full-size", "no --shape with it", "both")
    if given:
        return tuple(traffic.shape_of(text) for text in given)
    return traffic.FULL if full_size else traffic.STAND_INS


def _file_and_launch(kernels: Sequence[str], launch: Path | None) -> tuple[Path, Path]:
    if len(kernels) > 1:
        raise wrong("KERNEL", "one FILE.cu, or kernels of the project", " ".join(kernels))
    source = Path(kernels[0])
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file")
    description = launch or source.with_suffix(".toml")
    if not description.is_file():
        remedy = "it says how the kernels are launched: see docs/sanitize.md"
        raise FileNotFoundError(
            f"--launch: expected a launch description, {description} is no file; {remedy}"
        )
    return source.resolve(), description.resolve()


# ---- tables ----------------------------------------------------------------------------------------------


def _print(out: Console, profiles: Sequence[Profile], chosen_gpus: Sequence[str]) -> None:
    from rich.markup import escape

    from handgrad.proof import traffic

    out.print(f"memory traffic by launch, {WHERE}: bytes, and multiples of the least possible\n")
    over = unaligned = 0
    for one in profiles:
        _print_launch(out, one, chosen_gpus)
        for line in one.over():
            is_listed = one.aligned is False and not line.startswith("shared ")
            over, unaligned = over + (not is_listed), unaligned + is_listed
            style, word = (
                ("yellow", "rows that are no whole sectors") if is_listed else ("red", "over the bar")
            )
            out.print(f"  [{style}]{word}[/{style}]: {escape(line)}", soft_wrap=True)
        for line in one.out_of_bounds():
            out.print(f"  [red]out of bounds[/red]: {escape(line)}", soft_wrap=True)
        out.print()
    bars = f"{traffic.COALESCING_BAR} (sectors) and {traffic.CONFLICTS_BAR} (wavefronts)"
    launches = f"{len(profiles)} launch{'es' * (len(profiles) != 1)}, {WHERE}"
    found = f"{over}, and {unaligned} where rows are no whole sectors"
    out.print(f"{launches}; over the bars of {bars}: {found}", soft_wrap=True)
    outside = sum(len(one.out_of_bounds()) for one in profiles)
    if outside:
        remedy = "`handgrad kernels sanitize` says by which threads"
        out.print(
            f"[red]out of bounds[/red] at {outside} place{'s' * (outside != 1)}; {remedy}", soft_wrap=True
        )


def _print_launch(out: Console, one: Profile, chosen_gpus: Sequence[str]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    counts = one.counts
    title = escape(counts.expression)
    if one.expected is not None:
        sizes = " ".join(f"{name}={size:,}" for name, size in one.expected.shape.items())
        title = f"[bold]{one.expected.op}[/bold] {sizes}  {title}"
    out.print(title, soft_wrap=True)
    for line in _facts(one, chosen_gpus):
        out.print(f"  {escape(line)}", soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("  buffer")
    table.add_column("access")
    for heading in ("compulsory", "requested", "moved", "distinct", "of least"):
        table.add_column(heading, justify="right", no_wrap=True)
    for buffer, accesses in one.buffers.items():
        compulsory = one.compulsory(buffer)
        for number, (access, traffic) in enumerate(accesses.items()):
            table.add_row(
                f"  {escape(buffer)}" if number == 0 else "",
                access,
                f"{compulsory:,}" if compulsory is not None and number == 0 else "",
                f"{traffic.requested_bytes:,}",
                f"{traffic.moved_bytes:,}",
                f"{traffic.distinct_bytes:,}" if buffer in counts.arrays else "",
                _ratio(traffic.coalescing, one.aligned is not False),
            )
    for access, shared in one.shared.items():
        table.add_row(
            "  shared memory" if access == next(iter(one.shared)) else "",
            access,
            "",
            f"{shared.requested_bytes:,}",
            f"{shared.wavefronts:,} waves",
            "",
            _ratio(shared.conflicts, True),
        )
    out.print(table)


def _facts(one: Profile, chosen_gpus: Sequence[str]) -> list[str]:
    counts = one.counts
    grid = " x ".join(map(str, counts.grid))
    block = " x ".join(map(str, counts.block))
    shared = counts.static_shared + counts.shared
    words = [f"grid {grid}, block {block}, {shared:,} bytes of shared memory"]
    if one.shape is not None:
        step = f"step {one.shape}"
        words[0] += f"; {step}, for {one.shape.stands_for}" if one.shape.stands_for else f"; {step}"
    barriers = counts.barriers / one.blocks
    collectives = ", ".join(f"{name} {count:,}" for name, count in counts.collectives.items())
    words.append(f"barriers a block {barriers:.4g}; collectives of warps: {collectives or 'none'}")
    if one.expected is not None:
        compulsory = sum(one.expected.compulsory.values())
        intensity = "" if one.intensity is None else f", {one.intensity:.2f} for each distinct byte"
        words.append(
            f"operations {one.expected.operations:,} (by formula){intensity}; "
            f"bytes: compulsory {compulsory:,}, moved {one.total('moved_bytes'):,}, "
            f"distinct {one.total('distinct_bytes'):,}"
        )
    words += [str(prediction) for prediction in map(one.predict, chosen_gpus) if prediction is not None]
    return words


def _ratio(value: float, bar_holds: bool) -> str:
    from handgrad.proof import traffic

    text = f"{value:.3f}"
    if value <= traffic.COALESCING_BAR:
        return text
    return f"[red]{text} ![/red]" if bar_holds else f"[yellow]{text} ~[/yellow]"
