"""A figure to play with on a page of its own, and its controls by their labels."""

import re

from playwright.sync_api import Locator, Page

CELL = """<div class="cell tag_play-{name}"><div class="cell_output"><figure>
<img alt="the picture" width="100" height="50" src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">
<figcaption>The caption.</figcaption></figure></div>{script}</div>"""


def cell(name: str, data: str = "") -> str:
    """The HTML of a notebook's cell whose picture the figure replaces."""
    script = f'<script type="application/json" class="play-data">{data}</script>'
    return CELL.format(name=name, script=script if data else "")


def slide(tab: Page, label: str, value: float) -> None:
    """Move the slider whose label begins so."""
    slider = tab.locator(".play-slider:not([hidden])", has_text=re.compile(f"^{label}"))
    slider.locator("input").fill(str(value))
    drawn(tab)


def drawn(tab: Page) -> None:
    """Wait until the figure shows what its controls say."""
    tab.evaluate("new Promise((done) => setTimeout(() => requestAnimationFrame(done)))")


def finding(tab: Page) -> str:
    return tab.locator(".play-finding").inner_text()


def handle(tab: Page) -> Locator:
    return tab.locator(".play-handle")
