"""What the build writes into the landing page."""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image
from small_book import code, read, write

from flatnb import report
from flatnb.book import headline, landing
from flatnb.results.statistics import LEVEL

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


def test_the_figure_has_the_numbers_of_the_tests() -> None:
    panels = json.loads(headline.data())
    for rows, table in zip(panels.values(), headline.tests().values(), strict=True):
        table = table.rename(index=report.NAMES)
        assert {row["method"] for row in rows} == set(table.index)
        for row in rows:
            test = table.loc[row["method"]]
            assert row["gain"] == pytest.approx(100 * test["difference"], abs=5e-4)
            assert row["half"] == pytest.approx(100 * test["interval"], abs=5e-4)
            judged = test["p_holm"] < LEVEL and not test["at_edge"]
            assert (row["verdict"] != 0) == judged
            assert row["verdict"] * row["gain"] >= 0


def test_all_panels_have_the_methods_in_one_order() -> None:
    panels = json.loads(headline.data())
    orders = {tuple(row["method"] for row in rows) for rows in panels.values()}
    assert len(panels) == 3 and len(orders) == 1
    gains = [row["gain"] for row in panels["tuned"]]
    assert gains == sorted(gains)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_every_chapter_has_a_finding_that_fits_a_card(chapter: Path) -> None:
    found = landing.finding("".join(read(chapter)["cells"][0]["source"]))
    assert found.endswith((".", "?"))
    assert len(found.split()) <= 60
    assert not {"<!--", "{term}", "]("} & set(found)


def test_a_lead_without_a_finding_is_named() -> None:
    with pytest.raises(ValueError, match="no bold finding in '# Title"):
        landing.finding("# Title\n\nThis page is about losses.")


def book(root: Path) -> None:
    """A book of one chapter, executed, whose first output is a picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (800, 400), "white").save(buffer, "png")
    picture = base64.b64encode(buffer.getvalue()).decode()
    output = {"output_type": "display_data", "data": {"image/png": picture}}
    lead = {
        "cell_type": "markdown",
        "metadata": {},
        "source": "# One\n\n**Found.** So.",
    }
    cell = {**code("1"), "outputs": [output]}
    (root / "notebooks").mkdir()
    write(root / "notebooks" / "01_a.ipynb", {"cells": [lead, cell]})
    toc = (
        "parts:\n- caption: Part\n  numbered: true\n"
        "  chapters: [{file: notebooks/01_a}]\n"
        "- caption: Use it\n  chapters: [{file: book/x}]\n"
    )
    (root / "_toc.yml").write_text(toc)


def test_a_card_has_picture_finding_and_minutes(tmp_path: Path) -> None:
    book(tmp_path)
    text = landing.filled("Before <!-- chapters --> after", tmp_path, {}, tmp_path)
    assert text.startswith("Before ### Part") and text.endswith(" after")
    assert ":::{grid-item-card} 1  One" in text
    assert "Found. *1\N{NO-BREAK SPACE}min*" in text
    assert "book/x" not in text
    for mode, pixel in (("light", (255, 255, 255)), ("dark", (20, 24, 30))):
        image = Image.open(tmp_path / "chapters" / f"01_a-{mode}.webp")
        assert image.size == (landing.WIDTH, landing.WIDTH // 2)
        center = image.convert("RGB").getpixel((100, 100))
        assert all(abs(a - b) < 4 for a, b in zip(center, pixel, strict=True))


def test_text_without_comments_stays(tmp_path: Path) -> None:
    assert landing.filled("# Intro\n", tmp_path, {}, tmp_path) == "# Intro\n"
    assert list(tmp_path.iterdir()) == []


def test_bibtex_is_of_the_citation_file() -> None:
    text = landing.bibtex((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert "title   = {flatnb: flat minima" in text
    assert "author  = {{The flatnb authors}}" in text
    assert "year    = {2026}" in text
