"""Results in words: a mean with its interval, the verdict of a difference, tables.

The words are "significantly better" (or worse, lower, …), "no significant difference",
and "inconclusive" where there are too few runs to say either. `tests` are tables of
`compare.paired` or `compare.overall`; their differences are significant if Holm's
adjusted p is below the level. `mean_interval` and `verdict` see one comparison alone:
their 95 % intervals are not adjusted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas

from flatnb.results import compare
from flatnb.results.statistics import LEVEL, interval

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def plus_minus(
    mean: float, half: float, spec: str = ".3f", *, star: bool = False
) -> str:
    """A number and the half-width of its interval, as text that no line break parts.

    Args:
        mean: the number.
        half: the half-width.
        spec: the format of both; a sign is the mean's alone.
        star: whether a star follows, as of what is significant.

    >>> plus_minus(0.25, 0.125, "+.2f", star=True).split()
    ['+0.25', '±', '0.12*']
    """
    width = f"{half:{spec.lstrip('+')}}"
    return f"{mean:{spec}}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{width}{'*' * star}"


def mean_interval(
    values: ArrayLike, spec: str = ".3f", *, scale: float = 1, star: bool = False
) -> str:
    """Mean ± half-width of its 95 % interval, as text.

    Args:
        values: shape (n,), one per repetition.
        spec: the format of both numbers.
        scale: both are multiplied by it, as by 100 for percent.
        star: whether an interval that excludes 0 is marked by a star.

    >>> mean_interval([0.01, 0.02, 0.03], ".1f", scale=100).split()
    ['2.0', '±', '2.5']
    """
    mean, half = map(float, interval(values))
    excludes = abs(mean) > half
    return plus_minus(scale * mean, scale * half, spec, star=star and excludes)


def verdict(
    differences: ArrayLike, words: tuple[str, str] = ("lower", "higher")
) -> str:
    """What the 95 % interval of paired differences says of their mean.

    Args:
        differences: shape (n,), one per repetition.
        words: for a mean below and above zero.

    >>> verdict([0.9, 1.0, 1.1]), verdict([-0.9, 1.0, 1.1])
    ('significantly higher', 'no significant difference')
    """
    mean, half = interval(differences)
    significant = None if math.isnan(half) else bool(abs(mean) > half)
    return _in_words(significant, words[int(mean > 0)])


def _in_words(significant: bool | None, word: str) -> str:
    if significant is None:
        return "inconclusive"
    return f"significantly {word}" if significant else "no significant difference"


def verdicts(
    tests: pandas.DataFrame, metric: str | None = None, level: float = LEVEL
) -> pandas.Series:
    """The verdict of each test: "better" and "worse" if its metric is given, else
    "higher" and "lower".

    >>> tests = pandas.DataFrame({"difference": [-0.1, 0.2], "p_holm": [0.01, 0.3]})
    >>> verdicts(tests, "test_loss").tolist()
    ['significantly better', 'no significant difference']
    """
    words = ("lower", "higher")
    if metric is not None:
        more_is_better = compare.sign(metric) > 0
        words = ("worse", "better") if more_is_better else ("better", "worse")
    texts = []
    for difference, p in zip(tests["difference"], tests["p_holm"], strict=True):
        significant = None if math.isnan(p) else p < level
        texts.append(_in_words(significant, words[int(difference > 0)]))
    return pandas.Series(texts, tests.index, dtype=object)


def differences(
    tests: pandas.DataFrame,
    spec: str = "+.3f",
    *,
    scale: float = 1,
    level: float = LEVEL,
) -> pandas.Series:
    """Each test as "mean ± half-width", a star where significant.

    Indexed by method and task (by method, if there is no task): unstack it to a table.
    `spec` and `scale` are those of `mean_interval`.

    >>> tests = pandas.DataFrame({"method": ["SAM"], "task": ["a"], "p_holm": [0.01],
    ...                           "difference": [-0.5], "interval": [0.25]})
    >>> differences(tests, "+.1f").unstack("task").loc["SAM", "a"].split()
    ['-0.5', '±', '0.2*']
    """
    numbers = tests[["difference", "interval"]] * scale
    texts = [
        plus_minus(mean, half, spec, star=p < level)
        for mean, half, p in zip(*numbers.to_numpy().T, tests["p_holm"], strict=True)
    ]
    keys = [column for column in ("method", "task") if column in tests]
    return pandas.Series(texts, tests.set_index(keys).index, dtype=object)


def table(
    tests: Mapping[str, pandas.DataFrame], spec: str = "+.3f", level: float = LEVEL
) -> pandas.DataFrame:
    """Difference, Holm's p and verdict of each test, as texts.

    Args:
        tests: for each metric its table.
        spec: the format of difference and half-width.
        level: of the tests.

    Returns:
        A row per test, indexed by metric, task (if there are several) and method.

    >>> tests = pandas.DataFrame({"method": ["SAM"], "difference": [-0.5],
    ...                           "interval": [0.25], "p_holm": [0.01]})
    >>> table({"test_loss": tests}).loc[("test_loss", "SAM"), "verdict"]
    'significantly better'
    """
    parts = {}
    for metric, rows in tests.items():
        several = "task" in rows and rows["task"].nunique() > 1
        columns = {
            "difference": differences(rows, spec, level=level).tolist(),
            "Holm's p": [f"{p:.2g}" for p in rows["p_holm"]],
            "verdict": verdicts(rows, metric, level).tolist(),
        }
        keys = ["task", "method"] if several else ["method"]
        parts[metric] = pandas.DataFrame(columns, rows.set_index(keys).index)
    return pandas.concat(parts, names=["metric"])
