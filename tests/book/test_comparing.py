"""The page that says how methods are compared: its examples are what the records say."""

import re

import pytest
from small_book import ROOT

from flatnb import report
from flatnb.book.stage import toc_files
from flatnb.book.tables import typeset
from flatnb.results import verdicts

PAGE = (ROOT / "book" / "comparing.md").read_text(encoding="utf-8")


def test_the_lines_are_those_of_the_chapters() -> None:
    found = report.gains(["SAM", "FAM"], lead="At a constant learning rate")
    assert found.count("\n") == 2
    for line in found.splitlines():
        line = typeset(line.strip()).replace("\N{NO-BREAK SPACE}", " ")
        assert f"> {line}\n" in PAGE


def test_the_table_explains_these_lines() -> None:
    table = verdicts.gains()
    assert f"| n = {table.loc['SAM', 'n']} fresh seeds of 9 tasks |" in PAGE
    assert f"the *family*: {len(table)} on these sets" in PAGE
    assert verdicts.WORTH == 0.005, "half a point"


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("better", ["NSO"]),
        ("worse", ["SoftAD"]),
        ("no gain worth having", ["FAM"]),
        ("at an edge", ["RSAM"]),
    ],
)
def test_each_verdict_has_its_example(words: str, names: list[str]) -> None:
    table = verdicts.gains()
    assert (table.loc[names, "verdict"] == words).all()
    assert not table["verdict"].isin(["inconclusive", "too few seeds"]).any()
    assert table.loc["RSAM", "p_holm"] < 0.05, "even if the difference is significant"
    assert words in PAGE


def test_the_example_of_points_has_their_difference() -> None:
    more, less = map(float, re.findall(r"([\d.]+) % against ([\d.]+) %", PAGE)[0])
    assert f"| +{more - less:.2f} |" in PAGE


def test_it_stands_before_the_chapters_that_need_it() -> None:
    pages = [str(page) for page in toc_files(ROOT)]
    place = pages.index("book/comparing.md")
    assert pages[place + 1] == "notebooks/04_flooding.ipynb"
