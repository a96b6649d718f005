"""``handgrad doctor``: what is here and what is missing, with the command that mends each lack."""

from __future__ import annotations

import dataclasses

from handgrad.cli.options import JsonOption

SCHEMA = "handgrad.doctor/1"
_STYLES = {"ok": "green", "warning": "yellow", "missing": "red"}


def doctor(as_json: JsonOption = False) -> None:
    """Show what is here and what is missing: GPU, driver, CuPy, compilers, BLAS and its kernels, versions.

    Nothing is changed.  CPU and emulator do without a GPU, so "missing" is no failure: the exit code is 0.
    """
    from rich.table import Table
    from rich.text import Text

    from handgrad import doctor as examination
    from handgrad.cli.output import console, print_json

    findings = examination.report()
    if as_json:
        print_json({"schema": SCHEMA, "findings": [dataclasses.asdict(finding) for finding in findings]})
        return
    table = Table("what", "status", "found", box=None, pad_edge=False)
    for finding in findings:
        status = Text(finding.status, style=_STYLES[finding.status])
        table.add_row(Text(finding.name), status, Text(finding.value))
    out = console()
    out.print(table)
    remedies = {finding.remedy: finding.name for finding in reversed(findings) if finding.remedy}
    if remedies:
        out.print("\nRemedies:")
        for remedy, name in reversed(remedies.items()):
            out.print(Text(f"  {name}: {remedy}"))
