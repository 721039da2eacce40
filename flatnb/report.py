"""Results in words: a mean with its interval, the verdict of a difference, tables.

The words are "significantly better" (or worse, lower, …), "no significant difference",
and "inconclusive" where there are too few runs to say either. `tests` are tables of
`compare.paired` or `compare.overall`, significant if Holm's adjusted p is below the
level; `mean_interval` and `verdict` see one comparison, and adjust nothing. A `spec` is
the format of a number and its half-width, a sign in it the number's alone; `scale`
multiplies both, as 100 for percent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas

from flatnb.results import compare, verdicts
from flatnb.results.statistics import LEVEL, interval

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def plus_minus(
    mean: float, half: float, spec: str = ".3f", *, star: bool = False
) -> str:
    """A number and the half-width of its interval, as text that no line break parts; a
    star after it, if wanted.

    >>> plus_minus(0.25, 0.125, "+.2f", star=True).split()
    ['+0.25', '±', '0.12*']
    """
    width = f"{half:{spec.lstrip('+')}}"
    return f"{mean:{spec}}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{width}{'*' * star}"


def mean_interval(
    values: ArrayLike, spec: str = ".3f", *, scale: float = 1, star: bool = False
) -> str:
    """Mean ± half-width of the 95 % interval of values (n,), one per repetition; with
    `star`, one that excludes 0 is marked.

    >>> mean_interval([0.01, 0.02, 0.03], ".1f", scale=100).split()
    ['2.0', '±', '2.5']
    """
    mean, half = map(float, interval(values))
    excludes = abs(mean) > half
    return plus_minus(scale * mean, scale * half, spec, star=star and excludes)


def verdict(
    values: ArrayLike,
    words: tuple[str, str] = ("lower", "higher"),
    noun: str = "difference",
) -> str:
    """What the 95 % interval of values (n,), one per repetition, says of their mean.
    The words are for one below and above zero, the noun is what the values are.

    >>> verdict([0.9, 1.0, 1.1]), verdict([-0.9, 1.0, 1.1], noun="correlation")
    ('significantly higher', 'no significant correlation')
    """
    mean, half = map(float, interval(values))
    if math.isnan(half):
        return "inconclusive"
    if abs(mean) > half:
        return f"significantly {words[mean > 0]}"
    return f"no significant {noun}"


def differences(
    tests: pandas.DataFrame,
    spec: str = "+.3f",
    *,
    scale: float = 1,
    level: float = LEVEL,
) -> pandas.Series:
    """Each test as "mean ± half-width", a star where significant; indexed by method and
    task (by method, if there is no task): unstack it to a table.

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


def gain(method: str, pattern: str | Sequence[str] = verdicts.PLANE) -> str:
    """In words, what a method gains over plain training when both are tuned: of all
    tasks of a pattern, or of several, together, as of `verdicts.gains`.

    >>> gain("SAM").split(", ")[0]
    'SAM minus plain training'
    """
    tests = verdicts.gains(pattern)
    if method not in tests.index:
        return f"{method} is not recorded on all tasks of {pattern} yet."
    row = tests.loc[method]
    points = plus_minus(100 * row["difference"], 100 * row["interval"], "+.2f")
    passes = "1 pass" if row["passes"] == 1 else f"{row['passes']:.3g} passes"
    text = (
        f"{method} minus plain training, each tuned with equally many settings: {points} "
        f"points of test accuracy, {passes} per step (mean and 95 % "
        f"interval over {row['n']} fresh seeds of {row['tasks']} tasks). "
        f"Verdict: {row['verdict']}"
    )
    if row["verdict"] == "at an edge":
        return f"{text}; a chosen setting was the largest or smallest one tried."
    if row["verdict"] in ("no gain worth having", "inconclusive"):
        return f"{text}; a gain of {100 * row['detectable']:.2f} would have been found."
    if (
        row["verdict"] == "better"
        and row["difference"] + row["interval"] < verdicts.WORTH
    ):
        return f"{text}, by less than the half point that the plan calls worth having."
    return f"{text}."


def table(
    tests: Mapping[str, pandas.DataFrame], spec: str = "+.3f"
) -> pandas.DataFrame:
    """Difference, Holm's p and verdict of each metric's tests, as texts; indexed by
    metric, task (if there are several) and method.

    >>> tests = pandas.DataFrame({"method": ["SAM"], "difference": [-0.5],
    ...                           "interval": [0.25], "p_holm": [0.01]})
    >>> table({"test_loss": tests}).loc[("test_loss", "SAM"), "verdict"]
    'significantly better'
    """
    parts = {}
    for metric, rows in tests.items():
        p = rows["p_holm"]
        better = rows["difference"] * compare.sign(metric) > 0
        words = "significantly " + better.map({True: "better", False: "worse"})
        words = words.where(p < LEVEL, "no significant difference")
        columns = {
            "difference": differences(rows, spec).tolist(),
            "Holm's p": p.map("{:.2g}".format),
            "verdict": words.where(p.notna(), "inconclusive"),
        }
        several = "task" in rows and rows["task"].nunique() > 1
        keys = ["task", "method"] if several else ["method"]
        parts[metric] = rows[keys].assign(**columns).set_index(keys)
    return pandas.concat(parts, names=["metric"])
