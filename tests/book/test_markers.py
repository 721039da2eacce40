"""Numbers in prose agree with their records, or are named."""

from pathlib import Path

import pytest
from markers import faults, value
from scipy import stats
from test_records import NAME, example

from flatnb.results import compare, records, verdicts


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLATNB_RECORDS", str(tmp_path / "records"))


def test_mean_and_interval_are_of_the_chosen_settings() -> None:
    records.save(example())
    assert value(NAME, "seeds.mean") == 3.5
    assert value(NAME, "selected.test_accuracy.mean") == pytest.approx(0.93)
    low, high = stats.t.interval(0.95, 1, loc=0.93, scale=0.01)
    half = value(NAME, "selected.test_accuracy.interval")
    assert (0.93 - half, 0.93 + half) == pytest.approx((low, high))
    for path in ("final.test_accuracy.2.mean", "settings.mean", "passes.interval"):
        with pytest.raises(records.RecordError, match="of lists of numbers"):
            value(NAME, path)


def marked(before: str, path: str, name: str = NAME) -> str:
    return f"A line.\n{before}<!-- record: {name}:{path} --> and more."


@pytest.mark.parametrize(
    ("before", "path"),
    [
        ("SAM reaches 0.94", "final.test_accuracy.1.0"),
        ("SAM reaches 94 %", "final.test_accuracy.1.0"),
        ("94%", "final.test_accuracy.1.0"),
        ("(93.00 %", "selected.test_accuracy.mean"),
        ("0.9", "final.test_accuracy.1.0"),
        ("0.333", "final.test_loss.0.1"),
        ("**2", "passes"),
        ("4e-1", "curves.metrics.test_loss.1.1"),
        ("± 0.13", "selected.test_accuracy.interval"),
        ("7", "seeds.-1"),
    ],
)
def test_numbers_that_agree_to_the_digits_typed(before: str, path: str) -> None:
    records.save(example())
    assert faults(marked(before, path)) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            marked("0.95", "final.test_accuracy.1.0"),
            "0.95 is typed, and the record has 0.94",
        ),
        (marked("0.940001", "final.test_accuracy.1.0"), "0.940001 is typed"),
        (
            marked("0.94 %", "final.test_accuracy.1.0"),
            "0.94 is typed, and the record has 94.00",
        ),
        (marked("−0.94", "final.test_accuracy.1.0"), "-0.94 is typed"),
        (
            marked("1,0.94", "final.test_accuracy.1.0"),
            "no number stands directly before",
        ),
        (marked("x2", "passes"), "no number stands directly before"),
        (marked("2 ", "passes"), "no number stands directly before"),
        (marked("two", "passes"), "no number stands directly before"),
        (marked("2", "method"), "leads to 'SAM', not to a number"),
        (marked("2", "final.test_accuracy.2.1"), "leads to None, not to a number"),
        (marked("2", "gone"), "no 'gone' in gone"),
        (marked("2", "passes", "other"), "no record other"),
        (f"2<!--record: {NAME}:passes-->", "not of the form"),
        (f"2<!-- record {NAME}:passes -->", "not of the form"),
        ("2<!-- Record: passes -->", "not of the form"),
    ],
)
def test_markers_that_do_not_hold_are_named_with_their_line(
    text: str, message: str
) -> None:
    records.save(example())
    (fault,) = faults(text)
    assert message in fault
    assert fault.startswith(f"line {2 if text.startswith('A') else 1}: <!--")


def test_other_comments_are_left_alone() -> None:
    assert faults("1<!-- recorded elsewhere --> <!-- a --> <!--\nrecord: no\n") == []


def test_a_gain_is_held_against_the_fresh_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLATNB_RECORDS")
    pattern = "plane/*/narrow-tuned"
    runs = compare.select(["plane/*/ERM/narrow-tuned", "plane/*/SAM/narrow-tuned"])
    tests = compare.overall(runs, "ERM", "test_accuracy")
    row = tests.set_index("method").loc["SAM"]
    for path, number in (
        ("SAM", 100 * row["difference"]),
        ("SAM.interval", 100 * row["interval"]),
    ):
        assert faults(f"{number:.2f}<!-- gain: {pattern}:{path} -->") == []
        assert faults(f"{number + 0.02:.2f}<!-- gain: {pattern}:{path} -->") != []
    both = compare.overall(runs, "SAM", "test_accuracy").set_index("method")
    number = 100 * both.loc["ERM", "difference"]
    assert faults(f"{number:.2f}<!-- gain: {pattern}:ERM/SAM -->") == []
    for path in ("none", "SAM.half", "SAM/none"):
        assert "no gain" in faults(f"1<!-- gain: {pattern}:{path} -->")[0]
    assert "nothing is named" in faults("1<!-- gain: none/*:SAM -->")[0]


def test_a_gain_of_several_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLATNB_RECORDS")
    names = ["plane/*/SAM/narrow-tuned-equal-passes", "plane/*/ERM/narrow-tuned"]
    number = 100 * verdicts.gains(names).loc["SAM", "difference"]
    assert faults(f"{number:.2f}<!-- gain: {','.join(names)}:SAM -->") == []
    assert faults(f"{number + 0.02:.2f}<!-- gain: {','.join(names)}:SAM -->") != []


def test_a_share_of_pairs_is_held_against_the_fresh_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FLATNB_RECORDS")
    pattern = "plane/gaussian-0/*/narrow-tuned"
    (row,) = verdicts.flatter(pattern).itertuples()
    for number, agrees in ((100 * row.share, True), (100 * row.share + 1.1, False)):
        found = faults(f"{number:.0f} %<!-- flatter: {pattern}:trace -->")
        assert (found == []) == agrees
    share = 100 * verdicts.flatter(pattern, metric="test_error")["share"].item()
    assert faults(f"{share:.0f} %<!-- flatter: {pattern}:trace.test_error -->") == []
    assert "no pairs of none" in faults(f"1 %<!-- flatter: {pattern}:none -->")[0]
