"""``handgrad train`` on the whole of MNIST, where ``HANDGRAD_MNIST`` names the folder with its IDX files."""

from __future__ import annotations

import os

import pytest
from command_line import report


@pytest.mark.skipif(
    "HANDGRAD_MNIST" not in os.environ, reason="set HANDGRAD_MNIST to the folder with MNIST's four IDX files"
)
def test_98_percent_of_mnist_within_15_epochs(tmp_path):
    found = report(
        "train",
        "--data",
        os.environ["HANDGRAD_MNIST"],
        "--hidden",
        "256",
        "--device",
        "cpu",
        "--out",
        tmp_path,
    )
    assert found["test_samples"] == 10_000
    assert found["epochs"] <= 15
    assert found["test_accuracy"] >= 0.98
