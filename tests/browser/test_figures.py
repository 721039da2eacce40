"""Figures to play with answer to mouse and keyboard, on every page that has one."""

from collections.abc import Callable

import pytest
from known import excused
from playwright.sync_api import Locator, Page
from visits import MODES, Mode, Visits

pytestmark = pytest.mark.pages

CONTROLS = "input:not([type=hidden]), select, button, [role=slider]"

# What a reader would press, by the kind of control.
KEYS = {"range": ["ArrowRight", "ArrowLeft"], "radio": ["ArrowDown", "ArrowUp"]}
KEYS |= {"slider": KEYS["range"], "checkbox": ["Space"], "select-one": KEYS["radio"]}


def look(figure: Locator) -> str:
    """All that a figure shows, and what its controls are set to."""
    return figure.evaluate("""async (figure) => {
        const frame = () => new Promise((done) => requestAnimationFrame(done));
        await frame();
        await frame();
        const grounds = [...figure.querySelectorAll("canvas")].map((one) => one.toDataURL());
        const set = [...figure.querySelectorAll("input, select")].map((one) =>
            `${one.value} ${one.checked}`);
        return [figure.innerHTML, ...grounds, ...set].join();
    }""")


def kind(control: Locator) -> str:
    return control.evaluate("(one) => one.getAttribute('role') || one.type")


def by_mouse(tab: Page, control: Locator) -> list[Callable[[], None]]:
    """What the mouse can do to a control."""
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
    if kind(control) == "slider":
        return [lambda: drag(40, 0), lambda: drag(-40, 0), lambda: drag(0, 40)]
    return [lambda: tab.mouse.click(*middle)]


def by_keyboard(tab: Page, control: Locator) -> list[Callable[[], None]]:
    control.focus()
    keys = KEYS.get(kind(control), ["Enter"])
    return [lambda key=key: tab.keyboard.press(key) for key in keys]


@pytest.mark.parametrize(
    "hand", [by_mouse, by_keyboard], ids=lambda hand: hand.__name__
)
@pytest.mark.parametrize("mode", MODES[:2], ids=lambda mode: mode.name)
def test_every_control_changes_its_figure(
    lively: str, visit: Visits, mode: Mode, hand: Callable
) -> None:
    silent, count = [], 0
    with visit.opened(mode) as (tab, seen):
        visit.load(tab, lively, mode)
        for figure in tab.locator(".play, .vega-embed").all():
            # Resetting changes something only when something has been changed.
            controls = figure.locator(CONTROLS).all()
            for control in sorted(controls, key=lambda one: kind(one) == "reset"):
                if not control.is_visible():
                    continue
                count += 1
                name = control.evaluate("measure.name")
                control.scroll_into_view_if_needed()
                before = look(figure)
                for act in hand(tab, control):
                    act()
                    if look(figure) != before:
                        break
                else:
                    if kind(control) != "radio" or not control.is_checked():
                        silent.append(name)
        assert [m for m in seen.messages if not excused("console", m)] == []
    assert silent == []
    assert count, "a figure to play with has no control"
