"""Numbers and verdicts in words."""

import numpy as np
import pandas
import pytest

from flatnb import report
from flatnb.results import statistics, verdicts


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


def made_gains(monkeypatch, **rows):
    """Let the records have these tests: method -> columns that differ from SAM's."""
    usual = {
        "difference": 0.003,
        "interval": 0.001,
        "n": 60,
        "tasks": 9,
        "verdict": "better",
        "detectable": 0.002,
        "passes": 2.0,
        "agree": True,
    }
    table = pandas.DataFrame({name: usual | row for name, row in rows.items()}).T
    monkeypatch.setattr(verdicts, "gains", lambda *args, **options: table)


BASIS = "95 % interval, n = 60 fresh seeds of 9 tasks"
FOUND = "a true gain of 0.20 would be significant in 80 % of such comparisons"


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            {"difference": 0.01},
            "A is significantly better than plain training, by at least half a point: +1.00 ± "
            f"0.10 points of test accuracy ({BASIS}, 2 passes per step).",
        ),
        (
            {"difference": 0.005},
            "A is significantly better than plain training: +0.50 ± 0.10 points of test "
            f"accuracy ({BASIS}, 2 passes per step).",
        ),
        (
            {},
            "A is significantly better than plain training, by less than half a point: +0.30 ± "
            f"0.10 points of test accuracy ({BASIS}, 2 passes per step).",
        ),
        (
            {"verdict": "inconclusive", "interval": 0.004},
            "A may or may not gain over plain training: +0.30 ± 0.40 points of test accuracy "
            f"({BASIS}, 2 passes per step); {FOUND}.",
        ),
        (
            {"verdict": "no gain worth having", "difference": -0.001},
            "A has no gain worth having over plain training: -0.10 ± 0.10 points of test "
            f"accuracy ({BASIS}, 2 passes per step); {FOUND}.",
        ),
        (
            {"verdict": "worse", "difference": -0.003},
            "A is significantly worse than plain training: -0.30 ± 0.10 points of test "
            f"accuracy ({BASIS}, 2 passes per step).",
        ),
        (
            {"verdict": "at an edge", "agree": False},
            "A gets no verdict against plain training, because a chosen setting was the "
            "largest or smallest one tried: +0.30 ± 0.10 points of test accuracy "
            f"({BASIS}, 2 passes per step); Wilcoxon's test disagrees.",
        ),
        (
            {"verdict": "too few seeds", "passes": 1.0, "tasks": 1},
            "A has too few seeds for a verdict against plain training: +0.30 ± 0.10 points of "
            "test accuracy (95 % interval, n = 60 fresh seeds of a task, 1 pass per step).",
        ),
    ],
)
def test_a_gain_in_a_sentence(monkeypatch, row, sentence) -> None:
    made_gains(monkeypatch, A=row)
    assert plain(report.gain("A")) == sentence


def test_of_several_methods_each_has_a_line(monkeypatch) -> None:
    made_gains(
        monkeypatch,
        A={"verdict": "worse", "difference": -0.003, "passes": 1.0},
        WeightNoise={"passes": 4 / 3, "agree": False},
        C={"verdict": "inconclusive", "interval": 0.004},
        D={"verdict": "at an edge"},
    )
    methods = ["A", "WeightNoise", "C", "D", "E"]
    lines = report.gains(methods, lead="At equal passes").splitlines()
    assert [plain(line) for line in lines] == [
        f"At equal passes, points of test accuracy minus those of plain training ({BASIS}):",
        "  A: -0.30 ± 0.10 (1 pass per step), significantly worse",
        "  weight noise: +0.30 ± 0.10 (1⅓ passes per step), significantly better, by less "
        "than half a point; Wilcoxon's test disagrees",
        "  C: +0.30 ± 0.40 (2 passes per step), inconclusive (detectable: 0.20)",
        "  D: +0.30 ± 0.10 (2 passes per step), no verdict: a chosen setting was the largest "
        "or smallest one tried",
        "  E: not recorded on all tasks yet",
    ]


def test_an_interval_without_zero_may_not_be_significant(monkeypatch) -> None:
    apart = {"verdict": "no gain worth having", "difference": 0.002}
    zero = {"verdict": "no gain worth having", "difference": 0.0}
    made_gains(monkeypatch, A=apart, B=zero, C={})
    together = "not significant once 3 methods are tested together; "
    said = {name: plain(report.gain(name)) for name in "ABC"}
    assert f"; the difference is {together}{FOUND}." in said["A"]
    assert together not in said["B"] + said["C"]
    lines = report.gains(["A", "B", "C"]).splitlines()
    assert [together in plain(line) for line in lines] == [False, True, False, False]


def test_a_gain_over_another_method_names_it(monkeypatch) -> None:
    made_gains(monkeypatch, A={"verdict": "inconclusive"})
    said = report.gain("A", baseline="WeightNoise", lead="At equal passes")
    assert said.startswith("At equal passes, A may or may not gain over weight noise: ")
    missing = report.gain("X", lead="At equal passes")
    assert missing.startswith("At equal passes, X is not recorded on all tasks of ")


def test_recorded_gains_are_those_of_the_verdicts(monkeypatch) -> None:
    tests = verdicts.gains()
    monkeypatch.setattr(verdicts, "gains", lambda *args, **options: tests)
    for name, row in tests.iterrows():
        number = f"{abs(100 * row['difference']):.2f} ± {100 * row['interval']:.2f}"
        assert number in plain(report.gain(name))
