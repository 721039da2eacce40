"""The links of the built book: where they lead, within it and outside.

python tests/browser/links.py _build/html    asks every other host
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from served import LOST, file_of


@dataclass
class Parsed:
    """A page's anchors, and what its elements point at."""

    anchors: set[str] = field(default_factory=set)
    targets: set[str] = field(default_factory=set)


@cache
def parsed(file: Path) -> Parsed:
    page = Parsed()

    class Reader(HTMLParser):
        def handle_starttag(
            self, tag: str, pairs: list[tuple[str, str | None]]
        ) -> None:
            values = {name: value for name, value in pairs if value is not None}
            page.anchors |= {values[name] for name in ("id", "name") if name in values}
            page.targets |= {values[name] for name in ("href", "src") if name in values}
            if values.get("http-equiv", "").lower() == "refresh":
                page.targets.add(values["content"].partition("url=")[2])

    Reader().feed(file.read_text(encoding="utf-8"))
    return page


def pages(book: Path) -> list[Path]:
    static = book / "_static"
    return sorted(f for f in book.rglob("*.html") if not f.is_relative_to(static))


def broken(page: Path) -> list[str]:
    """What a page points at within the book, and is not there."""
    found = []
    for target in parsed(page).targets:
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            continue
        if page.name == LOST:
            file = file_of(parts.path, page.parent) if parts.path else page
        else:
            file = page.parent / unquote(parts.path) if parts.path else page
        anchor = unquote(parts.fragment)
        if not file.is_file():
            found.append(target)
        elif file.suffix == ".html" and anchor and anchor not in parsed(file).anchors:
            found.append(f"{target}, which has no such place")
    return sorted(found)


def external(book: Path) -> dict[str, str]:
    """The addresses outside the book, each with a page that points at it."""
    return {
        target.partition("#")[0]: page.relative_to(book).as_posix()
        for page in pages(book)
        for target in parsed(page).targets
        if urlsplit(target).scheme in ("http", "https")
    }


def answer(url: str) -> str:
    """What a host says to a request: a number, or the error on the way to it."""
    request = Request(url, headers={"User-Agent": "Mozilla/5.0 (link check of a book)"})
    try:
        with urlopen(request, timeout=30) as response:
            return str(response.status)
    except HTTPError as error:
        return str(error.code)
    except OSError as error:
        return str(error)


def main() -> None:
    """Ask for every address; exit with 1 if some are gone."""
    urls = external(Path(sys.argv[1]))
    with ThreadPoolExecutor(8) as pool:
        answers = dict(zip(urls, pool.map(answer, urls), strict=True))
    # Publishers turn scripts away (403, 429, …); that says nothing about readers.
    numbers = {url: code for url, code in answers.items() if code.isdigit()}
    gone = [u for u in urls if u not in numbers or numbers[u] in ("404", "410")]
    for url in urls:
        if url in gone or answers[url] != "200":
            print(
                f"{'GONE' if url in gone else 'ask'}  {answers[url]}  {url}  {urls[url]}"
            )
    print(f"{len(urls)} addresses, {len(gone)} gone")
    sys.exit(bool(gone))


if __name__ == "__main__":
    main()
