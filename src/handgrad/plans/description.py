"""What a plan shows: path, launches, partitions, memory, traffic, predicted times, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from handgrad.gpus import GPUS, LABEL
from handgrad.ops.two_layer import Launch, Layout
from handgrad.plans import model, paths
from handgrad.plans.choice import Choice, lay_out, refusal_of, tilings_of

SLOTS = ("momentum", "first_moment", "second_moment")  # of the optimizer's state


@dataclass(frozen=True)
class Plan:
    """How training runs on a device: ``samples`` an epoch in batches of ``layout.problem.N``.

    ``choice`` holds the layout; ``choice.instead`` says what was asked for but cannot be.
    """

    choice: Choice
    samples: int
    clipped: bool = False

    @property
    def layout(self) -> Layout:
        """Of the path."""
        return self.choice.layout

    @property
    def path(self) -> str:
        """ "R1" ... "R4"."""
        return self.layout.path

    @property
    def reason(self) -> str:
        """Why this path, in one line."""
        return "; ".join(filter(None, (self.choice.instead, self.choice.reason)))

    @property
    def steps_per_epoch(self) -> int:
        """The last batch may be short."""
        return -(-self.samples // self.layout.problem.N)

    @property
    def launches_per_step(self) -> int:
        """Of the step itself, without the gathering of its rows; 0 for R2."""
        if self.path == paths.EPOCH:
            return 0
        return len(self.layout.launches) + 2 * self.clipped  # the norm, and the update that waits for it

    @property
    def launches_per_epoch(self) -> int:
        """With the two that gather each batch of a shuffled epoch; 1 for R2."""
        if self.path == paths.EPOCH:
            return len(self.layout.launches)
        return self.steps_per_epoch * (self.launches_per_step + model.GATHERS)

    @property
    def kernels(self) -> tuple[Launch, ...]:
        """The launches of a step (of an epoch for R2)."""
        return self.layout.launches

    @property
    def tiling(self) -> str:
        """Tiles and partitions, by name: the rule's, or those that were measured."""
        return self.layout.tiling.name

    @property
    def partitions(self) -> int:
        """S: parts whose sums are added in order, of the batch (R2: of the columns of X).

        From the shape and the tiling alone.
        """
        return self.layout.partitions

    @property
    def workspace_bytes(self) -> int:
        """Allocated once."""
        return sum(self.layout.workspace.values())

    @property
    def traffic(self) -> dict[str, dict[str, int]]:
        """Buffer -> bytes of a step: ``compulsory`` for any implementation of the path, ``expected`` of these
        kernels."""
        compulsory, expected = (_folded(one) for one in (self.layout.compulsory, self.layout.requested))
        return {
            name: {"compulsory": compulsory.get(name, 0), "expected": expected.get(name, 0)}
            for name in dict.fromkeys((*compulsory, *expected))
        }

    @property
    def wave_efficiency(self) -> dict[str, float]:
        """GPU -> the part of its rounds of blocks that does work; of GPUs where the path can run."""
        return {name: model.wave_efficiency(layout) for name, layout in self._elsewhere().items()}

    @property
    def predictions(self) -> dict[str, model.StepTime]:
        """GPU -> the predicted time of a step; of GPUs where the path can run."""
        return {name: model.predict(layout, name) for name, layout in self._elsewhere().items()}

    def _elsewhere(self) -> dict[str, Layout]:
        problems = {gpu.name: model.on_gpu(self.layout.problem, gpu) for gpu in GPUS}
        tiling = self.layout.tiling
        return {
            name: lay_out(problem, self.path, tiling)
            for name, problem in problems.items()
            if not refusal_of(problem, self.path) and tiling in tilings_of(problem, self.path)
        }

    def to_dict(self) -> dict[str, Any]:
        """The plan for JSON."""
        return {
            "path": self.path,
            "launches_per_step": self.launches_per_step,
            "launches_per_epoch": self.launches_per_epoch,
            "kernels": [
                {
                    "name": one.name,
                    "expression": one.kernel.expression,
                    "grid": list(one.grid),
                    "block": list(one.block),
                    "shared": one.shared,
                    "cooperative": one.cooperative,
                }
                for one in self.kernels
            ],
            "tiling": self.tiling,
            "measured": self.choice.measured,
            "partitions": self.partitions,
            "workspace_bytes": self.workspace_bytes,
            "traffic": self.traffic,
            "predicted_seconds": {name: one.seconds for name, one in self.predictions.items()},
            "reason": self.reason,
        }

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> list[str]:
        p, layout = self.layout.problem, self.layout
        of_what = "an epoch" if self.path == paths.EPOCH else "a step"
        lines = [
            f"plan {self.path}: {paths.MEANINGS[self.path]}",
            f"  network    {p.D} → {p.H} ({p.activation}) → {p.C}, {p.loss}; batches of {p.N}; {p.dtype}, "
            f"products in {p.precision}; X as {p.inputs}; {p.rule}",
            f"  device     {p.arch}, {p.sms} multiprocessors",
            f"  reason     {self.reason}",
            f"  launches   {self.launches_per_step} a step, {self.launches_per_epoch} an epoch of "
            f"{self.samples} samples",
            f"  tiling     {self.tiling}",
            f"  partitions S = {self.partitions}; workspace {self.workspace_bytes:,} bytes",
            f"  note       {layout.note}; {'measured on this GPU' if self.choice.measured else 'by rule'}",
        ]
        lines.append(f"  kernels of {of_what}")
        for one in self.kernels:
            sizes = " ".join(
                (
                    f"grid {'×'.join(map(str, one.grid))},",
                    f"block {'×'.join(map(str, one.block))},",
                    f"{one.shared:,} bytes of dynamic shared memory"
                    + (", cooperative" if one.cooperative else ""),
                )
            )
            lines.append(f"    {one.name}: {sizes}")
        width = max(map(len, (*self.traffic, "bytes a step")))
        lines.append(f"    {'bytes a step':<{width}}{'compulsory':>15}{'expected':>15}")
        lines += [
            f"    {name:<{width}}{row['compulsory']:>15,}{row['expected']:>15,}"
            for name, row in self.traffic.items()
        ]
        lines.append(f"  a step ({LABEL}), and how full the rounds of blocks are")
        waves = self.wave_efficiency
        lines += [
            f"    {name:<12}{one.seconds * 1e6:>10.1f} µs, bound by {one.bound}; {waves[name]:.0%} full"
            for name, one in self.predictions.items()
        ]
        return lines


def _folded(moved: Mapping[str, int]) -> dict[str, int]:
    """The optimizer's state as one buffer."""
    found: dict[str, int] = {}
    for name, count in moved.items():
        key = "state" if name in SLOTS else name
        found[key] = found.get(key, 0) + int(count)
    return found
