"""Threads of the CPU's engine: the same bits whoever works, errors, interrupts, a busy machine, forks."""

import functools
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from devices import network_on
from host_engine import bits, forced, problem

import handgrad as hg
from handgrad.host import arrangement, blas, threads
from handgrad.host.part import Part
from handgrad.network import MLP
from handgrad.ops import optimizer_base


def test_the_same_bits_whoever_works(monkeypatch):
    """Parts done in several threads, by one thread, or by two networks at a time."""
    forced(monkeypatch, 3, block=16)
    monkeypatch.setattr(blas.Blas, "threads", lambda self: 3)
    monkeypatch.setattr(blas, "cores", lambda: 3)
    config, X, y, parameters = problem((40, 30, 5), 500, "cross_entropy")
    X = X.astype(np.float32)
    nets = [network_on("cpu", config, parameters, "float32") for _ in range(3)]
    expected = bits(nets[0], X, y)
    with monkeypatch.context() as inner:
        inner.setattr(threads, "run", lambda functions, number: [f() for f in reversed(functions)])
        assert bits(nets[0], X, y) == expected
    found = [set() for _ in nets]

    def work(number):
        for _ in range(20):
            found[number].add(bits(nets[number], X, y))

    others = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert found == [{expected}] * 3


@pytest.mark.parametrize("clip_norm", [None, 0.01])
def test_an_update_shared_among_threads_has_the_bits_of_a_single_one(monkeypatch, clip_norm):
    def trained(make, frozen):
        config, X, y, parameters = problem((40, 30, 5), 90, "cross_entropy")
        net = network_on("cpu", config, parameters, "float32")
        optimizer = make()
        for names in (frozen, ()):
            net.unfreeze()
            net.freeze(*names)
            for rows in (90, 90, 64, 90):
                net.train_step(X[:rows].astype(np.float32), y[:rows], optimizer, clip_norm)
        return net.flat_parameters.flat.tobytes() + b"".join(
            v.tobytes() for v in optimizer.state_arrays().values()
        )

    forced(monkeypatch, 3, block=16)
    for make in (
        lambda: hg.SGD(0.1),
        lambda: hg.SGD(0.1, 0.9, True, 0.01),
        lambda: hg.AdamW(0.01),
        lambda: hg.Adam(0.01, weight_decay=0.1),
    ):
        for frozen in ((), ("W1", "b2")):
            with monkeypatch.context() as one:
                one.setattr(blas, "cores", lambda: 1)
                single = trained(make, frozen)
            with monkeypatch.context() as several:
                several.setattr(blas, "cores", lambda: 3)
                several.setattr(optimizer_base, "CPU_BLOCK", 384)
                assert trained(make, frozen) == single


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("clip_norm", [None, 0.01])
def test_a_step_has_the_bits_of_a_gradient_and_an_update(monkeypatch, parts, clip_norm):
    forced(monkeypatch, parts, block=16)
    config, X, y, parameters = problem((40, 30, 5), 90, "cross_entropy")
    X = X.astype(np.float32)
    for make in (
        lambda: hg.SGD(0.1),
        lambda: hg.SGD(0.1, 0.9),
        lambda: hg.SGD(0.1, 0.9, True, 0.01),
        lambda: hg.Adam(0.01),
        lambda: hg.AdamW(0.01),
    ):
        stepped, apart = (network_on("cpu", config, parameters, "float32") for _ in range(2))
        rule, same = make(), make()
        for _ in range(3):
            loss = stepped.train_step(X, y, rule, clip_norm)
            value, gradients = apart.loss_and_grad(X, y)
            same.update(apart.flat_parameters, gradients.flat, clip_norm)
            assert loss.tobytes() == value.tobytes()
            assert stepped.flat_parameters.flat.tobytes() == apart.flat_parameters.flat.tobytes(), rule


@pytest.mark.parametrize("number", [1, 2, 4])
def test_the_number_of_threads_does_not_change_a_bit_of_a_step_in_parts(monkeypatch, number):
    def trained():
        net = MLP((300, 96, 4), loss="cross_entropy", device="cpu", seed=1)
        adam = hg.Adam(0.01)
        losses = [net.train_step(X, y, adam).tobytes() for _ in range(3)]
        assert len(net._engine.parts) == 4
        return b"".join(losses) + net.flat_parameters.flat.tobytes() + bits(net, X, y)

    random = np.random.default_rng(4)
    X, y = random.random((4096, 300), dtype=np.float32), random.integers(0, 4, 4096)
    monkeypatch.setattr(arrangement, "PARTS_FLOPS", 1e8)
    monkeypatch.setattr(arrangement, "PART_FLOPS", 1e7)
    monkeypatch.setattr(blas, "machine_cores", lambda: 4)
    expected = trained()
    monkeypatch.setattr(blas.Blas, "threads", lambda self: number)
    monkeypatch.setattr(blas, "cores", lambda: number)
    assert trained() == expected


def test_errors_and_interrupts_leave_the_threads_usable():
    def fail():
        raise RuntimeError("first")

    def interrupt():
        raise KeyboardInterrupt

    done = []
    interrupted = [lambda: done.append(0), interrupt]
    for functions, error in (([fail, interrupt], RuntimeError), (interrupted, KeyboardInterrupt)):
        with pytest.raises(error):
            threads.run(functions, 2)
    threads.run([lambda: done.append(1), lambda: done.append(2), lambda: done.append(3)], 3)
    assert sorted(done) == [0, 1, 2, 3]


def test_every_function_is_called_once_and_over_on_return():
    random = np.random.default_rng(0)
    for _ in range(200):
        number = int(random.integers(1, 6))
        begun, ended = [], []

        def work(k, seconds, begun=begun, ended=ended):
            begun.append(k)
            time.sleep(seconds)
            ended.append(k)

        threads.run([functools.partial(work, k, random.random() * 1e-3) for k in range(number)], number)
        assert sorted(begun) == sorted(ended) == list(range(number))


def test_the_caller_waits_for_nobody_who_has_not_begun(monkeypatch):
    """A thread that does not wake, as on a busy machine: its function is taken over."""
    threads.run([lambda: None] * 2, 2)  # the threads are there
    monkeypatch.setattr(threads._Worker, "give", lambda self, job: None)
    callers = []
    threads.run([lambda: callers.append(threading.get_ident())] * 4, 4)
    assert callers == [threading.get_ident()] * 4


def test_a_function_that_runs_elsewhere_is_waited_for_also_after_an_interrupt():
    begun, release, ended = threading.Event(), threading.Event(), []

    def slow():
        begun.set()
        release.wait(10)
        ended.append(True)

    def interrupt():
        assert begun.wait(10)
        threading.Timer(0.05, release.set).start()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        threads.run([interrupt, slow, lambda: None], 2)
    assert ended == [True]


def test_numpy_s_error_state_reaches_every_thread():
    begun, seen = threading.Event(), {}

    def elsewhere():
        begun.set()
        seen[threading.get_ident()] = np.geterr()["over"]

    for state in ("raise", "ignore"):
        begun.clear()
        seen.clear()
        with np.errstate(over=state):
            threads.run([lambda: begun.wait(10), elsewhere], 2)
        assert list(seen.values()) == [state]
        assert threading.get_ident() not in seen


def test_an_overflow_in_any_part_is_raised_or_not_as_numpy_is_told(monkeypatch):
    forced(monkeypatch, 2, block=4)
    net = MLP([2, 3, 1], device="cpu")
    X = np.zeros((8, 2), np.float32)
    y = np.zeros((8, 1), np.float32)
    y[7] = 3e38  # in the second part: its square overflows
    with np.errstate(all="raise"), pytest.raises(FloatingPointError, match="overflow"):
        net.loss_and_grad(X, y)
    with np.errstate(all="ignore"):
        assert net.loss_and_grad(X, y)[0] == np.inf


def test_blas_keeps_its_threads(monkeypatch):
    library = blas.find()
    if not library.controllable:
        pytest.skip(f"this BLAS ({library.name or 'unknown'}) is left to its own threads")
    before, during = library.threads(), []
    real = Part.run

    def run(self, *arguments):
        during.append(int(library._library.get_num_threads()))
        real(self, *arguments)

    monkeypatch.setattr(Part, "run", run)
    net = MLP([30, 20, 2], device="cpu")
    X, y = np.ones((50, 30), np.float32), np.ones((50, 2), np.float32)
    library.hold()
    try:
        assert library.threads() == before
        net.train_step(X, y, hg.SGD(0.1))
        assert int(library._library.get_num_threads()) == 1
    finally:
        library.release()
    assert int(library._library.get_num_threads()) == before
    net = MLP([30, 20, 2], device="cpu")
    forced(monkeypatch, 2, block=10)
    net.train_step(X, y, hg.SGD(0.1))
    with pytest.raises(ValueError, match="y must have shape"):
        net.train_step(X, y[:49], hg.SGD(0.1))
    assert during == [1] * 3
    del during[:]
    monkeypatch.undo()
    monkeypatch.setattr(Part, "run", run)
    large = MLP(
        [500, 400, 2], device="cpu"
    )  # too small a step for parts, large enough for BLAS's own threads
    large.train_step(np.ones((50, 500), np.float32), y, hg.SGD(0.1))
    assert during == [before]
    assert int(library._library.get_num_threads()) == before


def test_training_with_a_fork_in_between():
    """A child process has none of the parent's threads."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    code = """
import os, sys, warnings
warnings.simplefilter("ignore")
import numpy as np
from handgrad.host import arrangement, blas, threads
from handgrad.network import MLP
arrangement.parts = lambda rows, *rest: 2
blas.Blas.threads, blas.cores = lambda self: 2, lambda: 2
net = MLP([8, 6, 1], device="cpu")
X, y = np.ones((64, 8), np.float32), np.ones((64, 1), np.float32)
before = net.loss_and_grad(X, y)[1].flat.tobytes()
assert len(threads._workers) == 1
child = os.fork()
if child == 0:
    os._exit(0 if net.loss_and_grad(X, y)[1].flat.tobytes() == before else 7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
