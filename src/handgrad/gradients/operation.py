"""The operator of a person's line that refused its operands, and the line as it may have been meant.

The instruction that raised knows its place in the source; the node of the syntax tree there is the operator.
Nothing of the person's is evaluated: shapes are those of the message, and of the arrays that names stand for.
"""

from __future__ import annotations

import ast
import dis
import linecache
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from types import TracebackType
from typing import Any

import numpy as np

Shape = tuple[int, ...]

_SYMBOLS: dict[type[ast.AST], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Pow: "**",
    ast.MatMult: "@",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}
_PRODUCTS = {"multiply": "matmul", "mul": "matmul"}  # functions, elementwise and of matrices
_MATRIX_FUNCTIONS = ("dot", "matmul", "mm", "outer", "einsum")
_CASTS = ("astype", "float", "double", "int", "copy", "clone", "to")  # methods that keep the shape


@dataclass(frozen=True)
class Operation:
    """``left operator right``, as written; ``shapes`` are those of the operands.

    ``masked``: an operand is a mask or a derivative, so that an elementwise product is meant.  ``matmul`` is
    the line with a matrix product for this one elementwise product, ``untransposed`` the line without the one
    ``.T`` that turns an operand; "" where there is none.
    """

    operator: str
    left: str
    right: str
    shapes: tuple[Shape, Shape]
    masked: bool = False
    matmul: str = ""
    untransposed: str = ""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Operation:
        """From its fields, out of JSON."""
        first, second = (tuple(shape) for shape in values["shapes"])
        return cls(**{**values, "shapes": (first, second)})

    @property
    def elementwise_product(self) -> bool:
        """Whether it multiplies entry by entry."""
        return self.operator in ("*", "*=") or self.operator.rpartition(".")[2] in _PRODUCTS

    @property
    def matrix_product(self) -> bool:
        """Whether it is ``@`` or a function for it."""
        return self.operator in ("@", "@=") or self.operator.rpartition(".")[2] in _MATRIX_FUNCTIONS

    @property
    def fits_matmul(self) -> bool:
        """Whether the operands fit a matrix product as they stand."""
        left, right = self.shapes
        dimensions = {len(left), len(right)}
        return dimensions in ({2}, {1, 2}) and left[-1] == right[0]

    @property
    def transposed(self) -> bool:
        """Whether the operands are matrices of each other's shape transposed."""
        left, right = self.shapes
        return len(left) == 2 and left == right[::-1]

    @property
    def sizes(self) -> str:
        """``Z2 is (11, 3) and y.T is (3, 11)``."""
        return f"{self.left} is {self.shapes[0]} and {self.right} is {self.shapes[1]}"


def operation_of(trace: TracebackType, message: str) -> Operation | None:
    """The operation at which this frame raised; None where it or a shape is not known."""
    source = "".join(linecache.getlines(trace.tb_frame.f_code.co_filename, trace.tb_frame.f_globals))
    node = _node_at(trace, source)
    parts = _parts(node)
    if node is None or parts is None:
        return None
    operator, left, right = parts
    if isinstance(node, (ast.BinOp, ast.AugAssign)) and operator != _instruction(trace):
        return None  # the file has changed since it was read
    names = {**trace.tb_frame.f_globals, **trace.tb_frame.f_locals}
    known = [_shape_of(side, names) for side in (left, right)]
    told = _told(message)
    first, second = known
    if told is not None and not isinstance(
        node, ast.Call
    ):  # a function may broadcast others than it was given
        first, second = first or told[0], second or told[1]
    if first is None or second is None or told not in (None, (first, second)):
        return None
    if isinstance(node, ast.Call) and not _of_matrices(node.func) and _of_both(first, second) is not None:
        return None  # its arguments fit; what it made of them did not
    operation = Operation(
        operator,
        _text(left, source),
        _text(right, source),
        (first, second),
        _is_mask(left, names) or _is_mask(right, names),
    )
    lines = source.splitlines()
    if operation.elementwise_product:
        operation = replace(operation, matmul=_as_matmul(node, lines))
    if operation.transposed:
        turned = [_transpose(side, names) for side in (left, right)]
        one = turned[0] or turned[1]
        if one is not None and None in turned:  # of two, either may be the wrong one
            operation = replace(operation, untransposed=_without(one, lines))
    return operation


# ---- the node --------------------------------------------------------------------------------------------


def _node_at(trace: TracebackType, source: str) -> ast.AST | None:
    positions = next(islice(trace.tb_frame.f_code.co_positions(), trace.tb_lasti // 2, None), None)
    if positions is None or None in positions:
        return None
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return None
    kinds = (ast.BinOp, ast.AugAssign, ast.Compare, ast.Call)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and positions == (
            node.lineno,
            node.end_lineno,
            node.col_offset,
            node.end_col_offset,
        ):
            return node
    return None


def _instruction(trace: TracebackType) -> str:
    """The operator that the interpreter was at, ``*`` or ``*=``."""
    code = trace.tb_frame.f_code
    return next((one.argrepr for one in dis.get_instructions(code) if one.offset == trace.tb_lasti), "")


def _parts(node: ast.AST | None) -> tuple[str, ast.expr, ast.expr] | None:
    """The operator and its two operands."""
    match node:
        case ast.BinOp(left, op, right):
            return _SYMBOLS.get(type(op), "?"), left, right
        case ast.AugAssign(target, op, value):
            return _SYMBOLS.get(type(op), "?") + "=", target, value
        case ast.Compare(left, [op], [right]):
            return _SYMBOLS.get(type(op), "?"), left, right
        case ast.Call(function, [left, right], []):
            return ast.unparse(function), left, right
    return None


def _text(node: ast.expr, source: str) -> str:
    return " ".join((ast.get_source_segment(source, node) or ast.unparse(node)).split())


# ---- shapes ----------------------------------------------------------------------------------------------


def _told(message: str) -> tuple[Shape, Shape] | None:
    """The operands' shapes in NumPy's message."""
    found = re.search(r"broadcast together with shapes \(([\d, ]*)\) \(([\d, ]*)\)", message)
    if found is None:
        return None
    first, second = (tuple(int(n) for n in re.findall(r"\d+", text)) for text in found.groups())
    return first, second


def _value_of(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """What a name, a stored attribute or an entry of a dict or list stands for; None if that is not known."""
    match node:
        case ast.Name(name):
            return names.get(name)
        case ast.Attribute(owner, name):
            return getattr(_value_of(owner, names), "__dict__", {}).get(name)
        case ast.Subscript(owner, ast.Constant(key)):
            container = _value_of(owner, names)
            if type(container) is dict:
                return container.get(key)
            if (
                type(container) in (list, tuple)
                and type(key) is int
                and -len(container) <= key < len(container)
            ):
                return container[key]
    return None


def _shape_of(node: ast.expr, names: Mapping[str, Any]) -> Shape | None:
    """The shape of an expression, as far as names and operators tell."""
    value = _value_of(node, names)
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and not isinstance(value, type):
        return tuple(int(n) for n in shape)
    if isinstance(value, (int, float)):
        return ()
    match node:
        case ast.Constant(int() | float()):
            return ()
        case ast.UnaryOp(_, operand):
            return _shape_of(operand, names)
        case ast.Attribute(turned, "T"):
            inner = _shape_of(turned, names)
            return None if inner is None else inner[::-1]
        case (
            ast.Attribute(_, "size" | "ndim")
            | ast.Subscript(ast.Attribute(_, "shape"))
            | ast.Call(ast.Name("len"))
        ):
            return ()
        case ast.Call(ast.Attribute(cast, name)) if name in _CASTS:
            return _shape_of(cast, names)
        case ast.BinOp(left, ast.MatMult(), right):
            return _of_product(_shape_of(left, names), _shape_of(right, names))
        case ast.BinOp(left, _, right) | ast.Compare(left, _, [right]):
            return _of_both(_shape_of(left, names), _shape_of(right, names))
    return None


def _of_product(left: Shape | None, right: Shape | None) -> Shape | None:
    if left is None or right is None or len(left) != 2 or len(right) != 2:
        return None
    return left[0], right[1]


def _of_both(left: Shape | None, right: Shape | None) -> Shape | None:
    if left is None or right is None:
        return None
    try:
        return np.broadcast_shapes(left, right)
    except ValueError:
        return None


# ---- what the operands are -------------------------------------------------------------------------------


def _is_mask(node: ast.expr, names: Mapping[str, Any]) -> bool:
    """Whether it is an elementwise factor by its form (``Z > 0``, ``1 - A**2``) or its values (0 and 1)."""
    value = _value_of(node, names)
    if "bool" in str(getattr(value, "dtype", "")):
        return True
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "iuf" and bool(value.any() and np.isin(value, (0, 1)).all())
    match node:
        case ast.Compare():
            return True
        case ast.UnaryOp(_, inner) | ast.Attribute(inner, "T") | ast.Subscript(inner):
            return _is_mask(inner, names)
        case ast.Call(function, arguments) if not _of_matrices(function):
            owner = [function.value] if isinstance(function, ast.Attribute) else []
            return any(_is_mask(one, names) for one in (*owner, *arguments))
        case ast.BinOp(ast.Constant(), ast.Sub(), _):
            return True
        case ast.BinOp(left, ast.Mult(), right):
            sides = (left, right)
            return all(_is_mask(side, names) for side in sides) or any(
                _is_mask(other, names)
                and (isinstance(one, ast.Constant) or ast.unparse(one) in ast.unparse(other))  # A * (1 - A)
                for one, other in (sides, sides[::-1])
            )
    return False


def _transpose(node: ast.expr, names: Mapping[str, Any]) -> ast.Attribute | None:
    """The ``.T`` that gives the operand its shape: its own, or that of its only array where elementwise."""
    match node:
        case ast.Attribute(_, "T"):
            return node
        case ast.UnaryOp(_, inner):
            return _transpose(inner, names)
        case ast.Call(ast.Attribute(inner, name)) if name in _CASTS:
            return _transpose(inner, names)
        case ast.Call(function, arguments, []) if not _of_matrices(function):
            parts = arguments
        case ast.Compare(left, _, rights):
            parts = [left, *rights]
        case ast.BinOp(left, op, right) if not isinstance(op, ast.MatMult):
            parts = [left, right]
        case _:
            return None
    arrays = [one for one in parts if _shape_of(one, names) != ()]
    return _transpose(arrays[0], names) if len(arrays) == 1 else None


def _of_matrices(function: ast.expr) -> bool:
    return isinstance(function, ast.Attribute) and function.attr in _MATRIX_FUNCTIONS


# ---- the line changed ------------------------------------------------------------------------------------


def _as_matmul(node: ast.AST, lines: list[str]) -> str:
    """The line with a matrix product for the elementwise product ``node``; precedence is the same."""
    match node:
        case ast.BinOp(left, ast.Mult(), right):
            line, start = int(left.end_lineno or 0), int(left.end_col_offset or 0)
            if line == right.lineno:
                between = lines[line - 1].encode()[start : right.col_offset]
                return _spliced(lines, line, start + between.index(b"*"), 1, "@")
            return ast.unparse(ast.BinOp(left, ast.MatMult(), right))
        case ast.AugAssign(target, ast.Mult(), value):
            return f"{ast.unparse(target)} = {ast.unparse(ast.BinOp(target, ast.MatMult(), value))}"
        case ast.Call(ast.Attribute(_, name) as function, _) if name in _PRODUCTS:
            end = int(function.end_col_offset or 0)
            start = end - len(name.encode())
            return _spliced(lines, int(function.end_lineno or 0), start, end - start, _PRODUCTS[name])
    return ""


def _without(turned: ast.Attribute, lines: list[str]) -> str:
    """The line without this ``.T``; "" where it is not written as that."""
    line, end = int(turned.end_lineno or 0), int(turned.end_col_offset or 0)
    if lines[line - 1].encode()[end - 2 : end] != b".T":
        return ""
    return _spliced(lines, line, end - 2, 2, "")


def _spliced(lines: list[str], line: int, start: int, length: int, by: str) -> str:
    """The line with ``length`` bytes replaced, as the syntax tree counts in bytes."""
    text = lines[line - 1].encode()
    return (text[:start] + by.encode() + text[start + length :]).decode().strip()
