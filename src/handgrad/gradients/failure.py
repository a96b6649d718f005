"""An exception of the person's code, told as theirs: the line, and what it usually means."""

from __future__ import annotations

import ast
import inspect
import linecache
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any

from handgrad.gradients.operation import Operation, operation_of
from handgrad.gradients.report import Cause


@dataclass(frozen=True)
class Failure:
    """Where the person's code raised what.

    ``shapes`` are those of the arrays named on that line, ``operation`` is the one that raised, if known.
    """

    type: str
    message: str
    file: str
    line: int
    source: str
    function: str = ""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    operation: Operation | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Failure:
        """From what :meth:`to_dict` gave."""
        shapes = {name: tuple(shape) for name, shape in values.pop("shapes", {}).items()}
        operation = values.pop("operation", None)
        known = Operation.from_dict(operation) if operation else None
        return cls(**values, shapes=shapes, operation=known)

    @property
    def raised(self) -> str:
        """``KeyError: 'w1'``."""
        return f"{self.type}: {self.message}" if self.message else self.type

    @property
    def where(self) -> str:
        """``line 7 of my.py, in backward: dW1 = X @ dZ1 (X is (23, 7), dZ1 is (23, 11))``."""
        place = f"line {self.line} of {self.file}" + (f", in {self.function}" if self.function else "")
        sizes = ", ".join(f"{name} is {shape}" for name, shape in self.shapes.items())
        return f"{place}: {self.source}" + (f" ({sizes})" if sizes else "")


def failure_of(error: BaseException, file: str | None = None) -> Failure:
    """The failure as seen from the innermost frame of the person's file (else the innermost outside of
    installed libraries)."""
    frames = list(_frames(error.__traceback__))
    own = [one for one in frames if file is not None and one.tb_frame.f_code.co_filename == file]
    if not own:
        own = [one for one in frames if not _library(one.tb_frame.f_code.co_filename)] or frames
    if isinstance(error, SyntaxError) and error.filename:
        return Failure(
            "SyntaxError",
            error.msg,
            error.filename.rsplit("/", 1)[-1],
            error.lineno or 0,
            (error.text or "").strip(),
        )
    if not own:
        return Failure(type(error).__name__, str(error), "?", 0, "")
    frame, line = own[-1].tb_frame, own[-1].tb_lineno
    code = frame.f_code
    linecache.checkcache(code.co_filename)  # it may have been edited since another failure
    source = linecache.getline(code.co_filename, line).strip()
    return Failure(
        type(error).__name__,
        " ".join(str(error).split()),
        code.co_filename.rsplit("/", 1)[-1],
        line,
        source,
        "" if code.co_name == "<module>" else code.co_name,
        _shapes(source, {**frame.f_globals, **frame.f_locals}),
        operation_of(own[-1], str(error)) if isinstance(error, (ValueError, RuntimeError)) else None,
    )


def wrong_arguments(function: Callable[..., Any], error: BaseException) -> Failure | None:
    """The failure of a function that three arguments do not fit, at its ``def``; None where they fit.

    ``error`` is what the call raised.  Only one that comes from the call itself counts: a function may be
    called through another, whose signature is another.
    """
    trace = error.__traceback__
    if not isinstance(error, TypeError) or trace is None or trace.tb_next is not None:
        return None
    try:
        inspect.signature(function).bind(None, None, None)
    except TypeError:
        pass
    except ValueError:  # of C: not known
        return None
    else:
        return None
    message = "your function must take (X, y, params)"
    plain = inspect.unwrap(getattr(function, "func", function))  # func: of functools.partial
    entered = "__init__" if isinstance(plain, type) else "__call__"
    code = getattr(plain if hasattr(plain, "__code__") else getattr(plain, entered), "__code__", None)
    file, first = (code.co_filename, code.co_firstlineno) if code is not None else ("", 1)
    linecache.checkcache(file)
    lines = linecache.getlines(file)[first - 1 :]  # from its first decorator
    if not lines:
        return Failure("arguments", f"{message}; {' '.join(str(error).split())}", "?", 0, "")
    past = next((i for i, line in enumerate(lines) if not line.lstrip().startswith("@")), 0)
    return Failure("arguments", message, file.rsplit("/", 1)[-1], first + past, lines[past].strip())


def _frames(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _library(filename: str) -> bool:
    return "site-packages" in filename or "/handgrad/gradients/" in filename or filename.startswith("<frozen")


def _shapes(source: str, names: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays that the line names (``x``, ``self.x``)."""
    found: dict[str, tuple[int, ...]] = {}
    for text in dict.fromkeys(re.findall(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)?", source)):
        head, _, tail = text.partition(".")
        value = names.get(head)
        if tail and tail != "T":
            value = getattr(value, "__dict__", {}).get(tail)
        shape = getattr(value, "shape", None)
        if isinstance(shape, tuple) and shape and not isinstance(value, type):
            found[text.removesuffix(".T")] = tuple(int(n) for n in shape)
    return found


def explained(failure: Failure) -> Cause:
    """The cause, named where the exception and its line allow it."""
    for rule in (_shape_for_count, _instance_called, _matrix_product, _broadcast):
        found = rule(failure)
        if found is not None:
            id, says, correction, confidence = found
            break
    else:
        id, says, correction, confidence = "unknown", "Your code raised before there was a gradient", "", 0.99
    if failure.type in ("timeout", "exit", "arguments"):
        says = (
            f"Your code gave no gradient: it {failure.message}"
            if failure.type == "timeout"
            else failure.message
        )
        at = f", at {failure.where}" if failure.line else ""
        return Cause("unknown", (), float("nan"), 0.99, f"{says[:1].upper()}{says[1:]}{at}", "")
    explanation = f"{says}. It raised {failure.raised}, at {failure.where}"
    return Cause(id, (), float("nan"), confidence, explanation, correction)


_Named = tuple[str, str, str, float]


def _shape_for_count(failure: Failure) -> _Named | None:
    tuples = ("'tuple'", "'torch.Size'", "'Size'")
    raised = failure.type == "TypeError" and any(name in failure.message for name in tuples)
    spread = failure.type == "ValueError" and re.search(r"broadcast together.*\(2,\)", failure.message)
    if not raised and not spread:
        return None
    if not re.search(r"\.shape\b(?!\s*\[)|\.size\(\)", failure.source):
        return None
    fixed = re.sub(r"\.shape\b(?!\s*\[)", ".shape[0]", failure.source).replace(".size()", ".size(0)")
    says = "x.shape is a tuple of all sizes; the number of samples is its first number, x.shape[0]"
    return "shape-for-count", says, fixed, 0.98


def _instance_called(failure: Failure) -> _Named | None:
    if failure.type not in ("TypeError", "AttributeError"):
        return None
    patterns = (
        r"^(?P<name>[A-Z]\w*)(\.__init__)?\(\) (takes|missing|got)",
        r"'(?P<name>[A-Z]\w*)' object is not callable",
        r"unsupported operand type\(s\).*'(?P<name>[A-Z]\w*)'",
        r"'(?P<name>[A-Z]\w*)' object has no attribute",
        r"bad operand type for unary .*'(?P<name>[A-Z]\w*)'",
    )
    for pattern in patterns:
        match = re.search(pattern, failure.message)
        if not match:
            continue
        name = match["name"].split(".")[-1]
        if name in ("Tensor", "Size") or not (
            re.search(rf"\b{name}\(", failure.source) or "callable" in pattern
        ):
            continue
        says = f"{name}(…) makes a new {name} (or calls one); its value at an input is what forward returns"
        fixed = (
            re.sub(rf"\b{name}\(", "self.forward(", failure.source) if f"{name}(" in failure.source else ""
        )
        return "instance-called-as-class", says, fixed or "call its forward method", 0.97
    return None


def _matrix_product(failure: Failure) -> _Named | None:
    """Shapes that a matrix product refuses: an operand is not transposed, or they are swapped."""
    message = failure.message
    if not ("matmul" in message or "not aligned" in message or "cannot be multiplied" in message):
        return None
    pair = _refused_shapes(failure)
    if pair and pair[0] and pair[1] and pair[0][0] == pair[1][0]:
        says = f"A matrix product of {pair[0]} and {pair[1]}: both have the samples in rows, so the first"
        return "transposed", f"{says} operand must be transposed", "dW = A.T @ dZ", 0.8
    says = "The operands of a matrix product do not fit: one is not transposed, or they are swapped"
    return "transposed", says, "dW = A.T @ dZ;  dA = dZ @ W.T", 0.7


def _broadcast(failure: Failure) -> _Named | None:
    """Shapes that an elementwise operator refuses: a matrix product is meant, a transpose, or neither."""
    if not re.search(r"broadcast|must match the size of tensor", failure.message):
        return None
    done = failure.operation
    if done is None:
        return None
    if done.transposed:
        says = f"{done.sizes}, each the other's shape transposed: one has a .T too many, or one too few"
        product = done.elementwise_product and not done.masked
        return "transposed", says + ("; or @ is meant" if product else ""), done.untransposed, 0.8
    if done.elementwise_product and done.fits_matmul and not done.masked:
        says = f"An elementwise product, but {done.sizes}, which fit a matrix product: @ is meant"
        return "elementwise-for-matmul", says, done.matmul, 0.8
    return "unknown", f"The operands of {done.operator} do not fit: {done.sizes}", "", 0.99


def _refused_shapes(failure: Failure) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The two shapes of the matrix product that raised, of the message, or of the line's first product."""
    if failure.operation is not None and failure.operation.matrix_product:
        return failure.operation.shapes
    shapes = re.findall(r"\((\d+(?:, ?\d+)*,?)\)", failure.message)
    if len(shapes) >= 2:
        first, second = (tuple(int(n) for n in re.findall(r"\d+", text)) for text in shapes[:2])
        return first, second
    torch_style = re.search(r"\((\d+)x(\d+) and (\d+)x(\d+)\)", failure.message)
    if torch_style:
        a, b, c, d = (int(n) for n in torch_style.groups())
        return (a, b), (c, d)
    try:
        tree = ast.parse(failure.source)
    except SyntaxError:
        return None
    products = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.MatMult, ast.Mult))
    ]
    for node in products:
        sides = [_shape_of(side, failure.shapes) for side in (node.left, node.right)]
        if sides[0] and sides[1]:
            return sides[0], sides[1]
    return None


def _shape_of(node: ast.expr, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    if isinstance(node, ast.Attribute) and node.attr == "T":
        inner = _shape_of(node.value, shapes)
        return inner[::-1] if inner else None
    return shapes.get(ast.unparse(node))
