"""The kernel check itself: its grid, its guarded memory, its bounds, and what it reports."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from handgrad import emulator, kernel
from handgrad.arrays import resolve_device
from handgrad.ops import linear
from handgrad.proof import correctness, reference
from handgrad.proof.correctness import Group, compare
from handgrad.proof.covering import pairwise
from handgrad.proof.guarded import LAYOUTS, Memory
from handgrad.proof.roundoff import PRECISIONS, Bounded
from handgrad.proof.trials import TRIALS, trials

GRID = {
    "N": {0, 1, 31, 33, 127, 1000},
    "D": {1, 3, 783, 784, 785},
    "H": {1, 50, 63, 65, 129},
    "C": {1, 2, 10, 17},
}
U = {"float32": 2.0**-24, "float64": 2.0**-53}


# ---- the whole check -------------------------------------------------------------------------------------


def test_every_kernel_passes_the_quick_check():
    told = []
    cases = correctness.run("emulator", quick=True, progress=lambda *report: told.append(report))
    assert [f"{case.op} {case.shape} {case.detail}" for case in cases if not case.passed] == []
    assert {case.op for case in cases} == {entry.op for entry in kernel.catalogue()}
    assert {case.dtype for case in cases} == {"float32", "float64", "int32"}
    assert {(case.op, case.kernel) for case in cases} == {(e.op, e.name) for e in kernel.catalogue()}
    assert all(case.error <= case.bound for case in cases)
    assert [report[:2] for report in told] == [(i + 1, len(cases)) for i in range(len(cases))]


@pytest.mark.slow
def test_every_kernel_passes_the_whole_grid():
    cases = correctness.run("emulator")
    assert [f"{case.op} {case.shape} {case.detail}" for case in cases if not case.passed] == []
    assert len(cases) > 1000


def test_some_ops_and_types_may_be_chosen():
    cases = correctness.run(
        "emulator", ops=["linear.reduce_partials", "batch"], dtypes=["float64"], quick=True
    )
    assert {(case.op, case.dtype) for case in cases} == {
        ("linear.reduce_partials", "float64"),
        ("batch.gather", "float64"),
    }
    assert correctness.chosen_ops(["loss"]) == ["loss.elementwise", "loss.rows"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "cpu"}, "device: expected 'cuda', 'cuda:N' or 'emulator', got 'cpu'"),
        (
            {"ops": ["gather"]},
            r"op: expected a kernel of the catalogue \(activation.forward, .*\), got 'gather'",
        ),
        ({"ops": ["linear."]}, "op: expected a kernel of the catalogue"),
        ({"dtypes": ["float16"]}, "dtype: expected one of float32, float64, int32, got 'float16'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        correctness.run(**({"device": "emulator"} | arguments))


# ---- the grid --------------------------------------------------------------------------------------------


def whole_grid():
    return [trial for op in TRIALS for dtype in ("float32", "float64") for trial in trials(op, dtype, False)]


def test_every_kernel_meets_every_size():
    assert set(TRIALS) == {entry.op for entry in kernel.catalogue()}
    wanted = {
        "activation": {"N": GRID["N"], "H": GRID["H"]},
        "batch.gather": {"rows": GRID["N"], "D": GRID["D"]},
        "linear.forward": {"N": GRID["N"], "D": GRID["D"], "H": GRID["H"] | GRID["C"]},  # of either layer
        "linear.backward_input": {"N": GRID["N"], "D": GRID["C"], "H": GRID["H"]},
        "linear.backward_weight": {"N": GRID["N"], "D": GRID["D"], "H": GRID["H"] | GRID["C"]},
        "loss": {"N": GRID["N"], "C": GRID["C"]},
        "optimizer.update": {"D": GRID["D"], "H": GRID["H"], "C": GRID["C"]},
    }
    for name, dtype in itertools.product(wanted, ("float32", "float64")):
        for op in correctness.chosen_ops([name]):
            shapes = [trial.shape for trial in trials(op, dtype, False)]
            for side, sizes in wanted[name].items():
                assert sizes <= {shape[side] for shape in shapes}, (op, dtype, side)


def test_the_grid_launches_every_instantiation_of_the_catalogue():
    """Every tile, vector width, activation, loss and number of lanes, the naive twins aside."""
    groups = [Group(op, dtype, False) for op in TRIALS for dtype in ("float32", "float64", "int32")]
    launched = {expression for _, expression in correctness.launched(groups)}
    fused = {entry for entry in kernel.catalogue() if entry.op.startswith("two_layer.")}
    others = set(kernel.catalogue()) - fused
    assert {text for entry in others for text in entry.expressions} <= launched
    # Of the fused steps, which have too many: every argument of every template.
    met = {(name, *argument) for name, arguments in map(template, launched) for argument in arguments}
    for entry in fused:
        for name, arguments in map(template, entry.expressions):
            assert {(name, *argument) for argument in arguments} <= met, entry.op


def template(expression):
    """``f<A<1, 2>, B>`` as ("f", [(0, "A<1, 2>"), (1, "B")])."""
    name, inner = expression.removesuffix(">").split("<", 1)
    arguments, depth = [""], 0
    for character in inner:
        depth += (character == "<") - (character == ">")
        if character == "," and depth == 0:
            arguments.append("")
        else:
            arguments[-1] += character
    return name, list(enumerate(argument.strip() for argument in arguments))


def test_the_grid_splits_the_samples_and_fills_every_tile():
    shapes = [trial.shape for trial in trials("linear.backward_weight", "float32", False)]
    tiles = [linear.choose_tile(shape["D"], shape["H"]) for shape in shapes]
    assert set(tiles) == set(linear.TILES)
    split = [
        linear.split_samples(s["N"], s["D"], s["H"], tile)[0] for s, tile in zip(shapes, tiles, strict=True)
    ]
    assert min(split) == 1
    assert max(split) == 8


def test_trials_are_told_apart_and_small_ones_are_repeated():
    grid = whole_grid()
    assert len({str(trial) for trial in grid}) == len(grid)
    assert len({trial.seed for trial in grid}) == len(grid)
    for quick, dtype in itertools.product((True, False), ("float32", "float64")):
        for op in TRIALS:
            assert any(trial.schedules for trial in trials(op, dtype, quick)), op


def test_a_covering_array_covers_all_pairs():
    factors = {"a": (0, 1, 31, 33, 127, 1000), "b": "stuvw", "c": (True, False), "d": LAYOUTS, "e": "xyz"}
    rows = pairwise(factors)
    for one, other in itertools.combinations(factors, 2):
        met = {(row[one], row[other]) for row in rows}
        assert met == set(itertools.product(factors[one], factors[other])), (one, other)
    assert 30 <= len(rows) <= 36, "at least as many as the two longest factors have pairs, and few more"
    assert pairwise(factors) == rows, "the same every time"
    assert pairwise(factors, seed=1) != rows
    assert pairwise({"a": (1, 2, 3)}) == [{"a": 1}, {"a": 2}, {"a": 3}]


# ---- guarded memory --------------------------------------------------------------------------------------


@pytest.fixture
def memory():
    return Memory(emulator, seed=3)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint8"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_lie_between_guards(memory, dtype, layout):
    values = np.arange(12).reshape(3, 4).astype(dtype)
    given = memory.input(values, layout)
    np.testing.assert_array_equal(given, values)
    assert given.flags.c_contiguous == (layout in ("aligned", "misaligned"))
    offset = {"misaligned": values.itemsize}.get(layout, 0)
    assert given.ctypes.data % 256 == offset
    assert memory.problems() == []
    given[1, 1] += 1
    assert memory.problems() == ["input: 1 elements of an input were changed"]


@pytest.mark.parametrize("layout", ["aligned", "misaligned"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_writes_outside_of_an_output_are_seen(memory, layout, dtype):
    out = memory.output((2, 5), dtype, layout, "out")
    assert np.isnan(out).all()
    assert memory.problems() == ["out: 10 of 10 elements were not written"]
    out[...] = 0
    assert memory.problems() == []
    buffer = memory._buffers[0]
    buffer.whole[buffer.inside.stop] = 0
    assert memory.problems() == ["out: 1 elements outside were written, the first 1 past its end"]
    buffer.whole[buffer.inside.start - 2] = 0
    assert memory.problems() == ["out: 2 elements outside were written, the first 2 before its start"]


def test_a_written_nan_is_no_poison(memory):
    out = memory.output((2,), "float32", name="out")
    out[...] = np.array([np.nan, np.uint32(0x7FC00000).view(np.float32)])
    assert memory.problems() == []


def test_workspaces_are_poisoned_and_tickets_return_to_zero(memory):
    partials = memory.workspace.get("partials", (8,), np.float32, emulator)
    ticket = memory.workspace.zeroed_once("ticket", (1,), np.int32, emulator)
    assert np.isnan(partials).all()
    assert ticket[0] == 0
    partials[0] = 1
    assert memory.problems() == []
    ticket[0] = 1
    assert memory.problems() == ["ticket: 1 elements of an input were changed"]


# ---- bounds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_bound_of_a_product_is_the_agreed_one(dtype):
    """4 √K u (|A| |B|), element by element."""
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(5, 70)).astype(dtype), rng.normal(size=(70, 3)).astype(dtype)
    found = reference.linear_forward(A, B, None, "identity")
    for i, j in np.ndindex(5, 3):
        terms = (Fraction(float(a)) * Fraction(float(b)) for a, b in zip(A[i], B[:, j], strict=True))
        assert float(found.value[i, j]) == pytest.approx(float(sum(terms)), rel=1e-13)
    bound = 4 * math.sqrt(70) * U[dtype] * (abs(A).astype(float) @ abs(B).astype(float))
    np.testing.assert_allclose(found.error.astype(float), bound, rtol=1e-6)


FORMULAS = {  # in the kernel's type, and with bounds
    "sum": lambda x, y, e: x + y,
    "product": lambda x, y, e: x * y,
    "quotient": lambda x, y, e: x / (y * y + 1),
    "sigmoid": lambda x, y, e: 1 / (1 + e.exp(-x)),
    "softplus": lambda x, y, e: e.log1p(e.exp(-abs(x))) + y,
    "root": lambda x, y, e: e.sqrt(abs(x)) / (abs(y) + 1e-3),
    "bell": lambda x, y, e: e.exp(-(x * x)) * e.tanh(y),
    "difference": lambda x, y, e: e.expm1(x) - e.exp(x) * y,
    "logarithm": lambda x, y, e: e.log(abs(x) + 1.5) * y,
}


class Functions:
    """The methods of Bounded as functions."""

    def __getattr__(self, name):
        return lambda x: getattr(x, name)()


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rounding_stays_within_its_bound_and_the_bound_is_narrow(dtype, formula):
    rng = np.random.default_rng(5)
    x, y = (3 * rng.normal(size=20_000)).astype(dtype), rng.normal(size=20_000).astype(dtype)
    got = FORMULAS[formula](x, y, np)
    assert got.dtype == dtype
    found = FORMULAS[formula](reference.exact(x), reference.exact(y), Functions())
    errors = abs(got.astype(found.value.dtype) - found.value)
    shares = errors / found.error
    assert shares.max() <= 1
    assert shares.max() >= 0.05, "a bound twenty times too wide would hide a fault"


def test_a_subnormal_number_may_be_taken_as_zero():
    """CuPy compiles with -ftz=true."""
    with np.errstate(under="ignore"):
        tiny = np.array([1e-40, 1.0], np.float32)
    relu = reference.activation_forward(tiny, "relu")
    assert compare(np.array([0, 1], np.float32), relu).problem == ""
    assert compare(tiny, relu).problem == ""
    assert "(1)" in compare(np.array([0, 1 + 2**-23], np.float32), relu).problem


def test_a_hyperparameter_is_rounded_once():
    third = Bounded.constant(1 / 3, PRECISIONS["float32"])
    assert abs(float(np.float32(1 / 3)) - 1 / 3) <= float(third.error) <= 2.0**-24 / 3 * 1.01


# ---- comparisons -----------------------------------------------------------------------------------------


def bounded(values, error):
    values = np.array(values)
    return Bounded(values, np.full(values.shape, error), PRECISIONS["float32"])


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1.6, 0.4, -1.0])
def test_what_is_off_is_named_with_its_place(wrong):
    got = np.array([[1.0, 1.5, 0.5], [1.0, 1.0, wrong]], np.float32)
    found = compare(got, bounded([[1.0] * 3] * 2, 0.5))
    assert (
        f"1 of 6 elements are wrong, the worst at (1, 2): {np.float32(wrong)} instead of 1.0" in found.problem
    )
    assert not found.error <= found.bound


def test_what_lies_within_its_bound_passes():
    found = compare(np.array([1.0, 1.5, 2.25], np.float32), bounded([1.0, 1.25, 2.0], 0.5))
    assert (found.problem, found.error, found.bound) == ("", 0.25, 0.5)
    assert compare(np.empty((0, 3), np.float32), bounded(np.empty((0, 3)), 0.5)).problem == ""


@pytest.mark.parametrize("expected", [np.nan, np.inf, -np.inf, 1e39, -1e39])
def test_infinities_and_nans_have_to_be_the_same(expected):
    with np.errstate(over="ignore"):
        same = np.float32(expected)  # 1e39 is infinite in float32
        for got in (np.nan, np.inf, -np.inf, 3e38, 0.0):
            fits = compare(np.array([got], np.float32), bounded([expected], 1e38)).problem == ""
            assert fits == (np.float32(got).tobytes() == same.tobytes())


def test_exact_leaves_no_room():
    expected = bounded([1.0, 0.0], 0.5)
    assert compare(np.array([1.0, -0.0], np.float32), expected, exact=True).problem == ""
    assert compare(np.array([1.0, 1e-45], np.float32), expected, exact=True).problem
    assert compare(np.array([1.0, np.nan], np.float32), expected, exact=True).problem


def test_a_shape_or_an_unbounded_error_is_no_match():
    assert "shape (2,) instead of (3,)" in compare(np.zeros(2, np.float32), bounded([0.0] * 3, 1.0)).problem
    assert compare(np.zeros(1, np.float32), bounded([0.0], np.inf)).problem


# ---- repetitions -----------------------------------------------------------------------------------------


def test_small_trials_run_under_every_order_of_threads():
    device = resolve_device("emulator")
    (small, *_) = (trial for trial in trials("loss.rows", "float32", True) if trial.schedules)
    orders = [words for words, _ in correctness._orders(device, small, 20)]
    assert orders[:2] == ["threads in reverse order", "threads in lifo order"]
    assert orders[2:] == [f"threads in random order {seed}" for seed in range(20)]
    seen = set()
    for _, order in correctness._orders(device, small, 20):
        with order:
            seen.add((emulator.current_settings().order, emulator.current_settings().seed))
    assert len(seen) == 22


def test_other_bits_in_another_order_are_a_failure(monkeypatch):
    """A sum whose order of terms follows the schedule."""
    device = resolve_device("emulator")
    (small, *_) = (trial for trial in trials("loss.rows", "float32", True) if trial.schedules)
    execute = correctness._execute

    def changed(device, trial):
        outputs, problems = execute(device, trial)
        if emulator.current_settings().order == "lifo":
            outputs[0][1][...] = np.nextafter(outputs[0][1], np.float32(9))
        return outputs, problems

    monkeypatch.setattr(correctness, "_execute", changed)
    case = correctness.run_trial(device, small)
    assert not case.passed
    assert case.detail.endswith("threads in lifo order: other bits than the first time")
