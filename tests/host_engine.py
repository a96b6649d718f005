"""Networks whose engine is told how to divide its work, for the tests of the engine."""

from __future__ import annotations

from devices import network_on
from golden import make_golden
from reference_network import assert_within, network

from handgrad.host import arrangement
from handgrad.host.arrangement import Cut
from handgrad.ops import activation as activation_op
from handgrad.ops import loss as loss_op

HEADS = [("mse", output) for output in activation_op.NAMES] + [
    (loss, "identity") for loss in loss_op.NAMES[1:]
]


def forced(monkeypatch, parts=1, block=7, tile=0):
    """Have the engine work in ``parts`` parts, in blocks of ``block`` rows and tiles of ``tile``."""
    monkeypatch.setattr(arrangement, "parts", lambda rows, *rest: max(1, min(parts, rows)))
    monkeypatch.setattr(
        arrangement,
        "cut",
        lambda sizes, rows, itemsize, shared=False: Cut(
            min(block, rows), *(tuple(tile for _ in sizes[1:]) for _ in range(3))
        ),
    )


def problem(sizes, N, loss, output="identity", activation="relu", bias=True, reduction="mean", seed=0):
    config = {"sizes": list(sizes), "activation": activation, "output": output, "loss": loss}
    config |= {"bias": bias, "reduction": reduction}
    drawn = make_golden.draw(config["sizes"], N, bias, seed=seed)
    return config, drawn["X"], make_golden.targets(drawn, loss), make_golden.parameters(drawn)


def results(net, X, y, **settings):
    X = X.astype(net.dtype)
    y = y if y.dtype.kind in "iu" else y.astype(net.dtype)
    loss, gradients = net.loss_and_grad(X, y, input_grad=True, **settings)
    return {"loss": loss, "dX": gradients["dX"]} | {f"d{name}": value for name, value in gradients.items()}


def check(config, X, y, parameters, dtype):
    net = network_on("cpu", config, parameters, dtype)
    bounds = network(config, X, y, parameters, dtype)
    for name, value in results(net, X, y).items():
        assert value.dtype == dtype
        assert_within(value, bounds[name], name)


def bits(net, X, y):
    loss, gradients = net.loss_and_grad(X, y)
    return loss.tobytes() + gradients.flat.tobytes()
