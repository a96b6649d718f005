"""The losses in NumPy, without an allocation once made.

Each is made for logits of one shape, dtype and order of memory, and is then called with such ``Z`` (N, C),
with ``y`` and with ``dZ`` of the same order, which it fills with the gradient of the *sum* over the samples;
it returns that sum.  The formulas stand in :mod:`handgrad.ops.loss`.  In Fortran order, sums over the classes
of a sample run along whole vectors of samples.  Test: ``tests/test_loss.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.ops import activation as activation_op

Floats = NDArray[Any]
KEPT_VIEWS = 8


class MeanSquaredError:
    """Σ (g(Z) - y)²."""

    def __init__(self, Z: Floats, output: str) -> None:
        self.output = output
        self.predicted = np.empty_like(Z) if output != "identity" else None
        self.residual = np.empty_like(Z)
        self.targets = _targets_like(Z)
        self.scratch = activation_op.Scratch(Z)

    def __call__(self, Z: Floats, y: Floats, dZ: Floats) -> float:
        predicted = Z
        if self.predicted is not None:
            predicted = self.predicted
            activation_op._FORWARD[self.output](Z, predicted, self.scratch)
        residual = np.subtract(predicted, _in_order(y, self.targets), out=self.residual)
        np.add(residual, residual, out=dZ)
        if self.predicted is not None:
            activation_op._BACKWARD[self.output](predicted, dZ, dZ, self.scratch)
        residual *= residual
        return float(np.add.reduce(residual, axis=None))


class BinaryCrossEntropy:
    """Σ max(z, 0) - z y + log(1 + e^-|z|)."""

    def __init__(self, Z: Floats, output: str = "identity") -> None:
        self.terms, self.part = np.empty_like(Z), np.empty_like(Z)
        self.targets = _targets_like(Z)
        self.scratch = activation_op.Scratch(Z)

    def __call__(self, Z: Floats, y: Floats, dZ: Floats) -> float:
        terms, part = self.terms, self.part
        y = _in_order(y, self.targets)
        np.maximum(Z, 0, out=terms)
        terms -= np.multiply(Z, y, out=part)
        np.abs(Z, out=part)
        np.negative(part, out=part)
        np.exp(part, out=part)
        terms += np.log1p(part, out=part)
        activation_op._FORWARD["sigmoid"](Z, dZ, self.scratch)
        dZ -= y
        return float(np.add.reduce(terms, axis=None))


def _targets_like(Z: Floats) -> Floats | None:
    """Room for targets in the order of Z, where that is not theirs."""
    return None if Z.flags.c_contiguous else np.empty_like(Z)


def _in_order(y: Floats, targets: Floats | None) -> Floats:
    """``y`` as it is, or copied to ``targets``: arrays of different orders would meet in a buffer."""
    if targets is None:
        return y
    np.copyto(targets, y)
    return targets


class _Rows:
    """What the losses of labels share: where in memory the logit of each sample's own class stands."""

    def __init__(self, Z: Floats, output: str = "identity") -> None:
        N, self.C = Z.shape
        self.by_class = bool(Z.flags.f_contiguous and not Z.flags.c_contiguous)
        self.samples = np.arange(N, dtype=np.int64) * (1 if self.by_class else self.C)
        self.stride = N if self.by_class else 1
        self.places = np.empty(N, dtype=np.int64)
        self.unsigned = self.places.view(np.uint64)
        self.row, self.column = np.empty(N, dtype=Z.dtype), np.empty(N, dtype=Z.dtype)
        self.beside = self.row[:, None]  # of each sample's logits
        self._flat: dict[int, tuple[Floats, Floats]] = {}  # the array too: its id stays its own

    def flat(self, array: Floats) -> Floats:
        """The elements as they lie in memory."""
        kept = self._flat.get(id(array))
        if kept is None:
            if len(self._flat) == KEPT_VIEWS:
                self._flat.clear()
            kept = self._flat[id(array)] = array, (array.T if self.by_class else array).reshape(-1)
        return kept[1]

    def find(self, y: Floats) -> None:
        """Set ``places``; ``ValueError`` for a label outside 0 .. C-1."""
        places = self.places
        np.copyto(places, y, casting="unsafe")
        if np.maximum.reduce(self.unsigned) >= self.C:  # a negative number is a huge one
            bad = int(np.flatnonzero(self.unsigned >= self.C)[0])
            raise LabelError(self.C, int(y[bad]), bad)
        if self.stride != 1:
            np.multiply(places, self.stride, out=places)
        np.add(places, self.samples, out=places)


class LabelError(ValueError):
    """A label outside 0 .. C-1, with the number of its sample."""

    def __init__(self, C: int, label: int, sample: int) -> None:
        super().__init__(f"labels must lie in 0 .. {C - 1}, got {label} for sample {sample}")
        self.C, self.label, self.sample = C, label, sample


class CrossEntropy(_Rows):
    """Σ_n log Σ_j e^(z_j) - z_y."""

    def __call__(self, Z: Floats, y: Floats, dZ: Floats) -> float:
        self.find(y)
        row, beside, own, flat = self.row, self.beside, self.column, self.flat(dZ)
        with np.errstate(invalid="ignore"):  # inf - inf is NaN, as it should be
            np.maximum.reduce(Z, axis=1, out=row)
            np.subtract(Z, beside, out=dZ)
            flat.take(self.places, out=own, mode="clip")  # any other mode would make a copy
            np.exp(dZ, out=dZ)
            np.add.reduce(dZ, axis=1, out=row)
            np.divide(dZ, beside, out=dZ)
            np.log(row, out=row)
            np.subtract(row, own, out=row)
            total = float(np.add.reduce(row))
        flat.take(self.places, out=own, mode="clip")
        np.subtract(own, 1, out=own)
        flat[self.places] = own
        return total


class Hinge(_Rows):
    """Σ_n Σ_{j≠y} max(0, z_j - z_y + 1)."""

    def __init__(self, Z: Floats, output: str = "identity") -> None:
        super().__init__(Z)
        self.margins = np.empty_like(Z)
        self.violated = np.empty_like(Z, dtype=bool)

    def __call__(self, Z: Floats, y: Floats, dZ: Floats) -> float:
        self.find(y)
        margins, own, count = self.margins, self.column, self.row
        self.flat(Z).take(self.places, out=own, mode="clip")
        with np.errstate(invalid="ignore"):
            np.subtract(Z, own[:, None], out=margins)
            margins += 1
            self.flat(margins)[self.places] = 0
            np.less_equal(margins, 0, out=self.violated)
        np.logical_not(self.violated, out=self.violated)  # a NaN margin counts, as in the kernel
        np.copyto(dZ, self.violated)
        np.add.reduce(dZ, axis=1, out=count)
        np.negative(count, out=count)
        self.flat(dZ)[self.places] = count
        np.maximum(margins, 0, out=margins)
        return float(np.add.reduce(margins, axis=None))


BY_NAME: dict[str, Callable[[Floats, str], Callable[[Floats, Floats, Floats], float]]] = {
    "mse": MeanSquaredError,
    "bce": BinaryCrossEntropy,
    "cross_entropy": CrossEntropy,
    "hinge": Hinge,
}
