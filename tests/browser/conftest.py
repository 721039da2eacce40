"""A browser, the built book over a server, and a blank page for a figure to play with."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page
from served import server
from visits import Visits, chromium, started

from flatnb.book.play import figures

ROOT = Path(__file__).resolve().parents[2]
BOOK = Path(os.environ.get("FLATNB_HTML", ROOT / "_build" / "html")).resolve()
STATIC = ROOT / "book" / "_static"


def missing(what: str) -> None:
    """Skip, or fail where FLATNB_BROWSER=required says that these tests have to run."""
    if os.environ.get("FLATNB_BROWSER") == "required":
        pytest.fail(what)
    pytest.skip(what)


def pages() -> list[str]:
    """The pages of the built book, without those that only lead to another."""
    files = (file for file in BOOK.rglob("*.html") if not redirects(file))
    names = (file.relative_to(BOOK).as_posix() for file in files)
    return sorted(name for name in names if not name.startswith("_static/"))


def lively() -> list[str]:
    texts = {page: (BOOK / page).read_text(encoding="utf-8") for page in pages()}
    return [page for page, text in texts.items() if figures(text)]


def redirects(file: Path) -> bool:
    return 'http-equiv="refresh"' in file.read_text(encoding="utf-8")[:2000].lower()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`page` is each page of the book, `lively` each that has a figure to play with."""
    for argument, chosen in {"page": pages, "lively": lively}.items():
        if argument in metafunc.fixturenames:
            asked = metafunc.config.getoption("--run-pages") and pages()
            names = chosen() if asked else ["none"]  # the fixture `book` says why
            metafunc.parametrize(argument, names)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    executable = chromium()
    if not executable:
        missing("no Chromium on the path; FLATNB_CHROMIUM may name one")
    with started(executable) as opened:
        yield opened


@pytest.fixture(scope="session")
def book() -> Path:
    """The folder of the built pages."""
    if not pages():
        missing(f"no built book in {BOOK}: make book, or name one in FLATNB_HTML")
    return BOOK


@pytest.fixture(scope="session")
def visit(book: Path, browser: Browser) -> Iterator[Visits]:
    """visit("book/intro.html"): what is seen of a page in every mode."""
    with server(book) as address:
        yield Visits(browser, book, address)


@pytest.fixture
def toy(browser: Browser) -> Iterator[Callable[..., Page]]:
    """toy("wells"): a page with the script of that figure and the given HTML, which is
    what the script finds when it runs."""
    with ExitStack() as tabs:

        def opened(name: str, html: str = "") -> Page:
            tab = browser.new_page(viewport={"width": 800, "height": 900})
            tabs.callback(tab.close)
            tab.set_content(f"<!doctype html><title>A figure</title>{html}")
            for style in ("custom.css", "play.css"):
                tab.add_style_tag(path=STATIC / style)
            for script in ("play.js", f"play/{name}.js"):
                tab.add_script_tag(path=STATIC / script)
            return tab

        yield opened
