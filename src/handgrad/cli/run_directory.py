"""The folder that a training run leaves: config.json, metrics.jsonl, weights.safetensors, curves.png, and
checkpoints/.

One process at a time works in it: it holds a lock (flock) on the folder, which ends with the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handgrad.cli.errors import wrong
from handgrad.cli.output import plain


@dataclass(frozen=True)
class RunDirectory:
    """One run on disk.  Files are replaced atomically; ``metrics.jsonl`` grows by a line an epoch."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def weights(self) -> Path:
        return self.path / "weights.safetensors"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    def write_config(self, config: Mapping[str, Any]) -> None:
        from handgrad.checkpoint import write_atomically

        text = json.dumps(plain(config), indent=2, allow_nan=False) + "\n"
        write_atomically(self.config, text.encode())

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        try:
            with self.metrics.open("a") as file:
                file.write(_line(row))
        except OSError as error:  # a full disk's names no file
            raise OSError(error.errno, error.strerror, str(self.metrics)) from error

    def rewrite_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Exactly these rows: what came after the checkpoint that a run goes on from will come again."""
        from handgrad.checkpoint import write_atomically

        write_atomically(self.metrics, "".join(map(_line, rows)).encode())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of this run inside the block; ``ValueError`` if one is in it.

        Windows has no lock on folders: there, nobody is kept out.
        """
        if sys.platform == "win32":
            yield
            return
        import fcntl

        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"{self.path}: another process is training in this run; wait for its end or stop it"
                ) from None
            yield
        finally:
            os.close(descriptor)

    def read_config(self) -> dict[str, Any]:
        """What ``config.json`` says; ``ValueError`` in one line where it is no run's."""
        try:
            config = json.loads(self.config.read_text())
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{self.config}: not valid JSON ({str(error)[:200]}); the run is damaged"
            ) from None
        if not isinstance(config, dict):
            raise ValueError(f"{self.config}: expected a JSON object, got {type(config).__name__}")
        return config


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(plain(row), allow_nan=False) + "\n"


def leftovers(folder: Path) -> list[Path]:
    """Files that a killed process had not finished writing."""
    return [path for path in folder.glob(".*.part") if path.is_file()]


def remove_leftovers(directory: RunDirectory) -> None:
    """Remove them from a run's folder, which must be locked."""
    for path in (*leftovers(directory.path), *leftovers(directory.checkpoints)):
        path.unlink()


def check_out(out: Path | None) -> None:
    """Refuse an ``--out`` that holds something already: nothing is lost by a repeated command."""
    if out is None or not out.exists():
        return
    if not out.is_dir():
        raise wrong("--out", "a new or an empty folder", f"the file {out}", "name another")
    if set(out.iterdir()) - set(leftovers(out)):
        raise wrong(
            "--out", "a new or an empty folder", f"{out}, which holds files", "name another or empty it"
        )


def create(out: Path | None) -> RunDirectory:
    """Make the run's folder: ``out``, or ``runs/<date>-<time>`` with a number where that is taken."""
    check_out(out)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        return RunDirectory(out)
    stem = time.strftime("%Y-%m-%d-%H%M%S")
    Path("runs").mkdir(exist_ok=True)
    number = 1
    while True:
        path = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return RunDirectory(path)


def find(run: Path, argument: str) -> tuple[RunDirectory | None, Path]:
    """The run that ``run`` names, or None for a bare weights file, and the weights to load."""
    if run.is_dir():
        directory = RunDirectory(run)
        if not directory.weights.is_file():
            raise wrong(
                argument, "a run's folder with weights.safetensors", run, "`handgrad train` makes one"
            )
        return directory, directory.weights
    if run.is_file():
        return None, run
    raise wrong(argument, "a run's folder or a .safetensors file", f"{run}, which does not exist")
