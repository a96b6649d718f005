"""The kernel check fails on every fault of tests/mutants.toml, and names the op."""

import shutil
import tomllib
from pathlib import Path

import pytest

from handgrad import kernel
from handgrad.arrays import resolve_device
from handgrad.proof.correctness import Group
from handgrad.proof.isolation import cases_of

LISTED = tomllib.loads((Path(__file__).parent / "mutants.toml").read_text())
MUTANTS = {
    f"{op}-{number}-{mutant['kind']}": (op, mutant)
    for op, mutants in LISTED.items()
    for number, mutant in enumerate(mutants, start=1)
}
QUICK = {  # the last of each family; the slow run takes all
    op.split(".")[0]: f"{op}-{len(mutants)}-{mutants[-1]['kind']}" for op, mutants in LISTED.items()
}


def first_failure(op):
    """Of the quick check, in float32 and in a process of its own; None where all passes."""
    cases = cases_of(resolve_device("emulator"), Group(op, "float32", quick=True))
    return next((case for case in cases if not case.passed), None)


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK.values() else pytest.param(name, marks=pytest.mark.slow) for name in MUTANTS],
)
def test_a_mutant_fails_the_check(name, tmp_path):
    op, mutant = MUTANTS[name]
    folder = Path(shutil.copytree(kernel.kernels_directory(), tmp_path / "kernels"))
    source = (folder / mutant["file"]).read_text()
    (folder / mutant["file"]).write_text(source.replace(mutant["old"], mutant["new"]))
    with kernel.use_kernels(folder):
        failure = first_failure(op)
    assert failure is not None, "survived"
    assert failure.op == op
    assert "does not compile" not in failure.detail, "a fault is to be planted that compiles"


def test_every_mutant_has_its_place():
    for name, (_, mutant) in MUTANTS.items():
        source = (kernel.kernels_directory() / mutant["file"]).read_text()
        assert source.count(mutant["old"]) == 1, name


def test_every_kernel_has_five_mutants_of_three_kinds():
    assert set(LISTED) == {entry.op for entry in kernel.catalogue()}
    for op, mutants in LISTED.items():
        changes = {(mutant["file"], mutant["old"], mutant["new"]) for mutant in mutants}
        assert len(changes) == len(mutants) >= 5, op
        assert all(old != new for _, old, new in changes), op
        assert len({mutant["kind"] for mutant in mutants}) >= 3, op
