"""Networks on the devices that tests run on: the CPU, the emulator, and a GPU where one answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from golden import make_golden
from numpy.typing import NDArray

from handgrad import emulator
from handgrad.arrays import cuda_problem, to_device, to_numpy
from handgrad.network import MLP

DEVICES = ("cpu", "emulator", *(() if cuda_problem() else ("cuda",)))


def build_ahead(run: Callable[[], Any], workers: int | None = None) -> None:
    """Build every kernel that ``run`` launches on the emulator, in parallel and several at a time.

    ``run`` is gone through once without launching anything: its results mean nothing.
    """
    wanted: list[Any] = []
    launch = emulator.launch
    emulator.launch = lambda source, expression, *rest: wanted.append((source, expression))
    try:
        run()
    finally:
        emulator.launch = launch
    emulator.prebuild(wanted, workers)


def network_on(device: str, config: dict[str, Any], parameters: dict[str, Any], dtype: str) -> MLP:
    """A network with these parameters."""
    net = MLP(**config, dtype=dtype, device=device)
    net.load_parameters(parameters)
    return net


def moved(net: MLP, X: Any, y: Any) -> tuple[Any, Any]:
    """X and y on the net's device in its dtype; labels keep theirs."""
    y = np.asarray(y)
    return (
        to_device(np.asarray(X, dtype=net.dtype), net.device),
        to_device(y if y.dtype.kind in "iu" else y.astype(net.dtype), net.device),
    )


def everything(net: MLP, X: Any, y: Any, intermediates: bool) -> dict[str, NDArray[Any]]:
    """``loss_and_grad`` on the host, by name: loss, dW1, db1, …, dX, and the intermediates on request."""
    loss, gradients = net.loss_and_grad(*moved(net, X, y), intermediates=intermediates, input_grad=True)
    found = {"loss": loss, **{f"d{name}": value for name, value in gradients.items()}}
    return {name: to_numpy(value).copy() for name, value in (found | gradients.intermediates).items()}


# ---- a small network with its data --------------------------------------------------------------

SIZES = (7, 5, 3)
SAMPLES = 6


def problem(
    loss: str = "mse",
    sizes: Sequence[int] = SIZES,
    bias: bool = True,
    samples: int = SAMPLES,
    **settings: Any,
) -> tuple[dict[str, Any], Any, Any, dict[str, Any]]:
    """Arguments of a small network, X, y and parameters."""
    config = {"sizes": list(sizes), "activation": "tanh", "output": "identity", "loss": loss, "bias": bias}
    config |= {"reduction": "mean"} | settings
    drawn = make_golden.draw(config["sizes"], samples, bias, seed=8)
    return config, drawn["X"], make_golden.targets(drawn, loss), make_golden.parameters(drawn)


def on(device: str, loss: str = "mse", dtype: str = "float32", **settings: Any) -> tuple[MLP, Any, Any]:
    """A network on a device, with X and y there."""
    config, X, y, parameters = problem(loss, **settings)
    net = network_on(device, config, parameters, dtype)
    return net, *moved(net, X, y)
