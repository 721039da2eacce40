"""Pages with pictures: which of two is shown, its words, its size."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image
from sphinx.application import Sphinx

SVG = """<svg width="360pt" height="144pt" xmlns="http://www.w3.org/2000/svg">
<path style="fill: #ffffff"/></svg>"""
PAGE = """
A page
======

.. figure:: one.svg
   :alt: A white square.
   :name: square

   It is white.

.. image:: two.png
   :alt: Pixels.

.. image:: wide.svg
   :alt: Two columns.

.. image:: https://example.org/three.png
   :alt: Of somebody else.
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages of a small project with four pictures."""
    root = tmp_path_factory.mktemp("project")
    (root / "one.svg").write_text(SVG)
    Image.new("RGB", (96, 48), "white").save(root / "two.png", dpi=(96, 96))
    wide = SVG.replace("360pt", "576pt")
    wide = wide.replace("<svg", '<svg data-panels="0 0.5 1; 0 0.1 0.9, 0.5 1 1"', 1)
    (root / "wide.svg").write_text(wide)
    (root / "index.rst").write_text(PAGE)
    settings = {"extensions": ["flatnb.book.pictures"]}
    out = root / "out"
    app = Sphinx(
        root,
        None,
        out,
        root / "trees",
        buildername="html",
        confoverrides=settings,
        status=None,
        warning=None,
    )
    app.build()
    return out


def boxes(built: Path) -> list[str]:
    page = (built / "index.html").read_text(encoding="utf-8")
    return re.findall(r'<div class="picture".*?</div>', page, re.DOTALL)


def test_a_wide_figure_is_there_by_columns_too(built: Path) -> None:
    page = (built / "index.html").read_text(encoding="utf-8")
    assert page.count("picture of-columns") == 1
    whole = re.search(r'<div class="picture of-columns".*', page, re.DOTALL)
    assert whole is not None
    windows = re.findall(r'class="window" style="([^"]*)"', whole[0])
    assert windows == [
        "--from: 0.000; --part: 0.500; --floor: 1.000",
        "--from: 0.000; --part: 0.100; --floor: 0.900",
        "--from: 0.500; --part: 0.500; --floor: 1.000",
    ]
    columns = re.findall(r'class="column"([^>]*) style="([^"]*)"', whole[0])
    hidden = ' aria-hidden="true"'  # the words are said once
    assert columns == [("", "--share: 0.500"), (hidden, "--share: 0.600")]


def test_each_picture_of_ours_is_there_for_both_modes(built: Path) -> None:
    found = boxes(built)
    assert len(found) == 2
    for box, name in zip(found, ("one{}.svg", "two{}.png"), strict=True):
        light, darker = re.findall(r"<img [^>]*>", box)
        assert f'src="_images/{name.format("")}"' in light and "only-light" in light
        assert (
            f'src="_images/{name.format("-dark")}"' in darker and "only-dark" in darker
        )
        assert (built / "_images" / name.format("-dark")).is_file()
        assert all('loading="lazy"' in image for image in (light, darker))


def test_both_have_the_words(built: Path) -> None:
    assert [box.count('alt="A white square."') for box in boxes(built)] == [2, 0]


def test_the_box_has_the_size_in_inches(built: Path) -> None:
    first, second = boxes(built)[:2]
    assert "--width: 5.000; --height: 2.000" in first
    assert "--width: 1.000; --height: 0.500" in second


def test_the_dark_one_is_dark(built: Path) -> None:
    assert "#14181e" in (built / "_images" / "one-dark.svg").read_text()
    pixels = Image.open(built / "_images" / "two-dark.png").convert("RGB")
    assert pixels.getpixel((0, 0)) == (0x14, 0x18, 0x1E)


def test_a_figure_keeps_its_name_and_caption(built: Path) -> None:
    page = (built / "index.html").read_text(encoding="utf-8")
    assert page.count('id="square"') == 1
    assert "It is white." in page
