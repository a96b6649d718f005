"""The formulas of a network's forward and backward pass, as text, by the name of what they give."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from handgrad.network import MLP

_FUNCTIONS = {
    "relu": "max({}, 0)",
    "sigmoid": "σ({})",
    "tanh": "tanh({})",
    "softplus": "log(1 + e^{})",
    "identity": "{}",
}
# f' from the output A or the pre-activation Z
_SLOPES = {
    "relu": "({Z} > 0)",
    "sigmoid": "{A} ∘ (1 - {A})",
    "tanh": "(1 - {A}²)",
    "softplus": "(1 - e^-{A})",
    "identity": "",
}
_LOSSES = {
    "mse": ("Σ (Y_hat - y)²", "N C"),
    "bce": ("Σ log(1 + e^Y_hat) - y Y_hat", "N C"),
    "cross_entropy": ("Σ log Σ_j e^Y_hat_j - Y_hat_y", "N"),
    "hinge": ("Σ_j≠y max(0, Y_hat_j - Y_hat_y + 1)", "N"),
}
_LOSS_GRADIENTS = {
    "mse": "2 (Y_hat - y)",
    "bce": "σ(Y_hat) - y",
    "cross_entropy": "softmax(Y_hat) - I_y",
    "hinge": "V - I_y Σ_j V",  # V = 1 where the margin is violated
}


def forward_formulas(net: MLP) -> dict[str, str]:
    """X, W1, b1, Z1, A1, …, Y_hat → formula, in the order of the forward pass."""
    found = {"X": "inputs"}
    for layer in range(1, net.layers + 1):
        below = "X" if layer == 1 else f"A{layer - 1}"
        found[f"W{layer}"] = "parameter"
        bias = f" + b{layer}" if net.bias else ""
        if net.bias:
            found[f"b{layer}"] = "parameter"
        found[f"Z{layer}"] = f"{below} W{layer}{bias}"
        if layer < net.layers:
            found[f"A{layer}"] = _FUNCTIONS[net.activation].format(f"Z{layer}")
    found["Y_hat"] = _FUNCTIONS[net.output].format(f"Z{net.layers}")
    return found


def loss_formula(net: MLP) -> str:
    """The loss, of Y_hat and y."""
    formula, count = _LOSSES[net.loss_name]
    return (
        formula
        if net.reduction == "sum"
        else f"1/({count}) {formula}"
        if " " in count
        else f"1/{count} {formula}"
    )


def backward_formulas(net: MLP) -> dict[str, str]:
    """dZ_L, dW_L, db_L, dA_{L-1}, …, dX → formula, in the order of the backward pass."""
    _, count = _LOSSES[net.loss_name]
    gradient = _LOSS_GRADIENTS[net.loss_name]
    if net.reduction == "mean":
        gradient = gradient if gradient.startswith("2 (") else f"({gradient})"
        gradient = f"{gradient} / {count if ' ' not in count else f'({count})'}"
    slope = _SLOPES[net.output].format(Z=f"Z{net.layers}", A="Y_hat")
    found = {f"dZ{net.layers}": f"{gradient} ∘ {slope}" if slope else gradient}
    for layer in range(net.layers, 0, -1):
        below = "X" if layer == 1 else f"A{layer - 1}"
        found[f"dW{layer}"] = f"{below}ᵀ dZ{layer}"
        if net.bias:
            found[f"db{layer}"] = f"Σ_n dZ{layer}"
        found["dX" if layer == 1 else f"dA{layer - 1}"] = f"dZ{layer} W{layer}ᵀ"
        if layer > 1:
            slope = _SLOPES[net.activation].format(Z=f"Z{layer - 1}", A=f"A{layer - 1}")
            found[f"dZ{layer - 1}"] = f"dA{layer - 1} ∘ {slope}" if slope else f"dA{layer - 1}"
    return found
