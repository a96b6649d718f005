"""``handgrad diagnose``: the settings that a person states, or does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import handgrad, refused
from diagnosed import RIGHT

CROSS_ENTROPY = RIGHT.replace(
    "    dY = 2 * (Y - y) / y.size\n",
    "    dY = np.exp(Y) / np.exp(Y).sum(1, keepdims=True)\n"
    "    dY[np.arange(len(y)), y] -= 1\n    dY /= len(y)\n",
)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def written(text: str) -> Path:
        path = tmp_path / "mine.py"
        path.write_text(text)
        return path

    return written


def test_integer_labels_without_y_are_told_to_name_the_loss(write: Any) -> None:
    result = handgrad("diagnose", write(CROSS_ENTROPY))
    assert result.exit_code == 1
    assert "IndexError" in result.stdout
    assert "pass --loss cross_entropy" in result.stdout
    assert handgrad("diagnose", write(CROSS_ENTROPY), "--loss", "cross_entropy").exit_code == 0
    for text, options in (
        (CROSS_ENTROPY, ("--loss", "mse")),
        ("import numpy as np\ny = np.ones((23, 3))\n" + CROSS_ENTROPY, ()),
        ('loss = "mse"\n' + CROSS_ENTROPY, ()),
        ("import no_such_module\n" + CROSS_ENTROPY, ()),
    ):
        result = handgrad("diagnose", write(text), *options)
        assert result.exit_code == 1
        assert "--loss" not in result.stdout


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("loss", "foo", "loss: expected one of mse, bce, cross_entropy, hinge, got 'foo'"),
        ("loss", "crossentropy", "loss: expected one of mse, bce, cross_entropy, hinge, got 'crossentropy'"),
        (
            "activation",
            "foo",
            "activation: expected one of relu, sigmoid, tanh, softplus, identity, got 'foo'",
        ),
        ("output", "foo", "output: expected one of relu, sigmoid, tanh, softplus, identity, got 'foo'"),
        ("reduction", "foo", "reduction: expected one of mean, sum, got 'foo'"),
        ("layout", "foo", "layout: expected 'in,out' or 'out,in', got 'foo'"),
        ("lr", "-1", "lr: expected a finite number above 0, got -1.0"),
        ("weight-decay", "nan", "weight_decay: expected a finite number, 0 or above, got nan"),
    ],
)
def test_a_wrong_setting_is_refused_before_the_file_is_run(
    write: Any, tmp_path: Path, option: str, value: str, message: str
) -> None:
    raises = f"open({str(tmp_path / 'ran')!r}, 'w')\nraise KeyError('w')\n"
    assert refused("diagnose", write(raises), f"--{option}", value) == f"error: {message}"
    assert not (tmp_path / "ran").exists()
    if option == "weight-decay":
        return
    # set in the file, it is known before the function is called
    stated = f"{option} = {value if option == 'lr' else repr(value)}\n"
    raises = stated + "def backward(X, y, params):\n    raise KeyError('w')\n"
    assert refused("diagnose", write(raises)) == f"error: mine.py: {message}"


def test_an_output_that_the_loss_does_not_take_is_refused_before_the_file_is_run(write: Any) -> None:
    arguments = (write("raise KeyError('w')\n"), "--loss", "bce", "--output", "tanh")
    assert "bce is computed from the logits" in refused("diagnose", *arguments)
