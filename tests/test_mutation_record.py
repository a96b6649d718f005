"""The record of the mutation run: it holds, the document agrees with it, and a few mutants are run daily."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest
from command_line import handgrad, refused

from handgrad.proof import mutation, mutation_record
from handgrad.proof.mutation import Tally, Verdict, all_mutants, select
from handgrad.proof.mutation_check import CAUGHT, SURVIVED
from handgrad.proof.mutation_operators import APART, OPERATORS

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "mutation.md"
RECORDED = mutation_record.read()
OPERATOR = mutation_record.KEYS.index("operator")


def tally(recorded: list[mutation_record.Recorded]) -> Tally:
    """How many of each verdict."""
    names = [one.verdict for one in recorded]
    return Tally(*(names.count(name) for name in mutation.VERDICTS))


def is_apart(one: mutation_record.Recorded) -> bool:
    return one.identity[OPERATOR] == APART


def test_the_record_is_of_the_selection_that_was_fixed_beforehand():
    assert len(RECORDED) == mutation.COUNT >= 100
    assert len({one.identity for one in RECORDED}) == len(RECORDED)
    assert {one.identity[OPERATOR] for one in RECORDED} == set(OPERATORS)
    assert {one.verdict for one in RECORDED} <= set(mutation.VERDICTS)


def test_the_recorded_share_is_large_enough():
    found = tally([one for one in RECORDED if not is_apart(one)])
    assert found.share >= mutation.LEAST_SHARE
    assert found.caught >= 100


def test_every_survivor_has_a_reason_and_every_reason_a_survivor():
    survivors = {one.identity for one in RECORDED if one.verdict == SURVIVED}
    assert set(mutation_record.reasons()) == survivors


def test_few_survivors_are_called_harmless():
    """One in ten at most, or one where there are fewer."""
    reasons = mutation_record.reasons()
    assert all(len(reason.text.split()) > 5 for reason in reasons.values())
    counted = [reason for identity, reason in reasons.items() if identity[OPERATOR] != APART]
    assert sum(reason.harmless for reason in counted) <= max(1, len(counted) // 10)


def test_survivors_are_mutants_that_there_are():
    """A kernel that changed there has to be mutated again."""
    assert set(mutation_record.reasons()) <= {mutant.identity for mutant in all_mutants()}


def test_a_mutant_is_known_by_its_identity():
    """Equal lines of one file are told apart."""
    assert len({mutant.identity for mutant in all_mutants()}) == len(all_mutants())


def test_the_record_is_not_out_of_date():
    """Where this fails the kernels are other ones: handgrad kernels mutate --record."""
    assert len(mutation_record.recorded(all_mutants())) >= 0.75 * len(RECORDED)


def test_the_sample_of_the_day_is_out_of_those_that_were_caught():
    caught = {one.identity for one in RECORDED if one.verdict == CAUGHT}
    days = {seed: mutation_record.sample(seed, 6) for seed in (1, 2, 3)}
    assert all(len(set(chosen)) == 6 for chosen in days.values())
    assert all(mutant.identity in caught for chosen in days.values() for mutant in chosen)
    assert days[1] != days[2] != days[3]
    assert mutation_record.sample(1, 6) == days[1]


@pytest.mark.slow
def test_the_sample_of_the_day_is_caught():
    """Six of the record, others every day."""
    today = datetime.datetime.now(datetime.UTC).toordinal()
    for verdict in mutation.run(mutation_record.sample(today, 6)):
        assert verdict.verdict != SURVIVED, f"{verdict.mutant} survived: {verdict.detail}"


# ---- the document ----------------------------------------------------------------------------------------


def test_the_table_of_the_document_is_that_of_the_record():
    numbers = r" (\d+) \|" * len(mutation.VERDICTS)
    found = re.findall(rf"^\| ([a-z ]+) \|{numbers}", DOCUMENT.read_text(), re.MULTILINE)
    rows = {name: tuple(map(int, counts)) for name, *counts in found}
    for name in (*OPERATORS, "all but fence"):
        chosen = [
            one
            for one in RECORDED
            if one.identity[OPERATOR] == name or (name not in OPERATORS and not is_apart(one))
        ]
        expected = tally(chosen)
        counts = (expected.caught, expected.survived, expected.equivalent, expected.not_compiled)
        assert rows[name] == counts, name


def test_the_document_lists_the_files_and_every_survivor():
    text = DOCUMENT.read_text()
    for file in {one.identity[0] for one in RECORDED}:
        assert f"`{file}`" in text
    for file, context, *_ in mutation_record.reasons():
        assert any(file in line and context.replace("|", "\\|") in line for line in text.splitlines()), (
            context
        )


# ---- the option ------------------------------------------------------------------------------------------


def test_a_run_can_be_made_the_record(monkeypatch, tmp_path):
    chosen = select(all_mutants(), count=3)
    verdicts = [Verdict(mutant, CAUGHT, "check --quick", "wrong", 0.5) for mutant in chosen]
    monkeypatch.setattr(mutation, "run", lambda *arguments: verdicts)
    monkeypatch.setattr(mutation_record, "RECORD", tmp_path / "record.json")
    assert handgrad("kernels", "mutate", "--record").exit_code == 0
    assert [(one.identity, one.verdict, one.by) for one in mutation_record.read()] == [
        (mutant.identity, CAUGHT, "check --quick") for mutant in chosen
    ]
    assert mutation_record.recorded(all_mutants()) == chosen


@pytest.mark.parametrize(
    "option", [("--seed", 3), ("--count", 9), ("--only", "loss.cu"), ("--number", 4), ("--list",)]
)
def test_a_part_of_a_run_is_no_record(option):
    assert "--record: expected no --seed" in refused("kernels", "mutate", "--record", *option)
