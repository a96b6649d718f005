"""How a kernel of one's own is launched, read from a TOML file.

::

    kernel = "saxpy<float>"          # the C++ name expression; a list of them, launched alike one by one
    grid = [4]                       # one to three sizes, or a number
    block = [256]
    shared = 0                       # bytes of dynamic shared memory; may be left out
    cooperative = false              # whether all blocks are resident at once; may be left out
    args = [
        { dtype = "float32", shape = [1000], fill = "normal" },    # an array
        { dtype = "float32", shape = [1000], fill = "output" },
        { dtype = "float32", value = 2.0 },                        # a scalar
        { dtype = "int32", value = 1000 },
        { null = true },                                           # a null pointer
    ]

Several launches stand in ``[[launch]]`` tables, each with these keys; each starts from memory of its own.
"""

from __future__ import annotations

import math
import tomllib
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.emulator import watched

DTYPES = (
    *("float32", "float64", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)
FILLS = ("zeros", "ones", "arange", "normal", "uniform", "integers", "output", "scratch")

# By itemsize, what memory holds that nobody wrote.
POISON = {1: 0xBA} | {size: patterns[0] for size, patterns in watched.POISON.items()}

MOST_BYTES = 4 << 30  # of all arrays of a launch

_LAUNCH_KEYS = ("kernel", "grid", "block", "shared", "cooperative", "args")
_ARGUMENT_KEYS = ("name", "dtype", "shape", "fill", "value", "low", "high", "null")


@dataclass(frozen=True)
class Argument:
    """One argument: an array of ``shape``, a scalar ``value``, or a null pointer where both are None.

    ``fill``: "zeros", "ones", "arange"; "normal" and "uniform" random numbers; whole numbers "integers" from
    ``low`` to ``high``; a number; "output" for memory that the kernel has to write wholly, and "scratch" for
    memory that it may leave unwritten: neither holds anything before.
    """

    name: str = ""
    dtype: str = "float32"
    shape: tuple[int, ...] | None = None
    value: float | None = None
    fill: str | float = "zeros"
    low: float = -8
    high: float = 8

    @property
    def nbytes(self) -> int:
        """Of the array; 0 for a scalar."""
        return 0 if self.shape is None else math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def host_array(self, random: np.random.Generator) -> NDArray[Any]:
        """The array's contents before the launch."""
        assert self.shape is not None, "of an array"
        shape, dtype = self.shape, np.dtype(self.dtype)
        if self.fill in ("output", "scratch"):
            poisoned = np.empty(shape, dtype)
            poisoned.view(f"u{dtype.itemsize}")[...] = POISON[dtype.itemsize]
            return poisoned
        makers: dict[str | float, Callable[[], Any]] = {
            "zeros": lambda: np.zeros(shape),
            "ones": lambda: np.ones(shape),
            "arange": lambda: np.arange(np.prod(shape)).reshape(shape),
            "normal": lambda: random.normal(size=shape),
            "uniform": lambda: random.uniform(self.low, self.high, size=shape),
            "integers": lambda: random.integers(int(self.low), int(self.high) + 1, size=shape),
        }
        make: Callable[[], Any] = makers.get(self.fill, lambda: np.full(shape, self.fill))
        return np.asarray(make()).astype(dtype)

    def unwritten(self, after: NDArray[Any]) -> int:
        """How many elements of an output still hold what they held before the launch."""
        if self.fill != "output" or after.itemsize == 1:  # a byte may well be what the poison is
            return 0
        return int((after.view(f"u{after.itemsize}") == POISON[after.itemsize]).sum())


@dataclass(frozen=True)
class LaunchDescription:
    """One launch of ``kernel``; ``place`` says where it is described, for messages."""

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    arguments: tuple[Argument, ...]
    place: str
    cooperative: bool = False

    def make_arguments(self, xp: ModuleType) -> list[Any]:
        """Arrays on the array module ``xp``, NumPy scalars and None, the same ones every time."""
        random = np.random.default_rng(zlib.crc32(self.kernel.encode()))
        made: list[Any] = []
        for argument in self.arguments:
            if argument.shape is not None:
                made.append(xp.asarray(argument.host_array(random)))
            elif argument.value is not None:
                made.append(np.dtype(argument.dtype).type(argument.value))
            else:
                made.append(None)
        return made


def read(path: Path) -> tuple[LaunchDescription, ...]:
    """The launches that the TOML file ``path`` describes.

    Raises ``ValueError``, in one line that names the place, what was expected and what came.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: no TOML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError(
            f"{path.name}: tables or lists nested too deeply; expected those shown above"
        ) from None
    if "launch" not in data:
        return _launches(data, path.name)
    launches = data["launch"]
    others = [key for key in data if key != "launch"]
    if others:
        raise ValueError(f"{path.name}: {others[0]}: expected inside a [[launch]] table, got it beside them")
    if not isinstance(launches, list) or not launches or not all(isinstance(one, dict) for one in launches):
        raise ValueError(f"{path.name}: launch: expected [[launch]] tables, got {launches!r}")
    return tuple(
        described
        for number, one in enumerate(launches, 1)
        for described in _launches(one, f"{path.name}: launch {number}")
    )


def _launches(table: Mapping[str, Any], place: str) -> tuple[LaunchDescription, ...]:
    _require_keys(table, _LAUNCH_KEYS, ("kernel", "grid", "block", "args"), place)
    given = table["kernel"]
    kernels = given if isinstance(given, list) and given else [given]
    if not all(isinstance(kernel, str) and kernel.strip() for kernel in kernels):
        raise ValueError(f'{place}: kernel: expected a C++ name such as "saxpy<float>", got {given!r}')
    shared = table.get("shared", 0)
    if not _is_whole(shared) or shared < 0:
        raise ValueError(f"{place}: shared: expected a number of bytes, got {shared!r}")
    cooperative = table.get("cooperative", False)
    if not isinstance(cooperative, bool):
        raise ValueError(f"{place}: cooperative: expected true or false, got {cooperative!r}")
    arguments = table["args"]
    if not isinstance(arguments, list):
        raise ValueError(f"{place}: args: expected a list of tables, got {arguments!r}")
    grid, block = _sizes(table["grid"], f"{place}: grid"), _sizes(table["block"], f"{place}: block")
    made = tuple(_argument(one, f"{place}: args[{number}]") for number, one in enumerate(arguments))
    total = sum(argument.nbytes for argument in made)
    if total > MOST_BYTES:
        raise ValueError(f"{place}: args: expected arrays of at most {MOST_BYTES} bytes in all, got {total}")
    return tuple(
        LaunchDescription(kernel.strip(), grid, block, shared, made, place, cooperative) for kernel in kernels
    )


def _argument(table: Any, place: str) -> Argument:
    if not isinstance(table, dict):
        raise ValueError(
            f'{place}: expected a table such as {{ dtype = "float32", shape = [64] }}, got {table!r}'
        )
    if table.get("null") is True:
        _require_keys(table, ("null", "name"), (), place)
        return Argument(str(table.get("name", "")))
    _require_keys(table, _ARGUMENT_KEYS, ("dtype",), place)
    dtype = table["dtype"]
    if dtype not in DTYPES:
        raise ValueError(f"{place}: dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    name = table.get("name", "")
    if not isinstance(name, str):
        raise ValueError(f"{place}: name: expected a word, got {name!r}")
    if ("shape" in table) == ("value" in table):
        both = "both" if "shape" in table else "neither"
        raise ValueError(f"{place}: expected shape (an array) or value (a scalar), got {both}")
    if "value" in table:
        return Argument(name, dtype, value=_number(table["value"], dtype, f"{place}: value"))
    fill = table.get("fill", "zeros")
    if isinstance(fill, str) and fill not in FILLS:
        raise ValueError(f"{place}: fill: expected one of {', '.join(FILLS)} or a number, got {fill!r}")
    if not isinstance(fill, str):
        fill = _number(fill, dtype, f"{place}: fill")
    low, high = (
        _number(table.get(key, usual), "float64", f"{place}: {key}")
        for key, usual in (("low", -8), ("high", 8))
    )
    if not -math.inf < low <= high < math.inf:
        raise ValueError(f"{place}: low: expected a finite number, at most high = {high}, got {low}")
    if fill == "integers" and not -(2.0**63) <= low <= high < 2.0**63:
        raise ValueError(f"{place}: low, high: expected whole numbers of 64 bits, got {low} and {high}")
    if "low" not in table and dtype.startswith("u"):
        low = 0
    shape = _sizes(table["shape"], f"{place}: shape", most=32, least=0)
    return Argument(name, dtype, shape, None, fill, low, high)


def _require_keys(table: Mapping[str, Any], known: Sequence[str], needed: Sequence[str], place: str) -> None:
    for key in needed:
        if key not in table:
            raise ValueError(f"{place}: {key} is missing")
    for key in table:
        if key not in known:
            raise ValueError(f"{place}: expected the keys {', '.join(known)}, got {key!r}")


def _sizes(given: Any, place: str, most: int = 3, least: int = 1) -> tuple[int, ...]:
    sizes = given if isinstance(given, list) else [given]
    if not sizes or len(sizes) > most or not all(_is_whole(size) and size >= least for size in sizes):
        wanted = f"1 to {most} whole numbers" if most < 32 else "whole numbers"
        raise ValueError(f"{place}: expected {wanted} from {least} up, got {given!r}")
    return tuple(sizes)


def _number(given: Any, dtype: str, place: str) -> float:
    if isinstance(given, bool) and dtype == "bool":
        return int(given)
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise ValueError(f"{place}: expected a number, got {given!r}")
    if np.dtype(dtype).kind in "iu":
        limits = np.iinfo(dtype)
        if not limits.min <= given <= limits.max or given != int(given):  # in this order: inf has no int
            raise ValueError(f"{place}: expected a whole number that fits {dtype}, got {given!r}")
        return int(given)
    return given


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
