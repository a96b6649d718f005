"""Correct kernels on the emulator give what NumPy gives, in every order of threads."""

from __future__ import annotations

import numpy as np
import pytest
from emulator_sources import CORRECT, FEATURES, ORDERS

from handgrad import emulator

WARP = 32


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    expressions = ["block_sum<float>", "block_sum<double>", "matmul<float, 16>", "matmul<double, 8>"]
    emulator.prebuild((CORRECT, expression) for expression in expressions)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sum_agrees_with_numpy(order: str, dtype: str) -> None:
    x = np.random.default_rng(0).standard_normal(10_007).astype(dtype)
    partial = emulator.empty(7, dtype)
    name = {"float32": "float", "float64": "double"}[dtype]
    arguments = (emulator.asarray(x), partial, np.int32(x.size))
    with emulator.settings(order=order):
        emulator.launch(CORRECT, f"block_sum<{name}>", (7,), (256,), arguments, 8 * x.itemsize)
    total = x.astype(np.float64)
    bound = 64 * np.finfo(dtype).eps * np.abs(total).sum()
    assert abs(float(partial.astype(np.float64).sum()) - total.sum()) <= bound


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (64, 64, 16), (77, 50, 130)])
def test_product_of_small_integers_is_exact(order: str, shape: tuple[int, int, int]) -> None:
    M, N, K = shape
    generator = np.random.default_rng(1)
    A, B = generator.integers(-8, 9, (M, K)), generator.integers(-8, 9, (K, N))
    for expression, dtype in (("matmul<float, 16>", np.float32), ("matmul<double, 8>", np.float64)):
        C = emulator.empty((M, N), dtype)
        arguments = (emulator.asarray(A, dtype), emulator.asarray(B, dtype), C, *map(np.int32, (M, N, K)))
        with emulator.settings(order=order, seed=3):
            emulator.launch(CORRECT, expression, (-(-M // 64), -(-N // 64)), (256,), arguments, 0)
        np.testing.assert_array_equal(C, A @ B)


@pytest.mark.parametrize("order", ORDERS)
def test_built_in_variables(order: str) -> None:
    grid, block = (3, 2, 2), (4, 3, 2)
    blocks, threads = 12, 24
    rows = emulator.zeros((blocks * threads, 12), np.uint32)
    with emulator.settings(order=order):
        emulator.launch(FEATURES, "coordinates", grid, block, (rows,), 0)
    expected = [
        (x, y, z, i, j, k, *block, *grid)
        for k in range(grid[2]) for j in range(grid[1]) for i in range(grid[0])
        for z in range(block[2]) for y in range(block[1]) for x in range(block[0])
    ]  # fmt: skip
    np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize(("name", "dtype"), [("float", np.float32), ("double", np.float64)])
def test_mathematical_functions(name: str, dtype: type) -> None:
    x = np.linspace(0.01, 3, 40).astype(dtype)
    y = emulator.empty((12, x.size), dtype)
    arguments = (emulator.asarray(x), y, np.int32(x.size))
    emulator.launch(FEATURES, f"mathematics<{name}>", (1,), (32,), arguments, 0)
    w = x.astype(np.float64)
    expected = [
        np.exp(w), np.expm1(w), np.log1p(w), np.tanh(w), np.sqrt(w), 1 / np.sqrt(w),
        w * w - 1, w**1.5, np.log(w), w, np.maximum(w, 1) - np.minimum(w, 1), w + np.floor(w) - 1,
    ]  # fmt: skip
    tolerance = 8 * np.finfo(dtype).eps
    np.testing.assert_allclose(y, np.array(expected), rtol=tolerance, atol=tolerance)


def test_single_precision_functions() -> None:
    x = np.linspace(0.1, 3, 32).astype(np.float32)
    y = emulator.empty(32)
    emulator.launch(FEATURES, "single_precision", (1,), (32,), (emulator.asarray(x), y), 0)
    w = x.astype(np.float64)
    expected = 2 * np.exp(w) + 1 / np.sqrt(w) + 2 / w + w * w + 1 + np.log(w)
    np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_named_rounding_is_not_contracted() -> None:
    a = np.float32(1.0001)
    x, y = emulator.asarray([a, -(a * a)], np.float32), emulator.empty(2)
    emulator.launch(FEATURES, "contraction", (1,), (1,), (x, y), 0)
    error = np.float64(a) ** 2 - np.float64(a * a)
    np.testing.assert_array_equal(y, np.array([0, error], np.float32))


def test_minimum_and_maximum_take_the_common_type() -> None:
    y = emulator.zeros(6, np.int32)
    arguments = (y, np.uint32(1), np.int64(2**40), np.uint8(200))
    emulator.launch(FEATURES, "mixed_minimum", (1,), (1,), arguments, 0)
    np.testing.assert_array_equal(y, [3, 1, 7, 200, 1, 1])


def test_vector_types() -> None:
    x, p = emulator.arange(128, dtype=np.float32), emulator.arange(64, dtype=np.float64)
    y, q, sizes = emulator.empty(128), emulator.empty(64, np.float64), emulator.zeros(8, np.int32)
    emulator.launch(FEATURES, "vectors", (1,), (32,), (x, y, p, q, sizes), 0)
    quadruples = np.asarray(x).reshape(-1, 4)
    expected = np.c_[
        quadruples[:, 3] + quadruples[:, 0], quadruples[:, 2], quadruples[:, 1], quadruples[:, 0]
    ]
    np.testing.assert_array_equal(y.reshape(-1, 4), expected)
    np.testing.assert_array_equal(q.reshape(-1, 2), np.asarray(p).reshape(-1, 2)[:, ::-1])
    np.testing.assert_array_equal(sizes, [16, 8, 4, 16, 12, 16, 4, 8])  # CUDA's vector_types.h


@pytest.mark.parametrize("order", ORDERS)
def test_atomics(order: str) -> None:
    i, u = emulator.zeros(6, np.int32), emulator.asarray([0, 0, 0, 0xFFFFFFFF, 0], np.uint32)
    l, f, d = emulator.zeros(2, np.uint64), emulator.zeros(1), emulator.zeros(1, np.float64)
    n = 96
    with emulator.settings(order=order):
        emulator.launch(FEATURES, "atomics", (2,), (n,), (i, u, l, f, d), 0)
    np.testing.assert_array_equal(i[:5], [n * (n - 1), n - 1, 1 - n, -2 * n, 9])
    assert 1 <= i[5] <= n  # whoever came first
    np.testing.assert_array_equal(u, [2 * n, 2 * n % 10, 0xFFFFFFFF, 0, (10 - 2 * n % 10) % 10])
    np.testing.assert_array_equal(l, [2 * n << 33, n - 1])
    assert (f[0], d[0]) == (n, n / 2)


@pytest.mark.parametrize("order", ORDERS)
def test_votes(order: str) -> None:
    threads = 64
    y = emulator.zeros((threads, 10), np.int32)
    with emulator.settings(order=order):
        emulator.launch(FEATURES, "votes", (1,), (threads,), (y,), 0)
    t = np.arange(threads)
    first = t < WARP
    expected = np.stack(
        [
            np.full(threads, 22), np.zeros(threads), np.ones(threads), np.full(threads, 0xAAAAAAAA),
            first, first, 0x11111111 << (t % 4), np.where(first, 496, 496 + 1024), np.where(first, 31, 63),
            np.ones(threads),
        ],
        axis=1,
    )  # fmt: skip
    np.testing.assert_array_equal(y.view(np.uint32), expected.astype(np.uint32))


@pytest.mark.parametrize("width", [32, 8])
@pytest.mark.parametrize(("name", "dtype"), [("int", np.int32), ("double", np.float64)])
def test_shuffles(name: str, dtype: type, width: int) -> None:
    threads = 64
    x = np.random.default_rng(2).integers(0, 1000, threads).astype(dtype)
    y = emulator.empty((4, threads), dtype)
    arguments = (emulator.asarray(x), y, np.int32(width))
    emulator.launch(FEATURES, f"shuffles<{name}>", (1,), (threads,), arguments, 0)
    t = np.arange(threads)
    start, place = t - t % width, t % width
    exchanged = np.where((t % WARP ^ 5) < start % WARP + width, t ^ 5, t)
    np.testing.assert_array_equal(y[0], x[start + 3 % width])
    np.testing.assert_array_equal(y[1], x[np.where(place >= 2, t - 2, t)])
    np.testing.assert_array_equal(y[2], x[np.where(place + 2 < width, t + 2, t)])
    np.testing.assert_array_equal(y[3], x[exchanged])


@pytest.mark.parametrize("order", ORDERS)
def test_collectives_of_disjoint_masks_run_side_by_side(order: str) -> None:
    y = emulator.zeros(64, np.int32)
    with emulator.settings(order=order):
        emulator.launch(FEATURES, "half_warps", (1,), (64,), (y,), 0)
    t = np.arange(64)
    sums = np.where(t < 32, sum(range(16, 32)), sum(range(48, 64)))
    np.testing.assert_array_equal(y, np.where(t % 32 < 16, t ^ 1, sums))


@pytest.mark.parametrize("order", ORDERS)
def test_threads_may_wait_for_each_other_through_atomics(order: str) -> None:
    lock, sum, total = (emulator.zeros(1, np.int32) for _ in range(3))
    with emulator.settings(order=order):
        emulator.launch(FEATURES, "locked", (1,), (96,), (lock, sum, emulator.zeros(1, np.uint32), total), 0)
    assert total[0] == 96 * 95 // 2


def test_parameters_by_value_and_null_pointers() -> None:
    y = emulator.empty(8)
    scale = np.array((0.5, 1), dtype=[("factor", np.float32), ("shift", np.int32)])[()]
    emulator.launch(FEATURES, "by_value", (1,), (8,), (y, scale, np.bool_(True), None), 0)
    np.testing.assert_array_equal(y, np.tile([-5, -50, -500, -0.5], 2))


def test_architecture_is_compiled_in_where_the_source_names_it() -> None:
    y = emulator.zeros(1, np.int32)
    for arch, number in (("sm_75", 750), ("sm_100", 1000)):
        with emulator.settings(arch=arch):
            emulator.launch(FEATURES, "architecture", (1,), (1,), (y,), 0)
        assert y[0] == number
