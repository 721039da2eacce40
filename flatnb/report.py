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
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas

from flatnb.results import compare, verdicts
from flatnb.results.statistics import LEVEL, interval

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


# What a method of records is called in prose, if not by its name there.
NAMES = {
    "WeightNoise": "weight noise",
    "FriendlySAM": "Friendly SAM",
    "BSAM": "bSAM",
    "NSO-EMA": "NSO + EMA",
    "SAM-EMA": "SAM + EMA",
    "GD": "gradient descent",
}
# What a verdict says of one method, and in a list of several.
_VERDICTS = {
    "better": ("is significantly better than {}{}", "significantly better{}"),
    "worse": ("is significantly worse than {}", "significantly worse"),
    "no gain worth having": (
        "has no gain worth having over {}",
        "no gain worth having",
    ),
    "inconclusive": ("may or may not gain over {}", "inconclusive"),
    "at an edge": (
        "gets no verdict against {}, because a chosen setting was the largest or smallest "
        "one tried",
        "no verdict: a chosen setting was the largest or smallest one tried",
    ),
    "too few seeds": (
        "has too few seeds for a verdict against {}",
        "too few seeds for a verdict",
    ),
}


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
    and where it excludes zero and the verdict does not, the sentence says so. Half a
    point is the smallest gain worth having, by the plan. It begins with `lead`, such as
    "At equal passes".

    >>> gain("FAM").split(":")[0]
    'FAM has no gain worth having over plain training'
    """
    tests = verdicts.gains(pattern, baseline=baseline)
    if method not in tests.index:
        return f"{_begun(lead)}{_named(method)} is not recorded on all tasks of {pattern} yet."
    row = tests.loc[method]
    said = _VERDICTS[row["verdict"]][0].format(_against(baseline), _size(row))
    sentence = (
        f"{_begun(lead)}{_named(method)} {said}: {_points(row)} points of test accuracy "
        f"(95 % interval, {_basis(tests.loc[[method]])}, {_passes(row)})"
    )
    if row["verdict"] in ("inconclusive", "no gain worth having"):
        smallest = f"{100 * row['detectable']:.2f}"
        sentence += (
            f"; {_uncorrected(row, len(tests), 'the difference is ')}a true gain of "
        )
        sentence += f"{smallest} would be significant in 80 % of such comparisons"
    return f"{sentence[0].upper()}{sentence[1:]}{_doubt(row)}."


def gains(
    methods: Sequence[str],
    pattern: str | Sequence[str] = verdicts.PLANE,
    *,
    baseline: str = "ERM",
    lead: str = "",
) -> str:
    """As `gain`, of several methods: a heading, and a line for each.

    >>> print(gains(["FAM", "XAM"], lead="With all the epochs").splitlines()[2])
      XAM: not recorded on all tasks yet
    """
    tests = verdicts.gains(pattern, baseline=baseline)
    recorded = tests.loc[[name for name in methods if name in tests.index]]
    basis = f", {_basis(recorded)}" if len(recorded) else ""
    lines = [
        f"{_begun(lead)}points of test accuracy minus those of {_against(baseline)} "
        f"(95 % interval{basis}):"
    ]
    lines[0] = lines[0][0].upper() + lines[0][1:]
    for name in methods:
        if name not in tests.index:
            lines.append(f"{_named(name)}: not recorded on all tasks yet")
            continue
        row = tests.loc[name]
        said = _VERDICTS[row["verdict"]][1].format(_size(row))
        line = f"{_named(name)}: {_points(row)} ({_passes(row)}), {said}"
        if row["verdict"] in ("inconclusive", "no gain worth having"):
            open_to = _uncorrected(row, len(tests), "")
            line += f" ({open_to}detectable: {100 * row['detectable']:.2f})"
        lines.append(line + _doubt(row))
    return "\n  ".join(lines)


def set_name(task: str) -> str:
    """What a task is called in figures: its points and their share of flipped labels, or
    its images.

    >>> set_name("plane/gaussian-0.05, tuned lr"), set_name("images/MNIST-n5000-mlp")
    ('gaussian, 5 %', 'MNIST')
    """
    name = re.sub(r"^(plane|images)/|, tuned lr$|(-n\d+)?-mlp$", "", task)
    points = re.fullmatch(r"(\w+)-(\d[\d.]*)", name)
    return f"{points[1]}, {100 * float(points[2]):g} %" if points else name


def thirds(passes: float) -> str:
    """A number of passes, thirds as fractions.

    >>> thirds(7 / 3), thirds(2.33), thirds(2), thirds(1.2)
    ('2⅓', '2⅓', '2', '1.2')
    """
    whole, rest = divmod(round(3 * passes), 3)
    if abs(3 * passes - round(3 * passes)) > 0.02:
        return f"{passes:.3g}"
    return f"{whole or ''}{['', '⅓', '⅔'][rest]}"


def _begun(lead: str) -> str:
    return f"{lead}, " if lead else ""


def _named(method: str) -> str:
    """
    >>> _named("WeightNoise")
    'weight noise'
    """
    return NAMES.get(method, method)


def _against(baseline: str) -> str:
    return "plain training" if baseline == "ERM" else _named(baseline)


def _size(row: pandas.Series) -> str:
    """Of a gain, where its interval says so: whether it reaches the half point."""
    if row["difference"] - row["interval"] >= verdicts.WORTH:
        return ", by at least half a point"
    if row["difference"] + row["interval"] < verdicts.WORTH:
        return ", by less than half a point"
    return ""


def _points(row: pandas.Series) -> str:
    return plus_minus(100 * row["difference"], 100 * row["interval"], "+.2f")


def _basis(rows: pandas.DataFrame) -> str:
    """Of what the means are."""
    seeds = " or ".join(dict.fromkeys(map(str, rows["n"])))
    tasks = int(rows["tasks"].iloc[0])
    return f"n = {seeds} fresh seeds of {f'{tasks} tasks' if tasks > 1 else 'a task'}"


def _uncorrected(row: pandas.Series, family: int, before: str) -> str:
    """Of a test that is not significant, if its interval excludes zero."""
    if abs(row["difference"]) <= row["interval"]:
        return ""
    return f"{before}not significant once {family} methods are tested together; "


def _passes(row: pandas.Series) -> str:
    passes = thirds(row["passes"])
    return f"{passes} {'pass' if passes == '1' else 'passes'} per step"


def _doubt(row: pandas.Series) -> str:
    return "" if row["agree"] else "; Wilcoxon's test disagrees"


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
