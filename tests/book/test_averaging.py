"""What the pages say of a learning rate that falls is what the records say."""

import pandas as pd
import pytest

from flatnb.results import compare, verdicts
from flatnb.results.statistics import interval


def by_seed(method: str, end: str = "") -> "pd.Series[float]":
    """Mean accuracy over the nine tasks, in percent."""
    runs = compare.select([f"plane/*/{method}/narrow-tuned{end}"])
    assert runs["task"].nunique() == 9
    return 100 * runs.groupby("seed")["test_accuracy"].mean()


def test_a_cosine_gains_what_an_average_gains_and_leaves_it_nothing() -> None:
    falling = by_seed("ERM", "-cosine")
    for baseline, typed in (("ERM", (0.39, 0.10)), ("EMA", (0.03, 0.06))):
        found = interval(falling - by_seed(baseline))
        assert tuple(map(float, found)) == pytest.approx(typed, abs=0.005)
    row = verdicts.gains("plane/*/narrow-tuned-cosine").loc["EMA"]
    assert row["verdict"] == "worse" and row["difference"] > -0.005
