"""Damaged files, by the hundred: every reader takes one or refuses it in one line, without much memory.

`python tests/fuzz.py` searches further, guided by coverage.
"""

from __future__ import annotations

import tracemalloc

import pytest
from fuzzed_readers import MOST_MEMORY, READERS, problem
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

COUNTS = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 10**12, 2**63 - 1, 2**64 - 1)
WORDS = (
    b"1e999",
    b"nan",
    b"-1",
    b"999999999999",
    b"true",
    b"null",
    b"[]",
    b"{}",
    b'"',
    b"\0",
    b"\xff",
    b"[" * 3000,
)


@st.composite
def edits(draw):
    """A change of some bytes: where, as a part of the length, how many, and what stands there afterwards."""
    place = draw(st.floats(0, 1, exclude_max=True))
    length = draw(st.one_of(st.integers(0, 9), st.integers(0, 10_000)))
    instead = draw(
        st.one_of(
            st.binary(max_size=12),
            st.sampled_from(WORDS),
            st.builds(
                lambda count, size, order: (count % 256**size).to_bytes(size, order),
                st.sampled_from(COUNTS),
                st.sampled_from((1, 2, 4, 8)),
                st.sampled_from(("little", "big")),
            ),
        )
    )
    return place, length, instead


def damaged(content, changes):
    for place, length, instead in changes:
        start = int(place * len(content))
        content = content[:start] + instead + content[start + length :]
    return content


def check(reader, content, folder):
    tracemalloc.start()
    try:
        found = problem(reader, content, folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not found, found
    assert peak < MOST_MEMORY, f"{len(content)} bytes took {peak / 2**20:.0f} MiB of memory"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


@pytest.mark.parametrize("reader", READERS, ids=str)
def test_whole_files_are_read(reader, folder):
    for content in reader.wholes():
        (folder / reader.file).write_bytes(content)
        assert reader.read(folder / reader.file) is not None or reader.name == "checkpoint"


@pytest.mark.parametrize("reader", READERS, ids=str)
def test_truncated_at_every_place(reader, folder):
    for content in reader.wholes():
        for end in range(0, len(content), max(1, len(content) // 100)):
            found = problem(reader, content[:end], folder)
            assert not found, f"cut at {end} of {len(content)}: {found}"


@pytest.mark.parametrize("reader", READERS, ids=str)
def test_damaged_files_are_refused_in_one_line(reader, folder):
    wholes = reader.wholes()

    @settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(wholes), st.lists(edits(), min_size=1, max_size=3))
    @example(b"", [])
    def every(whole, changes):
        check(reader, damaged(whole, changes), folder)

    every()


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS, ids=str)
def test_thousands_of_damaged_files(reader, folder):
    wholes = reader.wholes()

    @settings(max_examples=1500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(wholes), st.lists(edits(), min_size=1, max_size=4))
    def every(whole, changes):
        check(reader, damaged(whole, changes), folder)

    every()
