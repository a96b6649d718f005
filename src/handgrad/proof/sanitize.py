"""Kernels searched for faults on the emulator: what ``handgrad kernels sanitize`` runs.

Five detectors look at the same runs:

memory           accesses outside the memory that a kernel was given, misaligned ones, indices past an end
races            accesses of two threads to the same bytes that no barrier, fence or atomic orders
initialisation   reads of memory that nobody wrote, or that an asynchronous copy has not yet reached
synchronisation  barriers and warp collectives that not all of their threads reach
schedules        results that depend on the order of threads or on when asynchronous copies land

The kernels run in processes of their own (``sanitizer_process.py``): whatever one does ends at most that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from handgrad import emulator
from handgrad.emulator.errors import EmulatorError, LaunchError
from handgrad.emulator.watched import SEARCHES, searching
from handgrad.proof.guarded import bits_of
from handgrad.proof.workload import Outcome, Workload

DETECTORS = (*SEARCHES, "synchronisation", "schedules")
PLAIN = ("synchronisation", "schedules")  # these run the kernels as `check` builds them
SEEDS = 20
MOST_FINDINGS = 10  # of one kernel and detector

Progress = Callable[[int, int, str], None]

_PLACE = re.compile(r"([\w.+-]+\.\w+):(\d+)")


@dataclass(frozen=True)
class Finding:
    """One fault: ``message`` is a sentence; ``file`` and ``line`` are in it, or "" and 0.

    ``seed`` is that of the random order that showed it, where one did.
    """

    detector: str
    message: str
    setting: str
    file: str = ""
    line: int = 0
    seed: int | None = None


@dataclass(frozen=True)
class Verdict:
    """What one detector found in one kernel in so many runs; ``skipped`` says why it did not look."""

    kernel: str
    detector: str
    runs: int
    findings: tuple[Finding, ...] = ()
    skipped: str = ""

    @property
    def passed(self) -> bool:
        """Whether it looked and found nothing."""
        return not self.findings and not self.skipped


@dataclass(frozen=True)
class Order:
    """An order of threads, and when asynchronous copies land in it."""

    order: str = "forward"
    copies: str = "late"
    seed: int | None = None

    def settings(self) -> AbstractContextManager[Any]:
        """The emulator's settings for it."""
        return emulator.settings(order=self.order, copies=self.copies, seed=self.seed or 0)

    def __str__(self) -> str:
        if self.seed is not None:
            return f"threads in random order, seed {self.seed}"
        return f"threads in {self.order} order, copies landing {self.copies}"


FIRST = Order()
FIXED = (Order("reverse"), Order("lifo"), Order("forward", "early"))


def random_orders(seeds: Sequence[int]) -> list[Order]:
    """One a seed; copies land at random."""
    return [Order("random", "random", seed) for seed in seeds]


def sanitize(
    kernel: str,
    workloads: Sequence[Workload],
    detectors: Sequence[str],
    seeds: Sequence[int],
    begin: Callable[[str, str], None] = lambda detector, setting: None,
) -> Iterator[Verdict]:
    """What ``detectors`` find in the workloads of one kernel, memory first.

    Where memory has findings, the detectors that run the kernel unwatched are skipped: it could write
    anywhere.  ``begin(detector, setting)`` is called before every workload.
    """
    found: dict[str, dict[tuple[str, int, str], Finding]] = {name: {} for name in DETECTORS}

    def note(finding: Finding) -> None:
        key = (finding.file, finding.line, "" if finding.line else finding.message)
        if len(found[finding.detector]) < MOST_FINDINGS:
            found[finding.detector].setdefault(key, finding)

    runs = dict.fromkeys(DETECTORS, 0)
    for detector in (name for name in SEARCHES if name in detectors):
        for workload in workloads:
            begin(detector, workload.setting)
            runs[detector] += _search(detector, workload, seeds, note)
    plain = [name for name in PLAIN if name in detectors]
    skipped = "not run: the memory findings come first" if plain and found["memory"] else ""
    if plain and not skipped:
        for workload in workloads:
            begin(plain[-1], workload.setting)
            count = _compare(workload, seeds, note)
            for name in plain:
                runs[name] += count
    for detector in DETECTORS:
        findings = tuple(found[detector].values())
        if detector in detectors or findings:
            why = skipped if detector in PLAIN and not findings else ""
            yield Verdict(kernel, detector, runs[detector], findings, why)


def _search(detector: str, workload: Workload, seeds: Sequence[int], note: Callable[[Finding], None]) -> int:
    """Run under one of the emulator's searches; the number of runs."""
    orders = [FIRST, Order("reverse")]
    if workload.ordered and detector != "memory":
        orders += [Order("forward", "early"), *random_orders(seeds)]
    for count, order in enumerate(orders, 1):
        try:
            with order.settings(), searching(detector):
                outcome = workload.run()
        except EmulatorError as error:
            note(_finding(detector, error, workload, order))
            return count
        for kind, problem in outcome.problems:
            note(_located(kind, problem, workload.setting, order.seed))
    return len(orders)


def _compare(workload: Workload, seeds: Sequence[int], note: Callable[[Finding], None]) -> int:
    """Run in many orders: the bits have to be the same; the number of runs."""
    first: Outcome | None = None
    orders = [FIRST, *random_orders(seeds), *FIXED] if workload.ordered else [FIRST]
    for count, order in enumerate(orders, 1):
        try:
            with order.settings():
                outcome = workload.run()
        except EmulatorError as error:
            note(_finding("synchronisation", error, workload, order))
            return count
        for kind, problem in outcome.problems:
            note(_located(kind, problem, workload.setting, order.seed))
        if first is None:
            first = outcome
        elif not _same_bits(first, outcome):
            message = f"other bits than with threads in forward order: {order}"
            note(Finding("schedules", message, workload.setting, seed=order.seed))
            return count
    return len(orders)


def _same_bits(one: Outcome, other: Outcome) -> bool:
    return all(
        np.array_equal(bits_of(a), bits_of(b)) for a, b in zip(one.results, other.results, strict=True)
    )


def _finding(detector: str, error: EmulatorError, workload: Workload, order: Order) -> Finding:
    if isinstance(error, LaunchError):
        raise ValueError(f"{workload.setting}: {error}") from None
    kind = error.fault if error.fault in DETECTORS else detector
    return _located(kind, str(error), workload.setting, order.seed)


def _located(detector: str, message: str, setting: str, seed: int | None) -> Finding:
    """A finding at the first place in the source that its message names."""
    place = _PLACE.search(message.partition(": ")[2] or message)
    file, line = (place[1], int(place[2])) if place else ("", 0)
    return Finding(detector, message, setting, file, line, seed)
