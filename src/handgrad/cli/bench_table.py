"""The tables that ``handgrad bench`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from handgrad.benchmark.report import OWN, ms, where

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

GROUPS = {
    "shapes": "a training step",
    "epoch": "an epoch of mini-batches",
    "batch": "a training step by batch size",
    "hidden": "a training step by hidden units",
}

Row = Mapping[str, Any]


def print_tables(out: Console, document: Row) -> None:
    """Steps, epochs and sweeps beside the peers; ceilings; steps against their bare products."""
    out.print(where(document), markup=False, soft_wrap=True)
    for group, title in GROUPS.items():
        rows = [row for row in document["results"] if row["group"] == group]
        if rows:
            out.print(_results(rows, document, title))
    out.print(_ceilings(document))
    if document["against_products"]:
        out.print(_products(document))


def _table(title: str, left: Iterable[str], right: Iterable[str]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for place, heading in enumerate(left):
        table.add_column(heading, no_wrap=place > 0)  # names of networks may take two lines
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _results(rows: list[Row], document: Row, title: str) -> Table:
    table = _table(
        f"{title} (float32; ×2: two threads; 60 of 80: the library's own SGEMM reaches 80)",
        ("network", "library", "device"),
        ("ms", "quartiles", "samples/s", "GFLOP/s", "handgrad is"),
    )
    previous = None
    for row in sorted(rows, key=lambda row: _place(rows, row)):
        begins = row["workload"] != previous
        if begins:
            table.add_section()
        previous = row["workload"]
        taken, square = row["milliseconds"], row["square_gflops"]
        table.add_row(
            f"{row['workload']}" + (f"  {row['regime']}" if row["regime"] else "") if begins else "",
            row["name"],
            row["device"] + (f" ×{row['threads']}" if row["threads"] else ""),
            f"{ms(taken['median'])}",
            f"{ms(taken['low'])} – {ms(taken['high'])}",
            f"{row['samples_per_second']['median']:,.0f}",
            f"{row['gflops']:,.1f}" + (f" of {square:,.0f}" if square else ""),
            _times(row, document),
        )
    return table


def _place(rows: list[Row], row: Row) -> tuple[int, int, str]:
    """Workloads in the order of measurement; in each this library first, then the fastest first."""
    first = next(i for i, other in enumerate(rows) if other["workload"] == row["workload"])
    return first, row["peer"] != OWN, f"{row['milliseconds']['median']:030.9f}"


def _times(row: Row, document: Row) -> str:
    """How many times as fast this library is as the row's contestant."""
    for ratio in document["ratios"]:
        same = ratio["workload"] == row["workload"] and ratio["group"] == row["group"]
        if same and ratio["against"] == row["peer"] and ratio["against_device"] == row["device"]:
            found = ratio["times_as_fast"]
            on = "" if ratio["device"] == row["device"] else f" on {ratio['device']}"
            return f"{found['median']:.2f}×{on}"
    return ""


def _ceilings(document: Row) -> Table:
    table = _table("ceilings, in the same run", ("library", "device", "BLAS"), ("SGEMM GFLOP/s", "GB/s"))
    for one in document["contestants"]:
        square = one.get("square_product")
        if not square:
            continue
        bandwidth = document["bandwidth"].get(one["device"]) if one["peer"] == OWN else None
        table.add_row(
            one["name"],
            one["device"],
            blas_words(one),
            f"{square['gflops']['median']:,.0f} ({square['size']}²)",
            f"{bandwidth['copy'] / 1e9:.1f} copy, {bandwidth['read'] / 1e9:.1f} read" if bandwidth else "",
        )
    return table


def blas_words(contestant: Row) -> str:
    """As "openblas 0.3.31, SkylakeX kernels"; a GPU's name there."""
    if contestant.get("gpu"):
        return str(contestant["gpu"])
    return "; ".join(
        f"{library['internal_api']} {library['version']}, {library['architecture']}"
        for library in contestant.get("blas", ())
    )


def _products(document: Row) -> Table:
    table = _table(
        "a step against its bare matrix products, each in its fastest arrangement",
        ("network", "device"),
        ("products ms", "step ÷ products", "of the SGEMM rate"),
    )
    bare = {(row["workload"], row["device"]): row["milliseconds"]["median"] for row in document["products"]}
    for row in document["against_products"]:
        found, share = row["step_over_products"], row["share_of_square_rate"]
        table.add_row(
            row["workload"],
            row["device"],
            f"{ms(bare[row['workload'], row['device']])}",
            f"{found['median']:.2f} ({found['low']:.2f} – {found['high']:.2f})",
            f"{share:.2f}" if share else "",
        )
    return table


def print_scaling(out: Console, document: Row) -> None:
    """Each curve's points, its exponent, and the memory."""
    from handgrad.benchmark.scaling_pictures import exponent_words, in_memory_words

    for curve in document["scaling"]:
        if not curve["points"]:
            continue
        mapped = curve["over"] == "rows"
        table = _table(
            f"{curve['what']}; {exponent_words(curve)}".rstrip("; "),
            (),
            (curve["over"], "ms", "quartiles", *(("memory at its peak",) if mapped else ())),
        )
        for point in curve["points"]:
            taken = point["milliseconds"]
            growth = point.get("peak_growth")
            table.add_row(
                f"{point['x']:,}",
                f"{ms(taken['median'])}",
                f"{ms(taken['low'])} – {ms(taken['high'])}",
                *((("not known" if growth is None else f"+{growth / 1e6:.1f} MB"),) if mapped else ()),
            )
        out.print(table)
        if curve.get("in_memory"):
            out.print(in_memory_words(curve), markup=False, soft_wrap=True)


def print_comparison(out: Console, found: Row) -> None:
    """Row by row, the spread, and what else differs."""
    table = _table(
        "after against before (the range is that of the quartiles)",
        ("network", "library", "device"),
        ("ms before", "ms after", "after is", "range", "change"),
    )
    for row in found["rows"]:
        ratio = row["times_as_fast"]
        table.add_row(
            row["workload"],
            row["name"],
            row["device"],
            f"{ms(row['before_milliseconds']['median'])}",
            f"{ms(row['after_milliseconds']['median'])}",
            f"{ratio['median']:.2f}×",
            f"{ratio['low']:.2f} – {ratio['high']:.2f}",
            row["change"],
        )
    out.print(table)
    for word, key in (("before", "only_before"), ("after", "only_after")):
        for row in found[key]:
            out.print(
                f"only {word}: {row['workload']}, {row['peer']} on {row['device']} ({row['group']})",
                markup=False,
                soft_wrap=True,
            )
    for words in found["differences"]:
        out.print(f"not the same: {words}", markup=False, soft_wrap=True)
