"""What tests against a baseline say in the words of the study's plan.

`tests` are tables of `compare.paired` or `compare.overall`. Flatness at the end of
training is compared here too, by ratios.
"""

import fnmatch
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from flatnb._checks import number
from flatnb.results.compare import (
    LEAST_SEEDS,
    differences,
    edges,
    on_all_tasks,
    overall,
    select,
    share_seeds,
    sign,
    tests_of,
    wide,
)
from flatnb.results.records import names
from flatnb.results.statistics import LEVEL, detectable, holm

WORTH = 0.005  # the smallest gain in accuracy worth having, in most tasks of the plan
CHECKED = 15  # seeds, from which on Wilcoxon's test and the trimmed mean are checks
# What is compared at the end of training, and of it what the plan tests as one family.
ENDINGS = ("trace", "top_eigenvalue", "sharpness", "relative_flatness")
ALONGSIDE = ("adaptive_sharpness", "grad_norm", "train_loss")


def family(tables: Mapping[str, pandas.DataFrame]) -> pandas.DataFrame:
    """Several tables of tests as one family, with Holm's method over all of them.

    The keys of `tables` become the column `family`.

    >>> tables = {"a": pandas.DataFrame({"p": [0.01]}), "b": pandas.DataFrame({"p": [1]})}
    >>> family(tables)["p_holm"].tolist()
    [0.02, 1.0]
    """
    table = pandas.concat(tables, names=["family"]).reset_index("family")
    return table.assign(p_holm=holm(table["p"])).reset_index(drop=True)


def verdicts(
    tests: pandas.DataFrame,
    metric: str,
    gain: float | None = None,
    level: float = LEVEL,
) -> pandas.DataFrame:
    """Give each test of a metric a verdict, as the plan defines it: the first that holds.

    - "too few seeds": fewer than LEAST_SEEDS;
    - "at an edge": a setting compared lies at an edge of what was tried;
    - "better", "worse": Holm's adjusted p is below the level;
    - "no gain worth having": the interval of the gain lies below `gain`;
    - "inconclusive": all else, and without a `gain`, all that is not significant.

    A gain is the difference, with the other sign where less is better; `gain` is the
    smallest worth having, in units of the metric. Columns added: verdict; detectable,
    the true gain that the design finds with 80 % power at level/k, k tests in the
    family (`statistics.detectable`, with the spread that was seen); agree, whether
    Wilcoxon's test, adjusted alike, is significant where the t-test is, and the
    trimmed mean has the sign of the mean there (True without that test, and below
    CHECKED seeds: of five, Wilcoxon's p is 0.06 at least).

    >>> tests = pandas.DataFrame({"method": ["SAM"], "difference": [0.01], "n": [60],
    ...     "df": [59], "interval": [0.004], "p": [1e-5], "p_holm": [1e-5],
    ...     "trimmed": [0.01], "p_wilcoxon": [1e-5], "at_edge": [False]})
    >>> verdicts(tests, "test_accuracy", 0.005)["verdict"].tolist()
    ['better']
    """
    level = number("level", level, "a number in (0, 1)", 0, 1)
    gains = tests["difference"] * sign(metric)
    significant = tests["p_holm"] < level
    worth = math.inf if gain is None else gain
    reasons = {  # the first that holds
        "too few seeds": tests["n"] < LEAST_SEEDS,
        "at an edge": tests["at_edge"].astype(bool),
        "better": significant & (gains > 0),
        "worse": significant & (gains < 0),
        "no gain worth having": (gains + tests["interval"] < worth)
        & (gain is not None),
    }
    words = np.select(list(reasons.values()), list(reasons), "inconclusive")
    count = max(1, int(tests["p"].notna().sum()))
    found = _detectable(tests["interval"], tests["df"], level / count)
    same_sign = tests["trimmed"] * tests["difference"] > 0
    wilcoxon = holm(tests["p_wilcoxon"]) < level
    agree = (wilcoxon == significant) & (same_sign | ~significant)
    agree |= (tests["n"] < CHECKED) | tests["p_wilcoxon"].isna()
    return tests.assign(verdict=words, detectable=found, agree=agree)


@dataclass(frozen=True)
class Situation:
    """What a reader wants to train for, and the records that are nearest to it.

    Args:
        words: the situation, for a reader.
        pattern: of the names of records.
        metric: what counts.
        gain: the smallest worth having, in units of the metric.
        runs: whose, as in `compare.select`: "fresh" or "default".
        unconfirmed: over what a fairer comparison did not confirm the gain, in words;
            plain training is then recommended.
    """

    words: str
    pattern: str
    metric: str = "test_accuracy"
    gain: float | None = WORTH
    runs: str = "fresh"
    unconfirmed: str = ""


PLANE = "plane/*/*/narrow-tuned"  # the learning rate is constant
FALLING = f"{PLANE}-cosine"  # it falls to zero along a cosine
_LONGER = "over plain fine-tuning at its rate and with as many passes, none is shown"
SITUATIONS = (
    Situation("noisy labels", "plane/*-0.*/*/narrow-tuned-cosine"),
    Situation("clean labels", "plane/*-0/*/narrow-tuned-cosine"),
    Situation("noisy labels, constant rate", "plane/*-0.*/*/narrow-tuned"),
    Situation("clean labels, constant rate", "plane/*-0/*/narrow-tuned"),
    Situation("nothing tuned", FALLING, runs="default"),
    Situation(
        "fine-tuning on few examples", "finetune/*", gain=0.01, unconfirmed=_LONGER
    ),
    Situation("calibrated probabilities", FALLING, "test_ece", None),
    Situation("a low test loss", FALLING, "test_loss", None),
)


def gains(
    pattern: str | Sequence[str] = PLANE,
    metric: str = "test_accuracy",
    gain: float | None = WORTH,
    baseline: str = "ERM",
    runs: str = "fresh",
) -> pandas.DataFrame:
    """What each method gains over a baseline, with a verdict: all of it in one call.

    Takes the fresh runs of the records that a pattern, or several together, name, or
    other `runs` as in `compare.select`; of them, the methods that have runs on every
    task; compares these over all tasks by `compare.overall`, within a seed where the
    tasks share what it draws; and judges by `verdicts`. Indexed by method, with their
    passes. Empty if a pattern names no record.

    >>> gains().loc["SAM", "verdict"]
    'better'
    """
    table = _of_all_tasks([pattern] if isinstance(pattern, str) else pattern, runs)
    if table.empty:
        return table
    passes = table.groupby("method")["passes"].first()
    shared = share_seeds(table["task"].unique())
    tests = overall(table, baseline, metric, shared=shared)
    tests = verdicts(tests, metric, gain).set_index("method")
    return tests.assign(passes=passes.reindex(tests.index))


def flatter(
    pattern: str = PLANE,
    measure: str = "trace",
    metric: str = "test_loss",
    alike: float = math.inf,
    rates: float = math.inf,
    without: Collection[str] = (),
) -> pandas.DataFrame:
    """How often the flatter of two nets is the better one: a row per task.

    A pair is two fresh runs of one task and seed, trained by different methods, each
    as tuned; only methods that have such runs on every task count, but none of those
    in `without`; and no pair that ties in the measure or in the metric, or whose
    training losses differ by more than the factor `alike`, or whose learning rates by
    more than the factor `rates`. Columns pairs; wins w, those in which the net of the
    smaller `measure` has the better `metric`; share = w / pairs, NaN of none; and
    interval, half of its 95 % interval, of n seeds the pairs of which are not
    independent,

        t(0.975, n - 1) √(n / (n - 1) Σ_s (w_s - share · pairs_s)²) / pairs.

    It does not cover that other methods and settings could have been compared.

    Empty without records of fresh runs.

    >>> bool(flatter("plane/gaussian-0/*/narrow-tuned")["share"].gt(0.5).all())
    True
    """
    runs = _of_all_tasks([pattern], "fresh")
    if runs.empty:
        return runs
    runs = runs[~runs["method"].isin(without)]
    values = wide(runs, measure)
    scores = sign(metric) * wide(runs, metric)
    limits = {"train_loss": alike, "lr": rates}
    limited = {key: wide(runs, key) for key, most in limits.items() if most < math.inf}
    rows = {}
    for task, flatness in values.groupby("task"):
        gaps = _gaps(-flatness) * _gaps(scores.loc[[task]])
        for key, table in limited.items():
            first, second = _pairs(table.loc[[task]])
            least, most = np.minimum(first, second), np.maximum(first, second)
            gaps = np.where(most <= limits[key] * least, gaps, 0.0)
        rows[task] = _share(gaps)
    return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("task")


def _share(gaps: NDArray[np.float64]) -> dict[str, float]:
    """A row of `flatter`; gaps (n, pairs) are 1 for a win, -1 for a loss, else 0."""
    by_seed, wins_by_seed = (gaps != 0).sum(axis=1), (gaps > 0).sum(axis=1)
    pairs, wins, n = int(by_seed.sum()), int(wins_by_seed.sum()), len(gaps)
    share = wins / pairs if pairs else math.nan
    half = math.nan
    if n > 1 and pairs:
        squares = np.square(wins_by_seed - share * by_seed).sum()
        half = stats.t.ppf(0.975, n - 1) * math.sqrt(n / (n - 1) * squares) / pairs
    return {"pairs": pairs, "wins": wins, "share": share, "interval": half}


def _gaps(table: pandas.DataFrame) -> NDArray[np.float64]:
    """Signs of the differences of all pairs of columns, 0 where one is missing."""
    first, second = _pairs(table)
    return np.nan_to_num(np.sign(first - second))


def _pairs(table: pandas.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The first and the second columns of all pairs of columns."""
    first, second = np.triu_indices(table.shape[1], 1)
    numbers = table.to_numpy(np.float64)
    return numbers[:, first], numbers[:, second]


def _of_all_tasks(patterns: Sequence[str], runs: str) -> pandas.DataFrame:
    """The runs of all patterns, by methods that have them on every task; empty if one
    of the patterns names no record."""
    recorded = all(fnmatch.filter(names(), each) for each in patterns)
    return on_all_tasks(select(patterns, runs) if recorded else pandas.DataFrame())


def recommended(situation: Situation, passes: float = math.inf) -> pandas.Series | None:
    """The method to try first, a row of `gains`; None: stay with plain training.

    The rule: of the methods of at most `passes` passes per step whose verdict in this
    situation is "better", and whose accuracy is not "worse", the one of the largest
    gain. Two methods that are better than plain training need not differ from each
    other, and a gain on the mean of several tasks may be that of one of them. None, too,
    where a fairer comparison did not confirm the gain (`Situation.unconfirmed`).

    >>> recommended(SITUATIONS[0], passes=2).name
    'FriendlySAM'
    """
    return None if situation.unconfirmed else best(situation, passes)


def best(situation: Situation, passes: float = math.inf) -> pandas.Series | None:
    """The method that `recommended` would name if `unconfirmed` were not looked at.

    >>> best(SITUATIONS[5]).name  # fine-tuning
    'NSO'
    """
    where, runs = situation.pattern, situation.runs
    table = gains(where, situation.metric, situation.gain, runs=runs)
    if table.empty:
        return None
    worse = gains(where, runs=runs)["verdict"] == "worse"
    better = (table["verdict"] == "better") & ~worse.reindex(table.index)
    table = table[better & (table["passes"] <= passes)]
    if table.empty:
        return None
    return table.loc[(table["difference"] * sign(situation.metric)).idxmax()]


def _detectable(half: ArrayLike, df: ArrayLike, level: float) -> list[float]:
    """From half-widths of 95 % intervals of df degrees of freedom, which are those of
    df + 1 pairs."""
    numbers = np.asarray(df, dtype=np.float64) + 1
    spreads = half / stats.t.ppf(0.975, numbers - 1) * np.sqrt(numbers)
    pairs = zip(spreads.tolist(), numbers.tolist(), strict=True)
    return [detectable(sd, n, level) for sd, n in pairs]


def endings(
    patterns: Iterable[str], baseline: str = "ERM", below: float = math.inf
) -> pandas.DataFrame:
    """How flat fresh runs end, relative to the baseline's: a ratio per method and measure.

    For each of ENDINGS and ALONGSIDE and each method: the ratio to the baseline, exp of
    the mean difference in logarithms, paired by seed, of which the tasks are averaged
    first. Pairs count whose two values are positive, and whose two training losses lie
    below `below`.

    Columns measure, method, ratio, low, high (its 95 % interval), n (seeds), pairs, p,
    p_holm (over ENDINGS; NaN for ALONGSIDE), detectable (the ratio below 1 that the design
    finds, as in `verdicts`), at_edge (as in `paired`), and train_loss and
    baseline_loss, the mean training losses of the pairs. Empty where the records have
    no training losses.

    >>> table = endings(["plane/spiral-0.1/*/narrow-tuned"]).set_index("measure")
    >>> traces = table.loc["trace"].set_index("method")["ratio"]
    >>> round(float(traces["EMA"]), 2)  # EMA's trace, over plain training's
    0.88
    """
    runs = select(patterns)
    if "train_loss" not in runs:
        return pandas.DataFrame()
    losses = wide(runs, "train_loss")
    at_edge = edges(runs, baseline)
    parts = []
    for measure in (*ENDINGS, *ALONGSIDE):
        if measure in runs:
            runs["logarithm"] = np.log(runs[measure].where(runs[measure] > 0))
            gaps = differences(runs, baseline, "logarithm")
            counts = losses.lt(below).mul(losses[baseline] < below, axis=0)
            gaps = gaps.where(counts[gaps.columns])
            table = _ratios(gaps, losses, baseline, at_edge)
            parts.append(table.assign(measure=measure))
    table = pandas.concat(parts, ignore_index=True)
    table["p_holm"] = holm(table["p"].where(table["measure"].isin(ENDINGS)))
    count = max(1, int(table["p_holm"].notna().sum()))
    halves = np.log(table["high"] / table["ratio"])
    found = _detectable(halves, table["df"], LEVEL / count)
    table["detectable"] = np.exp(np.negative(found))
    columns = ["measure", "method", "ratio", "low", "high", "n", "pairs", "p", "p_holm"]
    return table[[*columns, "detectable", "at_edge", "train_loss", "baseline_loss"]]


def _ratios(
    gaps: pandas.DataFrame,
    losses: pandas.DataFrame,
    baseline: str,
    at_edge: Collection[tuple[Any, str]],
) -> pandas.DataFrame:
    """From differences in logarithms, a row per method."""
    tasks = gaps.index.unique("task").size
    seeds = gaps.groupby("seed").mean()
    table = tests_of({(tasks, name): seeds[name] for name in seeds}, "tasks", at_edge)
    pairs = {name: gaps.index[gaps[name].notna()] for name in gaps}
    mean, half = table["difference"], table["interval"]
    return table.assign(
        ratio=np.exp(mean),
        low=np.exp(mean - half),
        high=np.exp(mean + half),
        pairs=[len(index) for index in pairs.values()],
        train_loss=[losses[name][index].mean() for name, index in pairs.items()],
        baseline_loss=[losses[baseline][index].mean() for index in pairs.values()],
    )
