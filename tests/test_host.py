"""The engine of the CPU: blocks, threads and tiles change nothing but rounding; a step allocates nothing."""

import functools
import itertools
import tracemalloc

import numpy as np
import pytest
from devices import network_on
from host_engine import HEADS, check, forced, problem, results
from reference_network import Bounded, assert_within, network

import handgrad as hg
from handgrad.host import arrangement, blas
from handgrad.host import network as host_network
from handgrad.host.products import Product
from handgrad.network import MLP
from handgrad.ops import activation as activation_op
from handgrad.ops import loss as loss_op

# ---- blocks, threads, tiles --------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "output"), HEADS)
@pytest.mark.parametrize(("parts", "block", "tile"), [(1, 1, 0), (1, 5, 2), (3, 4, 3), (2, 50, 4)], ids=str)
def test_blocks_parts_and_tiles(monkeypatch, loss, output, parts, block, tile):
    forced(monkeypatch, parts, block, tile)
    for activation, dtype in zip(activation_op.NAMES, itertools.cycle(("float32", "float64"))):
        check(*problem((9, 6, 3), 23, loss, output, activation), dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "output"), HEADS)
@pytest.mark.parametrize("activation", activation_op.NAMES)
def test_every_combination_in_blocks(monkeypatch, activation, loss, output):
    layouts = itertools.product(((5, 3), (1, 1, 1), (13, 9, 40), (6, 5, 4, 2), (33, 1, 7, 3, 5)), (1, 2, 31))
    for k, (sizes, N) in enumerate(layouts):
        for parts, block, tile in ((1, 1, 0), (3, 2, 2), (2, 7, 3), (1, 64, 8)):
            forced(monkeypatch, parts, block, tile)
            bias, reduction = bool(k % 2), loss_op.REDUCTIONS[k % 3 % 2]
            for dtype in ("float32", "float64"):
                check(*problem(sizes, N, loss, output, activation, bias, reduction, seed=k), dtype)


@pytest.mark.parametrize(
    "sizes", [(784, 50, 1), (784, 256, 10), (783, 65, 10), (20, 700, 33), (300, 128, 64, 10)], ids=str
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shapes_that_are_cut_as_in_earnest(sizes, dtype):
    loss = "mse" if sizes[-1] == 1 else "cross_entropy"
    check(*problem(sizes, 333, loss), dtype)


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 7, 40])
@pytest.mark.parametrize("M", [1, 6, 7])
def test_products_in_tiles_are_exact_on_whole_numbers(M, rows):
    random = np.random.default_rng(M)
    for K, N in ((1, 5), (4, 1), (12, 9)):
        A, B = (random.integers(-8, 9, shape).astype(np.float32) for shape in ((M, K), (K, N)))
        for left in (A, np.asfortranarray(A)):
            for run in ("run", "calls"):
                out = np.full((M, N), np.nan, np.float32)
                product = Product(B, out, rows)
                if run == "run":
                    product.run(left)
                else:
                    for function, arguments in product.calls(left):
                        function(*arguments)
                np.testing.assert_array_equal(out, A.astype(int) @ B.astype(int))


def test_an_arrangement_keeps_every_tile_small_and_every_block_within_the_rows(monkeypatch):
    monkeypatch.setattr(blas, "find", lambda: blas.Blas("openblas", "0", "SkylakeX"))
    arrangement.cut.cache_clear()
    try:
        for sizes in ((784, 50, 1), (784, 512, 10), (1, 1), (5000, 3000, 2), (785, 128, 10)):
            for rows in (1, 64, 5000):
                cut = arrangement.cut(sizes, rows, 4)
                assert 1 <= cut.block <= rows
                for (d, h), f, w, i in zip(
                    itertools.pairwise(sizes), cut.forward, cut.weight, cut.input, strict=True
                ):
                    assert max(f, i) * d * h <= arrangement.SMALL_PRODUCT
                    assert w * cut.block * h <= arrangement.SMALL_PRODUCT
        assert arrangement.cut((784, 50, 1), 5000, 4).forward[0] == 12 * 2
        assert arrangement.cut((5000, 3000, 2), 5000, 4).forward[0] == 0  # W1 is larger than the cache
    finally:
        arrangement.cut.cache_clear()


def test_no_rows():
    for loss in loss_op.NAMES:
        for reduction in loss_op.REDUCTIONS:
            net = MLP([4, 3, 2], loss=loss, reduction=reduction, device="cpu")
            y = np.empty(0, int) if loss in ("cross_entropy", "hinge") else np.empty((0, 2), np.float32)
            value, gradients = net.loss_and_grad(np.empty((0, 4), np.float32), y, input_grad=True)
            np.testing.assert_array_equal(value, np.float32(0 if reduction == "sum" else np.nan))
            assert not gradients.flat.any()
            assert gradients["dX"].shape == (0, 4)


# ---- what X may be -----------------------------------------------------------------------------------------


def layouts_of(X):
    wide = np.zeros((2 * len(X), 2 * X.shape[1]), X.dtype)
    wide[::2, ::2] = X
    padded = np.zeros((len(X), X.shape[1] + 3), X.dtype)
    padded[:, 1:-2] = X
    shifted = np.zeros(X.nbytes + 1, np.uint8)[1:].view(X.dtype).reshape(X.shape)
    shifted[...] = X
    return {
        "Fortran": np.asfortranarray(X),
        "every second": wide[::2, ::2],
        "padded rows": padded[:, 1:-2],
        "backwards": X[::-1, ::-1].copy()[::-1, ::-1],
        "unaligned": shifted,
        "big-endian": X.astype(X.dtype.newbyteorder(">")),
        "read-only": np.frombuffer(X.tobytes(), X.dtype).reshape(X.shape),
    }


@pytest.mark.parametrize("parts", [1, 2])
def test_any_layout_of_x(monkeypatch, parts):
    forced(monkeypatch, parts, block=5, tile=2)
    config, X, y, parameters = problem((6, 5, 3), 17, "cross_entropy")
    bounds = network(config, X, y, parameters, "float64")
    order = np.random.default_rng(0).permutation(17)
    for name, laid_out in layouts_of(X).items():
        net = network_on("cpu", config, parameters, "float64")
        loss, gradients = net.loss_and_grad(laid_out, y, input_grad=True)
        for key in ("W1", "b1", "W2", "b2", "X"):
            assert_within(gradients[f"d{key}" if key == "X" else key], bounds[f"d{key}"], f"{name} d{key}")
        expected = [loss, net.loss(X[order[:9]], y[order[:9]])]
        for rows, value in zip((order, order[:9]), expected, strict=True):
            net.load_parameters(parameters)
            losses = net.train_epoch(laid_out, y, rows, 17, hg.SGD(0.1))
            np.testing.assert_allclose(losses, [value], rtol=1e-14, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_images_of_bytes_are_scaled_block_by_block(monkeypatch, dtype):
    forced(monkeypatch, 2, block=4, tile=2)
    random = np.random.default_rng(3)
    images, y = random.integers(0, 256, (21, 30)).astype(np.uint8), random.integers(0, 4, 21)
    config = {"sizes": [30, 7, 4], "loss": "cross_entropy", "reduction": "mean", "bias": True}
    config |= {"activation": "tanh", "output": "identity"}
    net = MLP(**config, dtype=dtype, device="cpu", seed=3)
    parameters = {name: value.astype(np.float64) for name, value in net.parameters.items()}
    scaled = (images.astype(dtype) * np.dtype(dtype).type(1 / 255)) + np.dtype(dtype).type(-0.5)
    for X, losses in (
        (
            scaled.astype(np.float64),
            net.train_epoch(images, y, np.arange(21), 30, hg.SGD(0.1), None, 1 / 255, -0.5),
        ),
        (images.astype(np.float64), None),
    ):
        bounds = network(config, X, y, parameters, dtype)
        if losses is not None:
            assert_within(losses[0], bounds["loss"], "loss")
            net.load_parameters(parameters)
        else:
            loss, gradients = net.loss_and_grad(images, y)
            assert_within(loss, bounds["loss"], "loss of bytes as they are")
            assert_within(gradients["W1"], bounds["dW1"], "dW1")


# ---- errors, memory ----------------------------------------------------------------------------------------


def test_parts_follow_from_the_shape(monkeypatch):
    monkeypatch.setattr(blas, "machine_cores", lambda: 8)
    assert arrangement.parts(64, 1e7, 10**5) == 1
    assert arrangement.parts(4096, 1.7e9, 400_000) == 1
    assert arrangement.parts(50_000, 7.9e9, 160_000) == 8
    assert arrangement.parts(1024, 8.4e9, 800_000) == 4
    assert arrangement.parts(50_000, 7.9e12, arrangement.MOST_GRADIENT_BYTES // 4) == 1
    assert arrangement.parts(31, 7.9e12, 100) == 1
    for rows in (1, 2, 31, 32, 64, 1000, 3000, 10**6):
        assert 1 <= arrangement.parts(rows, rows * 1e8, 10**5) <= min(rows, 8)


def test_a_label_out_of_range_is_named_by_its_sample(monkeypatch):
    net = MLP([3, 4, 2], loss="cross_entropy", device="cpu")
    X, y = np.ones((20, 3), np.float32), np.zeros(20, int)
    y[[13, 17]] = 2, -1
    for parts, block in ((1, 100), (1, 3), (4, 2)):
        forced(monkeypatch, parts, block)
        fresh = MLP([3, 4, 2], loss="cross_entropy", device="cpu")
        before = fresh.flat_parameters.flat.copy()
        with pytest.raises(ValueError, match=r"labels must lie in 0 \.\. 1, got 2 for sample 13"):
            fresh.train_step(X, y, hg.SGD(0.1))
        np.testing.assert_array_equal(fresh.flat_parameters.flat, before)
        y[13] = 0
        with pytest.raises(ValueError, match=r"labels must lie in 0 \.\. 1, got -1 for sample 17"):
            net.loss(X, y)
        y[13] = 2


@pytest.mark.parametrize(("loss", "output"), HEADS)
def test_a_step_allocates_nothing(monkeypatch, loss, output):
    """Whatever NumPy allocates tracemalloc sees; an array of a block alone would be 32 KiB."""
    optimizers = [hg.SGD(1e-4), hg.Adam(1e-4), hg.SGD(1e-4, 0.9), hg.AdamW(1e-4), hg.SGD(1e-4, 0.9, True)]
    for k, (activation, optimizer) in enumerate(zip(activation_op.NAMES, optimizers, strict=True)):
        forced(monkeypatch, 1 + k % 2, block=256, tile=16)
        N = 1024
        config, X, y, parameters = problem((64, 32, 4), N, loss, output, activation)
        net = network_on("cpu", config, parameters, "float32")
        X, y = X.astype(np.float32), y if y.dtype.kind in "iu" else y.astype(np.float32)
        order = np.random.default_rng(0).permutation(N)
        images = (255 * np.clip(X, 0, 1)).astype(np.uint8)
        epoch = functools.partial(net.train_epoch, y=y, order=order, batch_size=512, optimizer=optimizer)
        steps = {
            "step": functools.partial(net.train_step, X, y, optimizer),
            "epoch": functools.partial(epoch, X),
            "bytes": functools.partial(epoch, images, scale=1 / 255),
        }
        for name, step in steps.items():
            step()
            tracemalloc.start()
            try:
                step()
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                step()
                grown = tracemalloc.get_traced_memory()[1] - before
            finally:
                tracemalloc.stop()
            # an epoch makes its order as int32 and int64 (12 KiB here), once
            assert grown < 8192 + 16384 * (name != "step"), (activation, name, grown)


def test_rows_of_strided_data_are_picked_without_copying_all_of_them():
    X = np.zeros((20_000, 64), np.float32)[:, ::2]
    y = np.zeros((20_000, 1), np.float32)
    net = MLP([32, 4, 1], device="cpu")
    order, optimizer = np.arange(256), hg.SGD(0.1)
    net.train_epoch(X, y, order, 64, optimizer)
    tracemalloc.start()
    try:
        net.train_epoch(X, y, order, 64, optimizer)
        assert tracemalloc.get_traced_memory()[1] < X.nbytes / 20
    finally:
        tracemalloc.stop()


def test_an_engine_follows_its_parameters():
    """Parameters written from outside are seen by the next step; an engine belongs to one buffer."""
    config, X, y, parameters = problem((6, 5, 3), 10, "mse")
    net = network_on("cpu", config, parameters, "float64")
    results(net, X, y)
    engine = host_network.engine_of(net)
    net.load_parameters({name: 2 * value for name, value in parameters.items()})
    doubled = network(config, X, y, {name: 2 * value for name, value in parameters.items()}, "float64")
    for name, value in results(net, X, y).items():
        assert_within(value, doubled[name], name)
    assert host_network.engine_of(net) is engine


def test_agreement_with_step_by_step_on_a_real_size(monkeypatch):
    config, X, y, parameters = problem((784, 50, 10), 1200, "cross_entropy", activation="tanh")
    net = network_on("cpu", config, parameters, "float32")
    bounds = network(config, X, y, parameters, "float32")
    X32 = X.astype(np.float32)
    _, stepwise = net.loss_and_grad(X32, y, intermediates=True)
    for parts in (1, 2):
        monkeypatch.setattr(arrangement, "parts", lambda *rest, parts=parts: parts)
        _, blocks = net.loss_and_grad(X32, y)
        for name in net.parameters:
            expected = Bounded(stepwise[name].astype(np.float64), 2 * bounds[f"d{name}"].error)
            assert_within(blocks[name], expected, name)
