"""What a built page consists of: its head, its files, what they weigh."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image
from small_book import ROOT, book

from flatnb.book import downloads, lean, stage
from flatnb.results import compare

REDIRECTS = yaml.safe_load((ROOT / "_config.yml").read_text())["sphinx"]["config"][
    "redirects"
]


@pytest.fixture
def html(built: dict[str, Path]) -> Path:
    """The pages of the small book, built without an address."""
    return built["without"] / "_build" / "html"


def pages(html: Path) -> list[Path]:
    """All but those that only lead to another."""
    moved = {html / f"{old}.html" for old in REDIRECTS}
    return [path for path in html.rglob("*.html") if path not in moved]


# --- light pages --------------------------------------------------------------------


def test_every_page_has_one_style_sheet_and_waits_for_no_script(html: Path) -> None:
    for path in pages(html):
        text = path.read_text()
        assert len(re.findall(r'rel="stylesheet"', text)) == 1, path
        scripts = re.findall(r"<script[^>]* src=[^>]*>", text)
        assert scripts and all(" defer" in script for script in scripts), path


def test_every_file_that_a_page_names_is_there_without_maps_fonts_and_notes(
    html: Path,
) -> None:
    for path in pages(html):
        for name in re.findall(
            r'(?:src|href)="(?!data:|https:)([^"#?:]+)', path.read_text()
        ):
            assert (path.parent / name).exists(), f"{path} names {name}"
    suffixes = {path.suffix for path in (html / "_static").rglob("*")}
    assert not suffixes & {".map", ".ttf", ".woff2", ".mo", ".po", ".html"}
    chapter = html / "notebooks" / "01_a.html"
    names = re.findall(r'<script[^>]* src="([^"?]+)', chapter.read_text())
    scripts = [(chapter.parent / name).read_text() for name in names]
    assert 1e3 < sum(map(len, scripts)) < 2e5
    assert not any("sourceMappingURL" in script for script in scripts)
    assert not any(re.search(r"console\.log\(.\[PST\]", script) for script in scripts)


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


def test_every_font_of_icons_that_a_rule_asks_for_has_the_icons(html: Path) -> None:
    """Such as that before a link to GitHub, which Sphinx shortens and marks."""
    from base64 import b64decode
    from io import BytesIO

    from fontTools.ttLib import TTFont

    assert 'class="github' in (html / "book" / "intro.html").read_text()
    sheet = (html / "_static" / lean.SHEET).read_text()
    fonts = dict(re.findall(r"--fa-font-(\w+):([^;}]*)", sheet))
    faces = {
        (family.replace("\\", ""), weight): TTFont(BytesIO(b64decode(face)))
        for family, weight, face in re.findall(
            r"@font-face\{[^}]*font-family:([^;]*);[^}]*font-weight:(\d+);"
            r"src:url\(data:font/woff;base64,([^)]*)\)",
            sheet,
        )
    }
    asked = {style for style in fonts if f"var(--fa-font-{style})" in sheet}
    assert {"brands", "solid"} <= asked
    for style in asked:
        weight, family = re.search(r"(\d+) .*?\"(.*)\"", fonts[style]).groups()
        assert (family, weight) in faces, style
    (code,) = re.findall(r'--pst-icon-github:"(.|\\\w+)"', sheet)
    glyphs = faces["Font Awesome 6 Brands", "400"].getBestCmap()
    assert (ord(code) if len(code) == 1 else int(code[1:], 16)) in glyphs


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
    assert described.format("01_a: Flat minima, measured") in chapter


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


def test_formulas_are_shown_where_there_are_some(html: Path) -> None:
    for path in pages(html):
        text = path.read_text()
        assert ("mathjax.js" in text) == ("window.MathJax" in text)
        assert ("mathjax.js" in text) == (path.stem == "intro"), path


def test_names_and_roles_are_those_that_one_sees(html: Path) -> None:
    intro = (html / "book" / "intro.html").read_text()
    assert re.search(
        r'<nav aria-label="Start">\s*<a class="navbar-brand', " ".join(intro.split())
    )
    assert 'role="doc-biblioentry"' not in intro and 'role="listitem"' in intro
    assert "Toggle hidden content" not in intro


# --- pages that know their address --------------------------------------------------

SITE = "https://acme.github.io/flatnb/"


@pytest.fixture
def published(built: dict[str, Path]) -> Path:
    """The pages of the small book, built with a made-up address."""
    return built["with"] / "_build" / "html"


def test_the_address_of_the_site_follows_from_the_repository_unless_it_is_given(
    tmp_path: Path,
) -> None:
    root = book(tmp_path)
    path = root / "_config.yml"
    text = path.read_text().replace('url: ""', 'url: "https://github.com/acme/flatnb"')
    path.write_text(text)
    assert stage.staged_settings(root)["html"]["baseurl"] == SITE
    other = "https://flat.example.org/"
    path.write_text(text.replace("html:\n", f"html:\n  baseurl: {other}\n", 1))
    config = stage.staged_settings(root)
    assert config["html"]["baseurl"] == other
    assert config["sphinx"]["config"]["ogp_site_url"] == other
    assert config["sphinx"]["config"]["notfound_urls_prefix"] == "/"


def tags(path: Path) -> dict[str, str]:
    """The tags of a page that say what a card of a link to it shows."""
    pattern = r'<meta (?:property|name)="([^"]+)" content="([^"]*)"'
    return {
        name: unescape(text) for name, text in re.findall(pattern, path.read_text())
    }


def test_a_link_to_a_page_has_a_card(published: Path) -> None:
    found = tags(published / "book" / "intro.html")
    assert found["og:title"] == "Intro"
    assert found["og:url"] == f"{SITE}book/intro.html"
    assert found["og:description"] == found["description"] == "Flat is 2 & wide."
    assert found["og:site_name"] == "Flat minima, measured"
    image = Image.open(published / found["og:image"].removeprefix(SITE))
    assert image.size == (int(found["og:image:width"]), int(found["og:image:height"]))
    assert found["og:image:alt"] == "Intro: Flat is 2 & wide."


def test_each_page_has_one_address_and_the_map_lists_it(published: Path) -> None:
    listed = re.findall(r"<loc>([^<]*)</loc>", (published / "sitemap.xml").read_text())
    assert sorted(listed) == [f"{SITE}book/intro.html", f"{SITE}notebooks/01_a.html"]
    for address in listed:
        text = (published / address.removeprefix(SITE)).read_text()
        assert re.findall(r'rel="canonical" href="([^"]*)"', text) == [address]


def test_without_an_address_nothing_needs_one(html: Path) -> None:
    assert not (html / "sitemap.xml").exists() and not (html / "404.html").exists()
    for path in pages(html):
        assert not re.search(r"og:|canonical", path.read_text().split("</head>")[0])


def test_the_page_for_what_is_not_found_works_at_any_depth(published: Path) -> None:
    text = (published / "404.html").read_text()
    assert "<h1>This page is not here</h1>" in text
    names = re.findall(r'(?:src|href)="([^"]+)', text)
    local = [name for name in names if not name.startswith(("#", "https:"))]
    assert len(local) > 10 and all(name.startswith("/flatnb/") for name in local)
    for name in local:
        path = re.split("[?#]", name.removeprefix("/flatnb/"))[0]
        assert (published / path).exists(), name


def test_chapters_start_on_colab_and_binder(published: Path) -> None:
    text = (published / "notebooks" / "01_a.html").read_text()
    colab = "https://colab.research.google.com/github/acme/flatnb/blob/v1"
    binder = "https://mybinder.org/v2/gh/acme/flatnb/v1?urlpath=lab/tree"
    for start in (colab, binder):
        assert f'"{start}/notebooks/01_a.ipynb"' in text


# --- old names ----------------------------------------------------------------------


def test_every_name_that_a_chapter_had_leads_to_a_page() -> None:
    for old, new in REDIRECTS.items():
        page = (ROOT / old).parent / new
        assert any(page.with_suffix(s).exists() for s in (".ipynb", ".md")), old
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no git: which names there were is unknown")
    options = ["--format=", "--name-only", "--diff-filter=AR"]
    command = ["git", "log", *options, "--", "notebooks"]
    log = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    names = {Path(line) for line in log.stdout.split() if line.endswith(".ipynb")}
    for name in names:
        assert (ROOT / name).exists() or str(name.with_suffix("")) in REDIRECTS, name


def test_an_old_name_leads_on_with_and_without_scripts(html: Path) -> None:
    text = (html / "notebooks" / "12_audit.html").read_text()
    new = "21_audit_losses.html"
    assert f'location.replace("{new}" + location.hash)' in text
    assert f'content="0; url={new}"' in text and f'<a href="{new}">' in text
    assert 'url=book/intro.html"' in (html / "index.html").read_text()


# --- recorded runs ------------------------------------------------------------------


def test_runs_of_a_family_are_files_by_kind_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = tmp_path / "files", tmp_path / "cache"
    counts = downloads.save_records(folder, cache, "finetune")
    assert counts.keys() == {f"finetune-{k}.csv" for k in ("fresh", "selected")}
    for name, count in counts.items():
        kind = name.removeprefix("finetune-").removesuffix(".csv")
        runs, expected = (
            pd.read_csv(folder / name),
            compare.select(["finetune/*"], kind),
        )
        assert len(runs) == len(expected) == count
        assert runs["record"].tolist() == expected["record"].tolist()
        assert runs["trace"].to_numpy() == pytest.approx(
            expected["trace"].to_numpy(), 1e-5, nan_ok=True
        )
    monkeypatch.setattr(compare, "select", None)
    assert downloads.save_records(folder, cache, "finetune") == counts


@pytest.mark.parametrize(
    ("family", "settings"), [("finetune-again", 17), ("sensing", 9), ("gnp-map", 84)]
)
def test_where_nothing_was_chosen_one_file_has_the_runs_of_all_settings(
    tmp_path: Path, family: str, settings: int
) -> None:
    """Chapter 13 compares plain fine-tuning at a second setting of its records."""
    counts = downloads.save_records(tmp_path, tmp_path / "cache", family)
    assert list(counts) == [f"{family}-runs.csv"]
    runs = pd.read_csv(tmp_path / f"{family}-runs.csv")
    cells = runs.groupby(["record", "setting"]).size()
    assert len(cells) == settings
    assert counts[f"{family}-runs.csv"] == len(runs) == cells.sum()
    assert not runs.duplicated(["record", "setting", "seed"]).any()


def test_a_page_that_reads_records_links_to_their_runs(tmp_path: Path) -> None:
    root = book(tmp_path)
    path = root / "notebooks" / "01_a.ipynb"
    content = json.loads(path.read_text())
    content["metadata"]["flatnb"] = {"records": ["images/*/NSO", "none/*"]}
    path.write_text(json.dumps(content))
    folder = stage.stage(root, {})
    *_, last = json.loads((folder / "notebooks" / "01_a.ipynb").read_text())["cells"]
    links = re.findall(
        r'href="\.\./([^"]*)">([^<]*)</a> \(([\d,]+) runs\)', last["source"]
    )
    assert len(links) == 3
    for address, name, _ in links:
        assert (folder / stage.EXTRA / address).name == name
        assert (folder / stage.EXTRA / address).exists()
