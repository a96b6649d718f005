"""A small data set and networks for it, shared by the tests of training, evaluation and samples."""

from __future__ import annotations

import numpy as np
import pytest

from handgrad import emulator
from handgrad.arrays import to_numpy
from handgrad.network import MLP

X = np.random.default_rng(11).normal(size=(103, 6))
LABELS = (X[:, 0] + X[:, 1] > 0).astype(int) + (X[:, 2] > 0)
TARGETS = np.random.default_rng(12).normal(size=(103, 2))


def classifier(loss="cross_entropy", **settings):
    return MLP([6, 8, 3], loss=loss, device="cpu", **{"dtype": "float64", "seed": 4} | settings)


def regressor(**settings):
    return MLP([6, 5, 2], device="cpu", **{"dtype": "float64", "activation": "tanh", "seed": 4} | settings)


def parameters_of(net):
    return to_numpy(net.flat_parameters.flat).copy()


def _compiler_problem():
    try:
        emulator.find_compiler()
    except emulator.CompilerNotFound as error:
        return str(error)
    return ""


needs_compiler = pytest.mark.skipif(
    bool(_compiler_problem()), reason=_compiler_problem() or "a compiler is here"
)
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("emulator", marks=needs_compiler)])
