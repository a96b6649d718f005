"""A backward pass in stages, each of which a hook may replace or change: how a mistake becomes a gradient.

Forward           A0 = X,  Zl = A(l-1) Wl + bl,  Al = f(Zl),  Y_hat = g(ZL)
Stages backward   dY_hat (mse only), dZL, dWl = A(l-1)ᵀ dZl + λ Wl, dbl = Σ_n dZl,
                  dA(l-1) = dZl Wlᵀ, dZ(l-1) = dA(l-1) ∘ f'(Z(l-1)), …; dA0 is the gradient of X

A :class:`Problem` is the network with its data in float64, in plain numbers (``unit=0``) or with rounding
bounds for a precision of that spacing (:mod:`handgrad.gradients.rounding`).  A :class:`Pass` runs its stages
with hooks.  Values that the person gave by name stand in for computed ones further down, so that each stage
is judged by what went into it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.gradients import rounding
from handgrad.gradients.rounding import Number, Rounded
from handgrad.ops.loss import ELEMENTWISE

Floats = NDArray[Any]
_ACTIVATION: dict[str, Callable[[Number], Number]] = {
    "relu": rounding.relu,
    "sigmoid": rounding.sigmoid,
    "tanh": rounding.tanh,
    "softplus": rounding.softplus,
    "identity": lambda z: z,
}


def activation(name: str, z: Number) -> Number:
    """f(z)."""
    return _ACTIVATION[name](z)


def derivative(name: str, z: Number, a: Number) -> Number:
    """f'(z), from z and a = f(z); f'(0) of relu is 0.

    A rounded one allows for any of the usual formulas: 1 - a² where a is near 1, a computed anew from z.
    """
    value = _derivative(name, z, a)
    if isinstance(value, Rounded) and name != "relu":
        return Rounded(value.value, rounding.errors(value) + 2 * value.unit, value.unit)
    return value


def _derivative(name: str, z: Number, a: Number) -> Number:
    if name == "relu":
        mask = rounding.step(z)
        if isinstance(mask, Rounded):  # a given a decides; how near z is to the kink says how surely
            return Rounded((rounding.values(a) > 0).astype(np.float64), mask.error, mask.unit)
        return (np.asarray(a) > 0).astype(np.float64)
    if name == "sigmoid":
        return a * (1 - a)
    if name == "tanh":
        return (1 - a) * (1 + a)
    if name == "softplus":
        return rounding.sigmoid(z)
    return np.ones(np.shape(rounding.values(z)))


@dataclass(frozen=True)
class Hook:
    """What a mistake does at one stage: ``function(pass, value, c)`` gives the stage's value.

    A hook that ``replaces`` computes it without the right value (``value`` is None); the others change the
    value that they are handed, in the order of ``order``.  ``c`` is the mistake's constant.
    """

    stage: str
    function: Callable[[Pass, Any, float], Any]
    replaces: bool = False
    order: int = 0


@dataclass(frozen=True)
class Problem:
    """The network, its parameters and the batch, float64; ``given`` holds the person's intermediates."""

    X: Floats
    y: Floats  # (N, C) floats for mse and bce, (N,) integers otherwise
    parameters: Mapping[str, Floats]  # W1 (D, H), b1 (H,), …
    activation: str
    output: str
    loss: str
    reduction: str
    weight_decay: float = 0.0
    lr: float | None = None
    unit: float = 0.0
    given: Mapping[str, Floats] = field(default_factory=dict)
    whole_D: int = 0  # D, where X is a summary of the data's columns; 0: as many as X has

    @cached_property
    def L(self) -> int:
        """The number of layers."""
        return sum(name.startswith("W") for name in self.parameters)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Widths from input to output."""
        W = [self.parameters[f"W{layer}"] for layer in range(1, self.L + 1)]
        return (int(W[0].shape[0]), *(int(w.shape[1]) for w in W))

    @property
    def D(self) -> int:
        """Inputs."""
        return self.whole_D or self.sizes[0]

    @property
    def N(self) -> int:
        """Samples."""
        return int(self.X.shape[0])

    @property
    def C(self) -> int:
        """Outputs."""
        return self.sizes[-1]

    @cached_property
    def source(self) -> str:
        """The stage at which the gradient enters: dY_hat for mse, dZL for losses taken from the logits."""
        return "dY_hat" if self.loss == "mse" else f"dZ{self.L}"

    @cached_property
    def count(self) -> int:
        """What the mean divides by; 1 for the sum."""
        if self.reduction == "sum":
            return 1
        return self.N * self.C if self.loss in ELEMENTWISE else self.N

    @cached_property
    def one_hot(self) -> Floats:
        """I_y (N, C) for integer labels."""
        return np.asarray(np.eye(self.C)[self.y])

    @cached_property
    def forward_names(self) -> tuple[str, ...]:
        """Z1, A1, …, ZL, Y_hat."""
        names = [name for layer in range(1, self.L) for name in (f"Z{layer}", f"A{layer}")]
        return (*names, f"Z{self.L}", "Y_hat")

    @cached_property
    def backward_names(self) -> tuple[str, ...]:
        """dY_hat (mse), dZL, dWL, dbL, dA(L-1), …, dW1, db1, dA0."""
        names = ["dY_hat"] if self.loss == "mse" else []
        for layer in range(self.L, 0, -1):
            names += [f"dZ{layer}", f"dW{layer}"]
            names += [f"db{layer}"] if f"b{layer}" in self.parameters else []
            names += [f"dA{layer - 1}"]
        return tuple(names)

    def inputs(self, stage: str) -> tuple[str, ...]:
        """The stages whose values a backward stage takes by the right rule."""
        if stage == "dY_hat":
            return ()
        kind, layer = stage[:2], int(stage[2:])
        if kind in ("dW", "db"):
            return (f"dZ{layer}",)
        if kind == "dA":
            return (f"dZ{layer + 1}",)
        if layer < self.L:
            return (f"dA{layer}",)
        return ("dY_hat",) if self.loss == "mse" else ()

    @cached_property
    def ancestors(self) -> dict[str, frozenset[str]]:
        """Stage → itself and the stages that its computed value depends on; given values cut the way."""
        found: dict[str, frozenset[str]] = {}
        for stage in self.backward_names:
            stages = {stage}
            for name in self.inputs(stage):
                stages |= set() if name in self.given else found[name]
            found[stage] = frozenset(stages)
        return found

    # ---- forward

    @cached_property
    def computed_forward(self) -> dict[str, Number]:
        """Every forward value as computed, from given ones where there are any."""
        with np.errstate(all="ignore"):
            computed: dict[str, Number] = {}
            A: Number = self._number(self.X)
            for layer in range(1, self.L + 1):
                Z = A @ self.parameters[f"W{layer}"]
                if f"b{layer}" in self.parameters:
                    Z = Z + self.parameters[f"b{layer}"]
                computed[f"Z{layer}"] = Z
                Z = self._given_or(f"Z{layer}", Z)
                last = layer == self.L
                name = "Y_hat" if last else f"A{layer}"
                computed[name] = A = activation(self.output if last else self.activation, Z)
                A = self._given_or(name, A)
        return computed

    @cached_property
    def forward(self) -> dict[str, Number]:
        """Every forward value as used further down."""
        return {name: self._given_or(name, value) for name, value in self.computed_forward.items()}

    @cached_property
    def probabilities(self) -> Number:
        """sigmoid(ZL) for bce, softmax(ZL) for cross_entropy."""
        Z = self.forward[f"Z{self.L}"]
        if self.loss == "bce":
            return rounding.sigmoid(Z)
        powers = rounding.exp(Z - rounding.maximum_of_rows(Z))
        return powers / powers.sum(axis=1, keepdims=True)

    @cached_property
    def right(self) -> Pass:
        """The pass without a mistake."""
        return Pass(self)

    def _number(self, array: Floats) -> Number:
        return Rounded(array, None, self.unit) if self.unit else array

    def _given_or(self, name: str, computed: Number) -> Number:
        return self._number(self.given[name]) if name in self.given else computed


class Pass:
    """The stages of one backward pass under hooks; computed when asked for, and kept."""

    def __init__(self, problem: Problem, hooks: Sequence[tuple[Hook, float]] = ()) -> None:
        self.problem = problem
        self._values: dict[str, Number] = {}
        self._hooks: dict[str, list[tuple[Hook, float]]] = {}
        for hook, constant in hooks:
            self._hooks.setdefault(hook.stage, []).append((hook, constant))
        for of_stage in self._hooks.values():
            of_stage.sort(key=lambda pair: (not pair[0].replaces, pair[0].order))

    # ---- what hooks read

    def W(self, layer: int) -> Floats:
        """W of a layer, (in, out)."""
        return self.problem.parameters[f"W{layer}"]

    def A(self, layer: int) -> Number:
        """A of a hidden layer; X for layer 0; Y_hat for the last."""
        if layer == 0:
            return self.problem._number(self.problem.X)
        return self.problem.forward["Y_hat" if layer == self.problem.L else f"A{layer}"]

    def Z(self, layer: int) -> Number:
        """Z of a layer."""
        return self.problem.forward[f"Z{layer}"]

    def function(self, layer: int) -> str:
        """The name of the layer's activation (of the output for the last)."""
        return self.problem.output if layer == self.problem.L else self.problem.activation

    def derivative(self, layer: int) -> Number:
        """f'(Z) of a layer."""
        return derivative(self.function(layer), self.Z(layer), self.A(layer))

    def upstream(self, layer: int) -> Number:
        """The gradient that comes to the layer's activation: dA, or dY_hat for the last layer."""
        return self["dY_hat" if layer == self.problem.L else f"dA{layer}"]

    def decayed(self, layer: int, product: Number) -> Number:
        """A weight gradient with λ W added, where the problem has weight decay."""
        decay = self.problem.weight_decay
        return product + decay * self.W(layer) if decay else product

    def weight_gradient(self, layer: int) -> Number:
        """dW of a layer as an update of W takes it: in W's shape, even if it is handed out otherwise."""
        gradient = self[f"dW{layer}"]
        if gradient.shape == self.W(layer).shape:
            return gradient
        return self.decayed(layer, self.A(layer - 1).T @ self[f"dZ{layer}"])

    # ---- stages

    def __getitem__(self, stage: str) -> Number:
        """The value that later stages use: the given one, else the computed one."""
        if stage in self.problem.given:
            return self.problem._number(self.problem.given[stage])
        return self.computed(stage)

    def computed(self, stage: str) -> Number:
        """The stage's value by its rule and hooks."""
        if stage not in self._values:
            self._values[stage] = self._compute(stage)
        return self._values[stage]

    def _compute(self, stage: str) -> Number:
        hooks = self._hooks.get(stage, [])
        value = None
        if not (hooks and hooks[0][0].replaces):
            right = self.problem.right
            untouched = right is not self and not any(
                name in self._hooks for name in self.problem.ancestors[stage] - {stage}
            )
            value = right.computed(stage) if untouched else self._rule(stage)
        for hook, constant in hooks:
            value = hook.function(self, value, constant)
        return value

    def _rule(self, stage: str) -> Number:
        """The right formula of a stage."""
        problem = self.problem
        if stage == "dY_hat":
            return (self.A(problem.L) - problem.y) * (2.0 / problem.count)
        kind, layer = stage[:2], int(stage[2:])
        if kind == "dW":
            return self.decayed(layer, self.A(layer - 1).T @ self[f"dZ{layer}"])
        if kind == "db":
            return self[f"dZ{layer}"].sum(axis=0)
        if kind == "dA":
            return self[f"dZ{layer + 1}"] @ self.W(layer + 1).T
        if layer < problem.L or problem.loss == "mse":
            return self.upstream(layer) * self.derivative(layer)
        if problem.loss == "hinge":
            return self._hinge()
        targets = problem.y if problem.loss == "bce" else problem.one_hot
        return (problem.probabilities - targets) * (1.0 / problem.count)

    def _hinge(self) -> Number:
        problem = self.problem
        violated = hinge_violations(self)
        at_label = problem.one_hot
        return (violated - violated.sum(axis=1, keepdims=True) * at_label) * (1.0 / problem.count)


def hinge_violations(s: Pass) -> Number:
    """1 where s_j - s_y + 1 > 0 for j ≠ y, else 0 (N, C)."""
    Z = s.Z(s.problem.L)
    of_label = Z[np.arange(s.problem.N), s.problem.y][:, None]
    return rounding.step(Z - of_label + 1.0) * (1.0 - s.problem.one_hot)
