"""One step of a plan on the emulator: counted launches and traffic beside what the plan says.

Of each buffer: ``compulsory`` and ``expected`` bytes as the plan has them, ``requested`` (what the lanes ask
for) and ``distinct`` (the 32-byte sectors of each launch, as bytes) as the emulator counted them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from handgrad import emulator
from handgrad.emulator.counting import LaunchCounts, counting
from handgrad.emulator.launch import launch_through
from handgrad.network import MLP
from handgrad.ops import loss as loss_op
from handgrad.ops import optimizer as optimizer_op
from handgrad.plans import Plan, paths, plan
from handgrad.proof.counters import global_traffic
from handgrad.proof.traffic import Shape

# What kernels call their arguments -> the plan's buffer.
BUFFERS = {"x": "X", "w": "parameters", "state1": "state", "state2": "state", "labels": "y", "targets": "y"}


@dataclass(frozen=True)
class BufferTraffic:
    """Bytes of one buffer in a step; None where the plan's formula leaves it out."""

    compulsory: int | None
    expected: int | None
    requested: int
    distinct: int


@dataclass(frozen=True)
class PlanProfile:
    """The plan of a shape and what one step of it did."""

    shape: Shape
    plan: Plan
    launches: tuple[LaunchCounts, ...]

    @property
    def buffers(self) -> dict[str, BufferTraffic]:
        """By the plan's names, then those that only the launches touch."""
        rule = self.plan.layout.problem.rule
        counted: dict[str, list[int]] = {}
        for one in self.launches:
            for argument, accesses in global_traffic(one).items():
                first = argument.split(", ")[0]  # of arguments that overlap
                name = BUFFERS.get(first, first)
                name = "gradient" if name == "parameters" and rule == "Store" else name
                sums = counted.setdefault(name, [0, 0])
                for access in accesses.values():
                    sums[0] += access.requested_bytes
                    sums[1] += access.distinct_bytes
        planned = self.plan.traffic
        return {
            name: BufferTraffic(
                planned.get(name, {}).get("compulsory"),
                planned.get(name, {}).get("expected"),
                *counted.get(name, (0, 0)),
            )
            for name in dict.fromkeys((*planned, *counted))
        }

    def as_row(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "step": str(self.shape),
            "path": self.plan.path,
            "launches": len(self.launches),
            "kernels": [one.expression for one in self.launches],
            "plan": self.plan.to_dict(),
            "buffers": {name: asdict(one) for name, one in self.buffers.items()},
        }


def profile_plan(shape: Shape, path: str | None = None, precision: str | None = None) -> PlanProfile:
    """Run one step of ``shape`` (relu, momentum by default) by its plan, or by ``path`` where it can be; with
    "R2" an epoch of one batch."""
    N, D, H, C = shape.N, shape.D, shape.H, shape.C
    net = MLP([D, H, C], loss=shape.loss, device="emulator", path=path, precision=precision)
    rule = {"Sgd": optimizer_op.SGD(0.1), "Adam": optimizer_op.Adam()}.get(
        shape.rule, optimizer_op.SGD(0.1, momentum=0.9)
    )
    random = np.random.default_rng(0)
    X = emulator.asarray(random.normal(size=(N, D)).astype(np.float32))
    elementwise = shape.loss in loss_op.ELEMENTWISE
    y = random.normal(size=(N, C)).astype(np.float32) if elementwise else random.integers(0, C, N)
    targets = emulator.asarray(y if elementwise else y.astype(np.int32))
    shown = plan(net, N, optimizer=rule, epoch=path == paths.EPOCH)

    def step() -> None:
        if shown.path == paths.EPOCH:
            net.train_epoch(X, targets, np.arange(N), N, rule)
        else:
            net.train_step(X, targets, rule)

    wanted: dict[Any, None] = {}
    with launch_through(lambda source, expression, *_: wanted.setdefault((source, expression))):
        step()
    emulator.prebuild(wanted, mode="count")
    with counting() as launches:
        step()
    return PlanProfile(shape, shown, tuple(launches))
