"""A cubin as an ELF image: the machine code of its kernels and the bounds that they were compiled for."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

CODE = ".text."  # followed by the kernel's mangled name
ATTRIBUTES = ".nv.info."

MAX_THREADS = 0x05  # EIATTR_MAX_THREADS: the three sides of __launch_bounds__, as nvdisasm prints them
SIZED_VALUE = 0x04  # the format of an attribute that is followed by as many bytes as its 16 bits say

ANY_BLOCK = 1024  # threads in the largest block there is: what a kernel without launch bounds must allow


@dataclass(frozen=True)
class Section:
    """One section of the image."""

    name: str
    data: bytes


def code_of(cubin: bytes) -> dict[str, bytes]:
    """The machine code of each kernel by mangled name, with its subroutines; constants stand elsewhere."""
    return {section.name[len(CODE) :]: section.data for section in sections(cubin, CODE)}


def launch_bounds(cubin: bytes) -> dict[str, int]:
    """The threads of the largest block that each kernel may be launched with, by mangled name."""
    bounds = dict.fromkeys(code_of(cubin), ANY_BLOCK)
    for section in sections(cubin, ATTRIBUTES):
        for attribute, value in _attributes(section.data):
            if attribute == MAX_THREADS:
                x, y, z = struct.unpack_from("<3I", value)
                bounds[section.name[len(ATTRIBUTES) :]] = x * y * z
    return bounds


def sections(cubin: bytes, prefix: str) -> Iterator[Section]:
    """The sections whose names begin with ``prefix``; ``ValueError`` where ``cubin`` is no 64-bit ELF."""
    if cubin[:5] != b"\x7fELF\x02":
        raise ValueError("cubin: expected a 64-bit ELF image")
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names_index = struct.unpack_from("<3H", cubin, 0x3A)

    def header(index: int) -> tuple[int, int, int]:
        name, _, _, _, offset, length = struct.unpack_from("<IIQQQQ", cubin, table + index * size)
        return name, offset, length

    _, names, _ = header(names_index)
    for index in range(count):
        name, offset, length = header(index)
        text = cubin[names + name : cubin.index(b"\0", names + name)].decode()
        if text.startswith(prefix):
            yield Section(text, cubin[offset : offset + length])


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(attribute, value) of an .nv.info section: one byte of format, one of attribute, 16 bits, the value."""
    at = 0
    while at + 4 <= len(data):
        form, attribute, short = struct.unpack_from("<BBH", data, at)
        at += 4
        value = data[at : at + short] if form == SIZED_VALUE else b""
        at += len(value)
        yield attribute, value
