"""Machine-code budgets: the kernels that are watched, what their code must keep to, and the snapshot of it.

``handgrad kernels sass --refresh`` writes the snapshot, ``budgets.json``, anew and prints what changed.
Test: ``tests/test_budgets.py``.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from handgrad.kernel import Entry, Kernel, catalogue
from handgrad.ops import (
    activation,
    batch,
    checks,
    linear,
    loss,
    optimizer_kernels,
    two_layer_epoch,
    two_layer_pair,
    two_layer_reduce,
    two_layer_step,
)
from handgrad.ops.two_layer import Problem
from handgrad.ops.two_layer_general_geometry import Geometry
from handgrad.ops.two_layer_general_tiles import SLIM
from handgrad.plans.choice import choose
from handgrad.proof.figures import Figures
from handgrad.proof.machine_code import ARCHITECTURES, load_nvrtc

SNAPSHOT = Path(__file__).with_name("budgets.json")

MOST_KERNELS = 40
FMA_SHARE = 0.95  # of TM TN / (TM + TN), the multiply-adds that a tile allows for each shared element loaded
FMA_LEAST = 4  # of them in R4, whose largest products have no other bound

SINGLE = np.dtype(np.float32)

# N, D, H, C and the loss of the steps that are compared in README and `handgrad bench`.
STEPS = (
    (50_000, 784, 50, 1, "mse"),
    (8192, 784, 512, 10, "cross_entropy"),
    (1024, 784, 256, 10, "cross_entropy"),
    (64, 784, 50, 10, "cross_entropy"),
)

# Of the epoch in one launch: slices in shared and in global memory, each rule, floats and images.
EPOCHS = tuple(
    f"two_layer_epoch<{settings}>"
    for settings in (
        "Sgd<float>, float, Relu, CrossEntropy, 16, 4, true",
        "Momentum<float>, unsigned char, Relu, CrossEntropy, 16, 4, false",
        "Adam<float>, unsigned char, Tanh, CrossEntropy, 16, 1, true",
        "Sgd<float>, float, Relu, MeanSquaredError<Identity>, 0, 4, false",
        "Adam<double>, double, Sigmoid, MeanSquaredError<Sigmoid>, 0, 2, true",
    )
)

# (expression, architecture) of the kernels that may spill, and why.
SPILLS_LET_PASS: dict[tuple[str, str], str] = {
    (
        "two_layer_step<MmaTile<SplitTf32, 7, 7, 4, 2>, float, Relu, MeanSquaredError<Identity>, 4>",
        "sm_80",
    ): "16 bytes, twice a tile and outside the loops over k: the sums of 3xtf32 outside the tensor core",
}


# ---- the kernels watched ---------------------------------------------------------------------------------


def chosen() -> tuple[Kernel, ...]:
    """The instantiations watched: those of :data:`STEPS`' plans, every tile, each kernel of the catalogue."""
    kernels = [kernel for step in STEPS for kernel in step_kernels(*step)]
    for tile in linear.TILES:
        wide = _width(tile.BN)
        kernels.append(linear.forward_kernel(tile, "relu", SINGLE, 4, wide))
        if tile is linear.WIDE:
            kernels.append(linear.backward_input_kernel(tile, "relu", SINGLE, 4, wide))
            kernels.append(linear.backward_weight_kernel(tile, SINGLE, 4, wide))
    kernels += [
        linear.reduce_kernel(SINGLE),
        activation.kernel("activation_forward", "sigmoid", SINGLE, 4),
        activation.kernel("activation_backward", "tanh", SINGLE, 4),
        loss.elementwise_kernel("bce", "identity", SINGLE),
        loss.rows_kernel("cross_entropy", SINGLE, 16),
        optimizer_kernels.squares_kernel(SINGLE),
        optimizer_kernels.update_kernel("Adam", SINGLE),
        batch.gather_kernel(np.dtype(np.uint8), SINGLE, 4),
        two_layer_reduce.kernel_of("Adam", SINGLE),
        *general_kernels(),
        *(Kernel(two_layer_epoch.FILE, text) for text in EPOCHS),
        *fused_kernels(),
    ]
    assert len(set(kernels)) <= MOST_KERNELS, "more kernels than the time of a check allows for"
    order = [entry.name for entry in catalogue()]
    return tuple(sorted(dict.fromkeys(kernels), key=lambda kernel: order.index(_function(kernel))))


def step_kernels(N: int, D: int, H: int, C: int, loss_name: str) -> list[Kernel]:
    """What the plan of one step of D → H (relu) → C launches, with momentum, in float32."""
    problem = Problem(N, D, H, C, loss=loss_name, rule="Momentum")
    return [one.kernel for one in choose(problem).layout.launches]


def general_kernels() -> list[Kernel]:
    """Of R4: the widest tile in each precision, and the second layer up to 16 columns and above."""
    wide = {
        precision: Geometry(Problem(8192, 784, 512, 10, loss="cross_entropy", precision=precision))
        for precision in ("float32", "3xtf32", "bfloat16")
    }
    many = Geometry(Problem(8192, 784, 512, 100, loss="cross_entropy"))
    return [
        wide["float32"].hidden_kernel,
        wide["bfloat16"].hidden_kernel,
        wide["float32"].output_kernel,
        many.output_kernel,
        *(wide[precision].weight_kernel for precision in ("float32", "3xtf32")),
    ]


def fused_kernels() -> list[Kernel]:
    """Of R1: README's step with one and ten outputs, as bytes, in float64, on tensor cores; of R3, three."""
    large = Problem(50_000, 784, 50, 1)
    classes = Problem(50_000, 784, 50, 10, loss="cross_entropy")
    double = Problem(1000, 784, 50, 10, dtype="float64", precision="float64", inputs="float64", arch="sm_90")
    narrow = [dataclasses.replace(large, precision=precision) for precision in ("tf32", "3xtf32", "bfloat16")]
    first = [large, classes, dataclasses.replace(classes, inputs="uint8"), double, *narrow]
    wide = Problem(8192, 784, 128, 10, loss="cross_entropy", rule="Momentum")
    bytes_in_tf32 = dataclasses.replace(wide, precision="tf32", inputs="uint8")
    return [
        *(two_layer_step.lay_out(p).launches[0].kernel for p in first),
        *(one.kernel for one in two_layer_pair.lay_out(wide).launches),
        two_layer_pair.lay_out(bytes_in_tf32).launches[0].kernel,
    ]


def _function(kernel: Kernel) -> str:
    return kernel.expression.split("<")[0]


def _width(tile_side: int, side: int = 0) -> int:
    """Elements that one load moves along a side of the matrix, as the ops choose it."""
    width = checks.vector_width(SINGLE, side)
    return width if tile_side % width == 0 else 1


def select(names: Sequence[str]) -> tuple[Kernel, ...]:
    """The watched kernels that ``names`` name, all where there are none.

    A name is an op ("linear", "linear.forward"), a kernel ("linear_forward"), or any expression of the
    catalogue, watched or not.  ``ValueError`` for any other, with those that there are.
    """
    watched = chosen()
    if not names:
        return watched
    entries = catalogue()
    found: list[Kernel] = []
    for name in names:
        exact = [Kernel(entry.file, name) for entry in entries if name in entry.expressions]
        named = {entry.name for entry in entries if _is_named(entry, name)}
        found += exact or [kernel for kernel in watched if _function(kernel) in named]
        if not exact and not named:
            there = ", ".join(f"{entry.op} ({entry.name})" for entry in entries)
            raise ValueError(f"kernel: expected one of {there}, or an expression, got {name!r}")
    return tuple(dict.fromkeys(found))


def _is_named(entry: Entry, name: str) -> bool:
    return name in (entry.op, entry.op.partition(".")[0], entry.name)


# ---- bars ------------------------------------------------------------------------------------------------


def breaches(figures: Figures) -> list[str]:
    """What no kernel may have: spills, local memory, floating-point atomics, a main loop short of work."""
    forbidden = {
        "bytes of spill stores": figures.spill_stores,
        "bytes of spill loads": figures.spill_loads,
        "local stores": figures.local_stores,
        "local loads": figures.local_loads,
    }
    if (figures.kernel, figures.arch) in SPILLS_LET_PASS:
        forbidden.clear()
    forbidden["floating-point atomics"] = figures.float_atomics
    found = [f"{value} {what}" for what, value in forbidden.items() if value]
    if figures.occupancy == 0:
        found.append("no block fits on a multiprocessor")
    bar = fma_bar(figures.kernel)
    ratio = figures.fma_per_shared_word
    if bar is not None and (ratio is None or not ratio >= bar):
        found.append(f"{ratio or 0:.3f} multiply-adds for each shared element loaded, expected {bar:.3f}")
    return found


def fma_bar(expression: str) -> float | None:
    """The least multiply-adds for each shared element that the main loop loads; None without a tile.

    A thread that owns TM x TN elements of it loads TM + TN for every TM TN multiply-adds.  The products of R4
    in float32 have to make :data:`FMA_LEAST`, but for the tile of at most 4 columns, which memory bounds.
    """
    tile = re.search(r"\bTile<\d+, (\d+), \d+, (\d+), (\d+)>", expression)
    tile = tile or re.search(r"\bFmaTile<\w+, (\d+), (\d+), (\d+), ", expression)  # R1: that of dW1
    if tile is None:
        return None
    columns, TM, TN = (int(size) for size in tile.groups())
    bar = FMA_SHARE * TM * TN / (TM + TN)
    general = expression.startswith("general_") and "<float, " in expression and columns > SLIM.BN
    return max(bar, FMA_LEAST) if general else bar


def regressions(now: Iterable[Figures], before: Iterable[Figures]) -> list[str]:
    """One line for every breach of a bar, loss of occupancy, and kernel that the snapshot does not know."""
    known = {(figures.kernel, figures.arch): figures for figures in before}
    found = []
    for figures in now:
        key = figures.kernel, figures.arch
        lines = breaches(figures)
        if key not in known:
            lines.append("not in the snapshot; refresh it")
        else:
            lines += _lost_occupancy(figures, known[key])
        found += [f"{figures.kernel} on {figures.arch}: {line}" for line in lines]
    return found


def _lost_occupancy(now: Figures, before: Figures) -> list[str]:
    if before.occupancy is None:
        return []
    if now.occupancy is None:
        return ["occupancy unknown, since no C++ compiler was found to build NVIDIA's calculator"]
    if now.occupancy < before.occupancy - 1e-6:
        return [
            f"occupancy {now.occupancy:.0%}, {before.occupancy:.0%} in the snapshot "
            f"({before.registers} -> {now.registers} registers, "
            f"{before.shared_bytes} -> {now.shared_bytes} bytes of shared memory)"
        ]
    return []


# ---- snapshot --------------------------------------------------------------------------------------------

COLUMNS = tuple(field.name for field in fields(Figures) if field.name not in ("kernel", "arch"))


def read_snapshot(path: Path = SNAPSHOT) -> list[Figures]:
    """The figures of the snapshot; none where there is no such file."""
    if not path.is_file():
        return []
    stored = json.loads(path.read_text(encoding="utf-8"))
    columns = stored["columns"]
    return [
        Figures(kernel=kernel, arch=arch, **dict(zip(columns, row, strict=True)))
        for kernel, rows in stored["kernels"].items()
        for arch, row in rows.items()
    ]


def snapshot_nvrtc(path: Path = SNAPSHOT) -> str:
    """The version of NVRTC that the snapshot was taken with; register counts differ between toolchains."""
    return str(json.loads(path.read_text(encoding="utf-8"))["nvrtc"])


def write_snapshot(figures: Iterable[Figures], path: Path = SNAPSHOT) -> None:
    """Write the snapshot, a line for every kernel and architecture, so that a change shows as one."""
    kernels: dict[str, list[str]] = {}
    for one in figures:
        values = one.as_row()
        row = json.dumps([values[column] for column in COLUMNS])
        kernels.setdefault(one.kernel, []).append(f"      {json.dumps(one.arch)}: {row}")
    body = ",\n".join(
        f"    {json.dumps(kernel)}: {{\n" + ",\n".join(rows) + "\n    }" for kernel, rows in kernels.items()
    )
    head = f'  "nvrtc": "{load_nvrtc().version}",\n  "columns": {json.dumps(COLUMNS)},\n'
    path.write_text(f'{{\n{head}  "kernels": {{\n{body}\n  }}\n}}\n', encoding="utf-8")


def differences(now: Iterable[Figures], before: Iterable[Figures]) -> list[str]:
    """One line for every kernel and architecture that is new, gone or has other figures."""
    new, old = ({(one.kernel, one.arch): one.as_row() for one in some} for some in (now, before))
    found = []
    for kernel, arch in dict.fromkeys([*old, *new]):
        a, b = old.get((kernel, arch)), new.get((kernel, arch))
        if a is None or b is None:
            found.append(f"{kernel} on {arch}: {'new' if a is None else 'gone'}")
        elif a != b:
            changes = ", ".join(f"{name} {a[name]} -> {b[name]}" for name in a if a[name] != b[name])
            found.append(f"{kernel} on {arch}: {changes}")
    return found


def check_archs(archs: Sequence[str]) -> tuple[str, ...]:
    """``archs`` in the order of :data:`ARCHITECTURES`, all where there are none; ``ValueError`` else."""
    for arch in archs:
        if arch not in ARCHITECTURES:
            raise ValueError(f"--arch: expected one of {', '.join(ARCHITECTURES)}, got {arch}")
    return tuple(arch for arch in ARCHITECTURES if not archs or arch in archs)
