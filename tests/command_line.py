"""Running ``handgrad`` in the tests: inside this process, and as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from handgrad.cli import app


def handgrad(*arguments: Any) -> Result:
    """The command in this process; ``.exit_code``, ``.stdout``, ``.stderr``."""
    return CliRunner().invoke(app, [str(word) for word in arguments], prog_name="handgrad")


def succeeds(*arguments: Any) -> str:
    """What the command prints on stdout; it must succeed."""
    result = handgrad(*arguments)
    assert result.exit_code == 0, result.stderr
    return str(result.stdout)


def report(*arguments: Any) -> dict[str, Any]:
    """The JSON object of a command that succeeds."""
    found: dict[str, Any] = json.loads(succeeds(*arguments, "--json"))
    return found


def refused(*arguments: Any, code: int = 2) -> str:
    """The one line on stderr of a command that fails with ``code``; nothing stands on stdout."""
    result = handgrad(*arguments)
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr)
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("handgrad: device ")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in result.stderr
    return str(lines[0])


def process(*arguments: Any, cwd: Path, **options: Any) -> subprocess.Popen[str]:
    """``handgrad`` started as a process, its output in pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "handgrad.cli", *map(str, arguments)],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **({"text": True} | options),
    )
