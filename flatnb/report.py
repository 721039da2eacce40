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
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas

from flatnb.results import compare, verdicts
from flatnb.results.statistics import LEVEL, interval

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


_HALF_POINT = "the half point that the plan calls worth having"
# What a method of records is called in prose, if not by its name there.
NAMES = {
    "WeightNoise": "weight noise",
    "FriendlySAM": "Friendly SAM",
    "BSAM": "bSAM",
    "NSO-EMA": "NSO + EMA",
    "SAM-EMA": "SAM + EMA",
    "GD": "gradient descent",
}
_FINDINGS = (
    *("clearly better", "better", "slightly better", "inconclusive"),
    *("no gain worth having", "worse", "at an edge", "too few seeds"),
)


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


def gain(
    method: str,
    pattern: str | Sequence[str] = verdicts.PLANE,
    *,
    baseline: str = "ERM",
    lead: str = "",
) -> str:
    """What a method gains in test accuracy over a baseline, in a sentence.

    Both are tuned, and compared over all tasks of the records that a pattern names, or
    several together, as by `flatnb.results.verdicts.gains`. What the sentence says
    follows from the verdict, which is corrected for all methods tested; the ± is not,
    and where it excludes zero and the verdict does not, the sentence says so. It begins
    with `lead`, such as "At equal passes".

    >>> gain("FAM").split(":")[0]
    'FAM has no gain worth having over plain training'
    """
    return gains([method], pattern, baseline=baseline, lead=lead)


def gains(
    methods: Sequence[str],
    pattern: str | Sequence[str] = verdicts.PLANE,
    *,
    baseline: str = "ERM",
    lead: str = "",
) -> str:
    """As `gain`, of several methods: a sentence for those of each verdict.

    >>> gains(["FAM", "SAM"]).split(" points")[0].split(":")[0]
    'SAM gains significantly, but less than the half point that the plan calls worth having'
    """
    tests = verdicts.gains(pattern, baseline=baseline)
    recorded = tests.loc[[name for name in methods if name in tests.index]]
    against = "plain training" if baseline == "ERM" else _named([baseline])
    sentences: list[str] = []
    half_point = _HALF_POINT
    for finding in _FINDINGS:
        rows = recorded[[_finding(row) == finding for row in recorded.itertuples()]]
        if len(rows):
            sentence = _sentence(
                finding, rows, against, family=len(tests), first=not sentences
            )
            sentences.append(sentence.replace(_HALF_POINT, half_point))
            if _HALF_POINT in sentence:
                half_point = "that half point"
    lacking = [name for name in methods if name not in tests.index]
    if lacking:
        verb = "is" if len(lacking) == 1 else "are"
        names = _named(lacking)
        sentences.append(f"{names} {verb} not recorded on all tasks of {pattern} yet")
    if lead:
        sentences[0] = f"{lead}, {sentences[0]}"
    return " ".join(f"{text[0].upper()}{text[1:]}." for text in sentences)


def _finding(row: Any) -> str:
    """The verdict of a test, and if it is better, by how much it surely is."""
    if row.verdict == "better":
        if row.difference - row.interval >= verdicts.WORTH:
            return "clearly better"
        if row.difference + row.interval < verdicts.WORTH:
            return "slightly better"
    return row.verdict


def _listed(words: Iterable[str]) -> str:
    """
    >>> _listed(["a", "b", "c"])
    'a, b and c'
    """
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _named(methods: Iterable[str]) -> str:
    """
    >>> _named(["SAM", "WeightNoise"])
    'SAM and weight noise'
    """
    return _listed([NAMES.get(name, name) for name in methods])


def _sentence(
    finding: str, rows: pandas.DataFrame, against: str, *, family: int, first: bool
) -> str:
    """On tests of one finding, out of a family of so many. What the first sentence of a
    text says of them all, later ones leave out."""
    who = _named(rows.index)
    s, has, gets, is_ = ("s", "has", "gets", "is")
    if len(rows) > 1:
        s, has, gets, is_ = ("", "have", "get", "are")
    loss = finding == "worse"
    spec = ".2f" if loss or "better" in finding else "+.2f"
    sizes = zip((-1 if loss else 1) * rows["difference"], rows["interval"], strict=True)
    points = _listed(plus_minus(100 * mean, 100 * half, spec) for mean, half in sizes)
    points += " points of test accuracy" if first else " points"
    basis = _passes(rows["passes"])
    over, than = "", ", too"
    if first:
        seeds = _listed(dict.fromkeys(map(str, rows["n"])))
        tasks = int(rows["tasks"].iloc[0])
        of = f"{tasks} tasks" if tasks > 1 else "a task"
        basis = f"mean and 95 % interval over {seeds} fresh seeds of {of}, {basis}"
        over, than = f" over {against}", f" than {against}"
    smallest = [f"{100 * size:.2f}" for size in rows["detectable"]]
    a_gain = "a true gain" if len(rows) == 1 else "true gains"
    found = f"{_uncorrected(rows, family)}{a_gain} of {_listed(smallest)} would be "
    found += "significant in 80 % of such comparisons"
    one = len(rows) == 1
    includes = "the interval includes" if one else "the intervals include"
    sentence = {
        "clearly better": f"{who} gain{s} {points}{over} ({basis}), at least {_HALF_POINT}",
        "better": f"{who} {is_} significantly better{than}, by {points} ({basis}); "
        f"{includes} {_HALF_POINT}",
        "slightly better": f"{who} gain{s} significantly, but less than {_HALF_POINT}: "
        f"{points}{over} ({basis})",
        "inconclusive": f"whether {who} gain{s}{over} remains open: {points} ({basis}); "
        f"{found}",
        "no gain worth having": f"{who} {has} no gain worth having{over}: {points} "
        f"({basis}); {found}",
        "worse": f"{who} {is_} significantly worse{than if first else ''}, by {points} "
        f"({basis})",
        "at an edge": f"{who} {gets} no verdict, because a chosen setting was the "
        f"largest or smallest one tried, and a better one may lie beyond: {points}{over} "
        f"({basis})",
        "too few seeds": f"{who} {has} too few seeds for a verdict: {points}{over} "
        f"({basis})",
    }[finding]
    doubted = rows.index[~rows["agree"].astype(bool)]
    if len(doubted):
        sentence += f"; Wilcoxon's test disagrees on {_named(doubted)}"
    return sentence


def _uncorrected(rows: pandas.DataFrame, family: int) -> str:
    """Which of the tests, none of them significant, have an interval without zero."""
    apart = rows.index[rows["difference"].abs() > rows["interval"]]
    if apart.empty:
        return ""
    whose = f" of {_named(apart)}" if len(apart) < len(rows) else ""
    noun, are = ("difference", "is") if len(apart) == 1 else ("differences", "are")
    together = f"not significant once {family} methods are tested together"
    return f"the {noun}{whose} {are} {together}; "


def _passes(passes: pandas.Series) -> str:
    """The methods' passes per step, once if they are all the same."""
    numbers = [f"{number:.3g}" for number in passes]
    if len(set(numbers)) == 1:
        return (
            "1 pass per step" if numbers[0] == "1" else f"{numbers[0]} passes per step"
        )
    return f"{_listed(numbers)} passes per step"


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
