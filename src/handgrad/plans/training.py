"""Training steps and epochs of a two-layer network through its plans.

A network has one :class:`PlannedTraining`.  Each plan is bound once: its workspace is allocated at its first
step, and nothing is in later ones.  On CuPy the launches of a step that comes again on the same arrays are
captured in a CUDA graph.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from handgrad.arrays import Array
from handgrad.kernel import device_limits
from handgrad.ops import batch, checks
from handgrad.ops.tilings import Tiling
from handgrad.ops.two_layer import Layout, Problem, StepArrays
from handgrad.ops.workspace import Workspace
from handgrad.plans import paths, winners
from handgrad.plans.choice import Choice, NoPath
from handgrad.plans.cublas import CublasTraining
from handgrad.plans.graph import CapturedLaunches
from handgrad.plans.problems import problem_of
from handgrad.plans.winners import Decision

if TYPE_CHECKING:
    from handgrad.network import MLP
    from handgrad.ops.optimizer import Optimizer

MOST_PLANS = 16  # kept with their workspaces: full and last batches of several sizes, steps and gradients

_said: set[str] = set()


class BoundPlan:
    """A layout with the memory that it works in."""

    def __init__(self, layout: Layout, xp: Any) -> None:
        self.layout = layout
        self.workspace = Workspace()
        self.loss = xp.empty((1,), dtype=layout.problem.dtype)  # at one address, for the graph
        self._path = paths.module_of(layout.path)
        self._captured = CapturedLaunches(xp)

    def run(self, arrays: StepArrays) -> None:
        """The launches of one step."""
        self._captured.run(captured_key(arrays), lambda: self._path.run(self.layout, arrays))


def captured_key(arrays: StepArrays) -> Hashable:
    """What a captured step has in it for good: addresses of its arrays, and the scalars of its launches."""
    given = (arrays.X, arrays.y, arrays.parameters.flat, arrays.gradient, arrays.loss)
    optimizer = arrays.optimizer
    state = () if optimizer is None else optimizer.kernel_arguments(arrays.parameters)
    return (
        arrays.scale,
        arrays.shift,
        *(None if array is None else checks.address(array) for array in (*given, *state)),
    )


class PlannedTraining:
    """Runs ``net``'s steps, gradients and epochs by plans."""

    def __init__(self, net: MLP) -> None:
        self._net = net
        self._bound: OrderedDict[tuple[str, Problem, Tiling], BoundPlan] = OrderedDict()
        self._decisions: dict[Hashable, Decision | None] = {}
        self._cublas = CublasTraining(net)
        self._taken: Choice | None = None

    # ---- one step

    def gradient(self, X: Array, y: Array, gradient: Array) -> Array | None:
        """Write the flat gradient of the batch and give the loss, 0-d; None where no path takes it."""
        found = self._decide(int(X.shape[0]), self._net.dtype.name, "Store")
        if found is None:
            return None
        if found.cublas:
            return self._cublas.gradient(X, y, gradient)
        return self._run(found.choice, X, y, gradient=gradient).copy().reshape(())

    def step(self, X: Array, y: Array, optimizer: Optimizer, loss: Array) -> bool:
        """One step of ``optimizer`` on the batch; False, and nothing done, where no path can."""
        found = self._decide(int(X.shape[0]), X.dtype.name, optimizer.rule)
        if found is None:
            return False
        if found.cublas:
            return self._cublas.step(X, y, optimizer, loss)
        self.step_by(found.choice, X, y, optimizer, loss)
        return True

    def step_by(
        self,
        choice: Choice,
        X: Array,
        y: Array,
        optimizer: Optimizer,
        loss: Array,
        scale: float = 1.0,
        shift: float = 0.0,
    ) -> None:
        """One step of ``optimizer`` on ``X * scale + shift``, by this choice, which is for such a batch."""
        optimizer.bind(self._net.flat_parameters)
        loss[...] = self._run(choice, X, y, optimizer=optimizer, scale=scale, shift=shift)

    def _decide(self, N: int, inputs: str, rule: str, epoch: bool = False) -> Decision | None:
        """For batches of N; None where nothing can.

        Remembered, since a small step takes the device less time than choosing takes the host.
        """
        net = self._net
        if self._taken is not None:
            problem = self._taken.layout.problem
            if (problem.N, problem.inputs, problem.rule) == (N, inputs, rule):
                return Decision(self._taken)
            epoch = False  # an epoch of steps is measured: its other batches are steps too
        key = (N, inputs, rule, epoch, net.path, device_limits(net.xp))
        if key not in self._decisions:
            self._decisions[key] = self._decide_anew(N, inputs, rule, epoch)
        return self._decisions[key]

    def _decide_anew(self, N: int, inputs: str, rule: str, epoch: bool) -> Decision | None:
        net = self._net
        if N == 0:
            return None
        problem = problem_of(net, N, rule=rule, inputs=inputs)
        asked = None if net.path == paths.EPOCH and not epoch else net.path
        try:
            return winners.decide(net, problem, asked, epoch)
        except NoPath:
            return None

    def _decide_epoch(self, X: Array, N: int, rule: str, consecutive: bool) -> Decision | None:
        """For batches of N out of X.  uint8 stays uint8 where the path takes it: R2 as it is, the others in
        batches that lie there already or whose rows are whole words, to be gathered four pixels at a time."""
        net = self._net
        words = X.shape[1] % 4 == 0 and checks.address(X) % 4 == 0 and X.flags.c_contiguous
        first: Decision | None = None
        epoch = True
        for inputs in ("uint8", net.dtype.name) if X.dtype == np.uint8 else (net.dtype.name,):
            found = self._decide(N, inputs, rule, epoch)
            if found is None or found.cublas:
                return found
            path = found.choice.layout.path
            if inputs == "uint8" and path != paths.EPOCH and not (words or consecutive):
                epoch = not found.steps  # they were measured as they run next: scaled as they are gathered
                continue
            if net.path in (None, path):
                return found
            first = first or found
        return first

    def take(self, choice: Choice) -> None:
        """Run batches like this choice's by it from now on, whatever else there is: it is to be measured."""
        self._taken = choice

    def forget(self) -> None:
        """Decide anew from now on: something was measured."""
        self._decisions.clear()

    def _run(
        self,
        choice: Choice,
        X: Array,
        y: Array,
        *,
        gradient: Array | None = None,
        optimizer: Optimizer | None = None,
        scale: float = 1.0,
        shift: float = 0.0,
    ) -> Array:
        """One step; the loss (1,), in memory that the next one takes."""
        _say(choice.instead)
        bound = self._bind(choice.layout)
        xp = self._net.xp
        given = checks.contiguous(xp, X), checks.contiguous(xp, y)
        parameters = self._net.flat_parameters
        bound.run(
            StepArrays(*given, scale, shift, parameters, gradient, optimizer, bound.loss, bound.workspace)
        )
        return bound.loss

    def _bind(self, layout: Layout) -> BoundPlan:
        key = (layout.path, layout.problem, layout.tiling)
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bound[key] = BoundPlan(layout, self._net.xp)
            if len(self._bound) > MOST_PLANS:
                self._bound.popitem(last=False)
        self._bound.move_to_end(key)
        return bound

    # ---- an epoch

    def epoch(
        self,
        X: Array,
        y: Array,
        order: NDArray[np.int32],
        batch_size: int,
        optimizer: Optimizer,
        scale: float,
        shift: float,
    ) -> Array | None:
        """The losses of an epoch's steps; None, and nothing done, where no path takes it."""
        net = self._net
        steps = -(-len(order) // batch_size)
        consecutive = bool((np.diff(order) == 1).all())
        N = min(batch_size, len(order))
        found = self._decide_epoch(X, N, optimizer.rule, consecutive)
        if found is None:
            return None
        if found.cublas:
            return self._cublas.epoch(X, y, order, batch_size, optimizer, scale, shift)
        choice = found.choice
        _say(choice.instead)
        optimizer.bind(net.flat_parameters)
        losses = net.xp.empty((steps,), dtype=net.dtype)
        rows = net.xp.asarray(order)
        if choice.layout.path == paths.EPOCH:
            self._whole_epoch(choice, X, y, rows, optimizer, losses, scale, shift)
            return losses
        inputs = choice.layout.problem.inputs
        for step in range(steps):
            part = slice(step * batch_size, min((step + 1) * batch_size, len(order)))
            first = int(order[part.start])
            if consecutive and X.dtype == inputs:  # the batch lies there already
                taken = slice(first, first + part.stop - part.start)
                batch_X, batch_y, factors = X[taken], y[taken], (scale, shift)
            else:
                batch_X, batch_y, factors = self._gathered(choice, X, y, rows[part], scale, shift)
            by = choice
            if part.stop - part.start < N:
                short = self._decide(part.stop - part.start, inputs, optimizer.rule)
                assert short is not None, "R4 takes every batch"
                by = short.choice  # of kernels even where cuBLAS is faster: X may be uint8
            self.step_by(by, batch_X, batch_y, optimizer, losses[step : step + 1], *factors)
        return losses

    def _whole_epoch(
        self,
        choice: Choice,
        X: Array,
        y: Array,
        rows: Array,
        optimizer: Optimizer,
        losses: Array,
        scale: float,
        shift: float,
    ) -> None:
        net = self._net
        bound = self._bind(choice.layout)
        if X.dtype != choice.layout.problem.inputs:
            X = X.astype(net.dtype) * net.dtype.type(scale) + net.dtype.type(shift)
            scale, shift = 1.0, 0.0
        arrays = StepArrays(
            checks.contiguous(net.xp, X), checks.contiguous(net.xp, y), scale, shift, net.flat_parameters,
            None, optimizer, losses, bound.workspace,
        )  # fmt: skip
        paths.MODULES[paths.EPOCH].run(choice.layout, arrays, rows, choice.layout.problem.N, losses)

    def _gathered(
        self, choice: Choice, X: Array, y: Array, rows: Array, scale: float, shift: float
    ) -> tuple[Array, Array, tuple[float, float]]:
        """The batch of these rows, in memory that every batch takes, with scale and shift yet to come."""
        net, workspace = self._net, self._bind(choice.layout).workspace
        N, D = len(rows), int(X.shape[1])
        targets = workspace.get("batch.y", (N, *y.shape[1:]), y.dtype, net.xp)
        batch.gather(y, rows, out=targets)
        if choice.layout.problem.inputs == "uint8":
            words = workspace.get("batch.words", (N, D // 4), np.int32, net.xp)
            batch.gather(X.view(np.int32), rows, out=words)  # four pixels at a time, as they are stored
            return words.view(np.uint8), targets, (scale, shift)
        inputs = workspace.get("batch.X", (N, D), net.dtype, net.xp)
        batch.gather(X, rows, out=inputs, scale=scale, shift=shift, dtype=net.dtype)
        return inputs, targets, (1.0, 0.0)


def _say(line: str) -> None:
    """On stderr, once a process."""
    if line and line not in _said:
        _said.add(line)
        print(f"handgrad: {line}", file=sys.stderr)
