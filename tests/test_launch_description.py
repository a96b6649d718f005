"""Launch descriptions: what a TOML file says, what it makes, and one line for each mistake in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from handgrad import emulator
from handgrad.proof import launch_description

GOOD = """
kernel = "saxpy<float>"
grid = [4, 2]
block = 256
shared = 64
args = [
    { name = "x", dtype = "float32", shape = [1000], fill = "normal" },
    { dtype = "float64", shape = [2, 3], fill = "output" },
    { dtype = "float32", value = 2 },
    { dtype = "int64", value = -7 },
    { null = true },
]
"""


def read(folder: Path, text: str) -> tuple[launch_description.LaunchDescription, ...]:
    file = folder / "k.toml"
    file.write_text(text)
    return launch_description.read(file)


def test_every_key_is_read(tmp_path: Path) -> None:
    (launch,) = read(tmp_path, GOOD)
    assert (launch.kernel, launch.grid, launch.block, launch.shared) == ("saxpy<float>", (4, 2), (256,), 64)
    assert launch.place == "k.toml"
    assert not launch.cooperative
    (together,) = read(tmp_path, GOOD.replace("shared = 64", "cooperative = true"))
    assert together.cooperative
    x, out, a, n, none = launch.arguments
    assert (x.name, x.dtype, x.shape, x.fill) == ("x", "float32", (1000,), "normal")
    assert (out.dtype, out.shape, out.fill) == ("float64", (2, 3), "output")
    assert (a.value, n.value, none.value, none.shape) == (2, -7, None, None)


def test_arguments_are_made_the_same_every_time(tmp_path: Path) -> None:
    (launch,) = read(tmp_path, GOOD)
    made, again = launch.make_arguments(emulator), launch.make_arguments(emulator)
    assert isinstance(made[0], emulator.EmulatedArray)
    assert 0.8 < made[0].std() < 1.2
    np.testing.assert_array_equal(made[0], again[0])
    assert not np.shares_memory(made[0], again[0])
    assert made[1].shape == (2, 3)
    assert np.isnan(made[1]).all()
    assert made[2] == np.float32(2)
    assert made[2].dtype == np.float32
    assert made[3].dtype == np.int64
    assert made[4] is None


@pytest.mark.parametrize(
    ("fill", "expected"),
    [
        ('"zeros"', [0, 0, 0, 0]),
        ('"ones"', [1, 1, 1, 1]),
        ('"arange"', [0, 1, 2, 3]),
        ("3", [3, 3, 3, 3]),
        ('"integers", low = 5, high = 5', [5, 5, 5, 5]),
    ],
)
@pytest.mark.parametrize("dtype", launch_description.DTYPES)
def test_fills(tmp_path: Path, fill: str, expected: list[int], dtype: str) -> None:
    if dtype == "bool" and fill == "3":
        fill, expected = "true", [1, 1, 1, 1]
    text = f'kernel = "k"\ngrid = 1\nblock = 1\nargs = [{{ dtype = "{dtype}", shape = 4, fill = {fill} }}]'
    (launch,) = read(tmp_path, text)
    (array,) = launch.make_arguments(emulator)
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, np.array(expected, dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint64", "int16"])
def test_unwritten_elements_of_an_output_are_counted(tmp_path: Path, dtype: str) -> None:
    text = f'kernel = "k"\ngrid = 1\nblock = 1\nargs = [{{ dtype = "{dtype}", shape = 9, fill = "FILL" }}]'
    for fill, left in (("output", 9), ("scratch", 0)):
        (launch,) = read(tmp_path, text.replace("FILL", fill))
        (array,) = launch.make_arguments(np)
        assert launch.arguments[0].unwritten(array) == left
        array[:4] = 0
        assert launch.arguments[0].unwritten(array) == max(0, left - 4)


def test_several_launches_and_several_kernels(tmp_path: Path) -> None:
    text = """
    [[launch]]
    kernel = ["a<1>", "a<2>"]
    grid = 1
    block = 32
    args = []
    [[launch]]
    kernel = "b"
    grid = [2]
    block = [3, 4, 5]
    args = []
    """
    found = read(tmp_path, text)
    assert [(one.kernel, one.place) for one in found] == [
        ("a<1>", "k.toml: launch 1"),
        ("a<2>", "k.toml: launch 1"),
        ("b", "k.toml: launch 2"),
    ]
    assert found[2].block == (3, 4, 5)


def test_no_launch_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^k\.toml: launch: expected \[\[launch\]\] tables, got \[\]$"):
        read(tmp_path, "launch = []")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("grid = [4, 2]", "", "k.toml: grid is missing"),
        (
            "value = -7",
            "value = inf",
            "k.toml: args[3]: value: expected a whole number that fits int64, got inf",
        ),
        (
            "value = -7",
            "value = nan",
            "k.toml: args[3]: value: expected a whole number that fits int64, got nan",
        ),
        (
            "[1000]",
            "[1000000, 1000000]",
            "k.toml: args: expected arrays of at most 4294967296 bytes in all, got",
        ),
        (
            'fill = "normal"',
            'fill = "integers", high = inf',
            "k.toml: args[0]: low: expected a finite number",
        ),
        (
            'fill = "normal"',
            'fill = "integers", low = 1e30, high = 1e31',
            "k.toml: args[0]: low, high: expected whole numbers of 64 bits, got 1e+30 and 1e+31",
        ),
        ("shared = 64", "shared = " + "[" * 5000, "k.toml: tables or lists nested too deeply"),
        (
            "grid = [4, 2]",
            "grid = [4, 0]",
            "k.toml: grid: expected 1 to 3 whole numbers from 1 up, got [4, 0]",
        ),
        ("grid = [4, 2]", "grid = 2.5", "k.toml: grid: expected 1 to 3 whole numbers from 1 up, got 2.5"),
        ("block = 256", "blok = 256", "k.toml: block is missing"),
        ("shared = 64", "shared = -1", "k.toml: shared: expected a number of bytes, got -1"),
        ("shared = 64", "cooperative = 1", "k.toml: cooperative: expected true or false, got 1"),
        (
            "shared = 64",
            "shard = 64",
            "k.toml: expected the keys kernel, grid, block, shared, cooperative, args, got 'shard'",
        ),
        ('"saxpy<float>"', "3", 'k.toml: kernel: expected a C++ name such as "saxpy<float>", got 3'),
        ('"normal"', '"gauss"', "k.toml: args[0]: fill: expected one of zeros, ones, arange, normal"),
        ('dtype = "float64"', 'dtype = "double"', "k.toml: args[1]: dtype: expected one of float32, float64"),
        ('dtype = "float64", ', "", "k.toml: args[1]: dtype is missing"),
        ("shape = [2, 3]", "shape = [2, -3]", "k.toml: args[1]: shape: expected whole numbers from 0 up"),
        (
            ", shape = [2, 3]",
            "",
            "k.toml: args[1]: expected shape (an array) or value (a scalar), got neither",
        ),
        ("value = 2 ", "value = 2, shape = 3 ", "k.toml: args[2]: expected shape (an array) or value"),
        ("value = 2 ", 'value = "two" ', "k.toml: args[2]: value: expected a number, got 'two'"),
        (
            "value = -7",
            "value = 1.5",
            "k.toml: args[3]: value: expected a whole number that fits int64, got 1.5",
        ),
        ("{ null = true }", "3", "k.toml: args[4]: expected a table such as"),
        ("{ null = true }", "{ nul = true }", "k.toml: args[4]: dtype is missing"),
        ("[\n", "[[\n", "k.toml: no TOML: "),
        ("args = [\n", "launch = 3\nargs = [\n", "k.toml: kernel: expected inside a [[launch]] table"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert GOOD.count(old) == 1, old
    with pytest.raises(ValueError, match=r"k\.toml") as caught:
        read(tmp_path, GOOD.replace(old, new))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
