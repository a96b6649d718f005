"""What the machine code of a kernel holds: instructions counted, and its main loop found.

nvdisasm, pinned by the extra ``machine-code``, writes a cubin's instructions as JSON.  The control flow is
read off the branch targets: basic blocks, dominators, natural loops (Aho et al., *Compilers*, 9.6).  Opcodes:
`CUDA binary utilities
<https://docs.nvidia.com/cuda/cuda-binary-utilities/index.html#instruction-set-reference>`_.

Compiled for sm_75 and later, where an instruction takes 16 bytes.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from handgrad.proof import machine_code

INSTRUCTION_BYTES = 16


class DisassemblerMissing(RuntimeError):
    """nvdisasm is not installed; the message names the remedy."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: ``@!P0 LDS.128 R4, [R8]`` has predicate "@!P0", opcode "LDS.128"."""

    address: int
    opcode: str
    operands: str = ""
    predicate: str = ""

    @functools.cached_property
    def root(self) -> str:
        """The opcode without its modifiers, as "LDS"."""
        return self.opcode.partition(".")[0]

    @functools.cached_property
    def modifiers(self) -> frozenset[str]:
        """What follows the root, as {"128"}."""
        return frozenset(self.opcode.split(".")[1:])


Code = tuple[Instruction, ...]


@dataclass(frozen=True)
class MainLoop:
    """The innermost loop with the most multiply-adds, and what every turn of it executes.

    ``fma`` and ``shared_words`` count what no branch and no predicate skips: multiply-adds, and the elements
    of their type that shared loads bring (float32: LDS 1, LDS.64 2, LDS.128 4).  ``shared_words_sometimes``
    is what some turns load on top.
    """

    fma: int
    shared_words: int
    shared_words_sometimes: int

    @property
    def fma_per_shared_word(self) -> float | None:
        """fma / shared_words; None where nothing is loaded."""
        return self.fma / self.shared_words if self.shared_words else None


@dataclass(frozen=True)
class Counts:
    """Instructions of one kernel, as they stand in the code: an unrolled loop counts as often as unrolled.

    ``ffma`` counts float32 multiply-adds (an FFMA2 does two), ``dfma`` float64 ones, ``hmma`` tensor-core
    products.  ``float_atomics`` are those of ``atomics`` that combine floats, a compare-and-swap in a loop
    around float arithmetic among them.
    """

    instructions: int
    ffma: int
    dfma: int
    hmma: int
    local_loads: int
    local_stores: int
    global_loads_128: int
    shared_loads_128: int
    barriers: int
    atomics: int
    float_atomics: int
    main_loop: MainLoop | None


# ---- reading ---------------------------------------------------------------------------------------------


def disassemble(cubin: bytes) -> dict[str, Code]:
    """The instructions of each kernel by mangled name, those of its subroutines after its own.

    Raises :class:`DisassemblerMissing` without nvdisasm, ``RuntimeError`` with its message where it fails.
    """
    with tempfile.TemporaryDirectory(prefix="handgrad-cubin-") as folder:
        image = Path(folder) / "kernels.cubin"
        image.write_bytes(cubin)
        command = [str(nvdisasm()), "--print-code", "--emit-json", str(image)]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"nvdisasm: {(result.stderr.strip().splitlines() or ['no message'])[0]}")
    return parse(result.stdout)


@functools.cache
def nvdisasm() -> Path:
    """The disassembler of the installed wheels."""
    folder = machine_code.wheel_folder()
    for name in ("nvdisasm", "nvdisasm.exe"):
        if folder and (folder / "bin" / name).is_file():
            return folder / "bin" / name
    raise DisassemblerMissing("nvdisasm is not installed; pip install 'handgrad[machine-code]'")


def parse(text: str) -> dict[str, Code]:
    """:func:`disassemble`'s answer out of the JSON of nvdisasm.

    A kernel begins at address 0 of its section; the functions after it that do not are its subroutines.
    """
    kernels: dict[str, list[Instruction]] = {}
    name = ""
    for function in json.loads(text)[1]:
        if function["start"] == 0:
            name = function["function-name"]
        kernels.setdefault(name, []).extend(
            Instruction(
                function["start"] + INSTRUCTION_BYTES * i,
                entry["opcode"],
                entry.get("operands", ""),
                entry.get("predicate", ""),
            )
            for i, entry in enumerate(function["sass-instructions"])
        )
    return {name: tuple(code) for name, code in kernels.items()}


# ---- control flow ----------------------------------------------------------------------------------------

BRANCHES = ("BRA", "JMP")
ENDS = ("EXIT", "RET", "BRX", "JMX", "KILL")  # nothing follows them that is known


@dataclass(frozen=True)
class Loop:
    """A natural loop: all of its code, and the part that every turn passes."""

    code: Code
    every_turn: Code


def loops(code: Code) -> list[Loop]:
    """The natural loops of ``code``; those that share a header count as one."""
    starts = _block_starts(code)
    blocks = [code[i:j] for i, j in zip(starts, [*starts[1:], len(code)], strict=True)]
    successors = _successors(blocks)
    predecessors: list[list[int]] = [[] for _ in blocks]
    for block, following in enumerate(successors):
        for successor in following:
            predecessors[successor].append(block)
    dominators = _dominators(predecessors)
    latches: dict[int, list[int]] = {}
    for block, following in enumerate(successors):
        for successor in following:
            if successor in dominators[block]:
                latches.setdefault(successor, []).append(block)
    found = []
    for header, ends in latches.items():
        body = {header}
        waiting = list(ends)
        while waiting:
            block = waiting.pop()
            if block not in body:
                body.add(block)
                waiting += predecessors[block]
        always = body.intersection(*(dominators[end] for end in ends))
        found.append(Loop(_joined(blocks, body), _joined(blocks, always)))
    return found


def _block_starts(code: Code) -> list[int]:
    place = {instruction.address: i for i, instruction in enumerate(code)}
    starts = {0}
    for i, instruction in enumerate(code):
        target = _target(instruction)
        if target in place:
            starts.add(place[target])
        if target is not None or instruction.root in ENDS:
            starts.add(i + 1)
    return sorted(start for start in starts if start < len(code))


def _successors(blocks: Sequence[Code]) -> list[list[int]]:
    place = {block[0].address: i for i, block in enumerate(blocks)}
    found: list[list[int]] = []
    for i, block in enumerate(blocks):
        last = block[-1]
        target = _target(last)
        following = [place[target]] if target is not None and target in place else []
        leaves = last.root in ENDS or (target is not None and "," not in last.operands)  # else as BRA.U UP0
        if i + 1 < len(blocks) and not (leaves and not last.predicate):
            following.append(i + 1)
        found.append(following)
    return found


def _target(instruction: Instruction) -> int | None:
    """Where a branch goes, of those that name it."""
    if instruction.root not in BRANCHES:
        return None
    found = re.search(r"0x[0-9a-f]+$", instruction.operands)
    return int(found[0], 16) if found else None


def _dominators(predecessors: Sequence[Sequence[int]]) -> list[set[int]]:
    """For each block those that every way to it passes; blocks that nothing leads to are entries."""
    everything = set(range(len(predecessors)))
    found = [
        {block} if block == 0 or not before else set(everything) for block, before in enumerate(predecessors)
    ]
    changed = True
    while changed:
        changed = False
        for block, before in enumerate(predecessors):
            if block == 0 or not before:
                continue
            passed = set.intersection(*(found[one] for one in before)) | {block}
            if passed != found[block]:
                found[block], changed = passed, True
    return found


def _joined(blocks: Sequence[Code], chosen: Iterable[int]) -> Code:
    return tuple(instruction for block in sorted(chosen) for instruction in blocks[block])


# ---- counting --------------------------------------------------------------------------------------------

TENSOR = ("HMMA", "HGMMA", "UTCHMMA")
ATOMICS = re.compile(r"ATOM(G|S|AS)?|RED(G|S|AS)?|SUATOM|SURED|UBLKRED|UTMARED[G]?")
FLOAT_TYPE = re.compile(r"B?F(16|32|64)(x\d)?.*", re.IGNORECASE)
FLOAT_ARITHMETIC = re.compile(r"[DFH](ADD|MUL|FMA|MNMX)\d?")


def count(code: Code) -> Counts:
    """The counts of one kernel."""
    found = loops(code)
    swaps = _float_swaps(code, found)
    atomics = [one for one in code if ATOMICS.fullmatch(one.root)]
    return Counts(
        instructions=sum(one.root != "NOP" for one in code),
        ffma=sum(map(_ffma, code)),
        dfma=_number(code, "DFMA"),
        hmma=_number(code, *TENSOR),
        local_loads=_number(code, "LDL"),
        local_stores=_number(code, "STL"),
        global_loads_128=_number([one for one in code if "128" in one.modifiers], "LDG", "LD", "LDGSTS"),
        shared_loads_128=_number([one for one in code if "128" in one.modifiers], "LDS"),
        barriers=_number(code, "BAR"),
        atomics=len(atomics),
        float_atomics=sum(
            any(map(FLOAT_TYPE.fullmatch, one.modifiers)) or one.address in swaps for one in atomics
        ),
        main_loop=_main_loop(found),
    )


def _number(code: Iterable[Instruction], *roots: str) -> int:
    return sum(one.root in roots for one in code)


def _ffma(instruction: Instruction) -> int:
    return {"FFMA": 1, "FFMA32I": 1, "FFMA2": 2}.get(instruction.root, 0)


def _float_swaps(code: Code, found: Sequence[Loop]) -> set[int]:
    """Addresses of the compare-and-swaps that retry float arithmetic.

    It stands in the loop around the swap, or in the second one: a value of 16 bits is swapped within a word
    of 32, in a loop of its own.
    """
    swaps = set()
    for one in code:
        if one.root.startswith("ATOM") and not one.modifiers.isdisjoint(("CAS", "CAST")):
            around = sorted((loop.code for loop in found if one in loop.code), key=len)[:2]
            if any(map(_computes_with_floats, (other for inside in around for other in inside))):
                swaps.add(one.address)
    return swaps


def _computes_with_floats(instruction: Instruction) -> bool:
    moves = instruction.root == "HFMA2" and "RZ,RZ" in instruction.operands.replace(
        "-", ""
    )  # 0 x 0 + constant
    return bool(FLOAT_ARITHMETIC.fullmatch(instruction.root)) and not moves


def _main_loop(found: Sequence[Loop]) -> MainLoop | None:
    busy = [loop for loop in found if _multiply_adds(loop.code)]
    innermost = [
        loop
        for loop in busy
        if not any(other is not loop and set(other.code) < set(loop.code) for other in busy)
    ]
    chosen = max(innermost, key=lambda loop: _multiply_adds(loop.code), default=None)
    if chosen is None:
        return None
    itemsize = 8 if _number(chosen.code, "DFMA") > sum(map(_ffma, chosen.code)) else 4
    always = [one for one in chosen.every_turn if not one.predicate]
    words = _shared_words(always, itemsize)
    return MainLoop(_multiply_adds(always), words, _shared_words(chosen.code, itemsize) - words)


def _multiply_adds(code: Iterable[Instruction]) -> int:
    return sum(_ffma(one) + (one.root == "DFMA") for one in code)


def _shared_words(code: Iterable[Instruction], itemsize: int) -> int:
    total = 0
    for one in code:
        if one.root == "LDS":
            loaded = 16 if "128" in one.modifiers else 8 if "64" in one.modifiers else 4
            total += max(1, loaded // itemsize)
    return total
