"""Random two-layer networks with a batch, and their forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

WIDTHS = (3, 5, 6, 7, 9, 10, 11, 12, 13, 14)
COUNTS = (17, 18, 19, 21, 22, 23, 25, 26, 27, 29, 31, 33)
ACTIVATIONS = ("relu", "sigmoid", "tanh", "softplus", "identity")
LOSSES = ("mse", "bce", "cross_entropy", "hinge")


def f(name: str, z: Array) -> Array:
    if name == "relu":
        return np.where(z > 0, z, 0 * z)
    if name == "sigmoid":
        return 1 / (1 + np.exp(-z))
    if name == "tanh":
        return np.tanh(z)
    if name == "softplus":
        return np.log(1 + np.exp(z))
    return z


def df(name: str, z: Array) -> Array:
    if name == "relu":
        return (z > 0).astype(z.dtype)
    if name == "sigmoid":
        s = 1 / (1 + np.exp(-z))
        return s * (1 - s)
    if name == "tanh":
        return 1 - np.tanh(z) ** 2
    if name == "softplus":
        return 1 / (1 + np.exp(-z))
    return np.ones_like(z)


@dataclass
class Network:
    """X (N, D), W1 (D, H), b1 (H,), W2 (H, C), b2 (C,); the forward pass is done."""

    X: Array
    y: Array  # (N, C), (N, 1) or labels (N,)
    W1: Array
    b1: Array
    W2: Array
    b2: Array
    activation: str
    output: str
    loss: str
    reduction: str
    lr: float = 0.1
    weight_decay: float = 0.0
    batch: int = 64  # what a full batch holds

    def __post_init__(self) -> None:
        self.N, self.D = self.X.shape
        self.H, self.C = self.W2.shape
        with np.errstate(over="ignore", invalid="ignore"):  # 1 / (1 + inf) is 0, the right limit
            self._forward()

    def _forward(self) -> None:  # huge logits overflow here as they would in a plain formula
        self.Z1 = self.X @ self.W1 + self.b1
        self.A1 = f(self.activation, self.Z1)
        self.Z2 = self.A1 @ self.W2 + self.b2
        self.Y_hat = f(self.output, self.Z2)
        self.df1 = df(self.activation, self.Z1)
        self.df2 = df(self.output, self.Z2)
        if self.loss == "cross_entropy":
            e = np.exp(self.Z2 - self.Z2.max(axis=1, keepdims=True))
            self.P = e / e.sum(axis=1, keepdims=True)
        elif self.loss == "bce":
            self.P = 1 / (1 + np.exp(-self.Z2))
        if self.loss in ("cross_entropy", "hinge"):
            self.I = np.zeros_like(self.Z2)
            self.I[np.arange(self.N), self.y] = 1
        self.count = 1 if self.reduction == "sum" else self.N * (self.C if self.loss in ("mse", "bce") else 1)

    @property
    def parameters(self) -> dict[str, Array]:
        return {"W1": self.W1, "b1": self.b1, "W2": self.W2, "b2": self.b2}


def draw(
    random: np.random.Generator,
    *,
    loss: str | None = None,
    activation: str | None = None,
    output: str | None = None,
    reduction: str | None = None,
    one_output: bool = False,
    sizes: tuple[int, int, int, int] | None = None,
    dtype: Any = np.float64,
) -> Network:
    """A random network; N, D, H, C are distinct and no powers of two, but for C = 1 where it is asked for."""
    loss = loss or str(random.choice(LOSSES[:2] if one_output else LOSSES))
    activation = activation or str(random.choice(ACTIVATIONS))
    if output is None:
        output = str(random.choice(ACTIVATIONS)) if loss == "mse" and random.random() < 0.5 else "identity"
    reduction = reduction or str(random.choice(["mean", "mean", "sum"]))
    if sizes is None:
        D, H, C = (int(n) for n in random.choice(WIDTHS, 3, replace=False))
        sizes = int(random.choice(COUNTS)), D, H, 1 if one_output else C
    N, D, H, C = sizes
    X = random.normal(size=(N, D))
    y: Array
    if loss == "mse":
        y = random.normal(size=(N, C)).astype(dtype)
    elif loss == "bce":
        y = (random.random((N, C)) < 0.5).astype(dtype)
    else:
        y = random.integers(0, C, N)
    batch = next((b for b in random.permutation([32, 40, 48, 50, 64, 70, 100]).tolist() if b > N), N)
    return Network(
        X.astype(dtype),
        y,
        (random.normal(size=(D, H)) / np.sqrt(D)).astype(dtype),
        (0.3 * random.normal(size=H)).astype(dtype),
        (random.normal(size=(H, C)) / np.sqrt(H)).astype(dtype),
        (0.3 * random.normal(size=C)).astype(dtype),
        activation,
        output,
        loss,
        reduction,
        lr=float(random.choice([0.01, 0.1, 0.5])),
        batch=batch,
    )
