"""Mistakes that multiply by a constant or add one times W: the hooks, and the names of the constants.

The constant itself is read from the person's gradient; :func:`readings` says which mistakes it can mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from handgrad.gradients.mistakes.loss import right_line
from handgrad.gradients.mistakes.mistake import Mistake, Words, bias_layers, multiplied
from handgrad.gradients.staged import Hook, Problem

MOST_ACCUMULATED = 64  # gradients added up without zeroing: a greater factor is called a scale
UNNAMED = 1.6  # what a constant without a name costs beside a named one
LEAST_FACTOR = 1e-4  # nearer to 1, a factor is no mistake but somebody's rounding
LONGEST_BATCH = 100_000


@dataclass(frozen=True)
class Reading:
    """One meaning of a constant: the mistakes that it stands for (two for a sign and a factor)."""

    words: tuple[Words, ...]
    constant: float
    exact: bool = True  # whether it has a name and is known exactly, not only as well as it could be measured

    @property
    def cost(self) -> float:
        """The mistakes' costs together."""
        return sum(word.cost for word in self.words)


def mistakes(problem: Problem) -> list[Mistake]:
    """Hypotheses with a free constant, by the stages that it multiplies."""
    L = problem.L
    weights = [f"dW{layer}" for layer in range(1, L + 1)]
    biases = [f"db{layer}" for layer in bias_layers(problem)]
    groups = [("all, source", [problem.source]), ("all, end", weights + biases)]
    groups += [(f"layer {layer}", [f"dZ{layer}"]) for layer in range(1, L)]
    if biases and L > 1:
        groups.append(("weights", weights))
        groups.append(("biases", biases))
    if L > 1:
        groups.append(("last layer", [stage for stage in (f"dW{L}", f"db{L}") if stage in weights + biases]))
    groups += [("one", [stage]) for stage in weights + biases]
    found = []
    for place, stages in groups:
        hooks = tuple(Hook(stage, multiplied, order=6) for stage in stages)
        found.append(Mistake(Words("scale", place, "", ""), hooks, constant=place))
    decay = tuple(
        Hook(f"dW{layer}", lambda s, v, c, at=layer: v + c * s.W(at), order=4)  # type: ignore[misc]
        for layer in range(1, L + 1)
    )
    found.append(Mistake(Words("weight-decay-missing", "decay", "", ""), decay, constant="decay"))
    return found


def readings(mistake: Mistake, c: float, tolerance: float, problem: Problem) -> list[Reading]:
    """The meanings of the constant ``c`` (± ``tolerance`` c) of a mistake that has one, likeliest first."""
    if not math.isfinite(c) or c == 0:
        return []
    kind = mistake.constant
    if kind == "lr":
        return _learning_rate(mistake.words, c, tolerance, problem)
    if kind == "decay":
        return _decay(c, tolerance, problem)
    return sorted(_factors(mistake, c, tolerance, problem), key=lambda reading: reading.cost)


# ---- factors ---------------------------------------------------------------------------------------------


def named_constants(problem: Problem) -> list[tuple[float, str, float]]:
    """(value, name, cost) of sizes and their products that a gradient is multiplied with by mistake."""
    N, K = float(problem.N), float(problem.C)
    sizes = [(N, "N", 1.05), (K, "K", 1.05), (N * K, "N K", 1.05), (N**2, "N²", 1.05), (N / K, "N/K", 1.2)]
    sizes += [(N**2 * K, "N² K", 1.09), ((N * K) ** 2, "(N K)²", 1.09), (float(problem.D), "D", 1.25)]
    for layer, width in enumerate(problem.sizes[1:-1], 1):
        sizes.append((float(width), "H" if problem.L == 2 else f"H{layer}", 1.25))
    named = []
    for value, name, cost in sizes:
        if value != 1:
            inverse = "K/N" if name == "N/K" else f"1/({name})" if " " in name else f"1/{name}"
            named += [(value, name, cost), (1 / value, inverse, cost)]
    return named


def _close(a: float, b: float, tolerance: float) -> bool:
    return abs(a - b) <= tolerance * abs(b)


def _factors(mistake: Mistake, c: float, tolerance: float, problem: Problem) -> list[Reading]:
    place, names = mistake.constant, _parameter_names(mistake, problem)
    everywhere = place.startswith("all")
    found: list[Reading] = []
    if problem.lr and _close(c, -problem.lr, tolerance):
        words = _scale_words(mistake, problem, c, "-lr", names, cost=1.0)
        says = f"{names} is the step -lr * gradient (lr = {problem.lr:g}), not the gradient"
        found.append(Reading((replace(words, says=says, right="gradient = step / -lr"),), -problem.lr))
    sign: tuple[Words, ...] = ()
    if c < 0:
        sign = (_sign_words(mistake, problem, names),)
        c = -c
    if _close(c, 1.0, max(tolerance, LEAST_FACTOR)):
        return [*found, Reading(sign, -1.0)] if sign else []
    direction = -1.0 if sign else 1.0
    named = False
    for magnitude, factors in _magnitudes(mistake, c, tolerance, problem, names, everywhere):
        named = True
        found.append(Reading(sign + factors, direction * magnitude))
    if not named:
        unnamed = _scale_words(mistake, problem, c, "", names, cost=1.0 + UNNAMED)
        found.append(Reading((*sign, unnamed), direction * c, exact=False))
    return found


def _magnitudes(
    mistake: Mistake, c: float, tolerance: float, problem: Problem, names: str, everywhere: bool
) -> list[tuple[float, tuple[Words, ...]]]:
    """(exact value, mistakes) of every meaning of a positive factor other than 1."""
    found: list[tuple[float, tuple[Words, ...]]] = []
    right = right_line(problem)
    named = named_constants(problem)
    if everywhere:
        for two, text in ((2.0, "twice"), (0.5, "half")):
            if _close(c, two, tolerance):
                found.append((two, (_factor_two_words(problem, names, text, right),)))
        times = round(c)
        if 2 <= times <= MOST_ACCUMULATED and _close(c, times, tolerance):
            found.append((float(times), (_not_zeroed_words(names, times),)))
    for value, text, cost in named:
        if _close(c, value, tolerance):
            found.append((value, (_scale_words(mistake, problem, value, text, names, cost),)))
    if not everywhere and (_close(c, 2.0, tolerance) or _close(c, 0.5, tolerance)):
        value = 2.0 if c > 1 else 0.5
        found.append(
            (value, (_scale_words(mistake, problem, value, "2" if c > 1 else "½", names, cost=1.1),))
        )
    if everywhere and not found:
        for value, text, cost in named:
            for two, word in ((2.0, "twice"), (0.5, "half")):
                if _close(c, two * value, tolerance):
                    scale = _scale_words(mistake, problem, value, text, names, cost)
                    found.append((two * value, (_factor_two_words(problem, names, word, right), scale)))
    if everywhere:
        batch = round(problem.N / c) if c < 1 else 0
        if (
            problem.N < batch <= LONGEST_BATCH
            and _close(c, problem.N / batch, tolerance)
            and batch * tolerance < 0.2
        ):
            found.append(
                (problem.N / batch, (_short_batch_words(problem, names, batch, 1.5 if found else 1.1),))
            )
    return found


def _sign_words(mistake: Mistake, problem: Problem, names: str) -> Words:
    right = right_line(problem)
    place = mistake.constant
    if place.startswith("all"):
        wrong = right.replace("(Y_hat - y)", "(y - Y_hat)").replace("(P - ", "-(P - ")
        says = f"{names} has the wrong sign throughout, as from y - y_hat instead of y_hat - y"
    else:
        stage = mistake.hooks[0].stage
        wrong, right = f"{stage} = -(…)", f"{stage} = …"
        says = f"{names} has the wrong sign throughout"
    return Words("sign", says, wrong, right)


def _factor_two_words(problem: Problem, names: str, times: str, right: str) -> Words:
    missing = times == "half"
    if problem.loss == "mse" and missing:
        says = f"{names} is half the right gradient: the 2 from the derivative of the square is missing"
        wrong = right.replace("2 * ", "")
    else:
        says = f"{names} is {times} the right gradient"
        wrong = right.replace("= ", "= 0.5 * " if missing else "= 2 * ")
    experiment = (
        "print the loss's gradient dZ for one sample: if it is right, gradients were accumulated "
        "(not-zeroed); then a second call in a row gives another multiple"
    )
    return Words("factor-two", says, wrong, right, experiment)


def _not_zeroed_words(names: str, times: int) -> Words:
    return Words(
        "not-zeroed",
        f"{names} is {times} times the right gradient, as after {times} backward passes into gradients that "
        "were not set to zero between them",
        "grad += dW  (with the last step's gradient still in it)",
        "grad[...] = 0 before each backward pass, then grad += dW",
        "compute the gradient twice in a row: if the second is twice the first, it was not zeroed; if it is "
        "the same, the factor is in the formula",
        cost=1.15 if times == 2 else 1.1,
    )


def _short_batch_words(problem: Problem, names: str, batch: int, cost: float) -> Words:
    return Words(
        "short-batch",
        f"{names} is {problem.N}/{batch} of the right gradient: as if this batch of {problem.N} samples had "
        f"been divided by a full batch of {batch}",
        f"… / {batch}",
        f"… / {problem.N}  (len(batch), not the batch size)",
        "compute it for a full batch: a short batch divided by the full size is then right, a wrong scale is "
        "not",
        cost=cost,
    )


def _scale_words(mistake: Mistake, problem: Problem, c: float, text: str, names: str, cost: float) -> Words:
    place = mistake.constant
    number = f"{c:.6g}"
    amount = f"{text} = {number}" if text not in ("", number) else number
    says = f"{names} is {amount} times the right gradient"
    if place.startswith("layer"):
        stage = mistake.hooks[0].stage
        return Words(
            "scale-layer-1",
            f"{says}, while the layers above are right: an extra factor in {stage}",
            f"{stage} = {text or f'{c:.6g}'} * dA{stage[2:]} * f'(Z{stage[2:]})",
            f"{stage} = dA{stage[2:]} * f'(Z{stage[2:]})",
            cost=cost,
        )
    if place.startswith("all"):
        right = right_line(problem)
        return Words("scale", says, right.replace("= ", f"= {text or f'{c:.6g}'} * ", 1), right, cost=cost)
    stage = mistake.hooks[0].stage
    rule = (
        f"{stage} = dZ{stage[2:]}.sum(axis=0)" if stage.startswith("db") else f"{stage} = A.T @ dZ{stage[2:]}"
    )
    wrong = rule.replace("= ", f"= {text or f'{c:.6g}'} * ", 1)
    return Words("scale", f"{says}; the other gradients are not", wrong, rule, cost=cost + 0.05)


def _parameter_names(mistake: Mistake, problem: Problem) -> str:
    place = mistake.constant
    if place.startswith("all"):
        return "every gradient"
    if place.startswith("layer"):
        top = int(place.split()[1])
        layers = range(top, 0, -1)
        stages = [stage for layer in reversed(layers) for stage in (f"dW{layer}", f"db{layer}")]
        return ", ".join(stage for stage in stages if stage[1:] in problem.parameters)
    return ", ".join(hook.stage for hook in mistake.hooks)


# ---- learning rate and weight decay ------------------------------------------------------------------------


def _learning_rate(words: Words, c: float, tolerance: float, problem: Problem) -> list[Reading]:
    if c < 0:
        return []
    if problem.lr and _close(c, problem.lr, max(tolerance, 1e-6)):
        return [Reading((words,), problem.lr)]
    stated = f"; the numbers fit lr = {c:.6g}" + (f", not {problem.lr:g}" if problem.lr else "")
    return [
        Reading((replace(words, says=words.says + stated, cost=1.3 if problem.lr else 1.1),), c, exact=False)
    ]


def _decay(c: float, tolerance: float, problem: Problem) -> list[Reading]:
    given = problem.weight_decay
    rule = f"dW = A.T @ dZ + {given:g} * W" if given else "dW = A.T @ dZ"
    found = []
    if given and _close(c, -given, tolerance):
        words = Words(
            "weight-decay-missing",
            f"the weight decay λ W (λ = {given:g}) is missing in the weights' gradients",
            "dW = A.T @ dZ",
            rule,
        )
        found.append(Reading((words,), -given))
    elif given and _close(c, given, tolerance):
        words = Words(
            "weight-decay-doubled",
            f"the weight decay λ W (λ = {given:g}) is in the weights' gradients twice, as from a loss λ ‖W‖² "
            "or from adding it in the gradient and in the optimizer",
            f"dW = A.T @ dZ + {2 * given:g} * W",
            rule,
        )
        found.append(Reading((words,), given))
    elif c > 0:
        words = Words(
            "weight-decay-doubled",
            f"the weights' gradients contain {given + c:.6g} W, but weight_decay is {given:g}: leave it to "
            f"the optimizer alone, or pass weight_decay={given + c:.6g} if it belongs there",
            f"dW = A.T @ dZ + {given + c:.6g} * W",
            rule,
            cost=1.3,
        )
        found.append(Reading((words,), c, exact=False))
    elif given:
        words = Words(
            "weight-decay-missing",
            f"the weights' gradients contain {given + c:.6g} W instead of {given:g} W",
            f"dW = A.T @ dZ + {given + c:.6g} * W",
            rule,
            cost=1.3,
        )
        found.append(Reading((words,), c, exact=False))
    return found
