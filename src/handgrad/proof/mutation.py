"""The mutation run: do ``check`` and ``sanitize`` notice when a kernel is changed?

Every mutant is one change of a kernel's text (``mutation_operators.py``) in a copy of ``kernels/``; a process
of its own finds out what becomes of it (``mutation_check.py``)::

    caught        a case fails, the sanitizers object, the process dies or does not end
    survived      nothing notices
    equivalent    the machine code is the same in every instantiation: nothing could notice
    not compiled  not a kernel at all

The share is caught / (caught + survived).  Fences, waits and cache hints are counted apart.  Results are kept
until a source that they depend on changes, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from handgrad import kernel
from handgrad.emulator.build import runtime_library
from handgrad.emulator.compiler import cache_directory
from handgrad.proof import mutation_check
from handgrad.proof.mutation_check import CAUGHT, EQUIVALENT, NOT_COMPILED, SURVIVED, Outcome, included
from handgrad.proof.mutation_operators import APART, Mutant, mutants_of

SEED, COUNT = 20_260_713, 200  # of the run that docs/mutation.md records: fixed before the first run
LEAST_SHARE = 0.97
START_LIMIT = 120.0  # seconds until a process says what it does first
DEATH_LIMIT = 60.0  # and from its last word to its end
VERDICTS = (CAUGHT, SURVIVED, EQUIVALENT, NOT_COMPILED)
SOURCES = ("kernel.py", "parameters.py", "ops", "emulator", "proof")  # what a verdict depends on


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant; ``by`` names what caught it, ``detail`` the case that failed first."""

    mutant: Mutant
    verdict: str
    by: str
    detail: str
    seconds: float

    @property
    def apart(self) -> bool:
        """Whether it is counted apart: a fence, a wait or a hint."""
        return self.mutant.operator == APART


# ---- which mutants ---------------------------------------------------------------------------------------


def all_mutants() -> list[Mutant]:
    """Every mutant of the files that kernels of the catalogue are made of, numbered from 1."""
    folder = kernel.kernels_directory()
    shipped = {file for entry in kernel.catalogue() for file in included(folder, entry.file)}
    return mutants_of(folder, sorted(shipped))


def select(mutants: Sequence[Mutant], seed: int = SEED, count: int = COUNT) -> list[Mutant]:
    """``count`` of them, by ``seed``: one of every file and operator in turn, until there are enough."""
    cells: dict[tuple[str, str], list[Mutant]] = {}
    for mutant in mutants:
        cells.setdefault((mutant.file, mutant.operator), []).append(mutant)
    chance = random.Random(seed)
    for members in cells.values():
        chance.shuffle(members)
    chosen: list[Mutant] = []
    while len(chosen) < min(count, len(mutants)):
        for members in cells.values():
            if members and len(chosen) < count:
                chosen.append(members.pop())
    return sorted(chosen, key=lambda mutant: mutant.number)


# ---- the run ---------------------------------------------------------------------------------------------

Progress = Callable[[int, int, Verdict], None]


def run(
    mutants: Sequence[Mutant], jobs: int = 1, progress: Progress | None = None, fresh: bool = False
) -> list[Verdict]:
    """The verdicts of ``mutants``, in their order, ``jobs`` at a time; what is known already is not run.

    ``fresh`` forgets what is known.  Raises ``RuntimeError`` where the kernels fail without any change.
    """
    results = Results(fresh)
    todo = [mutant for mutant in mutants if results.known(mutant) is None]
    done = len(mutants) - len(todo)
    lock = threading.Lock()
    stopped = threading.Event()

    def one(mutant: Mutant) -> None:
        nonlocal done
        verdict = judge(mutant, results.folder)
        with lock:
            if stopped.is_set():
                return  # it may have been ended, which is no verdict
            done += 1
            results.add(verdict)
            if progress is not None:
                progress(done, len(mutants), verdict)

    if todo:
        runtime_library()  # once, rather than in every process
        pool = ThreadPoolExecutor(jobs)
        try:
            for outcome in [pool.submit(one, mutant) for mutant in todo]:
                outcome.result()
        except BaseException:  # Ctrl-C too: what runs is ended, and judged again in the next run
            with lock:
                stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in tuple(_running):
                end(process)
            raise
        finally:
            pool.shutdown()
    found = [results.known(mutant) for mutant in mutants]
    return [verdict for verdict in found if verdict is not None]


class Results:
    """The verdicts so far, a line of JSON each, in a folder that is named after all they depend on."""

    def __init__(self, fresh: bool = False) -> None:
        self.folder = cache_directory() / "mutation" / sources_digest()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = self.folder / "verdicts.jsonl"
        if fresh:
            self._file.unlink(missing_ok=True)
        self._known: dict[Mutant, Verdict] = {}
        lines = self._file.read_text(encoding="utf-8").splitlines() if self._file.exists() else []
        for line in lines:
            entry = json.loads(line)
            mutant = Mutant(**entry.pop("mutant"))
            self._known[mutant] = Verdict(mutant, **entry)

    def known(self, mutant: Mutant) -> Verdict | None:
        """The verdict, if there is one."""
        return self._known.get(mutant)

    def add(self, verdict: Verdict) -> None:
        """Keep it, on disk at once."""
        self._known[verdict.mutant] = verdict
        with self._file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(verdict)) + "\n")


def sources_digest() -> str:
    """A digest of the kernels, of what launches and emulates them, and of what checks them."""
    package = Path(kernel.__file__).parent
    files = [path for path in kernel.kernels_directory().glob("*.cu*") if path.is_file()]
    for name in SOURCES:
        place = package / name
        files += [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    digest = hashlib.sha256()
    for path in sorted(files):
        if path.suffix in (".py", ".cpp", ".h", ".cu", ".cuh"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


# ---- one mutant ------------------------------------------------------------------------------------------


def judge(mutant: Mutant, kept: Path, patience: float = 1.0) -> Verdict:
    """Its verdict; ``kept`` is a folder for what mutants share, the machine code of the original.

    ``patience`` multiplies the time that every step may take.
    """
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="handgrad-mutant-") as name:
        folders = [Path(shutil.copytree(kernel.kernels_directory(), Path(name) / part)) for part in PARTS]
        source = folders[0] / mutant.file
        source.write_text(mutant.apply(source.read_text(encoding="utf-8")), encoding="utf-8")
        found = watch(folders[0], folders[1], mutant.file, kept, cache_beside(Path(name)), patience)
    if found.verdict == CAUGHT:
        control(found.by, found.step)
    where = f"{found.step}: " if found.step else ""
    detail = (where + found.detail).replace(name, "").replace(f"/{PARTS[0]}/", "")
    return Verdict(mutant, found.verdict, found.by, detail, round(time.monotonic() - begun, 1))


@functools.cache
def control(by: str, trial: str) -> None:
    """The trial that a mutant failed has to pass without it; ``RuntimeError`` where it does not."""
    problem = mutation_check.fails(by, trial)
    if problem:
        raise RuntimeError(f"the kernels fail {by} without any change: {trial}: {problem}")


PARTS = ("mutant", "origin")  # names of one length: see mutation_code.emulated_differs


def cache_beside(folder: Path) -> Path:
    """A cache of its own for what a mutant builds, with the emulator's runtimes of the usual one."""
    usual, own = cache_directory(), folder / "cache" / "emulator"
    own.mkdir(parents=True)
    for path in usual.iterdir():
        if path.suffix == ".so" or path.name == "zig":
            (own / path.name).symlink_to(path)
    return own.parent


_running: set[subprocess.Popen[str]] = set()  # what a run that is stopped has to end


def watch(mutant: Path, original: Path, file: str, kept: Path, cache: Path, patience: float = 1.0) -> Outcome:
    """What a process says that takes the steps; it is ended where a step takes too long."""
    command = [sys.executable, "-m", mutation_check.__name__, "--mutant", str(mutant), "--file", file]
    command += ["--original", str(original), "--codes", str(kept / "machine-code")]
    environment = {**os.environ, "HANDGRAD_CACHE": str(cache)}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    with tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, errors="replace", env=environment,
            start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None, "opened as a pipe"
        _running.add(process)
        try:
            message, fault = _follow(process.stdout, patience)
            if not fault:
                process.wait(DEATH_LIMIT)
        finally:
            _running.discard(process)
            end(process)
        if "verdict" in message:
            return Outcome(**message)
        fault = fault or _death(process, stderr)
        if not message:
            raise RuntimeError(f"mutation: the process that checks a mutant did not start: {fault}")
        verdict = CAUGHT if message["runs"] else NOT_COMPILED  # what the compiler dies of is no kernel
        return Outcome(verdict, message["runs"], fault, message["step"])


def _follow(stdout: IO[str], patience: float) -> tuple[dict[str, Any], str]:
    """The last message of a process, and what is wrong where it did not end by itself."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    message: dict[str, Any] = {}
    while True:
        limit = patience * float(message["limit"]) if message else START_LIMIT
        try:
            line = lines.get(timeout=limit)
        except queue.Empty:
            return message, f"no end within {limit:.0f} s"
        if line is None:
            return message, ""
        try:
            message = json.loads(line)
        except ValueError:
            return message, f"it wrote {line.strip()[:80]!r}"
        if "verdict" in message:
            return message, ""


def end(process: subprocess.Popen[str]) -> None:
    """The process and those that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()


def _death(process: subprocess.Popen[str], stderr: IO[str]) -> str:
    stderr.seek(0)
    said = [line.strip() for line in stderr if line.strip()]
    code = process.returncode
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"the process died with {how}" + (f": {said[-1]}" if said else "")


# ---- the result ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tally:
    """How many of each verdict."""

    caught: int
    survived: int
    equivalent: int
    not_compiled: int

    @property
    def share(self) -> float:
        """caught / (caught + survived); 1 where none counts."""
        counted = self.caught + self.survived
        return self.caught / counted if counted else 1.0


def tally(verdicts: Iterable[Verdict]) -> Tally:
    """Of any verdicts."""
    names = [verdict.verdict for verdict in verdicts]
    return Tally(*(names.count(name) for name in VERDICTS))
