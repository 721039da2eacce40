"""Statistics of repeated runs: intervals, Holm's correction, power, rank correlation.

An interval is Student's of 95 %, mean ± t(0.975, n - 1) s / √n, with s the standard
deviation of n - 1 degrees of freedom.
"""

import functools
import itertools
import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from flatnb._checks import sequence

LEVEL = 0.05  # of a test: p, adjusted by `holm`, below it is significant
POWER = 0.8  # of a test, for `detectable`
LEAST_NETS = 10  # of a seed, for its rank correlation in `flatness`
_GIVEN = "names of columns, such as ['lr']"
TARGETS = ("loss_gap", "test_loss", "test_error")  # what flatness may go with


def interval(values: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and half-width of its 95 % t-interval over the first axis.

    Values of shape (n, …), n independent repetitions, give two of shape (…). The
    half-width of n < 2 and the mean of nothing are NaN; so is what has a NaN: no
    diverged run is left out in silence.

    >>> mean, half = interval([1.0, 2.0, 3.0])
    >>> f"{mean:.1f} ± {half:.2f}"
    '2.0 ± 2.48'
    """
    array = np.asarray(values, dtype=np.float64)
    n = len(array)
    with warnings.catch_warnings(action="ignore"):  # of n < 2, and of infinities
        half = stats.t.ppf(0.975, n - 1) * array.std(0, ddof=1) / math.sqrt(n)
        return array.mean(0), half


def summary(values: pandas.Series) -> tuple[float, float, int]:
    """`interval` of the values that are not missing, and their number.

    >>> summary(pandas.Series([1.0, 1.0, None]))
    (1.0, 0.0, 2)
    """
    present = values.dropna()
    mean, half = interval(present)
    return float(mean), float(half), len(present)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's adjusted p-values: max over j <= i of min(1, (k - j + 1) p_(j)), k tests.

    With them the chance of any false rejection stays below the level. NaN stays NaN and
    counts as no test. Source: S. Holm, "A simple sequentially rejective multiple test
    procedure", Scandinavian Journal of Statistics 6 (1979).

    >>> holm([0.5, 0.125, 0.25]).tolist()
    [0.5, 0.375, 0.5]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = p.argsort()  # NaN last
    factors = np.count_nonzero(~np.isnan(p)) - np.arange(len(p))
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate((factors * p[order]).clip(max=1))
    return adjusted


def signed_rank(gaps: ArrayLike) -> NDArray[np.float64]:
    """p of Wilcoxon's two-sided signed-rank test that gaps are symmetric around 0, over
    the first axis: gaps (n, …) give (…).

    Zeros are dropped, and equal sizes share their mean rank. With r the ranks of |gaps|,
    p = 2 min(P(W <= w), P(W >= w)), at most 1, where w is the sum of r over the positive
    gaps, and W is that sum when every sign is drawn by a coin. It is exact with ties,
    too, where `scipy.stats.wilcoxon` approximates. 1 if all gaps are 0; NaN if one is NaN.
    Source: F. Wilcoxon, "Individual comparisons by ranking methods", Biometrics Bulletin 1
    (1945).

    >>> float(signed_rank([3.0, 1.0, 2.0, 4.0]))  # of 16 signs, these and the opposite
    0.125
    """
    values = np.asarray(gaps, dtype=np.float64)
    ranks = 2 * stats.rankdata(abs(values), axis=0)  # of ties: halves; zeros are first
    ranks -= 2 * (values == 0).sum(axis=0)
    columns = (table.reshape(len(values), -1).T for table in (values, ranks))
    p = [_signed_rank(*column) for column in zip(*columns, strict=True)]
    return np.array(p).reshape(values.shape[1:])


def _signed_rank(values: NDArray[np.float64], ranks: NDArray[np.float64]) -> float:
    if np.isnan(values).any():
        return math.nan
    whole = np.rint(ranks).astype(int)
    chances = _of_rank_sums(tuple(sorted(whole[values != 0].tolist())))
    w = whole[values > 0].sum()
    return float(min(1.0, 2 * chances[: w + 1].sum(), 2 * chances[w:].sum()))


@functools.lru_cache(maxsize=1024)  # without ties, n gaps have one distribution
def _of_rank_sums(ranks: tuple[int, ...]) -> NDArray[np.float64]:
    """The chance of every sum of those ranks that coins choose."""
    chances = np.zeros(sum(ranks) + 1)
    chances[0] = 1.0
    for rank in ranks:
        chances[rank:] = (chances[rank:] + chances[:-rank]) / 2
        chances[:rank] /= 2
    return chances


def detectable(
    sd: float, n: float, level: float = LEVEL, power: float = POWER
) -> float:
    """The true mean that a two-sided t-test at the level finds with this power.

    Of n pairs whose differences have the standard deviation sd: d with

        P(|T| > t(1 - level/2, n - 1)) = power,

    T noncentral t of n - 1 degrees of freedom and noncentrality d √n / sd. With k tests
    in a family, level/k is the level of Holm's first step. NaN for n < 2, and n may be
    a fraction only for its degrees of freedom, n - 1, as in `compare.overall`.

    >>> round(detectable(sd=1.0, n=60), 3)
    0.368
    """
    if n < 2 or not math.isfinite(sd):
        return math.nan
    return _noncentrality(n, level, power) * sd / math.sqrt(n)


@functools.cache
def _noncentrality(n: float, level: float, power: float) -> float:
    """Of T, for `detectable`."""
    # T = (Z + shift) / S, integrated over S, because scipy's noncentral t has NaNs.
    nodes, weights = np.polynomial.legendre.leggauss(200)
    s = np.sqrt(stats.chi2.ppf((nodes + 1) / 2, n - 1) / (n - 1))
    bounds = stats.t.isf(level / 2, n - 1) * s

    def lacking(shift: float) -> float:
        found = stats.norm.cdf(shift - bounds) + stats.norm.cdf(-shift - bounds)
        return float(found @ weights) / 2 - power

    return optimize.brentq(lacking, 0.0, bounds.max() + 10)


class Correlation(NamedTuple):
    """A rank correlation, its 95 % interval [low, high], and the number of pairs."""

    value: float
    low: float
    high: float
    n: int


def spearman(x: ArrayLike, y: ArrayLike, *given: ArrayLike) -> Correlation:
    """Spearman's rank correlation; with `given`, the partial one at constant `given`:
    that of what linear regressions on the ranks of `given` leave of the ranks.

        partial = (r_xy - r_xz r_yz) / √((1 - r_xz²)(1 - r_yz²))     given z alone

    All have shape (n,); entries where a number is missing are left out. Fewer than 3
    pairs, or x or y constant or determined by `given`, give NaN. The interval is
    Fisher's, for independent pairs: tanh(atanh r ± 1.96 √(1.06 / (n - 3 - k))), k given.
    Source: E. C. Fieller, H. O. Hartley and E. S. Pearson, "Tests for rank correlation
    coefficients", Biometrika 44 (1957).

    >>> spearman([1, 2, 3, 4], [1, 4, 9, 16]).value
    1.0
    """
    columns = [np.asarray(column, dtype=np.float64) for column in (x, y, *given)]
    table = np.stack(columns)
    table = table[:, ~np.isnan(table).any(0)]
    n = table.shape[1]
    value = math.nan
    if n >= 3:
        value = float(_rank_correlations(table[:2], table[2:])[0, 1])
    pairs = n - len(given)
    variance = 1.06 / (pairs - 3) if pairs > 3 else math.nan
    margin = stats.norm.ppf(0.975) * math.sqrt(variance) * np.array([-1, 1])
    with np.errstate(divide="ignore"):  # where the value is 1
        low, high = np.tanh(np.arctanh(value) + margin).tolist()
    return Correlation(value, low, high, n)


def _rank_correlations(
    columns: NDArray[np.float64], given: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Of all pairs of columns (k, n), partial given others (h, n): (k, k), NaN where
    nothing is left of a column."""
    ranks = stats.rankdata(columns, axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    left = ranks
    if len(given):
        held = stats.rankdata(given, axis=1)
        held -= held.mean(1, keepdims=True)
        left = ranks - np.linalg.lstsq(held.T, ranks.T, rcond=1e-9)[0].T @ held
    products = left @ left.T
    squares = products.diagonal().copy()
    squares[squares <= 1e-10 * (ranks**2).sum(1)] = np.nan
    return np.clip(products / np.sqrt(np.outer(squares, squares)), -1, 1)


def correlations(
    table: pandas.DataFrame, x: str, y: str, *, by: str, given: Sequence[str] = ()
) -> pandas.Series:
    """`spearman` of two columns within each group of `by`, which index the result;
    the columns `given` are held constant.

    >>> nets = pandas.DataFrame({"seed": [0, 0, 0, 1, 1, 1], "trace": [1, 2, 3] * 2,
    ...                          "loss": [1, 2, 3, 3, 2, 1]})
    >>> correlations(nets, "trace", "loss", by="seed").tolist()
    [1.0, -1.0]
    """
    columns = [x, y, *sequence("given", given, str, _GIVEN)]
    return table.groupby(by, sort=False)[columns].apply(
        lambda group: spearman(*(group[column] for column in columns)).value
    )


def flatness(
    nets: pandas.DataFrame,
    measures: Sequence[str],
    targets: Sequence[str] = TARGETS,
    *,
    within: Sequence[str] = ("task",),
    strata: Sequence[str] = (),
    given: Sequence[str] = (),
) -> pandas.DataFrame:
    """How well measures of flatness order nets by a target: Spearman's correlation, per
    seed.

    Only nets that agree in the columns `within`, and in the seed, are ordered; the
    columns `given` are held constant. With `strata` only those are ordered that agree
    in these columns, too, and a seed's correlation is the mean over its strata. Nets
    that lack a number are left out, so that every measure orders the same nets; so is
    what has fewer than ten nets of a seed (and stratum). Columns `within`,
    measure, target, correlation (mean over seeds), interval (its half-width), n
    (seeds), nets (per seed, on average).

    >>> nets = pandas.DataFrame({"task": "a", "seed": [0] * 12 + [1] * 12,
    ...                          "trace": range(24), "test_loss": range(24)})
    >>> flatness(nets, ["trace"], ["test_loss"])["correlation"].tolist()
    [1.0]
    """
    given = sequence("given", given, str, _GIVEN)
    for column in given:
        if column in (*measures, *targets):
            raise ValueError(
                f"given={column!r} is a measure or a target; nothing of it would be left"
            )
    columns = [*measures, *targets, *given]
    nets = nets.dropna(subset=columns)
    sizes = nets.groupby([*within, *strata, "seed"])["seed"].transform("size")
    nets = nets[sizes >= LEAST_NETS]
    count = len(measures)
    targets_end = count + len(targets)
    rows = []
    for key, group in nets.groupby([*within], sort=False):
        by_seed: dict[int, list[NDArray[np.float64]]] = {}
        for (*_, seed), part in group.groupby([*strata, "seed"]):
            table = part[columns].to_numpy(np.float64).T
            pairs = _rank_correlations(table[:targets_end], table[targets_end:])
            by_seed.setdefault(seed, []).append(pairs[:count, count:])
        with warnings.catch_warnings(action="ignore"):  # where nothing is left
            means = np.array([np.nanmean(parts, axis=0) for parts in by_seed.values()])
        size = len(group) / len(by_seed)
        for i, j in itertools.product(range(count), range(len(targets))):
            seeds = summary(pandas.Series(means[:, i, j]))
            rows.append((*key, measures[i], targets[j], *seeds, size))
    names = [*within, "measure", "target", "correlation", "interval", "n", "nets"]
    return pandas.DataFrame(rows, columns=names)
