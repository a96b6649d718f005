"""The backward pass, line by line, right and wrong."""

from __future__ import annotations

from typing import Any

import numpy as np

from wrong_backward.networks import Array, Network, f


def backward(n: Network, *wrong: str) -> dict[str, Array]:
    """W1, b1, W2, b2 → gradient, and the intermediates dZ2, dA1, dZ1, with the named lines wrong.

    A line that raises for these shapes raises here too.
    """
    dZ2 = loss_gradient(n, set(wrong))
    dW2, db2 = second_layer(n, set(wrong), dZ2)
    dA1 = back_to_hidden(n, set(wrong), dZ2, dW2)
    dZ1 = through_activation(n, set(wrong), dZ2, dA1)
    dW1, db1 = first_layer(n, set(wrong), dZ1, dA1)
    gradients = afterwards(n, set(wrong), {"W1": dW1, "b1": db1, "W2": dW2, "b2": db2})
    return {**gradients, "dZ2": dZ2, "dA1": dA1, "dZ1": dZ1}


# ---- from the loss to dZ2


def loss_gradient(n: Network, wrong: set[str]) -> Array:
    N, K = n.N, n.C
    if n.loss == "mse":
        dY = 2 * residual(n, wrong) / n.count
        if "factor-two/square" in wrong:
            dY = dY / 2
        dZ2 = output_activation(n, wrong, dY)
    elif n.loss == "hinge":
        margins = n.Z2 - n.Z2[np.arange(N), n.y][:, None] + 1
        dZ2 = ((margins > 0) & (n.I == 0)).astype(n.Z2.dtype)
        if "one-hot-missing" not in wrong:
            dZ2[np.arange(N), n.y] = -dZ2.sum(axis=1)
        dZ2 = dZ2 / n.count
    else:
        dZ2 = residual(n, wrong) / n.count
        if "softmax-derivative-twice" in wrong:
            dZ2 = dZ2 * n.P * (1 - n.P)
        if "softmax-diagonal-jacobian" in wrong:
            dP = -n.I / n.P / n.count
            dZ2 = dP * n.P * (1 - n.P)
    if "sign/residual" in wrong:
        dZ2 = -dZ2
    if "factor-two/extra" in wrong:
        dZ2 = 2 * dZ2
    if "scale/divided-by-N-again" in wrong:
        dZ2 = dZ2 / N
    if "scale/times-N" in wrong:
        dZ2 = dZ2 * N
    if "scale/divided-by-K" in wrong:
        dZ2 = dZ2 / K
    if "scale/times-K" in wrong:
        dZ2 = dZ2 * K
    if "scale/times-N-K" in wrong:
        dZ2 = dZ2 * (N * K)
    if "scale/divided-by-N-squared" in wrong:
        dZ2 = dZ2 / N**2
    if "shape-for-count" in wrong:
        dZ2 = dZ2 * N / n.X.shape
    if "short-batch" in wrong:
        dZ2 = dZ2 * N / n.batch
    return dZ2


def residual(n: Network, wrong: set[str]) -> Array:
    predicted = n.Y_hat if n.loss == "mse" else n.P
    targets = n.I if n.loss == "cross_entropy" else n.y
    if "softmax-axis" in wrong:
        predicted = np.exp(n.Z2) / np.exp(n.Z2).sum(axis=0)
    if "softmax-over-everything" in wrong:
        predicted = np.exp(n.Z2) / np.exp(n.Z2).sum()
    if "one-hot-missing" in wrong:
        return predicted
    if "targets-broadcast/mean" in wrong:
        return (predicted - targets[:, 0]).mean(axis=1, keepdims=True)
    if "targets-broadcast/sum" in wrong:
        return (predicted - targets[:, 0]).sum(axis=1, keepdims=True)
    if "targets-broadcast/over-predictions" in wrong:
        return (predicted - targets[:, 0]).mean(axis=0)[:, None]
    if "targets-broadcast/matrix" in wrong:
        return predicted - targets[:, 0]
    return predicted - targets


def output_activation(n: Network, wrong: set[str], dY: Array) -> Array:
    if "activation-derivative-missing/output" in wrong:
        return dY
    if "upstream-overwritten/output" in wrong:
        return n.df2
    if "derivative-is-preactivation/output" in wrong:
        return dY * n.Z2
    if "derivative-argument/output-of-output" in wrong:
        if n.output == "sigmoid":
            s = f("sigmoid", n.Y_hat)
            return dY * s * (1 - s)
        if n.output == "tanh":
            return dY * (1 - np.tanh(n.Y_hat) ** 2)
        return dY * f("sigmoid", n.Y_hat)
    if "derivative-argument/z-in-a-formula-output" in wrong:
        if n.output == "sigmoid":
            return dY * n.Z2 * (1 - n.Z2)
        return dY * (1 - n.Z2**2)
    return dY * n.df2


# ---- layer 2


def second_layer(n: Network, wrong: set[str], dZ2: Array) -> tuple[Array, Array]:
    dW2 = n.A1.T @ dZ2
    if "preactivation-for-activation" in wrong:
        dW2 = n.Z1.T @ dZ2
    if "elementwise-for-matmul/dW2" in wrong:
        dW2 = n.A1 * dZ2
    if "elementwise-for-matmul/dW2-summed" in wrong:
        dW2 = np.array(np.sum(n.A1 * dZ2, axis=0)) * np.ones_like(n.W2)
    if "transposed/batch-square" in wrong:
        dW2 = dZ2 @ n.A1.T
    if "sum-over-hidden/second" in wrong:
        dW2 = np.array([n.A1[i] * sum(dZ2[i]) for i in range(n.N)])
    return decayed(n, wrong, dW2, n.W2), bias(wrong, "b2", n.A1, dZ2)


def decayed(n: Network, wrong: set[str], dW: Array, W: Array) -> Array:
    if "weight-decay-missing" in wrong or not n.weight_decay:
        return dW
    if "weight-decay-doubled" in wrong:
        return dW + 2 * n.weight_decay * W
    return dW + n.weight_decay * W


def bias(wrong: set[str], name: str, below: Array, dZ: Array) -> Array:
    for at in (name, "both"):
        if f"bias-not-summed/{at}" in wrong:
            return dZ
        if f"bias-averaged/{at}" in wrong:
            return np.mean(dZ, axis=0)
        if f"bias-summed-over-everything/{at}" in wrong:
            return np.full(dZ.shape[1], np.sum(dZ))
        if f"bias-summed-over-everything/{at}-scalar" in wrong:
            return np.asarray(dZ.sum())
        if f"bias-summed-over-axis-1/{at}" in wrong:
            return np.sum(dZ, axis=1)
        if f"bias-summed-over-axis-1/{at}-kept" in wrong:
            return np.sum(dZ, axis=1, keepdims=True)
        if f"bias-times-input/{at}" in wrong:
            return sum(below[i].sum() * dZ[i] for i in range(len(dZ)))
        if f"bias-times-input/{at}-product" in wrong:
            return below.T @ dZ
        if f"bias-missing/{at}" in wrong:
            return np.zeros(dZ.shape[1], dZ.dtype)
    return np.sum(dZ, axis=0)


# ---- back to layer 1


def back_to_hidden(n: Network, wrong: set[str], dZ2: Array, dW2: Array) -> Array:
    if "gradient-used-for-weight" in wrong:
        return dZ2 @ dW2.T
    if "second-layer-updated-first" in wrong:
        W2 = n.W2.copy()
        W2 -= n.lr * dW2
        return dZ2 @ W2.T
    if "fork-overwritten/last-output" in wrong:
        dA1 = np.zeros_like(n.A1)
        for k in range(n.C):
            dA1 = np.outer(dZ2[:, k], n.W2[:, k])
        return dA1
    if "elementwise-for-matmul/dA1" in wrong:
        return dZ2 * n.W2.T
    if "transposed/W2-not-transposed" in wrong:
        return dZ2 @ n.W2
    return dZ2 @ n.W2.T


def through_activation(n: Network, wrong: set[str], dZ2: Array, dA1: Array) -> Array:
    dZ1 = dA1 * n.df1
    if "activation-derivative-missing/hidden" in wrong:
        dZ1 = dA1
    if "mask-always-one" in wrong:
        dZ1 = dA1 * (n.A1 >= 0)
    if "mask-from-upstream-gradient/positive" in wrong:
        dZ1 = dA1.copy()
        dZ1[dA1 <= 0] = 0
    if "mask-from-upstream-gradient/sign" in wrong:
        dZ1 = dA1 * np.sign(dA1)
    if "mask-from-upstream-gradient/both" in wrong:
        dZ1 = np.where((n.Z1 > 0) & (dA1 > 0), dA1, 0)
    if "derivative-is-preactivation/z" in wrong:
        dZ1 = dA1 * n.Z1
    if "derivative-is-preactivation/a" in wrong:
        dZ1 = dA1 * n.A1
    if "upstream-overwritten/hidden" in wrong:
        dZ1 = n.df1
    if "derivative-argument/of-a" in wrong:
        s = f("tanh" if n.activation == "tanh" else "sigmoid", n.A1)
        dZ1 = dA1 * {"tanh": 1 - s**2, "sigmoid": s * (1 - s), "softplus": s}[n.activation]
    if "derivative-argument/z-in-a-formula" in wrong:
        z = n.Z1
        dZ1 = dA1 * {"tanh": 1 - z**2, "sigmoid": z * (1 - z), "softplus": 1 - np.exp(-z)}[n.activation]
    if "elementwise-for-matmul/dZ1" in wrong:
        dZ1 = dA1 @ n.df1.T
    if "misplaced-parenthesis/target" in wrong:
        factor = (2 if n.loss == "mse" else 1) / n.count
        dZ1 = factor * ((n.Y_hat if n.loss == "mse" else n.P) - n.y * n.W2.T)
    if "misplaced-parenthesis/target-masked" in wrong:
        factor = (2 if n.loss == "mse" else 1) / n.count
        dZ1 = factor * ((n.Y_hat if n.loss == "mse" else n.P) - n.y * n.W2.T) * n.df1
    if "misplaced-parenthesis/prediction" in wrong:
        factor = (2 if n.loss == "mse" else 1) / n.count
        dZ1 = factor * ((n.Y_hat if n.loss == "mse" else n.P) * n.W2.T - n.y)
    if "scale-layer-1/divided-by-N" in wrong:
        dZ1 = dZ1 / n.N
    if "scale-layer-1/times-N" in wrong:
        dZ1 = dZ1 * n.N
    if "scale-layer-1/divided-by-K" in wrong:
        dZ1 = dZ1 / n.C
    return dZ1


# ---- layer 1


def first_layer(n: Network, wrong: set[str], dZ1: Array, dA1: Array) -> tuple[Array, Array]:
    dW1 = n.X.T @ dZ1
    if "sum-over-hidden/masked" in wrong:
        dW1 = n.X * dZ1.sum(axis=1, keepdims=True)
    if "sum-over-hidden/thread" in wrong:
        dW1 = n.X * dA1.sum(axis=1, keepdims=True)
    if "elementwise-for-matmul/dW1" in wrong:
        dW1 = n.X * dZ1
    return decayed(n, wrong, dW1, n.W1), bias(wrong, "b1", n.X, dZ1)


# ---- after the backward pass


def afterwards(n: Network, wrong: set[str], gradients: dict[str, Array]) -> dict[str, Array]:
    for name in ("W1", "W2"):
        if f"transposed/{name}" in wrong or "transposed/both" in wrong:
            gradients[name] = gradients[name].T
    if "sign/all" in wrong:
        gradients = {name: -value for name, value in gradients.items()}
    if "scale/weights-divided-by-N" in wrong:
        gradients = {name: v / n.N if name.startswith("W") else v for name, v in gradients.items()}
    for times in (2, 3, 4, 5):
        if f"not-zeroed/{times}" in wrong:
            total: dict[str, Any] = {name: np.zeros_like(value) for name, value in gradients.items()}
            for _ in range(times):
                for name, value in gradients.items():
                    total[name] = total[name] + value
            gradients = total
    if "fork-overwritten/last-sample" in wrong:
        alone = Network(
            n.X[-1:],
            n.y[-1:],
            n.W1,
            n.b1,
            n.W2,
            n.b2,
            n.activation,
            n.output,
            n.loss,
            "sum",
            n.lr,
            n.weight_decay,
        )
        last = backward(alone, *(wrong - {"fork-overwritten/last-sample"}))
        decay = {"W1": n.weight_decay * n.W1, "W2": n.weight_decay * n.W2}
        gradients = {k: (last[k] - decay.get(k, 0)) / n.count + decay.get(k, 0) for k in gradients}
    return gradients
