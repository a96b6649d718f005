"""An operator that refuses its operands: which one, of what shapes, and the line as it was meant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from command_line import handgrad

import handgrad as hg
from handgrad.gradients import diagnose

N, D, H, C = 11, 5, 7, 3

BACKWARD = """import numpy as np

def backward(X, y, p):
    Z1 = X @ p["W1"] + p["b1"]
    A1 = np.maximum(Z1, 0)
    Z2 = A1 @ p["W2"] + p["b2"]
    dZ2 = 2 * (Z2 - y) / y.size
    dZ1 = (dZ2 @ p["W2"].T) * (Z1 > 0)
    return {"W1": X.T @ dZ1, "b1": dZ1.sum(0), "W2": A1.T @ dZ2, "b2": dZ2.sum(0)}
"""
DZ2, DZ1 = "2 * (Z2 - y) / y.size", '(dZ2 @ p["W2"].T) * (Z1 > 0)'
DW2 = "A1.T @ dZ2"


def diagnosed(text: str, tmp_path: Any, sizes: Any = (D, H, C), convert: Any = np.asarray) -> Any:
    """The only cause, of the function in ``text`` as a file."""
    path = tmp_path / "mine.py"
    path.write_text(text)
    names: dict[str, Any] = {}
    exec(compile(text, str(path), "exec"), names)
    net = hg.MLP(list(sizes), loss="mse", dtype="float64", device="cpu", seed=1)
    random = np.random.default_rng(0)
    X, y = random.normal(size=(N, sizes[0])), random.normal(size=(N, sizes[-1]))
    found = diagnose(names["backward"], net, convert(X), convert(y))
    assert not found.correct
    (cause,) = found.causes
    return cause


@pytest.mark.parametrize(
    ("right", "wrong", "correction", "shapes"),
    [
        (DZ2, "2*(Z2-y.T)/y.size", "dZ2 = 2*(Z2-y)/y.size", "Z2 is (11, 3) and y.T is (3, 11)"),
        (
            DZ1,
            '(dZ2@p["W2"].T)*(Z1.T>0)',
            'dZ1 = (dZ2@p["W2"].T)*(Z1>0)',
            'dZ2@p["W2"].T is (11, 7) and Z1.T>0 is (7, 11)',
        ),
        (
            DZ1,
            '(dZ2 @ p["W2"].T) * (Z1.T > 0).astype(float)',
            'dZ1 = (dZ2 @ p["W2"].T) * (Z1 > 0).astype(float)',
            "(7, 11)",
        ),
        (
            DZ1,
            '2 * (dZ2 @ p["W2"].T) * np.where(Z1.T > 0, 1.0, 0.0) * 0.5',
            'dZ1 = 2 * (dZ2 @ p["W2"].T) * np.where(Z1 > 0, 1.0, 0.0) * 0.5',
            "(7, 11)",
        ),
        (
            DZ1,
            '(dZ2 @ p["W2"].T) * (1 - A1.T**2)',
            'dZ1 = (dZ2 @ p["W2"].T) * (1 - A1**2)',
            "1 - A1.T**2 is (7, 11)",
        ),
        (DZ1, "dZ2 * (Z1.T > 0)[:3]", "", "dZ2 is (11, 3) and (Z1.T > 0)[:3] is (3, 11)"),
        (DZ1, '(p["W2"] @ dZ2.T) * (Z1 > 0)', "", 'p["W2"] @ dZ2.T is (7, 11) and Z1 > 0 is (11, 7)'),
        (
            DZ1,
            '(dZ2 @ p["W2"].T) * A1.T * (1 - A1.T)',
            'dZ1 = (dZ2 @ p["W2"].T) * A1 * (1 - A1.T)',
            "A1.T is",
        ),
        (DZ1, '(dZ2 @ p["W2"].T) * (A1.T * (1 - A1.T))', "", "A1.T * (1 - A1.T) is (7, 11)"),
        (
            DZ1,
            '(dZ2 @ p["W2"].T); dZ1 *= Z1.T > 0',
            'dZ1 = (dZ2 @ p["W2"].T); dZ1 *= Z1 > 0',
            "dZ1 is (11, 7)",
        ),
        (
            DZ1,
            'np.multiply(dZ2 @ p["W2"].T, Z1.T > 0)',
            'dZ1 = np.multiply(dZ2 @ p["W2"].T, Z1 > 0)',
            'dZ2 @ p["W2"].T is (11, 7)',
        ),
        (
            DZ1,
            'dZ2 @ p["W2"].T; gegenüber = Z1.T > 0; dZ1 = dZ1 * gegenüber',
            "",
            "dZ1 is (11, 7) and gegenüber is (7, 11)",
        ),
    ],
)
def test_a_transpose_too_many_or_too_few(
    tmp_path: Any, right: str, wrong: str, correction: str, shapes: str
) -> None:
    cause = diagnosed(BACKWARD.replace(right, wrong), tmp_path)
    assert cause.id == "transposed"
    assert cause.correction == correction
    assert shapes in cause.explanation
    assert "each the other's shape transposed" in cause.explanation
    plain = shapes.startswith("A1.T is")  # no mask by its form, so it may be an operand of a product too
    assert ("or @ is meant" in cause.explanation) == plain
    assert "of mine.py, in backward" in cause.explanation


@pytest.mark.parametrize(
    ("right", "wrong", "correction"),
    [
        (DZ1, '2 * (dZ2 * p["W2"].T) * (Z1 > 0)', 'dZ1 = 2 * (dZ2 @ p["W2"].T) * (Z1 > 0)'),
        (DZ1, '2 * dZ2 * p["W2"].T * (Z1 > 0)', 'dZ1 = 2 * dZ2 @ p["W2"].T * (Z1 > 0)'),
        (DZ1, '(dZ2)*(p["W2"].T) * (Z1 > 0)  # a * b', 'dZ1 = (dZ2)@(p["W2"].T) * (Z1 > 0)  # a * b'),
        (DZ1, '(dZ2 *\n        p["W2"].T) * (Z1 > 0)', "dZ2 @ p['W2'].T"),
        (DZ1, 'dZ2; dZ1 *= p["W2"].T', "dZ1 = dZ1 @ p['W2'].T"),
        (DZ1, 'np.multiply(dZ2, p["W2"].T) * (Z1 > 0)', 'dZ1 = np.matmul(dZ2, p["W2"].T) * (Z1 > 0)'),
        (
            DW2,
            "A1.T * dZ2 * 3",
            'return {"W1": X.T @ dZ1, "b1": dZ1.sum(0), "W2": A1.T @ dZ2 * 3, "b2": dZ2.sum(0)}',
        ),
    ],
)
def test_an_elementwise_product_for_a_matrix_product(
    tmp_path: Any, right: str, wrong: str, correction: str
) -> None:
    cause = diagnosed(BACKWARD.replace(right, wrong), tmp_path)
    assert cause.id == "elementwise-for-matmul"
    assert cause.correction == correction
    assert "which fit a matrix product: @ is meant" in cause.explanation


@pytest.mark.parametrize(
    ("right", "wrong", "operator", "shapes"),
    [
        (DZ1, '(dZ2@p["W2"].T)*(Z2>0)', "*", 'dZ2@p["W2"].T is (11, 7) and Z2>0 is (11, 3)'),
        (DW2, "A1 * dZ2", "*", "A1 is (11, 7) and dZ2 is (11, 3)"),
        (DZ2, "2 * (Z1 - y) / y.size", "-", "Z1 is (11, 7) and y is (11, 3)"),
        (DZ2, "2 * (Z2 - y) / X * 3", "/", "2 * (Z2 - y) is (11, 3) and X is (11, 5)"),
        (DZ2, "2 * np.subtract(Z1, y)", "np.subtract", "Z1 is (11, 7) and y is (11, 3)"),
        (DZ2, "Z2 * (Z1 == y)", "==", "Z1 is (11, 7) and y is (11, 3)"),
        (DZ1, 'dZ2; dZ1 = p["b2"] + 0; dZ1 += dZ2', "+=", "dZ1 is (3,) and dZ2 is (11, 3)"),
        (DZ1, 'dZ2 * p["b1"]', "*", 'dZ2 is (11, 3) and p["b1"] is (7,)'),
    ],
)
def test_shapes_that_do_not_fit(tmp_path: Any, right: str, wrong: str, operator: str, shapes: str) -> None:
    cause = diagnosed(BACKWARD.replace(right, wrong), tmp_path)
    assert cause.id == "unknown"
    assert f"The operands of {operator} do not fit: {shapes}" in cause.explanation
    assert cause.correction == ""


@pytest.mark.parametrize(
    "mask",
    [
        "(Z > 0)",
        "seen",
        "seen * 1.0",
        "(1 - Z**2)",
        "(Z * (1 - Z))",
        "np.where(Z > 0, 1.0, 0.1)",
        "-(Z > 0).astype(float)",
    ],
)
def test_a_mask_that_happens_to_fit_a_matrix_product(tmp_path: Any, mask: str) -> None:
    """dZ1 (N, H) with a mask (H, C): no @ is proposed, whatever the mask is called."""
    wrong = f'(dZ2 @ p["W2"].T); Z = p["W2"]; seen = (Z > 0) + 0.0; dZ1 = dZ1 * {mask}'
    cause = diagnosed(BACKWARD.replace(DZ1, wrong), tmp_path)
    assert cause.id == "unknown"
    assert "The operands of * do not fit: dZ1 is (11, 7)" in cause.explanation


def test_a_two_layer_function_for_a_network_of_three(tmp_path: Any) -> None:
    cause = diagnosed(BACKWARD, tmp_path, sizes=(D, H, 4, C))
    assert cause.id == "unknown"
    assert "The operands of - do not fit: Z2 is (11, 4) and y is (11, 3)" in cause.explanation


def test_the_product_that_failed_is_told_of_several(tmp_path: Any) -> None:
    text = BACKWARD.replace(DZ1, '(dZ2 @ p["W2"].T) * (A1 @ A1)')
    cause = diagnosed(text, tmp_path)
    assert cause.id == "transposed"
    assert "A matrix product of (11, 7) and (11, 7): both have the samples in rows" in cause.explanation


def test_what_a_function_of_a_library_refused_is_not_laid_to_its_arguments(tmp_path: Any) -> None:
    library = "def difference(a, b):\n    return a[:2] - a.T\n"
    text = f"exec(compile({library!r}, '/site-packages/library.py', 'exec'))\n{BACKWARD}"
    cause = diagnosed(text.replace(DZ2, "difference(Z2, y)"), tmp_path)
    assert cause.id == "unknown"
    assert "do not fit" not in cause.explanation
    assert "dZ2 = difference(Z2, y)" in cause.explanation


@pytest.mark.parametrize("refused", ["a[:2] + b[:, :2]", "a @ b"])
def test_nor_where_the_arguments_are_arrays_of_known_shapes(tmp_path: Any, refused: str) -> None:
    library = f"def difference(a, b):\n    return {refused}\n"
    text = f"exec(compile({library!r}, '/site-packages/library.py', 'exec'))\n{BACKWARD}"
    cause = diagnosed(text.replace(DZ2, "difference(Z1, y)"), tmp_path)
    assert "do not fit: Z1" not in cause.explanation
    assert "of (11, 7) and (11, 3)" not in cause.explanation


def test_the_operation_of_a_function_that_backward_calls(tmp_path: Any) -> None:
    text = BACKWARD.replace(DZ2, "difference(Z2, y.T)")
    text = text.replace("def backward", "def difference(a, b):\n    return a - b\n\ndef backward")
    cause = diagnosed(text, tmp_path)
    assert cause.id == "transposed"
    assert "a is (11, 3) and b is (3, 11)" in cause.explanation
    assert cause.correction == ""


def test_torch_tells_no_shapes_but_the_names_do(tmp_path: Any) -> None:
    torch = pytest.importorskip("torch")
    text = BACKWARD.replace("import numpy as np", "import torch").replace("np.maximum(Z1, 0)", "Z1.relu()")
    text = text.replace("y.size", "y.numel()").replace("(Z1 > 0)", "(Z1.T > 0).double()")
    cause = diagnosed(text, tmp_path, convert=torch.tensor)
    assert cause.id == "transposed"
    assert 'dZ2 @ p["W2"].T is (11, 7) and (Z1.T > 0).double() is (7, 11)' in cause.explanation
    assert cause.correction == 'dZ1 = (dZ2 @ p["W2"].T) * (Z1 > 0).double()'
    text = text.replace("(Z1.T > 0).double()", "(Z1 > 0)").replace("dZ2 @ p", "dZ2 * p")
    cause = diagnosed(text, tmp_path, convert=torch.tensor)
    assert cause.id == "elementwise-for-matmul"


def test_a_file_brings_the_operation_along(tmp_path: Any) -> None:
    path = tmp_path / "mine.py"
    path.write_text("sizes = (11, 5, 7, 3)\n" + BACKWARD.replace(DZ2, "2*(Z2-y.T)/y.size"))
    result = handgrad("diagnose", path, "--loss", "mse")
    assert result.exit_code == 1
    assert "1. transposed: confidence 0.80" in result.stdout
    assert "Correct: dZ2 = 2*(Z2-y)/y.size" in result.stdout


def test_where_the_file_was_edited_meanwhile_nothing_is_claimed(tmp_path: Any) -> None:
    path = tmp_path / "mine.py"
    text = BACKWARD.replace(DZ2, "2 * (Z2 * y.T)")
    names: dict[str, Any] = {}
    exec(compile(text, str(path), "exec"), names)
    path.write_text(text.replace("Z2 * y.T", "Z2 / y.T"))
    net = hg.MLP([D, H, C], loss="mse", dtype="float64", device="cpu")
    found = diagnose(names["backward"], net, np.ones((N, D)), np.ones((N, C)))
    assert [cause.id for cause in found.causes] == ["unknown"]
    assert "Your code raised before there was a gradient" in found.causes[0].explanation


def test_without_the_source_nothing_is_claimed(tmp_path: Any) -> None:
    names: dict[str, Any] = {}
    exec(compile(BACKWARD.replace(DZ2, "2 * (Z2 - y.T)"), "<nowhere>", "exec"), names)
    net = hg.MLP([D, H, C], loss="mse", dtype="float64", device="cpu")
    found = diagnose(names["backward"], net, np.ones((N, D)), np.ones((N, C)))
    assert [cause.id for cause in found.causes] == ["unknown"]
    assert "ValueError: operands could not be broadcast together" in found.causes[0].explanation
