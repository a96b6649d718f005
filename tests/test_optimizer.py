"""Optimizers against the formulas written out element by element, and against torch.optim where installed."""

import json
import math

import numpy as np
import pytest

from handgrad import emulator
from handgrad.arrays import to_numpy
from handgrad.kernel import kernels_directory
from handgrad.ops import optimizer as op
from handgrad.ops.optimizer import SGD, Adam, AdamW
from handgrad.ops.optimizer_base import CPU_BLOCK
from handgrad.ops.optimizer_kernels import CATALOGUE, MAX_BLOCKS, THREADS
from handgrad.parameters import FlatParameters

SHAPES = {"W1": (7, 13), "b1": (13,), "W2": (13, 3), "b2": (3,)}
STEPS = 12
# Norm-wise, after STEPS updates: about 16 u, where 4 u was measured on the CPU (u = 2^-24 and 2^-53).
TOLERANCE = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 2e-15}

SETTINGS = {
    "sgd": lambda: SGD(0.1),
    "sgd decay": lambda: SGD(0.1, weight_decay=0.03),
    "momentum": lambda: SGD(0.05, momentum=0.9),
    "momentum decay": lambda: SGD(0.05, momentum=0.7, weight_decay=0.03),
    "nesterov": lambda: SGD(0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda: Adam(0.01),
    "adam betas": lambda: Adam(0.02, beta1=0.0, beta2=0.9, eps=1e-3),
    "adam L2": lambda: Adam(0.01, weight_decay=0.1),
    "adamw": lambda: AdamW(0.01, weight_decay=0.1),
}


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param)


@pytest.fixture(scope="module")
def built():
    """The kernels as C++, compiled together; skips where there is no compiler."""
    try:
        emulator.find_compiler()
    except emulator.CompilerNotFound as error:
        pytest.skip(str(error))
    file = kernels_directory() / "optimizer.cu"
    emulator.prebuild([(file, expression) for entry in CATALOGUE for expression in entry.expressions])


@pytest.fixture(params=["cpu", "emulator"])
def xp(request):
    if request.param == "cpu":
        return np
    request.getfixturevalue("built")
    return emulator


@pytest.fixture(params=SETTINGS, ids=[name.replace(" ", "-") for name in SETTINGS])
def make(request):
    return SETTINGS[request.param]


def start(xp, dtype, seed=5, shapes=SHAPES):
    """Parameters and the gradients of STEPS steps, the same numbers for every array module."""
    rng = np.random.default_rng(seed)
    parameters = FlatParameters(shapes, dtype, xp)
    parameters.copy_from({name: rng.normal(size=shape) for name, shape in shapes.items()})
    gradients = [{name: rng.normal(size=shape) for name, shape in shapes.items()} for _ in range(STEPS)]
    return parameters, [{n: g.astype(dtype) for n, g in step.items()} for step in gradients]


def run(optimizer, parameters, gradients, clip_norm=None):
    buffer = parameters.like()
    for step in gradients:
        buffer.copy_from(step)
        before = to_numpy(buffer.flat).copy()
        optimizer.update(parameters, buffer, clip_norm)
        np.testing.assert_array_equal(to_numpy(buffer.flat), before, "the gradient is the caller's")
    return parameters.to_numpy()


def by_hand(optimizer, parameters, gradients, clip_norm=None):
    """The formulas of the docstrings in Python's float64, one element after the other."""
    c = optimizer.config()
    values = {n: [float(x) for x in w.ravel()] for n, w in parameters.to_numpy().items()}
    first = {n: [0.0] * len(w) for n, w in values.items()}
    second = {n: [0.0] * len(w) for n, w in values.items()}
    for t, step in enumerate(gradients, start=1):
        grads = {n: [float(x) for x in step[n].ravel()] for n in values if n not in parameters.frozen}
        if clip_norm is not None:
            norm = math.sqrt(math.fsum(x * x for g in grads.values() for x in g))
            factor = min(1.0, clip_norm / (norm + 1e-6))
            grads = {n: [factor * x for x in g] for n, g in grads.items()}
        for n, gs in grads.items():
            for i, g in enumerate(gs):
                w = values[n][i]
                if c["optimizer"] == "AdamW":
                    w = w - c["lr"] * c["weight_decay"] * w
                else:
                    g = g + c["weight_decay"] * w
                if c["optimizer"] == "SGD":
                    u = c["momentum"] * first[n][i] + g
                    direction = g + c["momentum"] * u if c["nesterov"] else u
                    first[n][i], values[n][i] = u, w - c["lr"] * direction
                else:
                    m = c["beta1"] * first[n][i] + (1 - c["beta1"]) * g
                    v = c["beta2"] * second[n][i] + (1 - c["beta2"]) * g * g
                    m_hat, v_hat = m / (1 - c["beta1"] ** t), v / (1 - c["beta2"] ** t)
                    first[n][i], second[n][i] = m, v
                    values[n][i] = w - c["lr"] * m_hat / (math.sqrt(v_hat) + c["eps"])
    return {n: np.reshape(w, SHAPES[n]) for n, w in values.items()}


def distance(got, expected):
    error = math.sqrt(sum(float(((got[n].astype(np.float64) - e) ** 2).sum()) for n, e in expected.items()))
    return error / math.sqrt(sum(float((e**2).sum()) for e in expected.values()))


@pytest.mark.parametrize("clip_norm", [None, 4.0, 1e9])
def test_matches_the_formulas(xp, make, dtype, clip_norm):
    parameters, gradients = start(xp, dtype)
    expected = by_hand(make(), parameters, gradients, clip_norm)
    optimizer = make()
    assert distance(run(optimizer, parameters, gradients, clip_norm), expected) <= TOLERANCE[dtype]
    assert optimizer.step == STEPS
    assert np.count_nonzero(to_numpy(parameters.flat)) <= sum(math.prod(s) for s in SHAPES.values()), (
        "padding stays 0"
    )


@pytest.mark.parametrize("clip_norm", [None, 4.0])
def test_matches_torch(make, clip_norm):
    torch = pytest.importorskip("torch")
    parameters, gradients = start(np, np.float64)
    optimizer = make()
    c = optimizer.config()
    tensors = {n: torch.tensor(w, requires_grad=True) for n, w in parameters.to_numpy().items()}
    if c["optimizer"] == "SGD":
        settings = {key: c[key] for key in ("lr", "momentum", "nesterov", "weight_decay")}
    else:
        settings = {"betas": (c["beta1"], c["beta2"]), **{k: c[k] for k in ("lr", "eps", "weight_decay")}}
    peer = getattr(torch.optim, c["optimizer"])(tensors.values(), **settings)
    tensors["b1"].requires_grad_(False)
    parameters.freeze("b1")
    for step in gradients:
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(step[name]) if name not in parameters.frozen else None
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(tensors.values(), clip_norm)
        peer.step()
    expected = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
    assert distance(run(optimizer, parameters, gradients, clip_norm), expected) <= 1e-14


@pytest.mark.parametrize("clip_norm", [None, 2.0])
def test_frozen_parameters_keep_their_bits(xp, make, dtype, clip_norm):
    parameters, gradients = start(xp, dtype)
    parameters.freeze("W1", "b2")
    before = parameters.to_numpy()
    for step in gradients:
        step["W1"][...] = (
            np.nan
        )  # what stands in a frozen gradient matters neither to the rest nor to the norm
    expected = by_hand(make(), parameters, gradients, clip_norm)
    optimizer = make()
    after = run(optimizer, parameters, gradients, clip_norm)
    for name in ("W1", "b2"):
        assert after[name].tobytes() == before[name].tobytes()
    assert distance(after, expected) <= TOLERANCE[dtype]
    for name, state in optimizer.state_arrays().items():
        if name.endswith((".W1", ".b2")):
            assert not to_numpy(state).any()


def test_clipping_scales_the_whole_gradient_by_one_factor(xp, dtype):
    parameters = FlatParameters({"w": (2,)}, dtype, xp)
    gradient = parameters.like()
    gradient.copy_from({"w": np.array([3.0, 4.0])})
    SGD(1.0).update(parameters, gradient, clip_norm=1.0)
    np.testing.assert_allclose(
        parameters.views["w"], [-3 / (5 + 1e-6), -4 / (5 + 1e-6)], rtol=2 * np.finfo(dtype).eps
    )
    parameters.copy_from({"w": np.zeros(2)})
    SGD(1.0).update(parameters, gradient, clip_norm=5.1)
    np.testing.assert_array_equal(parameters.views["w"], [-3, -4])


def test_the_norm_of_a_huge_float32_gradient_does_not_overflow(xp):
    parameters = FlatParameters({"w": (2,)}, np.float32, xp)
    gradient = parameters.like()
    gradient.copy_from({"w": np.array([3e30, 4e30])})
    SGD(1.0).update(parameters, gradient, clip_norm=1.0)
    np.testing.assert_allclose(parameters.views["w"], [-0.6, -0.8], rtol=1e-6)


def test_a_nan_in_the_gradient_is_not_hidden_by_clipping(xp, dtype):
    parameters, (gradient, *_) = start(xp, dtype)
    gradient["W1"][2, 3] = np.nan
    after = run(SGD(0.1), parameters, [gradient], clip_norm=1.0)
    assert all(np.isnan(w).all() for w in after.values())


def test_bias_corrections_do_not_cancel():
    beta = 1 - 2.0**-40
    assert op._bias_correction(beta, 1) == pytest.approx(2.0**-40, rel=1e-15)
    assert op._bias_correction(0.999, 3) == pytest.approx(1 - 0.999**3, rel=1e-13)
    assert op._bias_correction(0.0, 1) == 1.0


def test_blocks_of_a_large_buffer_meet_without_gap_or_overlap(xp):
    """On the CPU a few blocks; in the kernels more vectors than the largest grid has threads."""
    size = 3 * CPU_BLOCK if xp is np else MAX_BLOCKS * THREADS * 4
    shapes = {"W": (size + 100,), "frozen": (50,), "V": (CPU_BLOCK,)}
    parameters = FlatParameters(shapes, np.float32, xp)
    parameters.freeze("frozen")
    gradient = parameters.like()
    gradient.copy_from({name: np.ones(shape) for name, shape in shapes.items()})
    SGD(1.0).update(parameters, gradient, clip_norm=1e9)
    for name, view in parameters.views.items():
        np.testing.assert_array_equal(view, 0 if name == "frozen" else -1)
    norm = math.sqrt(size + 100 + CPU_BLOCK)
    parameters.copy_from({name: np.zeros(shape) for name, shape in shapes.items()})
    SGD(1.0).update(parameters, gradient, clip_norm=1.0)
    np.testing.assert_allclose(parameters.views["W"], -1 / norm, rtol=2e-7)


@pytest.mark.parametrize("clip_norm", [None, 20.0])
def test_every_order_of_threads_gives_the_same_bits(built, make, dtype, clip_norm):
    shapes = {
        "W1": (90, 40),
        "b1": (40,),
        "W2": (40, 10),
        "b2": (10,),
    }  # several blocks, the last one not full
    results = set()
    schedules = [("forward", 0), ("reverse", 0), ("lifo", 0), *(("random", seed) for seed in range(20))]
    for order, seed in schedules:
        parameters, gradients = start(emulator, dtype, shapes=shapes)
        optimizer = make()
        with emulator.settings(order=order, seed=seed):
            run(optimizer, parameters, gradients[:2], clip_norm)
        states = (to_numpy(array).tobytes() for array in optimizer.state_arrays().values())
        results.add((to_numpy(parameters.flat).tobytes(), *states))
    assert len(results) == 1


def test_launches_and_steps_are_counted(built, monkeypatch):
    """One launch an update, two with clipping; the ticket is left at 0."""
    launched = []
    launch = emulator.launch

    def counted(file, expression, *arguments):
        launched.append(expression)
        launch(file, expression, *arguments)

    monkeypatch.setattr(emulator, "launch", counted)
    parameters, _ = start(emulator, np.float32, shapes={"W": (5000,)})
    optimizer = Adam()
    optimizer.update(parameters, parameters.like())
    assert launched == ["optimizer_update<Adam<float>>"]
    optimizer.update(parameters, parameters.like(), clip_norm=1.0)
    assert launched[1:] == ["gradient_squares<float>", "optimizer_update<Adam<float>>"]
    assert optimizer.step == 2
    assert to_numpy(optimizer._ticket)[0] == 0


def test_emulator_and_cpu_agree(built, make, dtype):
    """Where nothing is contracted the bits would be the same; fused multiply-adds leave a few roundings."""
    shapes = {"W1": (90, 40), "b1": (40,)}
    results = []
    for module in (np, emulator):
        parameters, gradients = start(module, dtype, shapes=shapes)
        parameters.freeze("b1")
        results.append(run(make(), parameters, gradients, clip_norm=50.0))
    expected = {name: value.astype(np.float64) for name, value in results[0].items()}
    assert distance(results[1], expected) <= TOLERANCE[dtype]


def test_state_moves_between_devices(built):
    on_cpu, gradients = start(np, np.float64)
    emulated, _ = start(emulator, np.float64)
    optimizer = Adam(0.01)
    run(optimizer, emulated, gradients[:4])
    on_cpu.copy_from(emulated.views)
    resumed = Adam(0.01)
    resumed.load_state(on_cpu, optimizer.state_arrays())
    expected = {name: w.astype(np.float64) for name, w in run(optimizer, emulated, gradients[4:]).items()}
    assert resumed.step == 4
    assert distance(run(resumed, on_cpu, gradients[4:]), expected) <= TOLERANCE[np.dtype(np.float64)]


def test_gradients_on_another_device_or_unaligned_are_refused(built):
    parameters, _ = start(emulator, np.float32)
    with pytest.raises(TypeError, match="arrays of two kinds"):
        SGD(0.1).update(parameters, np.zeros(320, np.float32))
    with pytest.raises(ValueError, match="gradients: expected contiguous, 16-byte aligned memory"):
        SGD(0.1).update(parameters, emulator.zeros(321, np.float32)[1:])


def test_lr_may_be_set_between_steps(xp, dtype):
    parameters, gradients = start(xp, dtype)
    expected = by_hand(SGD(0.1), parameters, gradients[:1])
    optimizer = SGD(0.7)
    optimizer.lr = 0.1
    assert distance(run(optimizer, parameters, gradients[:1]), expected) <= TOLERANCE[dtype]
    optimizer.lr = 0.0
    assert distance(run(optimizer, parameters, gradients[1:]), expected) <= TOLERANCE[dtype]
    assert repr(optimizer).startswith("SGD(lr=0.0,")


def test_state_goes_out_and_in_again_bit_for_bit(xp, make, dtype):
    whole, gradients = start(xp, dtype)
    expected = run(make(), whole, gradients)
    first, _ = start(xp, dtype)
    optimizer = make()
    run(optimizer, first, gradients[:5])
    state = {name: to_numpy(array).copy() for name, array in optimizer.state_arrays().items()}
    second, _ = start(xp, dtype)
    second.copy_from(first.to_numpy())
    resumed = op.from_config(json.loads(json.dumps(optimizer.config())))
    resumed.load_state(second, state)
    assert resumed.step == 5
    assert repr(resumed) == repr(optimizer)
    for name, value in run(resumed, second, gradients[5:]).items():
        assert value.tobytes() == expected[name].tobytes()


def test_state_that_does_not_fit_is_refused():
    parameters, gradients = start(np, np.float32)
    optimizer = SGD(0.1, momentum=0.9)
    run(optimizer, parameters, gradients[:1])
    state = optimizer.state_arrays()
    with pytest.raises(ValueError, match=r"state of Adam: first_moment\.W1 is missing"):
        Adam().load_state(parameters, state)
    with pytest.raises(ValueError, match=r"state of SGD: momentum\.W1 is unknown"):
        SGD(0.1).load_state(parameters, state)
    with pytest.raises(ValueError, match=r"b1: expected shape \(13,\), got \(12,\)"):
        SGD(0.1, momentum=0.9).load_state(parameters, {**state, "momentum.b1": np.zeros(12)})
    with pytest.raises(ValueError, match="state of SGD: step must be one whole number, 0 or above"):
        SGD(0.1, momentum=0.9).load_state(parameters, {**state, "step": np.array([-1])})


def test_state_belongs_to_one_network(make):
    one, gradients = start(np, np.float32)
    other, _ = start(np, np.float32)
    optimizer = make()
    run(optimizer, one, gradients[:1])
    with pytest.raises(ValueError, match=r"this \w+ holds the state of another network; make a new"):
        optimizer.update(other, other.like())


def test_gradients_that_do_not_fit_are_refused():
    parameters, _ = start(np, np.float32)
    with pytest.raises(
        ValueError, match=r"gradients: expected \(320,\) of float32 .* got \(320,\) of float64"
    ):
        SGD(0.1).update(parameters, np.zeros(320))
    with pytest.raises(ValueError, match=r"gradients: .* got \(319,\) of float32"):
        SGD(0.1).update(parameters, np.zeros(319, np.float32))
    with pytest.raises(ValueError, match="gradients: expected contiguous"):
        SGD(0.1).update(parameters, np.zeros(640, np.float32)[::2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SGD(0), "lr: expected a finite number above 0, got 0"),
        (lambda: SGD(-0.1), "lr: expected a finite number above 0, got -0.1"),
        (lambda: Adam(math.nan), "lr: expected a finite number above 0, got nan"),
        (lambda: AdamW(math.inf), "lr: expected a finite number above 0, got inf"),
        (lambda: SGD("fast"), "lr: expected a finite number above 0, got 'fast'"),
        (lambda: SGD(0.1, momentum=1.0), "momentum: expected a number from 0 up to, but not, 1, got 1.0"),
        (lambda: SGD(0.1, nesterov=True), "nesterov: expected a momentum above 0 with it, got momentum=0"),
        (lambda: SGD(0.1, weight_decay=-1), "weight_decay: expected a finite number, 0 or above, got -1"),
        (lambda: Adam(beta1=-0.1), "beta1: expected a number from 0 up to, but not, 1, got -0.1"),
        (lambda: Adam(beta2=math.nan), "beta2: expected a number from 0 up to, but not, 1, got nan"),
        (lambda: Adam(eps=0), "eps: expected a finite number above 0, got 0"),
        (lambda: setattr(SGD(0.1), "lr", -1), "lr: expected a finite number, 0 or above, got -1"),
        (
            lambda: op.from_config({"optimizer": "RMSprop"}),
            "optimizer: expected one of SGD, Adam, AdamW, got 'RMSprop'",
        ),
        (lambda: op.from_config({"optimizer": "SGD", "lr": 1, "beta": 2}), "optimizer SGD: .*'beta'"),
    ],
)
def test_bad_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("clip_norm", [0, -1, math.nan, "a"])
def test_bad_clip_norms_are_named(clip_norm):
    parameters, _ = start(np, np.float32)
    with pytest.raises(ValueError, match="clip_norm: expected a number above 0, got"):
        SGD(0.1).update(parameters, parameters.like(), clip_norm)


def test_hyperparameters_are_fixed():
    optimizer = Adam(0.01)
    with pytest.raises(AttributeError, match=r"beta1 is fixed; make a new Adam\(beta1=0.5\)"):
        optimizer.beta1 = 0.5
    assert repr(optimizer) == "Adam(lr=0.01, beta1=0.9, beta2=0.999, eps=1e-08, weight_decay=0.0)"
