"""Forward, loss and backward of one block of rows, in buffers that stay.

::

    Z_1 = X W_1,  Z_l = A_{l-1} W_l;   Z_l += b_l;   A_l = f(Z_l) in place;   loss and dZ_L from Z_L
    dW_l = A_{l-1}ᵀ dZ_l,   db_l = 1ᵀ dZ_l,   dZ_{l-1} = (dZ_l W_lᵀ) ∘ f'(A_{l-1})

Every array and every function is bound once, so that a block costs the calls into NumPy and little else.  A
last layer of few columns is turned over, (C, n) in memory: the loss then runs along whole vectors of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.host.arrangement import Cut
from handgrad.host.products import Call, Floats, Product
from handgrad.ops import activation as activation_op
from handgrad.ops import loss_numpy

CACHE_LINE = 64  # bytes
FEW_COLUMNS = 32  # up to as many outputs, the last layer is turned over
Views = Mapping[str, Floats]


@dataclass(frozen=True)
class Layout:
    """What a network computes."""

    sizes: tuple[int, ...]
    activation: str
    output: str
    loss: str
    bias: bool
    dtype: np.dtype[Any]

    @property
    def layers(self) -> int:
        """L."""
        return len(self.sizes) - 1


class Block:
    """Blocks of exactly ``n`` rows; several of them follow one another and share ``memory``.

    ``gradients`` take those of the first block of a step; others are added to them, by way of ``added``.
    """

    def __init__(
        self,
        layout: Layout,
        n: int,
        cut: Cut,
        parameters: Views,
        gradients: Views,
        added: Views | None,
        memory: Memory,
    ) -> None:
        self.layout, self.n, self.cut = layout, n, cut
        self.parameters = parameters
        L, C = layout.layers, layout.sizes[-1]
        self.A = [memory.take(f"A{k}", n, layout.sizes[k]) for k in range(1, L)]
        self.dZ = [memory.take(f"dZ{k}", n, layout.sizes[k]) for k in range(1, L)]
        self.Z_rows = memory.take("Z", n, C)
        turned = 1 < C <= FEW_COLUMNS and n > C
        self.Z = memory.turned("turned Z", n, C) if turned else self.Z_rows
        self.dZ.append((memory.turned if turned else memory.take)("dZ", n, C))
        self.ones = memory.ones(n)
        self.loss = loss_numpy.BY_NAME[layout.loss](self.Z, layout.output)
        self.scratch = [activation_op.Scratch(A) for A in self.A]

        self.bias_rows: list[
            Call
        ] = []  # NumPy adds a full matrix in half the time that a row takes, and no buffer
        self.step = 0
        self.first_product = self._forward_product(1)
        self.forward_calls: list[Call] = self._after_product(1)
        for layer in range(2, L + 1):
            self.forward_calls += self._forward_product(layer).calls(self.A[layer - 2])
            self.forward_calls += self._after_product(layer)
        self.last_products = {True: self._weight_product(1, gradients)}
        self.backward_calls = {True: self._backward(gradients, None)}
        self.sums: list[Call] = []
        if added is not None:
            self.last_products[False] = self._weight_product(1, added)
            self.backward_calls[False] = self._backward(added, gradients)
            self.sums = [(np.add, (gradients["W1"], added["W1"], gradients["W1"]))]

    # ---- forward

    def _forward_product(self, layer: int) -> Product:
        out = self.A[layer - 1] if layer < self.layout.layers else self.Z_rows
        return Product(self.parameters[f"W{layer}"], out, self.cut.forward[layer - 1])

    def _after_product(self, layer: int) -> list[Call]:
        """Bias and activation."""
        calls: list[Call] = []
        if layer < self.layout.layers:
            Z, name = self.A[layer - 1], self.layout.activation
        else:
            Z, name = self.Z, "identity"
            if self.Z is not self.Z_rows:
                calls.append((np.copyto, (self.Z, self.Z_rows)))
        if self.layout.bias:
            b = self.parameters[f"b{layer}"]
            if Z.nbytes < activation_op.LARGE:
                rows = np.empty_like(Z)
                self.bias_rows.append((np.copyto, (rows, b)))
                b = rows
            calls.append((np.add, (Z, b, Z)))
        if name != "identity":
            calls.append((call_activation, (activation_op._FORWARD, name, (Z, Z, self.scratch[layer - 1]))))
        return calls

    # ---- backward

    def _weight_product(self, layer: int, gradients: Views) -> Product:
        return Product(self.dZ[layer - 1], gradients[f"W{layer}"], self.cut.weight[layer - 1])

    def _backward(self, target: Views, total: Views | None) -> list[Call]:
        """All but dW_1, which needs X."""
        calls: list[Call] = []
        written = []
        for layer in range(self.layout.layers, 0, -1):
            dZ = self.dZ[layer - 1]
            if layer > 1:
                calls += self._weight_product(layer, target).calls(self.A[layer - 2].T)
                written.append(f"W{layer}")
            if self.layout.bias:
                calls.append(self._bias_gradient(dZ, target[f"b{layer}"]))
                written.append(f"b{layer}")
            if layer > 1:
                calls += self._input_gradient(layer)
        if total is not None:
            calls += [(np.add, (total[name], target[name], total[name])) for name in written]
        return calls

    def _bias_gradient(self, dZ: Floats, db: Floats) -> Call:
        return np.matmul, (self.ones, dZ, db)

    def _input_gradient(self, layer: int) -> list[Call]:
        A, dA, name = self.A[layer - 2], self.dZ[layer - 2], self.layout.activation
        W = self.parameters[f"W{layer}"]
        calls = Product(W.T, dA, self.cut.input[layer - 1]).calls(self.dZ[layer - 1])
        if name != "identity":
            calls.append(
                (call_activation, (activation_op._BACKWARD, name, (A, dA, dA, self.scratch[layer - 2])))
            )
        return calls

    # ---- running

    def forward(self, X: Floats, y: Floats, scale: float | None, step: int) -> float:
        """The summed loss of the block; dZ_L, times ``scale``, lies ready.

        Parameters may have changed where ``step`` is another than before.
        """
        if step != self.step:
            self.step = step
            for function, arguments in self.bias_rows:
                function(*arguments)
        self.first_product.run(X)
        for function, arguments in self.forward_calls:
            function(*arguments)
        dZ = self.dZ[-1]
        total = self.loss(self.Z, y, dZ)
        if scale is not None:
            dZ *= scale
        return total

    def backward(self, X: Floats, first: bool) -> None:
        """Write (``first``) or add the gradients of the block."""
        for function, arguments in self.backward_calls[first]:
            function(*arguments)
        self.last_products[first].run(X.T)
        if not first:
            for function, arguments in self.sums:
                function(*arguments)

    def input_gradient(self, dX: Floats) -> None:
        """dX = dZ_1 W_1ᵀ of the block."""
        np.matmul(self.dZ[0], self.parameters["W1"].T, out=dX)


def call_activation(table: Mapping[str, Callable[..., Any]], name: str, arguments: tuple[Any, ...]) -> None:
    """``table[name](*arguments)``: looked up when it is called."""
    table[name](*arguments)


class Memory:
    """Buffers of one thread for blocks of up to ``rows`` rows, by name."""

    def __init__(self, rows: int, dtype: np.dtype[Any]) -> None:
        self.rows, self.dtype = rows, dtype
        self._buffers: dict[str, NDArray[Any]] = {}

    def take(self, name: str, n: int, columns: int, dtype: np.dtype[Any] | None = None) -> NDArray[Any]:
        """(n, columns), uninitialised, C-contiguous; the same memory for the same name and dtype."""
        return self._flat(name, columns, dtype or self.dtype)[: n * columns].reshape(n, columns)

    def turned(self, name: str, n: int, columns: int) -> NDArray[Any]:
        """(n, columns) in Fortran order."""
        return self._flat(name, columns, self.dtype)[: n * columns].reshape(columns, n).T

    def ones(self, n: int) -> NDArray[Any]:
        """(n,) ones."""
        ones = self._flat("ones", 1, self.dtype)
        ones[:n] = 1
        return ones[:n]

    def _flat(self, name: str, columns: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        size = self.rows * columns
        key = f"{name} {dtype}"
        if key not in self._buffers or self._buffers[key].size < size:
            memory = np.empty(size * dtype.itemsize + CACHE_LINE, dtype=np.uint8)
            start = -memory.ctypes.data % CACHE_LINE
            self._buffers[key] = memory[start : start + size * dtype.itemsize].view(dtype)
        return self._buffers[key]
