"""Intervals, Holm's correction and rank correlation, against scipy's."""

import itertools
import math

import numpy as np
import pandas
import pytest
from scipy import stats

from flatnb.results.statistics import (
    correlations,
    detectable,
    holm,
    interval,
    signed_rank,
    spearman,
)


def test_interval_is_the_t_interval():
    values = np.random.default_rng(0).normal(size=(7, 3))
    mean, half = interval(values)
    for column in range(3):
        low, high = stats.ttest_1samp(values[:, column], 0).confidence_interval(0.95)
        np.testing.assert_allclose(
            [mean[column] - half[column], mean[column] + half[column]], [low, high]
        )


def test_interval_of_one_value_has_no_width():
    mean, half = interval([2.5])
    assert mean == 2.5
    assert np.isnan(half)


def test_interval_of_nothing_is_no_number():
    assert all(math.isnan(number) for number in interval([]))
    assert interval(np.zeros((0, 3)))[0].shape == (3,)


def test_interval_keeps_a_diverged_run_in_sight():
    mean, half = interval([[1.0, 2.0], [None, 4.0]])
    assert np.isnan(mean[0]) and np.isnan(half[0])
    assert mean[1] == 3.0 and np.isfinite(half[1])


@pytest.mark.parametrize("values", [1.0, "text", None, ["a"], [[1.0], [1.0, 2.0]]])
def test_interval_of_anything_else_is_refused(values):
    with pytest.raises((TypeError, ValueError)):
        interval(values)


@pytest.mark.parametrize(
    ("n", "tests", "power"), [(5, 14, 0.8), (15, 30, 0.8), (60, 21, 0.8), (8, 1, 0.5)]
)
def test_a_detectable_mean_is_found_with_its_power(n, tests, power):
    level, sd, count = 0.05 / tests, 0.7, 20_000
    mean = detectable(sd, n, level, power)
    sets = np.random.default_rng(n).normal(mean, sd, (count, n))
    found = np.mean(stats.ttest_1samp(sets, 0, axis=1).pvalue < level)
    assert abs(found - power) < 5 * math.sqrt(power * (1 - power) / count)


@pytest.mark.parametrize(("n", "level"), [(5, 0.05), (5, 0.002), (15, 0.01)])
def test_what_is_detectable_is_that_of_the_noncentral_t(n, level):
    shift = detectable(1.0, n, level) * math.sqrt(n)
    bound = stats.t.isf(level / 2, n - 1)
    assert stats.nct.sf(bound, n - 1, shift) == pytest.approx(0.8, abs=1e-5)


def test_what_is_detectable_scales_with_the_spread():
    assert detectable(0.0, 10) == 0
    assert detectable(3.0, 10) == pytest.approx(3 * detectable(1.0, 10))
    assert detectable(1.0, 10, 0.05) < detectable(1.0, 10, 0.05 / 20)
    # For many pairs it is that of the normal distribution.
    normal = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert detectable(1.0, 10**4) == pytest.approx(normal / 100, rel=1e-3)
    assert math.isnan(detectable(1.0, 1)) and math.isnan(detectable(math.nan, 5))


def test_holm_on_a_worked_case():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    adjusted = holm([0.02, math.nan])
    assert adjusted[0] == 0.02 and math.isnan(adjusted[1])


def test_the_signed_rank_test_is_scipys_without_ties() -> None:
    for n in (5, 15, 40):
        gaps = np.random.default_rng(n).normal(0.3, 1.0, n)
        p = stats.wilcoxon(gaps, method="exact").pvalue
        assert signed_rank(gaps) == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_signed_rank_test_counts_all_signs(seed: int) -> None:
    """Of rounded gaps: with ties, and with zeros that are dropped."""
    gaps = np.random.default_rng(seed).normal(0.4, 1.0, 9).round(0)
    kept = gaps[gaps != 0]
    ranks = stats.rankdata(abs(kept))
    signs = np.array(list(itertools.product((0, 1), repeat=len(kept))))
    sums, w = signs @ ranks, ranks[kept > 0].sum()
    sides = np.mean(sums <= w), np.mean(sums >= w)
    assert signed_rank(gaps) == pytest.approx(min(1.0, 2 * min(sides)))
    assert signed_rank(-gaps) == signed_rank(gaps)


def test_the_signed_rank_test_of_a_table_is_that_of_its_columns() -> None:
    gaps = np.random.default_rng(0).normal(0.4, 1.0, (9, 2, 3)).round(0)
    gaps[0, 0, 0] = math.nan
    gaps[:, 1, 1] = 0.0
    found = signed_rank(gaps)
    assert found.shape == (2, 3)
    for place, p in np.ndenumerate(found):
        assert p == pytest.approx(float(signed_rank(gaps[:, *place])), nan_ok=True)


def test_the_signed_rank_test_of_zeros_is_1_and_of_nan_nan() -> None:
    assert signed_rank([0.0, 0.0]) == 1.0
    assert math.isnan(signed_rank([1.0, math.nan]))


@pytest.mark.parametrize("seed", range(5))
def test_spearman_is_scipys(seed):
    random = np.random.default_rng(seed)
    x, y = random.integers(4, size=(2, 12)).astype(float)  # with ties
    expected = stats.spearmanr(x, y)[0]
    assert spearman(x, y).value == pytest.approx(expected)
    x[3], y[5] = math.nan, math.nan
    present = ~np.isnan(x + y)
    rank = spearman(x, y)
    assert rank.value == pytest.approx(stats.spearmanr(x[present], y[present])[0])
    assert rank.n == 10
    assert -1 <= rank.low < rank.value < rank.high <= 1


def test_partial_spearman_correlates_what_regressions_on_ranks_leave():
    x, y, z = np.random.default_rng(0).normal(size=(3, 20)) + np.arange(20) / 8
    ranks = [stats.rankdata(column) for column in (x, y, z)]
    residuals = [
        column - np.poly1d(np.polyfit(ranks[2], column, 1))(ranks[2])
        for column in ranks[:2]
    ]
    expected = np.corrcoef(*residuals)[0, 1]
    assert spearman(x, y, z).value == pytest.approx(expected)
    assert math.isnan(spearman(x, y, x).value)  # nothing of x is left


def test_several_columns_can_be_held():
    """The partial correlation is that of the inverse of the matrix of correlations."""
    columns = np.random.default_rng(2).normal(size=(4, 30)) + np.arange(30) / 10
    inverse = np.linalg.inv(np.corrcoef([stats.rankdata(c) for c in columns]))
    expected = -inverse[0, 1] / math.sqrt(inverse[0, 0] * inverse[1, 1])
    assert spearman(*columns).value == pytest.approx(expected)
    x, y, z, w = columns
    # What is constant, or said twice, holds nothing more.
    plain = spearman(x, y, z)
    more = spearman(x, y, z, np.ones(30), z + z)
    assert more.value == pytest.approx(plain.value)
    assert plain.n == more.n == 30
    assert math.isnan(spearman(x, y, w, z, x).value)  # nothing of x is left


def test_the_interval_of_a_rank_correlation_covers():
    """That of Fieller, Hartley and Pearson, for normal pairs of correlation 0.6."""
    random, covered = np.random.default_rng(1), 0
    exact = 6 / math.pi * math.asin(0.3)
    for _ in range(400):
        x, noise = random.normal(size=(2, 40))
        rank = spearman(x, 0.6 * x + 0.8 * noise)
        covered += rank.low < exact < rank.high
    assert 0.91 < covered / 400 < 0.985


def test_a_constant_or_too_short_column_has_no_rank_correlation():
    assert math.isnan(spearman([1, 1, 1, 1], [1, 2, 3, 4]).value)
    assert math.isnan(spearman([1, 2], [1, 2]).value)
    assert spearman([1, 2, 3, 4], [1, 2, 3, 4])[:3] == (1.0, 1.0, 1.0)


def test_correlations_are_within_groups():
    table = pandas.DataFrame({"seed": list("ab") * 5, "x": range(10), "y": range(10)})
    table["z"] = np.random.default_rng(0).random(10)
    table.loc[table["seed"] == "b", "y"] *= -1
    assert correlations(table, "x", "y", by="seed").to_dict() == {"a": 1.0, "b": -1.0}
    partial = correlations(table, "x", "z", by="seed", given=["y"])
    assert partial.isna().all()
    with pytest.raises(TypeError, match="given='y'; allowed: names of columns"):
        correlations(table, "x", "z", by="seed", given="y")
