"""A page of the built book as a browser has it: over a server and from disk, wide and
narrow, light and dark, with JavaScript and without.

A page is loaded once in each of the modes below, and everything is measured then; the
tests read what was found. Every mode has its own color scheme; contrast and focus are
measured in both, in a wide window and a narrow one.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Request, Response, sync_playwright
from served import LOST, file_of, sent

MEASURE = (Path(__file__).parent / "measure.js").read_text(encoding="utf-8")
# An A4 page between the margins of 1 cm that Chromium leaves, in CSS px.
PAPER = {"width": 718, "height": 1047}


@dataclass(frozen=True)
class Mode:
    name: str
    width: int
    scheme: str
    script: bool = True
    served: bool = True


MODES = [
    Mode("wide", 1400, "light"),
    Mode("narrow", 390, "dark"),
    Mode("no script", 1400, "dark", script=False),
    Mode("from disk", 1400, "dark", served=False),
    Mode("from disk, no script", 390, "light", script=False, served=False),
]


@dataclass
class Seen:
    """What one load of a page showed."""

    messages: list[str] = field(default_factory=list)  # of the console
    failed: list[str] = field(default_factory=list)  # requests without an answer
    foreign: list[str] = field(default_factory=list)  # requests to other hosts
    size: int = 0  # bytes over the wire
    facts: dict[str, Any] = field(default_factory=dict)  # of measure.js, by function


def chromium() -> str | None:
    """The browser to test in; first the one that has no window, which takes less time."""
    names = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"]
    found = (shutil.which(name) for name in names)
    return os.environ.get("FLATNB_CHROMIUM") or next(filter(None, found), None)


@contextmanager
def started(executable: str) -> Iterator[Browser]:
    """A browser that reaches no host but this one."""
    options = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=options)
        yield browser
        browser.close()


class Visits:
    """Visits to the pages of the book in `folder`, which is served at `address`."""

    def __init__(self, browser: Browser, folder: Path, address: str) -> None:
        self.browser, self.folder, self.address = browser, folder, address
        self._tabs: dict[Mode, Page] = {}
        self._now: dict[Mode, Seen] = {}  # of the page that a tab shows
        self._compared: set[str] = set()  # kinds of words whose contrast is known

    def __call__(self, page: str) -> dict[str, Seen]:
        """What each mode showed of a page, by the mode's name. The page for what is not
        found is not opened from disk: only a server shows it, and its links begin with a
        slash, which on a disk leads elsewhere."""
        modes = [mode for mode in MODES if mode.served or page != LOST]
        return {mode.name: self._visit(page, mode) for mode in modes}

    def url(self, page: str, mode: Mode = MODES[0]) -> str:
        if mode.served:
            return f"{self.address}/{page}"
        return (self.folder / page).as_uri()

    @contextmanager
    def opened(self, mode: Mode = MODES[0]) -> Iterator[tuple[Page, Seen]]:
        """The tab of a mode, empty, and what is seen in it from now on."""
        if mode not in self._tabs:
            self._tabs[mode] = self._tab(mode)
        tab, self._now[mode] = self._tabs[mode], Seen()
        tab.set_viewport_size({"width": mode.width, "height": 900})
        tab.emulate_media(media="screen", color_scheme=mode.scheme)
        yield tab, self._now[mode]
        self._now[mode] = Seen()  # of what leaving breaks off
        tab.goto("about:blank")

    def _tab(self, mode: Mode) -> Page:
        context = self.browser.new_context(java_script_enabled=mode.script)
        # Every visit is a first one: no page knows what another left.
        first = "try { localStorage.clear(); sessionStorage.clear(); } catch {}"
        context.add_init_script(first)
        tab = context.new_page()

        def say(message: str) -> None:
            self._now[mode].messages.append(message)

        def answered(answer: Response) -> None:
            if answer.status >= 400:
                self._now[mode].failed.append(f"{answer.url}: {answer.status}")

        def failed(request: Request) -> None:
            if mode.script or request.resource_type != "script":  # none is asked for
                self._now[mode].failed.append(f"{request.url}: {request.failure}")

        def asked(request: Request) -> None:
            own = (self.address + "/", self.folder.as_uri() + "/", "data:", "blob:")
            if not request.url.startswith(own):
                self._now[mode].foreign.append(request.url)

        tab.on("console", lambda message: say(message.text))
        tab.on("pageerror", lambda error: say(str(error)))
        tab.on("response", answered)
        tab.on("requestfailed", failed)
        tab.on("request", asked)
        return tab

    def load(self, tab: Page, page: str, mode: Mode = MODES[0]) -> None:
        """Open a page and wait until it is all there."""
        tab.goto(self.url(page, mode))
        tab.evaluate(MEASURE)
        if mode.script:  # without, promises are not kept
            tab.evaluate("measure.ready()")

    def _visit(self, page: str, mode: Mode) -> Seen:
        with self.opened(mode) as (tab, seen):
            self.load(tab, page, mode)
            files = {
                file_of(url, self.folder) for url in tab.evaluate("measure.fetched()")
            }
            if mode.served:
                seen.size = sum(len(sent(file)) for file in files if file.is_file())
            for fact in [
                "opening",
                "outside",
                "silent",
                "broken",
                "parted",
                "headings",
                "repeated",
                "crowded",
            ]:
                seen.facts[fact] = tab.evaluate(f"measure.{fact}()")
            seen.facts["live"] = tab.evaluate("measure.live().length")
            if mode.script:
                seen.facts["unset"] = tab.evaluate("measure.unset()")
            if mode.width < 500 and mode.script:  # a script says what goes on
                for fact in ("unannounced", "scrolling"):
                    seen.facts[fact] = tab.evaluate(f"measure.{fact}()")
            if mode.script and mode.served:
                self._look(tab, mode, seen)
            elif not mode.script:
                other = {1400: 390, 390: 1400}[mode.width]
                tab.set_viewport_size({"width": other, "height": 900})
                seen.facts["outside"] += tab.evaluate("measure.outside()")
            if mode.name == "wide":
                tab.emulate_media(media="print", color_scheme="light")
                tab.set_viewport_size(PAPER)
                seen.facts["cut"] = tab.evaluate(f"measure.cut({PAPER['height']})")
        return seen

    def _look(self, tab: Page, mode: Mode, seen: Seen) -> None:
        """Accessibility, and the mark of focus, in both color schemes."""
        seen.facts["axe"], seen.facts["unmarked"] = axe(tab), []
        tab.keyboard.press("Tab")
        for scheme in ("light", "dark"):
            tab.emulate_media(color_scheme=scheme)
            seen.facts["axe"] += contrast(tab, self._compared)
            seen.facts["unmarked"] += tab.evaluate("measure.unmarked()")


# Rules of axe-core that compare colors, which takes long.
COLORS = ["color-contrast", "link-in-text-block"]


def axe(tab: Page) -> list[str]:
    """The findings of axe-core in an opened page, of any impact, without `contrast`."""
    options = {
        "resultTypes": ["violations"],
        "preload": False,
        "rules": {rule: {"enabled": False} for rule in COLORS},
    }
    return _findings(Axe().run(tab, options=options).response)


def contrast(tab: Page, compared: set[str]) -> list[str]:
    """Where axe-core, which is loaded already, finds too little contrast; words of a kind
    that was compared before are left out, on this page or another."""
    new = tab.evaluate("(compared) => measure.words(compared)", sorted(compared))
    if not new:
        return []
    compared.update(new)
    options = f'{{resultTypes: ["violations"], preload: false, runOnly: {COLORS}}}'
    found = f"axe.run({{include: measure.words.found}}, {options})"
    return _findings(tab.evaluate(found))


def _findings(response: dict[str, Any]) -> list[str]:
    return [
        f"{rule['id']} ({rule['impact']}): {node['target'][0]}"
        for rule in response["violations"]
        for node in rule["nodes"]
    ]
