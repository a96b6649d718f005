"""From the words of the command line to a network and its optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from handgrad.cli.errors import wrong

if TYPE_CHECKING:
    from handgrad.datasets import Dataset
    from handgrad.network import MLP
    from handgrad.ops.optimizer import Optimizer

DEFAULT_HIDDEN = (128,)
LABEL_LOSSES = ("cross_entropy", "hinge")
# Learning rate and weight decay; the embedded digits and the whole of MNIST were tried with these.
DEFAULTS = {
    "sgd": (0.1, 5e-4),
    "momentum": (0.1, 5e-4),
    "nesterov": (0.1, 5e-4),
    "adam": (1e-3, 0.0),
    "adamw": (1e-3, 1e-2),
}
MSE_LR_FACTOR = 0.1  # squared errors of unscaled numbers have large gradients
MOMENTUM = 0.9


def build_network(
    data: Dataset,
    *,
    hidden: list[str] | None,
    activation: str | None,
    output: str | None,
    loss: str | None,
    dtype: str | None,
    device: str,
    seed: int,
) -> MLP:
    """A new network for ``data``; what is None takes its default."""
    from handgrad.network import MLP

    loss = choose_loss(data, loss)
    if output not in (None, "identity") and loss != "mse":
        raise wrong("--output", f"identity with --loss {loss}", output, "the loss takes the logits")
    return MLP(
        [data.X.shape[1], *parse_hidden(hidden), outputs_for(data, loss)],
        activation=activation or "relu",
        output=output or "identity",
        loss=loss,
        dtype=dtype or "float32",
        device=device,
        seed=seed,
    )


def load_network(
    path: Path,
    data: Dataset,
    *,
    hidden: list[str] | None,
    activation: str | None,
    output: str | None,
    loss: str | None,
    dtype: str | None,
    device: str,
) -> MLP:
    """The network of an earlier run, to go on with; options that contradict it are refused."""
    from handgrad import checkpoint
    from handgrad.cli import run_directory

    _, weights = run_directory.find(path, "--init")
    net = checkpoint.load(weights, device=device)
    given: dict[str, Any] = {"activation": activation, "output": output, "loss": loss, "dtype": dtype}
    if hidden is not None:
        given["hidden"] = ",".join(map(str, parse_hidden(hidden))) or "none"
    config = net.config() | {"hidden": ",".join(map(str, net.sizes[1:-1])) or "none"}
    for name, value in given.items():
        if value is not None and value != config[name]:
            remedy = "leave the option out, or train without --init"
            raise wrong(f"--{name}", f"{config[name]}, as in {path}", value, remedy)
    if choose_loss(data, net.loss_name) != net.loss_name or net.sizes[0] != data.X.shape[1]:
        raise wrong("--data", f"{net.sizes[0]} features a sample, as in {path}", data.X.shape[1])
    if net.sizes[-1] != outputs_for(data, net.loss_name):
        raise wrong(
            "--data", f"targets for {net.sizes[-1]} outputs, as in {path}", outputs_for(data, net.loss_name)
        )
    return net


def choose_loss(data: Dataset, loss: str | None) -> str:
    """``loss``, or the usual one for the targets; ``ValueError`` where the two do not go together."""
    if data.classes == 0:
        if loss in LABEL_LOSSES:
            remedy = "--task classification takes whole numbers for labels"
            raise wrong("--loss", f"mse or bce for the numbers in {data.name}", loss, remedy)
        return loss or "mse"
    if loss == "mse" or (loss == "bce" and data.classes != 2):
        remedy = "--task regression takes labels for numbers"
        raise wrong("--loss", f"cross_entropy or hinge for the {data.classes} classes", loss, remedy)
    return loss or "cross_entropy"


def outputs_for(data: Dataset, loss: str) -> int:
    """C: one output a class, or a target column; one in all for bce on two classes."""
    if data.classes:
        return 1 if loss == "bce" else data.classes
    return 1 if data.y.ndim == 1 else int(data.y.shape[1])


def parse_hidden(hidden: list[str] | None) -> list[int]:
    """``["256,64"]`` or ``["256", "64"]`` → [256, 64]; ``["none"]`` → []."""
    if not hidden:
        return list(DEFAULT_HIDDEN)
    if [word.strip() for word in hidden] == ["none"]:
        return []
    widths = [word.strip() for text in hidden for word in text.split(",")]
    for width in widths:
        if not width.isascii() or not width.isdecimal() or int(width) < 1:
            raise wrong("--hidden", "whole numbers above 0, as 128 or 256,64, or none", repr(width))
    return [int(width) for width in widths]


def build_optimizer(
    name: str, loss: str, *, lr: float | None, momentum: float | None, weight_decay: float | None
) -> Optimizer:
    """The optimizer; what is None takes its default."""
    from handgrad.ops.optimizer import SGD, Adam, AdamW

    default_lr, default_decay = DEFAULTS[name]
    if loss == "mse" and name not in ("adam", "adamw"):
        default_lr *= MSE_LR_FACTOR
    rate = _checked("--lr", lr, default_lr, "a number above 0", above_zero=True)
    decay = _checked("--weight-decay", weight_decay, default_decay, "a number, 0 or above")
    if name in ("adam", "adamw", "sgd") and momentum is not None:
        raise wrong("--momentum", "none with --optimizer " + name, momentum, "use --optimizer momentum")
    if name == "adam":
        return Adam(rate, weight_decay=decay)
    if name == "adamw":
        return AdamW(rate, weight_decay=decay)
    if name == "sgd":
        return SGD(rate, weight_decay=decay)
    part = _checked("--momentum", momentum, MOMENTUM, "a number above 0 and below 1", above_zero=True)
    if part >= 1:
        raise wrong("--momentum", "a number above 0 and below 1", part)
    return SGD(rate, momentum=part, nesterov=name == "nesterov", weight_decay=decay)


def check_clip_norm(clip_norm: float | None) -> None:
    """Refuse a ``--clip-norm`` that is no number above 0."""
    _checked("--clip-norm", clip_norm, 1.0, "a number above 0", above_zero=True)


def _checked(
    option: str, value: float | None, default: float, expected: str, above_zero: bool = False
) -> float:
    number = default if value is None else value
    if not 0 <= number < float("inf") or (above_zero and number == 0):
        raise wrong(option, expected, number)
    return number
