"""The report as one HTML file: tables and pictures inside, nothing to be fetched, light and dark."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from handgrad.benchmark import pictures as drawing
from handgrad.benchmark import svg
from handgrad.benchmark.report import OWN, count, ms, regime_words, where
from handgrad.benchmark.stages import STAGES

Row = Mapping[str, Any]

CAPTIONS = {
    "throughput": "Median and quartiles. Each network has a scale of its own.",
    "batch": "Median; the band holds the middle half of the samples.",
    "hidden": "Median; the band holds the middle half of the samples.",
    "roofline": (
        "The sloping line is the measured reading rate of the memory, the level one the best rate of a large "
        "square product in the same BLAS. Compulsory bytes: X and targets once, parameters twice."
    ),
    "stages": (
        "Each stage timed alone over the whole batch. A step may work in blocks that stay in the cache and "
        "join stages, so the stages together need not be the step."
    ),
}


def page(document: Row) -> str:
    """The whole file."""
    body = [
        "<h1>handgrad bench: training steps side by side</h1>",
        *_head(document),
        *_notes(document),
    ]
    for picture in drawing.pictures(document):
        body += _figure(picture)
        body += _details(document, picture.name)
    body += _ceilings(document)
    body += _products(document)
    body += _method(document)
    style = resources.files("handgrad.benchmark").joinpath("page.css").read_text(encoding="utf-8")
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',  # else a browser asks for /favicon.ico
            "<title>handgrad bench</title>",
            f"<style>\n{style}</style>",
            "</head>",
            "<body>",
            *body,
            "</body>",
            "</html>",
            "",
        ]
    )


def _head(document: Row) -> list[str]:
    threads = document["settings"]["threads"]
    devices = sorted({row["device"] for row in document["results"]})
    return [
        f'<p class="facts">{_text(where(document))}. {count(threads, "CPU thread")} at most for every '
        f"library. {_text(document['started'])}, {document['seconds'] / 60:.1f} minutes, handgrad "
        f"{_text(document['handgrad'])}.</p>",
        "<p>A ratio of two libraries holds for this machine and these versions: beside it stands what each "
        "one's own matrix product reaches here.</p>",
        *(
            []
            if document["complete"]
            else ['<p class="warning">Not complete: this is what was measured until the run ended.</p>']
        ),
        *(
            []
            if any(device.startswith("cuda") for device in devices)
            else ['<p class="warning">No GPU was measured in this run.</p>']
        ),
    ]


def _notes(document: Row) -> list[str]:
    if not document["notes"]:
        return []
    return ["<ul>", *(f"<li>{_text(note)}</li>" for note in document["notes"]), "</ul>"]


def _figure(picture: drawing.Picture) -> list[str]:
    forms = (("wide", picture.wide, False), ("narrow", picture.narrow, True))
    drawn = [
        svg.inline(picture.draw, inches, name=f"{picture.name}-{form}", words=picture.words, narrow=narrow)
        for form, inches, narrow in forms
    ]
    caption = CAPTIONS.get(picture.name, "")
    return [
        f'<h2 id="{picture.name}">{_text(picture.title)}</h2>',
        "<figure>",
        *drawn,
        *([f"<figcaption>{_text(caption)}</figcaption>"] if caption else []),
        "</figure>",
    ]


def _details(document: Row, name: str) -> list[str]:
    """The figures behind a picture."""
    groups = {"throughput": ("shapes", "epoch"), "batch": ("batch",), "hidden": ("hidden",)}
    if name in groups:
        rows = [row for row in document["results"] if row["group"] in groups[name]]
        return _folded("The figures", _results(rows, document), is_open=name == "throughput")
    if name == "stages":
        return _folded("The figures", _stage_table(document))
    curves = [curve for curve in document["scaling"] if name == f"scaling-{curve['over']}"]
    return [line for curve in curves for line in _scaling(curve)]


def _scaling(curve: Row) -> list[str]:
    from handgrad.benchmark.scaling_pictures import exponent_words, in_memory_words

    has_memory = any(point.get("peak_growth") is not None for point in curve["points"])
    head = (curve["over"], "ms", "quartiles", *(("memory at its peak, MB more",) if has_memory else ()))
    lines = []
    for point in curve["points"]:
        taken, growth = point["milliseconds"], point.get("peak_growth")
        memory = "" if growth is None else f"{growth / 1e6:.1f}"
        quartiles = f"{ms(taken['low'])} – {ms(taken['high'])}"
        cells = (f"{point['x']:,}", f"{ms(taken['median'])}", quartiles, *((memory,) if has_memory else ()))
        lines.append(_row(cells, text=0))
    words = [curve["what"], exponent_words(curve), in_memory_words(curve)]
    if curve.get("limit"):
        words.append(
            f"at most {curve['limit'] / 2**20:.0f} MB may be allocated; "
            f"{curve['part_bytes'] / 1e6:.0f} MB of rows are mapped at a time"
        )
    said = "; ".join(word for word in words if word)
    return [f"<p>{_text(said)}.</p>", *_folded("The figures", _table(head, lines, text=0))]


def _folded(summary: str, table: list[str], is_open: bool = False) -> list[str]:
    state = " open" if is_open else ""
    return [f"<details{state}><summary>{_text(summary)}</summary>", *table, "</details>"]


def _results(rows: Sequence[Row], document: Row) -> list[str]:
    head = ("library", "device", "ms", "quartiles", "samples/s", "GFLOP/s", "its SGEMM", "handgrad is")
    lines, previous = [], None
    for row in rows:
        if row["workload"] != previous:
            words = ", ".join(word for word in (row["workload"], row["loss"]) if word)
            regime = f" ({regime_words(row['regime'])})" if row["regime"] else ""
            lines.append(_heading(words + regime, len(head)))
            previous = row["workload"]
        taken, square = row["milliseconds"], row["square_gflops"]
        threads = f", {count(row['threads'], 'thread')}" if row["threads"] else ""
        cells = (
            row["name"],
            row["device"] + threads,
            f"{ms(taken['median'])}",
            f"{ms(taken['low'])} – {ms(taken['high'])}",
            f"{row['samples_per_second']['median']:,.0f}",
            f"{row['gflops']:,.1f}",
            f"{square:,.0f}" if square else "",
            _times(row, document),
        )
        lines.append(_row(cells, "own" if row["peer"] == OWN else "", text=2))
    return _table(head, lines, text=2)


def _times(row: Row, document: Row) -> str:
    for ratio in document["ratios"]:
        same = ratio["workload"] == row["workload"] and ratio["group"] == row["group"]
        if same and ratio["against"] == row["peer"] and ratio["against_device"] == row["device"]:
            found = ratio["times_as_fast"]
            on = "" if ratio["device"] == row["device"] else f", on {ratio['device']}"
            return f"{found['median']:.2f}× ({found['low']:.2f} – {found['high']:.2f}){on}"
    return ""


def _stage_table(document: Row) -> list[str]:
    head = ("network", "device", *STAGES)
    lines = []
    for row in document["stages"]:
        taken = {stage["name"]: np.median(stage["seconds"]) * 1e3 for stage in row["stages"]}
        cells = (row["workload"], row["device"], *(f"{ms(taken[name])} ms" for name in STAGES))
        lines.append(_row(cells, text=2))
    return _table(head, lines, text=2)


def _ceilings(document: Row) -> list[str]:
    lines = []
    for one in document["contestants"]:
        square, bandwidth = one.get("square_product"), document["bandwidth"].get(one["device"])
        blas = one.get("gpu") or "; ".join(
            f"{library['internal_api']} {library['version']}, {library['architecture']}"
            for library in one.get("blas", ())
        )
        own = one["peer"] == OWN and bandwidth
        versions = ", ".join(f"{name} {value}" for name, value in one.get("versions", {}).items())
        cells = (
            one["name"],
            one["device"],
            blas or one["not_measured"],
            versions,
            f"{square['gflops']['median']:,.0f}" if square else "",
            f"{bandwidth['copy'] / 1e9:.1f}" if own else "",
            f"{bandwidth['read'] / 1e9:.1f}" if own else "",
        )
        lines.append(_row(cells, text=4))
    head = (
        "library",
        "device",
        "BLAS and its kernels",
        "versions",
        "SGEMM GFLOP/s",
        "copy GB/s",
        "read GB/s",
    )
    return ['<h2 id="ceilings">Ceilings, measured in the same run</h2>', *_table(head, lines, text=4)]


def _products(document: Row) -> list[str]:
    if not document["products"]:
        return []
    shares = {(row["workload"], row["device"]): row for row in document["against_products"]}
    head = ("product", "fastest arrangement", "ms", "quartiles", "GFLOP/s")
    lines = []
    for bare in document["products"]:
        share = shares.get((bare["workload"], bare["device"]))
        words = f"{bare['workload']} on {bare['device']}: together {ms(bare['milliseconds']['median'])} ms"
        if share:
            words += f"; the step takes {share['step_over_products']['median']:.2f} times as long"
        if share and share["share_of_square_rate"]:
            words += f" and runs at {share['share_of_square_rate']:.2f} of the SGEMM rate"
        lines.append(_heading(words, len(head)))
        for part in bare["parts"]:
            taken = part["milliseconds"]
            cells = (
                part["name"],
                part["arrangement"],
                f"{ms(taken['median'])}",
                f"{ms(taken['low'])} – {ms(taken['high'])}",
                f"{part['flops'] / taken['median'] / 1e6:,.1f}",
            )
            lines.append(_row(cells, text=2))
    return ['<h2 id="products">Bare matrix products of a step</h2>', *_table(head, lines, text=2)]


def _method(document: Row) -> list[str]:
    found, settings = document["machine"], document["settings"]
    variables = ", ".join(f"{name}={value}" for name, value in found["environment"].items()) or "none"
    return [
        '<h2 id="method">How it was measured</h2>',
        f"<p>{_text(document['clock'])}. Before anything is timed, the loss and every gradient of every "
        "library agree with float64 NumPy within 1e-4. All have the same data, parameters and number of "
        "threads; plain SGD. Every raw sample is in bench.json.</p>",
        f'<p class="facts">{settings["rounds"]} rounds, {settings["seconds_per_workload"]:g} s for each '
        f"workload of each library; seed {settings['seed']}; {_text(found['system'])}; "
        f"Python {_text(found['python'])}; "
        f"variables that change a BLAS: {_text(variables)}.</p>",
    ]


def _table(head: Iterable[str], lines: Iterable[str], text: int, numbers: int = 99) -> list[str]:
    """``text`` columns of words, then ``numbers`` columns of numbers, then words again."""
    begin = f"<thead><tr>{_cells('th', head, text, numbers)}</tr></thead><tbody>"
    return ['<div class="scroll"><table>', begin, *lines, "</tbody></table></div>"]


def _row(cells: Iterable[str], classes: str = "", text: int = 1, numbers: int = 99) -> str:
    attributes = f' class="{classes}"' if classes else ""
    return f"<tr{attributes}>{_cells('td', cells, text, numbers)}</tr>"


def _heading(words: str, columns: int) -> str:
    return f'<tr class="heading"><td colspan="{columns}"><span>{_text(words)}</span></td></tr>'


def _cells(tag: str, cells: Iterable[str], text: int, numbers: int) -> str:
    right = ' class="number"'
    return "".join(
        f"<{tag}{right if text <= place < text + numbers else ''}>{_text(cell)}</{tag}>"
        for place, cell in enumerate(cells)
    )


def _text(words: object) -> str:
    return html.escape(str(words))
