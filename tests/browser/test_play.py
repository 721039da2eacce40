"""The frame of figures to play with: the picture's place, controls, failures."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from figures import cell, drawn, finding, handle
from playwright.sync_api import Browser, Page

STATIC = Path(__file__).resolve().parents[2] / "book" / "_static"
FIGURE = """flatnb.play("example", (fig) => {
    fig.about("A point.", "Move *x*.");
    const plot = fig.plot({ x: [0, 2], y: [0, 1], xlabel: "*x*" });
    const x = fig.slider({ label: "*x*", min: 0, max: 2, step: 0.5, value: 1 });
    const kind = fig.choice({ label: "kind", options: [["a"], ["b", "B", "red"]], value: "a" });
    let pressed = 0;
    fig.button("Count", () => pressed++);
    const point = plot.handle({ label: "point", value: [1, 0.5], step: 0.1 });
    fig.draw(() => {
        if (x.value === 2) throw new Error("two is too much");
        plot.field((x, y) => x, (value) => value / 2);
        plot.dot(...point.value, { color: "red" });
        fig.say(`{red|${x.text}} ${kind.value} ${pressed} ${point.value.map((v) => v.toFixed(1))}`);
    });
});"""


Opened = Callable[..., Page]


@pytest.fixture
def frame(browser: Browser) -> Iterator[Opened]:
    """frame(script, html): a page on which the script has run after play.js."""
    tabs = []

    def opened(script: str = FIGURE, html: str = "") -> Page:
        tab = browser.new_page(viewport={"width": 800, "height": 900})
        tabs.append(tab)
        tab.set_content(
            f"<!doctype html><title>A figure</title>{html or cell('example')}"
        )
        for style in ("custom.css", "play.css"):
            tab.add_style_tag(path=STATIC / style)
        tab.add_script_tag(path=STATIC / "play.js")
        tab.add_script_tag(content=script)
        return tab

    yield opened
    for tab in tabs:
        tab.close()


def picture_and_figure(tab: Page) -> tuple[bool, bool]:
    """Which of the two is seen."""
    picture = tab.locator("img").is_visible()
    figures = tab.locator(".play")
    return picture, figures.count() > 0 and figures.is_visible()


def test_the_figure_replaces_the_picture_on_the_screen_only(frame: Opened) -> None:
    tab = frame()
    messages: list[str] = []
    tab.on("console", lambda message: messages.append(message.text))
    assert picture_and_figure(tab) == (False, True)
    assert tab.get_by_text("The caption.").is_visible()
    tab.emulate_media(media="print")
    drawn(tab)
    assert picture_and_figure(tab) == (True, False)
    tab.emulate_media(media="screen")
    drawn(tab)
    assert picture_and_figure(tab) == (False, True)
    assert messages == []


@pytest.mark.parametrize(
    "html",
    [
        '<div data-play="example"><img alt="the picture"></div>',
        '<div data-play="example"><figure><img alt="the picture"></figure></div>',
        '<div class="cell tag_play-example"><div class="cell_output">'
        '<img alt="the picture"></div></div>',
    ],
)
def test_it_stands_in_the_place_of_the_picture(frame: Opened, html: str) -> None:
    tab = frame(html=html)
    assert picture_and_figure(tab) == (False, True)
    assert tab.evaluate("document.querySelector('.play').nextElementSibling.alt")


@pytest.mark.parametrize("script", ["throw new Error('no')", "missing.function()"])
def test_the_picture_stays_if_the_figure_cannot_be_made(
    frame: Opened, script: str
) -> None:
    tab = frame(f'flatnb.play("example", (fig) => {{ {script}; }});')
    assert picture_and_figure(tab) == (True, False)


def test_the_picture_comes_back_if_the_figure_fails_later(frame: Opened) -> None:
    tab = frame()
    tab.locator("input[type=range]").fill("2")
    drawn(tab)
    tab.locator("img").wait_for()
    assert picture_and_figure(tab) == (True, False)


def test_another_page_is_left_as_it_is(frame: Opened) -> None:
    assert picture_and_figure(frame(html=cell("other"))) == (True, False)


def test_controls_answer_to_keys_and_are_reset(frame: Opened) -> None:
    tab = frame()
    assert finding(tab) == "1.00 a 0 1.0,0.5"
    slider = tab.get_by_role("slider", name="x", exact=True)
    slider.press("ArrowRight")
    tab.get_by_label("a", exact=True).press("ArrowRight")
    tab.get_by_role("button", name="Count").press("Enter")
    handle(tab).press("ArrowLeft")
    handle(tab).press("Shift+ArrowUp")
    drawn(tab)
    assert finding(tab) == "1.50 b 1 0.9,1.0"
    assert slider.get_attribute("aria-valuetext") == "1.50"
    assert tab.locator(".play-value").inner_text() == "1.50"
    tab.get_by_role("button", name="Reset").press("Enter")
    drawn(tab)
    assert finding(tab) == "1.00 a 1 1.0,0.5"
    assert slider.get_attribute("aria-valuetext") == "1.00"


def test_a_handle_follows_the_mouse_and_stays_in_its_bounds(frame: Opened) -> None:
    tab = frame()
    box = handle(tab).bounding_box()
    assert box is not None and box["width"] == box["height"] == 44
    tab.mouse.move(box["x"] + 22, box["y"] + 22)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 2000, box["y"] - 2000)
    drawn(tab)
    assert finding(tab).endswith("2.0,1.0")
    tab.mouse.up()
    tab.mouse.move(box["x"], box["y"])
    drawn(tab)
    assert finding(tab).endswith("2.0,1.0")


def test_a_click_beside_the_handle_calls_it(frame: Opened) -> None:
    tab = frame()
    box = tab.locator(".play-plot").bounding_box()
    assert box is not None
    tab.mouse.click(box["x"] + 40, box["y"] + 12)
    drawn(tab)
    assert finding(tab).endswith("0.0,1.0")


def test_it_is_as_wide_as_its_page_lets_it_be(frame: Opened) -> None:
    tab = frame()
    for width in (800, 320):
        tab.set_viewport_size({"width": width, "height": 900})
        drawn(tab)
        tab.wait_for_function(
            "document.querySelector('.play svg').viewBox.baseVal.width ==="
            " document.querySelector('.play-plot').clientWidth"
        )
        assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_the_shaded_ground_follows_the_theme(frame: Opened) -> None:
    tab = frame()
    ground = "document.querySelector('.play canvas').toDataURL()"
    light = tab.evaluate(ground)
    tab.evaluate("document.documentElement.dataset.theme = 'dark'")
    drawn(tab)
    assert tab.evaluate(ground) != light


def test_marked_text_is_text(frame: Opened) -> None:
    """Findings are written as text, whatever they say."""
    tab = frame(FIGURE.replace("fig.say(`", "fig.say(`<b>*one*</b> {red|two} "))
    assert finding(tab).startswith("<b>one</b> two ")
    assert tab.locator(".play-finding i").inner_text() == "one"
    assert tab.locator(".play-finding b").first.inner_text() == "two"


def test_data_stand_inside_or_in_the_cell_before(frame: Opened) -> None:
    script = """flatnb.play("example", (fig) => {
        fig.draw(() => fig.say(String(fig.data.value)));
    });"""
    json = '<script type="application/json" class="play-data">{"value": 1}</script>'
    inside = f'<div data-play="example"><img alt="the picture">{json}</div>'
    before = f'<div class="cell">{json}</div>' + cell("example")
    for html in (inside, before):
        assert finding(frame(script, html)) == "1"


def test_numbers_as_text(frame: Opened) -> None:
    tab = frame()
    script = "[[1.005, 1], [-0.001, 2], [-2, 1]].map(([x, d]) => flatnb.fixed(x, d))"
    assert tab.evaluate(script) == ["1.0", "0.00", "−2.0"]
    assert tab.evaluate("flatnb.linspace(0, 1, 3)") == [0, 0.5, 1]


def test_normal_numbers_repeat_and_are_normal(frame: Opened) -> None:
    draw = "(seed) => Array.from({length: 20000}, flatnb.normals(seed))"
    tab = frame()
    numbers = tab.evaluate(draw, 0)
    assert numbers == tab.evaluate(draw, 0) != tab.evaluate(draw, 1)
    moments = [sum(x**k for x in numbers) / len(numbers) for k in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.2)
