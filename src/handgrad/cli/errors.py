"""Every failure is one line on stderr: what was expected, what came, the remedy.

Exit codes: 0 done, 1 a failed check or a failure at run time, 2 a wrong call, 130 interrupted, 141 the
reader of the output went away, 143 ended by SIGTERM.  ``--debug`` anywhere on the line shows the traceback
as well.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from handgrad.distributed import ranks

FAILED, WRONG_CALL, INTERRUPTED, PIPE_CLOSED, TERMINATED = 1, 2, 130, 141, 143

_WRONG_CALLS = (
    ValueError,  # DataError is one
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)

# datasets.load's arguments in its remedies, which are options here
_ARGUMENTS = re.compile(r"\b(target|task|classes)=[\"']?([\w-]+)[\"']?")


class CommandGroup(TyperGroup):
    """The verbs, with this module's treatment of errors around them."""

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run the command line ``args`` and leave with its exit code."""
        extra.pop("standalone_mode", None)
        tolerate_any_encoding()
        arguments, debug = take_debug(list(sys.argv[1:] if args is None else args))
        code: Any = 0
        try:
            code = super().main(arguments, prog_name, standalone_mode=False, **extra)
            sys.stdout.flush()  # a closed pipe shows here at the latest
        except SystemExit:
            raise
        except BaseException as error:
            if debug:
                traceback.print_exception(error, file=sys.stderr)
            line, code = describe(error, arguments)
            if ranks.launched()[1] > 1:
                ranks.fail(line, code)  # the other ranks would wait for this one for ever
            if code == PIPE_CLOSED:
                silence_stdout()
            elif type(error).__name__ == "NoArgsIsHelpError":
                print(line, file=sys.stderr)
            elif line:
                with contextlib.suppress(BrokenPipeError):
                    print(f"error: {line}", file=sys.stderr, flush=True)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; an interrupt or a closed pipe comes out as its exit code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("\ninterrupted" if sys.stderr.isatty() else "interrupted", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            silence_stdout()
            raise typer.Exit(PIPE_CLOSED) from None


def take_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """``arguments`` without ``--debug``, wherever it stands before a ``--``, and whether it was there."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [word for word in arguments[:end] if word != "--debug"]
    return kept + arguments[end:], len(kept) < end


def describe(error: BaseException, arguments: Sequence[str] = ()) -> tuple[str, int]:
    """``error`` as one line for the user, and the exit code; ``arguments`` are those of the call."""
    if isinstance(error, BrokenPipeError):
        return "", PIPE_CLOSED
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, typer.Abort):
        return "aborted", FAILED
    if hasattr(error, "format_message"):  # the parser's own
        return _usage_line(error, arguments), int(getattr(error, "exit_code", WRONG_CALL))
    text = one_line(str(error))
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    if type(error).__name__ == "DeviceError":
        text = f"--device: {text}"
    if any(kind.__name__ == "DataError" for kind in type(error).__mro__):
        text = _ARGUMENTS.sub(r"--\1 \2", text)
    if isinstance(error, _WRONG_CALLS) and text:
        return text, WRONG_CALL
    if isinstance(error, MemoryError):
        return f"out of memory{': ' + text if text else ''}; use a smaller --batch-size or --limit", FAILED
    if isinstance(error, (RuntimeError, OSError, ImportError)) and text:
        return text, FAILED
    return f"{type(error).__name__}: {text}; run again with --debug for the traceback", FAILED


def _usage_line(error: Any, arguments: Sequence[str]) -> str:
    if type(error).__name__ == "NoArgsIsHelpError":
        return str(error.format_message())
    text = one_line(error.format_message()).rstrip(".").replace("Value error, ", "")
    options = getattr(getattr(error, "param", None), "opts", [])
    if str(error.message).startswith("Input should be ") and options:
        expected = str(error.message).removeprefix("Input should be ").split(", unable")[0]
        kind = "a number " if expected.startswith(("greater", "less")) else ""
        text = f"{options[0]}: expected {kind}{one_line(expected)}{_got(options, arguments)}"
    context = getattr(error, "ctx", None)
    if context is None:
        return text
    return f"{text}; see `{context.command_path} --help`"


def _got(options: Sequence[str], arguments: Sequence[str]) -> str:
    """What the call says for the option of these names, as ", got …"; "" if that is not to be found."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, is_assigned, value = word.partition("=")
        if name in options:
            return f", got {value if is_assigned else following!r}"
    return ""


def one_line(text: str) -> str:
    """``text`` with every run of white space as one blank."""
    return " ".join(text.split())


def tolerate_any_encoding() -> None:
    """Print "?" for a sign that the terminal's encoding lacks ("→" in Latin-1), rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def silence_stdout() -> None:
    """Send what is still buffered for a closed pipe nowhere: the interpreter's last flush is quiet."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def wrong(option: str, expected: str, got: object, remedy: str = "") -> ValueError:
    """The exception for a wrong value of ``option``: raise it."""
    message = f"{option}: expected {expected}, got {got}"
    return ValueError(f"{message}; {remedy}" if remedy else message)
