"""Gradient checking: is this backward pass the derivative of that forward pass?

::

    hg.gradcheck(net, X, y)                                      # every parameter of an MLP
    hg.gradcheck(ops.linear.forward, {"X": X, "W": W, "b": b}, activation="relu")     # an op of handgrad.ops
    hg.gradcheck(forward, (x, w), backward=backward)             # your forward and backward
    hg.gradcheck(loss, x, gradient=gradient)                     # your scalar function and its gradient
    hg.gradcheck(loss_and_gradient, x)                           # one function that returns (value, gradient)
    hg.gradcheck(layer, x)                                       # an object with forward(x) and backward(dy)

The numbers that the backward pass gives are compared with differences of the forward pass in float64
(:mod:`handgrad.gradients.differences`), along every coordinate, or with ``fast_mode`` in random directions.
A function of many outputs is contracted with fixed random weights, so that a wrong gradient of any output
shows.  A float32 network is checked through its float64 twin on the same device; its own gradients are then
compared with the twin's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.gradients import differences
from handgrad.gradients.check_result import Entry, GradientCheck, GradientError, badness
from handgrad.gradients.checked import Checked
from handgrad.gradients.checked_function import checked_function
from handgrad.gradients.checked_network import checked_network
from handgrad.gradients.differences import Line, Slope
from handgrad.network import MLP

Floats = NDArray[Any]

# Allowed relative error, of the entry or of the largest entry of its array, by the dtype of the arithmetic.
# Central differences are right to ∛u² = 4e-11 (float64) and 2e-5 (float32) times the function's curvature
# on the scale of 1; the smallest mistake to be seen, 1/(N + 1) for 1/N at N = 50,000, is 2e-5.
RTOL = {"float64": 1e-5, "float32": 1e-2}
COMPLEX_RTOL = 1e-9
DIRECTIONS = 4  # random directions for each array in fast mode
METHODS = ("auto", "central", "complex")


def gradcheck(
    function: Any,
    inputs: Any,
    y: Any = None,
    *,
    gradient: Callable[..., Any] | None = None,
    backward: Callable[..., Any] | None = None,
    eps: float | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    fast_mode: bool = False,
    raise_exception: bool = False,
    nondet_tol: float = 0.0,
    method: str = "auto",
    entries: int | None = None,
    input_grad: bool = False,
    worst: int = 8,
    seed: int = 0,
    **settings: Any,
) -> GradientCheck:
    """Compare the gradients of ``function`` with differences of its values, in float64.

    Parameters
    ----------
    function: an :class:`MLP`; a function of :mod:`handgrad.ops` (``activation.forward``, ``linear.forward``,
        ``loss.forward_backward``); your function; or an object with ``forward`` and ``backward``
    inputs: X of a network; else an array, a sequence of arrays or a mapping of names to arrays: what
        ``function`` takes in this order, or by these names.  Integer arrays are passed on and not
        differentiated.
    y: targets of a network or of ``loss.forward_backward``
    gradient: ``gradient(*inputs)`` → the gradient of a scalar ``function`` for every float input: an array, a
        sequence in their order, or a mapping by name (``"W"`` or ``"dW"``)
    backward: ``backward(upstream, *inputs)`` → the same for a ``function`` of any shape; where ``function``
        returns ``(out, cache)`` it is called as ``backward(upstream, cache)``
    eps: the step; default ∛u max(1, |x|) = 6e-6 max(1, |x|), u being the spacing of the function's dtype
    atol: allowed absolute error; default ``rtol`` times the largest entry of the array
    rtol: allowed relative error; default 1e-5 (1e-9 by complex step, 1e-2 for results in float32)
    fast_mode: 4 random directions for each array instead of every entry
    raise_exception: raise :class:`GradientError` instead of returning a result that is false
    nondet_tol: how much two calls with the same inputs may differ
    method: "central", "complex", or "auto": complex step where the function allows it
    entries: check at most so many entries of each array, drawn by ``seed``; default all
    input_grad: check dX of a network too
    worst: how many entries the table shows
    settings: passed on to ``function`` by keyword

    Returns a :class:`GradientCheck`, which is true if the gradients are right and prints a table.  Raises
    ``ValueError`` and ``TypeError`` for arguments that do not fit or a function that is not deterministic.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if entries is not None and not (isinstance(entries, (int, np.integer)) and entries >= 1):
        raise ValueError(f"entries: expected a whole number, 1 or more, got {entries!r}")
    if eps is not None and not (isinstance(eps, (int, float, np.number)) and 0 < eps < np.inf):
        raise ValueError(f"eps: expected a finite number above 0, got {eps!r}")
    if isinstance(function, MLP):
        if gradient or backward or settings or method == "complex":
            given = "gradient, backward, method='complex' or " + ", ".join(settings or ["other settings"])
            raise TypeError(f"gradcheck of an MLP takes X and y, not {given}")
        checked = checked_network(function, inputs, y, input_grad)
    else:
        if input_grad:
            raise TypeError("input_grad: belongs to the check of an MLP; a function's inputs are all checked")
        checked = checked_function(function, inputs, y, gradient, backward, settings, seed)
    _check_determinism(checked, nondet_tol)
    use_complex = method == "complex" or (method == "auto" and eps is None)
    use_complex = use_complex and _complex_allowed(checked, method == "complex", seed)
    check = _Check(checked, eps, atol, rtol, fast_mode, entries, use_complex, seed)
    result = check.run(worst)
    if raise_exception and not result:
        raise GradientError(result)
    return result


@dataclass
class _Check:
    """The comparison of one :class:`Checked` under given settings."""

    checked: Checked
    eps: float | None
    atol: float | None
    rtol: float | None
    fast_mode: bool
    entries: int | None
    use_complex: bool
    seed: int

    def __post_init__(self) -> None:
        checked = self.checked
        self.unit = float(np.finfo(checked.dtype).eps)
        usual = COMPLEX_RTOL if self.use_complex else RTOL[checked.dtype.name]
        self.relative = usual if self.rtol is None else self.rtol
        self.kinks: list[str] = []
        self.total_kinks = 0

    def run(self, worst: int) -> GradientCheck:
        """Compare every array."""
        checked = self.checked
        found: list[Entry] = []
        problems = list(checked.problems)
        for name, array in checked.arrays.items():
            analytic = checked.gradients.get(name)
            if analytic is None:
                continue  # one of the problems
            found += self._compare(name, array, analytic)
        found += [Entry(*comparison) for comparison in checked.comparisons]
        counted = dict.fromkeys((entry.parameter for entry in found), 0)
        wrong = dict(counted)
        for entry in found:
            counted[entry.parameter] += 1
            wrong[entry.parameter] += not entry.right
        found.sort(key=badness, reverse=True)
        return GradientCheck(
            method=self._method(),
            worst=tuple(found[:worst]),
            checked=counted,
            wrong=wrong,
            kinks=tuple(self.kinks),
            problems=tuple(problems),
            fast_mode=self.fast_mode,
            total_kinks=self.total_kinks,
            compared_whole=tuple(comparison[0] for comparison in checked.comparisons),
            is_network=checked.is_network,
        )

    def _method(self) -> str:
        if self.use_complex:
            return f"complex step ({differences.COMPLEX_STEP:g})"
        default = f"{differences.step_for(self.unit, 1.0):.1e} max(1, |x|)"
        return f"central differences (step {default if self.eps is None else f'{self.eps:g}'})"

    def _compare(self, name: str, array: Floats, analytic: Floats) -> list[Entry]:
        lines: list[tuple[tuple[int, ...], Line, float]] = []
        slopes: list[Slope] = []
        expected: list[float] = []
        for index, direction in self._directions(name, array.shape):
            line = self._line(name, index, direction)
            size = float(array[index] if direction is None else np.abs(array).max())
            step = differences.step_for(self.unit, size) if self.eps is None else self.eps
            lines.append((index, line, step))
            if self.use_complex:
                slopes.append(self._complex(name, index, direction))
            else:
                slopes.append(differences.central(line, step, self.unit))
            expected.append(float(analytic[index] if direction is None else np.vdot(analytic, direction)))
        if not lines:
            return []
        finite = [abs(slope.value) for slope in slopes if math.isfinite(slope.value)]
        absolute = self.relative * max(finite, default=0.0) if self.atol is None else self.atol
        compared = []
        for (index, line, step), slope, value in zip(lines, slopes, expected, strict=True):
            tolerance = absolute + self.relative * abs(slope.value)
            if not slope.contains(value, tolerance) and math.isfinite(value):
                first = differences.central(line, step, self.unit) if self.use_complex else slope
                closer = differences.examine(line, first, value, tolerance, self.unit)
                slope = closer if closer.kink or not self.use_complex else slope
                if slope.kink:
                    self._note(name, index, slope, slope.contains(value, tolerance))
            if slope.ends and self.checked.is_network and not slope.contains(value, tolerance):
                continue  # several kinks at once, to both sides: differences cannot see the gradient's choice
            compared.append(self._entry(name, index, value, slope, tolerance))
        return compared

    def _entry(
        self, name: str, index: tuple[int, ...], analytic: float, slope: Slope, tolerance: float
    ) -> Entry:
        low, high = (slope.value, slope.value) if slope.ends is None else (min(slope.ends), max(slope.ends))
        error = max(low - analytic, analytic - high, 0.0) if math.isfinite(analytic) else math.inf
        allowed = tolerance + slope.noise
        return Entry(name, index, analytic, slope.value, error, allowed, slope.kink, self.fast_mode)

    def _note(self, name: str, index: tuple[int, ...], slope: Slope, agrees: bool) -> None:
        self.total_kinks += 1
        if len(self.kinks) < 8:
            place = f"direction {index[0]} of {name}" if self.fast_mode else f"{name}{list(index)}"
            if slope.ends is None:
                how = f"step {slope.step:.1e}"
            else:
                how = "not checked" if self.checked.is_network else "the gradient lies outside"
                how = "the gradient lies between" if agrees else how
            self.kinks.append(f"{place}: {slope.kink}; {how}")

    # ---- directions and lines

    def _directions(
        self, name: str, shape: tuple[int, ...]
    ) -> Iterator[tuple[tuple[int, ...], Floats | None]]:
        """Every place in the array (or ``entries`` of them), or numbered random directions of length 1."""
        size = math.prod(shape)
        random = np.random.Generator(np.random.PCG64([self.seed, *name.encode()]))
        if self.fast_mode:
            for number in range(DIRECTIONS if size else 0):
                direction = random.standard_normal(shape)
                yield (number,), direction / max(float(np.linalg.norm(direction)), 1e-300)
            return
        places = np.arange(size)
        if self.entries is not None and self.entries < size:
            places = np.sort(random.choice(size, self.entries, replace=False))
        for place in places:
            yield tuple(int(i) for i in np.unravel_index(place, shape)), None

    def _line(self, name: str, index: tuple[int, ...], direction: Floats | None) -> Line:
        """t → the function with the array ``name`` moved by t along a coordinate or a direction."""
        checked = self.checked
        array = checked.arrays[name]

        def along_coordinate(t: float) -> differences.Point:
            old = array[index]
            array[index] = old + t
            try:
                return checked.evaluate()
            finally:
                array[index] = old

        def along_direction(t: float) -> differences.Point:
            assert direction is not None
            old = array.copy()
            array[...] = old + t * direction
            try:
                return checked.evaluate()
            finally:
                array[...] = old

        return along_coordinate if direction is None else along_direction

    def _complex(self, name: str, index: tuple[int, ...], direction: Floats | None) -> Slope:
        if direction is None:
            direction = np.zeros(self.checked.arrays[name].shape)
            direction[index] = 1.0
        return Slope(_complex_slope(self.checked, name, direction), 0.0, differences.COMPLEX_STEP)


def _complex_slope(checked: Checked, name: str, direction: Floats) -> float:
    assert checked.evaluate_complex is not None
    moved = {**checked.arrays, name: checked.arrays[name] + 1j * differences.COMPLEX_STEP * direction}
    return float(np.imag(checked.evaluate_complex(moved))) / differences.COMPLEX_STEP


def _complex_allowed(checked: Checked, demanded: bool, seed: int) -> bool:
    """Whether the complex step gives, along one random direction of every array, what differences give."""
    problem = "it is not written for complex arrays" if checked.evaluate_complex is None else ""
    unit = float(np.finfo(checked.dtype).eps)
    check = _Check(checked, None, None, None, True, None, False, seed)
    for name, array in checked.arrays.items() if not problem else ():
        if not array.size:
            continue
        index, direction = next(check._directions(name, array.shape))
        assert direction is not None
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("error", np.exceptions.ComplexWarning)
                slope = _complex_slope(checked, name, direction)
        except Exception as error:  # whatever the function says to complex numbers
            problem = f"it raises {type(error).__name__}: {' '.join(str(error).split())}"
            break
        step = differences.step_for(unit, np.abs(array).max())
        line = check._line(name, index, direction)
        numeric = differences.central(line, step, unit)
        if not numeric.contains(slope, 1e-4 * abs(numeric.value)):
            numeric = differences.examine(line, numeric, slope, 1e-4 * abs(numeric.value), unit)
        if not numeric.contains(slope, 1e-4 * abs(numeric.value)):
            problem = f"along {name} it gives {slope:.6g}, differences give {numeric.value:.6g}"
            break
    if problem and demanded:
        raise ValueError(f"method='complex': the function does not allow it: {problem}; use method='central'")
    return not problem


def _check_determinism(checked: Checked, allowed: float) -> None:
    first, second = checked.evaluate().value, checked.evaluate().value
    if not math.isfinite(first):
        raise ValueError(f"the function is {first} at these inputs; a gradient check needs finite numbers")
    if checked.value is not None and first == second and abs(first - checked.value) > allowed:
        raise ValueError(
            f"the backward pass changed the function, from {checked.value!r} to {first!r} at the same "
            "inputs; it must not update parameters"
        )
    if not abs(first - second) <= allowed:
        raise ValueError(
            f"the function is not deterministic: {first!r} and then {second!r} at the same inputs; "
            "fix its random numbers (dropout, sampling), or allow it with nondet_tol"
        )
