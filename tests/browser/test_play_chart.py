"""A chart of Altair in a page: what is drawn follows the controls, and is what was given."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import pytest
from figures import cell, finding, slide
from playwright.sync_api import Page

from flatnb import charts, plots
from flatnb.book import charts as bundle
from flatnb.charts.page import STYLE

TABLE = pd.DataFrame(
    {"set": [0, 0, 1], "method": ["SAM", "EMA", "SAM"], "gain": [0.25, 0.5, -0.125]}
)

SHIFTS = ["nothing", "a little", "much"]


def chart() -> alt.TopLevelMixin:
    """The gains on one of two sets, by buttons, in one of two units, by a menu."""
    factor = charts.pick(["1", "100"], "unit")
    return (
        alt.Chart(charts.data(TABLE))
        .transform_filter("datum.set == set")
        .transform_calculate(shown=f"datum.gain * toNumber({factor})")
        .mark_point(color=plots.RED)
        .encode(x="shown:Q", y="method:N", tooltip=["method:N", "shown:Q"])
        .add_params(
            charts.choice("set", ["plane", "images"]),
            charts.choice("unit", ["shares", "points"], "in", menu=True),
            charts.slider("shift", SHIFTS, "shift", at=1),
            alt.param(name="finding", expr=f"'By ' + {charts.pick(SHIFTS, 'shift')}"),
        )
        .properties(
            width="container",
            height=alt.Step(20),
            description="Gains.",
            usermeta=charts.about("Choose a set.", say="finding", shift=SHIFTS),
        )
        .configure(**STYLE)
    )


@pytest.fixture
def tab(toy: Callable[..., Page], tmp_path: Path) -> Page:
    bundle.save(tmp_path)
    script = (tmp_path / bundle.SCRIPT).read_text(encoding="utf-8")
    data = f'<div class="cell">{charts.script(chart())}</div>'
    said: list[str] = []
    html = f"<script>{script}</script>{data}{cell('chart')}"
    page = toy("chart", html)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    points(page)
    assert said == []
    return page


def points(tab: Page) -> list[str]:
    """What a screen reader is told of the points, once there are some."""
    found = tab.locator("path[aria-roledescription=point]")
    found.first.wait_for()
    tab.wait_for_timeout(100)
    return [mark.get_attribute("aria-label") or "" for mark in found.all()]


def rows(scale: float, chosen: int) -> list[str]:
    found: Any = TABLE[TABLE["set"] == chosen]
    return [
        f"shown: {scale * row.gain:g}; method: {row.method}".replace("-", "−")
        for row in found.itertuples()
    ]


def test_the_chart_takes_the_place_of_the_picture(tab: Page) -> None:
    assert points(tab) == rows(1, chosen=0)
    assert not tab.locator("figure img").is_visible()
    assert tab.locator("figcaption").is_visible()
    tab.emulate_media(media="print")
    assert tab.locator("figure img").is_visible()
    assert not tab.locator(".play").is_visible()


def test_what_is_drawn_follows_the_controls(tab: Page) -> None:
    tab.get_by_label("images").check()
    assert points(tab) == rows(1, chosen=1)
    tab.locator("select").select_option("points")
    assert points(tab) == rows(100, chosen=1)
    tab.get_by_text("Reset").click()
    assert points(tab) == rows(1, chosen=0)


def test_a_slider_says_words_and_the_chart_a_sentence(tab: Page) -> None:
    assert tab.locator(".play-value").inner_text() == "a little"
    assert finding(tab) == "By a little"
    slide(tab, "shift", 2)
    tab.wait_for_timeout(100)
    slider = tab.get_by_role("slider")
    assert slider.get_attribute("aria-valuetext") == "much"
    assert finding(tab) == "By much"


def test_buttons_and_menus_are_for_the_keyboard_too(tab: Page) -> None:
    tab.get_by_label("plane").focus()
    tab.keyboard.press("ArrowRight")
    assert points(tab) == rows(1, chosen=1)
    tab.keyboard.press("Tab")
    tab.keyboard.press("ArrowDown")
    assert points(tab) == rows(100, chosen=1)


def test_colors_follow_the_mode(tab: Page) -> None:
    stroke = "(point) => getComputedStyle(point).stroke"
    point = tab.locator("path[aria-roledescription=point]").first
    light = point.evaluate(stroke)
    tab.evaluate("document.documentElement.dataset.theme = 'dark'")
    assert light == "rgb(185, 71, 0)" != point.evaluate(stroke)


@pytest.mark.parametrize("width", [320, 800])
def test_the_chart_fits_its_column(tab: Page, width: int) -> None:
    tab.set_viewport_size({"width": width, "height": 900})
    tab.wait_for_timeout(300)
    box, column = (
        tab.locator(selector).bounding_box()
        for selector in (".play-chart svg", ".play")
    )
    assert box is not None and column is not None
    assert box["width"] == pytest.approx(column["width"], abs=2)


def test_under_the_mouse_are_the_numbers(tab: Page) -> None:
    tab.locator("path[aria-roledescription=point]").first.hover()
    tip = tab.locator("#vg-tooltip-element")
    assert tip.is_visible()
    assert tip.inner_text().split() == ["method", "SAM", "shown", "0.25"]


def test_without_vega_there_is_the_picture(toy: Callable[..., Page]) -> None:
    data = f'<div class="cell">{charts.script(chart())}</div>'
    page = toy("chart", data + cell("chart"))
    page.wait_for_timeout(300)
    assert page.locator("figure img").is_visible()
    assert page.locator(".play").count() == 0
