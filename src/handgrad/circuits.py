"""Circuits of scalar gates, with forward and backward written by hand.

==============  ===============  ==============================================
gate            forward f        slope of f for each input
==============  ===============  ==============================================
``x + y``       x + y            1, 1: hands its gradient to both
``x * y``       x y              y, x: hands it over swapped and scaled
``maximum``     max(x, y)        1 where the input is >= the other, else 0
``sigmoid``     1 / (1 + e^-x)   f (1 - f)
``exp``         e^x              f
``reciprocal``  1 / x            -1 / x²
``square``      x²               2 x
``x + c``       x + c            1        (a constant takes no gradient)
``a * x``       a x              a
==============  ===============  ==============================================

The gradient on an input is the gate's slope times the gradient on its output.  A wire that forks gets the sum
of what comes back from every branch::

    x, y, z = inputs(x=-2, y=5, z=-4)
    q = (x + y).named("q")            # 3: a stage, whose gradient is asked for by its name
    f = q * z                         # -12
    backward(f)                       # {"x": -4.0, "y": -4.0, "z": 3.0, "q": -4.0}

:func:`handgrad.circuit_drawing.draw` draws a circuit with its values and gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

_serial = count()


@dataclass(frozen=True)
class Gate:
    """``forward(*inputs)`` gives the output, ``slopes(output, *inputs)`` its derivative for each input."""

    symbol: str
    forward: Callable[..., float]
    slopes: Callable[..., tuple[float, ...]]


def _sigmoid(x: float) -> float:
    e = math.exp(-abs(x))  # at most 1: no overflow
    return (1.0 if x >= 0 else e) / (1.0 + e)


ADD = Gate("+", lambda x, y: x + y, lambda f, x, y: (1.0, 1.0))
MULTIPLY = Gate("×", lambda x, y: x * y, lambda f, x, y: (y, x))
MAXIMUM = Gate("max", lambda x, y: max(x, y), lambda f, x, y: (float(x >= y), float(y >= x)))
SIGMOID = Gate("σ", _sigmoid, lambda f, x: (f * (1.0 - f),))
EXP = Gate("exp", math.exp, lambda f, x: (f,))
RECIPROCAL = Gate("1/x", lambda x: 1.0 / x, lambda f, x: (-1.0 / x**2,))
SQUARE = Gate("x²", lambda x: x * x, lambda f, x: (2.0 * x,))


def add_constant(c: float) -> Gate:
    """The gate x + c."""
    return Gate(f"{c:+g}".replace("-", "−"), lambda x: x + c, lambda f, x: (1.0,))


def scale(a: float) -> Gate:
    """The gate a x."""
    return Gate(f"×{a:g}".replace("-", "−"), lambda x: a * x, lambda f, x: (a,))


@dataclass(eq=False)
class Wire:
    """A number on its way: an input, or the output of ``gate``; ``gradient`` is set by :func:`backward`."""

    value: float
    gate: Gate | None = None
    sources: tuple[Wire, ...] = ()
    name: str = ""
    gradient: float = 0.0
    serial: int = field(default_factory=lambda: next(_serial))

    def named(self, name: str) -> Wire:
        """This wire, with a name: a stage of the computation."""
        self.name = name
        return self

    def __add__(self, other: Wire | float) -> Wire:
        return apply(ADD, self, other) if isinstance(other, Wire) else apply(add_constant(other), self)

    def __mul__(self, other: Wire | float) -> Wire:
        return apply(MULTIPLY, self, other) if isinstance(other, Wire) else apply(scale(other), self)

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> Wire:
        return apply(scale(-1.0), self)

    def __sub__(self, other: Wire | float) -> Wire:
        return self + (-other)

    def __rsub__(self, other: float) -> Wire:
        return -self + other

    def __truediv__(self, other: Wire | float) -> Wire:
        return self * (reciprocal(other) if isinstance(other, Wire) else 1.0 / other)


def inputs(**values: float) -> list[Wire]:
    """A named wire for each number."""
    return [Wire(float(value), name=name) for name, value in values.items()]


def apply(gate: Gate, *sources: Wire) -> Wire:
    """The output of ``gate``, computed at once."""
    return Wire(gate.forward(*(wire.value for wire in sources)), gate, sources)


def maximum(x: Wire, y: Wire) -> Wire:
    """max(x, y)."""
    return apply(MAXIMUM, x, y)


def sigmoid(x: Wire) -> Wire:
    """1 / (1 + e^-x)."""
    return apply(SIGMOID, x)


def exp(x: Wire) -> Wire:
    """e^x."""
    return apply(EXP, x)


def reciprocal(x: Wire) -> Wire:
    """1 / x."""
    return apply(RECIPROCAL, x)


def square(x: Wire) -> Wire:
    """x²."""
    return apply(SQUARE, x)


def wires(output: Wire) -> list[Wire]:
    """Every wire that ``output`` depends on, itself included, in the order of the forward pass."""
    found: dict[int, Wire] = {}
    waiting = [output]
    while waiting:
        wire = waiting.pop()
        if wire.serial not in found:
            found[wire.serial] = wire
            waiting += wire.sources
    return [found[serial] for serial in sorted(found)]


def flows(wire: Wire) -> tuple[float, ...]:
    """What the gate of ``wire`` sends back to each of its inputs: slope times the gradient on the output."""
    if wire.gate is None:
        return ()
    slopes = wire.gate.slopes(wire.value, *(source.value for source in wire.sources))
    return tuple(slope * wire.gradient for slope in slopes)


def backward(output: Wire, at_forks: str = "add") -> dict[str, float]:
    """Set the gradient of ``output`` with respect to every wire; returned by name, for the named ones.

    ``at_forks="overwrite"`` makes the mistake of ``=`` for ``+=``: of the branches of a fork, only the one
    that comes back last counts.
    """
    if at_forks not in ("add", "overwrite"):
        raise ValueError(f"at_forks: expected 'add' or 'overwrite', got {at_forks!r}")
    order = wires(output)
    for wire in order:
        wire.gradient = 0.0
    output.gradient = 1.0
    for wire in reversed(order):
        for source, flow in zip(wire.sources, flows(wire), strict=True):
            source.gradient = source.gradient + flow if at_forks == "add" else flow
    return {wire.name: wire.gradient for wire in order if wire.name}
