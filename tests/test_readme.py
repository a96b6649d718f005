"""README's examples run as they stand, and what it points at exists; the documents' data sets exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from small_networks import needs_compiler

from handgrad import datasets

CHECKOUT = Path(__file__).resolve().parent.parent
TEXT = (CHECKOUT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = (CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md")))
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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_data_sets_that_a_command_names_can_be_loaded(document):
    """But for files (a dot) and names in capitals, which stand for the reader's own."""
    for spec in re.findall(r"--data ([^\s`]+)", document.read_text(encoding="utf-8")):
        if "." not in spec and not spec.isupper():
            assert len(datasets.load(spec).train)
