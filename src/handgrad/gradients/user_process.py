"""The process that runs a person's file: ``python -m handgrad.gradients.user_process REQUEST``.

REQUEST is a JSON file: ``file``, ``function`` (or null), ``options`` (settings from the command line),
``answer`` and ``arrays`` (where to write), ``timeout`` and ``hang`` (after how many seconds to end, and where
to write the line that it stands at then).

The file is imported under the name ``user_file``, its folder first on the path, the current one last.  It
defines a function ``(X, y, params) -> gradients`` and may set ``X``, ``y``, ``params`` (or W1, b1, …),
``sizes`` (N, D, H, C), ``activation``, ``output``, ``loss``, ``reduction``, ``layout``, ``lr``,
``weight_decay`` and ``seed``.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from handgrad.gradients.attempt import as_float64, checked_layout
from handgrad.gradients.failure import failure_of
from handgrad.gradients.function import call
from handgrad.gradients.settings import Settings, check_numbers, layout_of_weights

FUNCTIONS = ("backward", "gradients", "grads", "gradient")
SIZES = (23, 7, 11, 3)  # N, D, H, C: distinct, so that a shape tells which is which
SETTINGS = ("activation", "output", "loss", "reduction")


class WrongFile(Exception):
    """The file lacks what it must have; the message is for the person."""


def main(request_path: str) -> None:
    """Run the file and write the answer."""
    request = json.loads(Path(request_path).read_text())
    answer: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    with open(request["hang"], "w") as hang:  # noqa: PTH123
        faulthandler.dump_traceback_later(request["timeout"], file=hang, exit=True)
        try:
            _run(request, answer, arrays)
        except WrongFile as error:
            answer["wrong"] = str(error)
        except (Exception, SystemExit) as error:
            answer["failure"] = failure_of(error, request["file"]).to_dict()
        faulthandler.cancel_dump_traceback_later()
    np.savez(request["arrays"], **arrays)
    Path(request["answer"]).write_text(json.dumps(answer))


def _run(request: Mapping[str, Any], answer: dict[str, Any], arrays: dict[str, Any]) -> None:
    module = _imported(request["file"])
    options = request["options"]
    for name in (*SETTINGS, "layout", "lr", "weight_decay"):
        stated = options.get(name)
        value = getattr(module, name, None) if stated is None else stated
        if isinstance(value, ModuleType) or callable(value):
            value = None  # a function called `loss` is no setting
        answer[name] = value if value is None or isinstance(value, str) else float(value)
    try:
        Settings(**{name: answer[name] for name in SETTINGS}).check()
        check_numbers(answer["lr"], answer["weight_decay"])
    except ValueError as error:
        raise WrongFile(str(error)) from error
    function = _function(module, request["function"])
    X, y, parameters = _data(module, answer)
    layout = _stated_layout(answer) or _weights_layout(parameters, X)
    answer["layout"] = layout
    right = {
        name: value.T if layout == "out,in" and value.ndim == 2 else value
        for name, value in parameters.items()
    }
    called = call(function, X, y, right, layout, request["file"])
    answer["y_drawn"] = getattr(module, "y", None) is None
    answer["function"] = function.__name__
    answer["repeated"] = called.repeated
    answer["changed"], answer["changed_data"] = called.changed, called.changed_data
    for name in ("failure", "raised_again"):
        failure = getattr(called, name)
        answer[name] = failure.to_dict() if failure else None
    arrays["X"], arrays["y"] = _host(X), _host(y)
    arrays |= {f"parameter:{name}": value for name, value in right.items()}
    if called.failure is None:
        answer["values"] = _named(called.values, arrays)


def _imported(file: str) -> ModuleType:
    path = Path(file)
    sys.path.insert(0, str(path.parent))
    sys.path.append(str(Path.cwd()))  # last: what is there can be imported and hides nothing
    specification = importlib.util.spec_from_file_location("user_file", path)
    if specification is None or specification.loader is None:
        raise WrongFile(f"{path.name}: expected a Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules["user_file"] = module
    specification.loader.exec_module(module)
    return module


def _function(module: ModuleType, name: str | None) -> Callable[..., Any]:
    own = {
        key: value
        for key, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__
    }
    if name is not None:
        chosen = getattr(module, name, None)
        if not callable(chosen):
            known = ", ".join(own) or "none"
            raise WrongFile(f"no function {name!r}; the file has {known}")
        return chosen  # type: ignore[no-any-return]
    for usual in FUNCTIONS:
        if usual in own:
            return own[usual]
    fitting = [value for value in own.values() if len(inspect.signature(value).parameters) == 3]
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(own) or "none"
    raise WrongFile(
        f"expected a function backward(X, y, params) -> gradients, the file has {known}; "
        "name it: FILE.py:FUNCTION"
    )


def _stated_layout(answer: Mapping[str, Any]) -> str:
    try:
        return checked_layout(answer["layout"]) if answer["layout"] else ""
    except ValueError as error:
        raise WrongFile(str(error)) from error


def _weights_layout(parameters: Mapping[str, Any], X: Any) -> str:
    try:
        return layout_of_weights(parameters, None if X is None else int(X.shape[1]))
    except ValueError as error:
        raise WrongFile(str(error)) from error


def _data(module: ModuleType, answer: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """X, y and the parameters of the file, or random ones of distinct sizes for what it does not set."""
    seed = getattr(module, "seed", 0)
    random = np.random.default_rng(seed if isinstance(seed, int) else 0)
    X, y = getattr(module, "X", None), getattr(module, "y", None)
    parameters = _parameters(module)
    loss, layout = answer["loss"], _stated_layout(answer)
    sizes = getattr(module, "sizes", SIZES)
    N, D, H, C = (int(n) for n in sizes) if isinstance(sizes, (tuple, list)) and len(sizes) == 4 else SIZES
    if X is not None:
        if getattr(X, "ndim", 0) != 2:
            raise WrongFile(f"X: expected a matrix (N, D), got {getattr(X, 'shape', type(X).__name__)}")
        N, D = (int(n) for n in X.shape)
    elif parameters:
        layout = layout or _weights_layout(parameters, None)
        D = int(parameters["W1"].shape[1 if layout == "out,in" else 0])
    if y is not None:
        labels = _host(y)
        if labels.ndim == 2:
            C = int(labels.shape[1])
        elif labels.dtype.kind in "iu" and loss not in ("mse", "bce"):
            C = max(C, int(labels.max(initial=0)) + 1)
        else:
            C = 1
        if X is None:
            N = len(labels)
    if X is None:
        X = random.normal(size=(N, D))
    if not parameters:
        parameters = {
            "W1": random.normal(size=(D, H)) * (2 / D) ** 0.5,
            "b1": 0.3 * random.normal(size=H),
            "W2": random.normal(size=(H, C)) * (1 / H) ** 0.5,
            "b2": 0.3 * random.normal(size=C),
        }
        if layout == "out,in":
            parameters = {name: value.T for name, value in parameters.items()}
    layout = layout or _weights_layout(parameters, X)
    last = parameters[f"W{sum(name.startswith('W') for name in parameters)}"]
    C = int(last.shape[1] if layout == "in,out" else last.shape[0])
    if y is None:
        if loss in ("cross_entropy", "hinge"):
            y = random.integers(0, C, N)
        else:
            y = (
                random.normal(size=(N, C))
                if loss != "bce"
                else (random.random((N, C)) < 0.5).astype(np.float64)
            )
    return X, y, parameters


def _parameters(module: ModuleType) -> dict[str, Any]:
    given = getattr(module, "params", None)
    if given is None or not isinstance(given, Mapping):
        given = {
            name: value
            for name, value in vars(module).items()
            if name[:1] in "Wb" and name[1:].isdigit() and hasattr(value, "shape")
        }
    return {
        str(name): np.asarray(_host(value), dtype=np.float64)
        for name, value in given.items()
        if value is not None
    }


def _host(value: Any) -> Any:
    """On the host, integers kept."""
    array, _ = as_float64(value, "array")
    kind = str(getattr(value, "dtype", ""))
    return array.astype(np.int64) if "int" in kind else array


def _named(values: Any, arrays: dict[str, Any]) -> dict[str, Any]:
    """Put the returned arrays into ``arrays`` and say what they are."""
    if isinstance(values, (list, tuple)):
        dicts = [item for item in values if isinstance(item, Mapping)]
        if len(dicts) == 1:
            values = dicts[0]
    positional = isinstance(values, (list, tuple))
    named = {str(i): v for i, v in enumerate(values)} if positional else values
    if not isinstance(named, Mapping):
        raise WrongFile(
            f"expected the function to return a dict of gradients (W1, b1, …), got {type(values).__name__}"
        )
    order, nothing, unit, torch = [], [], 0.0, False
    for name, value in named.items():
        order.append(str(name))
        if value is None:
            nothing.append(str(name))
            continue
        try:
            array, of_dtype = as_float64(value, f"the gradient {name!r}")
        except TypeError as error:
            raise WrongFile(str(error)) from error
        arrays[f"value:{name}"] = array
        unit = max(unit, of_dtype)
        torch |= type(value).__module__.split(".")[0] == "torch"
    return {"order": order, "none": nothing, "positional": positional, "unit": unit, "torch": torch}


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main(sys.argv[1])
