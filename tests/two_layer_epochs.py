"""A network whose epochs run in one launch on the emulator, beside the same network step by step in NumPy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad import MLP, emulator
from handgrad.arrays import to_numpy
from handgrad.ops import Workspace, two_layer_epoch
from handgrad.ops import loss as loss_op
from handgrad.ops.optimizer import SGD, Adam, AdamW, Optimizer
from handgrad.ops.two_layer import Layout, Problem, StepArrays

MAKE: dict[str, Callable[[], Optimizer]] = {
    "sgd": lambda: SGD(0.1, weight_decay=0.03),
    "momentum": lambda: SGD(0.05, momentum=0.9),
    "nesterov": lambda: SGD(0.05, momentum=0.7, nesterov=True, weight_decay=0.03),
    "adam": lambda: Adam(0.01, eps=1e-2),  # with a small eps, what is nearly no gradient makes a whole step
    "adamw": lambda: AdamW(0.01, eps=1e-2, weight_decay=0.1),
}
SHAPE = {"N": 13, "D": 22, "H": 11, "C": 3}  # ragged in every cell; two rows of cells at least
TOLERANCE = 60  # rounding errors; every parameter and state against its largest element, after a few epochs
NOT_KEPT = 2  # multiprocessors: too few for the cells, so that the slices lie in global memory


@dataclasses.dataclass
class Training:
    """A network and its data on the emulator, and the same network step by step in NumPy and float64."""

    problem: Problem
    layout: Layout
    net: MLP
    exact: MLP
    optimizer: Optimizer
    exact_optimizer: Optimizer
    X: NDArray[Any]
    y: NDArray[Any]
    arrays: StepArrays

    def epoch(self, order: NDArray[np.int32]) -> NDArray[Any]:
        """One launch; the losses."""
        N = self.problem.N
        losses = emulator.empty(-(-len(order) // N), self.problem.dtype)
        with emulator.settings(arch=self.problem.arch, sms=self.problem.sms):
            two_layer_epoch.run(self.layout, self.arrays, emulator.asarray(order), N, losses)
        return to_numpy(losses)

    def exact_epoch(self, order: NDArray[np.int32]) -> NDArray[Any]:
        """The same steps of the other network."""
        X, y = (a.astype(np.float64) if a.dtype.kind == "f" else a for a in (self.X, self.y))
        a = self.arrays
        args = (X, y, order, self.problem.N, self.exact_optimizer)
        return to_numpy(self.exact.train_epoch(*args, scale=a.scale, shift=a.shift))

    def require_equal(self, tolerance: float = TOLERANCE) -> None:
        bound = tolerance * np.finfo(self.problem.dtype).eps
        pairs = [(self.net.parameters, self.exact.parameters)]
        pairs += [(self.optimizer.state_arrays(), self.exact_optimizer.state_arrays())]
        for own, expected in pairs:
            assert set(own) == set(expected)
            for name, value in expected.items():
                largest = np.abs(value).max()
                np.testing.assert_allclose(
                    to_numpy(own[name]), value, rtol=0, atol=bound * largest, err_msg=name
                )

    def bits(self) -> bytes:
        states = [to_numpy(state.flat).tobytes() for state in self.optimizer._state.values()]
        return b"".join([to_numpy(self.net.flat_parameters.flat).tobytes(), *states])


def order_of(rows: int, count: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).permutation(rows)[:count].astype(np.int32)


def training(
    *,
    optimizer: str = "sgd",
    rows: int = 60,
    inputs: str | None = None,
    dtype: str = "float32",
    arch: str = "sm_80",
    sms: int = 108,
    frozen: tuple[str, ...] = (),
    seed: int = 5,
    tiling: int = 0,
    **settings: Any,
) -> Training:
    """``tiling``: its number of those that the path offers."""
    shape = {name: settings.pop(name, size) for name, size in SHAPE.items()}
    config = {"activation": "tanh", "loss": "cross_entropy"} | settings
    rng = np.random.default_rng(seed)
    D, H, C = shape["D"], shape["H"], shape["C"]
    stored = inputs or dtype
    X = rng.integers(0, 256, (rows, D)).astype(np.uint8) if stored == "uint8" else rng.normal(size=(rows, D))
    y: NDArray[Any] = rng.integers(0, C, rows).astype(np.int32)
    if config["loss"] in loss_op.ELEMENTWISE:
        y = rng.normal(size=(rows, C)) if config["loss"] == "mse" else rng.integers(0, 2, (rows, C))
        y = y.astype(dtype)
    exact = MLP([D, H, C], dtype="float64", device="cpu", **config)
    net = MLP([D, H, C], dtype=dtype, device="emulator", **config)
    values = {n: 0.4 * rng.normal(size=v.shape).astype(dtype) for n, v in exact.parameters.items()}
    for one in (exact, net):
        one.load_parameters(values)
        one.freeze(*frozen)
    made = MAKE[optimizer]()
    made.bind(net.flat_parameters)
    X = X if stored == "uint8" else X.astype(dtype)
    scale, shift = (1 / 255, -0.25) if stored == "uint8" else (1.0, 0.0)
    precision = {"dtype": dtype, "precision": dtype, "inputs": stored}
    problem = Problem(**shape, **config, **precision, rule=made.rule, arch=arch, sms=sms)
    arrays = StepArrays(
        *(emulator.asarray(X), emulator.asarray(y), scale, shift, net.flat_parameters, None, made),
        *(emulator.empty(1, dtype), Workspace()),
    )
    layout = two_layer_epoch.lay_out(problem, two_layer_epoch.tilings(problem)[tiling])
    return Training(problem, layout, net, exact, made, MAKE[optimizer](), X, y, arrays)


def is_kept(layout: Layout) -> bool:
    return "epoch.slices" not in layout.workspace
