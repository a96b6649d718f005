"""Make ``gradients.npz``: small networks with the loss, every intermediate and every gradient by PyTorch.

    python tests/golden/make_golden.py            # write the file anew
    python tests/golden/make_golden.py --check    # compare it with what PyTorch gives now

Everything is float64 autograd; inputs are rounded to float32 first, so that the same numbers are exact inputs
of a float32 network.  No pre-activation of a hidden layer and no margin of the hinge loss lies within
``KINK`` of zero: rounding cannot change a mask.

The file holds ``values``, one vector of float64 in which equal arrays are stored once, and ``index``, JSON: a
list of cases ``{"config": {...}, "arrays": {name: [offset, shape]}}``.  ``read`` puts them together again.
The order of the random numbers is fixed, so a second run on the same machine gives the same bytes; elsewhere
PyTorch may round the last digits differently.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_name("gradients.npz")
KINK = 0.02

ACTIVATIONS = ("relu", "sigmoid", "tanh", "softplus", "identity")
LOSSES = tuple(("mse", output) for output in ACTIVATIONS) + tuple(
    (loss, "identity") for loss in ("bce", "cross_entropy", "hinge")
)

# (samples, widths, whether with every output, with the sum and without biases too).  Within a network, the
# numbers differ, so that a transposed product does not fit.  Hidden widths are odd and above 4:
# then all networks share few instantiations of the kernels.
NETWORKS = (
    (4, (2, 5, 3), True),  # the two-layer network
    (5, (7, 3), True),
    (5, (2, 7, 1), False),
    (6, (2, 7, 5, 3), False),
    (4, (2, 5, 9, 7, 3), False),
)


def configurations() -> list[tuple[int, dict[str, Any]]]:
    """(samples, arguments of MLP) of every case."""
    cases = []
    for samples, sizes, whole in NETWORKS:
        hidden = ACTIVATIONS if len(sizes) > 2 else ACTIVATIONS[:1]  # one layer has no hidden activation
        losses = LOSSES if whole else [pair for pair in LOSSES if pair[1] == "identity"]
        if sizes[-1] == 1:  # one output is a regression or a yes-or-no question
            losses = [pair for pair in losses if pair[0] in ("mse", "bce")]
        if len(sizes) == 5:
            losses = [("mse", "identity"), ("cross_entropy", "identity")]
        kinds = [("mean", True), ("sum", True), ("mean", False)] if whole else [("mean", True)]
        for (reduction, bias), activation, (loss, output) in itertools.product(kinds, hidden, losses):
            config = {"sizes": list(sizes), "activation": activation, "output": output}
            cases.append((samples, config | {"loss": loss, "reduction": reduction, "bias": bias}))
    return cases


# ---- inputs ----------------------------------------------------------------------------------------------


def draw(sizes: list[int], samples: int, bias: bool, seed: int) -> dict[str, Any]:
    """X, targets for every kind of loss, and parameters: float64 numbers that float32 holds exactly."""
    random = np.random.Generator(np.random.PCG64(seed))

    def normal(*shape: int, deviation: float = 1.0) -> Any:
        return (random.standard_normal(shape) * deviation).astype(np.float32).astype(np.float64)

    C = sizes[-1]
    drawn: dict[str, Any] = {"X": normal(samples, sizes[0]), "real": normal(samples, C)}
    hard, soft = random.integers(0, 2, (samples, C)), random.integers(0, 9, (samples, C)) / 8
    drawn["between"] = np.where(random.random((samples, C)) < 0.5, hard, soft)  # targets of bce
    drawn["labels"] = random.integers(0, C, samples)
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes), start=1):
        drawn[f"W{layer}"] = normal(fan_in, fan_out, deviation=fan_in**-0.5)  # logits stay around 1
        if bias:
            drawn[f"b{layer}"] = normal(fan_out)
    return drawn


def targets(drawn: dict[str, Any], loss: str) -> Any:
    """What this loss takes for y."""
    return drawn[{"mse": "real", "bce": "between"}.get(loss, "labels")]


def parameters(drawn: dict[str, Any]) -> dict[str, Any]:
    """W1, b1, W2, …"""
    return {name: value for name, value in drawn.items() if name[0] in "Wb" and name[1:].isdigit()}


# ---- PyTorch ---------------------------------------------------------------------------------------------


def autograd(config: dict[str, Any], X: Any, y: Any, parameters: dict[str, Any]) -> dict[str, Any]:
    """Loss, intermediates and gradients by PyTorch's autograd, in the dtype of ``X``.

    ``parameters`` W1 (in, out), b1, …; the gradient of a value ``Q`` is called ``dQ``.
    """
    import torch

    leaves = {"X": X, **parameters}
    tensors = {name: torch.tensor(np.asarray(value), requires_grad=True) for name, value in leaves.items()}
    layers = len(config["sizes"]) - 1
    A = tensors["X"]
    for layer in range(1, layers + 1):
        Z = A @ tensors[f"W{layer}"]
        if f"b{layer}" in tensors:
            Z = Z + tensors[f"b{layer}"]
        tensors[f"Z{layer}"] = Z
        if layer < layers:
            A = tensors[f"A{layer}"] = _function(config["activation"], Z)
    tensors["Y_hat"] = _function(config["output"], Z)
    for tensor in tensors.values():
        tensor.retain_grad()
    loss = _loss(config, tensors["Y_hat"], torch.tensor(np.asarray(y)))
    loss.backward()
    found = {name: tensor.detach().numpy() for name, tensor in tensors.items() if name not in leaves}
    found |= {f"d{name}": tensor.grad.numpy() for name, tensor in tensors.items() if name != "Y_hat"}
    return {"loss": loss.detach().numpy(), **found}


def _function(name: str, Z: Any) -> Any:
    import torch

    if name == "softplus":  # torch takes z itself above the threshold, 20 where nothing is said
        return torch.nn.functional.softplus(Z, threshold=1e6)
    return Z.clone() if name == "identity" else getattr(torch, name)(Z)


def _loss(config: dict[str, Any], Y_hat: Any, y: Any) -> Any:
    from torch.nn import functional

    reduction = config["reduction"]
    if config["loss"] == "mse":
        return functional.mse_loss(Y_hat, y, reduction=reduction)
    if config["loss"] == "bce":
        return functional.binary_cross_entropy_with_logits(Y_hat, y, reduction=reduction)
    if config["loss"] == "cross_entropy":
        return functional.cross_entropy(Y_hat, y, reduction=reduction)
    # torch divides every sample's sum of margins by the number of classes, Σ_{j≠y} max(0, s_j - s_y + 1) not
    return functional.multi_margin_loss(Y_hat, y, margin=1.0, reduction=reduction) * Y_hat.shape[1]


# ---- the file --------------------------------------------------------------------------------------------


def away_from_kinks(drawn: dict[str, Any], sizes: list[int], bias: bool) -> bool:
    """Whether ReLUs, hidden and last, and the margins of the hinge keep their distance from zero."""
    for activation in ACTIVATIONS if len(sizes) > 2 else ACTIVATIONS[:1]:
        config = {"sizes": sizes, "activation": activation, "output": "identity"}
        config |= {"loss": "mse", "reduction": "mean"}
        found = autograd(config, drawn["X"], drawn["real"], parameters(drawn))
        scores = found["Y_hat"]
        rows = np.arange(len(scores))
        margins = scores - scores[rows, drawn["labels"]][:, None] + 1
        margins[rows, drawn["labels"]] = 1
        last = len(sizes) - 1
        values = [margins, *(found[f"Z{layer}"] for layer in range(1, last + 1))]
        if min(np.abs(value).min() for value in values) < KINK:
            return False
    return True


def make() -> list[dict[str, Any]]:
    """Every case: ``{"config": …, "arrays": {name: array}}``."""
    drawings: dict[Any, dict[str, Any]] = {}
    cases = []
    for samples, config in configurations():
        key = (samples, *config["sizes"], config["bias"])
        if key not in drawings:
            seeds = itertools.count(1000 * len(drawings))
            drawings[key] = next(
                drawn
                for drawn in (draw(config["sizes"], samples, config["bias"], seed) for seed in seeds)
                if away_from_kinks(drawn, config["sizes"], config["bias"])
            )
        drawn = drawings[key]
        y = targets(drawn, config["loss"])
        arrays = {"X": drawn["X"], "y": y, **parameters(drawn)}
        cases.append(
            {"config": config, "arrays": arrays | autograd(config, drawn["X"], y, parameters(drawn))}
        )
    return cases


def write(cases: list[dict[str, Any]], file: Path = FILE) -> None:
    """Store ``cases``; equal arrays once."""
    offsets: dict[bytes, int] = {}
    pieces: list[Any] = []
    size = 0
    index = []
    for case in cases:
        places = {}
        for name, array in case["arrays"].items():
            value = np.asarray(array, dtype=np.float64)  # labels too: small integers
            data = value.tobytes()
            if data not in offsets:
                offsets[data] = size
                pieces.append(value.ravel())
                size += value.size
            places[name] = [offsets[data], list(value.shape)]
        index.append({"config": case["config"], "arrays": places})
    text = json.dumps(index, separators=(",", ":"))
    np.savez_compressed(
        file, values=np.concatenate(pieces), index=np.frombuffer(text.encode(), dtype=np.uint8)
    )


def read(file: Path = FILE) -> list[dict[str, Any]]:
    """The cases of the file, as :func:`make` gives them."""
    with np.load(file, allow_pickle=False) as stored:
        values, index = stored["values"], json.loads(stored["index"].tobytes())
    for case in index:
        for name, (offset, shape) in case["arrays"].items():
            case["arrays"][name] = values[offset : offset + int(np.prod(shape))].reshape(shape)
        if case["config"]["loss"] in ("cross_entropy", "hinge"):
            case["arrays"]["y"] = case["arrays"]["y"].astype(np.int64)
    return index


def largest_difference(cases: list[dict[str, Any]], others: list[dict[str, Any]]) -> float:
    """The largest relative Frobenius difference between two lists of the same cases."""
    if [case["config"] for case in cases] != [other["config"] for other in others]:
        return float("inf")
    worst = 0.0
    for case, other in zip(cases, others, strict=True):
        for name, expected in case["arrays"].items():
            difference = np.linalg.norm(np.ravel(other["arrays"][name] - expected))
            worst = max(
                worst, difference / max(np.linalg.norm(np.ravel(expected)), np.finfo(np.float64).tiny)
            )
    return worst


if __name__ == "__main__":
    made = make()
    if "--check" in sys.argv[1:]:
        print(f"largest relative difference {largest_difference(read(), made):.2e} over {len(made)} cases")
    else:
        write(made)
        print(f"{FILE}: {len(made)} cases, {FILE.stat().st_size} bytes")
