"""Loss, accuracy and confusion counts against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from small_networks import LABELS, TARGETS, X, classifier, regressor

from handgrad.evaluation import BLOCK, evaluate
from handgrad.network import MLP


def test_evaluate_counts_by_hand(monkeypatch):
    net = classifier()
    monkeypatch.setattr("handgrad.evaluation.BLOCK", 10)  # several blocks, the last one short
    found = evaluate(net, X, LABELS)
    scores = net.forward(X)
    predicted = scores.argmax(axis=1)
    assert found.samples == 103
    assert found.accuracy == np.mean(predicted == LABELS)
    for true in range(3):
        for guess in range(3):
            assert found.confusion[true, guess] == np.sum((true == LABELS) & (predicted == guess))
    log_softmax = scores - scores.max(axis=1, keepdims=True)
    log_softmax -= np.log(np.exp(log_softmax).sum(axis=1, keepdims=True))
    assert found.loss == pytest.approx(-log_softmax[np.arange(103), LABELS].mean(), rel=1e-13)
    assert BLOCK % 32 == 0


def test_evaluate_for_bce_is_per_output():
    net = MLP([6, 4, 2], loss="bce", device="cpu", dtype="float64")
    y = np.random.default_rng(5).integers(0, 2, size=(103, 2))
    found = evaluate(net, X, y)
    guess = net.forward(X) > 0
    assert found.accuracy == np.mean(guess == (y == 1))
    counts = [[np.sum((y == t) & (guess == g)) for g in (0, 1)] for t in (0, 1)]
    np.testing.assert_array_equal(found.confusion, counts)
    p = net.predict(X)
    assert found.loss == pytest.approx(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)), rel=1e-12)


@pytest.mark.parametrize("output", ["identity", "sigmoid"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_evaluate_for_mse_has_a_loss_alone(output, reduction):
    net = regressor(output=output, reduction=reduction)
    y = TARGETS.copy()
    found = evaluate(net, X, y)
    squares = (net.predict(X) - y) ** 2
    assert found.loss == pytest.approx(squares.mean() if reduction == "mean" else squares.sum(), rel=1e-13)
    assert found.accuracy is None
    assert found.confusion is None


def test_one_output_takes_flat_targets():
    net = MLP([6, 4, 1], device="cpu", dtype="float64")
    found = evaluate(net, X, LABELS)
    assert found.loss == pytest.approx(np.mean((net.forward(X)[:, 0] - LABELS) ** 2), rel=1e-13)
