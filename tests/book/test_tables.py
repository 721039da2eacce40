"""Tables of results on the pages: headings, fixed cells, what is marked."""

from __future__ import annotations

import io
import re

import pandas
import pytest

from flatnb.book.tables import as_csv, improved


def page(table: pandas.DataFrame) -> str:
    """A table as its page shows it."""
    return improved(table.to_html(notebook=True))


def rows(text: str) -> list[list[str]]:
    """The texts of its rows."""
    return [
        [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", text)
    ]


def marked(text: str) -> dict[str, str]:
    """Texts that are marked, and how."""
    found = re.findall(r'<span class="(\w+)">(.*?)</span>', text)
    return {inner: mark for mark, inner in found}


def test_a_table_as_csv_has_every_cell_and_no_markup() -> None:
    keys = [("plane", "SAM"), ("plane", "NSO"), ("digits", "SAM")]
    index = pandas.MultiIndex.from_tuples(keys, names=["set", "method"])
    table = pandas.DataFrame({"gain, points": ["-0.1 ± 0.2", "a, b<br>c", '"']}, index)
    read = pandas.read_csv(io.StringIO(as_csv(table.to_html(notebook=True))))
    assert read.columns.tolist() == ["set", "method", "gain, points"]
    assert read[["set", "method"]].to_numpy().tolist() == [list(key) for key in keys]
    assert read["gain, points"].tolist() == ["-0.1 ± 0.2", "a, b<br>c", '"']


def test_the_name_of_the_index_stands_in_the_row_of_headings() -> None:
    index = pandas.Index(["SAM", "NSO"], name="method")
    text = page(pandas.DataFrame({"gain": [1, 2], "passes": [2, 3]}, index))
    assert rows(text) == [
        ["method", "gain", "passes"],
        ["SAM", "1", "2"],
        ["NSO", "2", "3"],
    ]
    assert '<th class="fixed" scope="col">method</th>' in text


def test_two_rows_of_headings_stay_two() -> None:
    columns = pandas.MultiIndex.from_tuples([("a", "x"), ("a", "y")], names=["k", "l"])
    text = page(pandas.DataFrame([[1, 2]], columns=columns))
    assert [row[0] for row in rows(text)] == ["k", "l", "0"]


def test_a_heading_without_words_is_none() -> None:
    text = page(pandas.DataFrame({"gain": [1]}, ["SAM"]))
    assert '<td class="fixed"></td>' in text and "<th></th>" not in text


def test_only_the_first_column_is_fixed_also_below_a_cell_of_several_rows() -> None:
    index = pandas.MultiIndex.from_product([["a", "b"], ["SAM", "NSO"]])
    text = page(pandas.DataFrame({"gain": range(4)}, index))
    fixed = re.findall(r'<t[hd][^>]*class="fixed"[^>]*>(.*?)</t[hd]>', text)
    assert fixed == ["", "a", "b"]
    assert text.count('rowspan="2"') == 2


def test_columns_of_numbers_are_marked_and_others_not() -> None:
    table = pandas.DataFrame(
        {"n": ["+0.1 ± 0.2*", "3e-05"], "p": [".5 x", "1"], "r": ["12.5 %", ""]}
    )
    assert re.findall(r'class="number" scope="col">(\w)<', page(table)) == ["n", "r"]


def test_with_stars_only_these_count() -> None:
    table = pandas.DataFrame(
        {"gain (points)": ["+0.3 ± 0.1*", "+0.4 ± 0.1", "-2 ± 1*"]}
    )
    assert marked(page(table)) == {"+0.3 ± 0.1*": "better", "−2 ± 1*": "worse"}


def test_without_stars_intervals_that_exclude_zero_count() -> None:
    table = pandas.DataFrame({"gain": ["+0.3 ± 0.1", "+0.1 ± 0.3", "0.3 ± 0.1"]})
    assert marked(page(table)) == {"+0.3 ± 0.1": "better"}


@pytest.mark.parametrize("name", ["test loss (nats)", "calibration error"])
def test_less_is_better_of_losses_and_errors(name: str) -> None:
    table = pandas.DataFrame({name: ["+0.3 ± 0.1", "-0.2 ± 0.1"]})
    assert marked(page(table)) == {"+0.3 ± 0.1": "worse", "−0.2 ± 0.1": "better"}


def test_a_hyphen_before_a_number_is_a_minus_and_no_other_is() -> None:
    link = '<a href="#a-1" class="b -2">2026-11-27, 1e-06, x-1: -1, [-.5, 2]</a>'
    table = pandas.DataFrame({"gain": [-0.5], "where": [link]})
    with pandas.option_context("display.max_colwidth", None):
        text = improved(table.to_html(escape=False, notebook=True))
    assert ">−0.5<" in text
    shown = "2026-11-27, 1e-06, x-1: −1, [−.5, 2]</a>"
    assert '<a href="#a-1" class="b -2">' + shown in text


def test_columns_of_sentences_are_prose() -> None:
    table = pandas.DataFrame({"a": ["a b"], "b": ["a sentence of more words" * 2]})
    assert re.findall(r'class="prose" scope="col">(\w)<', page(table)) == ["b"]


def test_the_words_of_a_verdict_are_marked() -> None:
    texts = ["significantly better, by 1", "worse", "at an edge", "no better"]
    assert marked(page(pandas.DataFrame({"verdict": texts}))) == {
        "significantly better": "better",
        "worse": "worse",
    }


def test_each_line_of_a_cell_may_begin_with_a_verdict() -> None:
    lines = "<b>significantly worse</b>: a<br><b>worse</b>: b, better<br>better: c"
    table = pandas.DataFrame({"records": [lines]})
    with pandas.option_context("display.max_colwidth", None):
        text = improved(table.to_html(escape=False, notebook=True))
    assert re.findall(r'<span class="(\w+)">', text) == ["worse", "worse", "better"]


WORDS = {"gain (points)": ["+0.31 ± 0.08*"], "verdict": ["no gain worth having"]}
WIDE = WORDS | {"detectable (points)": [0.11], "at equal passes": ["+0.12 ± 0.16"]}


def test_a_table_that_is_wider_than_a_phone_stacks() -> None:
    index = pandas.Index(["SAM"], name="method")
    text = page(pandas.DataFrame(WIDE, index))
    assert '<table class="dataframe stacks">' in text
    assert re.findall(r'data-label="(.*?)"', text) == list(WIDE)
    assert text.index("data-label") > text.index("<tbody>")


def test_a_table_of_numbers_that_is_wider_than_a_phone_stacks_too() -> None:
    columns = {f"gain at place {n}": ["+0.31 ± 0.08*"] for n in range(9)}
    assert "stacks" in page(pandas.DataFrame(columns, ["SAM"]))


def test_a_table_that_is_narrow_does_not() -> None:
    narrow = pandas.DataFrame({"gain": ["+0.31 ± 0.08*"], "set": ["spiral"]}, ["SAM"])
    assert "stacks" not in page(narrow) and "data-label" not in page(narrow)


def test_a_table_of_verdicts_stacks_however_narrow() -> None:
    assert "stacks" in page(pandas.DataFrame({"verdict": ["worse"]}, ["SAM"]))


def test_names_of_columns_are_safe_in_a_label() -> None:
    text = page(pandas.DataFrame({'a "b" < c': ["words " * 9] * 1, "d": ["e " * 30]}))
    assert 'data-label="a &quot;b&quot; &lt; c"' in text


def test_passes_are_printed_as_in_prose() -> None:
    table = pandas.DataFrame({"passes": [2.0, 7 / 3, 1.2], "n": [0.33, 1.0, 2.33]})
    text = page(table.map("{:.2f}".format))
    assert re.findall(r'"number">(.*?)<', text) == [
        "2",
        "0.33",
        "2⅓",
        "1.00",
        "1.2",
        "2.33",
    ]
