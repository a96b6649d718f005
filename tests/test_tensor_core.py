"""kernels/tensor_core.cuh: roundings, fragment layouts, products; emulated, and as machine code."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from emulator_sources import FOLDER, ORDERS
from numpy.typing import NDArray

from handgrad import emulator
from handgrad.emulator.counting import SHARED, counting
from handgrad.emulator.watched import searching
from handgrad.proof import disassembly, machine_code

SOURCE = FOLDER / "tensor_core.cu"
DEPTHS = {"Tf32": 8, "Tf32Unrounded": 8, "ThreeTf32": 8, "Bfloat16": 16}
PRODUCTS = [f"products<{name}>" for name in DEPTHS]
LOADS = [f"loads<{count}, {transposed}>" for count in (1, 2, 4) for transposed in ("false", "true")]
FAULTS = ["lane_missing", "two_places", "loads_and_products_at_once", "rows_one_element_late"]


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    names = [*PRODUCTS, *LOADS, *FAULTS, "roundings", "rows_not_waited_for"]
    emulator.prebuild((SOURCE, name) for name in names)


# ---- independent references: by arithmetic on float64, not on bits ---------------------------------------


def rounded(x: NDArray[Any], bits: int, ties: str) -> NDArray[np.float64]:
    """x with ``bits`` of significand; halves go "away" from zero or to the "even" neighbour."""
    fraction, exponent = np.frexp(np.abs(x.astype(np.float64)))
    scaled = np.ldexp(fraction, bits)
    nearest = np.floor(scaled + 0.5) if ties == "away" else np.rint(scaled)
    return np.copysign(np.ldexp(nearest, exponent - bits), x)


def operands_of(name: str, x: NDArray[Any]) -> NDArray[np.float64]:
    if name == "Bfloat16":
        return rounded(x, 8, "even")
    if name == "Tf32":
        return rounded(x, 11, "away")
    if name == "Tf32Unrounded":
        fraction, exponent = np.frexp(x.astype(np.float64))
        return np.ldexp(np.trunc(np.ldexp(fraction, 11)), exponent - 11)
    return x.astype(np.float64)


def as_float(bits: NDArray[np.uint32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(bits, np.uint32).view(np.float32)


# ---- roundings -------------------------------------------------------------------------------------------


def roundings(x: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    tf32, pairs = emulator.empty(x.size, np.uint32), emulator.empty(x.size, np.uint32)
    emulator.launch(SOURCE, "roundings", (1,), (64,), (emulator.asarray(x), tf32, pairs, np.int32(x.size)), 0)
    return np.asarray(tf32), np.asarray(pairs)


def test_roundings_agree_with_arithmetic() -> None:
    generator = np.random.default_rng(0)
    bits = generator.integers(0x00800000, 0x7F000000, 4000, dtype=np.uint32)
    bits[:1000] = bits[:1000] & ~np.uint32(0x1FFF) | 0x1000  # ties for tf32
    bits[1000:2000] = bits[1000:2000] & ~np.uint32(0xFFFF) | 0x8000  # and for bfloat16
    x = as_float(bits) * generator.choice(np.array([-1, 1], np.float32), 4000)
    tf32, pairs = roundings(x)
    np.testing.assert_array_equal(as_float(tf32), rounded(x, 11, "away"))
    np.testing.assert_array_equal(as_float(pairs << 16), rounded(x, 8, "even"))
    np.testing.assert_array_equal(as_float(pairs & np.uint32(0xFFFF0000)), -rounded(x, 8, "even"))


def test_roundings_keep_what_is_not_finite() -> None:
    x = as_float(
        np.array([0x7F800000, 0xFF800000, 0x7FC00000, 0xFFFFFFFF, 0x7F800001, 0, 0x80000000], np.uint32)
    )
    tf32, pairs = roundings(x)
    np.testing.assert_array_equal(as_float(tf32), x)
    np.testing.assert_array_equal(as_float(pairs << 16), x)
    assert list(np.signbit(as_float(tf32)[-2:])) == [False, True]


# ---- products --------------------------------------------------------------------------------------------


def multiply(name: str, a: Any, b: Any, c: Any, warps: int = 1) -> NDArray[np.float32]:
    d = emulator.empty((warps, 16, 8))
    arguments = (*(emulator.asarray(x, np.float32) for x in (a, b, c)), d)
    emulator.launch(SOURCE, f"products<{name}>", (1,), (32 * warps,), arguments, 0)
    return np.asarray(d)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", DEPTHS)
def test_products_of_small_integers_are_exact(name: str, order: str) -> None:
    generator = np.random.default_rng(1)
    depth = DEPTHS[name]
    a, b = generator.integers(-64, 65, (2, 16, depth)), generator.integers(-64, 65, (2, depth, 8))
    c = generator.integers(-64, 65, (2, 16, 8))
    with emulator.settings(order=order, seed=2):
        np.testing.assert_array_equal(multiply(name, a, b, c, warps=2), c + a @ b)


@pytest.mark.parametrize("name", DEPTHS)
def test_products_within_their_precision(name: str) -> None:
    generator = np.random.default_rng(2)
    depth = DEPTHS[name]
    a, b = (generator.standard_normal(shape).astype(np.float32) for shape in ((1, 16, depth), (1, depth, 8)))
    c = generator.standard_normal((1, 16, 8)).astype(np.float32)
    x, y = operands_of(name, a), operands_of(name, b)
    error = np.abs(multiply(name, a, b, c) - (c + x @ y))
    unit = 2.0**-24 + (2.0**-22 if name == "ThreeTf32" else 0)
    assert (error <= 2 * np.sqrt(depth) * unit * (np.abs(c) + np.abs(x) @ np.abs(y))).all()
    if name != "ThreeTf32":  # and the operands are rounded indeed
        assert np.abs(x - a).max() > 1e-5


@pytest.mark.parametrize("name", ["Tf32", "Bfloat16"])
def test_infinities_and_nans_propagate(name: str) -> None:
    depth = DEPTHS[name]
    a, b, c = np.ones((1, 16, depth)), np.ones((1, depth, 8)), np.zeros((1, 16, 8))
    a[0, 3, 1], a[0, 9, depth - 1], b[0, 2, 5] = np.inf, np.nan, -np.inf
    with np.errstate(invalid="ignore"):
        expected = c + a @ b
    np.testing.assert_array_equal(multiply(name, a, b, c), expected)
    assert np.isnan(expected[0, 3, 5]), "the difference of two infinities"


@pytest.mark.parametrize("name", DEPTHS)
def test_the_sum_of_an_instruction_is_exact_until_it_is_cut_off(name: str) -> None:
    depth = DEPTHS[name]
    a, b, c = np.zeros((1, 16, depth)), np.ones((1, depth, 8)), np.zeros((1, 16, 8))
    a[0, :, 0], a[0, :, 1], a[0, :, -1] = 2.0**26, 1, -(2.0**26)
    np.testing.assert_array_equal(multiply(name, a, b, c), 1)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["Tf32", "Bfloat16"])
def test_sums_are_cut_off_toward_zero(name: str, sign: int) -> None:
    """1 + 3/2 of its last place is 1, 1 - 1/4 of the place below is the number below 1."""
    depth = DEPTHS[name]
    a, b, c = np.zeros((1, 16, depth)), np.ones((1, depth, 8)), np.full((1, 16, 8), float(sign))
    a[0, :8, 0], a[0, 8:, 0] = sign * 1.5 * 2.0**-24, -sign * 2.0**-26
    found = multiply(name, a, b, c)
    np.testing.assert_array_equal(found[0, :8], sign)
    np.testing.assert_array_equal(found[0, 8:], sign * (1 - 2.0**-24))


def test_three_tf32_add_outside_the_tensor_core() -> None:
    """An addition that rounds to nearest: chained through d, sums of one sign would only ever shrink."""
    a, b, c = np.zeros((1, 16, 8)), np.ones((1, 8, 8)), np.ones((1, 16, 8))
    a[0, :, 0] = 1.5 * 2.0**-24
    np.testing.assert_array_equal(multiply("ThreeTf32", a, b, c), 1 + 2.0**-23)


@pytest.mark.parametrize("search", ["memory", "races", "initialisation"])
@pytest.mark.parametrize("name", ["ThreeTf32", "Bfloat16"])
def test_products_pass_every_search(name: str, search: str) -> None:
    generator = np.random.default_rng(3)
    depth = DEPTHS[name]
    a, b = generator.integers(-9, 9, (2, 16, depth)), generator.integers(-9, 9, (2, depth, 8))
    with searching(search):
        np.testing.assert_array_equal(multiply(name, a, b, np.ones((2, 16, 8)), warps=2), 1 + a @ b)


# ---- loads of matrices -----------------------------------------------------------------------------------


def load(expression: str, pitch: int) -> None:
    count, transposed = int(expression[6]), "true" in expression
    matrices = np.random.default_rng(4).integers(0, 2**16, (count, 8, 8)).astype(np.uint16)
    registers = emulator.empty((count, 32), np.uint32)
    arguments = (emulator.asarray(matrices), registers, np.int32(pitch))
    emulator.launch(SOURCE, expression, (1,), (32,), arguments, 0)
    read = matrices.transpose(0, 2, 1) if transposed else matrices
    pairs = read.astype(np.uint32).reshape(count, 32, 2)
    np.testing.assert_array_equal(registers, pairs[..., 0] | pairs[..., 1] << 16)


@pytest.mark.parametrize("pitch", [8, 24])
@pytest.mark.parametrize("expression", LOADS)
def test_matrices_load_as_documented(expression: str, pitch: int) -> None:
    load(expression, pitch)


@pytest.mark.parametrize("search", ["memory", "races", "initialisation"])
def test_loads_pass_every_search(search: str) -> None:
    with searching(search):
        load("loads<4, true>", 24)


def test_loads_count_as_rows_of_sixteen_bytes() -> None:
    for pitch, conflicts in ((8, 1), (24, 1), (16, 2)):
        with counting() as launches:
            load("loads<4, false>", pitch)
        rows = [p for p in launches[0].places if p.buffer == SHARED and p.access == "load"]
        assert [(p.bytes, p.requests, p.lanes) for p in rows] == [(16, 1, 32)]
        assert (rows[0].wavefronts, rows[0].least_wavefronts) == (4 * conflicts, 4)
        assert launches[0].collectives == {"ldmatrix": 1}


def test_products_are_counted() -> None:
    with counting() as launches:
        multiply("ThreeTf32", np.ones((1, 16, 8)), np.ones((1, 8, 8)), np.ones((1, 16, 8)))
    assert launches[0].collectives == {"mma.m16n8k8.tf32": 3}
    assert {(p.buffer, p.access) for p in launches[0].places} == {
        ("a", "load"), ("b", "load"), ("c", "load"), ("d", "store"),
    }  # fmt: skip


# ---- faults ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lane_missing", ("mma.m16n8k8.tf32", "return")),
        ("two_places", ("warp divergence", "mma.m16n8k16.bf16")),
        ("loads_and_products_at_once", ("warp divergence", "ldmatrix")),
    ],
)
def test_missing_lanes_are_reported(name: str, words: tuple[str, ...], order: str) -> None:
    with emulator.settings(order=order), pytest.raises(emulator.EmulatorError) as caught:
        emulator.launch(SOURCE, name, (1,), (32,), (emulator.zeros(32),), 0)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_block_without_a_whole_warp_is_refused() -> None:
    with pytest.raises(emulator.EmulatorError, match="names lanes that do not exist"):
        emulator.launch(SOURCE, "lane_missing", (1,), (20,), (emulator.zeros(32),), 0)


def test_misaligned_rows_are_refused() -> None:
    with pytest.raises(emulator.EmulatorError, match=r"misaligned 16-byte access .*tensor_core\.cu:"):
        emulator.launch(SOURCE, "rows_one_element_late", (1,), (32,), (emulator.zeros(32, np.uint32),), 0)


def test_rows_read_before_a_barrier_are_a_race() -> None:
    with searching("races"), pytest.raises(emulator.EmulatorError) as caught:
        emulator.launch(SOURCE, "rows_not_waited_for", (1,), (32,), (emulator.zeros(32, np.uint32),), 0)
    assert caught.value.fault == "races"


# ---- machine code ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_120"])
def test_machine_code_has_float32_sums(arch: str) -> None:
    try:
        compiled = machine_code.compile_for(SOURCE, [*PRODUCTS, *LOADS], arch)
        code = disassembly.disassemble(compiled.cubin)
    except (machine_code.NvrtcMissing, disassembly.DisassemblerMissing) as missing:
        pytest.skip(str(missing))

    def opcodes(expression: str, root: str) -> Counter[str]:
        found = (one.opcode for one in code[compiled.names[expression]] if one.root == root)
        return Counter(found)

    assert opcodes("products<Tf32>", "HMMA") == {"HMMA.1688.F32.TF32": 1}
    assert opcodes("products<ThreeTf32>", "HMMA") == {"HMMA.1688.F32.TF32": 3}
    assert opcodes("products<Bfloat16>", "HMMA") == {"HMMA.16816.F32.BF16": 1}
    for expression in LOADS:
        (opcode,) = opcodes(expression, "LDSM")
        assert ("MT88" in opcode) == ("true" in expression)
        assert opcode.endswith({"1": "88", "2": ".2", "4": ".4"}[expression[6]])


def test_older_architectures_compile_to_a_trap() -> None:
    try:
        compiled = machine_code.compile_for(SOURCE, ["products<Tf32>"], "sm_75")
        code = disassembly.disassemble(compiled.cubin)[compiled.names["products<Tf32>"]]
    except (machine_code.NvrtcMissing, disassembly.DisassemblerMissing) as missing:
        pytest.skip(str(missing))
    assert not [one for one in code if one.root == "HMMA"]
    assert [one for one in code if one.root == "BPT"], "a trap"
