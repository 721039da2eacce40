"""What the pages say of a learning rate that falls is what the records say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flatnb.book import headline
from flatnb.experiments import EXPERIMENTS
from flatnb.results import compare, records, verdicts
from flatnb.results.statistics import interval

NOISY, CLEAN = (f"plane/*-{p}/*/narrow-tuned-cosine" for p in ("0.*", "0"))


def by_seed(method: str, end: str = "") -> "pd.Series[float]":
    """Mean accuracy over the nine tasks, in percent."""
    runs = compare.select([f"plane/*/{method}/narrow-tuned{end}"])
    assert runs["task"].nunique() == 9
    return 100 * runs.groupby("seed")["test_accuracy"].mean()


def of(verdict: str, pattern: str) -> set[str]:
    table = verdicts.gains(pattern)
    return set(table.index[table["verdict"] == verdict])


def test_a_cosine_gains_what_an_average_gains_and_leaves_it_nothing() -> None:
    falling = by_seed("ERM", "-cosine")
    for baseline, typed in (("ERM", (0.39, 0.10)), ("EMA", (0.03, 0.06))):
        found = interval(falling - by_seed(baseline))
        assert tuple(map(float, found)) == pytest.approx(typed, abs=0.005)
    table = verdicts.gains(verdicts.FALLING)
    assert table.loc["EMA", "verdict"] == "worse"
    assert table.loc["SWA", "verdict"] == "no gain worth having"


def test_of_those_better_at_a_constant_rate_two_are_better_at_a_falling_one() -> None:
    constant, falling = (
        of("better", pattern) for pattern in (verdicts.PLANE, verdicts.FALLING)
    )
    assert falling == {"NSO", "USAM"} and len(constant) == 11 and falling < constant
    table = verdicts.gains(verdicts.FALLING)
    assert table["difference"].idxmax() == "FriendlySAM"
    assert table.loc["FriendlySAM", "verdict"] == "at an edge"
    assert table["difference"].max() < 0.002
    assert {"Flooding", "AdaFlood", "SoftAD"} <= of("worse", verdicts.FALLING)
    shown = {row["method"]: row["verdict"] for row in panel("falling")}
    assert [name for name, verdict in shown.items() if verdict > 0] == ["NSO"]
    assert len(shown) == 10


def test_chapter_11_names_the_methods_that_keep_a_gain() -> None:
    better = {row["method"] for row in panel("tuned") if row["verdict"] > 0}
    assert better == {"NSO", "SAM", "GNP", "weight noise", "ASAM"}


def test_chapter_6_counts_the_variants_of_sam_that_gain() -> None:
    variants = ["ASAM", "USAM", "RSAM", "FriendlySAM", "GSAM", "LookSAM", "BSAM"]
    table = verdicts.gains().loc[["SAM", *variants]]
    assert (table.loc[variants, "verdict"] == "better").sum() == 4
    assert table["difference"].idxmax() == "SAM"
    assert table.loc["BSAM", "verdict"] == "worse"


def panel(name: str) -> list[dict[str, float]]:
    return json.loads(headline.data())[name]


def test_every_method_of_the_study_is_counted() -> None:
    planned = {
        each.name for each in EXPERIMENTS if each.name.endswith("narrow-tuned-cosine")
    }
    assert len(planned) == 9 * 23 and planned <= set(records.names())
    assert len(verdicts.gains(verdicts.FALLING)) == 22


@pytest.mark.parametrize("file", ["README.md", "book/intro.md"])
def test_readme_and_landing_page_have_one_headline(file: str) -> None:
    table = verdicts.gains(verdicts.FALLING)
    better = table[table["verdict"] == "better"].sort_values("difference")[::-1]
    names, gains = list(better.index), 100 * better["difference"]
    words = (
        f"two of the {len(table)}, {names[0]} and {names[1]}, are still significantly "
        f"better, by {gains.iloc[0]:.2f} and {gains.iloc[1]:.2f} points"
    )
    assert len(names) == 2
    root = Path(__file__).resolve().parents[2]
    assert words in " ".join((root / file).read_text(encoding="utf-8").split())
    open_ = table[(table["verdict"] == "at an edge") & (table["p_holm"] < 0.05)]
    assert set(open_.index[open_["difference"] > 0]) == {"FriendlySAM", "GSAM"}


LEFT = {"FriendlySAM": 0.31, "USAM": 0.25, "SAM": 0.21, "ASAM": 0.21}
LEFT |= {"RSAM": 0.18, "NSO": 0.16}


def test_what_is_left_is_left_where_labels_are_wrong() -> None:
    assert of("better", NOISY) == set(LEFT)
    gains = 100 * verdicts.gains(NOISY)["difference"]
    assert gains[list(LEFT)].tolist() == pytest.approx([*LEFT.values()], abs=0.005)
    assert not of("better", CLEAN)
    best = 100 * verdicts.gains(NOISY).loc["FriendlySAM", "interval"]
    assert best == pytest.approx(0.08, abs=0.005)  # the README has these numbers, too
    spirals = verdicts.gains("plane/spiral-0.*/*/narrow-tuned-cosine")
    assert (spirals.loc[list(LEFT), "verdict"] == "no gain worth having").all()


def test_on_top_of_a_cosine_averages_and_noise_calibrate() -> None:
    table = verdicts.gains(verdicts.FALLING, "test_ece", None)
    plain = compare.select(["plane/*/ERM/narrow-tuned-cosine"])["test_ece"]
    assert 100 * plain.mean() == pytest.approx(6.6, abs=0.05)
    typed = {"SWA": (-1.4, 0.1), "WeightNoise": (-1.5, 0.1)}
    for name, numbers in typed.items():
        row = 100 * table.loc[name, ["difference", "interval"]].astype(float)
        assert row.tolist() == pytest.approx(numbers, abs=0.05)
        assert table.loc[name, "verdict"] == "better"


def shares(
    metric: str, alike: float, pattern: str, column: str = "share", **limits: Any
) -> "pd.Series[float]":
    """Of each set: in how many percent of pairs the flatter net is the better one."""
    table = verdicts.flatter(pattern, metric=metric, alike=alike, **limits)
    sets = table.index.str.removeprefix("plane/").str.removesuffix(", tuned lr")
    return pd.Series(100 * table[column].to_numpy(), sets)


def test_where_training_losses_are_alike_the_flatter_net_is_more_accurate_on_some() -> (
    None
):
    accuracy, loss = (
        shares(metric, 1.1, verdicts.FALLING)
        for metric in ("test_accuracy", "test_loss")
    )
    noisy = [f"{shape}-{p}" for shape in ("gaussian", "sinusoid") for p in (0.05, 0.1)]
    assert accuracy[noisy].min() == pytest.approx(61, abs=0.5)
    assert accuracy[noisy].max() == pytest.approx(74, abs=0.5)
    others = accuracy.drop(noisy)
    assert len(others) == 5
    assert [others.min(), others.max()] == pytest.approx([45, 54], abs=0.6)
    assert loss[[name for name in loss.index if "gaussian" in name]].min() > 60
    assert loss[[name for name in loss.index if "gaussian" not in name]].max() < 52


SAM_FAMILY = {"SAM", "ASAM", "USAM", "RSAM", "GNP", "BSAM", "SAM-EMA"}
SAM_FAMILY |= {"GSAM", "FriendlySAM", "LookSAM"}
OTHER_RATES = {"SGD", "AdamW", "BSAM"}  # optimizers whose rates have another scale
NEAR = {"rates": 10**0.25}


@pytest.mark.parametrize(
    ("limits", "noisy", "others", "sinusoids"),
    [
        ({}, (61, 74), (45, 54), (34, 36)),
        (NEAR | {"without": OTHER_RATES}, (59, 76), (45, 51), (51, 58)),
        ({"without": SAM_FAMILY}, (59, 72), (48, 53), (47, 47)),
        (NEAR | {"without": OTHER_RATES | SAM_FAMILY}, (58, 74), (41, 55), (45, 58)),
    ],
)
def test_neither_the_rate_nor_sams_family_is_the_whole_reason(
    limits: Any, noisy: Any, others: Any, sinusoids: Any
) -> None:
    accuracy = shares("test_accuracy", 1.1, verdicts.FALLING, **limits)
    half = shares("test_accuracy", 1.1, verdicts.FALLING, "interval", **limits)
    four = [f"{shape}-{p}" for shape in ("gaussian", "sinusoid") for p in (0.05, 0.1)]
    assert (accuracy - half)[four].min() > 50
    for part, ends in ((accuracy[four], noisy), (accuracy.drop(four), others)):
        assert (round(part.min()), round(part.max())) == ends
    loss = shares("test_loss", 1.1, verdicts.FALLING, **limits)
    part = loss[["sinusoid-0.05", "sinusoid-0.1"]]
    assert (round(part.min()), round(part.max())) == sinusoids
    if not limits:
        gaussians = [name for name in loss.index if "gaussian" in name]
        assert (round(loss[gaussians].min()), round(loss[gaussians].max())) == (61, 69)
    if limits == {"without": SAM_FAMILY}:
        assert round(loss["sinusoid-0"]) == 36


def test_without_the_noise_methods_too_a_coin_is_left_on_some_gaussians() -> None:
    limits = {"without": SAM_FAMILY | {"NSO", "NSO-EMA", "WeightNoise"}}
    found = [
        shares("test_accuracy", 1.1, verdicts.FALLING, column, **limits)
        for column in ("share", "interval")
    ]
    one = [values["gaussian-0.05"] for values in found]
    assert one == pytest.approx([51, 6], abs=0.5)
    others = ["gaussian-0.1", "sinusoid-0.05", "sinusoid-0.1"]
    shares_of, halves = (values[others] for values in found)
    assert (round(shares_of.min()), round(shares_of.max())) == (58, 64)
    assert (shares_of - halves).min() > 50


def test_at_a_constant_rate_the_flatter_net_wins_by_set() -> None:
    """The landing page and chapter 1, of all pairs."""
    found = shares("test_loss", float("inf"), verdicts.PLANE)
    assert [found.min(), found.max()] == pytest.approx([36, 76], abs=0.5)
    errors = 100 * verdicts.flatter(verdicts.PLANE, "trace", "test_error")["share"]
    assert [errors.min(), errors.max()] == pytest.approx([50, 72], abs=0.6)
    assert set(found.index[found < 49]) == {"sinusoid-0.05", "sinusoid-0.1"}


def test_fewer_tries_cost_as_much_as_the_average_on_a_cosine() -> None:
    """The scoreboard: plain training with 10 of its 40 rates, drawn at random."""
    drawn = np.random.default_rng(1)
    losses = []
    for record in compare.loaded(["plane/*/ERM/narrow-tuned-cosine"]):
        budget = record["selection"]["budget"]
        chances, truths = (
            np.array(record["final"][name][:budget], float).mean(axis=1)
            for name in ("val_accuracy", "test_accuracy")
        )
        best = [
            truths[max(drawn.permutation(budget)[:10], key=lambda k: chances[k])]
            for _ in range(500)
        ]
        losses.append(100 * (truths[chances.argmax()] - np.mean(best)))
    assert len(losses) == 9
    assert np.mean(losses) == pytest.approx(0.13, abs=0.02)


@pytest.mark.parametrize("place", ["*", "*-0.*", "*-0"])
def test_at_equal_passes_nothing_is_better_on_a_cosine(place: str) -> None:
    shorter = f"plane/{place}/*/narrow-tuned-equal-passes-cosine"
    table = verdicts.gains([shorter, f"plane/{place}/ERM/narrow-tuned-cosine"])
    assert (
        set(table.index) == {*LEFT, "GSAM", "GNP"} and len(table) == 8
    )  # as the pages say
    assert (table["p_holm"] > 0.05).all() or table["difference"].max() < 0
    assert not (table["verdict"] == "better").any()
    if place == "*-0.*":
        assert (table["difference"] < table["detectable"]).all()
    edges = {"*": {"SAM", "FriendlySAM", "RSAM"}, "*-0.*": {"FriendlySAM", "RSAM"}}
    if place in edges:  # chapter 14 and the landing page
        assert set(table.index[table["verdict"] == "at an edge"]) == edges[place]
    if place == "*":  # the README, and chapter 14
        patterns = [shorter, f"plane/{place}/ERM/narrow-tuned-cosine"]
        losses = verdicts.gains(patterns, "test_loss", None)
        better = set(losses.index[losses["verdict"] == "better"])
        assert better == {"ASAM", "GNP", "GSAM", "NSO", "USAM"}
        found = 100 * table.loc[["USAM", "NSO"], ["difference", "interval"]]
        expected = [0.0, 0.09, -0.02, 0.09]
        assert found.to_numpy().ravel() == pytest.approx(expected, abs=0.005)


def test_no_method_of_one_pass_is_better_at_a_falling_rate() -> None:
    table = verdicts.gains(verdicts.FALLING)
    assert not (table["verdict"][table["passes"] == 1] == "better").any()


def test_what_a_default_gains_depends_on_the_schedule() -> None:
    constant, falling = (
        verdicts.gains(pattern, runs="default")
        for pattern in (verdicts.PLANE, verdicts.FALLING)
    )
    named = ["SAM", "GSAM", "GNP", "FriendlySAM"]
    assert (constant.loc[named, "verdict"] == "better").all()
    assert (100 * constant.loc[named, "difference"]).between(0.84, 0.95).all()
    assert not (falling.loc[named, "verdict"] == "better").any()
    assert falling.loc["GNP", "verdict"] == "worse"
    for name, typed in (
        ("NSO", (0.29, 0.06)),
        ("WeightNoise", (0.19, 0.07)),
        ("SGD", (0.13, 0.06)),
    ):
        found = tuple(100 * falling.loc[name, ["difference", "interval"]])
        assert found == pytest.approx(typed, abs=0.006)
        assert falling.loc[name, "verdict"] == "better"
    averages = [name for name in falling.index if name.endswith("EMA")]
    lost = -100 * pd.concat(
        [t.loc[averages, "difference"] for t in (constant, falling)]
    )
    assert lost.between(4.5, 6.5).all() and len(averages) == 3


def test_no_default_that_falls_is_better_than_a_tuned_rate_that_falls() -> None:
    runs = compare.on_all_tasks(compare.select([verdicts.FALLING], "default"))
    means = runs.groupby("method")["test_accuracy"].mean()
    tuned = by_seed("ERM", "-cosine").mean()
    assert 100 * means.max() < tuned - 1
    assert tuned - 100 * means["ERM"] == pytest.approx(1.56, abs=0.01)


def test_what_tuning_the_rate_is_worth_to_plain_training() -> None:
    """In fresh runs at a constant rate, as chapter 14 says beside selected ones."""
    default = compare.select(["plane/*/ERM/narrow-tuned"], "default")
    tuned = compare.select(["plane/*/ERM/narrow-tuned"])
    runs = pd.concat([tuned, default.assign(method="default")])
    (row,) = compare.overall(runs, "default", "test_accuracy").itertuples()
    found = 100 * row.difference, 100 * row.interval
    assert found == pytest.approx((1.57, 0.13), abs=0.005)


def test_at_a_constant_rate_the_trace_falls_above_a_thousandth() -> None:
    """The caption of one set, net by net: by median over half a decade of the rate."""
    names = [n for n in records.names() if n.startswith("plane/gaussian-0.05/")]
    own = {"SGD", "AdamW", "BSAM"}  # rates of another scale
    nets = compare.nets([n for n in names if n.endswith("/narrow-tuned")])
    nets = nets[~nets["method"].isin(own)]
    classes = np.floor(2 * np.log10(nets["lr"]) + 1e-9)
    medians = nets.groupby(classes)[["trace", "test_loss"]].median()
    falling = medians.loc[-7:, "trace"]
    assert falling.is_monotonic_decreasing
    assert medians.loc[:-7, "trace"].min() > falling.loc[-6]
    assert set(medians["test_loss"].nsmallest(2).index) == {-8, -7}


def test_at_a_falling_rate_the_flattest_are_not_the_most_accurate() -> None:
    ends = verdicts.endings([f"{verdicts.PLANE}-cosine"])
    traces = ends[ends["measure"] == "trace"].sort_values("ratio")["method"].tolist()
    assert set(traces[:2]) == {"BSAM", "NSO-EMA"} and traces[-1] == "SGD"
    gains = verdicts.gains(f"{verdicts.PLANE}-cosine").loc[["BSAM", "NSO-EMA", "SGD"]]
    assert (gains["difference"] < 0).all() and (gains["p_holm"] > 0.05).all()
