"""``handgrad bench --scaling``: the efficiency of a data-parallel step against the number of ranks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from handgrad.cli.errors import wrong

if TYPE_CHECKING:
    from rich.console import Console


def bench_ranks(out: Console, shapes: Sequence[str], devices: Sequence[str], as_json: bool) -> None:
    """Time one step on 1, 2, 4, … ranks, as many as there are cores; the batch stays the same."""
    from handgrad.cli.output import print_json
    from handgrad.distributed import scaling
    from handgrad.throughput import parse_shape

    if len(shapes) > 1 or len(devices) > 1:
        raise wrong("--scaling", "one --shape and one --device at most", "more")
    problem = scaling.Problem(device=devices[0] if devices else "cpu")
    if shapes:
        shape = parse_shape(shapes[0])
        if shape.outputs == 1:
            raise wrong("--shape", "at least 2 output units with --scaling", shapes[0])
        sizes = (shape.inputs, shape.hidden, shape.outputs)
        problem = scaling.Problem(shape.samples, sizes, device=problem.device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = tuple(count for count in (1, 2, 4) if count <= max(2, cores) and count <= problem.shards)
    with out.status(f"measuring {', '.join(map(str, ranks))} ranks"):
        found = scaling.report(problem, ranks)
    out.print(scaling.table(found), markup=False)
    if as_json:
        print_json(found)
