"""The samples that the verbs work on, and a network's outputs for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from handgrad.cli.errors import wrong
from handgrad.cli.network import LABEL_LOSSES
from handgrad.datasets import Columns, DataError, Dataset, LabelError, Split, load, load_features
from handgrad.streaming import Stream, open_stream
from handgrad.streaming.stream import StreamSplit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from handgrad.network import MLP

READ_ROWS = 8192  # of a streamed test part, for those that need samples in memory
VALIDATION_SHARE = 10  # one in so many training samples is held out for --patience


def training_data(
    data: str,
    *,
    target: str | None,
    task: str,
    classes: int | None,
    limit: int | None,
    test_fraction: float = 0.2,
) -> Split:
    """Both parts of ``data``, or the first ``limit`` samples of each.

    Where there is no test part, ``test_fraction`` of the samples is held out; of 0 the test part is empty.
    """
    if target is not None and not data.lower().endswith(".csv"):
        raise wrong("--target", "a column of a .csv", target, f"{data} has none; leave it out")
    split = load(data, target=target, task=str(task), classes=classes, test_fraction=test_fraction)
    if limit is None:
        return split
    return Split(split.train.head(limit), split.test.head(limit))


def streamed_data(
    data: str, *, task: str, classes: int | None, limit: int | None, block_rows: int | None = None
) -> StreamSplit:
    """As :func:`training_data`, but the samples stay on disk."""
    if data == "mnist-subset" or data.lower().endswith((".csv", ".npz")):
        expected = "X.npy,y.npy, a directory of IDX files or one of shards with --stream"
        raise wrong("--data", expected, data, "leave --stream out: this is read into memory")
    parts = open_stream(data, task=str(task), classes=classes, block_rows=block_rows)
    return parts if limit is None else StreamSplit(parts.train.head(limit), parts.test.head(limit))


def hold_out(train: Any, seed: int) -> tuple[Any, Any]:
    """All but a tenth of the training samples, and that tenth, to stop by.

    Of samples on disk the last ones, so that nothing is copied; else drawn by ``seed``.
    """
    held = len(train) // VALIDATION_SHARE
    if held == 0:
        raise wrong("--patience", f"at least {VALIDATION_SHARE} training samples with it", len(train))
    if isinstance(train, Stream):
        return train.head(len(train) - held), train.rest(len(train) - held)
    order = np.arange(len(train))
    if not isinstance(train.X.base, np.memmap) and not isinstance(train.X, np.memmap):
        order = np.random.Generator(np.random.PCG64(seed)).permutation(len(train))
        return _rows(train, np.sort(order[held:])), _rows(train, np.sort(order[:held]))
    kept = len(train) - held
    return train.head(kept), replace(train, X=train.X[kept:], y=train.y[kept:])


def _rows(samples: Dataset, rows: NDArray[np.intp]) -> Dataset:
    return replace(samples, X=samples.X[rows], y=samples.y[rows])


def test_part(net: MLP, data: str | None, config: Mapping[str, Any], *, streamed: bool) -> tuple[Any, str]:
    """The samples to evaluate ``net`` on, and in words which they are.

    The data of the run itself, and data with a test part: the test part.  Other data: all samples.  Of a run
    that was streamed, a stream if the caller takes one (``streamed``), else the first samples.  The network
    tells labels from numbers, and how many classes there are: the samples need not show all of them.
    """
    targets: dict[str, Any] = {"task": "regression"}
    if net.loss_name in LABEL_LOSSES:
        targets = {"task": "classification", "classes": net.sizes[-1]}
    with labels_for(net):
        chosen, which = _test_part(data, config, targets, streamed)
    check_inputs(net, chosen)
    return chosen, which


@contextlib.contextmanager
def labels_for(net: MLP) -> Iterator[None]:
    """A label that ``net`` lacks is told so: the remedies of a training are no options elsewhere."""
    try:
        yield
    except LabelError as error:
        raise DataError(
            f"{error.found}, but the network has {net.sizes[-1]} classes, 0 to {net.sizes[-1] - 1}; "
            "give data like that of the training"
        ) from None


def _test_part(
    data: str | None, config: Mapping[str, Any], targets: dict[str, Any], streamed: bool
) -> tuple[Any, str]:
    described = config.get("data", {})
    own = described.get("spec")
    is_own = own is not None and (data is None or absolute(data) == own)
    if is_own and described.get("stream"):
        opened = open_stream(own, **targets, block_rows=described["block_rows"])
        held_out = with_scale_of(config, opened.test)
        if streamed or len(held_out) <= READ_ROWS:
            return held_out if streamed else held_out.in_memory(), "the test part of the run's data"
        first = held_out.head(READ_ROWS).in_memory()
        return first, f"the first {READ_ROWS:,} samples of the test part of the run's data"
    if is_own:
        return load(own, **_csv_columns(own, config), **targets).test, f"the test part of {own}"
    assert data is not None
    split = load(data, test_fraction=0.0, **_csv_columns(data, config), **targets)
    if len(split.test):
        return with_scale_of(config, split.test), f"the test part of {data}"
    return with_scale_of(config, split.train), f"all samples of {data}"


def features(data: str, inputs: int, config: Mapping[str, Any]) -> Dataset:
    """The samples to predict for; targets need not be there.  Of data with a test part, that part."""
    target = config.get("data", {}).get("target")
    return with_scale_of(config, load_features(data, inputs, target=target, named=_columns_of(config)))


def predictions(net: MLP, samples: Dataset, batch_size: int) -> NDArray[Any]:
    """``net.predict`` over ``samples`` as (N, C) on the host, ``batch_size`` rows at a time."""
    from handgrad.arrays import to_device, to_numpy

    check_inputs(net, samples)
    values = np.empty((len(samples), net.sizes[-1]), dtype=net.dtype)
    for start in range(0, len(samples), batch_size):
        rows = np.arange(start, min(start + batch_size, len(samples)))
        X, _ = samples.batch(rows, dtype=net.dtype)
        values[rows] = to_numpy(net.predict(to_device(X, net.device)))
    return values


def check_inputs(net: MLP, samples: Dataset | Stream) -> None:
    """Refuse samples that the network cannot take."""
    if samples.X.shape[1] != net.sizes[0]:
        raise DataError(
            f"{samples.name}: {samples.X.shape[1]} features a sample, but the network takes {net.sizes[0]}; "
            "give data like that of the training"
        )


def absolute(spec: str) -> str:
    """``spec`` with its paths made absolute, so that it holds in any working directory."""
    if spec == "mnist-subset":
        return spec
    return ",".join(str(Path(part.strip()).expanduser().resolve()) for part in spec.split(","))


Part = TypeVar("Part", Dataset, Stream)


def with_scale_of(config: Mapping[str, Any], samples: Part) -> Part:
    """``samples`` scaled as in training, if they are uint8: pixels then mean what they meant there."""
    described = config.get("data", {})
    if samples.X.dtype != np.uint8 or "scale" not in described:
        return samples
    return replace(samples, scale=float(described["scale"]), shift=float(described["shift"]))


def _csv_columns(data: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The run's own choice of a target column and its names, where ``data`` has columns to choose from."""
    if not data.lower().endswith(".csv"):
        return {}
    return {"target": config.get("data", {}).get("target"), "columns": _columns_of(config)}


def _columns_of(config: Mapping[str, Any]) -> Columns | None:
    """The names of the training's columns, if it had some and the run is not older than their keeping."""
    described = config.get("data", {})
    features = described.get("feature_names")
    return Columns(tuple(features), described["target_name"]) if features else None
