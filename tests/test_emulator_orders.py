"""Random orders of threads show missing barriers; correct kernels give the same bits in all of them."""

from __future__ import annotations

import numpy as np
import pytest
from emulator_sources import FAULTS, ORDERS

from handgrad import emulator

SEEDS = range(20)
CASES = {  # kernel: threads, floats of x, bytes of dynamic shared memory
    "shift": (128, 128, 0),
    "tree_sum": (256, 512, 1024),
    "reused_tile": (128, 512, 0),
    "warp_exchange": (64, 64, 0),
}


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    emulator.prebuild((FAULTS, f"{name}<{barrier}>") for name in CASES for barrier in ("true", "false"))


def run(name: str, barrier: bool, **chosen: object) -> bytes:
    threads, size, shared = CASES[name]
    x = emulator.asarray(np.random.default_rng(0).standard_normal(size), np.float32)
    y = emulator.full(threads, -1, np.float32)
    expression = f"{name}<{str(barrier).lower()}>"
    with emulator.settings(**chosen):  # type: ignore[arg-type]
        emulator.launch(FAULTS, expression, (2 if name == "tree_sum" else 1,), (threads,), (x, y), shared)
    return y.tobytes()


def expected(name: str) -> np.ndarray:
    threads, size, _ = CASES[name]
    x = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    if name == "shift":
        return np.r_[np.float32(0), x[:-1]]
    if name == "warp_exchange":
        return x.reshape(-1, 2)[:, ::-1].reshape(-1)
    if name == "reused_tile":
        return x.reshape(4, threads)[:, ::-1].astype(np.float64).sum(0)
    return np.r_[x.reshape(2, -1).astype(np.float64).sum(1), np.full(threads - 2, -1)]


@pytest.mark.parametrize("name", CASES)
def test_correct_kernel_gives_the_same_bits_in_every_order(name: str) -> None:
    reference = run(name, True)
    np.testing.assert_allclose(np.frombuffer(reference, np.float32), expected(name), rtol=1e-5, atol=1e-5)
    for order in ORDERS:
        assert run(name, True, order=order) == reference
    for seed in SEEDS:
        assert run(name, True, order="random", seed=seed) == reference, f"seed {seed}"


@pytest.mark.parametrize("name", CASES)
def test_every_random_seed_shows_a_missing_barrier(name: str) -> None:
    reference = run(name, True)
    missed = [seed for seed in SEEDS if run(name, False, order="random", seed=seed) == reference]
    assert missed == []


@pytest.mark.parametrize("name", CASES)
def test_a_seed_repeats_its_order(name: str) -> None:
    first = [run(name, False, order="random", seed=seed) for seed in SEEDS]
    assert first == [run(name, False, order="random", seed=seed) for seed in SEEDS]
    assert len(set(first)) > 1
