"""What one sees of a training: a line an epoch, and on a terminal a bar that moves in between."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from handgrad.cli.errors import INTERRUPTED, TERMINATED

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


class Interrupt:
    """Ctrl-C and SIGTERM wait for the end of the step, so that the weights are those of a whole step.

    Inside the block, ``asked`` is true once one came, and :meth:`check` raises ``KeyboardInterrupt``.  A
    second one does not wait: ``at_once`` is true then, and the weights may be in the middle of a step.
    """

    def __init__(self) -> None:
        self.asked = self.at_once = False
        self.exit_code = INTERRUPTED
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number, default in (
                (signal.SIGINT, signal.default_int_handler),
                (signal.SIGTERM, signal.SIG_DFL),
            ):
                if signal.getsignal(number) is default:
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise ``KeyboardInterrupt`` if Ctrl-C was pressed or SIGTERM came."""
        if self.asked:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            self.at_once = True
            raise KeyboardInterrupt
        self.asked = True
        if number == signal.SIGTERM:
            self.exit_code = TERMINATED
        again = "Ctrl-C again" if number == signal.SIGINT else "a second signal"
        print(f"\nstopping after this step; {again} stops at once", file=sys.stderr)


class TrainingDisplay:
    """Lines and a bar for ``fit``: its :meth:`step` and :meth:`epoch` are the two callbacks' display."""

    def __init__(self, console: Console, epochs: int, samples: int, measured_on: str, quiet: bool) -> None:
        self.console, self.epochs, self.samples = console, epochs, samples
        self.measured_on = measured_on  # "test" or "validation"
        self.quiet = quiet
        self.last_figure = ""  # of the epoch before, to stand in the bar
        self._bar: Progress | None = None
        self._task: Any = None
        self._began = 0.0
        self._epoch = 0

    def __enter__(self) -> TrainingDisplay:
        if self.console.is_terminal and not self.quiet:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn(f"epoch {{task.fields[epoch]:>{len(str(self.epochs))}}}/{self.epochs}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(compact=True),
                console=self.console,
                transient=True,
            )
            self._task = self._bar.add_task("", total=float(self.epochs), epoch=1, figures="")
            self._bar.start()
        self._began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, step: int, steps: int, loss: Callable[[], float]) -> None:
        """Move the bar; ``loss()`` is asked for only where somebody sees it."""
        if self._bar is None:
            return
        part = step / steps
        speed = part * self.samples / max(time.perf_counter() - self._began, 1e-9)
        figures = [f"loss {loss():.4f}", self.last_figure, f"{speed:,.0f} samples/s"]
        self._bar.update(
            self._task,
            completed=self._epoch + part,
            epoch=self._epoch + 1,
            figures="  ".join(figure for figure in figures if figure),
        )

    def epoch(self, row: dict[str, Any]) -> None:
        """Print the epoch's line."""
        self._epoch, self._began = row["epoch"], time.perf_counter()
        accuracy = "" if row["validation_accuracy"] is None else f"accuracy {row['validation_accuracy']:.2%}"
        self.last_figure = f"{self.measured_on} {accuracy}" if accuracy else ""
        if self.quiet:
            return
        words = [
            f"epoch {row['epoch']:>{len(str(self.epochs))}}/{self.epochs}",
            f"loss {row['train_loss']:.4f}",
            f"{self.measured_on} loss {row['validation_loss']:.4f}",
            accuracy,
            f"{row['samples_per_second']:,.0f} samples/s",
        ]
        self.console.print("  ".join(word for word in words if word), markup=False, soft_wrap=True)
        self.console.file.flush()


def check_finite(row: dict[str, Any], lr: float) -> None:
    """``RuntimeError`` once the loss is no number any more: training on would waste the time."""
    if not math.isfinite(row["train_loss"]):
        raise RuntimeError(
            f"the loss became {row['train_loss']} in epoch {row['epoch']}; train with a smaller --lr "
            f"(it was {lr:g}), or with --clip-norm 1"
        )


@contextlib.contextmanager
def counted(out: Console) -> Iterator[Callable[[int, int, str], None] | None]:
    """A callback ``(done, total, what)`` that moves a bar; nothing where the output is no terminal."""
    if not out.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)
