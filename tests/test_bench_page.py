"""The report of ``handgrad bench`` as a page and as pictures."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from bench_documents import document

from handgrad.benchmark import page, pictures, svg

VOID = {"meta", "link", "br", "img", "hr"}
NAMES = [
    "throughput", "batch", "hidden", "roofline", "stages",
    "scaling-rows", "scaling-hidden", "scaling-threads",
]  # fmt: skip


LOOK = """
addEventListener('load', () => console.info('TITLE' + JSON.stringify({
  window: innerWidth,
  wide: document.documentElement.scrollWidth,
  background: getComputedStyle(document.body).backgroundColor,
  shown: [...document.querySelectorAll('svg')].filter(one => one.getBoundingClientRect().width > 0)
    .map(one => one.getAttribute('class')),
})));
"""


class Outline(HTMLParser):
    """Elements, ids, references and text of a page; what is not closed in order is a mistake."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.mistakes: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
                self.references.append(value)
            self.references += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_startendtag(self, tag: str, attributes: Any) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.mistakes.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return document()


@pytest.fixture(scope="module")
def text(made: dict[str, Any]) -> str:
    return page.page(made)


@pytest.fixture(scope="module")
def outline(text: str) -> Outline:
    found = Outline()
    found.feed(text)
    found.close()
    return found


def test_the_page_is_well_formed(outline):
    assert (outline.open, outline.mistakes) == ([], [])
    assert outline.tags.count("svg") == 2 * len(NAMES)  # for wide and for narrow windows


def test_ids_are_unique(outline):
    assert len(outline.ids) == len(set(outline.ids))
    assert set(NAMES) <= set(outline.ids)


def test_nothing_is_fetched(text, outline):
    """Every reference is to an id of the page itself; no script, no import, no font, no picture file."""
    for reference in outline.references:
        if reference != "data:,":
            assert reference.startswith("#"), reference
            assert reference[1:] in outline.ids
    assert not {"script", "iframe", "img", "image", "object", "embed", "use-external"} & set(outline.tags)
    assert "@import" not in text
    assert "@font-face" not in text
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names of namespaces


def test_every_picture_is_valid_svg_in_both_widths(made, text):
    drawn = [ElementTree.fromstring(one) for one in re.findall(r"<svg .*?</svg>", text, re.DOTALL)]
    wanted = [
        (form, inches)
        for picture in pictures.pictures(made)
        for form, inches in (("wide", picture.wide), ("narrow", picture.narrow))
    ]
    for root, (form, inches) in zip(drawn, wanted, strict=True):
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.get("class") == form
        width, height = (float(word) for word in root.get("viewBox", "").split()[2:])
        assert width == pytest.approx(72 * inches[0], rel=0.02)
        assert height == pytest.approx(72 * inches[1], rel=0.02)
        assert len("".join(root.itertext()).split()) > 3  # letters are letters
        own = ElementTree.tostring(root, encoding="unicode").lower()
        assert re.findall(r"#[0-9a-f]{6}\b", own) == [], "a colour that does not follow the reader's mode"


def test_words_for_those_who_do_not_see_a_picture(made):
    first = pictures.pictures(made)[0]
    text = svg.inline(first.draw, first.wide, name="p", words='"a" < b & c', narrow=False)
    assert ElementTree.fromstring(text).get("aria-label") == '"a" < b & c'


@pytest.mark.parametrize(
    "name", [NAMES[3], *(pytest.param(n, marks=pytest.mark.slow) for n in NAMES if n != "roofline")]
)
def test_the_pictures_stand_alone(name, made):
    found = pictures.pictures(made)
    assert [picture.name for picture in found] == NAMES
    picture = next(picture for picture in found if picture.name == name)
    assert svg.png(picture.draw, picture.wide, picture.title).startswith(b"\x89PNG")
    text = svg.svg_file(picture.draw, picture.wide, picture.title)
    root = ElementTree.fromstring(text.split("?>", 1)[1].split(">", 1)[1])
    assert picture.title in "".join(root.itertext())


def test_the_same_document_gives_the_same_bytes(made, text):
    """Also after it was stored."""
    read = json.loads(json.dumps(made))
    read |= {"stages": [], "scaling": [], "results": [r for r in read["results"] if r["group"] == "batch"]}
    again = page.page(read)
    (batch,) = re.findall(r'<svg [^>]*class="wide".*?</svg>', again, re.DOTALL)[:1]
    assert batch in text


def test_the_figures_are_those_of_the_document(made, outline):
    for row in made["results"]:
        assert f"{row['samples_per_second']['median']:,.0f}" in outline.text
    ratio = made["ratios"][0]["times_as_fast"]
    assert f"{ratio['median']:.2f}× ({ratio['low']:.2f} – {ratio['high']:.2f})" in outline.text
    assert "t ∝ N^1.00" in outline.text
    for note in made["notes"]:
        assert note in outline.text


def test_what_was_not_measured_is_not_drawn(made):
    """No peer, no sweep, no ceiling: the pictures are left out, and the page says that there was no GPU."""
    alone = {
        **made,
        "complete": False,
        "results": [row for row in made["results"] if row["group"] == "shapes" and row["peer"] == "handgrad"],
        "bandwidth": {},
        "stages": [],
        "scaling": [],
        "ratios": [],
        "products": [],
        "against_products": [],
    }
    assert [picture.name for picture in pictures.pictures(alone)] == ["throughput"]
    text = page.page(alone)
    assert "No GPU was measured" in text
    assert "Not complete" in text
    assert "PyTorch" not in text.split("Ceilings")[0]
    assert pictures.pictures({**alone, "results": []}) == []


def test_names_from_outside_are_escaped(made):
    bad = {**made, "notes": ["<script>alert(1)</script>"], "results": [], "stages": [], "scaling": []}
    assert "<script>" not in page.page(bad)


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
@pytest.mark.parametrize(
    ("width", "dark"),
    [
        (1280, False),
        (390, True),
        pytest.param(1280, True, marks=pytest.mark.slow),
        pytest.param(390, False, marks=pytest.mark.slow),
    ],
)
def test_chromium_shows_it_without_an_error(width, dark, text, tmp_path: Path):
    """Nothing on the console; the background follows the mode; nothing is wider than the window."""
    (tmp_path / "bench.html").write_text(text.replace("</body>", f"<script>{LOOK}</script></body>"))
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0",
        f"--window-size={width},900", f"--screenshot={tmp_path / 'page.png'}",
        *(["--blink-settings=preferredColorScheme=0"] if dark else []),
        f"file://{tmp_path / 'bench.html'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    (said,) = [line for line in console if "TITLE" in line]
    assert console == [said]
    found = json.loads(re.search(r"TITLE(\{.*?\})\"", said)[1])
    assert found["wide"] <= found["window"]
    assert found["background"] == ("rgb(22, 24, 28)" if dark else "rgb(255, 255, 255)")
    assert set(found["shown"]) == {"narrow" if width < 640 else "wide"}
    assert (tmp_path / "page.png").stat().st_size > 10_000
