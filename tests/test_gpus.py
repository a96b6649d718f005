"""Predicted times: the table of peaks against the GPUs' make, the formula against figures by hand."""

import math

import pytest

from handgrad import gpus
from handgrad.gpus import GPUS, LABEL, Gpu, predict, predicted_seconds
from handgrad.proof.machine_code import ARCHITECTURES

NAMES = [one.name for one in GPUS]

# One step of 50,000 x 784 -> 50 -> 1: 4NDH + 6NHC operations; X and y read once, parameters aside.
OPERATIONS = 4 * 50_000 * 784 * 50 + 6 * 50_000 * 50 * 1
BYTES = 50_000 * (4 * 784 + 4 * 1)


def test_the_four_gpus_are_there():
    assert NAMES == ["A100", "H100", "RTX 4090", "L4"]
    assert [one.arch for one in GPUS] == ["sm_80", "sm_90", "sm_89", "sm_89"]
    assert {one.arch for one in GPUS} <= set(ARCHITECTURES)


@pytest.mark.parametrize("gpu", GPUS, ids=NAMES)
def test_float32_is_a_multiply_add_a_lane_and_cycle(gpu):
    assert gpu.float32 == pytest.approx(gpu.sms * gpu.lanes * 2 * gpu.clock, rel=0.005)


@pytest.mark.parametrize("gpu", GPUS, ids=NAMES)
def test_rates_of_the_precisions(gpu):
    share = {"A100": 1 / 2, "H100": 1 / 2, "RTX 4090": 1 / 64, "L4": 1 / 64}[gpu.name]  # float64 units
    assert gpu.rate("float64") == pytest.approx(gpu.float32 * share, rel=0.01)
    assert gpu.rate("bfloat16") == pytest.approx(2 * gpu.rate("tf32"), rel=0.01)
    assert gpu.rate("3xtf32") == pytest.approx(gpu.rate("tf32") / 3)
    tf32 = {"A100": 8, "H100": 7.4, "RTX 4090": 1, "L4": 2}[gpu.name]  # times the float32 rate
    assert gpu.rate("tf32") == pytest.approx(gpu.float32 * tf32, rel=0.015)


@pytest.mark.parametrize(
    ("gpu", "arithmetic", "memory"),
    [("A100", 403, 101), ("H100", 117, 47), ("RTX 4090", 95, 156), ("L4", 259, 523)],
)
def test_one_step_worked_out_by_hand(gpu, arithmetic, memory):
    """Microseconds of the step above, from operations / rate and bytes / bandwidth."""
    found = predict(BYTES, OPERATIONS, 2, gpu)
    assert found.arithmetic * 1e6 == pytest.approx(arithmetic, abs=1)
    assert found.memory * 1e6 == pytest.approx(memory, abs=1)
    assert found.launches == pytest.approx(6e-6)
    assert found.bound == ("arithmetic" if arithmetic > memory else "memory")
    assert found.seconds == max(found.arithmetic, found.memory) + found.launches
    assert predicted_seconds(BYTES, OPERATIONS, 2, gpu) == found.seconds


def test_the_formula_on_round_numbers():
    made_up = Gpu("made up", "sm_80", 1, 1, 1.0, 100.0, 0, 5.0, 10.0, 30.0, 60.0, launch_seconds=0.5)
    assert predicted_seconds(1000, 20, 3, made_up) == 10 + 1.5  # memory
    assert predicted_seconds(1000, 200, 3, made_up) == 20 + 1.5  # arithmetic
    assert predicted_seconds(1000, 200, 3, made_up, "tf32") == 10 + 1.5
    assert predicted_seconds(1000, 200, 3, made_up, "3xtf32") == 20 + 1.5
    assert predicted_seconds(0, 200, 0, made_up, "float64") == 40
    assert predicted_seconds(0, 200, 0, made_up, "bfloat16") == pytest.approx(200 / 60)
    assert predict(1, 1, 100, made_up).bound == "launches"
    assert predicted_seconds(0, 0, 0, made_up) == 0


def test_it_always_says_that_it_is_predicted():
    assert LABEL == "predicted, not measured"
    assert str(predict(BYTES, OPERATIONS, 2, "H100")) == (
        "123.4 µs on H100 in float32, bound by arithmetic (predicted, not measured)"
    )


@pytest.mark.parametrize("name", ["rtx 4090", "RTX4090", "4090"])
def test_names_are_taken_as_one_writes_them(name):
    assert gpus.find_gpu(name).name == "RTX 4090"


def test_mistakes():
    with pytest.raises(ValueError, match="gpu: expected one of A100, H100, RTX 4090, L4, got 'V100'"):
        predicted_seconds(1, 1, 1, "V100")
    with pytest.raises(ValueError, match=r"precision: expected one of float64, .*, bfloat16, got 'fp8'"):
        predicted_seconds(1, 1, 1, "L4", "fp8")
    for bad in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="bytes: expected a finite number, 0 or above"):
            predicted_seconds(bad, 1, 1, "L4")
        with pytest.raises(ValueError, match="operations: expected"):
            predicted_seconds(1, bad, 1, "L4")
        with pytest.raises(ValueError, match="launches: expected"):
            predicted_seconds(1, 1, bad, "L4")
