"""Whether a mutant's machine code differs from that of the kernels as they are.

Compared for every instantiation of the catalogue, for sm_80: the instructions, the constants that they read,
and the bytes of shared memory.  Where all are equal a GPU does the same.  It takes the wheels of the extra
``machine-code``; without them the emulator's object code is compared, which is a hint and no more.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from handgrad.emulator.build import build
from handgrad.kernel import Entry
from handgrad.proof import machine_code
from handgrad.proof.cubin import sections

ARCHITECTURE = "sm_80"
UNREAD = (".nv.constant0.", ".nv.constant4")  # parameters, and addresses of what the compiler folded away
EMULATED = (".text", ".rodata", ".data")


@functools.cache
def has_nvrtc() -> bool:
    """Whether machine code can be compared at all."""
    try:
        machine_code.load_nvrtc()
    except machine_code.NvrtcMissing:
        return False
    return True


def codes(source: Path, expressions: Sequence[str]) -> dict[str, str]:
    """A digest of each instantiation's machine code; raises what :func:`machine_code.compile_for` raises."""
    options = (machine_code.PTXAS_REPORT,)
    compiled = machine_code.compile_for(source, expressions, ARCHITECTURE, options)
    resources = machine_code.resources(compiled.log)
    digests = {}
    parts = [s for s in sections(compiled.cubin, ".") if s.name.startswith((".text.", ".nv.constant"))]
    for expression, name in compiled.names.items():
        digest = hashlib.sha256(str(resources[name].shared).encode())
        for section in parts:
            if section.name.endswith(f".{name}") and not section.name.startswith(UNREAD):
                digest.update(section.data)
        digests[expression] = digest.hexdigest()[:24]
    return digests


class Original:
    """The machine code of the kernels in ``folder``; kept in ``cache`` from one process to the next."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        self._cache = cache

    def codes(self, entry: Entry, expressions: Sequence[str]) -> dict[str, str]:
        """Of these instantiations, all of ``entry``."""
        key = hashlib.sha256("\n".join([entry.op, *expressions]).encode()).hexdigest()[:16]
        kept = self._cache / f"{machine_code.load_nvrtc().version}-{key}.json"
        if not kept.exists():
            digests = codes(self.folder / entry.file, expressions)
            self._cache.mkdir(parents=True, exist_ok=True)
            unfinished = kept.with_suffix(f".{id(digests)}")
            unfinished.write_text(json.dumps(digests))
            unfinished.replace(kept)
        digests = json.loads(kept.read_text())
        return {expression: digests[expression] for expression in expressions}

    def differs(self, folder: Path, entry: Entry, expressions: Sequence[str]) -> bool:
        """Whether one of them has another machine code with the sources of ``folder``."""
        return codes(folder / entry.file, expressions) != self.codes(entry, expressions)


def emulated_differs(original: Path, changed: Path, launched: Iterable[tuple[Path, str]]) -> bool:
    """Whether the emulator's object code does; ``launched``: sources in ``changed`` with their expressions.

    The object code holds the sources' paths, so the two folders' paths have to be of one length.
    """
    assert len(str(original)) == len(str(changed)), "paths in the object code are masked in place"
    mask = b"/" * len(str(original))

    def code(folder: Path, source: Path, expression: str) -> list[bytes]:
        library = build(folder / source.name, expression).read_bytes()
        parts = [s.data for s in sections(library, ".") if s.name.startswith(EMULATED)]
        return [data.replace(str(folder).encode(), mask) for data in parts]

    return any(code(original, *each) != code(changed, *each) for each in launched)
