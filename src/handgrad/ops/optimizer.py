"""Optimizers over the flat parameter buffer: SGD with momentum, Adam, AdamW; clipping by the norm.

The formulas are PyTorch's.  With clipping, ``g`` is first multiplied by ``min(1, clip_norm / (‖g‖ + 1e-6))``,
where ``‖g‖`` is the norm over all parameters that are not frozen.

One launch updates all parameters, two where the gradient is clipped; NumPy works in place, block by block.
``lr`` and the number of steps live in device memory.  Frozen parameters keep every bit, weight decay or not,
and so does their state.  Kernels: ``kernels/optimizer.cu``.  Test: ``tests/test_optimizer.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.arrays import Array, get_array_module, on_device_of, to_numpy
from handgrad.kernel import Entry, Kernel
from handgrad.ops import checks
from handgrad.parameters import ALIGNMENT, FlatParameters

Floats = NDArray[np.floating]

THREADS = 256  # OPTIMIZER_THREADS: also the most partials of the norm, since a block reads one a thread
MAX_BLOCKS = 1024
VECTOR_BYTES = 16
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
        self._lr = _require(lr, "lr", "a finite number above 0", lambda x: 0 < x < math.inf)
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
        self._lr = _require(value, "lr", "a finite number, 0 or above", lambda x: 0 <= x < math.inf)
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
            clip_norm = _require(clip_norm, "clip_norm", "a number above 0", lambda x: x > 0)
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


class SGD(Optimizer):
    """Stochastic gradient descent, as ``torch.optim.SGD``::

        g ← g + weight_decay w
        u ← momentum u + g                              u starts at 0; without momentum u = g
        w ← w - lr (g + momentum u if nesterov else u)

    ``lr > 0``, ``momentum`` in [0, 1), ``weight_decay ≥ 0``; ``nesterov`` needs a momentum.
    """

    _settings = ("lr", "momentum", "nesterov", "weight_decay")
    spends_gradient = True

    def __init__(
        self,
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(lr)
        self.momentum = _require_fraction(momentum, "momentum")
        self.nesterov = bool(nesterov)
        self.weight_decay = _require_decay(weight_decay)
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: expected a momentum above 0 with it, got momentum=0")
        self._rule, self._slots = ("Momentum", ("momentum",)) if self.momentum else ("Sgd", ())
        self._writes_gradient = self.nesterov or self.weight_decay > 0

    def _packed(self) -> tuple[float, ...]:
        return (self._lr, self.momentum, float(self.nesterov), 0.0, self.weight_decay, 0.0)

    def _apply(self, w: Floats, g: Floats, states: list[Floats], e: Floats) -> None:
        _add_decay(w, g, self.weight_decay, e)
        if states:
            (u,) = states
            u *= self.momentum
            u += g
            if self.nesterov:
                np.multiply(u, self.momentum, out=e)
                g += e
            else:
                g = u
        np.multiply(g, self._lr, out=e)
        w -= e


class Adam(Optimizer):
    """Adam (Kingma & Ba, arXiv:1412.6980) with L2 regularisation, as ``torch.optim.Adam``::

        g ← g + weight_decay w
        m ← m + (1 - beta1)(g - m)
        v ← beta2 v + (1 - beta2) g²
        w ← w - lr / (1 - beta1ᵗ) · m / (√v / √(1 - beta2ᵗ) + eps)        t = 1, 2, …

    ``lr > 0``, ``beta1`` and ``beta2`` in [0, 1), ``eps > 0``, ``weight_decay ≥ 0``.  t counts the updates of
    the whole parameter set, those that a parameter spends frozen included.
    """

    _rule = "Adam"
    _slots = ("first_moment", "second_moment")
    _settings = ("lr", "beta1", "beta2", "eps", "weight_decay")
    _decoupled = False

    def __init__(
        self,
        lr: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(lr)
        self.beta1 = _require_fraction(beta1, "beta1")
        self.beta2 = _require_fraction(beta2, "beta2")
        self.eps = _require(eps, "eps", "a finite number above 0", lambda x: 0 < x < math.inf)
        self.weight_decay = _require_decay(weight_decay)
        self._writes_gradient = self.weight_decay > 0 and not self._decoupled

    def _packed(self) -> tuple[float, ...]:
        l2, decoupled = (0.0, self.weight_decay) if self._decoupled else (self.weight_decay, 0.0)
        return (self._lr, self.beta1, self.beta2, self.eps, l2, decoupled)

    def _apply(self, w: Floats, g: Floats, states: list[Floats], e: Floats) -> None:
        m, v = states
        t = int(self._steps[0])
        if self._decoupled:
            w *= 1 - self._lr * self.weight_decay
        else:
            _add_decay(w, g, self.weight_decay, e)
        np.subtract(g, m, out=e)
        e *= 1 - self.beta1
        m += e
        v *= self.beta2
        np.square(g, out=e)
        e *= 1 - self.beta2
        v += e
        np.sqrt(v, out=e)
        e /= math.sqrt(_bias_correction(self.beta2, t))
        e += self.eps
        np.divide(m, e, out=e)
        e *= self._lr / _bias_correction(self.beta1, t)
        w -= e


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter, arXiv:1711.05101), as ``torch.optim.AdamW``.

    ``w ← (1 - lr weight_decay) w`` before the step of :class:`Adam`, and ``g`` is left alone.
    """

    _decoupled = True

    def __init__(
        self,
        lr: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(lr, beta1, beta2, eps, weight_decay)


BY_NAME: dict[str, type[Optimizer]] = {"SGD": SGD, "Adam": Adam, "AdamW": AdamW}


def from_config(config: Mapping[str, Any]) -> Optimizer:
    """The optimizer that ``config`` (of :meth:`Optimizer.config`) describes, without state."""
    settings = dict(config)
    name = settings.pop("optimizer", None)
    if name not in BY_NAME:
        raise ValueError(f"optimizer: expected one of {', '.join(BY_NAME)}, got {name!r}")
    try:
        return BY_NAME[name](**settings)
    except TypeError as error:  # an unknown or missing setting
        raise ValueError(f"optimizer {name}: {error}") from error


def _bias_correction(beta: float, t: int) -> float:
    """``1 - betaᵗ`` without cancellation."""
    return -math.expm1(t * math.log(beta)) if beta > 0 else 1.0


def _add_decay(w: Floats, g: Floats, weight_decay: float, e: Floats) -> None:
    if weight_decay:
        np.multiply(w, weight_decay, out=e)
        g += e


def _require(value: Any, name: str, expected: str, fits: Callable[[float], bool]) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not fits(number):  # a NaN fits nothing
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return number


def _require_fraction(value: Any, name: str) -> float:
    return _require(value, name, "a number from 0 up to, but not, 1", lambda x: 0 <= x < 1)


def _require_decay(value: Any) -> float:
    return _require(value, "weight_decay", "a finite number, 0 or above", lambda x: 0 <= x < math.inf)


# ---- catalogue ----------------------------------------------------------------------------------------

STATES = {"Sgd": (), "Momentum": ("momentum",), "Adam": ("first_moment", "second_moment")}


def squares_kernel(dtype: np.dtype[Any]) -> Kernel:
    """The first of the two launches with clipping."""
    return Kernel("optimizer.cu", f"gradient_squares<{checks.CPP_NAMES[dtype.name]}>")


def update_kernel(rule: str, dtype: np.dtype[Any]) -> Kernel:
    """The update by ``rule``: "Sgd", "Momentum" or "Adam"."""
    return Kernel("optimizer.cu", f"optimizer_update<{rule}<{checks.CPP_NAMES[dtype.name]}>>")


def _squares_bytes(size: int, itemsize: int = 4) -> dict[str, int]:
    return {"gradients": size * itemsize, "trainable": size * itemsize // ALIGNMENT}


def _update_bytes(size: int, itemsize: int = 4, rule: str = "Momentum") -> dict[str, int]:
    """Read: gradients, flags; read and written: parameters and state.  ``size`` counts the padding too."""
    moved = dict.fromkeys(("parameters", *STATES[rule]), 2 * size * itemsize)
    return {"gradients": size * itemsize, "trainable": size * itemsize // ALIGNMENT, **moved}


CATALOGUE = (
    Entry(
        "optimizer.squares",
        "optimizer.cu",
        tuple(squares_kernel(dtype).expression for dtype in checks.FLOATS),
        f"grid min(⌈vectors / {THREADS}⌉, {THREADS}), block {THREADS}; vectors of 16 bytes",
        _squares_bytes,
    ),
    Entry(
        "optimizer.update",
        "optimizer.cu",
        tuple(update_kernel(rule, dtype).expression for dtype in checks.FLOATS for rule in STATES),
        f"grid min(⌈vectors / {THREADS}⌉, {MAX_BLOCKS}), block {THREADS}; vectors of 16 bytes",
        _update_bytes,
    ),
)
