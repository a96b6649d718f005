"""Tasks of the sanitizers in processes of their own: a kernel may write anywhere, or never end.

Each worker of the parent feeds one child, ``python -m handgrad.proof.sanitizer_process``, a line of JSON a
task; the child answers with lines of JSON.  Where it dies or falls silent, the kernel that it was at has a
finding, and a further child takes the next task.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np

from handgrad import emulator, kernel
from handgrad.emulator.launch import launch_through
from handgrad.emulator.watched import MODES
from handgrad.proof import headers, launch_description
from handgrad.proof.guarded import Memory
from handgrad.proof.sanitize import Finding, Progress, Verdict, sanitize
from handgrad.proof.trials import Trial, trials
from handgrad.proof.workload import Workload, of_launch, of_trial

SILENCE = 300.0  # seconds without a line after which a kernel counts as hung
LARGEST = 800_000  # products of a trial's sizes; watched, a kernel is some hundred times slower


@dataclasses.dataclass(frozen=True)
class Task:
    """One kernel: the trials of ``op`` in ``dtype``, or its launches in the TOML file ``launches``."""

    kernel: str
    detectors: tuple[str, ...]
    seeds: tuple[int, ...]
    op: str = ""
    dtype: str = ""
    source: str = ""
    launches: str = ""

    def workloads(self) -> list[Workload]:
        """What to run."""
        if self.op:
            return [of_trial(trial) for trial in self.trials()]
        described = launch_description.read(Path(self.launches))
        return [of_launch(Path(self.source), one) for one in described if one.kernel == self.kernel]

    def trials(self) -> list[Trial]:
        """The small ones of ``kernels check --quick``."""
        return [trial for trial in trials(self.op, self.dtype, quick=True) if is_small(trial.shape)]


def is_small(shape: dict[str, int]) -> bool:
    """Whether a trial of this shape is quick enough to be watched."""
    return math.prod(size for size in shape.values() if size) <= LARGEST


def run_tasks(
    tasks: Sequence[Task], progress: Progress | None = None, silence: float = SILENCE
) -> list[Verdict]:
    """The verdicts on all tasks, in their order."""
    waiting: queue.Queue[int] = queue.Queue()
    for number in range(len(tasks)):
        waiting.put(number)
    verdicts: dict[int, list[Verdict]] = {}
    lock = threading.Lock()

    def work() -> None:
        with _Child() as child:
            while True:
                try:
                    number = waiting.get_nowait()
                except queue.Empty:
                    return
                found = list(child.run(tasks[number], silence))
                with lock:
                    verdicts[number] = found
                    if progress is not None:
                        progress(len(verdicts), len(tasks), tasks[number].kernel)

    workers = max(1, min(len(tasks), os.cpu_count() or 1))
    with ThreadPoolExecutor(workers) as pool:
        for started in [pool.submit(work) for _ in range(workers)]:
            started.result()
    return [verdict for number in sorted(verdicts) for verdict in verdicts[number]]


class _Child:
    """A process that runs one task after another, and is replaced where it ends."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._stderr: IO[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def run(self, task: Task, silence: float) -> Iterator[Verdict]:
        """The verdicts on a task."""
        process = self._started()
        assert process.stdin is not None, "opened as a pipe"
        process.stdin.write(json.dumps(dataclasses.asdict(task)) + "\n")
        process.stdin.flush()
        at, setting = "", ""
        done: list[str] = []
        while True:
            try:
                line = self._lines.get(timeout=silence)
                reason = "" if line else self._reason()
            except queue.Empty:
                line, reason = None, f"no answer within {silence:.0f} s: the kernel does not end"
            if not line:
                self._end()
                yield from _after_death(task, at or task.detectors[0], setting, done, reason)
                return
            message = json.loads(line)
            if "failed" in message:
                raise ValueError(message["failed"])
            if "begin" in message:
                at, setting = message["begin"]
            elif "verdict" in message:
                verdict = _verdict(message["verdict"])
                done.append(verdict.detector)
                yield verdict
            else:
                return

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 (_end closes it)
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(kernel.kernels_directory())],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr,
                text=True, env=environment,
            )  # fmt: skip
            self._lines = queue.Queue()
            threading.Thread(target=_read, args=(self._process.stdout, self._lines), daemon=True).start()
        return self._process

    def _reason(self) -> str:
        assert self._process is not None, "it has been started"
        assert self._stderr is not None, "it has been started"
        code = self._process.wait()
        self._stderr.seek(0)
        said = [line.strip() for line in self._stderr if line.strip()]
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"the kernel's process died with {how}" + (f": {said[-1]}" if said else "")

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._stderr is not None:
            self._stderr.close()
        self._process = self._stderr = None


def _read(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _verdict(given: dict[str, Any]) -> Verdict:
    findings = tuple(Finding(**finding) for finding in given.pop("findings"))
    return Verdict(**given, findings=findings)


def _after_death(task: Task, at: str, setting: str, done: Sequence[str], reason: str) -> Iterator[Verdict]:
    for detector in task.detectors:
        if detector == at:
            yield Verdict(task.kernel, detector, 1, (Finding(detector, reason, setting),))
        elif detector not in done:
            yield Verdict(task.kernel, detector, 0, (), "not run: the kernel ended its process")


# ---- the child -------------------------------------------------------------------------------------------


def main() -> None:
    """The child: a task a line on stdin, answers on stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a kernel's printf goes where it does no harm

    def say(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    with kernel.use_kernels(sys.argv[1]):
        for line in sys.stdin:
            given: dict[str, Any] = json.loads(line)
            task = Task(**given | {name: tuple(given[name]) for name in ("detectors", "seeds")})
            try:
                verdicts = sanitize(
                    task.kernel,
                    task.workloads(),
                    task.detectors,
                    task.seeds,
                    lambda detector, setting: say(begin=[detector, setting]),
                )
                for verdict in verdicts:
                    say(verdict=dataclasses.asdict(verdict))
            except (TypeError, ValueError) as error:  # a launch that does not fit its kernel
                say(failed=" ".join(str(error).split()))
            say(end=task.kernel)


def tasks_of_ops(
    ops: Sequence[str], dtypes: Sequence[str], detectors: Sequence[str], seeds: Sequence[int]
) -> list[Task]:
    """The project's kernels: one task an op and type."""
    return [
        Task(f"{op} {dtype}", tuple(detectors), tuple(seeds), op, dtype)
        for op in ops
        for dtype in dtypes
        if trials(op, dtype, quick=True)
    ]


def tasks_of_file(source: Path, launches: Path, detectors: Sequence[str], seeds: Sequence[int]) -> list[Task]:
    """A user's kernels: one task a kernel expression of the launch description."""
    expressions = dict.fromkeys(one.kernel for one in launch_description.read(launches))
    return [
        Task(expression, tuple(detectors), tuple(seeds), source=str(source), launches=str(launches))
        for expression in expressions
    ]


def tasks_of_headers(detectors: Sequence[str], seeds: Sequence[int]) -> list[Task]:
    """The kernels that try what the shared headers promise."""
    return [
        task
        for source, launches in headers.sources()
        for task in tasks_of_file(source, launches, detectors, seeds)
    ]


def build(tasks: Sequence[Task], workers: int | None = None) -> None:
    """Compile what the tasks run, in parallel; raises EmulatorError where a kernel does not compile."""
    pairs: dict[tuple[Path, str], None] = {}
    for task in tasks:
        pairs |= _launched(task) if task.op else {(Path(task.source), task.kernel): None}
    wanted = dict.fromkeys(detector for task in tasks for detector in task.detectors)
    for mode in dict.fromkeys(MODES.get(detector, "plain") for detector in wanted):
        emulator.prebuild(pairs, workers, mode)


def _launched(task: Task) -> dict[tuple[Path, str], None]:
    """The instantiations that the task's trials launch, found without running any."""
    found: dict[tuple[Path, str], None] = {}

    def record(source: Path, expression: str, *launch: Any) -> None:
        found[source, expression] = None

    with launch_through(record), np.errstate(all="ignore"):
        for trial in task.trials():
            with contextlib.suppress(Exception):  # the run itself will show it
                trial.run(Memory(emulator, trial.seed, dry=True))
    return found


if __name__ == "__main__":
    main()
