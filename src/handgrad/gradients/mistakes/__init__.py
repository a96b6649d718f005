"""The commonest mistakes in hand-written backpropagation, each as a backward pass that makes it."""

from __future__ import annotations

from handgrad.gradients.mistakes import activation, bias, constant, loss, product
from handgrad.gradients.mistakes.constant import Reading, readings
from handgrad.gradients.mistakes.mistake import Mistake, Words
from handgrad.gradients.staged import Problem

__all__ = ["Mistake", "Reading", "Words", "mistakes_of", "readings"]


def mistakes_of(problem: Problem) -> list[Mistake]:
    """Every mistake that this network and loss allow."""
    subjects = (activation, loss, bias, product, constant)
    return [mistake for subject in subjects for mistake in subject.mistakes(problem)]
