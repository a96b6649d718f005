"""Ranks that would not do the same work refuse to start, in one line that says what differs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from handgrad.arrays import to_numpy
from handgrad.distributed.ranks import Ranks, RanksError

if TYPE_CHECKING:
    import typer

    from handgrad.datasets import Dataset
    from handgrad.network import MLP


WITHOUT_EFFECT = ("device", "out_directory", "no_plot", "quiet", "as_json")


def agree(ranks: Ranks, facts: Mapping[str, Any]) -> None:
    """``facts`` must be the same on every rank: else :class:`RanksError` that names each that differs."""
    everyone = ranks.gather({name: str(value) for name, value in facts.items()})
    differences = []
    for name in sorted({name for own in everyone for name in own}):
        values = [own.get(name, "nothing") for own in everyone]
        other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            differences.append(f"{name} (rank 0: {values[0]}, rank {other}: {values[other]})")
    if differences:
        raise RanksError(
            f"the ranks do not agree on {'; '.join(differences)}; start all of them with the same options, "
            "data and versions"
        )


def call_facts(ctx: typer.Context) -> dict[str, Any]:
    """Versions, and the options of the call that the result depends on."""
    from handgrad import __version__

    options = {
        parameter.opts[0]: ctx.params[str(parameter.name)]
        for parameter in ctx.command.params
        if parameter.name not in WITHOUT_EFFECT
    }
    return {"the version of handgrad": __version__, "the version of NumPy": np.__version__, **options}


def state_facts(net: MLP, training: Dataset, watched: Dataset) -> dict[str, Any]:
    """The kind of device, the data and the weights that the training begins with."""
    from handgrad.datasets.digest import digest

    return {
        "the kind of device": net.device.kind,
        "the training data": digest(training),
        "the test data": digest(watched),
        "the first weights": weights_digest(net),
    }


def weights_digest(net: MLP) -> str:
    """A digest of the parameters, to compare."""
    return hashlib.sha256(to_numpy(net.flat_parameters.flat).tobytes()).hexdigest()[:16]
