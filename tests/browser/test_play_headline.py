"""The headline's figure says what the tables say, and moves from one to the other."""

import json
from collections.abc import Callable

import pytest
from playwright.sync_api import Page

from flatnb.book import headline

Toy = Callable[..., Page]


@pytest.mark.parametrize("panel", ["fixed", "tuned", "falling"])
def test_the_finding_counts_the_significant_gains(toy: Toy, panel: str) -> None:
    rows = json.loads(headline.data())[panel]
    said = toy("headline").evaluate(
        "([rows, rule]) => flatnb.headline.finding(rows, rule)", [rows, panel]
    )
    better = [row["gain"] for row in rows if row["verdict"] > 0]
    assert f"{len(better)} of {len(rows)} methods" in said
    assert (f"{max(better, default=0):.1f} points" in said) == bool(better)


def test_half_way_is_the_middle_and_the_end_is_the_goal(toy: Toy) -> None:
    start = {"method": "SAM", "gain": 1, "half": 0.2, "verdict": 1}
    goal = {"method": "SAM", "gain": 0, "half": 0.4, "verdict": 0}
    middle, end = (
        toy("headline").evaluate(
            "([a, b, part]) => flatnb.headline.between(a, b, part)", [start, goal, part]
        )
        for part in (0.5, 1)
    )
    assert middle == {**start, "gain": 0.5, "half": pytest.approx(0.3)}
    assert end == {**goal, "half": pytest.approx(0.4)}
