"""README's examples run as they stand, and what it points at exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from small_networks import needs_compiler

CHECKOUT = Path(__file__).resolve().parent.parent
TEXT = (CHECKOUT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.S)


@needs_compiler
@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_run(example, capsys):
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    if "history" in names:
        printed = capsys.readouterr().out.split()
        assert float(printed[0]) > 0.9


def test_there_are_examples():
    assert len(EXAMPLES) >= 3


def test_links_lead_somewhere():
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in target]
    assert targets
    assert [target for target in targets if not (CHECKOUT / target).exists()] == []
