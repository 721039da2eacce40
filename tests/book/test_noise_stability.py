"""What the pages on noise say in words, and no marker holds, is what the records say."""

import numpy as np
import pytest

from flatnb.results import compare, records, verdicts


def test_what_nso_gains_over_one_side_and_over_the_average() -> None:
    over_noise = verdicts.gains(baseline="WeightNoise")["verdict"]
    over_average = verdicts.gains(baseline="EMA")["verdict"]
    assert over_noise["NSO"] == "better"
    assert over_average["NSO"] == "no gain worth having"
    assert over_average["NSO-EMA"] == "better"


@pytest.mark.parametrize(
    ("name", "baseline", "verdict"),
    [
        ("NSO", "ERM", "no gain worth having"),
        ("NSO-EMA", "EMA", "no gain worth having"),
        ("SAM-EMA", "EMA", "worse"),
    ],
)
def test_verdicts_at_equal_passes(name: str, baseline: str, verdict: str) -> None:
    shorter = [f"plane/*/{name}/narrow-tuned-equal-passes"]
    shorter += [f"plane/*/{baseline}/narrow-tuned"]
    assert verdicts.gains(shorter, baseline=baseline).loc[name, "verdict"] == verdict


def test_accuracy_does_not_follow_the_trace() -> None:
    names = [f"plane/*/{name}/narrow-tuned" for name in ("ERM", "NSO", "EMA")]
    ratios = verdicts.endings(names).set_index(["measure", "method"])["ratio"]
    assert ratios["trace", "NSO"] < 0.8 * ratios["trace", "EMA"]


def test_the_order_of_the_sides_depends_on_the_width_of_the_noise() -> None:
    errors = {}
    for name in ("WeightNoise", "NSO"):
        table = records.frame(records.load(f"sensing/d100-r5/{name}"))
        errors[name] = np.log10(table.set_index(["sigma", "seed"])["distance"])
    gaps = errors["NSO"] - errors["WeightNoise"]
    assert (gaps[0.08] < 0).all()
    assert all((gaps[width] > 0).all() for width in (0.04, 0.02, 0.01))
    means = errors["NSO"].groupby("sigma").mean()
    assert means.idxmin() == 0.08


def test_only_gradient_descent_stays_away() -> None:
    runs = compare.select(["sensing/*"])
    worst = runs.groupby("method")["distance"].agg(["min", "max"])
    assert (
        worst.loc["GD", "min"]
        > 1
        > 0.01
        > worst.loc[["NSO", "WeightNoise"], "max"].max()
    )
