"""Mistakes at the derivative of an activation: dZl = dAl ∘ f'(Zl), and dZL = dY_hat ∘ g'(ZL)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from handgrad.gradients import rounding
from handgrad.gradients.mistakes.mistake import Mistake, Words, layer_sets, upstream_name, value_name
from handgrad.gradients.staged import Hook, Pass, Problem

DERIVATIVES = {  # as one writes them
    "relu": "(Z{l} > 0)",
    "sigmoid": "{A} * (1 - {A})",
    "tanh": "(1 - {A}**2)",
    "softplus": "sigmoid(Z{l})",
    "identity": "1",
}


@dataclass(frozen=True)
class _Variant:
    id: str
    says: str
    wrong: str  # the right-hand side of dZ{l} = …
    value: Callable[[Pass, int], Any]
    cost: float = 1.0


def _times(factor: Callable[[Pass, int], Any]) -> Callable[[Pass, int], Any]:
    return lambda s, layer: s.upstream(layer) * factor(s, layer)


def _squashed(function: Callable[[Any], Any], of: Callable[[Pass, int], Any]) -> Callable[[Pass, int], Any]:
    """σ'(u) or tanh'(u) for u = of(s, layer)."""

    def factor(s: Pass, layer: int) -> Any:
        a = function(of(s, layer))
        return a * (1 - a) if function is rounding.sigmoid else (1 - a) * (1 + a)

    return factor


_MISSING = "activation-derivative-missing"
_PREACTIVATION = "derivative-is-preactivation"
_ARGUMENT = "derivative-argument"
_UPSTREAM = "mask-from-upstream-gradient"
_OVERWRITTEN = "upstream-overwritten"

_SAYS_UPSTREAM = "f' is taken of the gradient that comes from above instead of {A}"
_BOTH_LINES = {
    "relu": (
        _Variant(
            _UPSTREAM,
            "the mask is the sign of the gradient that comes from above, not of Z{l}",
            "{U} * ({U} > 0)",
            _times(lambda s, layer: rounding.step(s.upstream(layer))),
        ),
        _Variant(
            _UPSTREAM,
            "the gradient is multiplied by its own sign instead of the mask of Z{l}",
            "{U} * sign({U})",
            lambda s, layer: rounding.absolute(s.upstream(layer)),
            1.1,
        ),
        _Variant(
            _UPSTREAM,
            "beside the mask of Z{l}, the gradient's own negative entries are cut off",
            "{U} * (Z{l} > 0) * ({U} > 0)",
            _times(lambda s, layer: s.derivative(layer) * rounding.step(s.upstream(layer))),
            1.1,
        ),
    ),
    "sigmoid": (
        _Variant(
            _ARGUMENT,
            "sigmoid' is taken of {A} instead of Z{l}: the sigmoid is applied twice",
            "{U} * sigmoid({A}) * (1 - sigmoid({A}))",
            _times(_squashed(rounding.sigmoid, lambda s, layer: s.A(layer))),
        ),
        _Variant(
            _ARGUMENT,
            "sigmoid' = a (1 - a) is a formula in the output a, but Z{l} is put in",
            "{U} * Z{l} * (1 - Z{l})",
            _times(lambda s, layer: s.Z(layer) * (1 - s.Z(layer))),
        ),
        _Variant(
            _UPSTREAM,
            _SAYS_UPSTREAM,
            "{U} * {U} * (1 - {U})",
            _times(lambda s, layer: s.upstream(layer) * (1 - s.upstream(layer))),
            1.1,
        ),
        _Variant(
            _UPSTREAM,
            _SAYS_UPSTREAM,
            "{U} * sigmoid({U}) * (1 - sigmoid({U}))",
            _times(_squashed(rounding.sigmoid, lambda s, layer: s.upstream(layer))),
            1.1,
        ),
    ),
    "tanh": (
        _Variant(
            _ARGUMENT,
            "tanh' is taken of {A} instead of Z{l}: the tanh is applied twice",
            "{U} * (1 - tanh({A})**2)",
            _times(_squashed(rounding.tanh, lambda s, layer: s.A(layer))),
        ),
        _Variant(
            _ARGUMENT,
            "tanh' = 1 - a² is a formula in the output a, but Z{l} is put in",
            "{U} * (1 - Z{l}**2)",
            _times(lambda s, layer: (1 - s.Z(layer)) * (1 + s.Z(layer))),
        ),
        _Variant(
            _UPSTREAM,
            _SAYS_UPSTREAM,
            "{U} * (1 - {U}**2)",
            _times(lambda s, layer: (1 - s.upstream(layer)) * (1 + s.upstream(layer))),
            1.1,
        ),
        _Variant(
            _UPSTREAM,
            _SAYS_UPSTREAM,
            "{U} * (1 - tanh({U})**2)",
            _times(_squashed(rounding.tanh, lambda s, layer: s.upstream(layer))),
            1.1,
        ),
    ),
    "softplus": (
        _Variant(
            _ARGUMENT,
            "softplus' = sigmoid is taken of {A} instead of Z{l}",
            "{U} * sigmoid({A})",
            _times(lambda s, layer: rounding.sigmoid(s.A(layer))),
        ),
        _Variant(
            _ARGUMENT,
            "softplus' = 1 - exp(-a) is a formula in the output a, but Z{l} is put in",
            "{U} * (1 - exp(-Z{l}))",
            _times(lambda s, layer: -rounding.expm1(-s.Z(layer))),
        ),
        _Variant(
            _UPSTREAM,
            _SAYS_UPSTREAM,
            "{U} * sigmoid({U})",
            _times(lambda s, layer: rounding.sigmoid(s.upstream(layer))),
            1.1,
        ),
    ),
}
_OF_ALL = (
    _Variant(
        _PREACTIVATION,
        "the derivative of {f} is taken to be {f}'s own output",
        "{U} * {A}",
        _times(lambda s, layer: s.A(layer)),
        1.05,
    ),
    _Variant(
        _PREACTIVATION,
        "the derivative of {f} is taken to be Z{l} itself",
        "{U} * Z{l}",
        _times(lambda s, layer: s.Z(layer)),
    ),
    _Variant(
        _OVERWRITTEN,
        "the gradient from above is overwritten by {f}' instead of multiplied with it",
        "{d}",
        lambda s, layer: s.derivative(layer),
    ),
)
_NO_DERIVATIVE = _Variant(
    _MISSING, "the derivative of {f} is left out", "{U}", lambda s, layer: s.upstream(layer), 0.95
)


def mistakes(problem: Problem) -> list[Mistake]:
    """Every mistake at an activation's derivative, in one layer or in all of the same function."""
    hidden = list(range(1, problem.L))
    layers = list(hidden)
    if problem.loss == "mse" and problem.output != "identity":
        layers.append(problem.L)
    sets = layer_sets(layers)
    if 1 < len(hidden) < len(layers):
        sets.append(tuple(hidden))
    found = [mistake for layers_wrong in sets for mistake in _of_layers(problem, layers_wrong)]
    if problem.activation != "identity":
        found += [mistake for layer in hidden for mistake in _left_out_once(problem, layer)]
    return found


def _left_out_once(problem: Problem, layer: int) -> list[Mistake]:
    """f' left out in the weight's gradient alone, or in the bias's: two formulas, one of them wrong."""
    below, right = (
        value_name(problem, layer - 1),
        f"dZ{layer} = dA{layer} * {derivative_formula(problem, layer)}",
    )

    def weight(s: Pass, value: Any, c: float) -> Any:
        return s.decayed(layer, s.A(layer - 1).T @ s[f"dA{layer}"])

    def bias(s: Pass, value: Any, c: float) -> Any:
        return s[f"dA{layer}"].sum(axis=0)

    found = []
    for stage, hook, wrong, kept in (
        (f"dW{layer}", weight, f"{below}.T @ dA{layer}", f"{below}.T @ dZ{layer}"),
        (f"db{layer}", bias, f"dA{layer}.sum(axis=0)", f"dZ{layer}.sum(axis=0)"),
    ):
        if stage[1:] in problem.parameters:
            says = f"layer {layer}: the derivative of {problem.activation} is left out in {stage} alone"
            words = Words(_MISSING, says, f"{stage} = {wrong}", f"{right};  {stage} = {kept}", cost=1.05)
            hooks = (Hook(stage, hook, replaces=True),)
            found.append(Mistake(words, hooks, reads=(f"dA{layer}",)))
    return found


def _of_layers(problem: Problem, layers: tuple[int, ...]) -> list[Mistake]:
    functions = {_function(problem, layer) for layer in layers}
    variants = list(_OF_ALL)
    if "identity" not in functions:
        variants.append(_NO_DERIVATIVE)
    if len(functions) == 1:
        variants.extend(_BOTH_LINES.get(next(iter(functions)), ()))
    return [_made(problem, variant, layers) for variant in variants]


def _made(problem: Problem, variant: _Variant, layers: tuple[int, ...]) -> Mistake:
    first = layers[-1]
    names = _names(problem, first)
    where = "" if len(layers) == 1 else f" (the same in layers {', '.join(map(str, layers))})"
    right = f"dZ{first} = {names['U']} * {names['d']}"
    cost = variant.cost + (0.02 if len(layers) > 1 else 0.0)
    words = Words(
        variant.id,
        f"layer {first}: {variant.says.format(**names)}{where}",
        f"dZ{first} = {variant.wrong.format(**names)}",
        right,
        cost=cost,
    )
    also: tuple[Words, ...] = ()
    if variant.id == _MISSING and all(_function(problem, layer) == "relu" for layer in layers):
        experiment = (
            f"print (A{first} >= 0).all() and your mask's mean: a mask that is True everywhere is "
            "mask-always-one; if there is no mask at all, it is activation-derivative-missing"
        )
        words = Words(words.id, words.says, words.wrong, right, experiment, cost)
        always_one = Words(
            "mask-always-one",
            f"layer {first}: the ReLU mask is 1 everywhere, since A{first} >= 0 holds for every entry{where}",
            f"dZ{first} = dA{first} * (A{first} >= 0)",
            right,
            experiment,
            cost + 0.1,
        )
        also = (always_one,)
    hooks = tuple(
        Hook(f"dZ{layer}", lambda s, value, c, at=layer: variant.value(s, at), replaces=True)  # type: ignore[misc]
        for layer in layers
    )
    return Mistake(words, hooks, also)


def _function(problem: Problem, layer: int) -> str:
    return problem.output if layer == problem.L else problem.activation


def _names(problem: Problem, layer: int) -> dict[str, Any]:
    A = value_name(problem, layer)
    function = _function(problem, layer)
    return {
        "l": layer,
        "A": A,
        "U": upstream_name(problem, layer),
        "f": function,
        "d": DERIVATIVES[function].format(l=layer, A=A),
    }


def derivative_formula(problem: Problem, layer: int) -> str:
    """f'(Zl) as one writes it."""
    return str(_names(problem, layer)["d"])
