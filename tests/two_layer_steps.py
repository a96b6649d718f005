"""A step of a fused path on the emulator, and what the float64 reference says of it."""

from __future__ import annotations

import itertools

import numpy as np
import reference_network

from handgrad import emulator
from handgrad.arrays import to_numpy
from handgrad.emulator.counting import counting
from handgrad.ops import Workspace
from handgrad.ops.two_layer import Problem, StepArrays
from handgrad.parameters import FlatParameters
from handgrad.proof.counters import global_traffic


class Step:
    """One step of ``path``, a module of :mod:`handgrad.ops`, on drawn numbers."""

    def __init__(self, path, problem, optimizer=None, scale=1.0, shift=0.0, seed=0):
        p, rng = problem, np.random.default_rng(seed)
        shapes = {"W1": (p.D, p.H), "b1": (p.H,), "W2": (p.H, p.C), "b2": (p.C,)}
        shapes = {name: shape for name, shape in shapes.items() if p.bias or name[0] == "W"}
        self.path, self.problem, self.workspace = path, p, Workspace()
        self.parameters = FlatParameters(shapes, p.dtype, emulator)
        self.parameters.copy_from({n: rng.normal(size=s) / np.sqrt(s[0]) for n, s in shapes.items()})
        self.before = self.parameters.to_numpy()
        X = rng.integers(0, 256, (p.N, p.D)) if p.inputs == "uint8" else rng.normal(size=(p.N, p.D))
        self.X = X.astype(p.inputs)
        labels = p.loss in ("cross_entropy", "hinge")
        self.y = (
            rng.integers(0, p.C, p.N).astype(np.int32) if labels else rng.random((p.N, p.C)).astype(p.dtype)
        )
        self.gradient = emulator.empty(p.flat_size, dtype=p.dtype) if p.rule == "Store" else None
        self.loss = emulator.empty(1, dtype=p.dtype)
        if optimizer is not None:
            optimizer.bind(self.parameters)
        self.arrays = StepArrays(
            emulator.asarray(self.X), emulator.asarray(self.y), scale, shift,
            self.parameters, self.gradient, optimizer, self.loss, self.workspace,
        )  # fmt: skip
        self.layout = path.lay_out(p)

    def run(self):
        self.path.run(self.layout, self.arrays)
        return self

    def bits(self):
        written = self.parameters.flat if self.gradient is None else self.gradient
        return to_numpy(written).tobytes() + to_numpy(self.loss).tobytes()

    def expected(self):
        p = self.problem
        config = {"sizes": [p.D, p.H, p.C], "activation": p.activation, "output": p.output, "loss": p.loss}
        config |= {"reduction": p.reduction, "bias": p.bias}
        X = self.X.astype(np.float64) * self.arrays.scale + self.arrays.shift
        return reference_network.network(config, X, self.y, self.before, p.dtype, input_grad=False)

    def assert_right(self):
        expected = self.expected()
        reference_network.assert_within(to_numpy(self.loss)[0], expected["loss"], "loss")
        for name, view in self.parameters.split(self.gradient).items():
            reference_network.assert_within(to_numpy(view), expected[f"d{name}"], f"d{name}")


def covering():
    """Every activation with every loss and output; types, shapes, bias and reduction in turn."""
    losses = [("mse", g) for g in ("identity", "sigmoid", "relu", "tanh", "softplus")]
    losses += [(name, "identity") for name in ("bce", "cross_entropy", "hinge")]
    shapes = itertools.cycle(
        [(33, 20, 10, 3), (50, 65, 33, 2), (17, 3, 17, 10), (130, 35, 9, 1), (40, 12, 63, 17)]
    )
    rest = itertools.cycle(itertools.product(("mean", "sum"), (True, False), ("float32", "float64")))
    activations = ("relu", "sigmoid", "tanh", "softplus", "identity")
    for activation, (loss, output) in itertools.product(activations, losses):
        (N, D, H, C), (reduction, bias, dtype) = next(shapes), next(rest)
        yield Problem(
            N, D, H, C, activation, output, loss, reduction, bias,
            dtype=dtype, precision=dtype, inputs=dtype, rule="Store",
        )  # fmt: skip


def counted(step):
    """The launches of a step, counted, and the bytes that they ask for by buffer."""
    with counting() as launches:
        step.run()
    # as the kernels call them
    names = {"w": "gradient", "b2_partials": "partials"}
    found = {}
    for counts in launches:
        for buffer, accesses in global_traffic(counts).items():
            name = names.get(buffer.split(", ")[0], buffer.split(", ")[0])
            found[name] = found.get(name, 0) + sum(one.requested_bytes for one in accesses.values())
    return launches, {name: moved for name, moved in found.items() if moved}
