"""The faults that the mutation run plants: single changes to the text of the kernels, found by tokens.

========== ==================================================================================================
arithmetic ``+ - * / % & | ^ << >>`` and their assignments become another one; a sign or a ``!`` is dropped
comparison ``< <= > >= == !=`` become a neighbour, or the opposite
bound      a loop begins or ends one later or earlier, or advances twice as far; ``min`` and ``max`` swap
index      ``[i]`` becomes ``[i + 1]``; ``threadIdx`` and ``blockIdx`` swap; a coordinate becomes another one
barrier    ``__syncthreads()`` and ``__syncwarp()`` go
mask       a condition is always or never true; ``&&`` and ``||`` swap; a full warp's mask loses half of it
constant   a number grows or shrinks by one; ``true`` and ``false`` swap
fence      ``__threadfence()``, waits, ``volatile`` and cache hints go: counted apart from the others
========== ==================================================================================================

Left alone: comments, the preprocessor's lines, what is compiled on one side of ``HANDGRAD_EMULATED`` alone,
assertions at compile time, lists of template parameters, alignments and launch bounds.  The length of an
array only shrinks: a longer one is no fault.  clang-format's blanks tell ``a < b`` from ``Vector<T, V>``.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

OPERATORS = ("arithmetic", "comparison", "bound", "index", "barrier", "mask", "constant", "fence")
APART = "fence"  # their effect is outside of what an emulator can show

ARITHMETIC = {
    "+": ("-",), "-": ("+",), "*": ("/", "+"), "/": ("*",), "%": ("/",),
    "+=": ("-=", "="), "-=": ("+=", "="), "*=": ("/=", "="), "/=": ("*=",), "%=": ("/=",),
    "<<": (">>",), ">>": ("<<",), "&": ("|",), "|": ("&",), "^": ("|",),
    "<<=": (">>=",), ">>=": ("<<=",), "&=": ("|=",), "|=": ("&=",), "^=": ("|=",),
}  # fmt: skip
COMPARISON = {
    "<": ("<=", ">="), "<=": ("<", ">"), ">": (">=", "<="), ">=": (">", "<"), "==": ("!=",), "!=": ("==",),
}  # fmt: skip
BARRIERS = re.compile(r"__syncthreads|__syncwarp")
FENCES = re.compile(r"__threadfence\w*|\w*_wait(_\w+)?|\w*wait_(group|all|prior)\w*|__nanosleep")
HINTED_LOADS = re.compile(r"__ld(g|ca|cg|cs|lu|cv)")
COORDINATES = {"threadIdx": "blockIdx", "blockIdx": "threadIdx"}
AXES = {"x": "y", "y": "x", "z": "x"}
FULL_MASKS = ("FULL_WARP", "0xffffffff", "0xffffffffu")

_TOKEN = re.compile(
    r"""(?P<comment>//[^\n]*|/\*.*?\*/)
      | (?P<text>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
      | (?P<number>0[xX][0-9a-fA-F]+[uUlL]*|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?[fFuUlL]*)
      | (?P<name>[A-Za-z_]\w*)
      | (?P<sign>\.\.\.|<<=|>>=|::|->|\+\+|--|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^]=|[^\s\w])""",
    re.VERBOSE | re.DOTALL,
)
_OPENING, _CLOSING = "([{", ")]}"


@dataclass(frozen=True)
class Token:
    """A piece of the source at ``start`` : ``end``; ``spaced``: blanks or line ends on both sides."""

    kind: str  # "text", "number", "name" or "sign"
    text: str
    start: int
    end: int
    spaced: bool


@dataclass(frozen=True)
class Mutant:
    """In ``file``, at ``line`` and ``column`` (both from 1), the text ``before`` becomes ``after``."""

    number: int
    file: str
    line: int
    column: int
    operator: str
    before: str
    after: str
    context: str  # the whole line, stripped
    occurrence: int = 1  # which of the lines of the file that read so, from 1

    def apply(self, source: str) -> str:
        """The mutant's source; ``ValueError`` where ``before`` is not in its place."""
        lines = source.splitlines(keepends=True)
        start = sum(len(line) for line in lines[: self.line - 1]) + self.column - 1
        if not source.startswith(self.before, start):
            raise ValueError(f"{self.file}:{self.line}:{self.column}: expected {self.before!r} there")
        return source[:start] + self.after + source[start + len(self.before) :]

    @property
    def identity(self) -> tuple[str, str, int, int, str, str, str]:
        """What stays the same where other lines are added or taken away."""
        place = (self.file, self.context, self.occurrence, self.column)
        return (*place, self.operator, self.before, self.after)

    def __str__(self) -> str:
        change = f"{one_line(self.before)!r} -> {one_line(self.after)!r}"
        return f"{self.number:>4}  {self.file}:{self.line}:{self.column}  {self.operator}: {change}"


def one_line(text: str) -> str:
    """Without line breaks or runs of blanks."""
    return " ".join(text.split())


def mutants_of(folder: Path, files: Sequence[str]) -> list[Mutant]:
    """Every mutant of ``files`` in ``folder``, numbered from 1 in the order of file, place and operator."""
    found: list[Mutant] = []
    for file in files:
        source = (folder / file).read_text(encoding="utf-8")
        starts = [0, *(match.end() for match in re.finditer("\n", source))]
        lines = [text.strip() for text in source.split("\n")]
        for operator, start, end, after in sorted(set(changes(source)), key=_order):
            line = bisect_right(starts, start)
            context = lines[line - 1]
            occurrence = lines[:line].count(context)
            column = start - starts[line - 1] + 1
            before = source[start:end]
            place = (len(found) + 1, file, line, column)
            found.append(Mutant(*place, operator, before, after, context, occurrence))
    return found


Change = tuple[str, int, int, str]  # operator, start, end, the new text


def _order(change: Change) -> tuple[int, int, int, str]:
    operator, start, end, after = change
    return start, OPERATORS.index(operator), end, after


def changes(source: str) -> Iterator[Change]:
    """Every change that an operator makes to ``source``."""
    tokens = _Tokens(source)
    for at, token in enumerate(tokens):
        if at in tokens.excluded:
            continue
        for operator in (_arithmetic, _comparison, _bound, _index, _barrier_or_fence, _mask, _constant):
            yield from operator(tokens, at, token)


# ---- tokens ----------------------------------------------------------------------------------------------


class _Tokens(Sequence[Token]):
    """The tokens of a source, its brackets matched.

    ``excluded``: positions that no operator touches; ``lengths``: brackets that hold the length of an array.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._tokens = list(_scan(source))
        self.partner: dict[int, int] = {}
        stack: list[int] = []
        for at, token in enumerate(self._tokens):
            if token.text in _OPENING and token.kind == "sign":
                stack.append(at)
            elif token.text in _CLOSING and token.kind == "sign" and stack:
                opening = stack.pop()
                self.partner[opening], self.partner[at] = at, opening
        self.excluded = set(self._excluded())
        self.lengths = {at for at in self.partner if self[at].text == "[" and self._is_declaration(at)}

    def __getitem__(self, at):  # type: ignore[no-untyped-def]
        return self._tokens[at]

    def __len__(self) -> int:
        return len(self._tokens)

    def is_at(self, at: int, *texts: str) -> bool:
        """Whether the tokens from ``at`` on read ``texts``."""
        return tuple(token.text for token in self._tokens[max(at, 0) : at + len(texts)]) == texts

    def text(self, start: int, end: int) -> str:
        """The source from token ``start`` to before token ``end``."""
        return self.source[self[start].start : self[end - 1].end] if start < end else ""

    def _excluded(self) -> Iterator[int]:
        for at, token in enumerate(self._tokens):
            if token.text in ("static_assert", "alignas", "__align__", "__launch_bounds__", "asm"):
                yield from range(at, self.partner.get(at + 1, at) + 1)
            elif token.text == "template" and self.is_at(at + 1, "<"):
                yield from range(at, self._end_of_parameters(at + 1) + 1)
            elif token.text == "operator" and token.kind == "name":
                yield from range(at, at + 3)

    def _end_of_parameters(self, at: int) -> int:
        depth = 0
        while at < len(self):
            depth += {"<": 1, ">": -1, ">>": -2}.get(self[at].text, 0)
            if depth <= 0:
                return at
            at += 1
        return at - 1

    def _is_declaration(self, at: int) -> bool:
        while at > 0 and self[at - 1].text == "]":
            at = self.partner[at - 1]
        name = self[at - 1]
        if name.text == ")":
            return True  # T (*rows)[PITCH]
        before = self[at - 2]
        is_type = before.kind == "name" and before.text not in ("return", "else")
        return name.kind == "name" and (is_type or (before.text == ">" and not before.spaced))

    def in_length(self, at: int) -> bool:
        """Whether the token belongs to the length of an array that is declared there."""
        return any(opening < at < self.partner[opening] for opening in self.lengths)

    def end_of_operand(self, at: int, also: Iterable[str] = ()) -> int:
        """Where the operand that begins at ``at`` ends: before the next of ``; , ) ] } && || ? :``."""
        ends = {";", ",", ")", "]", "}", "&&", "||", "?", ":", *also}
        while at < len(self) and self[at].text not in ends:
            at = self.partner[at] + 1 if self[at].text in _OPENING and at in self.partner else at + 1
        return at

    def is_binary(self, at: int) -> bool:
        """Whether the sign at ``at`` stands between two operands: clang-format puts blanks around it."""
        before = self[at - 1] if at else None
        ends_operand = before is not None and (
            before.kind in ("number", "text", "name") or before.text in (")", "]")
        )
        return self[at].spaced and ends_operand and before is not None and before.text not in _NO_OPERANDS


_NO_OPERANDS = ("return", "template", "operator", "case", "typename", "const")


def _scan(source: str) -> Iterator[Token]:
    """The tokens outside comments and the preprocessor's lines and conditionals on HANDGRAD_EMULATED."""
    hidden = list(_hidden(source))
    for match in _TOKEN.finditer(source):
        start, end = match.span()
        if match.lastgroup == "comment" or any(first <= start < last for first, last in hidden):
            continue
        around = source[start - 1 : start], source[end : end + 1]
        yield Token(str(match.lastgroup), match[0], start, end, all(not c or c.isspace() for c in around))


def _hidden(source: str) -> Iterator[tuple[int, int]]:
    position, conditionals = 0, []
    for line in re.findall(r"(?:[^\n]*\\\n)*[^\n]*\n?", source):
        words = re.match(r"\s*#\s*(\w+)(.*)", line, re.DOTALL)
        if words and words[1].startswith("if"):
            conditionals.append("HANDGRAD_EMULATED" in words[2])
        if words or any(conditionals):
            yield position, position + len(line)
        if words and words[1] == "endif" and conditionals:
            conditionals.pop()
        position += len(line)


# ---- operators -------------------------------------------------------------------------------------------


def _arithmetic(tokens: _Tokens, at: int, token: Token) -> Iterator[Change]:
    if token.kind != "sign":
        return
    if tokens.is_binary(at):
        for after in ARITHMETIC.get(token.text, ()):
            if after not in ("*", "+") or not tokens.in_length(at):
                yield "arithmetic", token.start, token.end, after
    elif token.text in ("-", "!") and at + 1 < len(tokens) and tokens[at + 1].start == token.end:
        yield "arithmetic", token.start, token.end, ""


def _comparison(tokens: _Tokens, at: int, token: Token) -> Iterator[Change]:
    if token.kind == "sign" and token.text in COMPARISON and tokens.is_binary(at):
        for after in COMPARISON[token.text]:
            yield "comparison", token.start, token.end, after


def _bound(tokens: _Tokens, at: int, token: Token) -> Iterator[Change]:
    if token.text in ("min", "max") and tokens.is_at(at + 1, "("):
        yield "bound", token.start, token.end, "max" if token.text == "min" else "min"
    if token.text != "for" or not tokens.is_at(at + 1, "("):
        return
    close = tokens.partner[at + 1]
    signs = [place for place in range(at + 2, close) if tokens[place].kind == "sign"]
    semicolons = [place for place in signs if tokens[place].text == ";"]
    for place in signs:
        end = tokens.end_of_operand(place + 1)
        operand = tokens.text(place + 1, end)
        if end > place + 2:
            operand = f"({operand})"
        start, stop = tokens[place + 1].start, tokens[end - 1].end
        if tokens[place].text == "=" and place < semicolons[0]:
            if tokens[place + 1].kind != "number":  # which is left to the constants
                yield "bound", start, stop, f"{operand} + 1"
        elif tokens[place].text in ("<", "<=") and tokens.is_binary(place) and place < semicolons[1]:
            yield "bound", start, stop, f"{operand} - 1"
        elif tokens[place].text in (">", ">=") and tokens.is_binary(place) and place < semicolons[1]:
            yield "bound", start, stop, f"{operand} + 1"
        elif tokens[place].text in ("+=", "-=") and place > semicolons[1]:
            yield "bound", start, stop, f"2 * {operand}"


def _index(tokens: _Tokens, at: int, token: Token) -> Iterator[Change]:
    if token.text == "[" and at not in tokens.lengths:
        start, end = at + 1, tokens.partner[at]
        if start < end:
            yield "index", tokens[start].start, tokens[end - 1].end, f"{tokens.text(start, end)} + 1"
    if token.text in COORDINATES and tokens.is_at(at + 1, "."):
        yield "index", token.start, token.end, COORDINATES[token.text]
        axis = tokens[at + 2]
        yield "index", axis.start, axis.end, AXES[axis.text]


def _barrier_or_fence(tokens: _Tokens, at: int, token: Token) -> Iterator[Change]:
    if token.kind != "name":
        return
    if token.text == "volatile":
        yield APART, token.start, token.end, ""
    elif HINTED_LOADS.fullmatch(token.text) and tokens.is_at(at + 1, "("):
        yield APART, token.start, token.end, "*"
    elif tokens.is_at(at + 1, "(") and tokens.is_at(tokens.partner[at + 1] + 1, ";"):
        end = tokens[tokens.partner[at + 1]].end
        if BARRIERS.fullmatch(token.text):
            yield "barrier", token.start, end, ""
        elif FENCES.fullmatch(token.text):
            yield APART, token.start, end, ""


def _mask(tokens: _Tokens, at: int, token: Token) -> Iterator[Change]:
    if token.text in ("&&", "||") and tokens.is_binary(at):
        yield "mask", token.start, token.end, "||" if token.text == "&&" else "&&"
    if token.text == "if":
        opening = at + 1 + tokens.is_at(at + 1, "constexpr")
        if tokens.is_at(opening, "("):
            start, end = tokens[opening].start, tokens[tokens.partner[opening]].end
            yield "mask", start, end, "(true)"
            yield "mask", start, end, "(false)"
    if token.text in FULL_MASKS and tokens.is_at(at - 1, "("):
        yield "mask", token.start, token.end, f"({token.text} >> 16)"


def _constant(tokens: _Tokens, at: int, token: Token) -> Iterator[Change]:
    if token.text in ("true", "false"):
        yield "constant", token.start, token.end, "false" if token.text == "true" else "true"
    if token.kind != "number":
        return
    for after in _neighbours(token.text):
        if after == _shrunk(token.text) or not tokens.in_length(at):
            yield "constant", token.start, token.end, after


def _neighbours(text: str) -> tuple[str, ...]:
    """One more and, above zero, one less; a real number by its leading digits: 1e-6 becomes 2e-6."""
    return tuple(dict.fromkeys(after for after in (_moved(text, 1), _shrunk(text)) if after != text))


def _shrunk(text: str) -> str:
    return _moved(text, -1)


def _moved(text: str, step: int) -> str:
    if text[:2] in ("0x", "0X"):
        digits = text[2:].rstrip("uUlL")
        value = (int(digits, 16) + step) % (16 ** len(digits))
        return f"{text[:2]}{value:0{len(digits)}x}{text[2 + len(digits) :]}"
    match = re.match(r"\d+", text)
    if match is None or int(match[0]) + step < 0:
        return text
    return f"{int(match[0]) + step}{text[match.end() :]}"
