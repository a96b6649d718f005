"""A multi-layer perceptron with forward and backward written by hand, for any number of layers.

Forward, with A_0 = X:   Z_l = A_{l-1} W_l + b_l,   A_l = f(Z_l) for l < L,   Y_hat = g(Z_L)
Backward, from dZ_L of the loss:
                         dW_l = A_{l-1}ᵀ dZ_l,   db_l = Σ_n dZ_l,   dA_{l-1} = dZ_l W_lᵀ,
                         dZ_{l-1} = dA_{l-1} ∘ f'(A_{l-1})

The two-layer network is the case L = 2.  X (N, D) has samples in rows, W_l is (in, out).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from handgrad.arrays import Array, Device, get_array_module, resolve_device, to_numpy
from handgrad.host import network as host
from handgrad.initialization import INITIALIZATIONS, initial_values, parameter_shapes
from handgrad.network_arguments import float_dtype, precision_of, row_numbers, widths_of
from handgrad.ops import activation as activation_op
from handgrad.ops import batch, linear
from handgrad.ops import loss as loss_op
from handgrad.ops.workspace import Workspace
from handgrad.parameters import FlatParameters, Gradients
from handgrad.plans.dispatch import planned_training

if TYPE_CHECKING:
    from handgrad.host.engine import Engine
    from handgrad.ops.optimizer import Optimizer

PREDICT_ROWS = 8192  # rows that predict works on at a time, so that its memory does not grow with N


class MLP:
    """A network of dense layers, trained by hand-written backpropagation.

    Parameters
    ----------
    sizes: widths from input to output, as ``[784, 50, 1]``
    activation: f of the hidden layers: relu, sigmoid, tanh, softplus or identity
    output: g of the last layer, for ``loss="mse"``; the other losses take the logits
    loss: mse, bce, cross_entropy or hinge; reduction: mean or sum (see :mod:`handgrad.ops.loss`)
    bias: False leaves all b out
    init: he, glorot, lecun or zeros; drawn from ``seed`` in float64 on the host, so every device and dtype
        starts from the same values; biases start at 0
    dtype: float32 or float64; precision: that of the products on a device, dtype's by default; with float32
        also tf32, 3xtf32 or bfloat16, summed in float32
    device: "auto", "cpu", "cuda", "cuda:N" or "emulator"
    path: of a two-layer network on a device, "R1" ... "R4", or "ops" for the layer functions one after
        another; chosen where None (see :func:`handgrad.plan`)
    matmul: "kernels", "cublas" (CuPy's products, on a GPU), or "auto" for what was measured faster
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: str = "relu",
        output: str = "identity",
        loss: str = "mse",
        reduction: str = "mean",
        bias: bool = True,
        init: str = "he",
        dtype: str | np.dtype[Any] = "float32",
        precision: str | None = None,
        device: str | Device = "auto",
        seed: int = 0,
        path: str | None = None,
        matmul: str = "auto",
    ) -> None:
        self.sizes = widths_of(sizes)
        activation_op.functor_of(activation)
        loss_op.check_names(loss, output, reduction)
        if init not in INITIALIZATIONS:
            raise ValueError(f"init: expected one of {', '.join(INITIALIZATIONS)}, got {init!r}")
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"seed: expected a whole number, 0 or above, got {seed!r}")
        self.dtype = float_dtype(dtype)
        self.precision = precision_of(precision, self.dtype)
        self.activation, self.output = activation, output
        self.loss_name, self.reduction = loss, reduction
        self.bias, self.init, self.seed = bool(bias), init, int(seed)
        self.device = resolve_device(device)
        self.xp = self.device.array_module
        with self.device:
            shapes = parameter_shapes(self.sizes, self.bias)
            self.flat_parameters = FlatParameters(shapes, self.dtype, self.xp)
            self.load_parameters(initial_values(shapes, init, self.seed))
        self._engine: Engine | None = None  # on the CPU, made by the first step
        self._workspace = Workspace()
        self._step_gradients: Gradients | None = None
        self.path, self.matmul = path, matmul
        self._planned = planned_training(self)

    @property
    def layers(self) -> int:
        """L, the number of weight matrices."""
        return len(self.sizes) - 1

    @property
    def parameters(self) -> Mapping[str, Array]:
        """Name → view of the flat buffer: W1 (D, H), b1 (H,), W2, b2, …; write with ``[...] =``."""
        return MappingProxyType(self.flat_parameters.views)

    def config(self) -> dict[str, Any]:
        """The arguments that make this network again (without its parameters and device), JSON-able."""
        return {
            "sizes": list(self.sizes),
            "activation": self.activation,
            "output": self.output,
            "loss": self.loss_name,
            "reduction": self.reduction,
            "bias": self.bias,
            "init": self.init,
            "dtype": self.dtype.name,
            "seed": self.seed,
        } | ({} if self.precision == self.dtype.name else {"precision": self.precision})

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.config().items() if name != "sizes")
        return f"MLP({list(self.sizes)}, {arguments}, device={str(self.device)!r})"

    # ---- parameters

    def load_parameters(self, values: Mapping[str, Array]) -> None:
        """Copy ``values`` (name → array of any kind and float dtype) into the parameters.

        All names must be there, real numbers in the right shapes: ``ValueError`` otherwise, and nothing is
        changed.
        """
        views = self.flat_parameters.views
        if set(values) != set(views):
            raise ValueError(f"parameters: expected {', '.join(views)}, got {', '.join(values)}")
        for name, view in views.items():
            if tuple(np.shape(values[name])) != tuple(view.shape):
                got = tuple(np.shape(values[name]))
                raise ValueError(f"parameters: {name} must have shape {tuple(view.shape)}, got {got}")
        host = {name: to_numpy(values[name]) for name in views}
        for name, value in host.items():
            if value.dtype.kind not in "fiub":
                raise ValueError(f"parameters: {name} must hold real numbers, got {value.dtype}")
        with self.device:
            for name, view in views.items():
                view[...] = self.xp.asarray(host[name].astype(self.dtype))

    def freeze(self, *names: str) -> None:
        """Keep these parameters as they are in training; their gradients are still computed."""
        self.flat_parameters.freeze(*names)

    def unfreeze(self, *names: str) -> None:
        """Train these parameters again; without names, all of them."""
        self.flat_parameters.unfreeze(*names)

    def save(self, path: str | Path) -> None:
        """Write parameters and configuration to a safetensors file (see :mod:`handgrad.checkpoint`)."""
        from handgrad import checkpoint

        checkpoint.save(self, path)

    # ---- forward

    def forward(self, X: Array) -> Array:
        """``Y_hat = g(Z_L)`` (N, C): what the loss sees; logits for bce, cross_entropy and hinge."""
        X = self._inputs(X)
        with self.device:
            Z = self._logits(X, Workspace())[-1]
            return Z if self.output == "identity" else activation_op.forward(Z, self.output, out=Z)

    def predict(self, X: Array) -> Array:
        """Predictions (N, C), in blocks of rows: probabilities for bce (sigmoid) and cross_entropy (softmax);
        g(Z_L) for mse, scores for hinge."""
        X = self._inputs(X)
        N = int(X.shape[0])
        with self.device:
            predictions = self.xp.empty((N, self.sizes[-1]), dtype=self.dtype)
            for start in range(0, N, PREDICT_ROWS):
                block = self.forward(X[start : start + PREDICT_ROWS])
                if self.loss_name == "bce":
                    activation_op.forward(block, "sigmoid", out=block)
                elif self.loss_name == "cross_entropy":
                    block -= block.max(axis=1, keepdims=True)
                    np.exp(block, out=block)
                    block /= block.sum(axis=1, keepdims=True)
                predictions[start : start + PREDICT_ROWS] = block
        return predictions

    def loss(self, X: Array, y: Array) -> Array:
        """The loss alone, 0-d, on the device."""
        if self.xp is np:
            return host.loss(self, self._matrix(X), self._targets(y))
        X, y = self._inputs(X), self._targets(y)
        with self.device:
            Z = self._logits(X, self._workspace)[-1]
            return loss_op.forward_backward(
                Z, y, self.loss_name, self.output, self.reduction, workspace=self._workspace
            )[0]

    def _logits(self, X: Array, workspace: Workspace) -> list[Array]:
        """[X, A_1, …, A_{L-1}, Z_L], bias and activation fused into the products."""
        values = [X]
        for layer in range(1, self.layers + 1):
            last = layer == self.layers
            W, b = self._layer(layer)
            shape = (int(X.shape[0]), self.sizes[layer])
            out = workspace.get(f"{'Z' if last else 'A'}{layer}", shape, self.dtype, self.xp)
            values.append(linear.forward(values[-1], W, b, "identity" if last else self.activation, out=out))
        return values

    def _layer(self, layer: int) -> tuple[Array, Array | None]:
        views = self.flat_parameters.views
        return views[f"W{layer}"], views.get(f"b{layer}")

    # ---- backward

    def loss_and_grad(
        self,
        X: Array,
        y: Array,
        intermediates: bool = False,
        input_grad: bool = False,
        out: Gradients | None = None,
    ) -> tuple[Array, Gradients]:
        """The loss (0-d, on the device) and the gradient of every parameter.

        X (N, D); y as the loss takes it: (N, C) numbers, or (N,) for one output, or (N,) integer labels.
        Both are on the net's device; other dtypes are converted.  ``intermediates`` keeps every intermediate
        and its gradient by name (X, Z1, A1, …, Y_hat, dZ2, dA1, dZ1, …) in ``gradients.intermediates``;
        ``input_grad`` adds ``dX`` there.  ``out`` takes gradients that an earlier call returned, to be
        overwritten; otherwise they are new.  Raises ``ValueError`` for shapes, ``TypeError`` for kinds of
        array that do not fit.
        """
        if out is not None:
            self._check_gradients(out)
        if self.xp is np and not intermediates:
            gradients = Gradients(self.flat_parameters.like()) if out is None else out
            gradients.intermediates = {}
            return host.loss_and_grad(
                self, self._matrix(X), self._targets(y), gradients, input_grad
            ), gradients
        X, y = self._inputs(X), self._targets(y)
        with self.device:
            gradients = Gradients(self.flat_parameters.like()) if out is None else out
            gradients.intermediates = {}
            if intermediates:
                loss = self._unfused(X, y, gradients)
            elif not input_grad and self._planned is not None:
                loss = self._planned.gradient(X, y, gradients.flat)
                if loss is None:
                    loss, _ = self._fused(X, y, gradients)
            else:
                loss, dZ = self._fused(X, y, gradients)
            if input_grad:
                dZ = gradients.intermediates["dZ1"] if intermediates else dZ
                gradients.intermediates["dX"] = linear.backward_input(dZ, self._layer(1)[0])
        return loss, gradients

    def _fused(self, X: Array, y: Array, gradients: Gradients) -> tuple[Array, Array]:
        """Loss and dZ1, with masks inside the products; only X, the A_l and the dZ_l are ever stored."""
        workspace = self._workspace
        N = int(X.shape[0])
        values = self._logits(X, workspace)
        dZ = workspace.get("dZ", (N, self.sizes[-1]), self.dtype, self.xp)
        loss, dZ = loss_op.forward_backward(
            values[-1], y, self.loss_name, self.output, self.reduction, out=dZ, workspace=workspace
        )
        for layer in range(self.layers, 0, -1):
            below = values[layer - 1]
            self._weight_gradient(layer, below, dZ, gradients, workspace)
            if layer > 1:
                target = workspace.get(f"dZ{layer - 1}", tuple(below.shape), self.dtype, self.xp)
                dZ = linear.backward_input(dZ, self._layer(layer)[0], below, self.activation, out=target)
        return loss, dZ

    def _unfused(self, X: Array, y: Array, gradients: Gradients) -> Array:
        """The same step by step, every intermediate a new array kept by name."""
        kept = gradients.intermediates
        kept["X"] = A = X
        for layer in range(1, self.layers + 1):
            Z = kept[f"Z{layer}"] = linear.forward(A, *self._layer(layer))
            if layer < self.layers:
                A = kept[f"A{layer}"] = activation_op.forward(Z, self.activation)
        kept["Y_hat"] = activation_op.forward(Z, self.output)
        loss, dZ = loss_op.forward_backward(Z, y, self.loss_name, self.output, self.reduction)
        for layer in range(self.layers, 0, -1):
            kept[f"dZ{layer}"] = dZ
            below = kept[f"A{layer - 1}"] if layer > 1 else X
            self._weight_gradient(layer, below, dZ, gradients, self._workspace)
            if layer > 1:
                dA = kept[f"dA{layer - 1}"] = linear.backward_input(dZ, self._layer(layer)[0])
                dZ = activation_op.backward(below, dA, self.activation)
        return loss

    def _weight_gradient(
        self, layer: int, below: Array, dZ: Array, gradients: Gradients, workspace: Workspace
    ) -> None:
        views = gradients.buffer.views
        linear.backward_weight(
            below, dZ, views[f"W{layer}"], views.get(f"b{layer}"), bias=self.bias, workspace=workspace
        )

    # ---- training

    def train_step(self, X: Array, y: Array, optimizer: Optimizer, clip_norm: float | None = None) -> Array:
        """One step of ``optimizer`` on the batch (X, y); returns the loss before it, 0-d, on the device."""
        if self.xp is np:
            return host.train_step(self, self._matrix(X), self._targets(y), optimizer, clip_norm)
        if self._planned is not None and clip_norm is None:
            X, y = self._inputs(X), self._targets(y)
            with self.device:
                loss = self.xp.empty((1,), dtype=self.dtype)
                if self._planned.step(X, y, optimizer, loss):
                    return loss.reshape(())
        if self._step_gradients is None:
            with self.device:
                self._step_gradients = Gradients(self.flat_parameters.like())
        loss, gradients = self.loss_and_grad(X, y, out=self._step_gradients)
        with self.device:
            optimizer.update(self.flat_parameters, gradients.flat, clip_norm)
        return loss

    def train_epoch(
        self,
        X: Array,
        y: Array,
        order: Array,
        batch_size: int,
        optimizer: Optimizer,
        clip_norm: float | None = None,
        scale: float = 1.0,
        shift: float = 0.0,
    ) -> Array:
        """Steps over the mini-batches of ``order`` (row numbers); returns every step's loss, on the device.

        X (rows, D) may stay uint8: a batch is ``X[rows] * scale + shift``.  The last batch may be short; its
        loss and gradient are the mean over its own samples.  Raises ``IndexError`` for a row number that X
        does not have, before any step.
        """
        if not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
            raise ValueError(f"batch_size: expected a whole number, 1 or more, got {batch_size!r}")
        X, y = self._on_device("X", X), self._targets(y)
        if X.shape[0] != y.shape[0]:
            raise ValueError(f"y: expected {X.shape[0]} targets, one a row of X, got {y.shape[0]}")
        numbers = row_numbers(order, int(X.shape[0]))
        if self.xp is np:
            return host.train_epoch(self, X, y, numbers, int(batch_size), optimizer, clip_norm, scale, shift)
        steps = -(-len(numbers) // batch_size)
        with self.device:
            if self._planned is not None and clip_norm is None:
                found = self._planned.epoch(X, y, numbers, batch_size, optimizer, scale, shift)
                if found is not None:
                    return found
            rows = self.xp.asarray(numbers)
            losses = self.xp.empty((steps,), dtype=self.dtype)
            for step in range(steps):
                part = rows[step * batch_size : (step + 1) * batch_size]
                inputs = self._workspace.get("X", (len(part), *X.shape[1:]), self.dtype, self.xp)
                batch.gather(X, part, out=inputs, scale=scale, shift=shift, dtype=self.dtype)
                targets = self._workspace.get("y", (len(part), *y.shape[1:]), y.dtype, self.xp)
                batch.gather(y, part, out=targets)
                losses[step] = self.train_step(inputs, targets, optimizer, clip_norm)
        return losses

    # ---- arguments

    def _on_device(self, name: str, array: Array) -> Array:
        if get_array_module(array) is not self.xp or not hasattr(array, "shape"):
            kind = f"{type(array).__module__}.{type(array).__qualname__}"
            raise TypeError(
                f"{name}: expected an array on {self.device}, got {kind}; "
                f"move it with handgrad.to_device({name}, {str(self.device)!r})"
            )
        return array

    def _inputs(self, X: Array) -> Array:
        return self._as_dtype(self._matrix(X))

    def _matrix(self, X: Array) -> Array:
        X = self._on_device("X", X)
        if X.ndim != 2 or X.shape[1] != self.sizes[0]:
            raise ValueError(f"X: expected shape (N, {self.sizes[0]}), got {tuple(X.shape)}")
        return X

    def _targets(self, y: Array) -> Array:
        y = self._on_device("y", y)
        if self.loss_name not in loss_op.ELEMENTWISE:
            if y.dtype.kind not in "iu":
                raise TypeError(f"y: {self.loss_name} takes integer labels (N,), got {y.dtype}")
            return y if self.xp is np else loss_op.as_int32(y, self.sizes[-1])
        if self.sizes[-1] == 1 and y.ndim == 1:
            y = y.reshape(-1, 1)
        if y.ndim != 2 or y.shape[1] != self.sizes[-1]:
            raise ValueError(f"y: expected shape (N, {self.sizes[-1]}), got {tuple(y.shape)}")
        return self._as_dtype(y)

    def _as_dtype(self, array: Array) -> Array:
        return array if array.dtype == self.dtype else array.astype(self.dtype)

    def _check_gradients(self, out: Gradients) -> None:
        if not isinstance(out, Gradients):
            raise TypeError(f"out: expected Gradients of an earlier call, got {type(out).__qualname__}")
        own = self.flat_parameters
        if out.buffer.xp is not own.xp or out.buffer.shapes != own.shapes or out.buffer.dtype != own.dtype:
            raise ValueError(
                f"out: expected the gradients of {own!r} on {self.device}, got those of {out.buffer!r}"
            )
