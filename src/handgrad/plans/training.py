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
from handgrad.plans import paths, tuning
from handgrad.plans.choice import Choice, NoPath, choose
from handgrad.plans.cublas import CublasTraining
from handgrad.plans.graph import CapturedLaunches
from handgrad.plans.problems import problem_of

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
        self._decisions: dict[Hashable, Choice | str | None] = {}
        self._cublas = CublasTraining(net)
        self._taken: Choice | None = None

    # ---- one step

    def gradient(self, X: Array, y: Array, gradient: Array) -> Array | None:
        """Write the flat gradient of the batch and give the loss, 0-d; None where no path takes it."""
        choice = self._decide(int(X.shape[0]), self._net.dtype.name, "Store")
        if isinstance(choice, str):
            return self._cublas.gradient(X, y, gradient)
        if choice is None:
            return None
        _say(choice.instead)
        return self._run(choice, X, y, gradient=gradient).copy().reshape(())

    def step(
        self,
        X: Array,
        y: Array,
        optimizer: Optimizer,
        loss: Array,
        scale: float = 1.0,
        shift: float = 0.0,
        kernels: bool = False,
    ) -> bool:
        """One step of ``optimizer`` on ``X * scale + shift``; False, and nothing done, where no path can."""
        choice = self._decide(int(X.shape[0]), X.dtype.name, optimizer.rule, kernels=kernels)
        if isinstance(choice, str):
            return self._cublas.step(X, y, optimizer, loss)
        if choice is None:
            return False
        _say(choice.instead)
        optimizer.bind(self._net.flat_parameters)
        loss[...] = self._run(choice, X, y, optimizer=optimizer, scale=scale, shift=shift)
        return True

    def _decide(
        self, N: int, inputs: str, rule: str, epoch: bool = False, kernels: bool = False
    ) -> Choice | str | None:
        """The choice for batches of N; "cublas" where that was measured to be faster and ``kernels`` are not
        asked for; None where nothing can.

        Remembered, since a small step takes the device less time than choosing takes the host.
        """
        if self._taken is not None:
            return self._taken
        net = self._net
        key = (N, inputs, rule, epoch, kernels, net.path, device_limits(net.xp))
        if key not in self._decisions:
            self._decisions[key] = self._decide_anew(N, inputs, rule, epoch, kernels)
        return self._decisions[key]

    def _decide_epoch(self, X: Array, N: int, rule: str, consecutive: bool) -> Choice | str | None:
        """For batches of N out of X.  uint8 stays uint8 where the path takes it: R2 as it is, the others in
        batches that lie there already or whose rows are whole words, to be gathered four pixels at a time."""
        net = self._net
        words = X.shape[1] % 4 == 0 and checks.address(X) % 4 == 0 and X.flags.c_contiguous
        first: Choice | str | None = None
        for inputs in ("uint8", net.dtype.name) if X.dtype == np.uint8 else (net.dtype.name,):
            found = self._decide(N, inputs, rule, epoch=True)
            if not isinstance(found, Choice):
                return found
            path = found.layout.path
            if inputs == "uint8" and path != paths.EPOCH and not (words or consecutive):
                continue
            if net.path in (None, path):
                return found
            first = first or found
        return first

    def _decide_anew(self, N: int, inputs: str, rule: str, epoch: bool, kernels: bool) -> Choice | str | None:
        net = self._net
        if N == 0:
            return None
        problem = problem_of(net, N, rule=rule, inputs=inputs)
        asked = None if net.path == paths.EPOCH and not epoch else net.path
        measured = tuning.winner(net, problem) if asked is None else None
        if measured is not None and measured.tiling is not None:
            return tuning.choice_of(problem, measured)
        if measured is not None and not kernels:
            return tuning.CUBLAS
        try:
            return choose(problem, asked, epoch)
        except NoPath:
            return None

    def take(self, choice: Choice) -> None:
        """Run steps by this choice from now on, whatever else there is: it is to be measured."""
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
        choice = self._decide_epoch(X, min(batch_size, len(order)), optimizer.rule, consecutive)
        if isinstance(choice, str):
            return self._cublas.epoch(X, y, order, batch_size, optimizer, scale, shift)
        if choice is None:
            return None
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
            loss = losses[step : step + 1]
            if not self.step(batch_X, batch_y, optimizer, loss, *factors, kernels=True):
                raise AssertionError("the path takes every batch of an epoch whose first it takes")
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
