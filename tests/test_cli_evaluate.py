"""``handgrad evaluate`` and ``handgrad predict`` after a training."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import handgrad, refused, report, succeeds

from handgrad import checkpoint, datasets


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the first 500 digits."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    succeeds(
        "train",
        "--limit",
        "500",
        "--epochs",
        "3",
        "--hidden",
        "32",
        "--device",
        "cpu",
        "--no-plot",
        "--out",
        folder,
    )
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, tmp_path / "run")).relative_to(tmp_path)


def probabilities(run: Path, X: np.ndarray) -> np.ndarray:
    """Softmax outputs in float64, by bare NumPy."""
    w = {
        name: value.astype(float)
        for name, value in checkpoint.load(run / "weights.safetensors", "cpu").parameters.items()
    }
    z = np.maximum(X @ w["W1"] + w["b1"], 0) @ w["W2"] + w["b2"]
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_evaluate_repeats_the_figures_of_the_training(run):
    found = report("evaluate", run, "--device", "cpu")
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert found["accuracy"] == last["validation_accuracy"]
    assert found["loss"] == last["validation_loss"]
    assert found["samples"] == 500
    assert found["data"] == "the test part of mnist-subset"


def test_evaluate_counts_as_numpy_does(run):
    found = report("evaluate", run, "--device", "cpu", "--limit", "200")
    test = datasets.load("mnist-subset").test.head(200)
    chosen = probabilities(run, test.X / 255).argmax(axis=1)
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (test.y, chosen), 1)
    assert found["confusion"] == confusion.tolist()
    assert found["accuracy"] == np.mean(chosen == test.y)
    for label, share in enumerate(found["class_accuracy"]):
        assert share == np.mean(chosen[test.y == label] == label)
    assert (run / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert found["picture"] == str(run / "confusion.png")


def test_evaluate_prints_a_row_a_class(run):
    lines = succeeds("evaluate", run, "--device", "cpu").splitlines()
    assert lines[0].startswith("accuracy ")
    assert "on 500 samples (the test part of mnist-subset), device cpu" in lines[0]
    assert sum(line.startswith("│") for line in lines) == 10
    assert lines[-1] == "confusion matrix: run/confusion.png"


def test_evaluate_on_other_data_takes_their_test_part_or_all(run):
    split = datasets.load("mnist-subset")
    X, y = split.test.X[:60], split.test.y[:60]
    np.savez("all.npz", X=X, y=y)
    np.savez("parts.npz", X_train=X[:40], y_train=y[:40], X_test=X[40:], y_test=y[40:])
    chosen = probabilities(run, X / 255).argmax(axis=1)
    found = report("evaluate", run, "--data", "all.npz", "--device", "cpu")
    assert found["data"] == "all samples of all.npz"
    assert found["accuracy"] == pytest.approx(np.mean(chosen == y))
    found = report("evaluate", run, "--data", "parts.npz", "--device", "cpu")
    assert found["data"] == "the test part of parts.npz"
    assert found["accuracy"] == pytest.approx(np.mean(chosen[40:] == y[40:]))


def test_a_file_that_was_trained_on_is_evaluated_on_its_held_out_part(run):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((100, 3))
    np.savetxt("d.csv", np.column_stack([X, X[:, 0] > 0]), delimiter=",", fmt="%.6g")
    trained = report(
        "train", "--data", "d.csv", "--epochs", "3", "--no-plot", "--device", "cpu", "--out", "other"
    )
    for spec in ((), ("--data", "d.csv"), ("--data", Path("d.csv").absolute())):
        found = report("evaluate", "other", *spec, "--device", "cpu")
        assert found["samples"] == 20
        assert found["loss"] == trained["test_loss"]


def write_columns(path: str, columns: dict[str, np.ndarray], header: bool = True) -> str:
    names = ",".join(columns) if header else ""
    np.savetxt(path, np.column_stack(list(columns.values())), "%.9g", ",", header=names, comments="")
    return path


@pytest.fixture
def named(run) -> dict[str, np.ndarray]:
    """Columns a, b, label, on which the run ``named`` was trained, and others beside them."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 200))
    columns = {"a": a, "b": b, "label": (a > 3 * b).astype(float)}
    data = write_columns("abl.csv", columns)
    succeeds("train", "--data", data, "--epochs", "5", "--no-plot", "--device", "cpu", "--out", "named")
    return columns | {"id": np.arange(200.0), "outcome": columns["label"], "c": 10 * rng.standard_normal(200)}


def test_columns_are_found_by_the_names_of_the_training(named):
    described = json.loads(Path("named/config.json").read_text())["data"]
    assert described["feature_names"] == ["a", "b"]
    assert described["target_name"] == "label"
    own = report("evaluate", "named", "--device", "cpu")
    assert own["accuracy"] > 0.8
    succeeds("predict", "named", "abl.csv", "--out", "own.npy", "--device", "cpu")
    for names in ("b a label", "label b a", "id b label a c", "label c a b y"):
        data = write_columns("other.csv", {name: named.get(name, named["c"]) for name in names.split()})
        found = report("evaluate", "named", "--data", data, "--device", "cpu")
        succeeds("predict", "named", data, "--out", "p.npy", "--device", "cpu")
        np.testing.assert_array_equal(np.load("p.npy"), np.load("own.npy"), err_msg=names)
        right = np.load("own.npy").argmax(axis=1) == named["label"]
        assert found["accuracy"] == pytest.approx(right.mean()), names
    for names in ("b a", "id a b", "b c id a"):
        data = write_columns("other.csv", {name: named[name] for name in names.split()})
        succeeds("predict", "named", data, "--out", "p.npy", "--device", "cpu")
        np.testing.assert_array_equal(np.load("p.npy"), np.load("own.npy"), err_msg=names)
    abl = {name: named[name] for name in ("a", "b", "label")}
    counted = {"0": named["a"], "1": named["b"], "": named["c"]}
    for columns, header in ((abl, False), (counted, True)):  # no names: by place
        data = write_columns("other.csv", columns, header)
        succeeds("predict", "named", data, "--out", "p.npy", "--device", "cpu")
        np.testing.assert_array_equal(np.load("p.npy"), np.load("own.npy"))


def test_columns_that_are_missing_are_named(named):
    remedy = "; name the columns as in the training"
    for verb, names, words in (
        ("predict", "a c", f"no column named b (the header has a, c){remedy}"),
        ("predict", "id c label", f"no column named a, b (the header has id, c, label){remedy}"),
        ("evaluate", "a b outcome", f"no column named label (the header has a, b, outcome){remedy}"),
    ):
        data = write_columns("other.csv", {name: named[name] for name in names.split()})
        line = refused(verb, "named", *(("--data",) if verb == "evaluate" else ()), data, "--device", "cpu")
        assert line == f"error: other.csv: {words}"
    Path("other.csv").write_text("a,b,a\n1,2,3\n")
    line = refused("predict", "named", "other.csv", "--device", "cpu")
    assert line == "error: other.csv: more than one column named a; keep the one of the training"


def test_a_target_chosen_by_its_number_is_found_by_its_name(named):
    data = write_columns("lba.csv", {name: named[name] for name in ("outcome", "b", "a")})
    words = ("--epochs", "5", "--no-plot", "--device", "cpu", "--out", "first")
    succeeds("train", "--data", data, "--target", "0", *words)
    data = write_columns("abo.csv", {name: named[name] for name in ("a", "b", "outcome")})
    assert report("evaluate", "first", "--data", data, "--device", "cpu")["accuracy"] > 0.8


def test_a_run_without_names_goes_by_place(named):
    config = Path("named/config.json")
    content = json.loads(config.read_text())
    for name in ("feature_names", "target_name"):  # as an older handgrad wrote it
        del content["data"][name]
    config.write_text(json.dumps(content))
    data = write_columns("other.csv", {"u": named["a"], "v": named["b"], "w": named["label"]})
    succeeds("predict", "named", data, "--out", "p.npy", "--device", "cpu")
    succeeds("predict", "named", "abl.csv", "--out", "own.npy", "--device", "cpu")
    np.testing.assert_array_equal(np.load("p.npy"), np.load("own.npy"))


def test_a_bare_weights_file_needs_data_and_writes_a_picture_where_told(run):
    weights = run / "weights.safetensors"
    assert "--data" in refused("evaluate", weights)
    found = report("evaluate", weights, "--data", "mnist-subset", "--limit", "50", "--device", "cpu")
    assert found["picture"] is None
    found = report(
        "evaluate",
        weights,
        "--data",
        "mnist-subset",
        "--limit",
        "50",
        "--device",
        "cpu",
        "--picture",
        "c.png",
    )
    assert Path("c.png").is_file()


def test_regression_has_a_loss_alone(run):
    X = np.random.default_rng(0).standard_normal((50, 2))
    np.savetxt("line.csv", np.column_stack([X, X @ [1.5, 0.5]]), delimiter=",", fmt="%.6g")
    trained = report(
        "train", "--data", "line.csv", "--epochs", "5", "--no-plot", "--device", "cpu", "--out", "line"
    )
    found = report("evaluate", "line", "--device", "cpu")
    assert found["loss"] == trained["test_loss"]
    assert found["accuracy"] is None
    assert found["confusion"] is None
    assert not Path("line/confusion.png").exists()
    assert refused("evaluate", "line", "--picture", "line.png", "--device", "cpu") == (
        "error: --picture: expected none with a regression, which has no confusion matrix, got line.png; "
        "leave it out"
    )
    assert not Path("line.png").exists()
    succeeds("predict", "line", "line.csv", "--out", "y.csv", "--device", "cpu")
    rows = list(csv.reader(Path("y.csv").read_text().splitlines()))
    assert rows[0] == ["sample", "y0"]
    assert len(rows) == 51


@pytest.mark.parametrize("label", [14, -1, 1.5])
@pytest.mark.parametrize("verb", ["evaluate", "explain"])
def test_a_label_that_the_network_lacks_is_told_without_options_that_there_are_not(run, verb, label):
    np.savez("other.npz", X=datasets.load().test.X[:5], y=np.array([0, 1, 2, 3, label]))
    named = "1.5" if label == 1.5 else f"label {label}"
    assert refused(verb, run, "--data", "other.npz", "--device", "cpu") == (
        f"error: other.npz: y: row 4 is {named}, but the network has 10 classes, 0 to 9; "
        "give data like that of the training"
    )


def test_samples_need_not_show_every_class(run):
    test = datasets.load().test
    sevens = np.flatnonzero(test.y == 7)[:20]
    np.savez("sevens.npz", X=test.X[sevens], y=test.y[sevens])
    found = report("evaluate", run, "--data", "sevens.npz", "--device", "cpu")
    assert found["accuracy"] == np.mean(probabilities(run, test.X[sevens] / 255).argmax(axis=1) == 7)
    assert found["class_accuracy"] == [found["accuracy"] if label == 7 else None for label in range(10)]


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_whole_numbers_are_numbers_to_a_network_of_numbers(run, loss):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((30, 2)), rng.random(30)
    np.savez("floats.npz", X=X, y=y)
    options = ("--no-plot", "--quiet", "--device", "cpu")
    succeeds("train", "--data", "floats.npz", "--loss", loss, "--epochs", "2", *options, "--out", "numbers")
    whole = np.ones(30, int) if loss == "bce" else 5 * np.arange(30)
    np.savez("whole.npz", X=X, y=whole)
    np.savez("same.npz", X=X, y=whole.astype(float))
    found = report("evaluate", "numbers", "--data", "whole.npz", "--device", "cpu")
    assert found["loss"] == report("evaluate", "numbers", "--data", "same.npz", "--device", "cpu")["loss"]


def test_predictions_agree_with_numpy(run):
    succeeds("predict", run, "mnist-subset", "--limit", "70", "--batch-size", "32", "--device", "cpu")
    rows = list(csv.DictReader(Path("predictions.csv").read_text().splitlines()))
    wanted = probabilities(run, datasets.load("mnist-subset").test.X[:70] / 255)
    assert [int(row["sample"]) for row in rows] == list(range(70))
    assert [int(row["class"]) for row in rows] == wanted.argmax(axis=1).tolist()
    found = np.array([[float(row[f"probability_{label}"]) for label in range(10)] for row in rows])
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_predictions_for_features_alone(run):
    X = datasets.load("mnist-subset").test.X[:25]
    wanted = probabilities(run, X / 255)
    np.save("X.npy", X)
    np.savez("X.npz", X=X)
    np.savetxt("X.csv", X / 255, delimiter=",", fmt="%.9g")
    for name in ("X.npy", "X.npz", "X.csv"):
        found = report("predict", run, name, "--out", "p.npy", "--device", "cpu")
        assert found["samples"] == 25
        np.testing.assert_allclose(np.load("p.npy"), wanted, atol=1e-5)


def test_dark_pixels_are_scaled_as_in_the_training(run):
    """uint8 samples with no value above 1 look like flags by themselves; the run knows them for pixels."""
    X = np.ones((3, 784), np.uint8)
    np.save("X.npy", X)
    succeeds("predict", run, "X.npy", "--out", "p.npy", "--device", "cpu")
    np.testing.assert_allclose(np.load("p.npy"), probabilities(run, X / 255), atol=1e-5)


def test_a_failed_prediction_leaves_the_earlier_file(run):
    Path("predictions.csv").write_text("earlier")
    np.save("X.npy", np.ones((3, 5), np.float32))
    line = refused("predict", run, "X.npy", "--device", "cpu")
    assert "5" in line
    assert "784" in line
    assert Path("predictions.csv").read_text() == "earlier"
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["X.npy", "predictions.csv", "run"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("predict", "run", "mnist-subset", "--out", "p.txt"), ("--out", ".csv or .npy", "p.txt")),
        (("predict", "run", "mnist-subset", "--out", "no/p.csv"), ("--out", "no/p.csv", "mkdir")),
        (("predict", "run", "nowhere.npy"), ("nowhere.npy",)),
        (("predict", "nowhere", "mnist-subset"), ("RUN", "nowhere")),
        (("evaluate", "run", "--picture", "no/c.png"), ("--picture", "no/c.png")),
        (("evaluate", "run", "--data", "nowhere"), ("nowhere",)),
        (("evaluate", "empty"), ("RUN", "weights.safetensors", "empty")),
        (("evaluate", "text.safetensors", "--data", "mnist-subset"), ("text.safetensors",)),
    ],
)
def test_a_wrong_call_is_told_in_one_line(run, arguments, words):
    Path("empty").mkdir()
    Path("text.safetensors").write_text("no weights")
    line = refused(*arguments, "--device", "cpu")
    for word in words:
        assert word in line


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_damaged_config_is_told_in_one_line(run, content):
    (run / "config.json").write_text(content, encoding="latin-1")
    assert "config.json" in refused("evaluate", run, "--device", "cpu")


def test_damaged_weights_are_told_in_one_line(run):
    weights = run / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "weights.safetensors" in refused("evaluate", run, "--device", "cpu")


def test_the_emulator_gives_the_same_report(run):
    cpu, emulated = (
        report("evaluate", run, "--device", device, "--limit", "40") for device in ("cpu", "emulator")
    )
    assert emulated["device"] == "emulator"
    assert emulated["loss"] == pytest.approx(cpu["loss"], rel=1e-5)
    assert emulated["confusion"] == cpu["confusion"]


def test_quiet_stderr_with_json(run):
    result = handgrad("evaluate", run, "--device", "cpu", "--json")
    assert result.stdout.count("\n") == 1
    assert "accuracy" in result.stderr
