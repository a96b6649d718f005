"""NaN and inf in training: the step, the layer and the batch that they come from, and what then happens.

The losses and the parameters are looked at after every stretch of steps, which costs next to nothing.  Where
one is not finite, the network and the optimizer are put back to where the stretch began, and its steps are
made once more, one by one: the same numbers again, up to the first step whose loss, gradient or update is not
finite.  That step is undone, and the training stops there, or goes on without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from handgrad.arrays import Array, to_numpy

if TYPE_CHECKING:
    from handgrad.network import MLP
    from handgrad.ops.optimizer import Optimizer
    from handgrad.resume import Progress
    from handgrad.stretches import Steps

CHOICES = ("stop", "skip", "ignore")
ROWS_NAMED = 5  # of the batch, in a message


class NonFiniteError(RuntimeError):
    """Training met a NaN or inf; network and optimizer are as they were before that step.

    epoch, step: both from 1; layer: from 1, 0 where it is the data or the loss itself; name: the first array
    that is not finite, as "Z1" or "dW2"; rows: the batch, as row numbers of the data (of their block, if
    streamed)
    """

    def __init__(self, epoch: int, step: int, found: Finding, rows: NDArray[np.integer]) -> None:
        self.epoch, self.step, self.rows = epoch, step, rows
        self.layer, self.name = found.layer, found.name
        named = ", ".join(str(int(row)) for row in rows[:ROWS_NAMED]) + ", …" * (len(rows) > ROWS_NAMED)
        self.place = f"epoch {epoch}, step {step}: {found}, of the batch with rows {named}"
        super().__init__(
            f"{self.place}; the step is undone; give a smaller lr or a clip_norm, or on_nonfinite='skip'"
        )


@dataclass(frozen=True)
class Finding:
    """The first array of a step that holds a NaN or inf, in the order in which they are computed."""

    name: str
    layer: int
    value: float

    def __str__(self) -> str:
        where = f" (layer {self.layer})" if self.layer else ""
        return f"{self.name}{where} has {self.value}"


@dataclass
class GuardedSteps:
    """Makes the steps of ``steps`` for ``net``, none of which leaves a NaN or inf behind.

    ``choice``: "stop" raises :class:`NonFiniteError`, "skip" goes on with the next step; the loss of a
    skipped step is NaN.  ``progress`` says where the call begins; ``skipped`` has the (epoch, step), from 1,
    of all that were left out.
    """

    steps: Steps
    net: MLP
    choice: str
    progress: Progress
    skipped: list[tuple[int, int]] = field(default_factory=list)

    def train_epoch(
        self,
        X: Array,
        y: Array,
        order: Array,
        batch_size: int,
        optimizer: Optimizer,
        clip_norm: float | None = None,
        scale: float = 1.0,
        shift: float = 0.0,
    ) -> Array:
        """As :meth:`handgrad.MLP.train_epoch`."""
        begin = _State(self.net, optimizer)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            losses = self.steps.train_epoch(X, y, order, batch_size, optimizer, clip_norm, scale, shift)
            if _finite(losses) and _finite(self.net.flat_parameters.flat):
                return losses
            begin.restore()
            numbers = to_numpy(order)
            for place in range(len(losses)):
                rows = numbers[place * batch_size : (place + 1) * batch_size]
                before = _State(self.net, optimizer)
                losses[place : place + 1] = self.steps.train_epoch(
                    X, y, rows, batch_size, optimizer, clip_norm, scale, shift
                )
                if _finite(losses[place]) and _finite(self.net.flat_parameters.flat):
                    continue
                after = self.net.flat_parameters.to_numpy()
                before.restore()
                losses[place] = np.nan
                epoch, step = self.progress.epoch + 1, self.progress.step + place + 1
                if self.choice == "stop":
                    found = _first(self.net, X, y, rows, scale, shift, after)
                    raise NonFiniteError(epoch, step, found, rows)
                self.skipped.append((epoch, step))
        return losses


class _State:
    """Copies of all that a step changes, on the device."""

    def __init__(self, net: MLP, optimizer: Optimizer) -> None:
        optimizer.bind(net.flat_parameters)
        self._arrays = [net.flat_parameters.flat, *optimizer.state_arrays().values()]
        self._copies = [array.copy() for array in self._arrays]

    def restore(self) -> None:
        for array, copy in zip(self._arrays, self._copies, strict=True):
            array[...] = copy


def _finite(array: Array) -> bool:
    return bool(np.isfinite(to_numpy(array)).all())


def _first(
    net: MLP,
    X: Array,
    y: Array,
    rows: NDArray[Any],
    scale: float,
    shift: float,
    after: dict[str, NDArray[Any]],
) -> Finding:
    """Computes the step once more on the CPU, array by array; ``after`` are the parameters that it left."""
    from handgrad.network import MLP

    config = {name: value for name, value in net.config().items() if name != "precision"}
    twin = MLP(**config, device="cpu")
    twin.load_parameters(net.parameters)
    inputs = to_numpy(X)[rows].astype(net.dtype) * net.dtype.type(scale) + net.dtype.type(shift)
    loss, gradients = twin.loss_and_grad(inputs, to_numpy(y)[rows], intermediates=True)
    for name, layer, array in _in_order(twin, gradients.intermediates | dict(gradients), loss, after):
        values = np.asarray(array)
        bad = ~np.isfinite(values)
        if bad.any():
            return Finding(name, layer, float(values[bad].flat[0]))
    return Finding("loss", 0, np.nan)  # of a device whose rounding is another


def _in_order(
    net: MLP, values: dict[str, Any], loss: Any, after: dict[str, NDArray[Any]]
) -> Iterator[tuple[str, int, Any]]:
    yield "X", 0, values["X"]
    for layer in range(1, net.layers + 1):
        for kind in "ZA":
            if f"{kind}{layer}" in values:
                yield f"{kind}{layer}", layer, values[f"{kind}{layer}"]
    yield "Y_hat", net.layers, values["Y_hat"]
    yield "loss", 0, loss
    for layer in range(net.layers, 0, -1):
        for name in (f"dA{layer}", f"dZ{layer}", f"W{layer}", f"b{layer}"):
            if name in values:
                yield (name if name[0] == "d" else f"d{name}"), layer, values[name]
    for name, array in after.items():
        yield f"the update of {name}", int(name[1:]), array
