"""Mistakes in the products dWl = A(l-1)ᵀ dZl and dA(l-1) = dZl Wlᵀ: operands, transposes, sums, values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from handgrad.gradients.mistakes.activation import derivative_formula
from handgrad.gradients.mistakes.mistake import (
    Mistake,
    Words,
    bias_layers,
    layer_sets,
    require_few,
    upstream_name,
    value_name,
)
from handgrad.gradients.staged import Hook, Pass, Problem
from handgrad.ops.loss import ELEMENTWISE

_Value = Callable[[Pass, int], Any]


def mistakes(problem: Problem) -> list[Mistake]:
    """Every mistake in a product, layer by layer."""
    found = _transposed(problem)
    for layer in range(1, problem.L + 1):
        found += _weight_products(problem, layer)
    for layer in range(1, problem.L):
        found += _input_products(problem, layer)
        found += _activation_products(problem, layer)
    found += [_updated_first(problem, layers) for layers in layer_sets(list(range(1, problem.L)))]
    if problem.L > 1 and problem.loss in ELEMENTWISE:
        found += _misplaced_parenthesis(problem)
    return found + _samples_overwritten(problem)


def _replacing(stage: str, value: Callable[[Pass], Any]) -> Hook:
    return Hook(stage, lambda s, v, c: value(s), replaces=True)


def _weight_names(problem: Problem, layer: int) -> tuple[str, str, str]:
    A = value_name(problem, layer - 1)
    return A, f"dZ{layer}", f"dW{layer} = {A}.T @ dZ{layer}"


def _transposed(problem: Problem) -> list[Mistake]:
    found = []
    for layers in layer_sets(list(range(1, problem.L + 1))):
        first = layers[0]
        A, dZ, right = _weight_names(problem, first)
        names = ", ".join(f"W{layer}" for layer in layers)
        says = f"the gradient of {names} is the transpose of the right one: the operands are swapped"
        words = Words(
            "transposed",
            says,
            f"dW{first} = {dZ}.T @ {A}",
            right,
            "if your weights are stored (out, in), as PyTorch's nn.Linear does, it is no mistake: pass "
            "layout='out,in'",
            cost=1.0 + (0.02 if len(layers) > 1 else 0.0),
        )
        hooks = tuple(Hook(f"dW{layer}", lambda s, v, c: v.T, order=8) for layer in layers)
        found.append(Mistake(words, hooks))
    return found


def _weight_products(problem: Problem, layer: int) -> list[Mistake]:
    A, dZ, right = _weight_names(problem, layer)

    def operands(s: Pass) -> tuple[Any, Any]:
        return s.A(layer - 1), s[f"dZ{layer}"]

    swapped = "operands or transposes are swapped in the product; it passes unseen where the sizes are equal"
    times = "an elementwise product stands for the matrix product; nothing is summed over the samples"
    over_units = "the sum goes over the units of the layer instead of the samples"
    variants: list[tuple[str, str, str, Callable[[Any, Any], Any], float]] = [
        ("transposed", swapped, f"{dZ} @ {A}.T", lambda a, d: d @ a.T, 1.1),
        ("transposed", swapped, f"{A} @ {dZ}.T", lambda a, d: a @ d.T, 1.1),
        ("transposed", swapped, f"{A} @ {dZ}", lambda a, d: a @ d, 1.15),
        ("transposed", swapped, f"{dZ} @ {A}", lambda a, d: d @ a, 1.15),
        ("elementwise-for-matmul", times, f"{A} * {dZ}", lambda a, d: a * d, 1.0),
        ("elementwise-for-matmul", times, f"{A}.T * {dZ}", lambda a, d: a.T * d, 1.05),
        ("elementwise-for-matmul", times, f"({A} * {dZ}).sum(axis=0)", lambda a, d: (a * d).sum(axis=0), 1.1),
        ("elementwise-for-matmul", times, f"({A} * {dZ}).sum()", lambda a, d: (a * d).sum(), 1.2),
    ]
    if problem.sizes[layer] > 1:
        written = f"{A} * {dZ}.sum(axis=1, keepdims=True)"
        variants.append(
            ("sum-over-hidden", over_units, written, lambda a, d: a * d.sum(axis=1, keepdims=True), 0.9)
        )
    found = [
        Mistake(
            Words(id, f"layer {layer}: {says}", f"dW{layer} = {wrong}", right, cost=cost),
            (
                _replacing(
                    f"dW{layer}",
                    lambda s, value=value: s.decayed(layer, value(*operands(s))),  # type: ignore[misc]
                ),
            ),
        )
        for id, says, wrong, value, cost in variants
    ]
    if layer < problem.L and problem.sizes[layer] > 1:
        says = f"layer {layer}: {over_units}, and the derivative of {problem.activation} is missing"
        words = Words(
            "sum-over-hidden",
            says,
            f"dW{layer} = {A} * dA{layer}.sum(axis=1, keepdims=True)",
            right,
            cost=0.95,
        )

        def unmasked(s: Pass) -> Any:
            return s.decayed(layer, s.A(layer - 1) * s[f"dA{layer}"].sum(axis=1, keepdims=True))

        found.append(Mistake(words, (_replacing(f"dW{layer}", unmasked),), reads=(f"dA{layer}",)))
    if layer > 1:
        words = Words(
            "preactivation-for-activation",
            f"layer {layer}: its input is {A}, after the activation, but Z{layer - 1} was used",
            f"dW{layer} = Z{layer - 1}.T @ {dZ}",
            right,
        )
        hook = _replacing(f"dW{layer}", lambda s: s.decayed(layer, s.Z(layer - 1).T @ s[f"dZ{layer}"]))
        found.append(Mistake(words, (hook,)))
    return found


def _input_products(problem: Problem, layer: int) -> list[Mistake]:
    """dA{layer} = dZ{above} @ W{above}.T."""
    above = layer + 1
    dA, dZ, W, dW = f"dA{layer}", f"dZ{above}", f"W{above}", f"dW{above}"
    right = f"{dA} = {dZ} @ {W}.T"
    swapped = f"layer {above}: {W} is not transposed; it passes unseen where the sizes are equal"
    times = f"layer {above}: an elementwise product with {W} stands for the matrix product"
    variants: list[tuple[str, str, str, Callable[[Pass], Any], tuple[str, ...], float]] = [
        (
            "gradient-used-for-weight",
            f"the gradient {dW} is used where the weight {W} belongs",
            f"{dA} = {dZ} @ {dW}.T",
            lambda s: s[dZ] @ s.weight_gradient(above).T,
            (dW,),
            1.0,
        ),
        ("transposed", swapped, f"{dA} = {dZ} @ {W}", lambda s: s[dZ] @ s.W(above), (), 1.1),
        ("elementwise-for-matmul", times, f"{dA} = {dZ} * {W}.T", lambda s: s[dZ] * s.W(above).T, (), 1.1),
        ("elementwise-for-matmul", times, f"{dA} = {dZ} * {W}", lambda s: s[dZ] * s.W(above), (), 1.1),
    ]
    if problem.sizes[above] > 1:
        for at, which in ((-1, "last"), (0, "first")):
            part = slice(at, None) if at else slice(0, 1)
            variants.append(
                (
                    "fork-overwritten",
                    f"A{layer} feeds every output, so the gradients of all paths add up; only the path "
                    f"through the {which} one is left (= for +=)",
                    f"{dA} = {dZ}[:, {at}:] @ {W}[:, {at}:].T"
                    if at
                    else f"{dA} = {dZ}[:, :1] @ {W}[:, :1].T",
                    lambda s, part=part: s[dZ][:, part] @ s.W(above)[:, part].T,  # type: ignore[misc]
                    (),
                    1.1,
                )
            )
    found = [
        Mistake(Words(id, says, wrong, right, cost=cost), (_replacing(dA, value),), reads=reads)
        for id, says, wrong, value, reads, cost in variants
    ]
    return found


def _updated_first(problem: Problem, layers: tuple[int, ...]) -> Mistake:
    """dAl for each of ``layers`` goes through the W above after its update."""
    layer = layers[-1]
    dA, dZ, W, dW = f"dA{layer}", f"dZ{layer + 1}", f"W{layer + 1}", f"dW{layer + 1}"
    words = Words(
        "second-layer-updated-first",
        f"{W} was updated before the gradient went back through it: {dA} has the new {W} in it, not the one "
        "of the forward pass",
        f"{W} -= lr * {dW};  {dA} = {dZ} @ {W}.T",
        f"{dA} = {dZ} @ {W}.T;  {W} -= lr * {dW}",
    )

    def through_updated(s: Pass, c: float, above: int) -> Any:
        return s[f"dZ{above}"] @ (s.W(above) - s.weight_gradient(above) * c).T

    hooks = tuple(
        Hook(
            f"dA{at}",
            lambda s, v, c, above=at + 1: through_updated(s, c, above),  # type: ignore[misc]
            replaces=True,
        )
        for at in layers
    )
    return Mistake(words, hooks, constant="lr", reads=tuple(f"dW{at + 1}" for at in layers))


def _activation_products(problem: Problem, layer: int) -> list[Mistake]:
    """A matrix product where dZ = dA ∘ f'(Z) is elementwise."""
    U, d = upstream_name(problem, layer), derivative_formula(problem, layer)
    says = f"layer {layer}: a matrix product stands for the elementwise product with the derivative"
    stage = f"dZ{layer}"
    variants: tuple[tuple[str, Callable[[Any, Any], Any]], ...] = (
        (f"{U} @ {d}.T", lambda u, m: _samples_by_samples(u, m)),
        (f"{d}.T @ {U}", lambda u, m: m.T @ u),
        (f"{U}.T @ {d}", lambda u, m: u.T @ m),
        (f"{U} @ {d}", lambda u, m: u @ m),
        (f"{d} @ {U}.T", lambda u, m: _samples_by_samples(m, u)),
        (f"({U} * {d}).sum(axis=1, keepdims=True)", lambda u, m: (u * m).sum(axis=1, keepdims=True)),
    )
    return [
        Mistake(
            Words("elementwise-for-matmul", says, f"{stage} = {wrong}", f"{stage} = {U} * {d}", cost=1.1),
            (
                _replacing(
                    stage,
                    lambda s, value=value: value(s.upstream(layer), s.derivative(layer)),  # type: ignore[misc]
                ),
            ),
        )
        for wrong, value in variants
    ]


def _samples_by_samples(a: Any, b: Any) -> Any:
    require_few(a.shape[0])
    return a @ b.T


def _misplaced_parenthesis(problem: Problem) -> list[Mistake]:
    """(y_hat - y * wᵀ) for (y_hat - y) * wᵀ, before the last layer; with and without f'."""
    if problem.C != 1:
        return []
    L = problem.L
    mse = problem.loss == "mse"
    scale = (2.0 if mse else 1.0) / problem.count
    name, two = ("Y_hat", "2 * ") if mse else ("P", "")

    def predicted(s: Pass) -> Any:
        return s.A(L) if mse else s.problem.probabilities

    def on_target(s: Pass) -> Any:
        return (predicted(s) - s.problem.y * s.W(L).T) * scale

    def on_prediction(s: Pass) -> Any:
        return (predicted(s) * s.W(L).T - s.problem.y) * scale

    stage, mask = f"dZ{L - 1}", derivative_formula(problem, L - 1)
    variants: tuple[tuple[str, Callable[[Pass], Any]], ...] = (
        (f"({name} - y * W{L}.T)", on_target),
        (f"({name} * W{L}.T - y)", on_prediction),
    )
    found = []
    for wrong, value in variants:
        for masked in (False, True):
            if masked and problem.activation == "identity":
                continue
            words = Words(
                "misplaced-parenthesis",
                f"a parenthesis is misplaced: W{L}ᵀ multiplies only one of the two terms of the residual"
                + (
                    ""
                    if masked or problem.activation == "identity"
                    else f", and {problem.activation}' is missing"
                ),
                f"{stage} = {two}{wrong}" + (f" * {mask}" if masked else ""),
                f"{stage} = {two}(({name} - y) @ W{L}.T) * {mask}",
                cost=0.95 if not masked else 1.0,
            )
            hook = _replacing(
                stage,
                lambda s, value=value, masked=masked: (  # type: ignore[misc]
                    value(s) * s.derivative(L - 1) if masked else value(s)
                ),
            )
            found.append(Mistake(words, (hook,)))
    return found


def _samples_overwritten(problem: Problem) -> list[Mistake]:
    """Only one sample's gradient is left of a loop over the samples."""
    layers: Sequence[int] = range(1, problem.L + 1)
    found = []
    for at, which in ((slice(-1, None), "last"), (slice(0, 1), "first")):
        words = Words(
            "fork-overwritten",
            f"only the {which} sample's gradient is left: the parameters are used by every sample, so the "
            "samples' gradients add up (+=), but each overwrote the one before (=)",
            "for n in range(N): dW = np.outer(a[n], dZ[n])",
            "for n in range(N): dW += np.outer(a[n], dZ[n])",
            cost=1.1,
        )
        hooks = [
            _replacing(
                f"dW{layer}",
                lambda s, l=layer, at=at: s.decayed(l, s.A(l - 1)[at].T @ s[f"dZ{l}"][at]),  # type: ignore[misc]
            )
            for layer in layers
        ] + [
            _replacing(
                f"db{layer}",
                lambda s, l=layer, at=at: s[f"dZ{l}"][at].sum(axis=0),  # type: ignore[misc]
            )
            for layer in bias_layers(problem)
        ]
        found.append(Mistake(words, tuple(hooks)))
    return found
