"""What a built page consists of: its head, its files, what they weigh."""

import json
import re
from pathlib import Path

import pytest
from small_book import ROOT, book

from flatnb.book import lean, stage


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small book, built without an address."""
    root = book(tmp_path_factory.mktemp("site"))
    assert stage.build(stage.stage(root, {}), root / "_build" / "html")
    return root / "_build" / "html"


def pages(html: Path) -> list[Path]:
    """All but the one that only leads to the first."""
    return [path for path in html.rglob("*.html") if path != html / "index.html"]


# --- light pages --------------------------------------------------------------------


def test_every_page_has_one_style_sheet_and_waits_for_no_script(html: Path) -> None:
    for path in pages(html):
        text = path.read_text()
        assert len(re.findall(r'rel="stylesheet"', text)) == 1, path
        scripts = re.findall(r"<script[^>]* src=[^>]*>", text)
        assert scripts and all(" defer" in script for script in scripts), path


def test_every_file_that_a_page_names_is_there_and_no_map_or_second_font(
    html: Path,
) -> None:
    for path in pages(html):
        for name in re.findall(r'(?:src|href)="([^"#?:]+)', path.read_text()):
            assert (path.parent / name).exists(), f"{path} names {name}"
    suffixes = {path.suffix for path in (html / "_static").rglob("*")}
    assert not suffixes & {".map", ".ttf", ".woff2", ".mo", ".po", ".html"}
    chapter = html / "notebooks" / "01_a.html"
    names = re.findall(r'<script[^>]* src="([^"?]+)', chapter.read_text())
    scripts = [(chapter.parent / name).read_text() for name in names]
    assert 1e3 < sum(map(len, scripts)) < 2e5
    assert not any("sourceMappingURL" in script for script in scripts)


def test_every_icon_of_a_page_has_its_glyph(html: Path) -> None:
    from base64 import b64decode
    from io import BytesIO

    from fontTools.ttLib import TTFont

    sheet = (html / "_static" / lean.SHEET).read_text()
    assert len(sheet) < 200_000
    (face,) = re.findall(r"900;src:url\(data:font/woff;base64,([^)]*)\)", sheet)
    glyphs = TTFont(BytesIO(b64decode(face))).getBestCmap()
    assert len(glyphs) < 100
    text = "".join(path.read_text() for path in pages(html))
    icons = set(re.findall(r'class="[^"]*\b(fa-(?!solid|lg)[\w-]+)', text))
    assert {"fa-bars", "fa-moon", "fa-magnifying-glass", "fa-download"} <= icons
    for icon in icons:
        code = re.search(rf'\.{icon}:before[^{{]*{{content:"\\(\w+)"', sheet)
        assert code and int(code[1], 16) in glyphs, icon


def test_rules_for_what_scripts_add_stay(html: Path) -> None:
    sheet = (html / "_static" / lean.SHEET).read_text()
    for name in (".show", ".bs-tooltip-auto", ".dropdown-menu-dark", ".tooltip-inner"):
        assert name in sheet
    assert "data-theme=dark" in sheet and "@media print" in sheet
    assert ".carousel-item" not in purge_of("<p>", sheet)
    assert "margin: 0" in sheet  # the book's own, whole


def purge_of(text: str, css: str) -> str:
    return lean.purged(css, lean.classes(text, ""))


def test_purging_keeps_what_can_apply() -> None:
    css = """/* a note */ /*! a license */
    p, .a:not(.b, .c) > p, .d { top: 0 }
    @font-face { src: url("a;}b") }
    @media (width < 3px) { .a { top: 1px } .d { top: 2px } }
    @supports (top: 0) { .d { top: 3px } }
    [class*=".d"] .a\\:b { top: 4px }"""
    assert purge_of('<p class="a">', css).split("\n") == [
        "/*! a license */",
        "p,.a:not(.b, .c) > p{ top: 0 }",
        '@font-face{ src: url("a;}b") }',
        "@media (width < 3px){.a{ top: 1px }}",
        '[class*=".d"] .a\\:b{ top: 4px }',
    ]


# --- what finders read --------------------------------------------------------------


def test_a_page_is_described_by_its_bold_sentences_or_its_first_paragraph(
    html: Path,
) -> None:
    described = '<meta name="description" content="{}" />'
    intro = (html / "book" / "intro.html").read_text()
    assert described.format("Flat is 2 &amp; wide.") in intro
    chapter = (html / "notebooks" / "01_a.html").read_text()
    assert described.format("Flat minima, measured") in chapter


def test_a_search_knows_what_each_page_is_about(html: Path) -> None:
    text = (html / "search.html").read_text()
    (leads,) = re.findall(r'<script id="leads"[^>]*>(.*?)</script>', text)
    assert json.loads(leads)["book/intro"] == "Flat is 2 & wide."
    for name in ("search.js", "searchtools.js", "searchindex.js"):
        assert name in text and name not in (html / "book" / "intro.html").read_text()


def test_answers_of_the_search_are_pages() -> None:
    script = (ROOT / "book" / "_static" / "search.js").read_text()
    names = {str(page.with_suffix("")) for page in stage.toc_files(ROOT)}
    answers = re.findall(r'/, "([\w/]+)"\],', script)
    assert len(answers) > 10 and set(answers) <= names


# --- faults of the theme ------------------------------------------------------------


def test_there_is_one_field_to_search_in(html: Path) -> None:
    for path in pages(html):
        text = path.read_text()
        assert text.count("search-button-field ") == 1, path
        assert (
            'aria-label="Search"'
            not in text.split('class="btn search-button-field')[1][:200]
        )


def test_names_and_roles_are_those_that_one_sees(html: Path) -> None:
    intro = (html / "book" / "intro.html").read_text()
    assert re.search(
        r'<nav aria-label="Start">\s*<a class="navbar-brand', " ".join(intro.split())
    )
    assert 'role="doc-biblioentry"' not in intro and 'role="listitem"' in intro
    assert "Toggle hidden content" not in intro
