"""What is read off a kernel's text, because C++ compilation drops it: launch bounds and parameter names."""

from __future__ import annotations

import re
from pathlib import Path

from handgrad.emulator.errors import EmulatorError

_COMMENT_OR_STRING = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)
_DYNAMIC_SHARED = re.compile(
    r"\bextern\s+__shared__\s+(?:(?:__align__|alignas)\s*\([^()]*\)\s*)?"
    r"([\w:<>, ]*[\w>])\s+(\w+)\s*\[\s*\]\s*;"
)
_BOUNDS = re.compile(r"\s*(?:void\s+)?__launch_bounds__\s*\(")
_NAME = re.compile(r"\s*(?:void\s+)?(\w+)\s*\(")
_SIMPLE_EXPRESSION = re.compile(r"\s*(\w+)\s*(<.*>)?\s*", re.DOTALL)


def read_source(path: Path) -> str:
    """The text of a kernel source or header; ``EmulatorError`` names the line that is no UTF-8."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        remedy = "save the file as UTF-8, as `iconv -f latin1 -t utf-8` does where it is Latin-1"
        got = f"the byte 0x{data[error.start]:02x}"
        raise EmulatorError(f"{path.name}:{line}: expected UTF-8, got {got}; {remedy}") from None


def without_comments(text: str) -> str:
    """``text`` with comments blanked; strings stay."""
    return _COMMENT_OR_STRING.sub(lambda found: " " if found[0][0] == "/" else found[0], text)


def with_dynamic_shared(text: str) -> str:
    """``text`` with ``extern __shared__ T name[];`` in functions as the emulator has it: ``T* name = ...``.

    The lines stay where they are.  Declarations outside of functions stay as they are, too.
    """
    blanked = _COMMENT_OR_STRING.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    parts, end = [], 0
    for found in _DYNAMIC_SHARED.finditer(blanked):
        before = blanked[: found.start()]
        if before.count("{") <= before.count("}"):
            continue
        parts += [text[end : found.start()], f"DYN_SHARED({found[1]}, {found[2]});"]
        parts.append("\n" * found[0].count("\n"))
        end = found.end()
    return "".join([*parts, text[end:]])


def launch_bound(text: str, expression: str) -> tuple[str, str]:
    """C++ for the threads a block that ``__launch_bounds__`` allows: a declaration, and an expression of it.

    The bound may depend on template parameters, so the declaration is a variable template with the kernel's
    own parameter list, copied from its source.  ``("", "0")`` where the kernel has no bound, or is written
    in a way that is not recognised here.
    """
    simple = _SIMPLE_EXPRESSION.fullmatch(expression)
    if not simple:
        return "", "0"
    name, arguments = simple[1], simple[2] or ""
    text = without_comments(text)
    for start, bounds, found, _ in _kernels(text):
        if found != name or not bounds:
            continue
        parameters = _template_parameters(text[:start])
        if bool(parameters) != bool(arguments):
            break
        template = f"template {parameters} " if parameters else ""
        variable = f"emulated_launch_bound_of_{name}"
        return f"{template}inline constexpr int {variable} = {_split(bounds)[0]};", f"{variable}{arguments}"
    return "", "0"


def parameter_names(text: str, expression: str) -> list[str]:
    """The names of a kernel's parameters, in order; empty where its declaration is not recognised."""
    simple = _SIMPLE_EXPRESSION.fullmatch(expression)
    for _, _, found, parameters in _kernels(without_comments(text)):
        if simple and found == simple[1]:
            names = [re.search(r"(\w+)\s*$", one) for one in _split(parameters)]
            return [name[1] for name in names if name] if all(names) else []
    return []


def _kernels(text: str) -> list[tuple[int, str, str, str]]:
    """Place, launch bounds, name and parameter list of each ``__global__`` function."""
    kernels = []
    for found in re.finditer(r"\b__global__\b", text):
        place, bounds = found.end(), ""
        bounded = _BOUNDS.match(text, place)
        if bounded:
            bounds, place = _balanced(text, bounded.end())
        named = _NAME.match(text, place)
        if named:
            kernels.append((found.start(), bounds.strip(), named[1], _balanced(text, named.end())[0]))
    return kernels


def _template_parameters(before: str) -> str:
    """``<typename T, int BK>`` where ``before`` ends in a template head, else the empty string."""
    head = re.search(r"\btemplate\s*(<[^;{}]*>)\s*(?:static\s+|inline\s+)*$", before)
    return head[1] if head else ""


def _balanced(text: str, start: int) -> tuple[str, int]:
    """The text from ``start``, inside a parenthesis, to where that closes, and the place after it."""
    depth, place = 1, start
    while depth and place < len(text):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        place += 1
    return text[start : place - 1], place


def _split(text: str) -> list[str]:
    """``text`` split at the commas that stand in no bracket."""
    parts, depth, start = [], 0, 0
    for place, character in enumerate(text):
        depth += {"(": 1, "<": 1, "[": 1, "{": 1, ")": -1, ">": -1, "]": -1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    return [*parts, text[start:].strip()] if text.strip() else []
