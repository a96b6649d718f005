"""Floating-point operations of a launch, by formula: the emulator counts accesses, not arithmetic.

A sum, product, comparison, division or function (exp, log, sqrt, ...) is one operation, a multiply-add two.
Small terms that do not grow with a size of the launch are left out.
"""

from __future__ import annotations

SOURCE = "formula"

# Operations an element, forward f(z) and backward da f'(z), as kernels/activation.cuh writes them.
ACTIVATION = {"relu": (1, 1), "sigmoid": (4, 3), "tanh": (1, 4), "softplus": (6, 4), "identity": (0, 0)}
RULE = {"Sgd": 3, "Momentum": 5, "Adam": 15}  # an element, the scaling of the gradient included


def activation_forward(n: int, name: str) -> int:
    """f(z) of n elements."""
    return n * ACTIVATION[name][0]


def activation_backward(n: int, name: str) -> int:
    """da f'(z) of n elements."""
    return n * ACTIVATION[name][1]


def gather(rows: int, D: int) -> int:
    """A product and a sum for each element."""
    return 2 * rows * D


def linear_forward(N: int, D: int, H: int, activation: str) -> int:
    """f(X W + b): 2 N D H, and bias and f for each of the N H results."""
    return 2 * N * D * H + N * H + activation_forward(N * H, activation)


def linear_backward_input(N: int, C: int, H: int, activation: str) -> int:
    """(dZ Wᵀ) f'(A): 2 N C H, and f' for each of the N H results."""
    return 2 * N * C * H + activation_backward(N * H, activation)


def linear_backward_weight(N: int, D: int, H: int) -> int:
    """Xᵀ dZ and Σ dZ: 2 N D H + N H."""
    return 2 * N * D * H + N * H


def reduce_partials(S: int, D: int, H: int) -> int:
    """S - 1 sums for each of the D H + H results."""
    return (S - 1) * (D * H + H)


def loss_elementwise(N: int, C: int, loss: str) -> int:
    """mse of the identity: residual, its square, the sum, two products; bce: sigmoid, exp and log besides."""
    return N * C * {"mse": 5, "bce": 15}[loss]


def loss_rows(N: int, C: int, loss: str) -> int:
    """Of each row of C logits; cross_entropy takes two exponentials an element, hinge none."""
    return N * C * {"cross_entropy": 9, "hinge": 5}[loss] + 4 * N


def gradient_squares(size: int) -> int:
    """A product and a sum for each element."""
    return 2 * size


def optimizer_update(size: int, rule: str) -> int:
    """The rule's operations for each element."""
    return size * RULE[rule]
