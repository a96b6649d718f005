"""``handgrad diagnose``: a person's file and a saved attempt; each failure is one clear answer."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import handgrad, refused
from diagnosed import PARAMETERS, RIGHT
from wrong_backward import Network, backward, draw

NO_MASK = RIGHT.replace(" * (Z1 > 0)", "")


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def written(text: str, name: str = "mine.py") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return written


def found(*arguments: Any) -> dict[str, Any]:
    """The JSON of a diagnosis that finds the gradient wrong."""
    result = handgrad("diagnose", *arguments, "--json")
    assert result.exit_code == 1, (result.stdout, result.stderr)
    report = json.loads(result.stdout)
    assert set(report) == {"correct", "parameters", "causes"}
    assert report["correct"] is False
    for cause in report["causes"]:
        assert set(cause) == {"id", "confidence", "residual", "explanation", "correction", "parameters"}
    return dict(report)


# ---- a file


def test_a_right_file(write: Any) -> None:
    result = handgrad("diagnose", write(RIGHT))
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("The gradient is right.")
    assert (
        "Assumed, as not stated: activation relu, output identity, loss mse, reduction mean." in result.stdout
    )


def test_a_right_file_that_returns_lists(write: Any) -> None:
    text = RIGHT.replace("return {", "found = {") + "    return {k: v.tolist() for k, v in found.items()}\n"
    result = handgrad("diagnose", write(text))
    assert result.exit_code == 0, result.stdout
    assert "different gradients" not in result.stdout


def test_a_file_whose_second_call_raises(write: Any) -> None:
    text = RIGHT.replace("    Z1 =", "    assert not calls\n    calls.append(1)\n    Z1 =", 1)
    result = handgrad("diagnose", write("calls = []\n" + text))
    assert result.exit_code == 0, result.stdout
    assert "A second call of your function on the same data raised AssertionError, at line" in result.stdout
    assert "assert not calls" in result.stdout


def test_a_file_that_pops_a_parameter(write: Any) -> None:
    text = RIGHT.replace('params["b1"]', 'params.pop("b1")', 1)
    result = handgrad("diagnose", write(text))
    assert result.exit_code == 0, result.stdout
    assert "Your function changes b1 in place." in result.stdout


def test_a_wrong_file(write: Any) -> None:
    result = handgrad("diagnose", write(NO_MASK))
    assert result.exit_code == 1
    assert "1. activation-derivative-missing  (W1, b1)" in result.stdout
    report = found(write(NO_MASK))
    assert report["causes"][0]["id"] == "activation-derivative-missing"
    assert report["parameters"]["W2"]["correct"] is True
    assert report["parameters"]["W1"]["relative_error"] > 0.1


def test_what_the_file_prints_does_not_spoil_the_json(write: Any) -> None:
    noisy = 'print("{loading}")\n' + NO_MASK.replace("    Z1 =", '    print("in backward")\n    Z1 =', 1)
    result = handgrad("diagnose", write(noisy), "--json")
    assert json.loads(result.stdout)["causes"][0]["id"] == "activation-derivative-missing"
    assert "mine.py | {loading}" in result.stderr
    assert "mine.py | in backward" in result.stderr


def test_a_flood_of_output_is_cut(write: Any) -> None:
    result = handgrad(
        "diagnose",
        write("for i in range(200000): print(i)\n" + RIGHT),
    )
    assert result.exit_code == 0
    assert "mine.py | 199999" in result.stderr
    assert len(result.stderr) < 2000


def test_the_file_states_the_network_and_the_data(write: Any) -> None:
    text = """
import numpy as np
activation, loss, reduction = "tanh", "cross_entropy", "sum"
random = np.random.default_rng(0)
X, y = random.normal(size=(19, 5)), random.integers(0, 4, 19)
W1, b1 = random.normal(size=(5, 6)), np.zeros(6)
params = {"W1": W1, "b1": b1, "W2": random.normal(size=(6, 4)), "b2": np.zeros(4)}

def other(a):
    return a

def mine(X, y, p):
    A1 = np.tanh(X @ p["W1"] + p["b1"])
    Z2 = A1 @ p["W2"] + p["b2"]
    P = np.exp(Z2) / np.exp(Z2).sum(1, keepdims=True)
    P[np.arange(len(y)), y] -= 1
    dZ1 = (P @ p["W2"].T) * (1 - A1**2)
    return 0.0, {"W1": X.T @ dZ1, "b1": SUM, "W2": A1.T @ P, "b2": P.sum(0)}
"""
    right = handgrad("diagnose", f"{write(text.replace('SUM', 'dZ1.sum(0)'))}:mine")
    assert right.exit_code == 0, right.stdout
    assert "Assumed" not in right.stdout
    assert found(write(text.replace("SUM", "dZ1.mean(0)")))["causes"][0]["id"] == "bias-averaged"
    report = found(write(text.replace("SUM", "dZ1.sum(0)")), "--reduction", "mean")
    assert report["causes"][0]["id"] == "scale"
    assert report["parameters"]["W1"]["shape"] == [5, 6]


def test_weights_out_in(write: Any) -> None:
    text = RIGHT.replace('params["W1"]', 'params["W1"].T').replace('params["W2"]', 'params["W2"].T')
    text = (
        text.replace('params["W2"].T.T', 'params["W2"]')
        .replace("X.T @ dZ1", "dZ1.T @ X")
        .replace("A1.T @ dY", "dY.T @ A1")
    )
    assert handgrad("diagnose", write('layout = "out,in"\n' + text)).exit_code == 0
    assert handgrad("diagnose", write(text), "--layout", "out,in").exit_code == 0
    stated = (
        "import numpy as np\nW1, b1 = np.ones((4, 3)), np.ones(4)\nW2, b2 = np.ones((2, 4)), np.ones(2)\n"
    )
    assert handgrad("diagnose", write(stated + text)).exit_code == 0


def test_a_note_says_which_settings_fit(write: Any) -> None:
    result = handgrad(
        "diagnose",
        write(RIGHT.replace("np.maximum(Z1, 0)", "np.tanh(Z1)").replace("(Z1 > 0)", "(1 - A1**2)")),
    )
    assert result.exit_code == 1
    assert "The gradient is right with --activation tanh." in result.stdout


@pytest.mark.parametrize(
    ("text", "id", "parts"),
    [
        (
            RIGHT.replace("y.size", "X.shape"),
            "shape-for-count",
            ["line 8 of mine.py, in backward", "X.shape[0]"],
        ),
        (RIGHT.replace("X.T @", "X @"), "transposed", ["line 11 of mine.py", "X is (23, 7)"]),
        (RIGHT + "\nraise KeyError('w')", "unknown", ["KeyError: 'w'", "line 13 of mine.py"]),
        ("def backward(X, y, params:\n    pass\n", "unknown", ["SyntaxError", "line 1 of mine.py"]),
        ("import no_such_module\n", "unknown", ["ModuleNotFoundError", "import no_such_module"]),
        ("import sys\nsys.exit(3)\n", "unknown", ["SystemExit: 3"]),
        ("import os\nos.kill(os.getpid(), 11)\n", "unknown", ["SIGSEGV"]),
    ],
)
def test_an_exception_is_the_persons_with_the_line(write: Any, text: str, id: str, parts: list[str]) -> None:
    report = found(write(text))
    assert report["parameters"] == {}
    assert [cause["id"] for cause in report["causes"]] == [id]
    words = report["causes"][0]["explanation"] + report["causes"][0]["correction"]
    for part in parts:
        assert part in words
    result = handgrad("diagnose", write(text))
    assert "Traceback" not in result.stdout + result.stderr
    assert result.stdout.startswith("There is no gradient to compare.")


def test_a_file_that_hangs_is_stopped_and_says_where(write: Any) -> None:
    text = RIGHT.replace("    Y = A1", "    while True:\n        pass\n    Y = A1", 1)
    begin = time.monotonic()
    report = found(write(text), "--timeout", "0.5")
    assert time.monotonic() - begin < 15
    assert "did not finish within 0.5 s" in report["causes"][0]["explanation"]
    assert "of mine.py, in backward" in report["causes"][0]["explanation"]


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("x = 1\n", "mine.py", "expected a function backward(X, y, params) -> gradients, the file has none"),
        (RIGHT, "mine.py:other", "no function 'other'; the file has backward"),
        (
            RIGHT.replace("return {", "return 3; {"),
            "mine.py",
            "to return a dict of gradients (W1, b1, …), got int",
        ),
        ('layout = "rows"\n' + RIGHT, "mine.py", "layout: expected 'in,out' or 'out,in', got 'rows'"),
        ("import numpy as np\nX = np.ones(3)\n" + RIGHT, "mine.py", "X: expected a matrix (N, D), got (3,)"),
        (RIGHT.replace('"W1": X', '"V1": X'), "mine.py", "'V1' is no name of this network"),
        (
            'loss = "l2"\n' + RIGHT,
            "mine.py",
            "loss: expected one of mse, bce, cross_entropy, hinge, got 'l2'",
        ),
    ],
)
def test_a_file_that_lacks_something_is_a_wrong_call(
    write: Any, text: str, target: str, message: str
) -> None:
    path = write(text)
    assert message in refused("diagnose", f"{path.parent}/{target}")


def test_wrong_targets(tmp_path: Path) -> None:
    assert "no such file" in refused("diagnose", tmp_path / "none.py")
    assert "no such file" in refused("diagnose", tmp_path / "none.npz")
    assert "expected my.py, my.py:function or attempt.npz" in refused("diagnose", tmp_path / "data.csv")


@pytest.mark.parametrize("timeout", ["0", "inf", "nan", "1e20", "1000001"])
def test_a_timeout_that_no_timer_takes_is_refused(write: Any, timeout: str) -> None:
    message = refused("diagnose", write(RIGHT), "--timeout", timeout)
    assert "--timeout: expected a number above 0 and at most 1000000" in message


def test_the_longest_timeout_runs(write: Any) -> None:
    assert handgrad("diagnose", write(RIGHT), "--timeout", "1e6").exit_code == 0


@pytest.mark.parametrize("name", ["random", "inspect", "numpy", "json", "handgrad"])
def test_a_module_of_the_current_folder_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / f"{name}.py").write_text("raise RuntimeError('the wrong module')\n")
    (tmp_path / "near.py").write_text("two = 2\n")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "beside.py").write_text("one = 1\n")
    text = "import beside\nimport near\n" + RIGHT.replace("2 * (Y", "beside.one * near.two * (Y")
    (tmp_path / "x" / "mine.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    result = handgrad("diagnose", "x/mine.py")
    assert result.exit_code == 0, result.stdout + result.stderr


def test_numpy_prints_nothing_and_torch_tensors_come_through(write: Any) -> None:
    pytest.importorskip("torch")
    text = """
import torch
torch.manual_seed(0)
X, y = torch.randn(23, 7), torch.randn(23, 3)
params = {"W1": torch.randn(7, 11), "b1": torch.randn(11), "W2": torch.randn(11, 3), "b2": torch.randn(3)}

def backward(X, y, p):
    Z1 = X @ p["W1"] + p["b1"]
    A1 = Z1.clamp(min=0)
    dY = 2 * (A1 @ p["W2"] + p["b2"] - y) / X.shape
    dZ1 = dY @ p["W2"].T * (Z1 > 0).float()
    return {"W1": X.T @ dZ1, "b1": dZ1.sum(0), "W2": A1.T @ dY, "b2": dY.sum(0)}
"""
    assert found(write(text))["causes"][0]["id"] == "shape-for-count"
    assert handgrad("diagnose", write(text.replace("X.shape", "y.numel()"))).exit_code == 0


# ---- an archive


def archive(path: Path, n: Network, gradients: dict[str, Any], **more: Any) -> Path:
    arrays = {
        "X": n.X,
        "y": n.y,
        **n.parameters,
        **{f"d{name}": gradients[name] for name in PARAMETERS},
        **more,
    }
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


@pytest.fixture
def n() -> Network:
    return draw(np.random.default_rng(5), loss="cross_entropy", activation="relu", reduction="mean")


def test_a_saved_attempt(n: Network, tmp_path: Path) -> None:
    path = archive(tmp_path / "attempt.npz", n, backward(n, "softmax-axis"))
    assert found(path)["causes"][0]["id"] == "softmax-axis"
    path = archive(tmp_path / "right.npz", n, backward(n))
    result = handgrad("diagnose", path)
    assert result.exit_code == 0
    assert "loss cross_entropy" in result.stdout


def test_a_saved_attempt_with_intermediates_and_other_arrays(n: Network, tmp_path: Path) -> None:
    gradients = backward(n, "activation-derivative-missing/hidden")
    kept = {"Z1": n.Z1, "dZ1": gradients["dZ1"], "losses": np.ones(5)}
    result = handgrad("diagnose", archive(tmp_path / "a.npz", n, gradients, **kept), "--json")
    report = json.loads(result.stdout)
    assert report["first_wrong"] == "dZ1"
    assert set(report["intermediates"]) == {"Z1", "dZ1"}
    assert "Ignored, as no name of this network: losses." in result.stderr


def test_a_saved_attempt_out_in(n: Network, tmp_path: Path) -> None:
    right = backward(n)
    turned = {"W1": n.W1.T, "W2": n.W2.T, "dW1": right["W1"].T, "dW2": right["W2"].T}
    assert handgrad("diagnose", archive(tmp_path / "a.npz", n, right, **turned)).exit_code == 0


def test_the_options_for_an_archive(tmp_path: Path) -> None:
    n = draw(np.random.default_rng(5), loss="bce", activation="sigmoid", reduction="sum")
    path = archive(tmp_path / "a.npz", n, backward(n))
    options = ("--activation", "sigmoid", "--loss", "bce", "--reduction", "sum")
    assert handgrad("diagnose", path, *options).exit_code == 0
    result = handgrad("diagnose", path, "--activation", "sigmoid", "--reduction", "sum")
    assert result.exit_code == 1
    assert "The gradient is right with --loss bce." in result.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": None}, "missing y; expected X, y, W1"),
        ({"X": None, "W1": None}, "missing X, W1"),
        ({"dW1": None, "db1": None, "dW2": None, "db2": None}, "missing dW1"),
        ({"X": np.ones((23, 99))}, "expected weights that chain from X's 99 inputs"),
        ({"b1": None}, "expected a bias for every layer or for none, got b2"),
        ({"X": np.array([["a"]])}, "X"),
    ],
)
def test_archives_that_lack_something(
    n: Network, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = archive(tmp_path / "a.npz", n, backward(n), **change)
    assert message in refused("diagnose", path)


def test_wrong_shapes_and_nan_in_an_archive_are_diagnosed(n: Network, tmp_path: Path) -> None:
    right = backward(n)
    report = found(archive(tmp_path / "a.npz", n, right | {"W1": right["W1"].T}))
    assert report["causes"][0]["id"] == "transposed"
    report = found(archive(tmp_path / "b.npz", n, right | {"W1": np.full_like(right["W1"], np.nan)}))
    assert "NaN or inf" in report["causes"][0]["explanation"]


def test_files_that_are_no_archives(tmp_path: Path) -> None:
    broken = tmp_path / "broken.npz"
    broken.write_text("not an archive")
    assert "broken.npz: truncated or damaged, or no .npz" in refused("diagnose", broken)
    single = tmp_path / "single.npz"
    with single.open("wb") as file:
        np.save(file, np.ones(3))
    assert "got a single array" in refused("diagnose", single)
    objects = tmp_path / "objects.npz"
    np.savez(objects, X=np.array([{}], dtype=object))
    assert "is a pickle of Python objects, which is never loaded" in refused("diagnose", objects)


def test_the_picture(write: Any, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    result = handgrad("diagnose", write(NO_MASK), "--plot", picture)
    assert result.exit_code == 1
    assert f"wrote {picture}" in result.stdout
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    result = handgrad("diagnose", write("import no_such_module\n"), "--plot", tmp_path / "none.png")
    assert "no picture" in result.stderr
    assert not (tmp_path / "none.png").exists()
