"""``handgrad.lessons.nn_epoch`` against the published function, written out here a second time."""

import os
from pathlib import Path

import numpy as np
import pytest
from small_networks import needs_compiler

from handgrad import emulator, lessons
from handgrad.arrays import to_device
from handgrad.lessons import nn_epoch


def reference(X, y, W1, W2, lr=0.1, batch=100):
    """The published algorithm, sample by sample in float64, with a softmax that does not overflow."""
    for start in range(0, len(X), batch):
        dW1, dW2 = np.zeros(W1.shape), np.zeros(W2.shape)
        for x, label in zip(X[start : start + batch].astype(float), y[start : start + batch], strict=True):
            hidden = np.maximum(x @ W1.astype(float), 0)
            logits = hidden @ W2.astype(float)
            p = np.exp(logits - logits.max())
            p /= p.sum()
            p[label] -= 1
            dW2 += np.outer(hidden, p)
            dW1 += np.outer(x, (W2.astype(float) @ p) * (hidden > 0))
        W1 -= (lr / batch * dW1).astype(W1.dtype)
        W2 -= (lr / batch * dW2).astype(W2.dtype)


def problem(N=30, D=5, H=10, C=3, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    X, W1, W2 = (rng.normal(size=shape).astype(dtype) for shape in ((N, D), (D, H), (H, C)))
    return X, rng.integers(0, C, N).astype(np.uint8), W1 / dtype(np.sqrt(H)), W2 / dtype(np.sqrt(C))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("N", "batch"), [(30, 10), (30, 7), (30, 30), (30, 50), (1, 100), (0, 10)])
def test_it_is_the_published_epoch(dtype, N, batch):
    X, y, W1, W2 = problem(N, dtype=dtype)
    ours, theirs = (W1.copy(), W2.copy()), (W1.copy(), W2.copy())
    assert nn_epoch(X, y, *ours, lr=0.2, batch=batch) is None
    reference(X, y, *theirs, lr=0.2, batch=batch)
    tolerance = 1e-13 if dtype == np.float64 else 2e-6
    for a, b, before in zip(ours, theirs, (W1, W2), strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
        assert np.array_equal(a, before) == (N == 0)


def test_the_defaults_are_those_of_the_course():
    X, y, W1, W2 = problem(250)
    ours, theirs = (W1.copy(), W2.copy()), (W1.copy(), W2.copy())
    nn_epoch(X, y, *ours)
    nn_epoch(X, y, *theirs, lr=0.1, batch=100)
    np.testing.assert_array_equal(ours[0], theirs[0])


def test_the_short_batch_is_divided_as_published():
    X, y, W1, W2 = problem(30)
    steps = []
    for batch in (30, 50):
        weights = W1.copy(), W2.copy()
        nn_epoch(X, y, *weights, lr=1.0, batch=batch)
        steps.append([before - after for before, after in zip((W1, W2), weights, strict=True)])
    for true_mean, short in zip(*steps, strict=True):
        np.testing.assert_allclose(short, 0.6 * true_mean, rtol=1e-12)


def test_the_order_of_the_samples_matters_and_is_kept():
    X, y, W1, W2 = problem(30)
    forward, backward = (W1.copy(), W2.copy()), (W1.copy(), W2.copy())
    nn_epoch(X, y, *forward, batch=10)
    nn_epoch(X[::-1], y[::-1], *backward, batch=10)
    assert not np.allclose(forward[0], backward[0], rtol=1e-9)
    theirs = W1.copy(), W2.copy()
    reference(X[::-1], y[::-1], *theirs, batch=10)
    np.testing.assert_allclose(backward[0], theirs[0], rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_of_any_size(dtype):
    X, y, W1, W2 = problem(30, dtype=dtype)
    ours, theirs = (W1 * dtype(300), W2 * dtype(300)), (W1 * dtype(300), W2 * dtype(300))
    assert np.abs(np.maximum(X @ ours[0], 0) @ ours[1]).max() > 1e4
    nn_epoch(X, y, *ours)
    reference(X, y, *theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4 if dtype == np.float32 else 1e-12)


def test_views_labels_and_features_of_every_kind():
    X, y, W1, W2 = problem(30)
    theirs = W1.copy(), W2.copy()
    nn_epoch(X, y, *theirs, batch=8)
    for labels in (y.astype(np.int64), y.astype(np.int32)):
        ours = np.asfortranarray(W1), W2.copy()
        nn_epoch(X, labels, *ours, batch=8)
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-12)
    big = np.zeros((10, 20))
    view = big[::2, ::2]
    view[...] = W1
    nn_epoch(np.asfortranarray(X), y, view, W2.copy(), batch=8)
    np.testing.assert_allclose(view, theirs[0], rtol=1e-12)
    assert not big[1::2].any()
    single = W1.astype(np.float32), W2.astype(np.float32)
    nn_epoch(X, y, *single, batch=8)  # float64 features, float32 weights
    assert single[0].dtype == np.float32
    np.testing.assert_allclose(single[0], theirs[0], rtol=1e-4, atol=1e-6)


def test_wrong_arguments():
    X, y, W1, W2 = problem()
    with pytest.raises(ValueError, match="batch: expected 1 or more, got 0"):
        nn_epoch(X, y, W1, W2, batch=0)
    with pytest.raises(TypeError, match="W1, W2: expected floats of one dtype, got float64 and float32"):
        nn_epoch(X, y, W1, W2.astype(np.float32))
    with pytest.raises(TypeError, match="floats of one dtype, got int64"):
        nn_epoch(X, y, W1.astype(np.int64), W2)
    with pytest.raises(ValueError, match=r"labels must lie in 0 \.\. 2, got 3"):
        nn_epoch(X, y + 1, W1, W2)
    with pytest.raises(ValueError, match="W must have shape"):
        nn_epoch(X[:, 1:], y, W1, W2)


@needs_compiler
def test_on_the_emulator():
    arrays = problem(20, dtype=np.float32)
    ours = arrays[2].copy(), arrays[3].copy()
    nn_epoch(arrays[0], arrays[1], *ours, batch=8)
    X, W1, W2 = (to_device(arrays[i], "emulator") for i in (0, 2, 3))
    labels = to_device(arrays[1].astype(np.int32), "emulator")
    nn_epoch(X, labels, W1, W2, batch=8)
    assert isinstance(W1, emulator.EmulatedArray)
    np.testing.assert_allclose(W1, ours[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match="arrays of two kinds"):
        nn_epoch(arrays[0], labels, W1, W2)


@pytest.mark.slow
def test_the_numbers_of_the_courses_own_test():
    """One epoch over all 60,000 images; where a folder with MNIST is named."""
    folder = os.environ.get("HANDGRAD_MNIST", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("HANDGRAD_MNIST names no folder")
    lesson = lessons.run("softmax", full=True)
    assert lesson.passed, lesson.failures
    assert lesson["norm of W1"] == pytest.approx(28.437788, rel=1e-5)
    assert lesson["norm of W2"] == pytest.approx(10.455095, rel=1e-5)
    assert lesson["loss after an epoch"] == pytest.approx(0.19770025, rel=1e-4)
    assert lesson["share of wrong answers after"] == pytest.approx(0.06006667, rel=1e-4)
