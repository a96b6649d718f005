"""Optimizers over the flat parameter buffer: SGD with momentum, Adam, AdamW; clipping by the norm.

The formulas are PyTorch's.  With clipping, ``g`` is first multiplied by ``min(1, clip_norm / (‖g‖ + 1e-6))``,
where ``‖g‖`` is the norm over all parameters that are not frozen.

One launch updates all parameters, two where the gradient is clipped.  ``lr`` and the number of steps live in
device memory.  Frozen parameters keep every bit, weight decay or not, and so does their state.  What the
classes share: ``ops/optimizer_base.py``.  Kernels: ``ops/optimizer_kernels.py``, ``kernels/optimizer.cu``.
Test: ``tests/test_optimizer.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from handgrad.ops.optimizer_base import Floats, require
from handgrad.ops.optimizer_base import Optimizer as Optimizer


class SGD(Optimizer):
    """Stochastic gradient descent, as ``torch.optim.SGD``::

        g ← g + weight_decay w
        u ← momentum u + g                              u starts at 0; without momentum u = g
        w ← w - lr (g + momentum u if nesterov else u)

    ``lr > 0``, ``momentum`` in [0, 1), ``weight_decay ≥ 0``; ``nesterov`` needs a momentum.
    """

    _settings = ("lr", "momentum", "nesterov", "weight_decay")
    spends_gradient = True

    def __init__(
        self,
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(lr)
        self.momentum = _require_fraction(momentum, "momentum")
        self.nesterov = bool(nesterov)
        self.weight_decay = _require_decay(weight_decay)
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: expected a momentum above 0 with it, got momentum=0")
        self._rule, self._slots = ("Momentum", ("momentum",)) if self.momentum else ("Sgd", ())
        self._writes_gradient = self.nesterov or self.weight_decay > 0

    def _packed(self) -> tuple[float, ...]:
        return (self._lr, self.momentum, float(self.nesterov), 0.0, self.weight_decay, 0.0)

    def _apply(self, w: Floats, g: Floats, states: list[Floats], e: Floats) -> None:
        _add_decay(w, g, self.weight_decay, e)
        if states:
            (u,) = states
            u *= self.momentum
            u += g
            if self.nesterov:
                np.multiply(u, self.momentum, out=e)
                g += e
            else:
                g = u
        np.multiply(g, self._lr, out=e)
        w -= e


class Adam(Optimizer):
    """Adam (Kingma & Ba, arXiv:1412.6980) with L2 regularisation, as ``torch.optim.Adam``::

        g ← g + weight_decay w
        m ← m + (1 - beta1)(g - m)
        v ← beta2 v + (1 - beta2) g²
        w ← w - lr / (1 - beta1ᵗ) · m / (√v / √(1 - beta2ᵗ) + eps)        t = 1, 2, …

    ``lr > 0``, ``beta1`` and ``beta2`` in [0, 1), ``eps > 0``, ``weight_decay ≥ 0``.  t counts the updates of
    the whole parameter set, those that a parameter spends frozen included.
    """

    _rule = "Adam"
    _slots = ("first_moment", "second_moment")
    _settings = ("lr", "beta1", "beta2", "eps", "weight_decay")
    _decoupled = False

    def __init__(
        self,
        lr: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(lr)
        self.beta1 = _require_fraction(beta1, "beta1")
        self.beta2 = _require_fraction(beta2, "beta2")
        self.eps = require(eps, "eps", "a finite number above 0", lambda x: 0 < x < math.inf)
        self.weight_decay = _require_decay(weight_decay)
        self._writes_gradient = self.weight_decay > 0 and not self._decoupled

    def _packed(self) -> tuple[float, ...]:
        l2, decoupled = (0.0, self.weight_decay) if self._decoupled else (self.weight_decay, 0.0)
        return (self._lr, self.beta1, self.beta2, self.eps, l2, decoupled)

    def _apply(self, w: Floats, g: Floats, states: list[Floats], e: Floats) -> None:
        m, v = states
        t = int(self._steps[0])
        if self._decoupled:
            w *= 1 - self._lr * self.weight_decay
        else:
            _add_decay(w, g, self.weight_decay, e)
        np.subtract(g, m, out=e)
        e *= 1 - self.beta1
        m += e
        v *= self.beta2
        np.square(g, out=e)
        e *= 1 - self.beta2
        v += e
        np.sqrt(v, out=e)
        e /= math.sqrt(_bias_correction(self.beta2, t))
        e += self.eps
        np.divide(m, e, out=e)
        e *= self._lr / _bias_correction(self.beta1, t)
        w -= e


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter, arXiv:1711.05101), as ``torch.optim.AdamW``.

    ``w ← (1 - lr weight_decay) w`` before the step of :class:`Adam`, and ``g`` is left alone.
    """

    _decoupled = True

    def __init__(
        self,
        lr: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(lr, beta1, beta2, eps, weight_decay)


BY_NAME: dict[str, type[Optimizer]] = {"SGD": SGD, "Adam": Adam, "AdamW": AdamW}


def from_config(config: Mapping[str, Any]) -> Optimizer:
    """The optimizer that ``config`` (of :meth:`Optimizer.config`) describes, without state."""
    settings = dict(config)
    name = settings.pop("optimizer", None)
    if name not in BY_NAME:
        raise ValueError(f"optimizer: expected one of {', '.join(BY_NAME)}, got {name!r}")
    try:
        return BY_NAME[name](**settings)
    except TypeError as error:  # an unknown or missing setting
        raise ValueError(f"optimizer {name}: {error}") from error


def _bias_correction(beta: float, t: int) -> float:
    """``1 - betaᵗ`` without cancellation."""
    return -math.expm1(t * math.log(beta)) if beta > 0 else 1.0


def _add_decay(w: Floats, g: Floats, weight_decay: float, e: Floats) -> None:
    if weight_decay:
        np.multiply(w, weight_decay, out=e)
        g += e


def _require_fraction(value: Any, name: str) -> float:
    return require(value, name, "a number from 0 up to, but not, 1", lambda x: 0 <= x < 1)


def _require_decay(value: Any) -> float:
    return require(value, "weight_decay", "a finite number, 0 or above", lambda x: 0 <= x < math.inf)
