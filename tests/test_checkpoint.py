"""Checkpoints: round trips bit for bit, atomic writing, damaged and foreign files."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from small_networks import needs_compiler

from handgrad import checkpoint
from handgrad.arrays import to_device, to_numpy
from handgrad.checkpoint import CheckpointError
from handgrad.network import MLP
from handgrad.ops.optimizer import SGD, Adam

X = np.random.default_rng(1).normal(size=(20, 5))
Y = np.random.default_rng(2).integers(0, 3, size=20)


@pytest.fixture
def net():
    return MLP([5, 7, 3], loss="cross_entropy", activation="tanh", dtype="float64", device="cpu", seed=9)


def bits(net):
    return to_numpy(net.flat_parameters.flat).tobytes()


def metadata_of(path):
    with safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()["handgrad"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_network_comes_back_bit_for_bit(tmp_path, dtype):
    net = MLP(
        [4, 3, 2, 6],
        loss="hinge",
        reduction="sum",
        bias=False,
        init="glorot",
        dtype=dtype,
        device="cpu",
        seed=3,
    )
    net.freeze("W2")
    checkpoint.save(net, tmp_path / "net.safetensors")
    back = checkpoint.load(tmp_path / "net.safetensors", device="cpu")
    assert bits(back) == bits(net)
    assert back.config() == net.config()
    assert back.flat_parameters.frozen == {"W2"}
    assert repr(back) == repr(net)


def test_the_file_is_plain_safetensors_with_the_configuration(tmp_path, net):
    path = tmp_path / "net.safetensors"
    net.save(path)
    tensors = load_file(path)
    assert set(tensors) == {"W1", "b1", "W2", "b2"}
    np.testing.assert_array_equal(tensors["W2"], net.parameters["W2"])
    metadata = metadata_of(path)
    assert metadata["format"] == "handgrad"
    assert metadata["format_version"] == "1"
    assert json.loads(metadata["config"]) == net.config()
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("make", [lambda: SGD(0.1, momentum=0.9), lambda: Adam(0.01), lambda: SGD(0.1)])
def test_training_goes_on_bit_for_bit_with_the_optimizer(tmp_path, net, make):
    optimizer = make()
    for _ in range(3):
        net.train_step(X, Y, optimizer)
    checkpoint.save(net, tmp_path / "net", optimizer)
    back = checkpoint.load(tmp_path / "net", device="cpu")
    resumed = checkpoint.load_optimizer(tmp_path / "net", back)
    assert repr(resumed) == repr(optimizer)
    assert resumed.step == 3
    for _ in range(3):
        net.train_step(X, Y, optimizer)
        back.train_step(X, Y, resumed)
    assert bits(back) == bits(net)


def test_without_an_optimizer_there_is_none(tmp_path, net):
    checkpoint.save(net, tmp_path / "net")
    assert checkpoint.load_optimizer(tmp_path / "net", net) is None


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, net, monkeypatch):
    path = tmp_path / "net.safetensors"
    checkpoint.save(net, path)
    old = path.read_bytes()
    net.parameters["W1"][...] = 1

    def disk_full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left on device"):
        checkpoint.save(net, path)
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["net.safetensors"]


def test_the_content_is_synced_before_it_takes_the_name(tmp_path, net, monkeypatch):
    path = tmp_path / "net.safetensors"
    events = []
    real_fsync = os.fsync

    def fsync(descriptor):
        events.append((os.fstat(descriptor).st_size if path.parent.is_dir() else 0, path.exists()))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    checkpoint.save(net, path)
    assert events[0] == (path.stat().st_size, False), "the whole file is synced under another name"
    assert events[1][1], "the folder is synced once the file has its name"


def test_every_truncation_is_one_line(tmp_path, net):
    path = tmp_path / "net.safetensors"
    checkpoint.save(net, path, SGD(0.1, momentum=0.5))
    whole = path.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(
            CheckpointError, match=r"net\.safetensors: damaged, or no safetensors file"
        ) as raised:
            checkpoint.load(path, device="cpu")
        assert "\n" not in str(raised.value)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path, device="cpu")


def test_every_flipped_bit_is_found(tmp_path, net):
    path = tmp_path / "net.safetensors"
    checkpoint.save(net, path)
    whole = path.read_bytes()
    before = bits(net)
    rng = np.random.default_rng(8)
    messages = []
    for position in rng.choice(len(whole), size=150, replace=False):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            back = checkpoint.load(path, device="cpu")
        except CheckpointError as error:
            messages.append(str(error))
            continue
        # A space of the header's padding, say: the network is the same all the same.
        assert bits(back) == before
        assert back.config() == net.config()
    assert len(messages) > 140
    assert not any("\n" in message for message in messages)
    path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 4]) + whole[-4:])
    with pytest.raises(CheckpointError, match="damaged: its contents do not give its checksum"):
        checkpoint.load(path, device="cpu")


def rewrite(path, **changes):
    """The file with other metadata (None removes), and a checksum that fits."""
    tensors, metadata = load_file(path), metadata_of(path)
    metadata = {key: value for key, value in (metadata | changes).items() if value is not None}
    metadata["sha256"] = checkpoint._digest(metadata, tensors)
    save_file(tensors, path, metadata={"handgrad": json.dumps(metadata)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format_version": "2"},
            r"net: written in format 2 by handgrad .*, newer than .* pip install --upgrade",
        ),
        ({"format_version": "x"}, "damaged: its format version is 'x'"),
        ({"format": "other"}, "a safetensors file, but not one that handgrad wrote"),
        ({"format": None}, "a safetensors file, but not one that handgrad wrote"),
        ({"config": "{"}, "damaged: its config cannot be read"),
        ({"config": "[1]"}, "damaged: its config is no JSON object"),
        ({"config": None}, "damaged: its config cannot be read"),
        ({"config": '{"sizes": [5, 8, 3]}'}, r"its parameters do not fit a network of sizes \[5, 8, 3\]"),
        ({"config": '{"sizes": [99999999, 99999999]}'}, "its parameters do not fit a network of sizes"),
        ({"config": '{"sizes": "many"}'}, "damaged: its sizes are 'many'"),
        ({"config": '{"sizes": [5, 7, 3], "layers": 2}'}, "'layers'"),
        ({"config": '{"sizes": [5, 7, 3], "bias": false}'}, "parameters: expected W1, W2, got"),
        ({"config": '{"sizes": [5, 7, 3], "loss": "l1"}'}, "loss: expected one of mse"),
        ({"frozen": '["W9"]'}, "no parameter 'W9'"),
        ({"frozen": "3"}, "net: "),
    ],
)
def test_foreign_newer_and_inconsistent_files_are_told(tmp_path, net, changes, message):
    path = tmp_path / "net"
    checkpoint.save(net, path)
    rewrite(path, **changes)
    with pytest.raises(CheckpointError, match=message) as raised:
        checkpoint.load(path, device="cpu")
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_other_files_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such checkpoint"):
        checkpoint.load(tmp_path / "nowhere", device="cpu")
    (tmp_path / "text").write_text("W1 = 0.3\n" * 100)
    with pytest.raises(CheckpointError, match="text: damaged, or no safetensors file"):
        checkpoint.load(tmp_path / "text", device="cpu")
    save_file({"W1": np.zeros((2, 2))}, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="foreign: a safetensors file, but not one that handgrad wrote"):
        checkpoint.load(tmp_path / "foreign", device="cpu")


def test_an_unknown_device_is_the_callers_mistake(tmp_path, net):
    checkpoint.save(net, tmp_path / "net")
    with pytest.raises(ValueError, match="device: expected 'auto', 'cpu'") as raised:
        checkpoint.load(tmp_path / "net", device="tpu")
    assert not isinstance(raised.value, CheckpointError)


@needs_compiler
def test_a_network_moves_from_the_emulator_to_the_cpu_and_back(tmp_path):
    emulated = MLP([5, 7, 3], loss="cross_entropy", device="emulator", seed=9)
    emulated.freeze("b1")
    optimizer = Adam(0.01)
    X32 = to_device(X.astype(np.float32), "emulator")
    labels = to_device(Y.astype(np.int32), "emulator")
    emulated.train_step(X32, labels, optimizer)
    checkpoint.save(emulated, tmp_path / "net", optimizer)
    for device in ("cpu", "emulator"):
        back = checkpoint.load(tmp_path / "net", device=device)
        assert back.device.kind == device
        assert bits(back) == bits(emulated)
        assert checkpoint.load_optimizer(tmp_path / "net", back).step == 1
    resumed = checkpoint.load(tmp_path / "net", device="emulator")
    resumed.train_step(X32, labels, checkpoint.load_optimizer(tmp_path / "net", resumed))
    emulated.train_step(X32, labels, optimizer)
    assert bits(resumed) == bits(emulated)


def test_equal_networks_give_equal_bytes(tmp_path):
    files = [tmp_path / f"{i}.safetensors" for i in range(8)]
    for file in files:
        MLP([3, 4, 2], seed=5, device="cpu").save(file)
    assert len({file.read_bytes() for file in files}) == 1


@pytest.mark.parametrize("path", [".", "/"])
def test_a_folder_is_no_file_to_write(path):
    with pytest.raises(IsADirectoryError, match="a folder; give the path of a file"):
        checkpoint.save(MLP([3, 2], device="cpu"), path)
