"""Groups of cases in processes of their own: after a fault, a GPU's context is of no use to the next case.

The parent starts ``python -m handgrad.proof.isolation`` for a group; the child writes a line of JSON before
and after every trial.  Where it dies or falls silent, the trial that it was at has failed, and a further
child takes the rest of the group, up to MOST_DEATHS times.
"""

from __future__ import annotations

import argparse
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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO

from handgrad import kernel
from handgrad.arrays import Device, resolve_device
from handgrad.proof.correctness import Case, Group, case_of, run_group

SILENCE = 300.0  # seconds without a line, compiling included, after which a kernel counts as hung
PROCESSES = 4  # at a time: each holds a GPU context of some hundred MiB
MOST_DEATHS = 3  # of children of one group: what is left then has failed, too

Counted = Callable[[Iterator[Case]], Iterator[Case]]


def run_isolated(
    device: Device, groups: Sequence[Group], counted: Counted, silence: float = SILENCE
) -> list[Case]:
    """The cases of all groups, in order; several groups at a time."""
    lock, stopped = threading.Lock(), threading.Event()

    def collect(group: Group) -> list[Case]:
        cases: list[Case] = []
        for case in cases_of(device, group, silence):
            if stopped.is_set():
                break
            with lock:
                cases += counted(iter([case]))
        return cases

    with ThreadPoolExecutor(min(PROCESSES, os.cpu_count() or 1)) as pool:
        try:
            return [case for cases in pool.map(collect, groups) for case in cases]
        except BaseException:  # Ctrl-C too: start nothing more
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def cases_of(device: Device, group: Group, silence: float = SILENCE) -> Iterator[Case]:
    """The cases of a group, each as soon as it is known."""
    trials, done = group.trials(), 0
    for _ in range(MOST_DEATHS):
        with _Child(device, group, done) as child:
            for case in child.cases(silence):
                done += 1
                yield case
            reason = child.reason()
        if done == len(trials):
            return
        yield case_of(trials[done], math.nan, 0.0, [reason])
        done += 1
    for trial in trials[done:]:
        yield case_of(trial, math.nan, 0.0, [f"not run: {MOST_DEATHS} processes died before it; {reason}"])


class _Child:
    """A process that runs a group from trial number ``start`` on."""

    def __init__(self, device: Device, group: Group, start: int) -> None:
        command = [sys.executable, "-m", __name__, str(device), group.op, group.dtype, str(start)]
        command += ["--quick"] if group.quick else []
        self._stderr: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 (__exit__ closes it)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(
            [*command, "--kernels", str(kernel.kernels_directory())],
            stdout=subprocess.PIPE, stderr=self._stderr, text=True, env=environment,
        )  # fmt: skip
        self._hung = 0.0

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        self._stderr.close()

    def cases(self, silence: float) -> Iterator[Case]:
        """Case after case, until the process ends or has said nothing for ``silence`` seconds."""
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, args=(lines,), daemon=True).start()
        while True:
            try:
                line = lines.get(timeout=silence)
            except queue.Empty:
                self._hung = silence
                return
            if line is None:
                self._process.wait()
                return
            message = json.loads(line)
            if message:
                yield Case(**message)

    def _read(self, lines: queue.Queue[str | None]) -> None:
        assert self._process.stdout is not None, "opened as a pipe"
        for line in self._process.stdout:
            lines.put(line)
        lines.put(None)

    def reason(self) -> str:
        """Why the process ended early."""
        if self._hung:
            return f"no answer within {self._hung:.0f} s: the process was ended"
        code = self._process.returncode
        self._stderr.seek(0)
        said = [line.strip() for line in self._stderr if line.strip()]
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"its process died with {how}" + (f": {said[-1]}" if said else "")


def main() -> None:
    """The child."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}" if __spec__ else None)
    parser.add_argument("device")
    parser.add_argument("op")
    parser.add_argument("dtype")
    parser.add_argument("start", type=int)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--kernels", required=True)
    given = parser.parse_args()
    device = resolve_device(given.device)
    with kernel.use_kernels(given.kernels):
        for case in run_group(device, Group(given.op, given.dtype, given.quick), given.start):
            print(json.dumps(dataclasses.asdict(case)), flush=True)
            if not case.passed:
                _require_a_living(device)


def _require_a_living(device: Device) -> None:
    """End the process where a fault has made its GPU context unusable: the next one goes on."""
    if device.kind != "cuda":
        return
    with device:
        try:
            device.array_module.cuda.Device().synchronize()
            device.array_module.zeros(1).get()
        except Exception as error:
            sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
