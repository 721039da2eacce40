"""The views of the scoreboard are those of the library's comparisons."""

import math

import pandas as pd
import pytest

from flatnb.results import compare, scoreboard, verdicts

TUNED = "plane/{}/*/narrow-tuned"


def runs_of(tasks: str) -> pd.DataFrame:
    return compare.select([TUNED.format(tasks)])


def one(views: pd.DataFrame, **wanted: str) -> pd.DataFrame:
    """The rows of one view, by method."""
    for column, value in wanted.items():
        views = views[views[column] == value]
    return views.set_index("method")


@pytest.fixture(scope="module")
def views() -> pd.DataFrame:
    return scoreboard.views({"tuned": runs_of("spiral-*")}, ["ERM", "EMA"])


@pytest.mark.parametrize("baseline", ["ERM", "EMA"])
@pytest.mark.parametrize("metric", scoreboard.METRICS)
@pytest.mark.parametrize(
    ("place", "tasks"),
    [("spiral, three sets", "spiral-*"), ("spiral, 5 % wrong labels", "spiral-0.05")],
)
def test_a_view_is_what_verdicts_say(
    views: pd.DataFrame, place: str, tasks: str, metric: str, baseline: str
) -> None:
    worth = verdicts.WORTH if metric == "test_accuracy" else None
    tests = verdicts.gains(TUNED.format(tasks), metric, worth, baseline)
    view = one(views, place=place, metric=metric, baseline=baseline)
    assert set(view.index) == set(tests.index)
    tests = tests.loc[view.index]
    assert (view["gain"] == compare.sign(metric) * tests["difference"]).all()
    same = ["interval", "n", "p_holm", "verdict", "agree", "passes"]
    assert (view[same] == tests[same]).all(axis=None)


def test_there_are_views_of_what_is_recorded_only(views: pd.DataFrame) -> None:
    places = [f"spiral, {share} % wrong labels" for share in (0, 5, 10)]
    assert views["place"].unique().tolist() == ["spiral, three sets", *places]
    assert views["baseline"].unique().tolist() == ["ERM", "EMA"]
    assert not (views["method"] == views["baseline"]).any()


def test_a_method_that_lacks_a_set_or_a_metric_is_not_compared_there() -> None:
    runs = runs_of("spiral-*")
    lost = (runs["method"] == "SAM") & runs["task"].str.contains("-0.05")
    runs = runs[~lost].copy()
    runs.loc[runs["method"] == "NSO", "test_ece"] = math.nan
    views = scoreboard.views({"tuned": runs}, ["ERM"])
    here = {"baseline": "ERM", "metric": "test_accuracy"}
    assert "SAM" not in one(views, place="spiral, three sets", **here).index
    assert "SAM" in one(views, place="spiral, 0 % wrong labels", **here).index
    place = {"place": "spiral, three sets"}
    assert "NSO" in one(views, **place, **here).index
    assert "NSO" not in one(views, **place, **here | {"metric": "test_ece"}).index


def test_a_baseline_alone_and_no_runs_give_no_view() -> None:
    runs = runs_of("spiral-0")
    for part in (
        runs[runs["method"] == "ERM"],
        runs[runs["method"] != "ERM"],
        runs[:0],
    ):
        views = scoreboard.views({"tuned": part}, ["ERM"])
        assert views.empty
        assert list(views) == scoreboard.COLUMNS


def test_a_gain_worth_having_is_a_point_on_photographs() -> None:
    photographs = [place for place in scoreboard.PLACES if "CIFAR" in place.words]
    assert [place.worth for place in photographs] == [0.01, 0.01]
    others = [place.worth for place in scoreboard.PLACES if place not in photographs]
    assert set(others) == {verdicts.WORTH}
