"""Pages load the scripts of their figures to play with, and every figure has its script."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from flatnb.book import play

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "book" / "_static" / "play"


class App:
    """What the extension needs of Sphinx: it keeps what it is given."""

    def __init__(self) -> None:
        self.files: list[tuple[str, str]] = []

    def connect(self, event: str, function: Any) -> None:
        assert event == "html-page-context"
        self.page = function

    def add_css_file(self, name: str) -> None:
        self.files.append((name, ""))

    def add_js_file(self, name: str, loading_method: str) -> None:
        self.files.append((name, loading_method))


@pytest.mark.parametrize(
    ("body", "scripts"),
    [
        ('<div class="cell tag_play-a tag_remove-input">', ["play.js", "play/a.js"]),
        ('<div data-play="b"></div>' * 2, ["play.js", "play/b.js"]),
        ('<div class="tag_play-chart">', ["play.js", "vega.js", "play/chart.js"]),
        ("<code>play-a</code>", []),
    ],
)
def test_a_page_loads_what_its_figures_need(body: str, scripts: list[str]) -> None:
    app = App()
    play.setup(app)
    app.page(app, "page", "page.html", {"body": body}, None)
    style = [("play.css", "")] if scripts else []
    assert app.files == style + [(script, "defer") for script in scripts]


def test_a_page_without_a_body_loads_nothing() -> None:
    app = App()
    play.setup(app)
    app.page(app, "search", "search.html", {}, None)
    assert app.files == []


def declared() -> set[str]:
    """The names of all figures: tags of cells, and elements in Markdown."""
    names: set[str] = set()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            tags = cell["metadata"].get("tags", [])
            names |= {tag[5:] for tag in tags if tag.startswith("play-")}
    for path in (ROOT / "book").rglob("*.md"):
        text = path.read_text(encoding="utf-8")
        names |= set(re.findall(r'<div[^>]* data-play="([\w-]+)"', text))
    return names


def test_every_figure_has_a_script_and_every_script_a_figure() -> None:
    assert {path.stem for path in SCRIPTS.glob("*.js")} == declared()


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.js")), ids=lambda p: p.stem)
def test_a_script_is_small_and_registers_under_its_name(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert f'flatnb.play("{script.stem}",' in text
    assert f"flatnb.{script.stem} = " in text
    assert len(text.encode()) < 16_000
