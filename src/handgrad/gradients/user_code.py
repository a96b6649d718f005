"""Running a person's file in a process of its own, with a time limit."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.gradients.failure import Failure
from handgrad.gradients.function import Called

Floats = NDArray[Any]
GRACE = 20.0  # seconds beyond the limit for the process to start, and to say where it stands
LONGEST = 1e6  # seconds: more than the timers take on some systems (2³² ms) would be refused by them
KEPT_OUTPUT = 8192  # characters of what the file printed, from its end


@dataclass
class Ran:
    """What the file's process gave back.

    ``problem`` is a wrong call: the file lacks what it must have.  ``called.failure`` is an exception of the
    file, a time-out or a crash.  ``settings`` holds activation, output, loss, reduction, layout, lr,
    weight_decay, None where they were not set; parameters are (in, out).  ``float_y`` says that y was drawn
    as floats, since the file sets neither y nor a loss.
    """

    called: Called
    settings: dict[str, Any] = field(default_factory=dict)
    X: Floats | None = None
    y: Floats | None = None
    parameters: dict[str, Floats] = field(default_factory=dict)
    float_y: bool = False
    unit: float = 0.0
    torch: bool = False
    output: str = ""
    problem: str = ""


def run_file(path: Path, function: str | None, options: Mapping[str, Any], timeout: float) -> Ran:
    """Import ``path`` in a new process, call its function there twice, and bring back the arrays."""
    with tempfile.TemporaryDirectory(prefix="handgrad-") as folder:
        scratch = Path(folder)
        request = {
            "file": str(path.resolve()),
            "function": function,
            "options": dict(options),
            "answer": str(scratch / "answer.json"),
            "arrays": str(scratch / "arrays.npz"),
            "hang": str(scratch / "hang.txt"),
            "timeout": timeout,
        }
        (scratch / "request.json").write_text(json.dumps(request))
        code, output = _finished(str(scratch / "request.json"), timeout)
        hang, answer_path = scratch / "hang.txt", scratch / "answer.json"
        if code is None or (hang.exists() and hang.stat().st_size and not answer_path.exists()):
            return Ran(Called(failure=_hung(request, timeout)), output=output)
        if not answer_path.exists():
            return Ran(Called(failure=_died(path, code)), output=output)
        answer = json.loads(answer_path.read_text())
        with np.load(scratch / "arrays.npz", allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    return _ran(answer, arrays, output)


def _finished(request: str, timeout: float) -> tuple[int | None, str]:
    """The exit code, None where it had to be ended, and the end of what was printed."""
    # -P: a random.py in the current folder must not hide the standard module from the imports of this package
    command = [sys.executable, "-P", "-m", "handgrad.gradients.user_process", request]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    kept: deque[bytes] = deque(maxlen=KEPT_OUTPUT // 256)
    assert process.stdout is not None
    stream = process.stdout

    def read() -> None:
        while part := os.read(stream.fileno(), 256):
            kept.append(part)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    code: int | None
    try:
        code = process.wait(timeout + GRACE)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        _end(process)
    reader.join(1.0)
    return code, b"".join(kept).decode(errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and what it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()


def _hung(request: Mapping[str, Any], timeout: float) -> Failure:
    """The line at which it stood."""
    path = Path(request["file"])
    dump = Path(request["hang"]).read_text(errors="replace") if Path(request["hang"]).exists() else ""
    frames = re.findall(rf'File "{re.escape(str(path))}", line (\d+) in (\S+)', dump)
    line, function = (int(frames[0][0]), frames[0][1]) if frames else (0, "")
    lines = path.read_text(errors="replace").splitlines()
    source = lines[line - 1].strip() if 0 < line <= len(lines) else ""
    message = f"did not finish within {timeout:g} s and was stopped"
    return Failure("timeout", message, path.name, line, source, "" if function == "<module>" else function)


def _died(path: Path, code: int) -> Failure:
    how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
    return Failure("exit", f"the process ended with {how} before the function returned", path.name, 0, "")


def _ran(answer: Mapping[str, Any], arrays: Mapping[str, Floats], output: str) -> Ran:
    if answer.get("wrong"):
        return Ran(Called(), output=output, problem=str(answer["wrong"]))
    if answer.get("failure"):
        failure = Failure.from_dict(dict(answer["failure"]))
        float_y = answer.get("y_drawn", False) and answer["loss"] is None
        return Ran(Called(failure=failure), output=output, float_y=float_y)
    described = answer["values"]
    by_name = {
        name: None if name in described["none"] else arrays[f"value:{name}"] for name in described["order"]
    }
    values: Any = list(by_name.values()) if described["positional"] else by_name
    again = answer["raised_again"]
    raised_again = Failure.from_dict(dict(again)) if again else None
    names = ("activation", "output", "loss", "reduction", "layout", "lr", "weight_decay")
    return Ran(
        Called(values, None, answer["repeated"], raised_again, answer["changed"], answer["changed_data"]),
        {name: answer[name] for name in names},
        arrays["X"],
        arrays["y"],
        {name.partition(":")[2]: array for name, array in arrays.items() if name.startswith("parameter:")},
        unit=float(described["unit"]),
        torch=bool(described["torch"]),
        output=output,
    )
