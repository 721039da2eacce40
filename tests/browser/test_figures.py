"""Figures to play with answer to mouse and keyboard, on every page that has one."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page
from visits import MODES, Mode, Visits

pytestmark = pytest.mark.pages

CONTROLS = "input:not([type=hidden]), select, button:not([type=reset])"

# What a reader would press, by the kind of control.
KEYS = {"range": ["ArrowRight", "ArrowLeft"], "radio": ["ArrowDown", "ArrowUp"]}
KEYS |= {"slider": KEYS["range"], "checkbox": ["Space"], "select-one": KEYS["radio"]}


def look(figure: Locator) -> str:
    """The plots of a figure, and what it says of them."""
    return figure.evaluate("""async (figure) => {
        const frame = () => new Promise((done) => requestAnimationFrame(done));
        await frame();
        await frame();
        const grounds = [...figure.querySelectorAll("canvas")].map((one) => one.toDataURL());
        const shown = [...figure.querySelectorAll(".play-plots, .play-finding")];
        return [...shown.map((one) => one.innerHTML), ...grounds].join();
    }""")


def changes(figure: Locator, actions: list[Callable[[], None]]) -> bool:
    """Whether one of the actions makes a figure look otherwise; charts take some time."""
    for act in actions:
        before = look(figure)
        act()
        if any(look(figure) != before for _ in range(60)):
            return True
    return False


def kind(control: Locator) -> str:
    return control.evaluate("(one) => one.getAttribute('role') || one.type")


def is_chosen(control: Locator) -> bool:
    """Of radio buttons, the one that changes nothing."""
    return kind(control) == "radio" and control.is_checked()


def by_mouse(tab: Page, control: Locator) -> list[Callable[[], None]]:
    """What the mouse can do to a control."""
    control.scroll_into_view_if_needed()
    box = control.bounding_box()
    assert box is not None
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def drag(across: float, up: float) -> None:
        tab.mouse.move(*middle)
        tab.mouse.down()
        tab.mouse.move(middle[0] + across, middle[1] - up, steps=4)
        tab.mouse.up()

    def click_at(part: float) -> None:
        tab.mouse.click(box["x"] + part * box["width"], middle[1])

    if kind(control) == "range":
        return [lambda: click_at(0.2), lambda: click_at(0.8)]
    if kind(control) == "select-one":  # the list that opens is no part of the page
        return [lambda: control.select_option(index=1)]
    if kind(control) == "slider":
        return [lambda: drag(40, 0), lambda: drag(-40, 0), lambda: drag(0, 40)]
    return [lambda: tab.mouse.click(*middle)]


def by_keyboard(tab: Page, control: Locator) -> list[Callable[[], None]]:
    control.focus()
    keys = KEYS.get(kind(control), ["Enter"])
    return [lambda key=key: tab.keyboard.press(key) for key in keys]


@pytest.mark.parametrize("mode", MODES[:2], ids=lambda mode: mode.name)
def test_every_control_changes_its_figure(
    lively: str, visit: Visits, mode: Mode
) -> None:
    """By mouse and by keyboard, and leaves the console empty."""
    silent, count = [], 0
    with visit.opened(mode) as (tab, seen):
        visit.load(tab, lively, mode)
        for figure in tab.locator(".play").all():
            reset = figure.locator("[type=reset]")
            for control in figure.locator(CONTROLS).all():
                if not control.is_visible() or is_chosen(control):
                    continue
                count += 1
                for hand in (by_mouse, by_keyboard):
                    named = f"{control.evaluate('measure.name')} {hand.__name__}"
                    if not changes(figure, hand(tab, control)):
                        silent.append(named)
                    elif reset.is_visible() and not changes(figure, hand(tab, reset)):
                        silent.append(f"Reset after {named}")
        assert seen.messages == []
    assert silent == []
    assert count, "a figure to play with has no control"
