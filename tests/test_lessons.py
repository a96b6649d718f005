"""The lessons: every number of the worked examples to its digits, every claim, every picture."""

import json
import math

import numpy as np
import pytest

from handgrad import lessons
from handgrad.lessons import (
    curve_fit,
    gates,
    homework,
    layers,
    regression,
    sigmoid_classes,
    sigmoid_neuron,
    staged,
)
from handgrad.lessons.lesson import Lesson, Row, shown

# The exact values, to the digits that the worked examples give.
EXACT = {
    "gates": {
        "x y": "-12",
        "d(x y)/dx": "-3",
        "d(x y)/dy": "4",
        "d(x + y)/dx": "1",
        "d(x + y)/dy": "1",
        "dmax/dx": "1",
        "dmax/dy": "0",
        "q": "3",
        "f": "-12",
        "dq": "-4",
        "dx": "-4",
        "dy": "-4",
        "dz": "3",
        "(x y + max(z, w)) 2": "-20",
        "gradient on x": "-8",
        "gradient on y": "6",
        "gradient on z": "2",
        "gradient on w": "0",
        "factor of dW for inputs x 1000": "1000",
    },
    "sigmoid-neuron": {
        "dot": "1",
        "f": "0.7310585786",
        "ddot": "0.1966119332",
        "dx0": "0.3932238665",
        "dx1": "-0.5898357997",
        "dw0": "-0.1966119332",
        "dw1": "-0.3932238665",
        "dw2": "0.1966119332",
        "e^-dot": "0.3679",
        "1 + e^-dot": "1.3679",
        "1 / (1 + e^-dot)": "0.7311",
        "gradient on 1 + e^-dot": "-0.5344466",
        "gradient on e^-dot": "-0.5344466",
        "gradient on -dot": "-0.1966119",
        "gradient on dot": "0.1966119",
    },
    "staged": {
        "f": "1.5456448841",
        "dx": "2.0595697956",
        "dy": "1.5922327515",
        "den": "1.9525741268",
        "dden": "-0.7915934473",
        "dx with = at forks": "0.5121444488",
        "dy with = at forks": "0.0090458569",
    },
    "softmax": {
        "loss at zero logits, 10 classes": "2.302585093",
        "step of a batch of 30 divided by 50": "0.6000000000",
    },
    "curve-fit": {
        "predicted at dosage 0": "-2.603665",
        "predicted at dosage 0.5": "-1.609019",
        "predicted at dosage 1": "-2.614870",
        "SSR at b3 = 0": "20.423598",
        "SSR at b3 = 1": "7.768489",
        "slope at b3 = 0": "-15.655108",
        "b3 after one step": "1.565511",
        "slope there": "-6.262043",
        "b3 after two steps": "2.191715",
        "optimal b3": "2.609185",
        "SSR at the optimum": "0.00006281",
        "dSSR/dw1": "7.338918",
        "dSSR/db1": "10.347234",
        "dSSR/dw2": "1.986960",
        "dSSR/db2": "11.031705",
        "dSSR/dw3": "-16.108750",
        "dSSR/dw4": "-6.946296",
        "dSSR/db3": "-15.655108",
    },
    "sigmoid-classes": {
        "loss": "0.1101443971",
        "norm of dW1": "0.0128525",
        "norm of db1": "0.0087478",
        "norm of dW2": "0.0839195",
        "norm of db2": "0.0734774",
    },
    "homework": {
        "sum over mean for a point, K = 3": "3.000000000",
        "sum over mean for a batch of 6, K = 3": "18.00000000",
        "second backward without zeroing, over the first": "2",
    },
}
PUBLISHED = {
    "curve-fit": ["-2.6", "-1.6", "-2.61", "20.4", "-15.7", "1.57", "-6.26", "2.19", "2.61", "2.16"],
    "sigmoid-neuron": ["1.0", "0.73", "0.2", "0.73", "0.2"],
    "gates": [
        *("-12", "-3", "4", "1", "1", "4", "1", "0"),
        *("3", "-12", "-4", "-4", "-4", "3"),
        *("-20", "2.00", "-8.00", "6.00", "2.00", "0.00"),
    ],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Each lesson, run once, with its pictures."""
    found = {}

    def lesson(name):
        if name not in found:
            found[name] = lessons.run(name, tmp_path_factory.mktemp(name))
        return found[name]

    return lesson


@pytest.mark.parametrize("name", lessons.LESSONS)
def test_every_lesson_holds_what_it_claims(run, name):
    lesson = run(name)
    assert lesson.failures == []
    assert lesson.passed
    assert lesson.name == name
    assert lesson.title == lessons.title(name)
    assert lesson.source
    assert sum(len(section.checks) for section in lesson.sections) >= (1 if name != "gates" else 2)
    assert all(section.text for section in lesson.sections)


@pytest.mark.parametrize("name", EXACT)
def test_the_numbers_of_the_worked_examples(run, name):
    lesson = run(name)
    for quantity, text in EXACT[name].items():
        decimals = len(text.partition(".")[2])
        found = lesson[quantity]
        allowed = 0.5000001 * 10.0**-decimals
        assert abs(found - float(text)) <= allowed, f"{quantity}: {found!r}, expected {text}"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers_stand_beside_ours(run, name):
    rows = [row for section in run(name).sections for row in section.rows if row.published]
    assert [row.published for row in rows] == PUBLISHED[name]
    for row in rows:
        assert row.agrees is (row.published != "2.16"), row
        assert row.is_misprint is (row.published == "2.16")


def test_the_misprint_is_marked(run):
    text = str(run("curve-fit"))
    line = next(line for line in text.splitlines() if "2.16" in line)
    assert line.split("2.6091847301")[1].split() == ["2.16", "≠", "misprint", "for", "2.61"]
    line = next(line for line in text.splitlines() if line.startswith("  slope at b3 = 0"))
    assert line.split("-15.6551083806")[1].split() == ["-15.7", "="]


PICTURES = {
    "regression": ["attempts.png"],
    "gates": ["compound.png", "patterns.png"],
    "sigmoid-neuron": ["sigmoid_gate.png", "single_gates.png"],
    "staged": ["staged.png"],
    "layers": ["depth.png"],
    "curve-fit": ["curves.png", "starts.png", "network.png"],
}


@pytest.mark.parametrize("name", lessons.LESSONS)
def test_pictures_are_drawn_where_asked_for(run, name):
    lesson = run(name)
    assert [path.name for path in lesson.pictures] == PICTURES.get(name, [])
    for path in lesson.pictures:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 8000
        assert f"picture: {path}" in str(lesson)


def test_without_a_folder_nothing_is_drawn(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert lessons.run("gates").pictures == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", lessons.LESSONS)
def test_every_lesson_is_json(run, name):
    found = json.loads(json.dumps(run(name).to_dict(), allow_nan=False))
    assert found["passed"] is True
    assert found["failures"] == []
    assert len(found["sections"]) == len(run(name).sections)


# ---- each of them ----------------------------------------------------------------------------------

TABLE = {
    "the formula, - form": {"activation-derivative-missing"},
    "the formula, + form": {"activation-derivative-missing"},
    "the first code": {"sum-over-hidden"},
    "the suggested code": {"transposed", "activation-derivative-missing"},
    "the simplified code": {"misplaced-parenthesis"},
    "y - l2 without × -1": {"sign"},
    "2/x.shape": {"shape-for-count"},
    "(N, 1) - (N,)": {"targets-broadcast"},
    "the final version": set(),
}


def test_every_attempt_of_the_thread_is_named(run):
    lesson = run("regression")
    for words, ids in TABLE.items():
        named = set(str(lesson[words]).split(" with ")) - {"correct"}
        assert named == ids, words
    assert {attempt.words for attempt in regression.ATTEMPTS} == set(TABLE)


def test_wrong_code_fails_its_lesson(monkeypatch):
    """A fault planted in each lesson's own code is noticed by the lesson."""
    transposed = homework.numerator_layout
    monkeypatch.setattr(
        homework, "numerator_layout", lambda *a, **g: {k: v.T for k, v in transposed(*a, **g).items()}
    )
    assert any("∂l/∂W1 has shape" in failure for failure in homework_failures())

    monkeypatch.setattr(staged, "by_hand", lambda x, y: (0.0, (1.0, 1.0)))
    assert "the code by hand gives the same" in staged.run().failures

    backward = layers.backward
    monkeypatch.setattr(layers, "backward", lambda *a: (backward(*a)[0], [2 * g for g in backward(*a)[1]]))
    assert any("entries agree" in failure for failure in layers.run().failures)

    monkeypatch.setattr(sigmoid_classes.Sigmoid, "backward", lambda self, grad: grad * self.y)
    assert "differences agree" not in sigmoid_classes.run().failures  # that is the library's network
    assert "handgrad.diagnose finds nothing wrong with the classes" in sigmoid_classes.run().failures

    monkeypatch.setattr(curve_fit, "LEARNING_RATE", 0.2)
    failures = curve_fit.run().failures
    assert any(
        failure.startswith("b3 after one step") and "published 1.57" in failure for failure in failures
    )

    monkeypatch.setattr(gates, "patterns", lambda: sigmoid_neuron.dot_product())
    with pytest.raises(KeyError):
        gates.run()


def homework_failures():
    lesson = Lesson("homework", "", "")
    given = homework.problem()
    homework._backward(lesson, given)
    return lesson.failures


@pytest.mark.parametrize("seed", range(3, 7))
def test_all_seven_parameters_fit_the_points_from_random_starts(seed):
    net = curve_fit.from_random_start(seed)
    assert curve_fit.ssr(net) < 1e-3
    assert not net.flat_parameters.frozen


def test_the_corrected_classes_step_from_the_weights_of_the_forward_pass():
    given = sigmoid_classes.problem()
    _, right, _ = sigmoid_classes.gradients(given)
    _, stepping, (first, second) = sigmoid_classes.gradients(given, lr=0.5)
    for name in right:
        np.testing.assert_array_equal(stepping[name], right[name])
    np.testing.assert_allclose(second.w, given["W2"] - 0.5 * right["W2"])
    np.testing.assert_allclose(first.b, given["b1"] - 0.5 * right["b1"])


def test_each_printed_fault_is_shown_and_named(run):
    lesson = run("sigmoid-classes")
    assert lesson["diagnosis of Sigmoid(self.x)"] == "instance-called-as-class"
    assert lesson["what Sigmoid(self.x) raises"] == "TypeError: Sigmoid() takes no arguments"
    assert lesson["diagnosis of dL_dy @ x.T"] == "transposed"
    assert str(lesson["what dL_dy @ x.T raises"]).startswith("ValueError: matmul")
    assert lesson["diagnosis of dL_db = dL_dy"] == "bias-not-summed"
    assert lesson["shape of b1 after a step with it"] == "(6, 4)"
    assert lesson["diagnosis of dL_dy @ x.T, square"] == "transposed"
    assert lesson["relative error of dW1, square"] > 0.1


def test_the_gradient_vanishes_and_explodes_by_depth(run):
    lesson = run("layers")
    assert lesson["sigmoid: norm of dZ1 over that of dZ8"] < 1e-2
    assert 0.3 < lesson["relu: norm of dZ1 over that of dZ8"] < 3
    assert lesson["relu, weights × 3: norm of dZ1 over that of dZ8"] > 1e2


# ---- what a lesson is --------------------------------------------------------------------------------


def test_published_digits_agree_to_half_a_unit_of_the_last():
    cases = [(-15.655108, "-15.7", True), (-15.64999, "-15.7", False), (2.609185, "2.61", True)]
    cases += [(2.609185, "2.16", False), (2.5, "2", True), (2.51, "2", False), (0.0, "0.00", True)]
    for here, published, agrees in cases:
        assert Row("", here, published).agrees is agrees, (here, published)
    assert Row("", -3.0, "−3").agrees is True
    assert Row("", 43.0, "~43").agrees is None
    assert Row("", 43.0).agrees is None
    assert Row("", "words", "3").agrees is None
    assert Row("", math.nan, "3").agrees is False
    assert Row("", 28.43779, "28.437788", within=1e-5).agrees is True


def test_a_lesson_collects_its_failures():
    lesson = Lesson("x", "X", "a source")
    lesson.section("A part", "Some words.")
    lesson.row("a", 1.0, "1")
    lesson.row("b", 2.0, "3")
    lesson.row("c", 2.0, "3", "misprint for 2")
    lesson.rows("v", [1, 2], ["1", "2"])
    lesson.check("true", True)
    lesson.check("false", False)
    assert lesson.failures == ["false", "b: 2, published 3"]
    assert not lesson.passed
    text = str(lesson)
    assert "FAILED: b: 2, published 3" in text
    assert "  FAILED  false" in text
    assert lesson["v[1]"] == 2
    with pytest.raises(ValueError, match="'a' is there already"):
        lesson.row("a", 1.0)


def test_numbers_are_shown_with_their_digits():
    assert [
        shown(value) for value in (1.0, -20.0, 0.0, 1 / 3, 2.5, 1000.0000001, 6.281028624274e-05, 1.5e7)
    ] == [
        "1",
        "-20",
        "0",
        "0.3333333333",
        "2.5",
        "1000.0000001",
        "6.281028624e-05",
        "1.5e+07",
    ]
    assert shown("words") == "words"
    assert shown(1234567.5) == "1.2345675e+06"


def test_unknown_names_and_settings_that_do_not_fit():
    with pytest.raises(ValueError, match="expected one of regression, gates"):
        lessons.run("backprop")
    with pytest.raises(ValueError, match="lesson gates: takes no data"):
        lessons.run("gates", full=True)
