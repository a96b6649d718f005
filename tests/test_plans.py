"""Plans: what one shows, and what is said to those who ask for what cannot be."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from planned import LAUNCHES, PATHS, data, network, on_emulator
from small_networks import needs_compiler

import handgrad as hg
from handgrad import emulator, gpus
from handgrad.network import MLP
from handgrad.ops.optimizer import SGD, Adam
from handgrad.ops.two_layer import Problem
from handgrad.plans import choice as choice_module
from handgrad.plans import model, plan, training
from handgrad.plans.choice import choose
from handgrad.plans.problems import nearest_architecture

pytestmark = needs_compiler
KEYS = {
    *("path", "launches_per_step", "launches_per_epoch", "kernels", "partitions", "workspace_bytes"),
    *("traffic", "predicted_seconds", "reason", "tiling", "measured"),
}


@pytest.fixture(autouse=True)
def unsaid(monkeypatch):
    monkeypatch.setattr(training, "_said", set())


# ---- asking for what cannot be ---------------------------------------------------------------------------


def test_asking_for_a_path_that_cannot_takes_the_next_and_says_so(capsys):
    net = network("R1", (20, 300, 3))
    shown = plan(net, 45)
    assert shown.path != "R1"
    assert shown.reason.startswith("R1 was asked for, but H = 300 is above")
    X, y = on_emulator(*data())
    for _ in range(2):
        net.loss_and_grad(X, y)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, "once, in one line"
    assert lines[0].startswith("handgrad: R1 was asked for, but H = 300 is above")
    assert lines[0].endswith(f"; {choose(plan(net, 45).layout.problem).layout.path} runs instead")


def test_a_precision_that_the_architecture_lacks_gives_way_to_float32(capsys):
    with emulator.settings(arch="sm_75"):
        net = network(precision="tf32")
        shown = plan(net, 45)
        assert shown.layout.problem.precision == "float32"
        assert shown.reason.startswith("precision tf32 was asked for, but ")
        assert "sm_75" in shown.reason
        net.loss_and_grad(*on_emulator(*data()))
    assert "float32 runs instead" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "R5"}, "path: expected one of R1, R2, R3, R4, ops, or None to have it chosen, got 'R5'"),
        ({"matmul": "mkl"}, "matmul: expected one of auto, kernels, cublas, got 'mkl'"),
        ({"matmul": "cublas"}, "matmul: expected 'kernels' on emulator, got 'cublas'; it needs a GPU"),
        (
            {"precision": "fp8"},
            "precision: with dtype float32, expected float32 or tf32 or 3xtf32 or bfloat16",
        ),
    ],
)
def test_a_network_with_a_wrong_setting_is_refused(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        network(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected a whole number, 1 or more, got 0"),
        ({"samples": 1.5}, "samples: expected a whole number, 1 or more, got 1.5"),
        ({"gpu": "abacus"}, "gpu: expected one of A100, H100, RTX 4090, L4, got 'abacus'"),
        ({"path": "R9"}, "path: expected one of R1, R2, R3, R4, got 'R9'"),
        ({"path": "ops"}, "path: 'ops' runs the layer functions .*, without a plan; expected one of R1, R2"),
        ({"gpu": 3}, "gpu: expected one of A100, H100, RTX 4090, L4, got 3"),
        ({"clip_norm": -1.0}, "clip_norm: expected a number above 0, got -1.0"),
        ({"clip_norm": float("nan")}, "clip_norm: expected a number above 0, got nan"),
        ({"clip_norm": "a"}, "clip_norm: expected a number above 0, got 'a'"),
        ({"inputs": "int8"}, "inputs: expected float32 or uint8, got 'int8'"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan(network(device="cpu"), **({"batch_size": 8} | arguments))


def test_other_kinds_of_arguments_are_named():
    net = network(device="cpu")
    with pytest.raises(TypeError, match="optimizer: expected an SGD, Adam or AdamW object, got 'adam'"):
        plan(net, 8, optimizer="adam")
    with pytest.raises(TypeError, match=r"net: expected a network, as MLP\(\[D, H, C\]\), got None"):
        plan(None, 8)


def test_a_network_that_trains_without_a_plan_has_none():
    with pytest.raises(ValueError, match="'ops' runs the layer functions"):
        plan(network("ops"), 8)


def test_a_later_path_that_is_predicted_much_faster_is_named():
    """With both times, on the GPU that stands for the architecture."""
    net = network(device="cpu", sizes=(784, 50, 10))
    for gpu, arch in (("A100", "sm_80"), ("H100", "sm_90")):
        shown = plan(net, 16, epoch=False, gpu=gpu)
        assert shown.path == "R1"
        found = re.fullmatch(
            rf"R1 is the first that can; R3 is predicted faster, ([\d.]+) against ([\d.]+) µs on (.+), which "
            rf"stands for {arch} \(predicted, not measured; handgrad.tune measures\)",
            shown.reason,
        )
        assert found, shown.reason
        for text, path in zip(found.groups(), ("R3", "R1"), strict=False):
            other = plan(net, 16, epoch=False, gpu=found[3], path=path)
            assert float(text) == pytest.approx(other.predictions[found[3]].seconds * 1e6, abs=0.06)
    assert plan(net, 50_000, epoch=False).reason == "R1 is the first that can", "nothing is much faster"


def test_a_plan_is_for_two_layers():
    with pytest.raises(ValueError, match="plan: expected a network of two layers, as MLP"):
        plan(MLP([4, 3, 2, 1], device="cpu"), 8)


# ---- what a plan shows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_a_plan_has_the_keys_that_are_promised(path):
    shown = hg.plan(network(path, device="cpu"), 45, samples=100, path=path)
    row = shown.to_dict()
    assert set(row) == KEYS
    assert row["path"] == path, row["reason"]
    assert row["launches_per_step"] == LAUNCHES[path]
    assert row["launches_per_epoch"] == (1 if path == "R2" else 3 * (LAUNCHES[path] + 2))
    assert row["partitions"] >= 1
    assert row["workspace_bytes"] == shown.workspace_bytes > 0
    assert set(row["predicted_seconds"]) == {gpu.name for gpu in gpus.GPUS}
    assert all(0 < seconds < 1 for seconds in row["predicted_seconds"].values())
    assert {frozenset(one) for one in row["traffic"].values()} == {frozenset(("compulsory", "expected"))}
    assert row["traffic"]["X"]["compulsory"] in (45 * 20 * 4, 2 * 45 * 20 * 4)
    assert len(row["kernels"]) == (1 if path == "R2" else LAUNCHES[path])
    assert json.loads(json.dumps(row)) == row
    text = str(shown)
    assert "predicted, not measured" in text
    assert row["tiling"] == shown.layout.tiling.name
    assert row["measured"] is False
    words = (f"plan {path}", "A100", "S = ", "bytes of dynamic shared memory", row["reason"], row["tiling"])
    for word in words:
        assert word in text
    assert all(0 < share <= 1 for share in shown.wave_efficiency.values())


def test_a_named_gpu_is_planned_for():
    net = network(device="cpu")
    for gpu in gpus.GPUS:
        problem = plan(net, 50_000, gpu=gpu.name).layout.problem
        assert (problem.arch, problem.sms) == (gpu.arch, gpu.sms)
    assert plan(net, 50_000).layout.problem.sms == 108
    with emulator.settings(arch="sm_90", sms=132):
        problem = plan(network(), 50_000).layout.problem
        assert (problem.arch, problem.sms) == ("sm_90", 132)


@pytest.mark.parametrize(
    ("arch", "known"),
    [("sm_75", "sm_75"), ("sm_87", "sm_86"), ("sm_90", "sm_90"), ("sm_103", "sm_100"), ("sm_121", "sm_120")],
)
def test_an_architecture_that_is_not_known_counts_as_the_one_before_it(arch, known):
    assert nearest_architecture(arch) == known
    assert choice_module.gpu_like(Problem(4, 3, 2, 1, arch=known)) in gpus.GPUS


def test_an_architecture_that_is_too_old_is_refused():
    with pytest.raises(ValueError, match="device: expected a GPU of sm_75 or newer, got sm_70"):
        nearest_architecture("sm_70")


def test_partitions_come_from_the_shape_alone():
    for path in PATHS:
        found = {
            plan(network(device="cpu"), N, path=path, gpu=gpu).partitions for N in (45,) for gpu in gpus.GPUS
        }
        assert len(found) == 1, path


def test_the_optimizer_and_clipping_decide_the_last_launch():
    net = network(device="cpu")
    assert plan(net, 45, optimizer=Adam()).layout.problem.rule == "Adam"
    assert plan(net, 45, optimizer=SGD(0.1, momentum=0.5)).layout.problem.rule == "Momentum"
    clipped = plan(net, 45, optimizer=Adam(), clip_norm=1.0)
    assert clipped.layout.problem.rule == "Store"
    assert clipped.launches_per_step == len(clipped.kernels) + 2


def test_slices_that_no_cache_holds_are_moved_every_step():
    """R2 with weights of 65 MB, more than the L2 of an H100: read twice and written once a step."""
    net = network(device="cpu", sizes=(784, 20_000, 10))
    shown = plan(net, 64, path="R2", gpu="H100")
    slices = shown.layout.workspace["epoch.slices"]
    assert slices > gpus.find_gpu("H100").l2_bytes
    compulsory = sum(shown.layout.compulsory.values())
    assert shown.predictions["H100"].dram == pytest.approx((compulsory + 3 * slices) / 3.35e12)


def test_the_wave_efficiency_is_that_of_the_rounds():
    """R1: S partitions in rounds of as many blocks as are resident; R4: blocks of its largest launch."""
    net = network(device="cpu", sizes=(784, 50, 1), loss="mse")
    for gpu, sms in (("A100", 108), ("H100", 132), ("L4", 58)):
        shown = plan(net, 50_000, path="R1", gpu=gpu)
        (blocks,) = shown.kernels[0].grid
        S = shown.partitions
        assert blocks <= min(S, 2 * sms)
        slots = blocks if blocks < S else sms * -(-blocks // sms)
        assert shown.wave_efficiency[gpu] == pytest.approx(S / (-(-S // slots) * slots))
    shown = plan(network(device="cpu", sizes=(784, 512, 10)), 8192, path="R4", gpu="H100")
    (blocks,) = (int(np.prod(one.grid)) for one in shown.kernels if one.name == "general_weight")
    assert shown.wave_efficiency["H100"] == blocks / (-(-blocks // 132) * 132)


@pytest.mark.parametrize(("path", "C"), [("R3", 10), ("R4", 10), ("R4", 100)])
def test_each_launch_computes_with_the_share_of_the_chip_that_it_keeps_busy(path, C):
    """By hand: X W1 in the first launch, dW1 in the launch of most blocks, and what the output takes."""
    N, D, H = 300, 784, 64
    shown = plan(network(device="cpu", sizes=(D, H, C)), N, path=path, gpu="H100")
    products = {one.name: one.operations for one in shown.kernels}
    X, output = 2 * N * D * H, 2 * N * H * C
    if path == "R3":
        expected = {"pair_forward": X + 3 * output, "pair_backward": X}
    elif C == 10:  # dZ1 is computed again for every tile along D
        tiles = -(-D // int(shown.tiling.split("weight ")[1].split("x")[0]))
        expected = {"general_hidden": X, "general_output": output, "general_weight": X + (1 + tiles) * output}
    else:
        expected = {"general_hidden": X, "general_output_wide": 2 * output, "general_weight": X + output}
    assert {name: count for name, count in products.items() if count} == expected
    blocks = {one.name: int(np.prod(one.grid)) for one in shown.kernels}
    shares = {name: n / (-(-n // 132) * 132) for name, n in blocks.items()}
    seconds = sum(
        count / (gpus.find_gpu("H100").rate("float32") * shares[name]) for name, count in expected.items()
    )
    assert shown.predictions["H100"].arithmetic == pytest.approx(seconds)
    assert shown.predictions["H100"].utilization == max(shares.values())


def test_the_model_adds_up():
    """Twice the samples take about twice the time, where that is not the launches'."""
    net = network(device="cpu", sizes=(784, 50, 1), loss="mse")
    small, large = (plan(net, N, path="R1").predictions["H100"] for N in (200_000, 400_000))
    assert 1.8 < large.seconds / small.seconds < 2.2
    one = plan(net, 50_000, path="R1")
    layout, gpu = one.layout, gpus.find_gpu("A100")
    assert model.predict(layout, gpu).dram == sum(layout.compulsory.values()) / 1.555e12
    assert model.predict(layout, gpu).arithmetic == pytest.approx(layout.operations / 19.5e12)
    assert layout.operations == 4 * 50_000 * 784 * 50 + 6 * 50_000 * 50
    captured, launched = model.predict(layout, gpu), model.predict(layout, gpu, captured=False)
    assert launched.seconds - captured.seconds == pytest.approx(2 * (3e-6 - 1.5e-6))
    assert "predicted, not measured" in str(captured)
