"""The form of a report: what a comparison reads of it, checked when it is loaded.

A form is a type, a function that says whether a value fits, ``[form]`` for a list, or a
mapping of keys; a key that ends in ``?`` may be missing, or null.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def positive(value: Any) -> bool:
    """a number above 0"""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e300


def samples(value: Any) -> bool:
    """a list of numbers above 0"""
    return isinstance(value, list) and bool(value) and all(map(positive, value))


SPREAD = {"median": positive, "low": positive, "high": positive}
REPORT = {
    "complete": bool,
    "machine": {"environment": dict},
    "settings": {"threads": int, "rounds": int, "seed": int, "seconds_per_workload": positive},
    "contestants": [
        {
            "peer": str,
            "name": str,
            "device": str,
            "blas?": [{"internal_api": str, "version?": str, "architecture?": str}],
            "square_product?": {"gflops": SPREAD},
        }
    ],
    "results": [
        {
            **dict.fromkeys(("group", "workload", "peer", "device", "name"), str),
            "milliseconds": SPREAD,
            "seconds": samples,
            "threads?": int,
        }
    ],
}
NAMES = {bool: "true or false", int: "a whole number", str: "a text", dict: "an object"}


def misfit(value: Any, form: Any, place: str = "") -> str:
    """The first place where ``value`` is not of ``form``, and what was expected there; "" where it fits."""
    if isinstance(form, Mapping):
        return _misfit_of_keys(value, form, place)
    if isinstance(form, list):
        if not isinstance(value, list):
            return _line(place, "a list", value)
        return next(filter(None, (misfit(one, form[0], f"{place}[{i}]") for i, one in enumerate(value))), "")
    if isinstance(form, type):
        fits = isinstance(value, form) and (form is bool or not isinstance(value, bool))
        return "" if fits else _line(place, NAMES[form], value)
    check: Callable[[Any], bool] = form
    return "" if check(value) else _line(place, str(check.__doc__), value)


def _misfit_of_keys(value: Any, form: Mapping[str, Any], place: str) -> str:
    if not isinstance(value, dict):
        return _line(place, "an object", value)
    for key, part in form.items():
        name = key.removesuffix("?")
        where = f"{place}.{name}" if place else name
        if name != key and value.get(name) is None:
            continue
        if name not in value:
            return f"{where} is missing"
        found = misfit(value[name], part, where)
        if found:
            return found
    return ""


def _line(place: str, expected: str, value: Any) -> str:
    got = repr(value)
    return f"{place}: expected {expected}, got {got if len(got) <= 60 else got[:57] + '...'}"
