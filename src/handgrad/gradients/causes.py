"""From explanations to a ranked list of causes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from handgrad.gradients.explanation import Explanation
from handgrad.gradients.mistakes import Words
from handgrad.gradients.report import Cause

WITHIN = 0.75  # explanations that cost so much more than the likeliest are still named
MOST = 6  # causes named
MOST_CERTAIN = 0.99  # no explanation from numbers alone is surer


def ranked(explanations: Sequence[Explanation], certainty: float = 1.0) -> list[Cause]:
    """The causes of the likeliest explanation, then those of others that are about as likely."""
    if not explanations:
        return []
    best = explanations[0]
    kept = [e for e in explanations if e.cost <= best.cost + WITHIN]
    weights = [math.exp(-4.0 * (e.cost - best.cost)) for e in kept]
    share = {id: 0.0 for e in kept for id in e.ids}
    for explanation, weight in zip(kept, weights, strict=True):
        for id in set(explanation.ids):
            share[id] += weight / sum(weights)
    certainty *= MOST_CERTAIN * (0.7 if best.cost > 2.3 * len(best.words) else 1.0)
    causes: list[Cause] = []
    for explanation in kept:
        for words, stages in zip(explanation.words, explanation.stages, strict=True):
            if any(cause.id == words.id for cause in causes):
                continue
            partners = [id for id in explanation.ids if id != words.id]
            causes.append(
                _cause(words, stages, explanation, share[words.id] * certainty, partners, causes, best)
            )
    return causes[:MOST]


def _cause(
    words: Words,
    stages: Sequence[str],
    explanation: Explanation,
    confidence: float,
    partners: list[str],
    before: Sequence[Cause],
    best: Explanation,
) -> Cause:
    return Cause(
        id=words.id,
        parameters=tuple(dict.fromkeys(name_of(stage) for stage in stages if stage[1] in "Wb")),
        residual=explanation.residual,
        confidence=confidence,
        explanation=f"{_sentence(words.says)} As written: {words.wrong}."
        if words.wrong
        else _sentence(words.says),
        correction=words.right,
        experiment=words.experiment if words.experiment else "",
        together_with=tuple(partners),
        alternative=bool(before) and explanation is not best,
    )


def name_of(stage: str) -> str:
    """The parameter of a gradient (dW1 → W1); intermediates keep their name."""
    return stage[1:] if stage[1] in "Wb" else stage


def _sentence(text: str) -> str:
    """With a capital, unless it begins with a formula, and a full stop."""
    if re.match(r"[a-z]+(?!\w)", text):
        text = text[:1].upper() + text[1:]
    return text + ("" if text.endswith(".") else ".")
