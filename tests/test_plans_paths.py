"""Plans: one path for every problem, right on both sides of every boundary."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from planned import PATHS, STEP_PATHS, data, network, on_emulator
from small_networks import needs_compiler

from handgrad.arrays import to_numpy
from handgrad.ops.two_layer import Problem
from handgrad.plans import paths
from handgrad.plans.choice import choose, refusal_of

pytestmark = needs_compiler
PLACES = 6  # boundaries of a step


def problems():
    sizes = itertools.product((1, 64, 50_000), (1, 50, 784, 3000), (1, 50, 128, 129, 512), (1, 10, 100))
    for N, D, H, C in sizes:
        yield Problem(N, D, H, C)
        yield Problem(N, D, H, C, dtype="float64", precision="float64", inputs="float64", arch="sm_90")
        yield Problem(N, D, H, C, inputs="uint8", arch="sm_75", sms=40)
        for precision in ("tf32", "3xtf32", "bfloat16"):
            yield Problem(N, D, H, C, precision=precision, arch="sm_89")


def test_every_problem_has_exactly_one_path():
    found = set()
    for problem in problems():
        refusals = {name: refusal_of(problem, name) for name in STEP_PATHS}
        assert not all(refusals.values()), (problem, refusals)
        chosen = choose(problem).layout
        first = next(name for name in STEP_PATHS if not refusals[name])
        assert chosen.path == first
        assert chosen.problem == problem
        found.add(chosen.path)
        for why in refusals.values():
            assert "\n" not in why
    assert found == set(STEP_PATHS)


@pytest.mark.parametrize("path", PATHS)
def test_a_refusal_is_a_function_of_the_problem_and_lay_out_agrees(path):
    module = paths.module_of(path)
    for problem in itertools.islice(problems(), 0, None, 7):
        if module.refusal(problem):
            with pytest.raises(ValueError, match=r"R[1-4]: "):
                module.lay_out(problem)
        else:
            layout = module.lay_out(problem)
            assert layout.path == path
            assert layout.problem == problem
            assert all(size > 0 for one in layout.launches for size in (*one.grid, *one.block))


def boundaries_along(side, most, epoch=False, **fixed):
    """Each largest side up to ``most`` whose successor takes another path."""

    def path_at(value):
        return choose(Problem(**({"N": 33} | fixed | {side: value})), None, epoch).layout.path

    found, low = [], 1
    while path_at(low) != path_at(most):
        high = most
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if path_at(middle) == path_at(low) else (low, middle)
        found.append(low)
        low = high
    return found


def boundaries():
    """Sizes just below and just above each boundary of the choice for a step, one after the other."""
    found = []
    for side, fixed in (
        ("D", {"H": 50, "C": 3}),
        ("H", {"D": 20, "C": 3}),
        ("H", {"D": 500, "C": 3}),
        ("C", {"D": 20, "H": 12}),
        ("D", {"H": 100, "C": 1}),
    ):
        for last in boundaries_along(side, 4000, **fixed):
            found += [{**fixed, side: last}, {**fixed, side: last + 1}]
    return found


def test_there_are_boundaries_between_the_paths():
    sides, met = boundaries(), set()
    for below, above in zip(sides[::2], sides[1::2], strict=True):
        a, b = (choose(Problem(N=33, **sizes)).layout for sizes in (below, above))
        assert STEP_PATHS.index(a.path) < STEP_PATHS.index(b.path)
        assert refusal_of(b.problem, a.path), "the one above is refused by the path below"
        met.add((a.path, b.path))
    assert {("R1", "R3"), ("R3", "R4"), ("R1", "R4")} <= met
    assert len(sides) == 2 * PLACES


@pytest.mark.parametrize("inputs", ["float32", "uint8"])
@pytest.mark.parametrize("precision", ["float32", "tf32", "3xtf32", "bfloat16"])
def test_the_paths_of_every_precision_and_type_of_x(precision, inputs):
    """R1 as far as its registers hold dW1, then R3 as far as H = 128 and C = 64, then R4: on both sides."""
    make = functools.partial(Problem, precision=precision, inputs=inputs, arch="sm_90")
    last = {"float32": 816, "tf32": 896, "3xtf32": 896, "bfloat16": 896}[precision]  # D of R1 with H = 50
    sides = {
        "R1": [(last, 50, 10)],
        "R3": [(last + 1, 50, 10), (784, 128, 10), (784, 128, 64)],
        "R4": [(784, 129, 10), (784, 128, 65)],
    }
    for path, shapes in sides.items():
        for D, H, C in shapes:
            assert choose(make(1000, D, H, C)).layout.path == path, (D, H, C)


@pytest.mark.parametrize(
    ("side", "fixed"),
    [("N", {"D": 784, "H": 50, "C": 10}), ("C", {"D": 64, "H": 32})],
    ids=str,
)
def test_whole_epochs_change_between_r2_and_steps_where_the_plan_says_why(side, fixed):
    places = boundaries_along(side, 3000, epoch=True, **fixed)
    assert places
    for last in places:
        for value in (last, last + 1):
            problem = Problem(**({"N": 33} | fixed | {side: value}))
            chosen = choose(problem, None, True)
            refusal = refusal_of(problem, "R2")
            if chosen.layout.path == "R2":
                assert refusal == ""
                assert chosen.reason.startswith("predicted faster: ")
            else:
                assert chosen.layout == choose(problem).layout, "the choice for a step"
                assert (f"R2 cannot: {refusal}" if refusal else "R2 is predicted slower: ") in chosen.reason


@pytest.mark.parametrize(
    "number", [0, 1, *(pytest.param(number, marks=pytest.mark.slow) for number in range(2, 2 * PLACES))]
)
def test_both_sides_of_a_boundary_are_right(number):
    """The gradient just below and just above, against float64 NumPy."""
    sides = boundaries()
    sizes = sides[number]
    D, H, C = sizes["D"], sizes["H"], sizes["C"]
    loss = "mse" if C == 1 else "cross_entropy"
    X, y = data(33, D, C, loss)
    net = network(None, (D, H, C), loss)
    exact = network(None, (D, H, C), loss, "cpu", dtype="float64")
    value, gradients = net.loss_and_grad(*on_emulator(X, y))
    reference, expected = exact.loss_and_grad(X.astype(np.float64), y)
    assert abs(float(value) - float(reference)) <= 1e-5 * abs(float(reference))
    for name, gradient in expected.items():
        error = np.linalg.norm(to_numpy(gradients[name]) - gradient) / np.linalg.norm(gradient)
        assert error <= 1e-5, name
