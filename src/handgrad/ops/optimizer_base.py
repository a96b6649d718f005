"""What the optimizers share: state bound to one parameter set, one update on a device or in NumPy.

NumPy works in place, block by block.  Rules and formulas: ``ops/optimizer.py``.
Test: ``tests/test_optimizer.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.arrays import Array, get_array_module, on_device_of, to_numpy
from handgrad.ops import checks
from handgrad.ops.optimizer_kernels import MAX_BLOCKS, THREADS, VECTOR_BYTES, squares_kernel, update_kernel
from handgrad.parameters import FlatParameters

Floats = NDArray[np.floating]

NORM_EPSILON = 1e-6
CPU_BLOCK = 65_536  # elements of a CPU update, shared among the weights and their state: they stay in cache


class Optimizer:
    """What the optimizers share.  Hyperparameters are fixed once made; ``lr`` alone may be set.

    The state is bound to a parameter set by the first :meth:`update` and follows that set alone.
    """

    _rule: str  # the functor in kernels/optimizer_rules.cuh
    _slots: tuple[str, ...]  # names of the state buffers, each laid out as the parameters
    _settings: tuple[str, ...]  # arguments of the constructor
    _writes_gradient: bool  # the rule needs a gradient that it may overwrite
    spends_gradient = False  # see apply_block

    def __init__(self, lr: float) -> None:
        self._lr = require(lr, "lr", "a finite number above 0", lambda x: 0 < x < math.inf)
        self._parameters: FlatParameters | None = None
        self._state: dict[str, FlatParameters] = {}
        self._steps: Array = np.zeros(1, dtype=np.int32)
        self._blocks: list[
            tuple[Floats, Floats, list[Floats], Floats, Floats]
        ] = []  # NumPy: views, bound once
        self._blocks_of: tuple[Any, frozenset[str]] = (None, frozenset())

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__ and not name.startswith("_"):
            raise AttributeError(f"{name} is fixed; make a new {type(self).__name__}({name}={value!r})")
        super().__setattr__(name, value)

    @property
    def lr(self) -> float:
        """The learning rate.  Setting it writes one number to the device and waits for nothing."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = require(value, "lr", "a finite number, 0 or above", lambda x: 0 <= x < math.inf)
        if self._parameters is not None and self._parameters.xp is not np:
            with on_device_of(self._hyperparameters):
                self._hyperparameters[0] = self._lr

    @property
    def step(self) -> int:
        """Updates done so far (read from the device)."""
        return int(to_numpy(self._steps)[0])

    def config(self) -> dict[str, Any]:
        """Class and hyperparameters, fit for JSON; :func:`from_config` makes the optimizer from it."""
        return {"optimizer": type(self).__name__} | {name: getattr(self, name) for name in self._settings}

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in list(self.config().items())[1:])
        return f"{type(self).__name__}({settings})"

    def update(
        self, parameters: FlatParameters, gradients: FlatParameters | Array, clip_norm: float | None = None
    ) -> None:
        """One step, in place.

        ``gradients``: :class:`FlatParameters` or a flat array in the layout of ``parameters``, with zero
        padding; left as it is.  ``clip_norm``: the largest norm that the gradient may have.
        """
        self.bind(parameters)
        gradient = gradients.flat if isinstance(gradients, FlatParameters) else gradients
        self._check_gradient(parameters, gradient)
        if clip_norm is not None:
            clip_norm = require(clip_norm, "clip_norm", "a number above 0", lambda x: x > 0)
        if parameters.flat.size == 0:
            return
        if parameters.xp is np:
            self._update_numpy(parameters, gradient, clip_norm)
        else:
            with on_device_of(parameters.flat):
                self._update_device(parameters, gradient, clip_norm)

    def bind(self, parameters: FlatParameters) -> None:
        """Allocate the state for ``parameters``; ``ValueError`` if it is bound to another set."""
        if self._parameters is parameters:
            return
        kind = type(self).__name__
        if self._parameters is not None:
            raise ValueError(
                f"this {kind} holds the state of another network; make a new {kind} for each network"
            )
        xp = parameters.xp
        with on_device_of(parameters.flat):
            self._state = {slot: parameters.like() for slot in self._slots}
            self._steps = xp.zeros(1, dtype=np.int32)
            if xp is np:
                self._scratch = np.empty((2, CPU_BLOCK), dtype=parameters.dtype)
            else:
                self._hyperparameters: Array = xp.asarray(np.array(self._packed(), dtype=np.float64))
                self._partials: Array = xp.zeros(THREADS, dtype=np.float64)
                self._ticket: Array = xp.zeros(1, dtype=np.int32)
        self._parameters = parameters

    @property
    def rule(self) -> str:
        """The functor in ``kernels/optimizer_rules.cuh``: "Sgd", "Momentum" or "Adam"."""
        return self._rule

    def kernel_arguments(self, parameters: FlatParameters) -> tuple[Array | None, ...]:
        """What a kernel that applies the rule takes, on a device: hyperparameters, two state buffers (None
        where the rule has none), steps, ticket; always the same arrays, bound to ``parameters`` first."""
        self.bind(parameters)
        states = [state.flat for state in self._state.values()]
        return (self._hyperparameters, *states, *[None] * (2 - len(states)), self._steps, self._ticket)

    def state_arrays(self) -> dict[str, Array]:
        """``"step"`` and each state buffer by parameter, as ``"momentum.W1"``: views on the device."""
        named = {f"{slot}.{name}": view for slot, s in self._state.items() for name, view in s.views.items()}
        return {"step": self._steps, **named}

    def load_state(self, parameters: FlatParameters, state: Mapping[str, Any]) -> None:
        """Bind to ``parameters`` and take over what :meth:`state_arrays` gave, from any device."""
        self.bind(parameters)
        expected = self.state_arrays()
        if set(state) != set(expected):
            odd = min(set(state) ^ set(expected))
            problem = "missing" if odd in expected else "unknown"
            raise ValueError(f"state of {type(self).__name__}: {odd} is {problem}")
        step = to_numpy(state["step"])
        if step.shape != (1,) or step.dtype.kind not in "iu" or step[0] < 0:
            raise ValueError(f"state of {type(self).__name__}: step must be one whole number, 0 or above")
        for slot, buffer in self._state.items():
            buffer.copy_from({name: state[f"{slot}.{name}"] for name in buffer.shapes})
        with on_device_of(self._steps):
            self._steps[...] = parameters.xp.asarray(step.astype(np.int32))

    def _check_gradient(self, parameters: FlatParameters, gradient: Array) -> None:
        xp: ModuleType = get_array_module(parameters.flat, gradient)
        if gradient.shape != parameters.flat.shape or gradient.dtype != parameters.dtype:
            raise ValueError(
                f"gradients: expected {parameters.flat.shape} of {parameters.dtype} in the layout of the "
                f"parameters, got {gradient.shape} of {gradient.dtype}"
            )
        if not gradient.flags.c_contiguous or (xp is not np and checks.address(gradient) % VECTOR_BYTES):
            raise ValueError("gradients: expected contiguous, 16-byte aligned memory; use parameters.like()")

    # ---- device -------------------------------------------------------------------------------------------

    def _packed(self) -> tuple[float, ...]:
        """The hyperparameters in the order that kernels/optimizer_rules.cuh reads."""
        raise NotImplementedError

    def _update_device(self, parameters: FlatParameters, gradient: Array, clip_norm: float | None) -> None:
        vectors = gradient.nbytes // VECTOR_BYTES
        wanted = -(-vectors // THREADS)
        partials = min(wanted, THREADS) if clip_norm is not None else 0
        if clip_norm is not None:
            squares_kernel(parameters.dtype)(
                (partials,), (THREADS,), gradient, parameters.trainable, self._partials, np.int32(vectors)
            )
        states = [state.flat for state in self._state.values()]
        update_kernel(self._rule, parameters.dtype)(
            (min(wanted, MAX_BLOCKS),),
            (THREADS,),
            gradient,
            parameters.trainable,
            self._hyperparameters,
            self._partials,
            parameters.flat,
            *states,
            *[None] * (2 - len(states)),
            self._steps,
            self._ticket,
            np.int32(vectors),
            np.int32(partials),
            np.float64(math.inf if clip_norm is None else clip_norm),
        )

    # ---- NumPy --------------------------------------------------------------------------------------------

    def _update_numpy(self, parameters: FlatParameters, gradient: Floats, clip_norm: float | None) -> None:
        self.count_step()
        bound, frozen = self._blocks_of
        if bound is not gradient or frozen != parameters.frozen:
            size = self.block_size
            self._blocks = [
                (
                    parameters.flat[start:stop],
                    gradient[start:stop],
                    self.state_slices(slice(start, stop)),
                    *self._scratch[:, : stop - start],
                )
                for part in parameters.trainable_slices()
                for start in range(part.start, part.stop, size)
                for stop in [min(start + size, part.stop)]
            ]
            self._blocks_of = (gradient, parameters.frozen)
        scale = 1.0
        if clip_norm is not None:
            squares = sum(float(np.square(g, dtype=np.float64).sum()) for _, g, *_ in self._blocks)
            scale = float(np.minimum(1.0, clip_norm / (math.sqrt(squares) + NORM_EPSILON)))  # a NaN stays
        for w, g, states, scaled, e in self._blocks:
            self.apply_block(w, g, states, scaled, e, scale)

    @property
    def block_size(self) -> int:
        """Elements that NumPy works on at a time."""
        return CPU_BLOCK // (1 + len(self._slots))

    def count_step(self) -> None:
        """Another step begins (NumPy)."""
        self._steps += 1

    def state_slices(self, part: slice) -> list[Floats]:
        """The state of this part of the parameters, buffer by buffer."""
        return [state.flat[part] for state in self._state.values()]

    def apply_block(
        self, w: Floats, g: Floats, states: list[Floats], scaled: Floats, e: Floats, scale: float = 1.0
    ) -> None:
        """The rule on one block of NumPy arrays; ``scaled`` and ``e`` are scratch, ``g`` stays as it is.

        ``e`` may be ``g`` itself where the rule :attr:`spends_gradient`; the gradient is then lost.
        """
        if scale != 1.0 or self._writes_gradient:
            g = np.multiply(g, scale, out=scaled)
        self._apply(w, g, states, e)

    def _apply(self, w: Floats, g: Floats, states: list[Floats], e: Floats) -> None:
        """The rule on one block, in place; ``e`` may be overwritten, and ``g`` where ``_writes_gradient``."""
        raise NotImplementedError


def require(value: Any, name: str, expected: str, fits: Callable[[float], bool]) -> float:
    """``value`` as a number, or ``ValueError`` where it ``fits`` not."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not fits(number):  # a NaN fits nothing
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return number
