"""What a reader does on the built pages: searches, goes by keyboard."""

import pytest
from visits import MODES, Mode, Visits

pytestmark = [pytest.mark.pages, pytest.mark.xdist_group("reading")]

WIDE = MODES[0]
DISK = next(mode for mode in MODES if mode.script and not mode.served)


def results(visit: Visits, query: str, mode: Mode) -> list[str]:
    """The pages that a search finds, best first."""
    with visit.opened(mode) as (tab, seen):
        tab.goto(visit.url("search.html", mode) + f"?q={query}")
        tab.wait_for_function("Search._pulse_status === -1")  # the search has ended
        links = tab.eval_on_selector_all(
            "#search-results li a", "found => found.map((one) => one.pathname)"
        )
        assert not seen.foreign
        assert not seen.failed
    return [
        link.partition("/notebooks/")[2] or link.rpartition("/")[2] for link in links
    ]


UNRANKED = pytest.mark.xfail(reason="pages are ranked as Sphinx does", strict=True)


@UNRANKED
@pytest.mark.parametrize("mode", [WIDE, DISK], ids=lambda mode: mode.name)
def test_search_answers_which_method(visit: Visits, mode: Mode) -> None:
    assert results(visit, "which+method", mode)[0].startswith("14_scoreboard")


@UNRANKED
@pytest.mark.parametrize("mode", [WIDE, DISK], ids=lambda mode: mode.name)
def test_search_finds_the_chapter_before_the_glossary(
    visit: Visits, mode: Mode
) -> None:
    found = results(visit, "SAM", mode)
    chapter = next(i for i, page in enumerate(found) if page.startswith("06_"))
    assert chapter < found.index("glossary.html")


def test_search_from_any_page_by_keyboard(visit: Visits) -> None:
    with visit.opened() as (tab, _):
        visit.load(tab, "book/intro.html")
        tab.keyboard.press("Control+k")
        tab.keyboard.type("flooding")
        tab.keyboard.press("Enter")
        tab.wait_for_url("**/search.html?q=flooding")
        tab.wait_for_selector("#search-results li")


@pytest.mark.parametrize("mode", MODES[:2], ids=lambda mode: mode.name)
@pytest.mark.parametrize("start", ["book/intro.html", "notebooks/14_scoreboard.html"])
def test_tab_goes_through_every_control_in_order(
    visit: Visits, start: str, mode: Mode
) -> None:
    with visit.opened(mode) as (tab, _):
        visit.load(tab, start, mode)
        # Of a group of radio buttons the keyboard stops at one.
        controls = tab.evaluate("""() => {
            window.all = measure.controls().filter((one) => one.type !== "radio" || one.checked);
            return all.map(measure.name);
        }""")
        order = []
        for _ in range(2 * len(controls)):
            tab.keyboard.press("Tab")
            order.append(tab.evaluate("all.indexOf(document.activeElement)"))
            if order[-1] == len(controls) - 1:
                break
        # A control that appears when another has focus is none of those counted.
        counted = [i for i in order if i >= 0]
        missed = sorted(set(range(len(controls))) - set(counted))
        assert [controls[i] for i in missed] == []
        assert counted == sorted(counted)
