"""The mutation run: its operators on small texts, its selection, and a mutant of every fate."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from dataclasses import replace

import pytest
from command_line import handgrad, refused, report

from handgrad.kernel import catalogue, kernels_directory
from handgrad.proof import mutation
from handgrad.proof.mutation import Results, Verdict, all_mutants, judge, select
from handgrad.proof.mutation_check import CAUGHT, EQUIVALENT, NOT_COMPILED, SURVIVED, affected
from handgrad.proof.mutation_operators import APART, OPERATORS, Mutant, changes, mutants_of

# ---- operators -------------------------------------------------------------------------------------------


def found(source: str) -> set[tuple[str, str, str]]:
    """(operator, before, after) of every change."""
    return {(operator, source[start:end], after) for operator, start, end, after in changes(source)}


CHANGED = {
    "x = a + b;": {("arithmetic", "+", "-")},
    "x = a * -b;": {("arithmetic", "*", "/"), ("arithmetic", "*", "+"), ("arithmetic", "-", "")},
    "x += y % z;": {("arithmetic", "+=", "-="), ("arithmetic", "+=", "="), ("arithmetic", "%", "/")},
    "x = !y;": {("arithmetic", "!", "")},
    "x = a < b;": {("comparison", "<", "<="), ("comparison", "<", ">=")},
    "x = a != b;": {("comparison", "!=", "==")},
    "for (int i = a; i < n; i += 4) f(i);": {
        ("bound", "a", "a + 1"),
        ("comparison", "<", "<="),
        ("comparison", "<", ">="),
        ("bound", "n", "n - 1"),
        ("arithmetic", "+=", "-="),
        ("arithmetic", "+=", "="),
        ("bound", "4", "2 * 4"),
        ("constant", "4", "3"),
        ("constant", "4", "5"),
    },
    "for (int i = 0; i < n / V && go; ++i) f(i);": {
        ("constant", "0", "1"),
        ("comparison", "<", "<="),
        ("comparison", "<", ">="),
        ("bound", "n / V", "(n / V) - 1"),
        ("arithmetic", "/", "*"),
        ("mask", "&&", "||"),
    },
    "for (int i = n; i > m; --i) f(i);": {
        ("bound", "n", "n + 1"),
        ("comparison", ">", "<="),
        ("comparison", ">", ">="),
        ("bound", "m", "m + 1"),
    },
    "x = min(a, b);": {("bound", "min", "max")},
    "x = rows[i];": {("index", "i", "i + 1")},
    "x = threadIdx.x;": {("index", "threadIdx", "blockIdx"), ("index", "x", "y")},
    "__syncthreads();  // a + b": {("barrier", "__syncthreads()", "")},
    "if (a) b = c;": {("mask", "(a)", "(true)"), ("mask", "(a)", "(false)")},
    "if constexpr (a) b = c;": {("mask", "(a)", "(true)"), ("mask", "(a)", "(false)")},
    "x = a || b;": {("mask", "||", "&&")},
    "x = __shfl_sync(FULL_WARP, y, z);": {("mask", "FULL_WARP", "(FULL_WARP >> 16)")},
    "x = f(1.5f);": {("constant", "1.5f", "2.5f"), ("constant", "1.5f", "0.5f")},
    "x = f(1e-6);": {("constant", "1e-6", "2e-6"), ("constant", "1e-6", "0e-6")},
    "x = f(0);": {("constant", "0", "1")},
    "x = f(0xffu);": {("constant", "0xffu", "0x00u"), ("constant", "0xffu", "0xfeu")},
    "x = f(true);": {("constant", "true", "false")},
    "__threadfence();": {("fence", "__threadfence()", "")},
    "volatile T* x = y;": {("fence", "volatile", "")},
    "x = __ldg(y);": {("fence", "__ldg", "*")},
    "cp_async_wait_group<0>();": {("constant", "0", "1")},
    "cp_async_wait_all();": {("fence", "cp_async_wait_all()", "")},
    "T buffer[3];": {("constant", "3", "2")},
    "__shared__ __align__(16) T As[2][TILE::BK][A::PITCH];": {("constant", "2", "1")},
    "Vector<T, V> part[N / W];": set(),
}


@pytest.mark.parametrize("source", CHANGED)
def test_an_operator_changes_what_it_is_for_and_nothing_else(source):
    assert found(source) == CHANGED[source]


LEFT_ALONE = [
    "// a + b < 0",
    "/* a + b\n < 0 */",
    "#define N 3",
    "#if a < 3 \\\n  && b < 4",
    "#pragma unroll 4",
    "#ifdef HANDGRAD_EMULATED\nx = a + 1;\n#else\n#if b\nx = a - 1;\n#endif\nx = 2;\n#endif",
    'static_assert(N % 3 == 0, "whole");',
    "template <int N, class T = Vector<int, 4>, bool B = true> void f();",
    "struct alignas(16 * N) V;",
    "__global__ void __launch_bounds__(256) f();",
    "T& operator[](int);",
    "Vector<T, V> v = load<V>(p);",
    "const T* __restrict__ p;",
    "f(\"a + 1\", '2');",
    "T (*rows)[PITCH];",
    "x = template_name<A>::value;",
]


@pytest.mark.parametrize("source", LEFT_ALONE)
def test_what_is_no_computation_is_left_alone(source):
    assert found(source) == set()


def test_what_both_compilers_see_is_changed_beside_what_one_does():
    source = "#ifdef HANDGRAD_EMULATED\nx = a + b;\n#endif\n#ifdef OTHER\nx = a - b;\n#endif\nx = a * b;"
    assert {before for _, before, _ in found(source)} == {"-", "*"}


def test_a_mutant_is_one_change_in_its_place(tmp_path):
    source = "int f(int a) {\n  return a + 1;  // a + 1\n}\n"
    (tmp_path / "f.cu").write_text(source)
    mutants = mutants_of(tmp_path, ["f.cu"])
    assert [(m.number, m.line, m.column, m.before, m.after) for m in mutants] == [
        (1, 2, 12, "+", "-"),
        (2, 2, 14, "1", "0"),
        (3, 2, 14, "1", "2"),
    ]
    assert mutants[0].apply(source) == source.replace("a + 1;", "a - 1;")
    assert mutants[2].apply(source) == source.replace("1;", "2;")
    with pytest.raises(ValueError, match=r"f\.cu:2:12: expected '\+' there"):
        mutants[0].apply(source.replace("+", "*"))


def test_every_mutant_of_the_kernels_is_a_change_of_its_own():
    sources = {path.name: path.read_text() for path in kernels_directory().glob("*.cu*")}
    results = set()
    for mutant in all_mutants():
        changed = mutant.apply(sources[mutant.file])
        assert changed != sources[mutant.file]
        assert changed.count("\n") == sources[mutant.file].count("\n"), "lines keep their numbers"
        results.add((mutant.file, changed))
    assert len(results) == len(all_mutants())


# ---- selection -------------------------------------------------------------------------------------------


def test_the_recorded_selection_covers_every_kernel_and_operator():
    mutants, chosen = all_mutants(), select(all_mutants())
    assert len(chosen) == mutation.COUNT >= 100
    assert len(set(chosen)) == len(chosen)
    assert {m.file for m in chosen} >= {entry.file for entry in catalogue()}
    assert "linear_naive.cu" not in {m.file for m in mutants}, "it is documentation"
    assert {m.operator for m in chosen} == set(OPERATORS)
    assert {(m.file, m.operator) for m in chosen} == {(m.file, m.operator) for m in mutants}
    assert select(all_mutants()) == chosen, "the same in every run"
    assert select(mutants, seed=1) != select(mutants, seed=2)


def test_a_larger_selection_contains_a_smaller_one():
    mutants = all_mutants()
    assert set(select(mutants, count=20)) < set(select(mutants, count=40))
    assert select(mutants, count=10**6) == mutants


def test_the_sample_of_the_day_is_out_of_the_recorded_selection():
    days = {seed: mutation.sample(seed, 6) for seed in (1, 2, 3)}
    assert all(
        len(set(chosen)) == 6 and set(chosen) <= set(select(all_mutants())) for chosen in days.values()
    )
    assert days[1] != days[2] != days[3]


def test_a_header_affects_every_kernel_that_includes_it():
    def ops(file: str) -> set[str]:
        return {entry.op.split(".")[0] for entry in affected(kernels_directory(), file)}

    assert ops("batch.cu") == {"batch"}
    assert ops("tile_product.cuh") == {"linear", "two_layer"}
    assert ops("activation.cuh") == {"activation", "linear", "loss", "two_layer"}
    assert ops("common.cuh") == {"activation", "batch", "linear", "loss", "optimizer", "two_layer"}


def test_every_survivor_on_record_is_a_mutant_that_there_is_and_few_are_called_harmless():
    identities = {mutant.identity for mutant in all_mutants()}
    assert set(mutation.reasons()) <= identities
    assert all(len(reason.text.split()) > 3 for reason in mutation.reasons().values())
    counted = [reason for identity, reason in mutation.reasons().items() if identity[3] != APART]
    assert 10 * sum(reason.harmless for reason in counted) <= len(counted)


# ---- fates -----------------------------------------------------------------------------------------------


def planted(before: str, after: str, file: str = "batch.cu") -> Mutant:
    """A mutant of one's own."""
    source = (kernels_directory() / file).read_text()
    assert source.count(before) == 1, "the mutant needs its place"
    lines = source[: source.index(before)].splitlines()
    return Mutant(0, file, len(lines), len(lines[-1]) + 1, "arithmetic", before, after, "")


def test_a_fault_is_caught(tmp_path):
    verdict = judge(planted("* scale + shift;", "* scale - shift;"), tmp_path)
    assert (verdict.verdict, verdict.by) == (CAUGHT, "check --quick")
    assert "elements are wrong" in verdict.detail
    assert str(tmp_path) not in verdict.detail


def test_what_does_not_compile_is_not_counted(tmp_path):
    verdict = judge(planted("* scale + shift;", "* scale + shaft;"), tmp_path)
    assert verdict.verdict == NOT_COMPILED
    assert "shaft" in verdict.detail


def test_a_process_that_does_not_end_is_ended(tmp_path):
    verdict = judge(planted("column += WARP * V", "column += 0 * V"), tmp_path, patience=0.05)
    assert (verdict.verdict, verdict.by) == (CAUGHT, "check --quick")
    assert "no end within 3 s" in verdict.detail


def test_a_process_that_dies_counts_as_caught(tmp_path):
    verdict = judge(planted("column += WARP * V", "column += (__builtin_trap(), V)"), tmp_path)
    assert (verdict.verdict, verdict.by) == (CAUGHT, "check --quick")
    assert "died with signal SIG" in verdict.detail


@pytest.mark.slow
def test_what_has_the_same_code_is_equivalent(tmp_path):
    verdict = judge(planted("if (row >= rows)", "if (rows <= row)"), tmp_path)
    assert verdict.verdict == EQUIVALENT
    assert "code is the same" in verdict.detail or verdict.detail == "the same machine code"


def test_a_fault_counts_only_where_the_kernels_pass_without_it(tmp_path, monkeypatch):
    monkeypatch.setattr(mutation.mutation_check, "fails", lambda by, trial: "wrong")
    mutation.control.cache_clear()
    with pytest.raises(RuntimeError, match=r"the kernels fail check --quick without any change: .*: wrong"):
        judge(planted("* scale + shift;", "* scale - shift;"), tmp_path)


# ---- the run ---------------------------------------------------------------------------------------------


@pytest.fixture
def judged(monkeypatch, tmp_path) -> list[Mutant]:
    """The mutants that a run has judged, each of which it finds caught; results of its own."""
    asked: list[Mutant] = []

    def verdict_of(mutant, kept, patience=1.0):
        asked.append(mutant)
        return Verdict(mutant, CAUGHT, "check --quick", "", 0.5)

    monkeypatch.setattr(mutation, "judge", verdict_of)
    monkeypatch.setattr(mutation, "cache_directory", lambda: tmp_path)
    monkeypatch.setattr(mutation, "runtime_library", lambda: None)
    return asked


def test_a_run_goes_on_where_it_was(judged):
    mutants = select(all_mutants(), count=6)
    first = mutation.run(mutants[:4])
    assert judged == mutants[:4]
    steps = []
    both = mutation.run(mutants, jobs=2, progress=lambda done, total, verdict: steps.append((done, total)))
    assert [verdict.mutant for verdict in both] == mutants
    assert both[:4] == first
    assert Counter(judged) == Counter(mutants), "each once"
    assert steps == [(5, 6), (6, 6)]
    mutation.run(mutants[:1], fresh=True)
    assert judged[6:] == mutants[:1]
    assert Results().known(mutants[1]) is None, "forgotten"


def test_the_share_is_of_those_that_could_be_caught():
    mutant = all_mutants()[0]
    counts = {CAUGHT: 97, SURVIVED: 3, EQUIVALENT: 11, NOT_COMPILED: 7}
    verdicts = [Verdict(mutant, name, "", "", 0.0) for name, count in counts.items() for _ in range(count)]
    found = mutation.tally(verdicts)
    assert (found.caught, found.survived, found.equivalent, found.not_compiled) == (97, 3, 11, 7)
    assert found.share == 0.97
    assert mutation.tally([]).share == 1.0
    assert not verdicts[0].apart
    assert replace(verdicts[0], mutant=replace(mutant, operator="fence")).apart


# ---- the command -----------------------------------------------------------------------------------------

MUTATE = ("kernels", "mutate")


def test_the_selection_can_be_listed():
    found = report(*MUTATE, "--list", "--count", 5, "--only", "loss.cu")
    assert len(found["mutants"]) == 5
    assert {mutant["file"] for mutant in found["mutants"]} == {"loss.cu"}


def test_the_report_has_a_row_a_mutant(judged):
    found = report(*MUTATE, "--number", 3, "--number", 5)
    assert found["device"] == "emulator"
    assert [row["number"] for row in found["mutants"]] == [3, 5]
    assert found["counted"] == {"caught": 2, "survived": 0, "equivalent": 0, "not_compiled": 0, "share": 1.0}
    assert {"file", "line", "column", "operator", "before", "after", "verdict", "by"} <= set(
        found["mutants"][0]
    )


def test_a_survivor_without_a_reason_fails(judged, monkeypatch):
    monkeypatch.setattr(mutation, "judge", lambda mutant, kept: Verdict(mutant, SURVIVED, "", "", 0.1))
    monkeypatch.setattr(mutation, "reasons", dict)
    result = handgrad(*MUTATE, "--count", 2, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["counted"]["survived"] == 2
    assert result.stderr.count("no reason on record") == 2


def test_the_table_says_that_it_is_emulated(judged):
    result = handgrad(*MUTATE, "--count", 60)
    assert result.exit_code == 0
    assert "faults planted in the kernels, emulated" in result.stdout
    assert "all but fence" in result.stdout


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--only", "nothing.cu"), "--only: expected one of activation.cu, "),
        (("--number", 10**6), "--number: expected 1 to "),
        (("--kernels", "nowhere"), "kernels: nowhere has no common.cuh"),
    ],
)
def test_a_wrong_call_is_told_in_one_line(option, words):
    assert words in refused(*MUTATE, *option)


@pytest.mark.slow
def test_the_sample_of_the_day_is_caught():
    """Six of the recorded selection, others every day."""
    today = datetime.datetime.now(datetime.UTC).toordinal()
    for verdict in mutation.run(mutation.sample(today, 6)):
        known = verdict.verdict != SURVIVED or mutation.reason_for(verdict.mutant) is not None
        assert known, f"{verdict.mutant} survived: {verdict.detail}"
