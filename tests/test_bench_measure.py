"""``handgrad bench``: turns, rounds, threads, shares of time, workloads, and what is computed of samples."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from handgrad.benchmark import ceilings, measure, products, report, session, stages, workloads
from handgrad.benchmark.process import Failed
from handgrad.benchmark.runners import PEERS, choices
from handgrad.benchmark.session import Session
from handgrad.benchmark.workloads import Problem, Workload
from handgrad.throughput import Shape

SMALL = Workload(Shape(64, 20, 8, 3))


class Scripted:
    """A session that answers as told, and notes what it was asked."""

    def __init__(self, asked: list[tuple[str, str]], name: str, answers: dict[str, Any]) -> None:
        self.asked, self.name, self.answers = asked, name, answers
        self.reply: Any = None

    def send(self, command: str, **arguments: Any) -> None:
        self.asked.append((self.name, command))
        answer = self.answers.get(command)
        self.reply = answer(**arguments) if callable(answer) else answer

    def receive(self) -> Any:
        return self.reply

    def close(self) -> None:
        self.asked.append((self.name, "close"))


def contestants(asked, **answers):
    """Two contestants, and a series for each."""
    runs = []
    for key in ("torch-eager", "jax"):
        one = measure.Contestant(key, "cpu", Scripted(asked, key, answers))
        runs.append((one, measure.Series(SMALL, key, "cpu", 0.0, threads=1, repetitions=4)))
    return runs


def test_contestants_take_turns_and_another_one_begins_each_round():
    asked: list[tuple[str, str]] = []
    runs = contestants(asked, sample=0.001)
    measure._take_turns(runs, {}, measure.Record(), (100.0, 3), lambda words: None)
    assert [name for name, command in asked if command == "sample"] == [
        "torch-eager", "jax", "jax", "torch-eager", "torch-eager", "jax",
    ]  # fmt: skip
    assert [series.seconds for _, series in runs] == [[0.001] * 3] * 2


def test_square_products_are_measured_in_the_same_rounds():
    asked: list[tuple[str, str]] = []
    runs = contestants(asked, sample=0.001, square_product=0.5)
    measure._take_turns(runs, {}, measure.Record(), (100.0, 7), lambda words: None)
    assert all(series.square_seconds == [0.5] * 3 for _, series in runs)  # rounds 1, 4 and 7
    after_square = asked[asked.index(("jax", "square_product")) + 1]
    assert after_square == ("jax", "set_threads")


def test_five_rounds_however_long_they_take_and_no_more_when_time_is_up():
    runs = contestants([], sample=100.0)
    measure._take_turns(runs, {}, measure.Record(), (1.0, 9), lambda words: None)
    assert [len(series.seconds) for _, series in runs] == [measure.FEWEST_ROUNDS] * 2


def test_a_peer_that_dies_leaves_the_others_in_the_race():
    runs = contestants([], sample=0.001)
    dead, record = runs[1][0], measure.Record()

    def die(**arguments):
        raise Failed("its process died with signal SIGKILL")

    dead.session.answers = {"sample": die}
    measure._take_turns(runs, {}, record, (1.0, 3), lambda words: None)
    assert [contestant.key for contestant, _ in runs] == ["torch-eager"]
    assert dead.dropped
    assert "SIGKILL" in record.notes[0]


def test_a_peer_that_dies_after_its_samples_keeps_them(monkeypatch):
    def die(**arguments):
        raise Failed("its process died with signal SIGKILL")

    answers = {"warm_up": (0.001, 1), "sample": 0.001, "square_product": 0.5, "loss": die}
    peer = measure.Contestant("jax", "cpu", Scripted([], "jax", answers))
    record = measure.Record(contestants=[peer])
    series = measure.Series(SMALL, "jax", "cpu", 0.0)
    monkeypatch.setattr(measure, "_check", lambda *arguments: [(peer, series)])
    measure._measure_workload(measure.Settings(("cpu",), PEERS, ()), SMALL, record, lambda words: None)
    assert (len(record.series[0].seconds), record.series[0].loss) == (9, None)
    assert "64×20→8→3 stopped: its process died" in record.notes[0]


def test_other_data_are_not_timed():
    answers = {"prepare": "another digest", "loss_and_grad": None}
    peer = measure.Contestant("jax", "cpu", Scripted([], "jax", answers))
    record = measure.Record()
    assert measure._check(SMALL, [peer], record, 0) == []
    assert "it had other data" in record.notes[0]
    own = measure.Contestant("handgrad", "cpu", Scripted([], "handgrad", answers))
    with pytest.raises(RuntimeError, match="it had other data"):
        measure._check(SMALL, [own], record, 0)


@pytest.mark.parametrize("factor", [1.001, np.nan])
def test_a_peer_with_a_wrong_gradient_is_not_timed(factor):
    from handgrad.benchmark import reference

    problem = Problem.make(SMALL)
    loss, gradients = reference.loss_and_grad(problem)
    wrong = (loss, {**gradients, "b1": gradients["b1"] * factor})
    peer = measure.Contestant(
        "jax", "cpu", Scripted([], "jax", {"prepare": problem.digest(), "loss_and_grad": wrong})
    )
    record = measure.Record()
    assert measure._check(SMALL, [peer], record, 0) == []
    assert "b1 differs from float64 NumPy" in record.notes[0]
    peer.session.answers["loss_and_grad"] = (loss, gradients)
    assert len(measure._check(SMALL, [peer], record, 0)) == 1


# ---- a session ---------------------------------------------------------------------------------------


class Paced:
    """A runner that takes a time of its own on each number of threads."""

    def __init__(self, by_threads: dict[int, float], clock: list[float]) -> None:
        self.thread_choices = tuple(by_threads)
        self.by_threads, self.clock, self.threads, self.runs = by_threads, clock, self.thread_choices[0], 0

    def use_threads(self, threads: int) -> None:
        self.threads = threads

    def run(self, repetitions: int) -> None:
        self.runs += repetitions
        self.clock[0] += repetitions * self.by_threads[self.threads]


def paced(monkeypatch, by_threads: dict[int, float], workload: Workload = SMALL) -> Session:
    clock = [0.0]
    monkeypatch.setattr(session.time, "perf_counter", lambda: clock[0])
    made = Session.__new__(Session)
    made.runner, made.threads = Paced(by_threads, clock), max(by_threads)  # type: ignore[assignment]
    made.problem = Problem.make(workload)
    return made


@pytest.mark.parametrize("faster", [1, 2])
def test_the_faster_number_of_threads_is_kept(faster, monkeypatch):
    made = paced(monkeypatch, {2: 0.1 if faster == 2 else 0.3, 1: 0.2})
    assert made.warm_up() == (pytest.approx(0.1 if faster == 2 else 0.2), faster)
    assert made.runner.threads == faster


def test_large_work_takes_all_threads(monkeypatch):
    made = paced(monkeypatch, {2: 0.3, 1: 0.2}, Workload(Shape(9000, 100, 300, 3)))
    assert made.warm_up() == (pytest.approx(0.3), 2)


def test_a_fixed_number_of_threads_is_left_alone():
    assert choices(2, fixed=True) == (2,)
    assert choices(1, fixed=False) == (1,)
    assert choices(4, fixed=False) == (4, 1)


def test_a_sample_is_a_mean_after_one_that_is_not_timed(monkeypatch):
    made = paced(monkeypatch, {1: 0.25})
    assert made.sample(8) == pytest.approx(0.25)
    assert made.runner.runs == 9


# ---- workloads -----------------------------------------------------------------------------------------


def test_workloads():
    assert [str(workload) for workload in workloads.SHAPES] == [
        "50,000×784→50→1", "8,192×784→512→10", "4,096×784→128→10", "1,024×784→256→10", "128×784→256→10",
        "64×784→50→10",
    ]  # fmt: skip
    assert {workload.regime for workload in workloads.SHAPES} == set(workloads.REGIMES)
    epoch = Workload(Shape(100, 20, 8, 3), "epoch", rows=250)
    assert (epoch.kind, epoch.samples, epoch.steps) == ("epoch", 250, 3)
    assert epoch.flops == Shape(250, 20, 8, 3).flops
    assert SMALL.compulsory_bytes == 64 * 4 * 21 + 8 * (20 * 8 + 8 + 8 * 3 + 3)
    assert epoch.compulsory_bytes == 250 * 4 * 21 + 3 * 8 * (20 * 8 + 8 + 8 * 3 + 3)


def test_the_digest_covers_every_byte():
    problem = Problem.make(SMALL)
    assert problem.digest() == Problem.make(SMALL).digest() != Problem.make(SMALL, seed=1).digest()
    for array in (problem.X, problem.y, problem.order, *problem.parameters.values()):
        before = problem.digest()
        array.reshape(-1)[-1] += 1
        assert problem.digest() != before


def test_who_takes_part():
    settings = measure.Settings(("cpu",), PEERS, ())
    large, small, epoch = workloads.SHAPES[0], workloads.SHAPES[-1], workloads.epochs()[0]
    for key, workload, wanted in (
        ("sklearn", large, True), ("sklearn", small, False), ("sklearn", epoch, True),
        ("torch-compiled", small, True), ("torch-compiled", epoch, False), ("jax", small, True),
    ):  # fmt: skip
        assert settings.takes_part(key, workload) is wanted, (key, workload)


def test_more_work_is_expected_to_take_longer():
    def minutes(**more):
        return measure.estimated_seconds(measure.Settings(("cpu",), PEERS, workloads.SHAPES, **more))

    assert minutes() < minutes(seconds=3.0)
    assert minutes() > measure.estimated_seconds(measure.Settings(("cpu",), PEERS[:1], workloads.SHAPES))


# ---- products and stages -------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_every_arrangement_computes_the_product(threads):
    """Whatever is timed as the floor of a step is the step's product."""
    found = products.Products(Problem.make(Workload(Shape(5000, 30, 20, 3))), "cpu", threads)
    rng = np.random.default_rng(0)
    seen = set()
    for product in found._five(20):
        A = rng.standard_normal(product.A.shape).astype(np.float32)
        B = rng.standard_normal(product.B.shape).astype(np.float32)
        drawn = products.Product(product.name, A, B, product.over_rows)
        wanted = A.astype(float) @ B.astype(float)
        for way in found._arrangements(drawn):
            np.testing.assert_allclose(way.call(), wanted, atol=1e-3, err_msg=f"{product.name}, {way.words}")
            seen.add(way.words.split(",")[0])
    assert {"as written", "transposed", "blocks of 1024 rows", "blocks of 4096 rows"} <= seen
    assert ("rows shared among threads" in seen) == (threads > 1)


def test_padding_adds_hidden_units_and_nothing_else():
    found = products.Products(Problem.make(Workload(Shape(100, 30, 20, 3))), "cpu", 1)
    widths = [[width for width, _ in group] for group in found._variants()]
    assert widths == [[0, 32, 64]] * 5
    plain, padded = found._five(20), found._five(32)
    assert [one.flops for one in plain] == [2 * 100 * 30 * 20, *[2 * 100 * 20 * 3] * 3, 2 * 100 * 30 * 20]
    assert all(a.flops < b.flops for a, b in zip(plain, padded, strict=True))


def test_the_fastest_arrangement_is_taken_by_its_best_trial(monkeypatch):
    """One that is fast at first sight and slow afterwards is not; short ones are repeated."""
    found = products.Products(Problem.make(SMALL), "cpu", 1)
    clock = [0.0]
    monkeypatch.setattr(products.time, "perf_counter", lambda: clock[0])

    def way(words, *seconds):
        left = list(seconds)

        def call():
            clock[0] += left.pop(0) if len(left) > 1 else left[0]

        return products.Arrangement(words, call, 1)

    ways = [way("lucky", 1e-4, 9e-5, 5e-4), way("steady", 1e-4), way("slow", 1e-2)]
    best = found._fastest(ways)
    assert (best.words, best.repeats) == ("steady", 11)
    assert found._seconds(best) == pytest.approx(1e-4)


class LikeCupy:
    """A device whose array module is not NumPy itself, but does as NumPy."""

    kind = "cuda"
    array_module = SimpleNamespace(
        __name__="like_cupy", asarray=np.asarray, ones=np.ones, zeros=np.zeros, empty=np.empty,
        zeros_like=np.zeros_like, matmul=np.matmul, float32=np.float32,
    )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None


def test_a_gpu_has_the_products_as_written(monkeypatch):
    monkeypatch.setattr(products, "resolve_device", lambda device: LikeCupy())
    found = products.Products(Problem.make(SMALL), "cuda:0", 2)
    parts = found.find()
    assert [part["arrangement"] for part in parts] == ["as written"] * 5
    assert [part["shape"] for part in parts] == [[64, 20, 8], [64, 8, 3], [8, 64, 3], [64, 3, 8], [20, 64, 8]]
    assert sum(part["flops"] for part in parts) == SMALL.flops
    assert len(list(found.sample())) == 5


def test_bandwidth_counts_bytes(monkeypatch):
    """Of a copy those read and those written; all threads' parts together; on a GPU the same."""
    times = iter(range(1000))
    monkeypatch.setattr(ceilings.time, "perf_counter", lambda: float(next(times)))
    for device in ("cpu", "cuda:0"):
        monkeypatch.setattr(
            ceilings, "resolve_device",
            (lambda name: LikeCupy()) if device == "cuda:0" else ceilings.resolve_device,
        )  # fmt: skip
        assert ceilings.bandwidth(device, 2, buffer_bytes=2**20) == {"copy": 2.0 * 2**20, "read": 2.0**20}


def test_stages_compute_the_step():
    """The gradients that the timed stages leave are those of the step."""
    from handgrad.benchmark import reference

    problem = Problem.make(SMALL)
    calls = stages._calls(problem, np, "cpu")
    assert list(calls) == list(stages.STAGES)
    for name, call in calls.items():
        result = call()
        if name == "dW1":
            dW1, db1 = result
            _, wanted = reference.loss_and_grad(problem)
            assert reference.relative_error(dW1, wanted["W1"]) < 1e-5
            assert reference.relative_error(db1, wanted["b1"]) < 1e-5


# ---- what is computed of samples -----------------------------------------------------------------------


def test_ratios_pair_the_rounds():
    """Both were slow in the second round: the ratio does not see it."""
    assert report.paired([1.0, 5.0, 1.0], [2.0, 10.0, 2.0]) == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert report.paired([1.0, 2.0], [3.0]) == {"median": 3.0, "low": 3.0, "high": 3.0}


def test_an_unfinished_record_is_a_document():
    settings = measure.Settings(("cpu",), PEERS, ())
    record = measure.Record(series=[measure.Series(SMALL, "handgrad", "cpu", 0.0)])
    found = report.make(record, settings, started=datetime.now(UTC), seconds=1.0)
    assert (found["complete"], found["results"], found["ratios"]) == (False, [], [])
