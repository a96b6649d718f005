"""Where a benchmark's report goes: bench.json, the page and the pictures."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handgrad.cli.errors import wrong

if TYPE_CHECKING:
    from rich.console import Console


def check_out(directory: Path | None) -> None:
    """``ValueError`` for a name that is a file's."""
    if directory is not None and directory.exists() and not directory.is_dir():
        raise wrong("--out", "a folder", f"the file {directory}")


def finish(document: dict[str, Any], out: Console, directory: Path | None, as_json: bool) -> None:
    """Write the report to ``directory``; without one to the usual place, unless the JSON goes to stdout."""
    if directory is None and not as_json and (document["results"] or document["scaling"]):
        directory = Path("runs") / time.strftime("bench-%Y-%m-%d-%H%M%S")
    if directory is not None:
        write(directory, document, out)


def write(directory: Path, document: dict[str, Any], out: Console) -> None:
    """bench.json, and page and pictures where something was measured."""
    from handgrad.checkpoint import write_atomically
    from handgrad.cli.output import plain, short_path

    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plain(document), indent=1, allow_nan=False) + "\n"
    write_atomically(directory / "bench.json", text.encode())
    files = ["bench.json"]
    if document["results"] or any(curve["points"] for curve in document["scaling"]):
        files += _draw(directory, plain(document))
    out.print(f"wrote {', '.join(files)} in {short_path(directory)}", markup=False, soft_wrap=True)


def _draw(directory: Path, document: dict[str, Any]) -> list[str]:
    """The page, and each picture as PNG and SVG; the names of what was written."""
    from handgrad.benchmark import page, pictures, svg
    from handgrad.checkpoint import write_atomically

    write_atomically(directory / "bench.html", page.page(document).encode())
    drawn = pictures.pictures(document)
    for picture in drawn:
        write_atomically(
            directory / f"{picture.name}.png", svg.png(picture.draw, picture.wide, picture.title)
        )
        write_atomically(
            directory / f"{picture.name}.svg",
            svg.svg_file(picture.draw, picture.wide, picture.title).encode(),
        )
    return ["bench.html", *(f"{picture.name}.png and .svg" for picture in drawn)]
