"""The networks that are timed, their data, and what is told of the machine."""

from __future__ import annotations

import numpy as np
import pytest

from handgrad import throughput
from handgrad.throughput import Shape

SMALL = Shape(64, 20, 8, 3)


def test_the_published_shapes():
    assert [str(shape) for shape in throughput.SHAPES] == [
        "50,000×784→50→1",
        "8,192×784→512→10",
        "1,024×784→256→10",
        "64×784→50→10",
    ]
    assert [shape.loss for shape in throughput.SHAPES] == ["mse", *["cross_entropy"] * 3]


def test_flops_are_those_of_the_five_products():
    """X W1, A1 W2, A1ᵀ dZ2, dZ2 W2ᵀ, Xᵀ dZ1: 2 operations a multiply-add."""
    N, D, H, C = 64, 20, 8, 3
    assert SMALL.flops == 2 * (N * D * H + N * H * C + H * N * C + N * C * H + D * N * H)


def test_shapes_from_words():
    assert throughput.parse_shape("64, 784,50,10") == Shape(64, 784, 50, 10)
    for text in ("1,2,3", "1,2,3,0", "1,2,3,x", "", "1,2,3,4,5", "-1,2,3,4", "1.5,2,3,4"):
        with pytest.raises(ValueError, match="--shape: expected N,D,H,C"):
            throughput.parse_shape(text)


def test_the_same_seed_gives_the_same_data():
    X, y = throughput.make_problem(SMALL, seed=3)
    assert (X.dtype, X.shape, y.dtype, y.shape) == (np.float32, (64, 20), np.int32, (64,))
    again = throughput.make_problem(SMALL, seed=3)
    assert (again[0] == X).all()
    assert (y == again[1]).all()
    assert set(y) == {0, 1, 2}
    _, numbers = throughput.make_problem(Shape(5, 2, 3, 1))
    assert (numbers.dtype, numbers.shape) == (np.float32, (5, 1))


def test_threads_that_the_environment_sets_are_noted(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    assert throughput.thread_variables()["OPENBLAS_NUM_THREADS"] == "2"
    assert "OPENBLAS_NUM_THREADS=2 sets the CPU's threads" in throughput.blas_notes()


def test_no_gpu_is_explained(no_cupy):
    devices, problem = throughput.available_devices()
    assert devices == ["cpu"]
    assert "CuPy is not installed" in problem
