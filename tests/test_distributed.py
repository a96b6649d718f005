"""Shards and their tree: right gradients, and bits that do not depend on who adds what, in one process."""

from __future__ import annotations

import math
import sys
import threading
from typing import Any

import numpy as np
import pytest
from small_networks import devices, needs_compiler

from handgrad import MLP, SGD, Adam, evaluate, fit, to_device, to_numpy
from handgrad.distributed import ranks as ranks_module
from handgrad.distributed.agreement import agree
from handgrad.distributed.exchange import HostExchange, choose
from handgrad.distributed.ranks import Ranks, RanksError, device_of, join, launched
from handgrad.distributed.shards import cut, owned, tree
from handgrad.distributed.steps import ShardedSteps, cores
from handgrad.evaluation import evaluate_samples
from handgrad.samples import prepare

RNG = np.random.default_rng(5)
X = RNG.standard_normal((53, 6))
LABELS = RNG.integers(0, 3, 53)


def recursive_sum(values: list[Any]) -> Any:
    """The tree again, top down: the left part has the greatest power of two that leaves something."""
    if len(values) == 1:
        return values[0]
    left = 1 << (len(values) - 1).bit_length() - 1
    return recursive_sum(values[:left]) + recursive_sum(values[left:])


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 5, 6, 7, 8, 13, 16])
def test_every_number_of_ranks_adds_in_the_tree_s_order(shards):
    """Numbers whose sum depends on the order of additions: the sum is that of the tree, on any ranks."""
    shape = (shards, 50)
    values = (RNG.standard_normal(shape) * 10.0 ** RNG.integers(-4, 4, shape)).astype(np.float32)
    expected = recursive_sum(list(values))
    for count in range(1, shards + 1):
        plan = tree(shards, count)
        everyone: dict[int, Any] = {}
        for rank in range(count):
            own = {s: values[s].copy() for s in owned(shards, rank, count)}
            for a, b in plan.inside[rank]:
                own[a] += own[b]
            everyone |= {s: own[s] for s in plan.roots[rank]}
            assert len(plan.roots[rank]) <= 2 * math.ceil(math.log2(shards + 1))
        for a, b in plan.outside:
            everyone[a] += everyone[b]
        assert everyone[0].tobytes() == expected.tobytes(), count
    if shards >= 4:
        assert (expected != sum(values)).any()  # from left to right


def test_a_rank_with_a_subtree_sends_one_sum():
    for count in (1, 2, 4, 8):
        assert all(len(roots) == 1 for roots in tree(8, count).roots)


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 5, 61, 64])
@pytest.mark.parametrize("shards", [1, 3, 4, 8])
def test_shards_cover_the_batch(rows, shards):
    parts = [list(range(rows))[part] for part in cut(rows, shards)]
    assert [row for part in parts for row in part] == list(range(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert [s for rank in range(shards) for s in owned(shards, rank, shards)] == list(range(shards))


def test_more_ranks_than_shards_are_refused():
    with pytest.raises(ValueError, match="shards: expected at least 5, one for each rank, got 4"):
        tree(4, 5)


# ---- gradients

LOSSES = {
    "cross_entropy": LABELS,
    "hinge": LABELS,
    "mse": RNG.standard_normal((53, 3)),
    "bce": RNG.random((53, 3)),
}


def float64_loss_and_gradients(net: MLP, x: Any, y: Any) -> tuple[float, dict[str, Any]]:
    """The whole batch at once, by PyTorch in float64."""
    torch = pytest.importorskip("torch")
    values = {
        name: torch.tensor(np.array(to_numpy(v), dtype=np.float64), requires_grad=True)
        for name, v in net.parameters.items()
    }
    hidden = torch.tanh(torch.tensor(x) @ values["W1"] + values["b1"])
    logits = hidden @ values["W2"] + values["b2"]
    functional, target = torch.nn.functional, torch.tensor(y)
    how = net.reduction
    if net.loss_name == "cross_entropy":
        loss = functional.cross_entropy(logits, target, reduction=how)
    elif net.loss_name == "mse":
        loss = functional.mse_loss(logits, target, reduction=how)
    elif net.loss_name == "bce":
        loss = functional.binary_cross_entropy_with_logits(logits, target, reduction=how)
    else:
        right = logits.gather(1, target[:, None])
        margins = torch.clamp(logits - right + 1, min=0).scatter(1, target[:, None], 0.0)
        loss = margins.sum() if how == "sum" else margins.sum(1).mean()
    loss.backward()
    return float(loss.detach()), {name: value.grad.numpy() for name, value in values.items()}


@devices
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("rows", [2, 53])
def test_a_step_is_that_of_the_whole_batch(loss, reduction, rows, device):
    """SGD with rate 1: the change of the weights is the gradient.  2 rows: of 4 shards, two are empty."""
    net = MLP(
        [6, 7, 3], activation="tanh", loss=loss, reduction=reduction, dtype="float64", device=device, seed=1
    )
    x, y = X[:rows], LOSSES[loss][:rows]
    expected_loss, expected = float64_loss_and_gradients(net, x, y)
    before = {name: to_numpy(view).copy() for name, view in net.parameters.items()}
    steps = ShardedSteps(net, 4)
    with steps.running():
        losses = steps.train_epoch(
            to_device(x, device), to_device(y, device), np.arange(rows), 60, SGD(1.0)
        )  # fmt: skip
    np.testing.assert_allclose(to_numpy(losses), [expected_loss], rtol=1e-12)
    for name, view in net.parameters.items():
        np.testing.assert_allclose(before[name] - to_numpy(view), expected[name], rtol=1e-11, atol=1e-13)


def trained(shards: int, threads: int | None = None, **changes: Any) -> tuple[bytes, Any]:
    net = MLP([6, 7, 3], loss="cross_entropy", device="cpu", seed=1)
    settings: dict[str, Any] = {"batch_size": 20, "epochs": 3, "clip_norm": 0.7, "step_losses": True}
    history = fit(net, X, LABELS, optimizer=Adam(0.01), shards=shards, **(settings | changes))
    return bytes(to_numpy(net.flat_parameters.flat).tobytes()), history.steps


@pytest.mark.parametrize("batch_size", [20, 50, 51])
def test_fit_with_shards_trains_alike(batch_size):
    """The last batches have 13, 3 and 2 rows, so that shards which had rows have none.

    The losses are those of whole batches, to rounding.
    """
    whole, sharded = trained(1, batch_size=batch_size), trained(4, batch_size=batch_size)
    np.testing.assert_allclose(sharded[1], whole[1], rtol=2e-5)
    assert sharded[0] != whole[0]
    assert trained(4, batch_size=batch_size) == sharded


def test_a_shard_takes_one_blas_thread(monkeypatch):
    """Since the bits of a product depend on their number."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    real, seen = MLP.loss_and_grad, []

    def loss_and_grad(self: MLP, *arguments: Any, **options: Any) -> Any:
        seen.extend(
            pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"
        )
        return real(self, *arguments, **options)

    monkeypatch.setattr(MLP, "loss_and_grad", loss_and_grad)
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        trained(4)
    assert seen
    assert set(seen) == {1}


def test_threads_change_no_bit(monkeypatch):
    from handgrad.distributed import steps

    one = trained(4)
    monkeypatch.setattr(steps, "LEAST_FOR_A_THREAD", 0)
    for count in ("2", "3", "4"):
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", count)
        assert trained(4) == one


def test_what_a_thread_raises_comes_out(monkeypatch):
    from handgrad.distributed import steps

    monkeypatch.setattr(steps, "LEAST_FOR_A_THREAD", 0)
    net = MLP([6, 7, 3], loss="cross_entropy", device="cpu", seed=1)
    sharded = ShardedSteps(net, 4, threads=2)
    with sharded.running(), pytest.raises(ValueError, match=r"labels must lie in 0 \.\. 2, got 9"):
        sharded.train_epoch(X, np.full(53, 9), np.arange(53), 20, SGD(0.1))


def test_row_numbers_are_checked():
    net = MLP([6, 7, 3], loss="cross_entropy", device="cpu", seed=1)
    with pytest.raises(IndexError, match=r"order: expected row numbers 0 .. 52, got 53"):
        ShardedSteps(net, 4).train_epoch(X, LABELS, np.array([53]), 20, SGD(0.1))


@needs_compiler
def test_the_emulator_takes_shards():
    nets = [MLP([6, 7, 3], loss="cross_entropy", device=d, seed=1) for d in ("cpu", "emulator")]
    histories = [
        fit(net, X, LABELS, optimizer=SGD(0.1), batch_size=20, epochs=1, shards=4, step_losses=True)
        for net in nets
    ]
    np.testing.assert_allclose(histories[1].steps, histories[0].steps, rtol=1e-5)


# ---- ranks without MPI: threads that exchange through a list


class Meeting:
    """As much of a communicator as the ranks use, between threads."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier = size, threading.Barrier(size)
        self.values: list[Any] = [None] * size

    def communicator(self, rank: int) -> Any:
        meeting = self

        class Communicator:
            def allgather(self, value: Any) -> list[Any]:
                meeting.barrier.wait(20)
                meeting.values[rank] = value
                meeting.barrier.wait(20)
                found = list(meeting.values)
                meeting.barrier.wait(20)
                return found

            def Allgather(self, own: Any, everyone: Any) -> None:
                for other, value in enumerate(self.allgather(own.copy())):
                    everyone[other] = value

        return Communicator()


def on_ranks(size: int, work: Any) -> list[Any]:
    """What ``work(ranks)`` gives on each of ``size`` ranks."""
    meeting = Meeting(size)
    found: list[Any] = [None] * size

    def run(rank: int) -> None:
        ranks = ranks_module.MpiRanks(rank, size, rank, size, meeting.communicator(rank))
        try:
            found[rank] = work(ranks)
        except Exception as error:
            found[rank] = error
            if not isinstance(error, RanksError):  # which comes on every rank
                meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("shards", [4, 6])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_give_the_bits_of_one_process(shards, size):
    alone = trained(shards, validation=(X, LABELS))
    assert (
        on_ranks(size, lambda ranks: trained(shards, ranks=ranks, validation=(X, LABELS))) == [alone] * size
    )


@pytest.mark.parametrize("seed", range(8))
def test_evaluation_is_shared_out_and_sums_in_order(seed, monkeypatch):
    monkeypatch.setattr("handgrad.evaluation.BLOCK", 50)
    rng = np.random.default_rng(seed)
    many, labels = rng.standard_normal((40 * 50 + 7, 6)), rng.integers(0, 3, 40 * 50 + 7)
    net = MLP([6, 7, 3], loss="cross_entropy", dtype="float64", device="cpu", seed=1)
    alone = evaluate(net, many, labels)
    samples = prepare(net, many, labels)
    for found in on_ranks(3, lambda ranks: evaluate_samples(net, samples, ranks)):
        assert (found.loss, found.samples, found.accuracy) == (alone.loss, alone.samples, alone.accuracy)
        np.testing.assert_array_equal(found.confusion, alone.confusion)


def test_ranks_that_differ_say_in_what():
    def work(ranks: Ranks) -> None:
        agree(ranks, {"--lr": 0.1 if ranks.rank < 2 else 0.2, "the version of NumPy": "2.0"})

    for found in on_ranks(3, work):
        assert isinstance(found, RanksError)
        assert str(found) == (
            "the ranks do not agree on --lr (rank 0: 0.1, rank 2: 0.2); "
            "start all of them with the same options, data and versions"
        )
    assert on_ranks(2, lambda ranks: agree(ranks, {"--lr": 0.1})) == [None, None]


def test_several_ranks_on_one_gpu_take_host_buffers(cupy, monkeypatch):
    """NCCL cannot have a GPU twice."""
    device = device_of("cuda", Ranks())
    monkeypatch.setattr(
        cupy.cuda, "Device", lambda index: type("D", (), {"pci_bus_id": "0000:01:00.0"})(), raising=False
    )

    class OneMachine(Ranks):
        hosts = ("a", "a")
        communicator = None

        def gather(self, value: Any) -> list[Any]:
            return [value, value]

    exchange, words = choose(OneMachine(0, 2), device)
    assert isinstance(exchange, HostExchange)
    assert words == "MPI through host buffers (several ranks on one GPU)"


# ---- launchers


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1)),
        ({"PMI_RANK": "2", "PMI_SIZE": "4"}, (2, 4)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, (1, 2)),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8"}, (3, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1)),  # a batch script, which starts one process
    ],
)
def test_launchers_are_known_by_their_variables(variables, expected, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launched() == expected


def test_ranks_without_mpi4py_are_told(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(RanksError, match=r"started as one of 2 ranks, .* pip install 'handgrad\[mpi\]'"):
        join()


def test_a_process_alone_needs_no_mpi(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    alone = join()
    assert (alone.rank, alone.size, alone.any(True), alone.gather(3)) == (0, 1, True, [3])


def test_cores_are_shared_among_the_ranks_of_a_machine(monkeypatch):
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(12)), raising=False)
    assert [cores(Ranks(0, n, 0, n)) for n in (1, 4, 12, 40)] == [12, 3, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert cores(Ranks(0, 4, 0, 4)) == 5
