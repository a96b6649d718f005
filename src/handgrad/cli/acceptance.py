"""``handgrad bench --device cuda --full``: the acceptance run of a GPU machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from handgrad.cli.errors import FAILED, wrong

if TYPE_CHECKING:
    from rich.console import Console


def acceptance(out: Console, devices: Sequence[str] | None, folder: Path | None, as_json: bool) -> None:
    """Run it, print the report and write it; exit code 1 where a kernel's check or a gradient failed."""
    from handgrad.acceptance import report, run
    from handgrad.cli.output import print_json, short_path

    if devices is not None and len(devices) > 1:
        raise wrong("--device", "one GPU, or the emulator, with --full", " ".join(devices))
    device = devices[0] if devices else "cuda"
    if device in ("cpu", "auto"):
        raise wrong("--device", "cuda, cuda:N or emulator with --full", device)
    with out.status("acceptance run") as status:
        found = run(device, progress=status.update)
    out.print(report.markdown(found), markup=False, highlight=False, soft_wrap=True)
    if folder is None and not as_json:
        folder = Path("runs") / time.strftime("acceptance-%Y-%m-%d-%H%M%S")
    if folder is not None:
        report.write(found, folder)
        out.print(f"wrote {' and '.join(report.FILES)} in {short_path(folder)}", markup=False)
    if as_json:
        print_json(found)
    wrong_gradients = [one for one in found["figures"] if one["note"].startswith("not timed")]
    if found["checks"]["failed"] or wrong_gradients:
        raise typer.Exit(FAILED)
