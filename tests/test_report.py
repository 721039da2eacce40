"""Numbers and verdicts in words."""

import numpy as np
import pandas
import pytest

from flatnb import report
from flatnb.results import statistics


@pytest.fixture
def tests():
    return {
        "test_accuracy": pandas.DataFrame(
            {
                "task": ["a", "a", "b", "b"],
                "method": ["SAM", "NSO", "SAM", "NSO"],
                "difference": [0.5, -0.5, 0.25, 0.25],
                "interval": [0.25, 0.25, 0.5, np.nan],
                "p_holm": [0.01, 0.02, 0.5, np.nan],
            }
        )
    }


def plain(text):
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_a_mean_comes_with_the_half_width_of_its_interval():
    values = [0.5, 0.75, 0.25]
    mean, half = statistics.interval(values)
    assert plain(report.mean_interval(values)) == f"{mean:.3f} ± {half:.3f}"
    in_percent = f"{100 * mean:+.1f} ± {100 * half:.1f}"
    assert plain(report.mean_interval(values, "+.1f", scale=100)) == in_percent
    assert plain(report.mean_interval([2.0])) == "2.000 ± nan"


def test_a_star_marks_an_interval_that_excludes_zero():
    assert not report.mean_interval([1.0, 1.3], star=True).endswith("*")
    assert report.mean_interval([1.0, 1.1, 1.0], ".1f", star=True).endswith("0.1*")
    assert "*" not in report.mean_interval([1.0], star=True)


def test_the_verdict_of_an_interval():
    assert report.verdict([-1.0, -1.1, -1.0]) == "significantly lower"
    assert (
        report.verdict([1.0, 1.1, 1.0], ("worse", "better")) == "significantly better"
    )
    assert report.verdict([1.0, -1.1, 1.0]) == "no significant difference"
    assert report.verdict([1.0, -1.0], noun="trend") == "no significant trend"
    assert report.verdict([1.0]) == "inconclusive"


def test_the_verdicts_of_tests(tests):
    (table,) = tests.values()
    same, no = "no significant difference", "inconclusive"
    expected = ["significantly better", "significantly worse", same, no]
    assert report.table(tests)["verdict"].tolist() == expected
    worse = ["significantly worse", "significantly better", same, no]
    assert report.table({"test_loss": table})["verdict"].tolist() == worse


def test_differences_can_be_unstacked_to_a_table(tests):
    (table,) = tests.values()
    wide = report.differences(table, "+.2f").unstack("task").map(plain)
    assert wide.loc["SAM"].to_dict() == {"a": "+0.50 ± 0.25*", "b": "+0.25 ± 0.50"}
    one = table[table["task"] == "a"].drop(columns="task")
    assert plain(report.differences(one, "+.0f", scale=100)["NSO"]) == "-50 ± 25*"
    assert plain(report.differences(one, level=0.015)["NSO"]) == "-0.500 ± 0.250"


def test_the_table_has_a_row_for_each_test(tests):
    table = report.table(tests)
    row = table.loc[("test_accuracy", "a", "NSO")]
    assert plain(row["difference"]) == "-0.500 ± 0.250*"
    assert (row["Holm's p"], row["verdict"]) == ("0.02", "significantly worse")
    (both,) = tests.values()
    single = report.table({"test_loss": both[both["task"] == "a"]})
    assert single.loc[("test_loss", "NSO"), "verdict"] == "significantly better"


def test_a_gain_in_words() -> None:
    assert "points of test accuracy, 2 passes per step" in report.gain("SAM")
    assert report.gain("SAM").endswith("calls worth having.")
    assert "accuracy, 1 pass per step" in report.gain("FAM")
    assert "would have been found" in report.gain("FAM")
    assert "largest or smallest" in report.gain("RSAM")
    assert report.gain("none").startswith("none is not recorded on all tasks")
