"""How many BLAS threads a training takes."""

from __future__ import annotations

import pytest
import threadpoolctl

import handgrad as hg
from handgrad.cli import threads


@pytest.fixture(autouse=True)
def no_thread_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def blas_threads() -> set[int]:
    return {info["num_threads"] for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas"}


def test_small_products_take_one_thread_and_large_ones_all():
    net = hg.MLP([784, 128, 10], device="cpu")
    before = blas_threads()
    with threads.blas_threads(net, 64):
        assert blas_threads() == {1}
    assert blas_threads() == before
    with threads.blas_threads(net, 4096):
        assert blas_threads() == before


def test_what_the_environment_says_is_left_alone(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert not threads.takes_one_thread(hg.MLP([784, 128, 10], device="cpu"), 64)


def test_other_devices_are_left_alone():
    assert not threads.takes_one_thread(hg.MLP([4, 3, 2], device="emulator"), 64)
