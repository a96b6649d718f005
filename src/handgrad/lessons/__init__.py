"""Published worked examples of backpropagation, each printing its own numbers beside the published ones.

===================  ==================================================================================
``regression``       784 → 50 → 1 with ReLU and mse, step by step; every attempt of a forum thread diagnosed
``gates``            add, multiply, max; compound expressions; the patterns of the backward flow; matrices
``sigmoid-neuron``   a neuron as one gate and as a chain of single gates
``staged``           staged computation, and the mistake at forks
``softmax``          the two-layer softmax network without biases, and ``nn_epoch``
``layers``           the recursion for any number of layers; vanishing and exploding gradients
``curve-fit``        a softplus network with seven parameters, of which first one and then all are trained
``sigmoid-classes``  a notebook's layer classes, each printed fault shown, and corrected
``homework``         forward and backward tables in numerator layout, and the five steps of training
===================  ==================================================================================

``run("gates")`` runs one and returns a :class:`handgrad.lessons.lesson.Lesson`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from handgrad.lessons.lesson import Lesson
from handgrad.lessons.softmax import nn_epoch

__all__ = ["LESSONS", "Lesson", "nn_epoch", "run"]

# name → module, in the order of the documents
LESSONS = {
    "regression": "regression",
    "gates": "gates",
    "sigmoid-neuron": "sigmoid_neuron",
    "staged": "staged",
    "softmax": "softmax",
    "layers": "layers",
    "curve-fit": "curve_fit",
    "sigmoid-classes": "sigmoid_classes",
    "homework": "homework",
}
ON_DIGITS = ("regression", "softmax")  # those that look at MNIST, and take data= and full=


def run(name: str, out: str | Path | None = None, *, data: str | None = None, full: bool = False) -> Lesson:
    """Run the lesson ``name``; pictures go into the folder ``out``.

    ``data`` and ``full`` are for the lessons on digits: another data set (as :func:`handgrad.datasets.load`
    takes it), and the published number of samples instead of a few.  Raises ``ValueError`` for an
    unknown name.
    """
    if name not in LESSONS:
        raise ValueError(f"lesson: expected one of {', '.join(LESSONS)}, got {name!r}")
    settings: dict[str, Any] = {}
    if data is not None or full:
        if name not in ON_DIGITS:
            raise ValueError(
                f"lesson {name}: takes no data; --data and --full are for {' and '.join(ON_DIGITS)}"
            )
        settings = {"data": data, "full": full}
    folder = None
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
    module = importlib.import_module(f"handgrad.lessons.{LESSONS[name]}")
    lesson: Lesson = module.run(folder, **settings)
    return lesson


def title(name: str) -> str:
    """The title of a lesson, without running it."""
    module = importlib.import_module(f"handgrad.lessons.{LESSONS[name]}")
    return str(module.TITLE)
