"""Comma-separated numbers, one sample a line, with or without a line of column names."""

from __future__ import annotations

import csv
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from handgrad.datasets.dataset import Array, Columns, DataError
from handgrad.datasets.parts import Part

TARGET_NAMES = ("label", "target", "y")


def read_csv(path: Path, target: str | int | None, columns: Columns | None = None) -> Part:
    """Features and target column of ``path``; a target of whole numbers becomes integers.

    The target is column ``target`` (name, or number from 0, negative from the end); by default the column
    named label, target or y, else the last.  With ``columns`` and a header, features and target are the
    columns of these names, in this order, and other columns are left aside.
    """
    names, table, place = read_table(path)
    width = table.shape[1]
    if width < 2:
        raise DataError(
            f"{path}: 1 column, expected at least one feature and the target; separate the fields by commas"
        )
    if columns is not None and has_names(names):
        *feature_columns, index = columns_named(path, names, (*columns.features, columns.target))
    else:
        index = target_column(path, names, width, target)
        feature_columns = [column for column in range(width) if column != index]
        columns = None
        if has_names(names) and len(set(names)) == width:
            columns = Columns(tuple(names[column] for column in feature_columns), names[index])
    X, y = table[:, feature_columns], table[:, index]
    if bool((np.isfinite(y) & (y == np.floor(y)) & (np.abs(y) < 2**53)).all()):
        y = y.astype(np.int64)
    return Part(
        X,
        y,
        f"{path}: features",
        f"{path}: column {index + 1}" + (f" ({names[index]})" if names and names[index] else ""),
        lambda row, column: place(row, feature_columns[column]),
        lambda row, column: place(row, index),
        columns=columns,
    )


def read_table(path: Path) -> tuple[list[str], Array, Callable[[int, int], str]]:
    """Column names ([] where there are none), the numbers (N, columns), and how to name a place in them."""
    names, lines = header(path)
    table = _numbers(path, lines)
    if len(table) == 0:
        raise DataError(f"{path}: an empty set: no line of numbers; give at least one sample")
    if names and len(names) != table.shape[1]:
        raise DataError(
            f"{path}: {len(names)} column names but {table.shape[1]} columns; give each column one name"
        )

    def place(row: int, column: int) -> str:
        line, _ = next(itertools.islice(_records(path), row + bool(names), None))
        named = f" ({names[column]})" if names and names[column] else ""
        return f"{path}: line {line}, column {column + 1}{named}"

    return names, table, place


def header(path: Path) -> tuple[list[str], int]:
    """The column names and how many lines they take; [] and 0 where the first line holds numbers.

    It is a header if no field is a number, or if the fields that are numbers count the columns
    (from 0 or 1, as data frames without names write them).
    """
    try:
        line, first = next(_records(path))
    except StopIteration:
        raise DataError(f"{path}: an empty set: no line of numbers; give at least one sample") from None
    numeric = [column for column, field in enumerate(first) if _is_number(field)]
    if len(numeric) == len(first):
        return [], 0
    counted = any(all(first[c].strip() == str(c + base) for c in numeric) for base in (0, 1, -1))
    return ([field.strip() for field in first], line) if counted else ([], 0)


def _numbers(path: Path, header_lines: int) -> Array:
    try:
        with warnings.catch_warnings(), path.open(encoding="utf-8-sig", newline="") as stream:
            warnings.simplefilter("ignore", UserWarning)  # "input contained no data"
            table: Array = np.loadtxt(
                stream, delimiter=",", comments=None, quotechar='"', skiprows=header_lines, ndmin=2
            )
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not text at byte {error.start}; save it as UTF-8 text") from None
    except ValueError as error:
        raise DataError(
            _first_fault(path, header_lines) or f"{path}: {' '.join(str(error).split())}"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the file") from None
    return table


def _first_fault(path: Path, header_lines: int) -> str:
    """The place where the file stops being a table of numbers, found by reading it field by field."""
    width = 0
    for line, fields in itertools.islice(_records(path), int(header_lines > 0), None):
        width = width or len(fields)
        for column, field in enumerate(fields):
            if not _is_number(field):
                what = f"{field.strip()[:40]!r}, not a number" if field.strip() else "empty"
                remedy = (
                    "separate the fields by commas" if set(field) & set(";\t") else "write a number there"
                )
                return f"{path}: line {line}, column {column + 1} is {what}; {remedy}"
        if len(fields) != width:
            return f"{path}: line {line} has {len(fields)} fields, the lines before {width}; make them equal"
    return ""


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number (from 1) and fields of each line that is not blank."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            for fields in reader:
                if fields:
                    yield reader.line_num, fields
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not text at byte {error.start}; save it as UTF-8 text") from None
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}; save it as plain text") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the file") from None


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return "_" not in field


def target_column(path: Path, names: list[str], width: int, target: str | int | None) -> int:
    """The number of the column that ``target`` names; see ``read_csv``."""
    if target is None:
        named = [column for column, name in enumerate(names) if name.lower() in TARGET_NAMES]
        return named[0] if len(named) == 1 else width - 1
    if isinstance(target, str) and target in names:
        return names.index(target)
    try:
        index = int(target)
    except ValueError:
        held = _listed(names) if names else "no names"
        raise DataError(
            f"{path}: no column named {target!r} (the header has {held}); name one of them"
        ) from None
    if not -width <= index < width:
        raise DataError(f"{path}: no column {index}; the target is a column from {-width} to {width - 1}")
    return index % width


def has_names(names: list[str]) -> bool:
    """Whether a header names its columns: one that only counts them says no more than their places do."""
    return any(name and not _is_number(name) for name in names)


def columns_named(path: Path, names: list[str], wanted: Sequence[str]) -> list[int]:
    """The number of the column of each ``wanted`` name; each must be there, and once."""
    missing = [name for name in wanted if name not in names]
    if missing:
        raise DataError(
            f"{path}: no column named {_listed(missing)} (the header has {_listed(names)}); "
            "name the columns as in the training"
        )
    twice = [name for name in wanted if names.count(name) > 1]
    if twice:
        raise DataError(f"{path}: more than one column named {_listed(twice)}; keep the one of the training")
    return [names.index(name) for name in wanted]


def _listed(names: list[str]) -> str:
    return ", ".join(name or "''" for name in names[:12]) + (", …" if len(names) > 12 else "")
