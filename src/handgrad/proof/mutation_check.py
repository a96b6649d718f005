"""What becomes of one mutant: ``python -m handgrad.proof.mutation_check --mutant DIR --file FILE ...``.

DIR is a copy of ``kernels/`` in which FILE has been changed.  In this order, cheap and telling steps first:

1. The machine code of every kernel that includes FILE is compared with the original's, some instantiations
   before the others.  A kernel whose code differs is checked at once, up to the first case that fails.
2. Where no instantiation differs the mutant is equivalent.
3. The kernels that try what FILE promises as a header (``proof/headers``) are sanitized, then those whose
   code differs; last these are checked over the whole grid.

This process may hang or die of what it runs, so another one watches it (``mutation.py``).  It writes lines of
JSON: before each step {"step", "limit"} with the seconds that the step may take, and whether the mutant runs
in it; at the end an Outcome.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from handgrad import emulator, kernel
from handgrad.arrays import resolve_device
from handgrad.emulator.build import build
from handgrad.emulator.errors import EmulatorError
from handgrad.emulator.launch import launch_through
from handgrad.emulator.watched import MODES, SEARCHES
from handgrad.kernel import Entry, KernelError
from handgrad.proof import headers, launch_description
from handgrad.proof.correctness import QUICK_SEEDS, SEEDS, Case, Group, run_trial
from handgrad.proof.guarded import Memory
from handgrad.proof.mutation_code import Original, emulated_differs, has_nvrtc
from handgrad.proof.sanitize import Finding, sanitize
from handgrad.proof.sanitizer_process import is_small
from handgrad.proof.trials import DTYPES, Trial
from handgrad.proof.workload import Workload, of_launch, of_trial

Launch = tuple[Path, str, str]  # a source, an instantiation, and how it is built

CAUGHT, SURVIVED, EQUIVALENT, NOT_COMPILED = "caught", "survived", "equivalent", "not compiled"
BUILD_LIMIT, QUICK_LIMIT, WHOLE_LIMIT = 600.0, 60.0, 200.0  # seconds that a step may take on a busy machine
SANITIZE_LIMIT = 400.0
QUICK, WHOLE, SANITIZE = "check --quick", "check", "sanitize"
HEADERS = "headers"  # the kernels that try what the shared headers promise
SANITIZED_SEEDS = 5  # random orders
CHEAP = ("activation", "batch", "optimizer", "linear.reduce_partials", "loss", "linear")  # to compile first
FEW = 3  # instantiations that are compared before all of them, where there are many
HINT = "the emulator's object code is the same; the extra machine-code would tell for certain"


@dataclass(frozen=True)
class Outcome:
    """The verdict; ``by``, ``step``: what caught it, and at which trial."""

    verdict: str
    by: str = ""
    detail: str = ""
    step: str = ""


class Decided(Exception):
    """The verdict is found."""

    def __init__(self, verdict: str, by: str = "", detail: str = "", step: str = "") -> None:
        super().__init__(verdict)
        self.outcome = Outcome(verdict, by, detail, step)


@dataclass
class Judge:
    """Takes the steps for the mutant in ``folder``, a change of ``file``."""

    folder: Path
    file: str
    original: Original
    done: set[str] = field(default_factory=set)  # trials
    built: set[Launch] = field(default_factory=set)

    def decide(self) -> None:
        """Ends with :class:`Decided`."""
        entries = affected(self.folder, self.file)
        if not entries:
            raise Decided(EQUIVALENT, detail="no kernel of the catalogue includes the file")
        if has_nvrtc():
            entries = self.differing(entries)
        else:
            for entry in entries:
                self.check(entry.op, quick=True)
            self.compare_emulated()
        self.sanitize_headers()
        for entry in entries:
            self.sanitize(entry.op)
        for entry in entries:
            self.check(entry.op, quick=False)
        raise Decided(SURVIVED, detail="differs: " + ", ".join(entry.op for entry in entries))

    def differing(self, entries: Sequence[Entry]) -> list[Entry]:
        """Those of other machine code, all of which pass the quick check."""
        found = []
        for expressions_of in (_some, _all):
            for entry in entries:
                if entry not in found and self.differs(entry, expressions_of(entry)):
                    self.check(entry.op, quick=True)
                    found.append(entry)
        if not found:
            raise Decided(EQUIVALENT, detail="the same machine code")
        return found

    def differs(self, entry: Entry, expressions: Sequence[str]) -> bool:
        """Whether the machine code of any of these instantiations does."""
        say(f"machine code of {entry.op}", BUILD_LIMIT)
        try:
            return self.original.differs(self.folder, entry, expressions)
        except KernelError as error:
            raise Decided(NOT_COMPILED, detail=str(error)) from error

    def compare_emulated(self) -> None:
        """Without NVRTC."""
        say("object code", 4 * BUILD_LIMIT)
        if not emulated_differs(self.original.folder, self.folder, sorted(one[:2] for one in self.built)):
            raise Decided(EQUIVALENT, detail=HINT)

    def check(self, op: str, quick: bool) -> None:
        """Run the trials of ``op`` that have not been run, up to the first that fails."""
        by, limit = (QUICK, QUICK_LIMIT) if quick else (WHOLE, WHOLE_LIMIT)
        for dtype in DTYPES:
            trials = [trial for trial in Group(op, dtype, quick).trials() if str(trial) not in self.done]
            for trial, fresh in in_order(trials, self.built):
                self.build(fresh)
                say(str(trial), limit, runs=by)
                case = run(by, trial)
                if not case.passed:
                    raise Decided(CAUGHT, by, case.detail, str(trial))
                self.done.add(str(trial))

    def build(self, fresh: Sequence[Launch]) -> None:
        """Build what a trial launches for the first time."""
        for source, expression, mode in fresh:
            say(f"build of {expression} ({mode})", BUILD_LIMIT)
            try:
                build(source, expression, mode)
            except EmulatorError as error:
                raise Decided(NOT_COMPILED, detail=str(error)) from error
        self.built.update(fresh)

    def sanitize(self, op: str) -> None:
        """Run the small trials of ``op`` under every search, up to the first finding."""
        for dtype in DTYPES:
            trials = [trial for trial in Group(op, dtype, True).trials() if is_small(trial.shape)]
            for search in SEARCHES:
                for trial, fresh in in_order(trials, self.built, MODES[search]):
                    self.build(fresh)
                    say(str(trial), SANITIZE_LIMIT, runs=f"{SANITIZE} ({search})")
                    for finding in findings(search, trial.op, of_trial(trial)):
                        raise Decided(CAUGHT, f"{SANITIZE} ({search})", finding.message, str(trial))

    def sanitize_headers(self) -> None:
        """Run the kernels that try what the changed file promises, if it is a header that they include."""
        for source, launches in headers.sources_with(self.file):
            for one in launch_description.read(launches):
                for search in SEARCHES:
                    self.build([(source, one.kernel, MODES[search])])
                    say(f"{HEADERS} {one.kernel}", SANITIZE_LIMIT, runs=f"{SANITIZE} ({search})")
                    for finding in findings(search, one.kernel, of_launch(source, one)):
                        raise Decided(
                            CAUGHT, f"{SANITIZE} ({search})", finding.message, f"{HEADERS} {one.kernel}"
                        )


def findings(search: str, name: str, workload: Workload) -> list[Finding]:
    """Of one search, in one workload."""
    verdicts = sanitize(name, [workload], [search], range(SANITIZED_SEEDS))
    return [finding for verdict in verdicts for finding in verdict.findings]


def run(by: str, trial: Trial) -> Case:
    """The case of a trial, under as many orders of threads as its check takes."""
    return run_trial(resolve_device("emulator"), trial, QUICK_SEEDS if by == QUICK else SEEDS)


def fails(by: str, name: str) -> str:
    """What is wrong with the trial of this name in the kernels as they are; "" if nothing."""
    if name.startswith(f"{HEADERS} "):
        search = next(search for search in SEARCHES if search in by)
        return "; ".join(
            finding.message
            for source, launches in headers.sources()
            for one in launch_description.read(launches)
            if name == f"{HEADERS} {one.kernel}"
            for finding in findings(search, one.kernel, of_launch(source, one))
        )
    op, dtype, _ = name.split(" ", 2)
    trial = next(one for one in Group(op, dtype, by != WHOLE).trials() if str(one) == name)
    for search in SEARCHES:
        if search in by:
            return "; ".join(finding.message for finding in findings(search, trial.op, of_trial(trial)))
    case = run(by, trial)
    return "" if case.passed else case.detail


def affected(folder: Path, file: str) -> list[Entry]:
    """The kernels of the catalogue whose source is ``file`` or includes it, the cheap ones first."""
    entries = [entry for entry in kernel.catalogue() if file in included(folder, entry.file)]
    return sorted(
        entries,
        key=lambda entry: next(at for at, start in enumerate((*CHEAP, "")) if entry.op.startswith(start)),
    )


def included(folder: Path, file: str, known: frozenset[str] = frozenset()) -> set[str]:
    """``file`` and what it includes from ``folder``, directly or not."""
    text = (folder / file).read_text(encoding="utf-8")
    named = set(re.findall(r'^\s*#\s*include\s*"([^"]+)"', text, re.MULTILINE)) - known
    beside = [name for name in named if (folder / name).is_file()]
    return {file}.union(*(included(folder, name, known | named) for name in beside))


def _some(entry: Entry) -> tuple[str, ...]:
    """A few, where there are so many that all would take long: of every kind, but for those of one kind."""
    if entry.op.startswith("linear.") or entry.op == "loss.rows":  # in float32
        middle = len(entry.expressions) // 4
        return entry.expressions[middle : middle + FEW]
    if entry.op.startswith("two_layer."):
        return entry.expressions[:: -(-len(entry.expressions) // FEW)]
    return entry.expressions


def _all(entry: Entry) -> tuple[str, ...]:
    return entry.expressions


def in_order(
    trials: Sequence[Trial], built: set[Launch], mode: str = "plain"
) -> Iterator[tuple[Trial, list[Launch]]]:
    """The trials, each with what is to be built for it: always one that needs least.

    Among those, first the ones that are repeated under other orders of threads, which show most.
    """
    needs = {str(trial): launches(trial, mode) - built for trial in trials}
    left = sorted(trials, key=lambda trial: not trial.schedules)
    while left:
        trial = min(left, key=lambda trial: len(needs[str(trial)]))
        fresh = sorted(needs[str(trial)])
        yield trial, fresh
        left.remove(trial)
        for other in left:
            needs[str(other)] -= set(fresh)


def launches(trial: Trial, mode: str) -> set[Launch]:
    """The instantiations that a trial launches, found without running them."""
    found: set[Launch] = set()

    def record(source: Path, expression: str, *launch: Any) -> None:
        found.add((source, expression, mode))

    with launch_through(record), np.errstate(all="ignore"), contextlib.suppress(Exception):
        trial.run(Memory(emulator, trial.seed, dry=True))
    return found


def say(step: str, limit: float, runs: str = "") -> None:
    """Tell who watches what begins."""
    print(json.dumps({"step": step, "limit": limit, "runs": runs}), flush=True)


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}" if __spec__ else None)
    for name in ("mutant", "original", "codes", "file"):
        parser.add_argument(f"--{name}", required=True)
    given = parser.parse_args()
    with kernel.use_kernels(given.mutant) as folder:
        try:
            Judge(folder, given.file, Original(Path(given.original), Path(given.codes))).decide()
        except Decided as found:
            print(json.dumps(asdict(found.outcome)), flush=True)


if __name__ == "__main__":
    main()
