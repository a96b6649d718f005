"""What stands in the pictures is what was measured, and drawing them needs no display."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handgrad import plots

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were written, kept to be looked at."""
    figures: list[Any] = []
    write = plots.figure_at

    @contextmanager
    def keep(inches, path):
        with write(inches, path) as figure:
            yield figure
        figures.append(figure)

    monkeypatch.setattr(plots, "figure_at", keep)
    return figures


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def pixels(path: Path) -> np.ndarray:
    """The picture's pixels, (height, width, 3) in 0 … 1, after a look at PNG's own header."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    from matplotlib.image import imread

    picture = imread(path)
    assert struct.unpack(">2I", content[16:24]) == (picture.shape[1], picture.shape[0])
    return picture[:, :, :3]


def colour_share(picture: np.ndarray, colour: str) -> float:
    wanted = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return float((np.abs(picture - wanted).max(axis=2) < 0.02).mean())


ROWS = [
    {"epoch": e, "train_loss": 2.0 / e, "validation_loss": 1.5 / e, "learning_rate": 0.1} for e in range(1, 6)
]
CLASSES = [row | {"train_accuracy": 0.9, "validation_accuracy": 0.8 + row["epoch"] / 100} for row in ROWS]


def test_curves_show_the_rows(tmp_path: Path, drawn: list[Any]) -> None:
    plots.curves(CLASSES, tmp_path / "c.png", validation="test", best_epoch=4)
    loss, accuracy = drawn[0].axes
    by_colour = {line.get_color(): line for line in loss.lines}
    np.testing.assert_array_equal(by_colour[plots.TRAINING].get_xdata(), [1, 2, 3, 4, 5])
    np.testing.assert_allclose(by_colour[plots.TRAINING].get_ydata(), [2, 1, 2 / 3, 0.5, 0.4])
    np.testing.assert_allclose(by_colour[plots.VALIDATION].get_ydata(), [1.5, 0.75, 0.5, 0.375, 0.3])
    by_colour = {line.get_color(): line for line in accuracy.lines}
    np.testing.assert_allclose(by_colour[plots.TRAINING].get_ydata(), [90] * 5)
    np.testing.assert_allclose(by_colour[plots.VALIDATION].get_ydata(), [81, 82, 83, 84, 85])
    assert texts(loss) == ["best: epoch 4", "test\n0.3", "training\n0.4"]
    assert "test\n85.00" in texts(accuracy)
    assert (loss.get_title("left"), accuracy.get_title("left")) == ("Loss", "Accuracy (%)")
    assert loss.get_xlabel() == accuracy.get_xlabel() == "epoch"
    picture = pixels(tmp_path / "c.png")
    assert colour_share(picture, plots.TRAINING) > 1e-3
    assert colour_share(picture, plots.VALIDATION) > 1e-3


def test_curves_without_accuracy_or_validation(tmp_path: Path, drawn: list[Any]) -> None:
    rows = [row | {"validation_loss": None, "validation_accuracy": None} for row in ROWS]
    plots.curves(rows, tmp_path / "c.png")
    (loss,) = drawn[0].axes
    assert len(loss.lines) == 1
    assert texts(loss) == ["training\n0.4"]


def test_curves_of_a_training_that_diverged(tmp_path: Path, drawn: list[Any]) -> None:
    rows = [
        {"epoch": e, "train_loss": 1.0 if e < 3 else bad} for e, bad in enumerate([0, np.nan, np.inf] * 2, 1)
    ]
    plots.curves(rows, tmp_path / "some.png")
    (loss,) = drawn[0].axes
    assert texts(loss) == ["training\n0 (epoch 4)"]
    assert loss.get_xlim()[1] > 6
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), [1, 1, np.nan, 0, np.nan, np.nan])
    plots.curves([{"epoch": 1, "train_loss": np.nan}], tmp_path / "none.png")
    assert texts(drawn[1].axes[0]) == ["not finite in any epoch"]


def test_a_loss_that_falls_far_gets_a_logarithmic_axis(tmp_path: Path, drawn: list[Any]) -> None:
    for last in (0.2, 0.04):
        rows = [{"epoch": 1, "train_loss": 1.0}, {"epoch": 2, "train_loss": last}]
        plots.curves(rows, tmp_path / "c.png")
    assert [figure.axes[0].get_yscale() for figure in drawn] == ["linear", "log"]
    assert drawn[1].axes[0].get_title("left") == "Loss (logarithmic)"


def test_labels_at_line_ends_stay_apart_and_inside() -> None:
    for heights in ({"a": 0.5, "b": 0.52}, {"a": 0.0, "b": 0.01}, {"a": 1.0, "b": 1.0}, {"a": 0.9, "b": 0.1}):
        placed = plots.spread(heights, gap=0.2)
        assert abs(placed["a"] - placed["b"]) >= 0.2 - 1e-12
        assert all(0.1 - 1e-12 <= height <= 0.9 + 1e-12 for height in placed.values())
        if heights["a"] < heights["b"]:
            assert placed["a"] < placed["b"]
    assert plots.spread({"a": 0.3, "b": 0.7}, gap=0.2) == {"a": 0.3, "b": 0.7}
    assert plots.spread({"a": 0.5, "b": 0.6}, gap=0.2) == pytest.approx({"a": 0.45, "b": 0.65})


def test_confusion_matrix_shows_the_counts(tmp_path: Path, drawn: list[Any]) -> None:
    counts = np.array([[90, 10, 0], [0, 1200, 300], [0, 0, 0]])
    plots.confusion_matrix(counts, tmp_path / "m.png", labels=["cat", "dog", "owl"])
    (axes,) = drawn[0].axes
    at = {text.get_position(): text.get_text() for text in axes.texts if not hasattr(text, "xyann")}
    assert at == {(0, 0): "90", (1, 0): "10", (1, 1): "1,200", (2, 1): "300"}  # (predicted, true)
    beside = [text.get_text() for text in axes.texts if hasattr(text, "xyann")]
    assert beside == ["right", "90.0 %", "80.0 %", "none"]
    assert axes.get_title("left") == "80.62 % right (1,290 of 1,600)"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "owl"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "predicted class")
    cells = axes.images[0].get_array()
    blue, mistake, worst, empty = cells[0, 0], cells[0, 1], cells[1, 2], cells[0, 2]
    assert blue[2] > blue[0]  # right answers are blue, mistakes are orange, the worst the darkest
    assert mistake[0] > mistake[2]
    assert worst[:3].sum() < mistake[:3].sum() < empty[:3].sum()
    np.testing.assert_allclose(worst, matplotlib.colormaps["Oranges"](0.7))
    np.testing.assert_array_equal(cells[2, 2], empty)  # a class without samples is not right
    assert pixels(tmp_path / "m.png").shape[0] > 300


def test_confusion_matrix_of_many_classes_is_colours_alone(tmp_path: Path, drawn: list[Any]) -> None:
    plots.confusion_matrix(np.eye(47, dtype=int), tmp_path / "m.png")
    (axes,) = drawn[0].axes
    assert texts(axes) == []
    assert axes.get_title("left") == "100.00 % right (47 of 47)"


@pytest.mark.parametrize(
    ("value", "text"),
    [(7, "7"), (999.4, "999"), (999.9, "1 k"), (1234, "1.23 k"), (1234567, "1.23 M"), (3e9, "3 G"), (0, "0")],
)
def test_in_thousands(value: float, text: str) -> None:
    assert plots.in_thousands(value) == text


def test_wrong_arguments_get_one_line(tmp_path: Path) -> None:
    png = tmp_path / "p.png"
    for call, words in (
        (lambda: plots.curves([], png), "rows: expected at least one epoch, got none"),
        (lambda: plots.curves(ROWS, tmp_path / "p.pdf"), "path: expected a name that ends in .png"),
        (
            lambda: plots.confusion_matrix(np.ones((2, 3), int), png),
            r"counts: expected \(C, C\), got shape \(2, 3\)",
        ),
        (
            lambda: plots.confusion_matrix(np.eye(2), png),
            "counts: expected whole numbers of at least 0, got float64",
        ),
        (
            lambda: plots.confusion_matrix([[1, -1], [0, 1]], png),
            "counts: expected whole numbers of at least 0",
        ),
        (
            lambda: plots.confusion_matrix([[1]], png, labels=["a", "b"]),
            "labels: expected 1, one a class, got 2",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert not png.exists()


def test_no_display_no_pyplot_the_same_bytes(tmp_path: Path) -> None:
    program = (
        "import sys; from handgrad import plots; assert 'matplotlib' not in sys.modules\n"
        "for name in sys.argv[1:]: plots.curves([{'epoch': 1, 'train_loss': 1.0}], name)\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = {
        key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")
    }
    names = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    subprocess.run(
        [sys.executable, "-c", program, *names], check=True, env=environment | {"MPLBACKEND": "TkAgg"}
    )
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
