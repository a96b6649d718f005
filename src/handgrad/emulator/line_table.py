"""The source lines of a library's instructions, from its DWARF 4 line table (what ``addr2line`` prints)."""

from __future__ import annotations

import bisect
import functools
import struct
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

Row = tuple[int, str, int]  # address, file, line: good up to the next row's address

_COPY, _ADVANCE_PC, _ADVANCE_LINE, _SET_FILE = 1, 2, 3, 4
_CONST_ADD_PC, _FIXED_ADVANCE_PC = 8, 9
_END_SEQUENCE, _SET_ADDRESS = 1, 2


def source_lines(
    library: Path, addresses: Iterable[int], inlined: Collection[str] = ()
) -> dict[int, tuple[str, int]]:
    """File name and line of each address of ``library`` that its line table knows.

    For what was inlined from the files ``inlined`` it is the line before, which computed the arguments.
    """
    rows = _rows(library)
    starts = [row[0] for row in rows]
    found = {}
    for address in addresses:
        place = bisect.bisect_right(starts, address) - 1
        while place >= 0 and _is_none(rows[place], inlined):
            place -= 1
        if place >= 0 and rows[place][2]:
            found[address] = rows[place][1:]
    return found


def _is_none(row: Row, inlined: Collection[str]) -> bool:
    """Whether a row is of the compiler's own instructions (line 0), or of one of the files ``inlined``."""
    return row[1] in inlined or (row[2] == 0 and row[1] != "")


@functools.lru_cache(maxsize=256)
def _rows(library: Path) -> list[Row]:
    """Every row of the line table in order of address; line 0 ends a sequence."""
    data = _section(library.read_bytes(), b".debug_line")
    rows: list[Row] = []
    place = 0
    while place + 4 <= len(data):
        (length,) = struct.unpack_from("<I", data, place)
        if length == 0xFFFFFFFF:  # 64-bit DWARF, which no compiler writes for so little
            break
        rows += _unit(data[place + 4 : place + 4 + length])
        place += 4 + length
    # an end of one sequence and the begin of the next at the same address: the begin counts
    return sorted(rows, key=lambda row: (row[0], row[2] != 0))


def _section(elf: bytes, wanted: bytes) -> bytes:
    """The contents of a section of a 64-bit little-endian ELF file; empty where there is none."""
    if elf[:6] != b"\x7fELF\x02\x01":
        return b""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    strings = headers[names][4]
    for name, _, _, _, offset, length in headers:
        start = strings + name
        if elf[start : elf.index(b"\0", start)] == wanted:
            return elf[offset : offset + length]
    return b""


class _Reader:
    def __init__(self, data: bytes, place: int = 0) -> None:
        self.data, self.place = data, place

    def take(self, form: str) -> int:
        value: int = struct.unpack_from("<" + form, self.data, self.place)[0]
        self.place += struct.calcsize("<" + form)
        return value

    def string(self) -> str:
        end = self.data.index(b"\0", self.place)
        text = self.data[self.place : end].decode(errors="replace")
        self.place = end + 1
        return text

    def unsigned(self) -> int:
        return self._leb()[0]

    def signed(self) -> int:
        value, bits, last = self._leb()
        return value - (1 << bits) if last & 0x40 else value

    def _leb(self) -> tuple[int, int, int]:
        value = bits = 0
        while True:
            byte = self.data[self.place]
            self.place += 1
            value |= (byte & 0x7F) << bits
            bits += 7
            if byte < 0x80:
                return value, bits, byte


def _unit(data: bytes) -> Iterator[Row]:
    """The rows of one line number program (DWARF 4, section 6.2)."""
    reader = _Reader(data)
    if reader.take("H") not in (2, 3, 4):
        return
    version = struct.unpack_from("<H", data)[0]
    header_length = reader.take("I")
    program = reader.place + header_length
    least = reader.take("B")
    if version >= 4:
        reader.take("B")  # operations an instruction, of VLIW machines
    reader.take("B")  # whether a row begins a statement
    line_base, line_range, opcode_base = reader.take("b"), reader.take("B"), reader.take("B")
    operands = [reader.take("B") for _ in range(opcode_base - 1)]
    while reader.string():  # folders
        pass
    files = [""]
    while name := reader.string():
        files.append(Path(name).name)
        for _ in range(3):  # folder, time, length
            reader.unsigned()
    reader.place = program
    address, file, line = 0, 1, 1
    while reader.place < len(data):
        opcode = reader.take("B")
        if opcode >= opcode_base:
            step, offset = divmod(opcode - opcode_base, line_range)
            address += step * least
            line += line_base + offset
            yield address, _name(files, file), line
        elif opcode == 0:
            length = reader.unsigned()
            end = reader.place + length
            extended = reader.take("B")
            if extended == _END_SEQUENCE:
                yield address, "", 0
                address, file, line = 0, 1, 1
            elif extended == _SET_ADDRESS:
                address = reader.take("Q")
            reader.place = end
        elif opcode == _COPY:
            yield address, _name(files, file), line
        elif opcode == _ADVANCE_PC:
            address += reader.unsigned() * least
        elif opcode == _ADVANCE_LINE:
            line += reader.signed()
        elif opcode == _SET_FILE:
            file = reader.unsigned()
        elif opcode == _CONST_ADD_PC:
            address += (255 - opcode_base) // line_range * least
        elif opcode == _FIXED_ADVANCE_PC:
            address += reader.take("H")
        else:
            for _ in range(operands[opcode - 1]):
                reader.unsigned()


def _name(files: list[str], number: int) -> str:
    return files[number] if number < len(files) else ""
