"""Statistics of repeated runs: intervals of means, Holm's correction, rank correlation.

An interval is Student's of 95 %, mean ± t(0.975, n - 1) s / √n, with s the standard
deviation of n - 1 degrees of freedom.
"""

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.05  # of a test: p, adjusted by `holm`, below it is significant
LEAST_NETS = 10  # of a seed, for its rank correlation in `flatness`
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


class Correlation(NamedTuple):
    """A rank correlation, its 95 % interval [low, high], and the number of pairs."""

    value: float
    low: float
    high: float
    n: int


def spearman(x: ArrayLike, y: ArrayLike, given: ArrayLike | None = None) -> Correlation:
    """Spearman's rank correlation; with `given`, the partial one at constant `given`.

        partial = (r_xy - r_xz r_yz) / √((1 - r_xz²)(1 - r_yz²)),   z = given

    All have shape (n,); entries where a number is missing are left out. Fewer than 3
    pairs, or a constant column, give NaN. The interval is Fisher's, for independent
    pairs: tanh(atanh r ± 1.96 √(1.06 / (n - 3))), n - 4 for a partial correlation.
    Source: E. C. Fieller, H. O. Hartley and E. S. Pearson, "Tests for rank correlation
    coefficients", Biometrika 44 (1957).

    >>> spearman([1, 2, 3, 4], [1, 4, 9, 16]).value
    1.0
    """
    columns = [x, y] if given is None else [x, y, given]
    table = np.stack([np.asarray(column, dtype=np.float64) for column in columns])
    table = table[:, ~np.isnan(table).any(0)]
    n = table.shape[1]
    ranks = stats.rankdata(table, axis=1) - (n + 1) / 2
    products = ranks @ ranks.T
    squares = products.diagonal()
    value = math.nan
    if n >= 3 and squares.all():
        r = (products / np.sqrt(np.outer(squares, squares))).clip(-1, 1)
        value = float(r[0, 1])
        if given is not None:
            remainder = (1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2)
            value -= float(r[0, 2] * r[1, 2])
            value = value / math.sqrt(remainder) if remainder >= 1e-12 else math.nan
    pairs = n - (given is not None)
    variance = 1.06 / (pairs - 3) if pairs > 3 else math.nan
    margin = stats.norm.ppf(0.975) * math.sqrt(variance) * np.array([-1, 1])
    with np.errstate(divide="ignore"):  # where the value is 1
        low, high = np.tanh(np.arctanh(value) + margin).tolist()
    return Correlation(value, low, high, n)


def correlations(
    table: pandas.DataFrame, x: str, y: str, *, by: str, given: str | None = None
) -> pandas.Series:
    """`spearman` of two columns within each group of `by`, which index the result.

    >>> nets = pandas.DataFrame({"seed": [0, 0, 0, 1, 1, 1], "trace": [1, 2, 3] * 2,
    ...                          "loss": [1, 2, 3, 3, 2, 1]})
    >>> correlations(nets, "trace", "loss", by="seed").tolist()
    [1.0, -1.0]
    """
    columns = [x, y] if given is None else [x, y, given]
    return table.groupby(by, sort=False)[columns].apply(
        lambda group: spearman(*(group[column] for column in columns)).value
    )


def flatness(
    nets: pandas.DataFrame,
    measures: Sequence[str],
    targets: Sequence[str] = TARGETS,
    *,
    within: Sequence[str] = ("task",),
    given: str | None = None,
) -> pandas.DataFrame:
    """Spearman's correlation of measures and targets over nets, per seed.

    Only nets that agree in the columns `within`, and in the seed, are ordered; `given`
    is held constant. Nets that lack a number are left out, so that every measure orders
    the same nets; so are seeds of fewer than LEAST_NETS nets. Columns `within`, measure,
    target, correlation (mean over seeds), interval (its half-width), n (seeds), nets
    (per seed, on average).

    >>> nets = pandas.DataFrame({"task": "a", "seed": [0] * 12 + [1] * 12,
    ...                          "trace": range(24), "test_loss": range(24)})
    >>> flatness(nets, ["trace"], ["test_loss"])["correlation"].tolist()
    [1.0]
    """
    if given in (*measures, *targets):
        raise ValueError(
            f"given={given!r} is a measure or a target; nothing of it would be left"
        )
    columns = [*measures, *targets, *([] if given is None else [given])]
    nets = nets.dropna(subset=columns)
    sizes = nets.groupby([*within, "seed"])["seed"].transform("size")
    nets = nets[sizes >= LEAST_NETS]
    rows = []
    for key, group in nets.groupby([*within], sort=False):
        size = len(group) / group["seed"].nunique()
        for measure, target in itertools.product(measures, targets):
            seeds = correlations(group, measure, target, by="seed", given=given)
            rows.append((*key, measure, target, *summary(seeds), size))
    names = [*within, "measure", "target", "correlation", "interval", "n", "nets"]
    return pandas.DataFrame(rows, columns=names)
