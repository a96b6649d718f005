"""Arrangements that :func:`handgrad.host.tuning.tune` measured, kept in ``host.json`` of the cache folder.

Entries of another processor, BLAS or NumPy are left alone (:mod:`handgrad.measurements`).
"""

from __future__ import annotations

import functools

import numpy as np

from handgrad import measurements
from handgrad.host import blas
from handgrad.measurements import Row

FILE = "host.json"


def find(sizes: tuple[int, ...], rows: int, itemsize: int, shared: bool = False) -> Row | None:
    """What was measured for this network and share of rows on this machine, if anything."""
    return measurements.find(measurements.file_named(FILE), machine(), key(sizes, rows, itemsize, shared))


def remember(sizes: tuple[int, ...], rows: int, itemsize: int, entry: Row, shared: bool = False) -> bool:
    """Keep ``entry``; False where the file cannot be written."""
    file, name = measurements.file_named(FILE), key(sizes, rows, itemsize, shared)
    return measurements.remember(file, machine(), name, entry)


def key(sizes: tuple[int, ...], rows: int, itemsize: int, shared: bool = False) -> str:
    """The name of a problem."""
    by = ", products shared" if shared else ""
    return f"{'-'.join(map(str, sizes))} rows {rows} float{8 * itemsize}{by}"


@functools.cache
def machine() -> str:
    """Processor, BLAS and NumPy: what a measurement holds for."""
    from handgrad.emulator.compiler import processor

    library = blas.find()
    return f"{processor()} {library.name} {library.version} {library.architecture} numpy {np.__version__}"
