"""What the tests of the pages measure with finds faults, and each kind of fault once."""

from collections.abc import Callable

from playwright.sync_api import Page
from visits import MEASURE, axe, contrast

GRAY = '<p style="color: #777">pale or not</p>'


def test_contrast_is_compared_once_for_each_look(toy: Callable[..., Page]) -> None:
    """Gray words are seen on white, not on black; the same gray on white is no news."""
    tab = toy("wells", f'<main style="background: #fff">{GRAY}</main>')
    compared: set[str] = set()

    def findings(ground: str) -> int:
        background = "(main, ground) => { main.style.background = ground }"
        tab.locator("main").evaluate(background, ground)
        return len(contrast(tab, compared))

    tab.evaluate(MEASURE)
    axe(tab)  # loads it
    assert findings("#fff") == 1
    assert findings("#fff") == 0
    assert findings("#000") == 0
    assert findings("#ddd") == 1
    assert findings("#ddd") == 0
