"""``handgrad explain``: a new network, a run, warnings, refusals."""

from pathlib import Path

import numpy as np
import pytest
from command_line import refused, report, succeeds

from handgrad import datasets
from handgrad.gradients.explain import explain
from handgrad.network import MLP


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_verb_explains_a_new_network(folder):
    text = succeeds("explain", "--device", "cpu", "--hidden", "20", "--picture", "net.png", "--samples", "64")
    assert "784 → 20 relu → 10, cross_entropy (mean)" in text
    assert "on 64 samples (the test part of mnist-subset)" in text
    assert "picture: net.png" in text
    assert (folder / "net.png").read_bytes().startswith(b"\x89PNG")
    found = report("explain", "--device", "cpu", "--hidden", "20", "--samples", "64")
    assert found["picture"] is None
    assert [quantity["name"] for quantity in found["quantities"]][:3] == ["X", "W1", "b1"]
    for quantity in found["quantities"]:
        assert quantity["name"] in text
    test = datasets.load().test.head(64)
    net = MLP([784, 20, 10], loss="cross_entropy", device="cpu")
    assert found["loss"] == pytest.approx(explain(net, test).loss, rel=1e-6)


def test_the_verb_explains_a_run(folder):
    report(
        "train",
        "--limit",
        "300",
        "--epochs",
        "1",
        "--hidden",
        "16",
        "--device",
        "cpu",
        "--no-plot",
        "--out",
        "run",
    )
    found = report("explain", "run", "--device", "cpu")
    assert found["picture"] == "run/explain.png"
    assert (folder / "run" / "explain.png").exists()
    assert found["samples"] == 256
    assert found["network"] == "784 → 16 relu → 10, cross_entropy (mean)"
    bare = report("explain", "run/weights.safetensors", "--data", "mnist-subset", "--device", "cpu")
    assert (bare["loss"], bare["picture"]) == (found["loss"], None)


@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("kind", ["npy", "npz", "csv"])
def test_a_new_network_sees_all_of_data_without_a_test_part(folder, kind, count):
    X = np.random.default_rng(0).standard_normal((count, 3))
    y = np.arange(count) * 2 // count  # sorted: of mapped files no test part could be held out
    np.save("X.npy", X)
    np.save("y.npy", y)
    np.savez("d.npz", X=X, y=y)
    np.savetxt("d.csv", np.column_stack([X, y]), delimiter=",", fmt="%.17g")
    spec = "X.npy,y.npy" if kind == "npy" else f"d.{kind}"
    found = report("explain", "--data", spec, "--classes", "2", "--device", "cpu", "--hidden", "4")
    assert (found["samples"], found["data"]) == (count, f"all samples of {spec}")
    net = MLP([3, 4, 2], loss="cross_entropy", device="cpu")
    assert found["loss"] == pytest.approx(explain(net, X.astype("float32"), y).loss, rel=1e-6)


def test_the_verb_warns_of_unscaled_data(folder):
    rng = np.random.default_rng(0)
    np.savez("raw.npz", X=1000 * rng.normal(size=(40, 3)), y=rng.normal(size=40))
    text = succeeds("explain", "--data", "raw.npz", "--device", "cpu", "--activation", "tanh")
    assert "unscaled-inputs (X): the root mean square of X is" in text
    assert "try: standardise each feature" in text
    assert "saturated-units (A1)" in text


def test_wrong_calls_of_the_verb(folder):
    report(
        "train",
        "--limit",
        "300",
        "--epochs",
        "1",
        "--hidden",
        "16",
        "--device",
        "cpu",
        "--no-plot",
        "--out",
        "run",
    )
    assert "--hidden" in refused("explain", "run", "--hidden", "5")
    assert "--task" in refused("explain", "run", "--task", "regression")
    assert "give --data" in refused("explain", "run/weights.safetensors")
    assert "--picture" in refused("explain", "--picture", "nowhere/net.png", "--device", "cpu")
    assert "does not exist" in refused("explain", "nothing")
    assert "--samples" in refused("explain", "--samples", "0")
    np.savez("other.npz", X=np.zeros((40, 3)), y=np.zeros(40))
    assert "the network takes 784" in refused("explain", "run", "--data", "other.npz", "--device", "cpu")
