"""Networks in safetensors files, written atomically.

The tensors are the parameters by name (W1, b1, …) and, if an optimizer was given, its state as
``optimizer.momentum.W1``, …, ``optimizer.step``.  The metadata have one key, ``handgrad``: a JSON object in
a fixed order, so that equal networks give equal files, byte for byte.  In it:

=======================  ======================================================================
``format``               ``handgrad``
``format_version``       1; a greater one is refused with the advice to upgrade
``handgrad_version``     of the writer
``config``               JSON: the arguments of :class:`handgrad.MLP`
``frozen``               JSON: names of the frozen parameters
``optimizer``            JSON: class and hyperparameters, or ``null``
``training``             JSON: where a training stands, in its checkpoints alone; its arrays are tensors
                         ``training.…`` (see :mod:`handgrad.resume`)
``sha256``               over the metadata above and name, shape, dtype and bytes of each tensor
=======================  ======================================================================

A file is written beside its place under a temporary name, synced, and renamed: at any moment the path holds
the old file or the new one, whole.  Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.arrays import Device, resolve_device, to_numpy
from handgrad.network import MLP
from handgrad.ops import optimizer as optimizer_op
from handgrad.ops.optimizer import Optimizer

FORMAT = "handgrad"
FORMAT_VERSION = 1
METADATA_KEY = "handgrad"  # safetensors writes several keys in an order that varies
OPTIMIZER_PREFIX = "optimizer."
TRAINING_PREFIX = "training."

Tensors = dict[str, NDArray[Any]]
Content = tuple[dict[str, str], Tensors]  # metadata and tensors of a file


class CheckpointError(ValueError):
    """A file that is no usable checkpoint; the message is one line that names the file and the reason."""


class NewerVersionError(CheckpointError):
    """A whole file, in a format that this handgrad does not know yet."""


def save(
    net: MLP,
    path: str | Path,
    optimizer: Optimizer | None = None,
    training: Mapping[str, Any] | None = None,
    arrays: Mapping[str, NDArray[Any]] | None = None,
) -> None:
    """Write parameters, configuration and what is frozen, and the state of ``optimizer`` where given.

    ``training`` (fit for JSON) and its ``arrays`` say where a training stands.
    """
    from handgrad import __version__

    tensors: Tensors = net.flat_parameters.to_numpy()
    if optimizer is not None:
        optimizer.bind(net.flat_parameters)
        for name, array in optimizer.state_arrays().items():
            tensors[OPTIMIZER_PREFIX + name] = to_numpy(array)
    for name, array in (arrays or {}).items():
        tensors[TRAINING_PREFIX + name] = array
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "handgrad_version": __version__,
        "config": json.dumps(net.config()),
        "frozen": json.dumps(sorted(net.flat_parameters.frozen)),
        "optimizer": json.dumps(optimizer.config() if optimizer is not None else None),
    }
    if training is not None:
        metadata["training"] = json.dumps(training)
    metadata["sha256"] = _digest(metadata, tensors)
    write_atomically(Path(path), _serialize(tensors, {METADATA_KEY: json.dumps(metadata, sort_keys=True)}))


def load(path: str | Path, device: str | Device = "auto") -> MLP:
    """The network that :func:`save` wrote, on ``device``.

    Raises ``FileNotFoundError`` if there is no such file, and :class:`CheckpointError` for one that is
    damaged, foreign or from a newer version.
    """
    target = resolve_device(device)
    return network_of(read(Path(path)), path, target)


def network_of(content: Content, path: str | Path, target: Device) -> MLP:
    """The network in what :func:`read` gave, on ``target``; ``path`` is named in errors."""
    metadata, tensors = content
    config = _object(metadata, "config", path)
    others = (OPTIMIZER_PREFIX, TRAINING_PREFIX)
    values = {name: array for name, array in tensors.items() if not name.startswith(others)}
    _check_sizes(config, values, path)
    try:
        net = MLP(**{**config, "device": target})
        net.load_parameters(values)
        net.freeze(*_json(metadata, "frozen", path))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return net


def load_optimizer(path: str | Path, net: MLP) -> Optimizer | None:
    """The optimizer that was saved with the network, its state bound to ``net``; None if none was saved."""
    metadata, tensors = read(Path(path))
    if _json(metadata, "optimizer", path) is None:
        return None
    state = named(tensors, OPTIMIZER_PREFIX)
    try:
        optimizer = optimizer_op.from_config(_object(metadata, "optimizer", path))
        optimizer.load_state(net.flat_parameters, state)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return optimizer


def named(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors whose names begin with ``prefix``, under the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}


def write_atomically(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path``: a crash at any moment leaves the old file or the new one, whole.

    Raises ``OSError`` (disk full, read-only folder) that names ``path``, and then leaves nothing behind.
    """
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, "a folder; give the path of a file", str(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:  # a full disk's names no file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the rename itself durable (POSIX; Windows cannot open folders and does not need it)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _serialize(tensors: Tensors, metadata: dict[str, str]) -> bytes:
    from safetensors.numpy import save as serialize

    contiguous = {name: np.array(array, order="C") for name, array in tensors.items()}
    return bytes(serialize(contiguous, metadata=metadata))


def read(path: Path) -> Content:
    """Metadata and tensors, once format, version and digest are found in order; raises as :func:`load`."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = _unpack((file.metadata() or {}).get(METADATA_KEY), path)
            _check_format(metadata, path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, TypeError, AttributeError) as error:  # the latter for dtypes that NumPy lacks
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: damaged, or no safetensors file ({reason})") from error
    if metadata.get("sha256") != _digest(metadata, tensors):
        raise CheckpointError(f"{path}: damaged: its contents do not give its checksum; use another copy")
    return metadata, tensors


def _unpack(text: str | None, path: Path) -> dict[str, str]:
    """The metadata out of their one JSON text; none where the file has no such text."""
    if text is None:
        return {}
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: damaged: its metadata cannot be read")
    return metadata


def _check_format(metadata: Mapping[str, str], path: Path) -> None:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path}: a safetensors file, but not one that handgrad wrote")
    version = metadata.get("format_version", "")
    if not version.isdecimal():
        raise CheckpointError(f"{path}: damaged: its format version is {version!r}")
    if int(version) > FORMAT_VERSION:
        raise NewerVersionError(
            f"{path}: written in format {version} by handgrad {metadata.get('handgrad_version', '?')}, newer "
            f"than this handgrad reads (format {FORMAT_VERSION}); pip install --upgrade handgrad"
        )


def _digest(metadata: Mapping[str, str], tensors: Tensors) -> str:
    digest = hashlib.sha256()
    for key in sorted(set(metadata) - {"sha256"}):
        digest.update(f"{key}\0{metadata[key]}\0".encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name}\0{tensors[name].shape}\0{array.dtype.str}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _check_sizes(config: Mapping[str, Any], values: Tensors, path: str | Path) -> None:
    """The configuration asks for what the file holds: nothing large is allocated on its word alone."""
    sizes = config.get("sizes")
    if not isinstance(sizes, list) or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise CheckpointError(f"{path}: damaged: its sizes are {sizes!r}")
    shapes = {f"W{layer}": pair for layer, pair in enumerate(itertools.pairwise(sizes), start=1)}
    if shapes != {name: array.shape for name, array in values.items() if name.startswith("W")}:
        raise CheckpointError(f"{path}: damaged: its parameters do not fit a network of sizes {sizes}")


def _json(metadata: Mapping[str, str], key: str, path: str | Path) -> Any:
    try:
        return json.loads(metadata[key])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: its {key} cannot be read") from error


def _object(metadata: Mapping[str, str], key: str, path: str | Path) -> dict[str, Any]:
    value = _json(metadata, key, path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: damaged: its {key} is no JSON object")
    return value
