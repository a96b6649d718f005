"""``handgrad kernels tune``: measure paths and tiles for a shape on a GPU, and remember the fastest."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated

import typer

from handgrad.cli import choices
from handgrad.cli.errors import wrong
from handgrad.cli.options import JsonOption, OptimizerOption

SCHEMA = "handgrad.tune/1"


def tune(
    shape: Annotated[
        list[str],
        typer.Option(
            "--shape",
            metavar="N,D,H,C",
            help="Steps of N samples through D → H → C, with mse where C is 1 and cross_entropy otherwise; "
            "may be repeated.",
        ),
    ],
    dtype: Annotated[
        choices.Dtype, typer.Option("--dtype", help="Of parameters and sums.")
    ] = choices.Dtype.float32,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="P",
            help="Of the products: float32, tf32, 3xtf32, bfloat16; dtype's by default.",
        ),
    ] = None,
    activation: Annotated[
        choices.Activation, typer.Option("--activation", help="Of the hidden units.")
    ] = choices.Activation.relu,
    optimizer: OptimizerOption = choices.Optimizer.momentum,
    inputs: Annotated[
        str | None,
        typer.Option("--inputs", metavar="TYPE", help="Of X as it is stored: uint8, or dtype's by default."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            metavar="N",
            min=1,
            help="Measure epochs of N samples too: those of the fastest steps, and R2's, one launch each.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", metavar="DEVICE", help="cuda or cuda:N: only a GPU is measured.")
    ] = "cuda",
    as_json: JsonOption = False,
) -> None:
    """Measure which path with which tiles, or cuBLAS, is the fastest for a shape on this GPU.

    With --samples, also whether whole epochs run faster by such steps or by R2.  Winners are kept in
    plans.json of the cache folder, and from then on training and plans of this shape and these settings take
    them.  They decide the order of sums, and so the last bits.  docs/plans.md
    """
    from handgrad.arrays import resolve_device
    from handgrad.cli.network import build_optimizer
    from handgrad.cli.output import console, print_json
    from handgrad.network import MLP
    from handgrad.plans import tuning
    from handgrad.proof.traffic import shape_of

    shapes = [shape_of(text) for text in shape]
    if re.fullmatch(r"cuda(:\d+)?", device) is None:
        raise wrong("--device", "cuda or cuda:N", device, "only a GPU is measured")
    if inputs not in (None, dtype.value, "uint8"):
        raise wrong("--inputs", f"{dtype.value} or uint8", inputs)
    target, out, found = resolve_device(device), console(as_json), []
    for one in shapes:
        net = MLP(
            [one.D, one.H, one.C],
            activation=activation.value,
            loss=one.loss,
            dtype=dtype.value,
            precision=precision,
            device=target,
        )
        rule = build_optimizer(optimizer.value, one.loss, lr=None, momentum=None, weight_decay=None)
        with out.status(f"measuring {one}"):
            tuned = tuning.tune(net, one.N, optimizer=rule, samples=samples, inputs=inputs)
        found.append({"step": str(one), **dataclasses.asdict(tuned)})
        out.print(f"step {one}: {tuned}", markup=False, highlight=False, soft_wrap=True)
    if as_json:
        print_json({"schema": SCHEMA, "steps": found})
