"""Exact resume: where a training stands between two steps, and its checkpoints on disk.

A checkpoint is a file of :mod:`handgrad.checkpoint` with parameters and optimizer state, and beside them the
number of epochs done, of steps done in the next one, the losses of those steps, the rows of the history, and
what early stopping remembers.  Every epoch's order follows from the seed and the epoch's number (see
:mod:`handgrad.training`), so these two numbers are the position in the shuffled order and the random state.
A training that goes on from a checkpoint ends in the bits of one that was never stopped.

``FOLDER/<epochs done>-<steps done>.safetensors``: written under a temporary name, synced, renamed, the folder
synced; then all but the last two are removed.  A kill at any instant leaves a whole newest file.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from handgrad import checkpoint
from handgrad.arrays import Array, to_numpy
from handgrad.checkpoint import CheckpointError, Content

if TYPE_CHECKING:
    from handgrad.network import MLP
    from handgrad.ops.optimizer import Optimizer

KEPT = 2  # checkpoints: where the newest is damaged, the one before is used
SHARE = 0.01  # of the time that "auto" spends on checkpoints at most
LEAST_SECONDS = 10.0  # between two of "auto"
NAME = re.compile(r"(\d{6,})-(\d{9,})\.safetensors")


@dataclass
class Progress:
    """Where a training stands between two steps.

    epoch: epochs done; step: steps done in the epoch after them; losses, seconds: of these steps
    rows, steps: the history so far (see :class:`handgrad.training.History`); stopped_early: it is at its end
    best_loss, best_epoch, waited, best: early stopping's memory; ``best`` are parameters (flat, on the host)
    """

    epoch: int = 0
    step: int = 0
    losses: list[Array] = field(default_factory=list)
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    stopped_early: bool = False
    best_loss: float = np.inf
    best_epoch: int | None = None
    waited: int = 0
    best: NDArray[Any] | None = None


_NUMBERS = ("epoch", "step", "seconds", "rows", "stopped_early", "best_loss", "best_epoch", "waited")


@dataclass(frozen=True)
class Every:
    """How often checkpoints are written: after ``steps`` steps, or after ``seconds``; neither: only where the
    training starts, stops and ends.  ``automatic``: at least every LEAST_SECONDS, and so seldom that the
    writing takes at most SHARE of the time.
    """

    steps: int | None = None
    seconds: float | None = None
    automatic: bool = False

    @staticmethod
    def parse(text: str) -> Every:
        """``"auto"``, ``"500"`` (steps), ``"30s"`` (seconds) or ``"end"``; else ``ValueError``."""
        word = text.strip().lower()
        if word == "auto":
            return Every(automatic=True)
        if word == "end":
            return Every()
        if re.fullmatch(r"\d{1,15}", word) and int(word):
            return Every(steps=int(word))
        if re.fullmatch(r"\d{1,9}(\.\d*)?s", word) and float(word[:-1]) > 0:
            return Every(seconds=float(word[:-1]))
        raise ValueError(f"expected steps as 500, seconds as 30s, auto or end, got {text!r}")


class Checkpoints:
    """The checkpoints of one training in ``folder``.

    :func:`handgrad.training.fit` calls :meth:`follow` once, then :meth:`after_steps` between two steps.  The
    callbacks of ``fit`` may call :meth:`write`: they, too, run between two steps.

    Ranks that write nothing have ``folder=None``; they keep the same rhythm of steps.
    """

    def __init__(
        self, folder: Path | None, every: Every, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.folder, self.every, self._clock = folder, every, clock
        self.seconds = 0.0  # spent on writing
        self.written = 0
        self._state: tuple[MLP, Optimizer, Progress] | None = None
        self._position: tuple[int, int] | None = None  # of the last checkpoint
        self._since = 0  # steps since then
        self._wrote_at = clock()
        self._cost = 0.0  # seconds that the last one took

    def follow(self, net: MLP, optimizer: Optimizer, progress: Progress) -> None:
        """Write the state of this training from now on; its first checkpoint, if it has none yet."""
        self._state = net, optimizer, progress
        if self.folder is None or not any(self.folder.glob("*.safetensors")):
            self.write()
        else:
            self._position = progress.epoch, progress.step

    def steps_until_due(self) -> int | None:
        """After so many steps the next one is due; None where that is not counted in steps."""
        return None if self.every.steps is None else self.every.steps - self._since

    def after_steps(self, count: int, last: bool = False) -> None:
        """``count`` more steps are done: write if it is time to, or if these were the ``last``."""
        self._since += count
        waited = self._clock() - self._wrote_at
        if self.every.automatic:
            due = waited >= max(LEAST_SECONDS, self._cost / SHARE)
        elif self.every.seconds is not None:
            due = waited >= self.every.seconds
        else:
            due = self.every.steps is not None and self._since >= self.every.steps
        if due or last:
            self.write()

    def write(self) -> None:
        """Write the present state, unless it is written already.  Raises ``OSError`` that names the file."""
        assert self._state is not None, "follow() comes first"
        net, optimizer, progress = self._state
        position = progress.epoch, progress.step
        if position == self._position:
            return
        began = self._clock()
        self._since = 0
        self._position = position
        if self.folder is not None:
            self.folder.mkdir(exist_ok=True)
            path = self.folder / f"{progress.epoch:06d}-{progress.step:09d}.safetensors"
            training = {name: getattr(progress, name) for name in _NUMBERS}
            losses = [to_numpy(part).astype(np.float64) for part in progress.losses]
            progress.losses = [np.concatenate([np.empty(0), *losses])]
            arrays = {"losses": progress.losses[0], "steps": np.array(progress.steps)}
            if progress.best is not None:
                arrays["best"] = progress.best
            checkpoint.save(net, path, optimizer, training, {k: a for k, a in arrays.items() if a.size})
            for old in listed(self.folder)[:-KEPT]:
                old.unlink()
            self.written += 1
        self._wrote_at = self._clock()
        self._cost = self._wrote_at - began
        self.seconds += self._cost


def listed(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, the newest last."""
    found = {path: NAME.fullmatch(path.name) for path in folder.glob("*.safetensors")}
    places = {path: (int(match[1]), int(match[2])) for path, match in found.items() if match}
    return sorted(places, key=places.__getitem__)


def newest(folder: Path, report: Callable[[str], None]) -> tuple[Path, Content] | None:
    """The newest whole checkpoint and its contents; None where there are no checkpoints.

    A damaged one is set aside as ``….damaged`` and reported in a line.  Raises :class:`CheckpointError` if
    all are damaged, or if the newest is from a newer version of handgrad.
    """
    paths = listed(folder)[::-1]
    for number, path in enumerate(paths):
        try:
            content = checkpoint.read(path)
            progress_of(content, path)
        except checkpoint.NewerVersionError:
            raise
        except CheckpointError as error:
            if number + 1 == len(paths):
                raise CheckpointError(f"{error}; no checkpoint before it is left") from error
            path.replace(path.with_name(path.name + ".damaged"))
            report(f"{error}; set aside as {path.name}.damaged, going on from {paths[number + 1].name}")
        else:
            return path, content
    return None


def restore(content: Content, path: Path, net: MLP, optimizer: Optimizer) -> Progress:
    """Put the state of a checkpoint into ``net`` and ``optimizer``; where the training stood."""
    tensors = content[1]
    others = (checkpoint.OPTIMIZER_PREFIX, checkpoint.TRAINING_PREFIX)
    try:
        net.load_parameters({name: value for name, value in tensors.items() if not name.startswith(others)})
        optimizer.load_state(net.flat_parameters, checkpoint.named(tensors, checkpoint.OPTIMIZER_PREFIX))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return progress_of(content, path)


def progress_of(content: Content, path: Path) -> Progress:
    """Where the training of this checkpoint stood; :class:`CheckpointError` if it does not say."""
    metadata, tensors = content
    try:
        values = json.loads(metadata["training"])
        numbers = {name: values[name] for name in _NUMBERS}
        _check(numbers)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of a training") from error
    arrays = checkpoint.named(tensors, checkpoint.TRAINING_PREFIX)
    return Progress(
        **numbers,
        losses=[arrays["losses"]] if "losses" in arrays else [],
        steps=arrays["steps"].tolist() if "steps" in arrays else [],
        best=arrays.get("best"),
    )


def _check(numbers: dict[str, Any]) -> None:
    """``ValueError`` for numbers that are none: a checksum does not show what was written wrong."""
    counts = [numbers[name] for name in ("epoch", "step", "waited")]
    counts += [] if numbers["best_epoch"] is None else [numbers["best_epoch"]]
    floats = [numbers[name] for name in ("seconds", "best_loss")]
    rows = numbers["rows"]
    if not (
        all(type(count) is int and count >= 0 for count in counts)
        and all(isinstance(value, (int, float)) for value in floats)
        and isinstance(numbers["stopped_early"], bool)
        and isinstance(rows, list)
        and all(isinstance(row, dict) for row in rows)
        and len(rows) <= numbers["epoch"]
    ):
        raise ValueError("numbers of the wrong kind")
