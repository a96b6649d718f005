"""Every kernel against the reference in a wider type: what ``handgrad kernels check`` runs.

Each trial (``proof/trials``) calls an op on guarded memory (``proof/guarded.py``) and compares all that it
wrote with the formulas (``proof/reference.py``), element by element, within the bound that the formula's own
rounding allows (``proof/roundoff.py``), or bit for bit where nothing rounds.  Then it is repeated: on a GPU
once more, on the emulator under other orders of threads; the bits have to be the same.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from handgrad import kernel
from handgrad.arrays import Device, resolve_device, synchronize, to_numpy
from handgrad.proof.guarded import Memory, Output, bits_of
from handgrad.proof.roundoff import Bounded
from handgrad.proof.trials import DTYPES, TRIALS, Trial, trials

Progress = Callable[[int, int, str], None]

SEEDS = 20  # random orders under which small trials of every kernel have to give the same bits
QUICK_SEEDS = 3


@dataclass(frozen=True)
class Case:
    """What one trial showed.

    ``error`` and ``bound`` belong to the element whose error is the largest part of its bound; ``error`` is
    NaN where the kernel gave NaN or was stopped.  ``detail`` says what the shape does not, and what failed.
    """

    op: str
    kernel: str
    dtype: str
    shape: dict[str, int]
    error: float
    bound: float
    passed: bool
    detail: str


@dataclass(frozen=True)
class Group:
    """The trials of one kernel in one type; ``start`` leaves out those that are done."""

    op: str
    dtype: str
    quick: bool

    def trials(self) -> list[Trial]:
        """In a fixed order."""
        return trials(self.op, self.dtype, self.quick)

    def __str__(self) -> str:
        return f"{self.op} {self.dtype}"


def run(
    device: str | Device,
    ops: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    quick: bool = False,
    progress: Progress | None = None,
    isolate: bool | None = None,
) -> list[Case]:
    """Check the kernels on ``device`` ("emulator", "cuda" or "cuda:N") and give every case.

    ``ops``: names of the catalogue ("linear.forward") or their beginnings ("linear"); ``dtypes``: "float32",
    "float64"; all where None.  ``progress(done, total, case)`` is called after every case.  ``isolate`` runs
    every group of cases in a process of its own, and what is left of it in another where that one dies, so
    that a fault ends one case; by default on a GPU, where a fault makes the whole process unusable.

    Raises ``ValueError`` for an unknown op or dtype, or for the CPU, which has no kernels.
    """
    target = resolve_device(device)
    if target.kind == "cpu":
        raise ValueError("device: expected 'cuda', 'cuda:N' or 'emulator', got 'cpu', which runs no kernels")
    groups = [Group(op, dtype, quick) for op in chosen_ops(ops) for dtype in chosen_dtypes(dtypes)]
    groups = [group for group in groups if group.trials()]
    counted = _Counted(progress, sum(len(group.trials()) for group in groups))
    if target.kind == "emulator":
        prebuild(groups)
    if isolate or (isolate is None and target.kind == "cuda"):
        from handgrad.proof.isolation import run_isolated

        return run_isolated(target, groups, counted)
    return [case for group in groups for case in counted(run_group(target, group))]


def chosen_ops(wanted: Sequence[str] | None) -> list[str]:
    """The kernels of the catalogue that ``wanted`` names, in the catalogue's order."""
    if wanted is None:
        return list(TRIALS)
    for name in wanted:
        if not any(_belongs(op, name) for op in TRIALS):
            raise ValueError(f"op: expected a kernel of the catalogue ({', '.join(TRIALS)}), got {name!r}")
    return [op for op in TRIALS if any(_belongs(op, name) for name in wanted)]


def _belongs(op: str, name: str) -> bool:
    return op == name or op.startswith(f"{name}.")


def chosen_dtypes(wanted: Sequence[str] | None) -> list[str]:
    """The types that ``wanted`` names."""
    names = DTYPES if wanted is None else [np.dtype(dtype).name for dtype in wanted]
    for name in names:
        if name not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {name!r}")
    return [name for name in DTYPES if name in names]


class _Counted:
    """Passes cases on and reports how many there have been."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, cases: Iterator[Case]) -> Iterator[Case]:
        for case in cases:
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, self._total, f"{case.op} {case.dtype}")
            yield case


# ---- one trial -------------------------------------------------------------------------------------------


def run_group(device: Device, group: Group, start: int = 0) -> Iterator[Case]:
    """The cases of a group from trial number ``start`` on, one after another."""
    for trial in group.trials()[start:]:
        yield run_trial(device, trial, QUICK_SEEDS if group.quick else SEEDS)


def run_trial(device: Device, trial: Trial, seeds: int = QUICK_SEEDS) -> Case:
    """One case; whatever the op raises is a failure."""
    error, bound = 0.0, 0.0
    try:
        with np.errstate(all="ignore"):
            outputs, problems = _execute(device, trial)
            for output, got in outputs:
                found = compare(got, output.expected(), output.exact, output.signed)
                problems += [f"{output.name}: {found.problem}"] if found.problem else []
                if _share(found.error, found.bound) > _share(error, bound):
                    error, bound = found.error, found.bound
            problems += _differences(device, trial, [got for _, got in outputs], seeds)
    except Exception as exception:
        error, problems = math.nan, [f"{type(exception).__name__}: {' '.join(str(exception).split())}"]
    return case_of(trial, error, bound, problems)


def case_of(trial: Trial, error: float, bound: float, problems: Sequence[str]) -> Case:
    """The case of ``trial``: passed where there is no problem."""
    detail = "; ".join((trial.setting, *problems))
    return Case(trial.op, kernel_name(trial.op), trial.dtype, trial.shape, error, bound, not problems, detail)


def kernel_name(op: str) -> str:
    """The function in ``kernels/``."""
    return next(entry.name for entry in kernel.catalogue() if entry.op == op)


def _execute(device: Device, trial: Trial) -> tuple[list[tuple[Output, NDArray[Any]]], list[str]]:
    """The outputs of one run, copied to the host, and what happened to memory that was not the kernel's."""
    with device, _launches(device):
        memory = Memory(device.array_module, trial.seed)
        outputs = trial.run(memory)
        synchronize(memory.xp)
        return [(output, to_numpy(output.array).copy()) for output in outputs], memory.problems()


def _launches(device: Device) -> contextlib.AbstractContextManager[None]:
    if device.kind != "emulator":
        return contextlib.nullcontext()
    from handgrad.emulator.launch import launch_filled, launch_through

    return launch_through(launch_filled)


def _differences(device: Device, trial: Trial, first: Sequence[NDArray[Any]], seeds: int) -> list[str]:
    """Where a repetition gives other bits."""
    for words, order in _orders(device, trial, seeds):
        with order:
            again, problems = _execute(device, trial)
        same = all(np.array_equal(bits_of(a), bits_of(b)) for a, (_, b) in zip(first, again, strict=True))
        if problems or not same:
            return [f"{words}: {'; '.join(problems) or 'other bits than the first time'}"]
    return []


def _orders(
    device: Device, trial: Trial, seeds: int
) -> Iterator[tuple[str, contextlib.AbstractContextManager[Any]]]:
    if device.kind != "emulator":
        yield "run again", contextlib.nullcontext()
    elif trial.schedules:
        from handgrad.emulator import settings

        for order in ("reverse", "lifo"):
            yield f"threads in {order} order", settings(order=order)
        for seed in range(seeds):
            yield f"threads in random order {seed}", settings(order="random", seed=seed)


# ---- comparison ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """The worst element's error and bound; ``problem`` is empty where all are within theirs."""

    error: float
    bound: float
    problem: str


@np.errstate(all="ignore")  # infinities and NaNs are compared with each other
def compare(
    got: NDArray[Any], expected: Bounded | NDArray[Any], exact: bool = False, signed: bool = False
) -> Comparison:
    """Element by element: |got - expected| ≤ bound, which a NaN does not satisfy.

    Where the expected number is infinite (in the kernel's type) or NaN, the same is required; a NaN has to be
    a quiet one, as arithmetic makes them.  ``exact``
    leaves no room: equal bits, but for the sign of a zero, which ``signed`` demands.
    """
    value = expected.value if isinstance(expected, Bounded) else expected
    if got.shape != value.shape:
        return Comparison(math.nan, 0.0, f"shape {got.shape} instead of {value.shape}")
    if got.size == 0:
        return Comparison(0.0, 0.0, "")
    rounded = value.astype(got.dtype)
    limits = np.zeros(got.shape)
    if isinstance(expected, Bounded) and not exact:
        limits = np.broadcast_to(expected.error, got.shape)
    finite = np.isfinite(rounded)
    errors = np.where(finite, abs(got.astype(value.dtype) - value), 0.0)
    same = np.where(np.isnan(rounded), np.isnan(got) & _is_quiet(got), got == rounded)
    fits = np.where(finite, (errors <= limits) & np.isfinite(limits), same)
    if signed:
        fits &= (rounded != 0) | (got != 0) | (np.signbit(got) == np.signbit(rounded))
    ratios = np.where(limits > 0, errors / np.where(limits > 0, limits, 1), np.where(errors > 0, np.inf, 0))
    ratios = np.where(fits | (ratios > 1), ratios, np.inf)
    worst = np.unravel_index(int(np.argmax(ratios)), got.shape)
    error, bound = float(errors[worst]), float(limits[worst])
    if not finite[worst] and not fits[worst]:
        error = math.nan
    if fits.all():
        return Comparison(error, bound, "")
    place = ", ".join(str(int(index)) for index in worst)
    problem = f"{int((~fits).sum())} of {got.size} elements are wrong, the worst at ({place}): "
    return Comparison(error, bound, problem + f"{got[worst]} instead of {rounded[worst]}")


def _is_quiet(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Of NaNs: whether the first bit of the fraction is set."""
    if values.dtype.kind != "f":
        return np.ones(values.shape, np.bool_)
    bit = np.finfo(values.dtype).nmant - 1
    return np.asarray(bits_of(values) >> np.asarray(bit, f"u{values.dtype.itemsize}") & 1, np.bool_)


def _share(error: float, bound: float) -> float:
    if error == 0:
        return 0.0
    return error / bound if bound and not math.isnan(error) else math.inf


# ---- building for the emulator ---------------------------------------------------------------------------


def launched(groups: Sequence[Group]) -> dict[tuple[Path, str], None]:
    """Every instantiation that the groups' trials launch on the emulator, found without running any."""
    from handgrad import emulator

    found: dict[tuple[Path, str], None] = {}

    def record(source: Path, expression: str, *launch: Any) -> None:
        found[source, expression] = None

    with mock.patch.object(emulator, "launch", record), np.errstate(all="ignore"):
        for group in groups:
            for trial in group.trials():
                with contextlib.suppress(Exception):  # the run itself will show it
                    trial.run(Memory(emulator, trial.seed, dry=True))
    return found


def prebuild(groups: Sequence[Group]) -> None:
    """Build what the groups launch, in parallel; a kernel that does not compile fails its own cases later."""
    from handgrad import emulator

    with contextlib.suppress(emulator.EmulatorError):
        emulator.prebuild(launched(groups))
