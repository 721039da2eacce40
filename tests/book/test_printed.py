"""What cells print, as the pages set it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sphinx.application import Sphinx

from flatnb.book.printed import inline, paragraphs


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("one sentence.\n", [(False, "one sentence.")]),
        ("a:\n  b\n\nc\n", [(False, "a:"), (True, "b"), (False, "c")]),
        ("-0.10 ± 0.20, from -1 to 1", [(False, "−0.10 ± 0.20, from −1 to 1")]),
        ("1e-06 on 2026-11-27, x-1", [(False, "1e-06 on 2026-11-27, x-1")]),
        ("equal-compute [-1, -.5]", [(False, "equal-compute [−1, −.5]")]),
        ("", []),
    ],
)
def test_sentences_are_paragraphs(printed: str, shown: list[tuple[bool, str]]) -> None:
    assert paragraphs(printed) == shown


@pytest.mark.parametrize(
    "printed",
    ["SAM  0.1\nERM  0.2", "by hand       4.5", "a sentence.\n        ^ here", "a\tb"],
)
def test_what_is_aligned_stays_as_it_is(printed: str) -> None:
    assert paragraphs(printed) is None


def test_what_stands_in_backticks_is_code() -> None:
    nodes_ = inline("the option `flag` is read")
    assert [type(node).__name__ for node in nodes_] == ["Text", "literal", "Text"]


def built(page: str, folder: Path) -> str:
    """The HTML of a page that has no cells."""
    (folder / "index.rst").write_text(page)
    out = folder / "out"
    settings = {"extensions": ["flatnb.book.printed"]}
    app = Sphinx(folder, None, out, folder / "trees", "html", settings, None, None)
    app.build()
    return (out / "index.html").read_text(encoding="utf-8")


def test_no_line_of_a_page_ends_before_a_unit(tmp_path: Path) -> None:
    """In sentences; code stays as it was typed."""
    page = "A page\n======\n\n0.3 ± 0.1 in 95 % of cases, n = 5: ``95 % ± 1``.\n"
    text = built(page, tmp_path)
    assert (
        "0.3_±_0.1 in 95_% of cases, n_=_5:".replace("_", "\N{NO-BREAK SPACE}") in text
    )
    code = re.findall(r'<span class="pre">([^<]*)</span>', text)
    assert code == ["95", "%", "±", "1"]


def test_code_in_a_table_breaks_between_names(tmp_path: Path) -> None:
    """And nowhere in a sentence."""
    page = "A page\n======\n\n=========  ===\n``a.b_c(d)``  ``1``\n=========  ===\n"
    page = page.replace("=========", "=" * 12) + "\n``a.b_c(d)``\n"
    code = re.findall(r"<code[^>]*>(.*?)</code>", built(page, tmp_path))
    texts = [re.sub("</?span[^>]*>", "", one) for one in code]
    assert texts == ["a.<wbr>b_<wbr>c(<wbr>d)", "1", "a.b_c(d)"]
