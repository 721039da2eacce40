"""page.js: boxes that are wider than their column, and the colors of paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

STATIC = Path(__file__).resolve().parents[2] / "book" / "_static"
HTML = """<!doctype html><html lang="en" data-theme="dark"><title>A page</title>
<article class="bd-article"><pre id="long">{}</pre><pre id="short">one</pre>
<div class="picture" style="--width: 8; --height: 2"><img alt="wide"></div>
<div class="picture of-columns" style="--width: 8; --height: 2"><img alt="whole">
<div class="columns"><div class="column" style="--share: 0.5">
<div class="window" style="--from: 0; --part: 0.5; --floor: 1"><img alt="left"></div></div>
<div class="column" style="--share: 0.6">
<div class="window" style="--from: 0; --part: 0.1; --floor: 0.9"><img alt="labels"></div>
<div class="window" style="--from: 0.5; --part: 0.5; --floor: 1"><img alt="right"></div>
</div></div></div></article>
""".format("word " * 40)


@pytest.fixture
def phone(browser: Browser) -> Iterator[Page]:
    """A page with code that is too wide for it, code that fits, and a wide picture."""
    tab = browser.new_page(viewport={"width": 390, "height": 700})
    tab.set_content(HTML)
    tab.add_style_tag(path=STATIC / "custom.css")
    tab.add_style_tag(content="pre { overflow: auto }")
    tab.add_script_tag(path=STATIC / "page.js")
    tab.wait_for_selector("#long.wider")
    yield tab
    tab.close()


def hinted(tab: Page, selector: str) -> bool:
    return tab.locator(f"{selector} + .scroll-hint:visible").count() == 1


def test_only_a_box_that_is_too_wide_says_so(phone: Page) -> None:
    assert hinted(phone, "#long") and hinted(phone, ".picture")
    assert not hinted(phone, "#short")


def test_it_can_be_scrolled_by_keys_and_has_a_name(phone: Page) -> None:
    phone.keyboard.press("Tab")
    focused = phone.locator(":focus")
    assert focused.get_attribute("id") == "long"
    assert focused.get_attribute("aria-label") == "Code, wider than the page"
    phone.keyboard.press("ArrowRight")
    phone.wait_for_function("document.querySelector('#long').scrollLeft > 0")
    assert phone.locator("#short[tabindex]").count() == 0


def test_at_its_end_nothing_fades(phone: Page) -> None:
    long = phone.locator("#long")
    faded = "e => getComputedStyle(e).maskImage !== 'none'"
    assert long.evaluate(faded)
    long.evaluate("e => e.scrollTo(1e6, 0)")
    phone.wait_for_selector("#long.at-end")
    assert not long.evaluate(faded)


def test_where_there_is_room_all_marks_go(phone: Page) -> None:
    phone.set_viewport_size({"width": 2400, "height": 700})
    phone.wait_for_selector("#long:not(.wider)")
    assert not hinted(phone, "#long")
    assert phone.locator("#long[tabindex], #long[role]").count() == 0


def test_the_text_of_a_wide_picture_stays_readable(phone: Page) -> None:
    """10 points at 58 pixels per inch are 8 pixels."""
    box = phone.get_by_alt_text("wide").bounding_box()
    assert box is not None
    assert box["width"] == pytest.approx(8 * 58)
    assert box["height"] == pytest.approx(2 * 58)


def test_the_columns_of_a_wide_figure_stand_below_each_other(phone: Page) -> None:
    """Each window shows its part of the whole, and all have one scale in a column."""
    assert not phone.get_by_alt_text("whole").is_visible()
    left, right = (e.bounding_box() for e in phone.locator(".column").all())
    assert left and right and right["y"] >= left["y"] + left["height"]
    assert max(left["width"], right["width"]) <= 390
    windows = [e.bounding_box() for e in phone.locator(".window").all()]
    images = [e.bounding_box() for e in phone.locator(".window img").all()]
    for start, part, window, image in zip(
        (0, 0, 0.5), (0.5, 0.1, 0.5), windows, images, strict=True
    ):
        assert window and image
        assert image["width"] * part == pytest.approx(window["width"], abs=0.1)
        shift = window["x"] - image["x"]
        assert shift == pytest.approx(start * image["width"], abs=0.1)
        ratio = image["width"] / window["height"]
        assert ratio == pytest.approx(8 / 2, rel=0.01)
    phone.set_viewport_size({"width": 900, "height": 700})
    assert phone.get_by_alt_text("whole").is_visible()
    assert not phone.locator(".columns").is_visible()


def test_paper_has_light_colors_and_no_hints(phone: Page) -> None:
    root = phone.locator("html")
    phone.emulate_media(media="print")
    phone.wait_for_selector("html[data-theme=light]", state="attached")
    assert not hinted(phone, "#long")
    wrapped = "e => e.scrollWidth <= e.clientWidth"
    assert phone.locator("#long").evaluate(wrapped)
    phone.emulate_media(media="screen")
    phone.wait_for_selector("html[data-theme=dark]", state="attached")
    assert root.get_attribute("data-theme") == "dark"
