"""A two-layer step on few rows, whose hidden units are shared among threads instead of its rows.

::

    each share of the columns of W1:   A_p = f(X W1_p + b1_p),  Z_p = A_p W2_p
    one thread:                        Z2 = Σ_p Z_p + b2, in order;  loss, dZ2, db2
    each share again:                  dW2_p = A_pᵀ dZ2,  dZ1_p = (dZ2 W2_pᵀ) ∘ f'(A_p),  db1_p = 1ᵀ dZ1_p,
                                       dW1_p = Xᵀ dZ1_p

No gradient is computed twice over and none has to be added up, which on few rows costs as much as a product.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.host import arrangement, blas, threads
from handgrad.host.block import FEW_COLUMNS, Layout, Memory, Views, call_activation
from handgrad.host.products import Call, Floats, Product
from handgrad.host.rows import Rows
from handgrad.ops import activation as activation_op
from handgrad.ops import loss_numpy

LEAST_UNITS = 64  # hidden units in a share
EVEN = 16  # a share is a multiple of as many units


def shares(layout: Layout, n: int, flops: float) -> int:
    """Into how many shares to divide the hidden units of a step on ``n`` rows; 0 for a step by rows."""
    if layout.layers != 2 or flops < 2 * arrangement.PART_FLOPS:
        return 0
    D, H, C = layout.sizes
    number = int(min(blas.machine_cores(), flops // arrangement.PART_FLOPS, H // LEAST_UNITS))
    if number < 2 or arrangement.rule((D, -(-H // number), C), n, layout.dtype.itemsize).block < n:
        return 0
    return number


class Columns:
    """Steps on exactly ``n`` rows, in ``number`` shares of the hidden units."""

    def __init__(self, layout: Layout, n: int, number: int, parameters: Views, gradients: Views) -> None:
        self.n, self.parameters = n, parameters
        _, H, C = layout.sizes
        self.memory = memory = Memory(n, layout.dtype)
        turned = 1 < C <= FEW_COLUMNS and n > C
        self.Z = (memory.turned if turned else memory.take)("Z", n, C)
        self.dZ = (memory.turned if turned else memory.take)("dZ", n, C)
        self.bias_rows = np.empty_like(self.Z) if layout.bias else None
        self.gradients, self.ones = gradients, memory.ones(n)
        self.loss = loss_numpy.BY_NAME[layout.loss](self.Z, layout.output)
        units = -(-H // (number * EVEN)) * EVEN
        self.shares = [
            _Share(layout, n, slice(start, min(start + units, H)), parameters, gradients, self.dZ, self.ones)
            for start in range(0, H, units)
        ]

    def run(self, rows: Rows, scale: Any, backward: bool, dX: NDArray[Any] | None, number: int) -> float:
        """The summed loss and, ``backward``, the gradients, in up to ``number`` threads."""
        X, y = rows.block(0, self.n, self.memory)
        threads.run([functools.partial(share.forward, X) for share in self.shares], number)
        first, *others = self.shares
        for other in others:
            np.add(first.Z, other.Z, out=first.Z)
        np.copyto(self.Z, first.Z)
        if self.bias_rows is not None:
            np.copyto(self.bias_rows, self.parameters["b2"])
            np.add(self.Z, self.bias_rows, out=self.Z)
        total = self.loss(self.Z, y, self.dZ)
        if not backward:
            return total
        if scale is not None:
            np.multiply(self.dZ, scale, out=self.dZ)
        if self.bias_rows is not None:
            np.matmul(self.ones, self.dZ, out=self.gradients["b2"])
        threads.run([functools.partial(share.backward, X) for share in self.shares], number)
        if dX is not None:
            for k, share in enumerate(self.shares):
                np.add(dX, share.input_gradient(), out=dX) if k else np.copyto(dX, share.input_gradient())
        return total


class _Share:
    """Some hidden units: their columns of W1 and b1, their rows of W2."""

    def __init__(
        self,
        layout: Layout,
        n: int,
        units: slice,
        parameters: Views,
        gradients: Views,
        dZ2: Floats,
        ones: Floats,
    ) -> None:
        D, _, C = layout.sizes
        h = units.stop - units.start
        memory = Memory(n, layout.dtype)
        cut = arrangement.rule((D, h, C), n, layout.dtype.itemsize)
        self.A, self.dZ, self.Z = memory.take("A", n, h), memory.take("dZ", n, h), memory.take("Z", n, C)
        self.W1 = parameters["W1"][:, units]
        W2, scratch = parameters["W2"][units], activation_op.Scratch(self.A)
        self.first = Product(self.W1, self.A, cut.forward[0])
        self.last = Product(self.dZ, gradients["W1"][:, units], cut.weight[0])

        self.forward_calls: list[Call] = []
        if layout.bias:
            rows = np.empty_like(self.A)
            self.forward_calls += [
                (np.copyto, (rows, parameters["b1"][units])),
                (np.add, (self.A, rows, self.A)),
            ]
        if layout.activation != "identity":
            self.forward_calls.append(
                (call_activation, (activation_op._FORWARD, layout.activation, (self.A, self.A, scratch)))
            )
        self.forward_calls += Product(W2, self.Z, cut.forward[1]).calls(self.A)

        self.backward_calls = Product(dZ2, gradients["W2"][units], cut.weight[1]).calls(self.A.T)
        self.backward_calls += Product(W2.T, self.dZ, cut.input[1]).calls(dZ2)
        if layout.activation != "identity":
            arguments = (self.A, self.dZ, self.dZ, scratch)
            self.backward_calls.append(
                (call_activation, (activation_op._BACKWARD, layout.activation, arguments))
            )
        if layout.bias:
            self.backward_calls.append((np.matmul, (ones, self.dZ, gradients["b1"][units])))

    def forward(self, X: Floats) -> None:
        """Z, the share's part of the logits."""
        self.first.run(X)
        for function, arguments in self.forward_calls:
            function(*arguments)

    def backward(self, X: Floats) -> None:
        """The share's gradients, from dZ2."""
        for function, arguments in self.backward_calls:
            function(*arguments)
        self.last.run(X.T)

    def input_gradient(self) -> Floats:
        """The share's part of dX."""
        dX: Floats = np.matmul(self.dZ, self.W1.T)
        return dX
