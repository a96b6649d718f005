"""The counters against counts made by hand, on the kernels of tests/counted/known.cu."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handgrad import emulator
from handgrad.emulator.counting import MODULE, LaunchCounts, counting
from handgrad.ops import activation
from handgrad.proof.counters import GlobalTraffic, SharedTraffic, global_traffic, shared_traffic

KNOWN = Path(__file__).resolve().parent / "counted" / "known.cu"


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """All kernels at once: most of a cold run is the compiler's start."""
    expressions = [
        *(
            "copy",
            "broadcast",
            "quads",
            "triples",
            "accumulate",
            "rows",
            "diverged",
            "early",
            "two_arrays",
            "atomics",
        ),
        *("variables", "local", "refused", "two_words", "asynchronous", "meetings"),
        *(f"strided<{t}>" for t in ("float", "double", "unsigned char")),
        *(f"vectors<{t}>" for t in ("float4", "float2", "double2", "uchar4", "Pack")),
        *(banks_of(*case[:3]) for case in BANKS),
    ]
    emulator.prebuild([(KNOWN, expression) for expression in expressions], mode="count")


def count(
    expression: str, grid: int, block: int | tuple[int, ...], *args: Any, shared: int = 0
) -> LaunchCounts:
    blocks = (block,) if isinstance(block, int) else block
    with counting() as launches:
        emulator.launch(KNOWN, expression, (grid,), blocks, args, shared)
    (counts,) = launches
    return counts


def zeros(n: int, dtype: str = "float32") -> emulator.EmulatedArray:
    return emulator.zeros(n, np.dtype(dtype))


def traffic(requests: int, lane_bytes: int, sectors: int, least: int, distinct: int) -> GlobalTraffic:
    return GlobalTraffic(requests, lane_bytes, sectors, least, 32 * distinct)


# ---- global memory ---------------------------------------------------------------------------------------


def test_coalesced_with_a_ragged_tail() -> None:
    """500 of 4 x 128 threads: 15 warps of 4 sectors, and 20 lanes with 80 bytes in 3."""
    counts = count("copy", 4, 128, zeros(512), zeros(512), np.int32(500))
    assert global_traffic(counts) == {
        "in": {"load": traffic(16, 2000, 63, 63, 63)},
        "out": {"store": traffic(16, 2000, 63, 63, 63)},
    }
    assert counts.arrays == {"in": 2048, "out": 2048}
    assert shared_traffic(counts) == {}
    assert counts.barriers == 0
    assert counts.collectives == {}


def test_misaligned_by_one_element() -> None:
    """128 bytes from byte 4 on touch 5 sectors."""
    counts = count("copy", 1, 32, zeros(64)[1:33], zeros(32), np.int32(32))
    assert global_traffic(counts) == {
        "in": {"load": traffic(1, 128, 5, 4, 5)},
        "out": {"store": traffic(1, 128, 4, 4, 4)},
    }


@pytest.mark.parametrize(
    ("t", "stride", "sectors", "least"),
    [
        ("float32", 1, 4, 4),
        ("float32", 2, 8, 4),
        ("float32", 3, 12, 4),
        ("float32", 8, 32, 4),
        ("float32", 1000, 32, 4),
        ("float64", 1, 8, 8),
        ("float64", 2, 16, 8),
        ("uint8", 1, 1, 1),
        ("uint8", 4, 4, 1),
    ],
)
def test_strided(t: str, stride: int, sectors: int, least: int) -> None:
    cpp = {"float32": "float", "float64": "double", "uint8": "unsigned char"}[t]
    size = np.dtype(t).itemsize
    counts = count(f"strided<{cpp}>", 1, 32, zeros(32000, t), zeros(32, t), np.int32(stride))
    assert global_traffic(counts)["in"] == {"load": traffic(1, 32 * size, sectors, least, sectors)}
    assert global_traffic(counts)["in"]["load"].coalescing == sectors / least


def test_broadcast() -> None:
    """Both warps ask for one sector; the launch moves it from DRAM once."""
    counts = count("broadcast", 1, 64, zeros(64), zeros(64))
    assert global_traffic(counts)["in"] == {"load": traffic(2, 256, 2, 2, 1)}
    assert global_traffic(counts)["in"]["load"].moved_bytes == 64


@pytest.mark.parametrize(
    ("cpp", "lane_bytes"), [("float4", 16), ("float2", 8), ("double2", 16), ("uchar4", 4), ("Pack", 16)]
)
def test_a_vector_is_one_access(cpp: str, lane_bytes: int) -> None:
    if cpp == "Pack" and emulator.find_compiler().kind != "g++":
        pytest.skip("clang splits a structure of one's own")
    n = 64 * lane_bytes
    dtype = {"double2": "float64", "uchar4": "uint8"}.get(cpp, "float32")
    arrays = [zeros(n // np.dtype(dtype).itemsize, dtype) for _ in range(2)]
    counts = count(f"vectors<{cpp}>", 1, 64, *arrays)
    sectors = n // 32
    assert global_traffic(counts) == {
        "in": {"load": traffic(2, n, sectors, sectors, sectors)},
        "out": {"store": traffic(2, n, sectors, sectors, sectors)},
    }
    assert {place.bytes for place in counts.places} == {lane_bytes}


def test_vectors_built_on_the_spot_are_one_access() -> None:
    counts = count("quads", 1, 32, zeros(128), zeros(256))
    assert global_traffic(counts) == {
        "in": {"load": traffic(1, 512, 16, 16, 16)},
        "out": {"store": traffic(2, 1024, 32, 32, 32)},
    }


def test_the_kernels_own_wrapper_is_one_access() -> None:
    """relu on 1003 floats: 250 vectors in 8 warps, the last of 26 lanes; then 3 elements one by one."""
    z, a = zeros(1003), zeros(1003)
    with counting() as launches:
        activation.forward(z, "relu", out=a)
    assert global_traffic(launches[0]) == {
        "z": {"load": traffic(9, 4012, 125 + 1, 125 + 1, 126)},
        "a": {"store": traffic(9, 4012, 125 + 1, 125 + 1, 126)},
    }


def test_three_floats_are_three_accesses() -> None:
    """Lane i's words lie 12 bytes apart: each of the three requests touches all 12 sectors."""
    counts = count("triples", 1, 32, zeros(96), zeros(96))
    assert global_traffic(counts)["in"] == {"load": traffic(3, 384, 36, 12, 12)}
    assert global_traffic(counts)["out"] == {"store": traffic(3, 384, 36, 12, 12)}


def test_a_sum_in_place_is_a_load_and_a_store() -> None:
    counts = count("accumulate", 1, 32, zeros(32), zeros(32))
    assert global_traffic(counts)["out"] == {
        "load": traffic(1, 128, 4, 4, 4),
        "store": traffic(1, 128, 4, 4, 4),
    }


def test_requests_begin_anew_where_the_lanes_meet() -> None:
    """Rows of 37: 32 lanes, then 5; lanes that loop once more do not run into the others' next row."""
    counts = count("rows", 1, 32, zeros(192), zeros(32), np.int32(37), np.int32(3))
    assert global_traffic(counts)["in"] == {"load": traffic(6, 444, 3 * 5, 3 * 5, 3 * 5)}
    assert counts.collectives == {"__shfl_xor_sync": 3}


def test_a_request_of_two_arrays_counts_for_each() -> None:
    """16 lanes, two elements apart: 4 sectors, of which half the bytes are asked for."""
    counts = count("two_arrays", 1, 32, zeros(32), zeros(32), zeros(32))
    half = {"load": traffic(1, 64, 4, 2, 4)}
    assert global_traffic(counts) == {"a": half, "b": half, "out": {"store": traffic(1, 128, 4, 4, 4)}}


def test_a_function_called_twice_is_two_places() -> None:
    """16 lanes in one call and 32 in the other; not 32 in a first and 16 in a second."""
    counts = count("diverged", 1, 32, zeros(128), zeros(32))
    assert global_traffic(counts)["in"] == {"load": traffic(2, 192, 2 + 4, 2 + 4, 6)}


def test_threads_that_left_and_part_of_a_warp() -> None:
    """Block of 60: lanes 24 to 31 of warp 0, and 24 to 27 of warp 1, which has 28."""
    counts = count("early", 1, 60, zeros(60), zeros(60))
    assert global_traffic(counts)["in"] == {"load": traffic(2, 48, 2, 2, 2)}


def test_lanes_of_a_block_of_two_dimensions() -> None:
    """8 x 8 threads, of which x alone counts: four rows of a warp read the same 8 floats."""
    counts = count("copy", 1, (8, 8), zeros(8), zeros(8), np.int32(8))
    assert global_traffic(counts)["in"] == {"load": traffic(2, 256, 2, 2, 1)}


def test_atomics() -> None:
    """64 threads: one address, one each, and one of the block."""
    one, each = zeros(1, "int32"), zeros(64, "int32")
    counts = count("atomics", 1, 64, one, each)
    assert (int(one[0]), int(each.sum())) == (64, 192)
    assert global_traffic(counts) == {
        "one": {"atomic": traffic(2, 256, 2, 2, 1)},
        "each": {"atomic": traffic(2, 256, 8, 8, 8)},
    }
    assert shared_traffic(counts) == {
        "store": SharedTraffic(1, 4, 1, 1),
        "atomic": SharedTraffic(2, 256, 2, 2),
    }


def test_variables_of_the_module_are_named() -> None:
    counts = count("variables", 1, 32, zeros(32))
    assert set(global_traffic(counts)) == {"out", MODULE}
    found = global_traffic(counts)[MODULE]
    assert found["load"].requested_bytes == 128
    assert found["store"].requested_bytes == 128


def test_local_arrays_are_not_counted() -> None:
    counts = count("local", 1, 32, zeros(32), np.int32(3))
    assert global_traffic(counts) == {"out": {"store": traffic(1, 128, 4, 4, 4)}}
    assert shared_traffic(counts) == {}


def test_arguments_that_overlap_are_one_buffer() -> None:
    both = zeros(64)
    counts = count("copy", 1, 32, both[:32], both[16:48], np.int32(32))
    assert counts.arrays == {"in, out": 48 * 4}
    assert global_traffic(counts) == {
        "in, out": {"load": traffic(1, 128, 4, 4, 4), "store": traffic(1, 128, 4, 4, 4)}
    }


# ---- shared memory ---------------------------------------------------------------------------------------

# Element, stride, number of elements; wavefronts and the least of one request of 32 lanes.
BANKS: Sequence[tuple[str, int, int, int, int]] = (
    ("float", 1, 32, 1, 1),
    ("float", 0, 32, 1, 1),  # one word for all
    ("float", 33, 1056, 1, 1),
    ("float", 2, 64, 2, 1),
    ("float", 8, 256, 8, 1),
    ("float", 32, 1024, 32, 1),
    ("float", 2, 32, 1, 1),  # lanes 16 apart share a word: 16 words in 16 banks
    ("unsigned char", 1, 32, 1, 1),  # four lanes share a word
    ("unsigned char", 128, 4096, 32, 1),
    ("unsigned short", 2, 64, 1, 1),
    ("double", 1, 32, 2, 2),  # half a warp takes all banks
    ("double", 0, 32, 2, 2),
    ("double", 2, 64, 4, 2),
    ("double", 16, 512, 32, 2),
    ("float2", 1, 32, 2, 2),
    ("float4", 1, 32, 4, 4),  # a quarter does
    ("float4", 0, 32, 4, 4),
    ("float4", 2, 64, 8, 4),
    ("float4", 3, 96, 4, 4),
    ("float4", 8, 256, 32, 4),
    ("double2", 2, 64, 8, 4),
)


def banks_of(element: str, stride: int, size: int) -> str:
    return f"banks<{element}, {stride}, {size}>"


@pytest.mark.parametrize(("element", "stride", "size", "wavefronts", "least"), BANKS)
def test_bank_conflicts(element: str, stride: int, size: int, wavefronts: int, least: int) -> None:
    scalar, of = {
        "float": ("float32", 1),
        "double": ("float64", 1),
        "unsigned char": ("uint8", 1),
        "unsigned short": ("uint16", 1),
        "float2": ("float32", 2),
        "float4": ("float32", 4),
        "double2": ("float64", 2),
    }[element]
    lane_bytes = np.dtype(scalar).itemsize * of
    counts = count(
        banks_of(element, stride, size), 3, 64, zeros(64 * of, scalar), shared=2 * size * lane_bytes
    )
    one = SharedTraffic(6, 6 * 32 * lane_bytes, 6 * wavefronts, 6 * least)  # of two warps in three blocks
    assert shared_traffic(counts) == {"load": one, "store": one}
    assert one.conflicts == wavefronts / least
    assert counts.barriers == 3


def test_two_words_of_one_bank() -> None:
    counts = count("two_words", 1, 32, zeros(32))
    assert shared_traffic(counts) == {
        "store": SharedTraffic(2, 256, 2, 2),
        "load": SharedTraffic(1, 128, 2, 1),
    }


def test_asynchronous_copies_are_a_load_and_a_store() -> None:
    """16 bytes a lane, of which 12 are read: as 4-byte pieces, for what a copy reads need not be 16 bytes."""
    counts = count("asynchronous", 1, 32, zeros(128), zeros(32))
    assert global_traffic(counts)["in"]["load"].requested_bytes == 32 * 12
    assert shared_traffic(counts) == {
        "store": SharedTraffic(1, 512, 4, 4),
        "load": SharedTraffic(1, 128, 1, 1),
    }


# ---- the rest --------------------------------------------------------------------------------------------


def test_barriers_and_collectives() -> None:
    counts = count("meetings", 3, 64, emulator.ones(64))
    assert counts.barriers == 3 * 2
    assert counts.collectives == {"__shfl_xor_sync": 6 * 5, "__any_sync": 6, "__syncwarp": 6}


def test_places_are_lines_of_the_source() -> None:
    lines = KNOWN.read_text().splitlines()
    for expression, words in (
        ("copy", {"load": "out[i] = in[i]", "store": "out[i] = in[i]"}),
        ("vectors<float4>", {"load": "V v = in", "store": "out[threadIdx.x] = v;"}),
    ):
        args = (zeros(128), zeros(128), np.int32(32))[: 3 if expression == "copy" else 2]
        for place in count(expression, 1, 32, *args).places:
            assert place.file == "known.cu"
            assert words[place.access] in lines[place.line - 1]


def test_results_are_those_of_a_launch_that_is_not_counted() -> None:
    given = emulator.asarray(np.random.default_rng(0).normal(size=192).astype(np.float32))
    counted, plain = zeros(32), zeros(32)
    count("rows", 1, 32, given, counted, np.int32(40), np.int32(3))
    emulator.launch(KNOWN, "rows", (1,), (32,), (given, plain, np.int32(40), np.int32(3)))
    assert np.array_equal(counted, plain)


def test_counting_ends_with_its_block() -> None:
    with counting() as launches:
        pass
    emulator.launch(KNOWN, "broadcast", (1,), (32,), (zeros(32), zeros(32)))
    assert launches == []


def test_a_launch_that_failed_leaves_nothing_to_the_next() -> None:
    with pytest.raises(emulator.EmulatorError, match="returned while"):
        count("refused", 1, 64, zeros(64))
    counts = count("broadcast", 1, 32, zeros(32), zeros(32))
    assert global_traffic(counts) == {
        "in": {"load": traffic(1, 128, 1, 1, 1)},
        "out": {"store": traffic(1, 128, 4, 4, 4)},
    }


@pytest.mark.parametrize("order", ["reverse", "lifo", "random"])
def test_counts_do_not_depend_on_the_order_of_threads(order: str) -> None:
    args = (zeros(192), zeros(32), np.int32(40), np.int32(3))
    with emulator.settings(order=order):
        other = count("rows", 1, 32, *args)
    assert other.places == count("rows", 1, 32, *args).places


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="no compiler from PyPI here")
def test_with_the_compiler_from_pypi() -> None:
    environment = {**os.environ, "HANDGRAD_CXX": f"{sys.executable} -m ziglang c++"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    said = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout[-3000:]
