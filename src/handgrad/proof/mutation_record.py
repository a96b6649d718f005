"""The record of the mutation run: what became of each mutant that it selected, and why survivors survive.

``handgrad kernels mutate --record`` writes ``mutation_record.json``, one mutant a line, sorted by its place.
Kernels that came after it are not in it: they are mutated by the next whole run.  ``mutation_survivors.toml``
holds a reason for each survivor, written by hand.  Both know mutants by their identity, so lines may move.

Document: ``docs/mutation.md``; test: ``tests/test_mutation_record.py``.
"""

from __future__ import annotations

import functools
import json
import random
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from handgrad.proof.mutation import Verdict, all_mutants
from handgrad.proof.mutation_check import CAUGHT
from handgrad.proof.mutation_operators import Mutant

RECORD = Path(__file__).with_name("mutation_record.json")
REASONS = Path(__file__).with_name("mutation_survivors.toml")

Identity = tuple[str, str, int, int, str, str, str]  # of a mutant
KEYS = ("file", "context", "occurrence", "column", "operator", "before", "after")  # what it is made of


@dataclass(frozen=True)
class Recorded:
    """A line of the record."""

    identity: Identity
    verdict: str
    by: str


@dataclass(frozen=True)
class Reason:
    """Why a survivor survives; ``harmless``: it is claimed that nobody could notice."""

    text: str
    harmless: bool


def read() -> list[Recorded]:
    """The record."""
    lines = json.loads(RECORD.read_text(encoding="utf-8"))["mutants"]
    return [Recorded(_identity(line), line["verdict"], line["by"]) for line in lines]


def write(verdicts: Iterable[Verdict], seed: int, count: int) -> None:
    """Make ``verdicts`` the record."""
    rows = [
        {**dict(zip(KEYS, v.mutant.identity, strict=True)), "verdict": v.verdict, "by": v.by}
        for v in verdicts
    ]
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    text = f'{{"seed": {seed}, "count": {count}, "mutants": [\n{lines}\n]}}\n'
    RECORD.write_text(text, encoding="utf-8")


def recorded(mutants: Sequence[Mutant]) -> list[Mutant]:
    """Those of ``mutants`` that are in the record."""
    known = {line.identity for line in read()}
    return [mutant for mutant in mutants if mutant.identity in known]


def sample(seed: int, count: int) -> list[Mutant]:
    """A few mutants that were caught, for a run by the seed of the day."""
    caught = {line.identity for line in read() if line.verdict == CAUGHT}
    return random.Random(seed).sample([one for one in all_mutants() if one.identity in caught], count)


@functools.cache
def reasons() -> Mapping[Identity, Reason]:
    """The survivors that have a reason, by the mutant's identity."""
    listed = tomllib.loads(REASONS.read_text(encoding="utf-8")).get("survivor", [])
    return {_identity(one): Reason(one["reason"], one["harmless"]) for one in listed}


def reason_for(mutant: Mutant) -> Reason | None:
    """The reason of a survivor."""
    return reasons().get(mutant.identity)


def _identity(one: Mapping[str, object]) -> Identity:
    return tuple(one[key] for key in KEYS)  # type: ignore[return-value]
