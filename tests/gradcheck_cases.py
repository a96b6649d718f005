"""Small networks for the gradient check, and the faults that are planted in backward passes."""

import numpy as np

from handgrad import network as network_module
from handgrad.network import MLP
from handgrad.ops import linear
from handgrad.ops import loss as loss_op


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def targets(loss, N, C, seed=1):
    rng = np.random.default_rng(seed)
    if loss in ("cross_entropy", "hinge"):
        return rng.integers(0, C, N)
    return rng.random((N, C)) if loss == "bce" else rng.normal(size=(N, C))


def network(activation="relu", loss="mse", output="identity", sizes=(3, 5, 2), **settings):
    settings = {"dtype": "float64", "seed": 3} | settings
    net = MLP(list(sizes), activation=activation, loss=loss, output=output, device="cpu", **settings)
    for name, view in net.parameters.items():
        if name.startswith("b"):
            view[...] = 0.3 * random(*view.shape, seed=9)
    return net


FAULTS = {
    "no activation derivative": ("backward_input", lambda dZ, W, A, f: dZ @ W.T),
    "derivative is the activation": (
        "backward_input",
        lambda dZ, W, A, f: (dZ @ W.T) * (A if A is not None else 1),
    ),
    "sign of dA": ("backward_input", lambda dZ, W, A, f: -linear_input(dZ, W, A, f)),
    "extra 1/N": ("backward_input", lambda dZ, W, A, f: linear_input(dZ, W, A, f) / len(dZ)),
    "mean for sum": ("backward_weight", lambda X, dZ: (X.T @ dZ / len(X), dZ.sum(axis=0))),
    "bias averaged": ("backward_weight", lambda X, dZ: (X.T @ dZ, dZ.mean(axis=0))),
    "bias missing": ("backward_weight", lambda X, dZ: (X.T @ dZ, 0 * dZ.sum(axis=0))),
    "bias of the first sample": ("backward_weight", lambda X, dZ: (X.T @ dZ, dZ[0].copy())),
    "odd samples lost": ("backward_weight", lambda X, dZ: (X[::2].T @ dZ[::2], dZ.sum(axis=0))),
    "one entry wrong": ("backward_weight", lambda X, dZ: (bump(X.T @ dZ), dZ.sum(axis=0))),
    "half": ("forward_backward", lambda loss, dZ: (loss, dZ / 2)),
    "sign": ("forward_backward", lambda loss, dZ: (loss, -dZ)),
    "sample 0 forgotten": ("forward_backward", lambda loss, dZ: (loss, np.vstack([0 * dZ[:1], dZ[1:]]))),
    "not scaled": ("forward_backward", lambda loss, dZ: (loss, dZ * len(dZ))),
    "1 / (N + 1)": ("forward_backward", lambda loss, dZ: (loss, dZ * len(dZ) / (len(dZ) + 1))),
    "loss is no number of these": ("forward_backward", lambda loss, dZ: (loss, dZ * np.nan)),
}
RIGHT = {name: getattr(linear, name) for name in ("backward_input", "backward_weight")}
RIGHT["forward_backward"] = loss_op.forward_backward


def linear_input(dZ, W, A, f):
    return RIGHT["backward_input"](dZ, W, A, f)


def bump(dW):
    dW[-1, -1] *= 1.01
    return dW


def layer_by_layer(net, X, y, out, input_grad):
    """The network's gradients through the layer functions, where the faults are planted."""
    layers = [
        (
            net.parameters[f"W{k}"],
            net.parameters.get(f"b{k}"),
            net.activation if k < net.layers else "identity",
        )
        for k in range(1, net.layers + 1)
    ]
    values = [X.astype(net.dtype)]
    for W, b, activation in layers:
        values.append(linear.forward(values[-1], W, b, activation))
    loss, dZ = loss_op.forward_backward(values[-1], y, net.loss_name, net.output, net.reduction)
    for k in range(net.layers, 0, -1):
        linear.backward_weight(values[k - 1], dZ, out[f"W{k}"], out.get(f"b{k}"), bias=net.bias)
        if k > 1:
            dZ = linear.backward_input(dZ, layers[k - 1][0], values[k - 1], net.activation)
    return loss


def plant(monkeypatch, fault):
    """Put the fault into the layer functions, and let the network go through them on the CPU too."""
    where, wrong = FAULTS[fault]

    def backward_input(dZ, W, A=None, activation="identity", out=None, workspace=None):
        found = wrong(dZ, W, A, activation)
        if out is not None:
            out[...] = found
        return found if out is None else out

    def backward_weight(X, dZ, dW=None, db=None, bias=True, workspace=None):
        found = wrong(X, dZ)
        if dW is not None:
            dW[...] = found[0]
        if db is not None:
            db[...] = found[1]
        return found[0] if dW is None else dW, (found[1] if db is None else db) if bias else None

    def forward_backward(Z, y, *settings, out=None, workspace=None, **more):
        loss, dZ = wrong(*RIGHT["forward_backward"](Z, y, *settings, **more))
        if out is not None:
            out[...] = dZ
        return loss, dZ if out is None else out

    module = loss_op if where == "forward_backward" else linear
    monkeypatch.setattr(module, where, locals()[where])
    monkeypatch.setattr(network_module.host, "loss_and_grad", layer_by_layer)
