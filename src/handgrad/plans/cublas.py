"""The same network over the vendor's matrix products (cuBLAS, through CuPy), as a rival to the fused kernels.

    A_l = f(A_{l-1} W_l + b_l),  dW_l = A_{l-1}ᵀ dZ_l,  db_l = Σ_n dZ_l,  dZ_{l-1} = (dZ_l W_lᵀ) ∘ f'(A_{l-1})

The products are ``xp.matmul``, with results in buffers that are kept; activations, loss and optimizer are
this project's kernels.  float32 and float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from handgrad.arrays import Array
from handgrad.ops import activation as activation_op
from handgrad.ops import batch
from handgrad.ops import loss as loss_op
from handgrad.ops.workspace import Workspace

if TYPE_CHECKING:
    from handgrad.network import MLP
    from handgrad.ops.optimizer import Optimizer


class CublasTraining:
    """Runs ``net``'s steps, gradients and epochs with ``xp.matmul``; any number of layers."""

    def __init__(self, net: MLP) -> None:
        self._net = net
        self._workspace = Workspace()
        self._gradient: Array | None = None

    def gradient(self, X: Array, y: Array, gradient: Array) -> Array:
        """Write the flat gradient of the batch and give the loss, 0-d."""
        return loss_and_gradient(self._net, X, y, gradient, self._workspace)

    def step(
        self,
        X: Array,
        y: Array,
        optimizer: Optimizer,
        loss: Array,
        scale: float = 1.0,
        shift: float = 0.0,
    ) -> bool:
        """One step of ``optimizer``; X is of the net's dtype, so ``scale`` and ``shift`` are 1 and 0."""
        assert (scale, shift) == (1.0, 0.0), "X is scaled as it is gathered"
        parameters = self._net.flat_parameters
        if self._gradient is None:
            self._gradient = parameters.like().flat
        loss[...] = self.gradient(X, y, self._gradient)
        optimizer.update(parameters, self._gradient)
        return True

    def forget(self) -> None:
        """There is no decision to forget."""

    def epoch(
        self,
        X: Array,
        y: Array,
        order: NDArray[np.int32],
        batch_size: int,
        optimizer: Optimizer,
        scale: float,
        shift: float,
    ) -> Array:
        """The losses of an epoch's steps, each batch gathered first."""
        net, workspace = self._net, self._workspace
        steps = -(-len(order) // batch_size)
        losses, rows = net.xp.empty((steps,), dtype=net.dtype), net.xp.asarray(order)
        for step in range(steps):
            part = rows[step * batch_size : (step + 1) * batch_size]
            inputs = workspace.get("X", (len(part), *X.shape[1:]), net.dtype, net.xp)
            batch.gather(X, part, out=inputs, scale=scale, shift=shift, dtype=net.dtype)
            targets = workspace.get("y", (len(part), *y.shape[1:]), y.dtype, net.xp)
            batch.gather(y, part, out=targets)
            self.step(inputs, targets, optimizer, losses[step : step + 1])
        return losses


def loss_and_gradient(net: MLP, X: Array, y: Array, gradient: Array, workspace: Workspace) -> Array:
    """The loss, 0-d, and the flat gradient, by ``xp.matmul`` on whatever kind of array they are."""
    xp, N = net.xp, int(X.shape[0])
    W, dW = net.flat_parameters.views, net.flat_parameters.split(gradient)
    values = [X]
    for layer in range(1, net.layers + 1):
        Z = workspace.get(f"Z{layer}", (N, net.sizes[layer]), net.dtype, xp)
        xp.matmul(values[-1], W[f"W{layer}"], out=Z)
        if net.bias:
            Z += W[f"b{layer}"]
        if layer < net.layers:
            activation_op.forward(Z, net.activation, out=Z)
        values.append(Z)
    dZ = workspace.get("dZ", (N, net.sizes[-1]), net.dtype, xp)
    loss, dZ = loss_op.forward_backward(
        values[-1], y, net.loss_name, net.output, net.reduction, out=dZ, workspace=workspace
    )
    for layer in range(net.layers, 0, -1):
        below = values[layer - 1]
        xp.matmul(below.T, dZ, out=dW[f"W{layer}"])
        if net.bias:
            dZ.sum(axis=0, out=dW[f"b{layer}"])
        if layer > 1:
            dA = workspace.get(f"dA{layer - 1}", tuple(below.shape), net.dtype, xp)
            xp.matmul(dZ, W[f"W{layer}"].T, out=dA)
            dZ = activation_op.backward(below, dA, net.activation, out=dA)
    return loss
