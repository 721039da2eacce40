"""Links and anchors within the built book lead somewhere."""

from pathlib import Path

import links
import pytest


@pytest.mark.pages
def test_links_lead_somewhere(book: Path) -> None:
    found = {page.relative_to(book): links.broken(page) for page in links.pages(book)}
    assert {page: targets for page, targets in found.items() if targets} == {}


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    here, there = tmp_path / "here.html", tmp_path / "far" / "there is.html"
    there.parent.mkdir()
    there.write_text('<h2 id="péage">x</h2><a href="../here.html">back</a>')
    here.write_text(
        '<a href="far/there%20is.html#p%C3%A9age">x</a> <a href="#">top</a>'
        '<a href="far/there%20is.html#else">x</a> <img src="no.png"> <a href="far">x</a>'
        '<a href="https://example.org/a#b">x</a> <a href="mailto:a@example.org">x</a>'
    )
    place = "far/there%20is.html#else, which has no such place"
    assert links.broken(here) == ["far", place, "no.png"]
    assert links.broken(there) == []
    assert links.external(tmp_path) == {"https://example.org/a": "here.html"}


def test_links_of_the_page_for_what_is_not_found_begin_where_the_book_is(
    tmp_path: Path,
) -> None:
    lost, style = tmp_path / "404.html", tmp_path / "_static" / "book.css"
    style.parent.mkdir()
    style.write_text("")
    lost.write_text(
        '<link href="/flatnb/_static/book.css?v=1"><a href="/flatnb/no.html">x</a>'
    )
    assert links.broken(lost) == ["/flatnb/no.html"]
