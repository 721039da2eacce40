"""What holds for every page: each function returns what a visit found against it."""

import re
from collections.abc import Callable

from visits import Seen

Visit = dict[str, Seen]
Check = Callable[[str, Visit], list[str]]

# kB over the wire.
LANDING, TEXT, CHAPTER, INTERACTIVE = 400, 450, 1000, 1300


def _facts(visit: Visit, *names: str) -> list[str]:
    return [
        f"{mode}: {finding}"
        for mode, seen in visit.items()
        for name in names
        for finding in seen.facts.get(name, [])
    ]


def console(page: str, visit: Visit) -> list[str]:
    """The console stays empty."""
    return [f"{mode}: {m}" for mode, seen in visit.items() for m in seen.messages]


def requests(page: str, visit: Visit) -> list[str]:
    """Every request is answered, and none leaves the book."""
    return [
        f"{mode}: {url}"
        for mode, seen in visit.items()
        for url in seen.failed + seen.foreign
    ]


def pictures(page: str, visit: Visit) -> list[str]:
    """Every picture is there, whole, and has a text in its place."""
    return _facts(visit, "silent", "broken", "parted")


def width(page: str, visit: Visit) -> list[str]:
    """Nothing sticks out of the window."""
    return _facts(visit, "outside")


def structure(page: str, visit: Visit) -> list[str]:
    """One h1, no level skipped, every id once."""
    return _facts(visit, "headings", "repeated")


def columns(page: str, visit: Visit) -> list[str]:
    """A table of results has at most six columns."""
    return _facts(visit, "crowded")


def formulas(page: str, visit: Visit) -> list[str]:
    """Every formula is set."""
    return _facts(visit, "unset")


def accessibility(page: str, visit: Visit) -> list[str]:
    """axe-core finds nothing, of any impact."""
    return _facts(visit, "axe")


def focus(page: str, visit: Visit) -> list[str]:
    """Who comes to a control by keyboard sees it."""
    return _facts(visit, "unmarked")


def tables(page: str, visit: Visit) -> list[str]:
    """On a phone, what goes on at the right, such as code, says so."""
    return _facts(visit, "unannounced")


def whole(page: str, visit: Visit) -> list[str]:
    """On a phone, all of a table, figure or formula is seen."""
    return _facts(visit, "scrolling")


def paper(page: str, visit: Visit) -> list[str]:
    """Print cuts nothing."""
    return _facts(visit, "cut")


def opening(page: str, visit: Visit) -> list[str]:
    """A chapter's finding, its first picture and the heading of its first section are
    seen without scrolling."""
    if not re.match(r"notebooks/\d", page):
        return []
    place, height = visit["wide"].facts["opening"], 900
    found = []
    if place["finding"] > height:
        found.append(f"the finding ends at {place['finding']:.0f} px")
    if (place["seen"] or 0) < min(place["picture"] or height, 300):
        found.append(f"{place['seen'] or 0:.0f} px of the picture are seen")
    if place["section"] > height:
        found.append(f"the first heading ends at {place['section']:.0f} px")
    return found


def weight(page: str, visit: Visit) -> list[str]:
    """Pages are light."""
    most = TEXT
    if page in ("index.html", "book/intro.html"):
        most = LANDING
    elif page.startswith("notebooks/"):
        most = INTERACTIVE if visit["wide"].facts["live"] else CHAPTER
    kb = visit["wide"].size / 1000
    return [f"{kb:.0f} kB, more than {most}"] if kb > most else []


CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in [
        console,
        requests,
        pictures,
        width,
        structure,
        columns,
        formulas,
        accessibility,
        focus,
        tables,
        whole,
        paper,
        opening,
        weight,
    ]
}
