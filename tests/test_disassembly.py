"""Loops in disassembled code, on code written by hand: what every turn passes, which loop counts."""

from __future__ import annotations

import json

from handgrad.proof import disassembly
from handgrad.proof.disassembly import Instruction, MainLoop, count, loops


def code(*lines: str) -> disassembly.Code:
    """Instructions as nvdisasm writes them, one every 16 bytes: "@!P0 BRA 0x20"."""
    made = []
    for i, line in enumerate(lines):
        words = line.split()
        predicate = words.pop(0) if words[0].startswith("@") else ""
        made.append(Instruction(16 * i, words[0], "".join(words[1:]), predicate))
    return tuple(made)


def addresses(part: disassembly.Code) -> list[int]:
    return [one.address // 16 for one in part]


def test_a_loop_and_what_every_turn_of_it_passes():
    lines = code(
        "MOV R0,RZ",
        "LDS.128 R4,[R0]",  # the loop begins
        "@P0 BRA 0x40",
        "LDS R9,[R0]",  # skipped by some
        "FFMA R1,R4,R5,R1",
        "@P1 LDS.64 R6,[R0]",  # a predicate skips it
        "@!P2 BRA 0x10",
        "EXIT",
    )
    (loop,) = loops(lines)
    assert addresses(loop.code) == [1, 2, 3, 4, 5, 6]
    assert addresses(loop.every_turn) == [1, 2, 4, 5, 6]
    assert count(lines).main_loop == MainLoop(fma=1, shared_words=4, shared_words_sometimes=3)


def test_neither_side_of_a_fork_is_passed_by_every_turn():
    lines = code(
        "@P0 BRA 0x30",  # the loop begins
        "LDS R1,[R0]",
        "BRA 0x40",
        "LDS R1,[R0]",
        "FFMA R1,R1,R1,R1",
        "@P1 BRA 0x0",
        "EXIT",
    )
    (loop,) = loops(lines)
    assert addresses(loop.every_turn) == [0, 4, 5]
    assert count(lines).main_loop == MainLoop(fma=1, shared_words=0, shared_words_sometimes=2)


def test_the_innermost_loop_counts():
    lines = code(
        "FFMA R1,R1,R1,R1",  # the outer loop begins
        "FFMA R1,R1,R1,R1",
        "FFMA R1,R1,R1,R1",  # the inner one
        "LDS R2,[R3]",
        "BRA.U UP0,0x20",
        "LDS R2,[R3]",
        "@P0 BRA 0x0",
        "EXIT",
    )
    inner, outer = sorted(loops(lines), key=lambda loop: len(loop.code))
    assert addresses(inner.code) == [2, 3, 4]
    assert addresses(outer.code) == [0, 1, 2, 3, 4, 5, 6]
    assert count(lines).main_loop == MainLoop(1, 1, 0)


def test_of_two_loops_the_busier_one_counts():
    lines = code(
        "FFMA R1,R1,R1,R1", "@P0 BRA 0x0",
        "FFMA R1,R1,R1,R1", "FFMA2 R2,R2,R2,R2", "LDS.U.128 R4,[R3]", "@P1 BRA 0x20",
        "EXIT",
    )  # fmt: skip
    assert count(lines).main_loop == MainLoop(fma=3, shared_words=4, shared_words_sometimes=0)


def test_float64_elements_are_eight_bytes():
    lines = code("DFMA R2,R2,R2,R2", "LDS.128 R4,[R0]", "LDS.64 R8,[R0]", "@P0 BRA 0x0", "EXIT")
    assert count(lines).main_loop == MainLoop(fma=1, shared_words=3, shared_words_sometimes=0)


def test_no_loop_without_a_branch_back():
    lines = code("@P0 BRA 0x30", "FFMA R1,R1,R1,R1", "EXIT", "FFMA R1,R1,R1,R1", "EXIT", "BRA 0x50")
    assert [addresses(loop.code) for loop in loops(lines)] == [[5]]  # the trap behind the end
    assert count(lines).main_loop is None
    assert count(lines).ffma == 2


def test_a_jump_into_the_middle_is_no_natural_loop():
    """The branch back goes to a place that not every way there passes."""
    lines = code("@P0 BRA 0x20", "NOP", "FFMA R1,R1,R1,R1", "@P1 BRA 0x10", "EXIT")
    assert [addresses(loop.code) for loop in loops(lines)] == []


def test_nothing_follows_a_return():
    """What stands behind it belongs to the subroutine's caller, or to nobody."""
    lines = code("FFMA R1,R1,R1,R1", "RET.REL.NODEC R8,f", "FFMA R1,R1,R1,R1", "BRA 0x0")
    assert addresses(loops(lines)[0].every_turn if loops(lines) else ()) == []


def test_the_json_of_nvdisasm():
    functions = [
        {"function-name": "f", "start": 0, "sass-instructions": [{"opcode": "NOP"}, {"opcode": "CALL.REL"}]},
        {
            "function-name": "$slow_path",
            "start": 64,
            "sass-instructions": [{"predicate": "@P0", "opcode": "DFMA.RZ", "operands": "R2,R4,R6,R8"}],
        },
        {"function-name": "g", "start": 0, "sass-instructions": [{"opcode": "EXIT"}]},
    ]
    found = disassembly.parse(json.dumps([{"ELF": {}}, functions]))
    assert list(found) == ["f", "g"]
    assert found["f"][2] == Instruction(64, "DFMA.RZ", "R2,R4,R6,R8", "@P0")
    assert found["f"][2].root == "DFMA"
    assert found["f"][2].modifiers == {"RZ"}
    assert [one.address for one in found["f"]] == [0, 16, 64]
    assert count(found["f"]).dfma == 1
