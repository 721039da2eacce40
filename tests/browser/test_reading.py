"""What a reader does on the built pages: looks around, searches, goes by keyboard."""

import re
from pathlib import Path
from urllib.parse import quote

import pytest
from visits import MODES, Mode, Visits, axe

from flatnb.book import stage

pytestmark = pytest.mark.pages

ROOT = Path(__file__).resolve().parents[2]
WIDE, NARROW = MODES[:2]
DISK = next(mode for mode in MODES if mode.script and not mode.served)


def chapter(name: str) -> str:
    """The page of a chapter, whose number may change."""
    (file,) = [f for f in stage.toc_files(ROOT) if f.stem.partition("_")[2] == name]
    return file.with_suffix(".html").as_posix()


SCOREBOARD = chapter("scoreboard")


# What a reader may ask, and the chapter that answers it.
QUESTIONS = {
    "which method": "scoreboard",
    "noisy labels": "scoreboard",
    "label noise": "scoreboard",
    "calibration": "scoreboard",
    "fine-tuning": "fine_tuning",
    "few examples": "fine_tuning",
    "CIFAR-10": "images",
    "learning rate": "two_classes_in_the_plane",
    "training loop": "in_your_own_loop",
    "GNP": "gradient_norm_penalty",
}


def results(visit: Visits, query: str, mode: Mode) -> list[str]:
    """The addresses that a search finds, best first."""
    with visit.opened(mode) as (tab, seen):
        tab.goto(visit.url("search.html", mode) + f"?q={quote(query)}")
        ended = tab.locator("#search-results h2", has_text="Search Results")
        ended.wait_for(state="attached")
        links = tab.eval_on_selector_all(
            "#search-results li a", "found => found.map((one) => one.pathname)"
        )
        assert not seen.foreign
        assert not seen.failed
    return links


def test_search_answers_a_question_with_the_chapter_for_it(visit: Visits) -> None:
    first = {query: results(visit, query, WIDE)[0] for query in QUESTIONS}
    wrong = {
        query: page
        for query, page in first.items()
        if not page.endswith(chapter(QUESTIONS[query]))
    }
    assert wrong == {}


def test_search_from_disk_answers_which_method(visit: Visits) -> None:
    assert results(visit, "which method", DISK)[0].endswith(SCOREBOARD)


def test_answers_of_the_search_are_pages_of_the_book() -> None:
    script = (ROOT / "book" / "_static" / "search.js").read_text()
    named = set(re.findall(r', "((?:notebooks|book)/\w+)"\]', script))
    pages = {file.with_suffix("").as_posix() for file in stage.toc_files(ROOT)}
    assert len(named) > 10 and named <= pages


@pytest.mark.parametrize("mode", [WIDE, DISK], ids=lambda mode: mode.name)
def test_search_finds_the_chapter_before_the_glossary(
    visit: Visits, mode: Mode
) -> None:
    pages = [chapter("sharpness_aware_minimization"), "book/glossary.html"]
    links = results(visit, "SAM", mode)
    found = [page for link in links for page in pages if link.endswith(page)]
    assert list(dict.fromkeys(found)) == pages


def test_search_from_any_page_by_keyboard(visit: Visits) -> None:
    with visit.opened() as (tab, _):
        visit.load(tab, "book/intro.html")
        tab.keyboard.press("Control+k")
        tab.keyboard.type("flooding")
        tab.keyboard.press("Enter")
        tab.wait_for_url("**/search.html?q=flooding")
        tab.wait_for_selector("#search-results li")


@pytest.mark.parametrize("mode", MODES[:2], ids=lambda mode: mode.name)
@pytest.mark.parametrize("start", ["book/intro.html", SCOREBOARD])
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


@pytest.mark.parametrize(
    ("clicks", "sight"),
    [
        (["Which should I use?"], "text=First tune the learning rate"),
        (["Cite"], "text=@software"),
        (["Which should I use?", "own training loop"], "pre:has-text('.backward(')"),
        (["Read"], "text=Two valleys"),
    ],
)
@pytest.mark.parametrize("mode", [WIDE, NARROW], ids=lambda mode: mode.name)
def test_a_few_clicks_lead_from_the_landing_page(
    visit: Visits, mode: Mode, clicks: list[str], sight: str
) -> None:
    """To what to use, the line to paste, how to cite: in the window, not below it."""
    with visit.opened(mode) as (tab, _):
        visit.load(tab, "book/intro.html", mode)
        for name in clicks:
            links = tab.locator("main").get_by_role("link", name=re.compile(name))
            links.first.click()
        tab.wait_for_function(
            "(one) => one.getBoundingClientRect().top < innerHeight",
            arg=tab.locator(sight).locator("visible=true").first.element_handle(),
        )


@pytest.mark.parametrize(
    ("mode", "opener"),
    [(WIDE, "Control+k"), (NARROW, ".primary-toggle"), (NARROW, ".secondary-toggle")],
    ids=["search", "pages", "contents"],
)
def test_what_opens_is_for_everyone(visit: Visits, mode: Mode, opener: str) -> None:
    with visit.opened(mode) as (tab, _):
        visit.load(tab, chapter("two_valleys"), mode)
        if opener.startswith("Control"):
            tab.keyboard.press(opener)
        else:
            tab.locator(opener).locator("visible=true").first.click()
        tab.locator("dialog[open]").wait_for()
        assert axe(tab) == []
        tab.keyboard.press("Escape")
        tab.locator("dialog[open]").wait_for(state="detached")
