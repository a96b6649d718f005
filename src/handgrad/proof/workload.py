"""What the sanitizers run: trials of the project's kernels, or launches that a user describes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad import emulator
from handgrad.arrays import to_numpy
from handgrad.emulator.source import parameter_names, read_source, without_comments
from handgrad.proof.guarded import Memory
from handgrad.proof.launch_description import LaunchDescription
from handgrad.proof.trials import Trial


@dataclass(frozen=True)
class Outcome:
    """What a run left in the memory that it may write, and what is wrong with it without being compared.

    ``problems`` are pairs of a detector and a sentence.
    """

    results: Sequence[NDArray[Any]]
    problems: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Workload:
    """One run of a kernel, the same every time; ``ordered``: small enough for many orders of threads."""

    setting: str
    run: Callable[[], Outcome]
    ordered: bool


def of_trial(trial: Trial) -> Workload:
    """A trial of ``proof/trials``; its own detail says where outputs were left or passed."""
    return Workload(str(trial), functools.partial(_run_trial, trial), trial.schedules)


def _run_trial(trial: Trial) -> Outcome:
    memory = Memory(emulator, trial.seed)
    with np.errstate(all="ignore"):
        outputs = trial.run(memory)
    problems = [
        ("initialisation" if "were not written" in problem else "memory", problem)
        for problem in memory.problems()
    ]
    return Outcome([to_numpy(output.array).copy() for output in outputs], problems)


def of_launch(source: Path, description: LaunchDescription) -> Workload:
    """A described launch; every array but scratch memory has to be the same whatever the order of threads."""
    return Workload(description.place, functools.partial(_run_launch, source, description), True)


def _run_launch(source: Path, described: LaunchDescription) -> Outcome:
    made = described.make_arguments(emulator)
    geometry = (described.grid, described.block)
    more = (described.shared, described.cooperative)
    emulator.launch(source, described.kernel, *geometry, made, *more)
    names = parameter_names(read_source(source), described.kernel)
    results, problems = [], []
    for position, (argument, array) in enumerate(zip(described.arguments, made, strict=True)):
        if argument.shape is None or argument.fill == "scratch":
            continue
        after = to_numpy(array)
        left = argument.unwritten(after)
        if left:
            known = names[position] if len(names) == len(made) else f"argument {position}"
            name = argument.name or known
            place = declaration_of(source, described.kernel)
            problems.append(
                ("initialisation", f"{left} of {after.size} elements of {name} were not written by {place}")
            )
        results.append(after)
    return Outcome(results, problems)


def declaration_of(source: Path, expression: str) -> str:
    """``"file.cu:12"`` of the kernel's declaration, or the file's name alone."""
    name = expression.split("<")[0].split("::")[-1].strip()
    lines = without_comments(read_source(source)).splitlines()
    for number, line in enumerate(lines, 1):
        following = " ".join(lines[number - 1 : number + 2])
        if "__global__" in line and name in following.replace("(", " ").replace("__global__", "").split():
            return f"{source.name}:{number}"
    return source.name
