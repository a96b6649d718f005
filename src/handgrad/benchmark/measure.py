"""The measurement: processes in turns, round by round, and the record of what came of it.

Every library on every device has a process of its own and the same data.  Before anything is timed, its loss
and gradients must agree with float64.  Then all take turns: in each round everybody gives one sample of every
kind (steps, now and then a square product; this library also the bare products of the step), and the
next round begins with another one, so that a change in the machine's load meets all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from handgrad.benchmark import ceilings, reference
from handgrad.benchmark.process import Answering, Failed, SessionProcess, ask
from handgrad.benchmark.runners import NAMES, Peer, Unavailable
from handgrad.benchmark.workloads import Problem, Workload

FEWEST_ROUNDS = 5
SQUARE_EVERY = 3  # rounds between two square products
STAGE_SAMPLES = 7

Progress = Callable[[str], None]
Start = Callable[[str, str, int, bool, int, str | None], Answering]


@dataclass(frozen=True)
class Settings:
    """What to measure, and how long.

    seconds: for each workload and contestant, shared among ``rounds`` samples; sweeps take ``sweep_share``
    threads: of the CPU, the same for all; ``fixed``: exactly so many, else each library takes one where that
        is faster for it
    """

    devices: tuple[str, ...]
    peers: tuple[Peer, ...]
    workloads: tuple[Workload, ...]
    seconds: float = 1.0
    rounds: int = 9
    sweep_share: float = 0.4
    threads: int = 1
    fixed: bool = False
    seed: int = 0
    kernels: str | None = None
    compiled_everywhere: bool = False  # torch.compile in sweeps and epochs too: some seconds for each
    products: bool = True

    def share(self, workload: Workload) -> tuple[float, int]:
        """Seconds and rounds of a workload."""
        if workload.group in ("batch", "hidden"):
            return self.seconds * self.sweep_share, max(FEWEST_ROUNDS, round(self.rounds * self.sweep_share))
        return self.seconds, self.rounds

    def takes_part(self, key: str, workload: Workload) -> bool:
        """Whether that library is timed on this workload."""
        if key == "torch-compiled" and workload.group != "shapes":
            return self.compiled_everywhere
        return all(peer.takes_part(workload) for peer in self.peers if peer.key == key)


@dataclass
class Contestant:
    """A library on a device."""

    key: str
    device: str
    session: Answering
    info: dict[str, Any] = field(default_factory=dict)
    square_seconds: list[float] = field(default_factory=list)
    dropped: str = ""  # why it takes no part any more

    def __str__(self) -> str:
        return f"{NAMES[self.key]} on {self.device}"


@dataclass
class Series:
    """The samples of one workload of one contestant, in seconds a repetition (a step, or an epoch)."""

    workload: Workload
    key: str
    device: str
    gradient_error: float
    threads: int | None = None
    repetitions: int = 1
    seconds: list[float] = field(default_factory=list)
    square_seconds: list[float] = field(default_factory=list)
    loss: float | None = None


@dataclass
class Products:
    """The bare products of a step on a device: name, shape, flops, arrangement, seconds (samples) of each."""

    workload: Workload
    device: str
    parts: list[dict[str, Any]]


@dataclass
class Record:
    """Everything measured until now; valid at any time."""

    contestants: list[Contestant] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    products: list[Products] = field(default_factory=list)
    stages: list[tuple[Workload, str, dict[str, list[float]]]] = field(default_factory=list)
    bandwidth: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    complete: bool = False

    def note(self, words: str) -> None:
        """Add a note, once."""
        if words not in self.notes:
            self.notes.append(words)


def measure(
    settings: Settings, record: Record, progress: Progress | None = None, start: Start | None = None
) -> Record:
    """Measure everything that ``settings`` names; ``record`` is filled as samples come in.

    ``RuntimeError`` where this library's own step is wrong; a peer's failure is a note.  After Ctrl-C
    (``KeyboardInterrupt`` passes through) ``record`` holds what was measured until then.
    """
    say = progress or (lambda words: None)
    with ExitStack() as stack:
        say("starting a process for each library")
        _start_all(settings, record, stack, start or SessionProcess)
        for contestant in record.contestants:
            if contestant.key == "handgrad" and not contestant.dropped:
                say(f"memory bandwidth on {contestant.device}")
                found = ask(contestant.session, "bandwidth")
                if found:
                    record.bandwidth[contestant.device] = found
        for number, workload in enumerate(settings.workloads, 1):
            place = f"{number} of {len(settings.workloads)}: "
            _measure_workload(settings, workload, record, functools.partial(_say_at, say, place))
        record.complete = True
    return record


def _say_at(say: Progress, place: str, words: str) -> None:
    say(place + words)


def _start_all(settings: Settings, record: Record, stack: ExitStack, start: Start) -> None:
    for device in settings.devices:
        for peer in settings.peers:
            if peer.key != "handgrad" and (device == "emulator" or (device != "cpu" and not peer.on_gpu)):
                continue
            session = start(
                peer.key, device, settings.threads, settings.fixed, settings.seed, settings.kernels
            )
            stack.callback(session.close)
            record.contestants.append(Contestant(peer.key, device, session))
    for contestant in list(record.contestants):
        try:
            contestant.session.receive()
            contestant.info = ask(contestant.session, "describe")
        except (Unavailable, Failed) as error:
            _drop(record, contestant, str(error))


def _drop(record: Record, contestant: Contestant, why: str) -> None:
    if contestant.key == "handgrad":
        raise RuntimeError(f"{contestant}: {why}")
    contestant.dropped = why
    record.note(f"{contestant}: not measured: {why}")


def _measure_workload(settings: Settings, workload: Workload, record: Record, say: Progress) -> None:
    taking_part = [
        contestant
        for contestant in record.contestants
        if not contestant.dropped and settings.takes_part(contestant.key, workload)
    ]
    say(f"{workload}: the data, and the gradients of everybody against float64")
    runs = _check(workload, taking_part, record, settings.seed)
    seconds, rounds = settings.share(workload)
    for contestant, series in list(runs):
        say(f"{workload}: {contestant} is warming up")
        try:
            once, threads = ask(contestant.session, "warm_up")
        except Failed as error:
            _fail(record, runs, (contestant, series), str(error))
            continue
        series.threads = threads if contestant.device == "cpu" else None
        series.repetitions = max(1, round(seconds / rounds / once))
        record.series.append(series)
    found = [
        _find_products(workload, run, record, say)
        for run in runs
        if settings.products and workload.group == "shapes" and run[0].key == "handgrad"
    ]
    products = {device: parts for device, parts in found if parts is not None}
    _take_turns(runs, products, record, (seconds, rounds), say)
    for contestant, series in list(runs):
        try:
            series.loss = ask(contestant.session, "loss")
            if settings.products and workload.group == "shapes" and contestant.key == "handgrad":
                say(f"{workload}: time by stage on {contestant.device}")
                samples = 1 if contestant.device == "emulator" else STAGE_SAMPLES
                stages = ask(contestant.session, "stages", samples=samples)
                record.stages.append((workload, contestant.device, stages))
        except Failed as error:
            _fail(record, runs, (contestant, series), str(error))


Run = tuple[Contestant, Series]


def _check(workload: Workload, taking_part: Sequence[Contestant], record: Record, seed: int) -> list[Run]:
    """The contestants with the same data whose loss and gradients are right; all compute at the same time."""
    for contestant in taking_part:
        contestant.session.send("prepare", workload=workload)
    problem = Problem.make(workload, seed)
    wanted, digest = reference.loss_and_grad(problem), problem.digest()
    prepared = []
    for contestant in taking_part:
        try:
            if contestant.session.receive() != digest:
                raise Failed("it had other data")
            prepared.append(contestant)
        except Failed as error:
            _drop_here(record, contestant, workload, str(error))
    for contestant in prepared:
        contestant.session.send("loss_and_grad")
    runs = []
    for contestant in prepared:
        try:
            name, difference = reference.disagreement(contestant.session.receive(), wanted)
        except Failed as failure:
            _drop_here(record, contestant, workload, str(failure))
            continue
        if difference <= reference.AGREEMENT:
            runs.append((contestant, Series(workload, contestant.key, contestant.device, difference)))
            continue
        why = f"{name} differs from float64 NumPy by {difference:.1e} (allowed {reference.AGREEMENT:.0e})"
        remedy = "; please report it" if contestant.device == "cpu" else "; see `handgrad kernels check`"
        own = contestant.key == "handgrad"
        _drop_here(record, contestant, workload, f"{why}, so nothing is timed{remedy if own else ''}")
    return runs


def _drop_here(
    record: Record, contestant: Contestant, workload: Workload, why: str, what: str = "not measured"
) -> None:
    """Not on this workload: an error of ours ends the run, a peer's is a note."""
    if contestant.key == "handgrad":
        raise RuntimeError(f"{workload} on {contestant.device}: {why}")
    record.note(f"{contestant}: {workload} {what}: {why}")
    if "process died" in why or "no answer" in why:
        contestant.dropped = why


def _fail(record: Record, runs: list[Run], run: Run, why: str) -> None:
    runs.remove(run)
    _drop_here(record, run[0], run[1].workload, why, "stopped" if run[1].seconds else "not measured")


def _find_products(
    workload: Workload, run: Run, record: Record, say: Progress
) -> tuple[str, Products | None]:
    say(f"{workload}: the bare products of the step, in every arrangement, on {run[0].device}")
    parts = ask(run[0].session, "find_products")
    if not parts:
        return run[0].device, None
    products = Products(workload, run[0].device, [{**part, "seconds": []} for part in parts])
    record.products.append(products)
    return run[0].device, products


def _take_turns(
    runs: list[Run], products: dict[str, Products], record: Record, share: tuple[float, int], say: Progress
) -> None:
    seconds, rounds = share
    spent = dict.fromkeys((id(series) for _, series in runs), 0.0)
    for round_number in range(rounds):
        first = round_number % max(1, len(runs))
        for contestant, series in runs[first:] + runs[:first]:
            if round_number >= FEWEST_ROUNDS and spent[id(series)] >= seconds:
                continue
            say(f"{series.workload}: {contestant}, round {round_number + 1} of {rounds}")
            try:
                taken = ask(contestant.session, "sample", repetitions=series.repetitions)
                spent[id(series)] += taken * series.repetitions
                series.seconds.append(taken)
                if contestant.key == "handgrad" and contestant.device in products:
                    sampled = ask(contestant.session, "sample_products")
                    for part, value in zip(products[contestant.device].parts, sampled, strict=True):
                        part["seconds"].append(value)
                if series.workload.group == "shapes" and round_number % SQUARE_EVERY == 0:
                    _square(contestant, series)
            except Failed as error:
                _fail(record, runs, (contestant, series), str(error))


def _square(contestant: Contestant, series: Series) -> None:
    taken = ask(contestant.session, "square_product", size=ceilings.SQUARE)
    if taken is not None:
        series.square_seconds.append(taken)
        contestant.square_seconds.append(taken)
    if series.threads is not None:
        ask(contestant.session, "set_threads", threads=series.threads)


# What a measurement takes, in seconds; tried on two cores.
START, COMPILE, PREPARE, SETTLE = 5.0, 4.5, 0.3, 0.25
ASSUMED_RATE = 5e10  # operations a second of a step


def estimated_seconds(settings: Settings) -> float:
    """About how long :func:`measure` will take; on the emulator nobody knows."""
    libraries = sum(
        peer.key == "handgrad" or (device != "emulator" and (device == "cpu" or peer.on_gpu))
        for device in settings.devices
        for peer in settings.peers
    )
    total = START + libraries
    for workload in settings.workloads:
        seconds, rounds = settings.share(workload)
        once = workload.flops / ASSUMED_RATE
        for device in settings.devices:
            for peer in settings.peers:
                if not settings.takes_part(peer.key, workload) or (device != "cpu" and not peer.on_gpu):
                    continue
                total += PREPARE + 2 * SETTLE + max(seconds, FEWEST_ROUNDS * once) + rounds * once
                total += COMPILE if peer.key == "torch-compiled" else 0.0
                if workload.group == "shapes":
                    total += rounds / SQUARE_EVERY * 0.15
                    own = settings.products and peer.key == "handgrad"
                    total += (2 * rounds + 60) * once if own else 0.0
    return total
