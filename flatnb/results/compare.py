"""Statistics over runs: what was reached, and which differences are significant.

`runs` is a table with the columns task, method, seed and a column per metric, such as
that of `select`. Intervals are `statistics.interval`'s, over seeds. Seeds pair what
they share: points, labels, initial weights and orders of batches. Runs of one seed in
several orders count as one, their mean. Tasks may share these, too, or not: `overall`.
"""

import functools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from numpy.typing import NDArray
from scipy import stats

from flatnb._checks import choice
from flatnb.results import records
from flatnb.results.runs import KINDS, runs_of
from flatnb.results.statistics import holm, interval, signed_rank

LEAST_SEEDS = 5  # for a test; below, differences are shown untested


def sign(metric: str) -> int:
    """1 for a metric of which more is better (an accuracy), -1 for all others.

    >>> sign("test_accuracy"), sign("test_loss")
    (1, -1)
    """
    return 1 if metric.endswith("accuracy") else -1


def loaded(patterns: Iterable[str]) -> list[dict[str, Any]]:
    """The records whose names fit the patterns; not to be changed: each is read once.

    >>> [record["method"] for record in loaded(["plane/gaussian-0/SAM/narrow-grid"])]
    ['SAM']
    """
    return [_read(*file) for file in _files(patterns)]


def _files(patterns: Iterable[str]) -> list[tuple[str, Path, int]]:
    """Name, file and time of change of each record: what is read of it stays true."""
    names = records.match(patterns, records.names())
    paths = [records.root() / f"{name}.json" for name in names]
    return [(n, p, p.stat().st_mtime_ns) for n, p in zip(names, paths, strict=True)]


@functools.lru_cache(maxsize=1024)
def _read(name: str, path: Path, changed: int) -> dict[str, Any]:
    return records.load(name)


@functools.lru_cache(maxsize=2048)
def _runs(name: str, path: Path, changed: int, kind: str) -> pandas.DataFrame:
    """The rows of one record in `select`; not to be changed."""
    record = _read(name, path, changed)
    return _described(record, runs_of(record, kind))


def select(patterns: Iterable[str], runs: str = "fresh") -> pandas.DataFrame:
    """The runs of many records as one table, a row for each record, seed and order.

    Args:
        patterns: names of records, shell-like, such as `["plane/*/SAM/narrow-tuned"]`.
        runs: "fresh" ones, of the setting chosen for the task, under seeds that did not
            choose it; "default", of the published setting, under those seeds;
            "selected", of what each seed alone chose, as the selection trained it; or
            "repeated", these again, in other orders of batches.

    Returns:
        The columns of `nets`; `order`, the number of the order of batches; and
        `at_edge`, whether the setting chosen lies at an edge of what was tried. A
        record without such runs is left out. A run whose loss is not finite counts as
        chance: accuracy 1/C, losses log C, of C classes.

    Raises:
        RecordError: a pattern fits no name; it lists the closest.

    >>> "SAM" in set(select(["plane/gaussian-0/*/narrow-grid"], "selected")["method"])
    True
    """
    choice("runs", runs, KINDS)
    tables = [_runs(*file, runs) for file in _files(patterns)]
    tables = [table for table in tables if len(table)]
    return pandas.concat(tables, ignore_index=True) if tables else pandas.DataFrame()


def on_all_tasks(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Of a table of runs, those of methods that have some on every task.

    >>> runs = pandas.DataFrame({"task": ["a", "b", "a"], "method": ["ERM", "ERM", "SAM"]})
    >>> on_all_tasks(runs)["method"].unique().tolist()
    ['ERM']
    """
    if runs.empty:
        return runs
    tasks = runs.groupby("method")["task"].transform("nunique")
    return runs[tasks == runs["task"].nunique()]


def nets(patterns: Iterable[str]) -> pandas.DataFrame:
    """All nets of the selections of many records: every setting under every seed.

    Columns record, task, method, passes; those of `records.frame` (setting, the
    hyperparameters, seed, the final metrics); and, where they can be computed,
    `loss_gap` = test_loss - train_loss and `test_error` = 1 - test_accuracy.

    >>> nets(["plane/gaussian-0/SAM/narrow-grid"])["method"].unique().tolist()
    ['SAM']
    """
    return pandas.concat(map(_nets, loaded(patterns)), ignore_index=True)


def _nets(record: Mapping[str, Any]) -> pandas.DataFrame:
    return _described(record, records.frame(record))


def _described(record: Mapping[str, Any], table: pandas.DataFrame) -> pandas.DataFrame:
    """The table with the columns that `nets` adds."""
    table.insert(0, "record", record["name"])
    table.insert(1, "task", task_of(record))
    table.insert(2, "method", record["method"])
    table.insert(3, "passes", record["passes"])
    if {"test_loss", "train_loss"} <= set(table):
        table["loss_gap"] = table["test_loss"] - table["train_loss"]
    if "test_accuracy" in table:
        table["test_error"] = 1 - table["test_accuracy"]
    return table


def task_of(record: Mapping[str, Any]) -> str:
    """The task's name; a task whose learning rate is tuned, too, is another task.

    >>> task_of({"task": {"name": "plane", "design": "tuned"}})
    'plane, tuned lr'
    """
    name = record["task"]["name"]
    return f"{name}, tuned lr" if record["task"].get("design") == "tuned" else name


def best(runs: pandas.DataFrame, by: Sequence[str]) -> pandas.DataFrame:
    """The run that validation chooses in each group: of the highest val_accuracy, ties
    by the lowest val_loss.

    The columns `by` make the groups and sort the result; of equals it is the first.

    >>> nets = pandas.DataFrame({"seed": 0, "val_accuracy": 0.5, "val_loss": [2, 1]})
    >>> best(nets, by=["seed"])["val_loss"].tolist()
    [1]
    """
    order = runs.sort_values(["val_accuracy", "val_loss"], ascending=[False, True])
    return order.drop_duplicates(by).sort_values(by).reset_index(drop=True)


def wide(runs: pandas.DataFrame, metric: str) -> pandas.DataFrame:
    """A row for each task and seed, a column for each method: the metric, its mean over
    orders of batches, NaN where a run is missing.

    >>> runs = pandas.DataFrame({"task": "a", "method": "ERM", "seed": 0,
    ...                          "order": [1, 2], "test_loss": [3, 2]})
    >>> wide(runs, "test_loss")["ERM"].tolist()
    [2.5]
    """
    _check(runs)
    numbers = runs.assign(**{metric: runs[metric].astype(float)})
    keys = ["task", "method", "seed"]
    if numbers.duplicated(keys).any():
        numbers = numbers.groupby(keys, as_index=False)[metric].agg(_mean)
    return numbers.pivot(index=["task", "seed"], columns="method", values=metric)


def _mean(values: pandas.Series) -> float:
    return values.mean(skipna=False)  # a run without a number is not left out


def differences(runs: pandas.DataFrame, baseline: str, metric: str) -> pandas.DataFrame:
    """The single differences of each method to the baseline, seed by seed.

    A row for each task and seed, a column for each other method in the order of the
    runs; NaN where a run of the pair is missing.

    >>> runs = pandas.DataFrame({"task": "a", "method": ["ERM", "SAM"], "seed": 0,
    ...                          "test_loss": [3, 2.5]})
    >>> differences(runs, "ERM", "test_loss")["SAM"].tolist()
    [-0.5]
    """
    table = wide(runs, metric)
    for task, methods in runs.groupby("task", sort=False)["method"].unique().items():
        if baseline not in methods:
            raise ValueError(
                f"{task} has no run of the baseline {baseline!r}; there are: "
                f"{', '.join(methods)}"
            )
    methods = [name for name in runs["method"].unique() if name != baseline]
    return table[methods].sub(table[baseline], axis=0)


def paired(runs: pandas.DataFrame, baseline: str, metric: str) -> pandas.DataFrame:
    """Compare each method with a baseline on each task: the mean difference over seeds.

    Args:
        runs: a table with the columns task, method, seed and the metric, such as that of
            `select`.
        baseline: a method that has runs on every task.
        metric: the column that is compared. Differences are method minus baseline,
            whether more is better or less.

    Returns:
        A row for each task and method:

        - `difference`, the mean, and `interval`, the half-width of its 95 % interval;
        - `n`, the pairs of runs that share a seed, and `df`, n - 1, the degrees of
          freedom;
        - `p` of the two-sided t-test, NaN below five pairs, and `p_holm`, adjusted by
          `holm` for all rows of this table;
        - `trimmed`, the mean without a tenth at each end, and `p_wilcoxon`, of the
          signed-rank test: two checks of the t-test;
        - `at_edge`, whether a setting that is compared lies at an edge of what was
          tried; False where the runs do not say.

    Raises:
        ValueError: a task has no run of the baseline, or a run is there twice.

    >>> runs = select(["plane/gaussian-0/*/narrow-grid"], "selected")
    >>> paired(runs, "ERM", "test_loss")["n"].unique().tolist()
    [15]
    """
    table = differences(runs, baseline, metric)
    present = runs.groupby("task", sort=False)["method"].unique()
    gaps = {
        (task, method): table.loc[task, method]
        for task, methods in present.items()
        for method in methods
        if method != baseline
    }
    return tests_of(gaps, "task", edges(runs, baseline))


def overall(
    runs: pandas.DataFrame, baseline: str, metric: str, *, shared: bool = True
) -> pandas.DataFrame:
    """Compare each method with a baseline over all tasks together: one test per method.

    A gain that is small on every task can be significant here; it is a gain of the mean,
    and may be absent, or a loss, on some task. Columns as in `paired`, with `tasks`,
    their number, for `task`.

    Args:
        runs, baseline, metric: as in `paired`.
        shared: whether a seed draws the same on all tasks: `share_seeds`. If so, each
            seed's differences are averaged over the tasks, and these means are tested
            as in `paired`; a seed that some task lacks is left out. If not, which seeds
            are averaged would be an accident of their numbers. Then the variances of
            the tasks are combined, by Welch and Satterthwaite: T tasks, of n_t
            differences with mean d_t and standard deviation s_t each, have

                d = sum_t d_t / T,  v_t = s_t^2 / n_t,  se = sqrt(sum_t v_t) / T,
                df = (sum_t v_t)^2 / sum_t (v_t^2 / (n_t - 1)),

            the interval d ± t(0.975, df) se, and p of d / se. `n` is the fewest
            differences of a task, `trimmed` the mean of the tasks' trimmed means, and
            `p_wilcoxon` NaN.

    Raises:
        ValueError: as in `paired`; or there is no seed with all tasks or, of tasks that
            do not share them, a task without a pair.

    Sources: F. E. Satterthwaite, "An approximate distribution of estimates of variance
    components", Biometrics Bulletin 2 (1946); B. L. Welch, "The generalization of
    'Student's' problem when several different population variances are involved",
    Biometrika 34 (1947).

    >>> runs = pandas.DataFrame({"task": list("aabb") * 2, "method": ["ERM", "SAM"] * 4,
    ...     "seed": [0] * 4 + [1] * 4, "test_loss": [0.0, 1, 0, 3, 0, 3, 0, 1]})
    >>> overall(runs, "ERM", "test_loss")[["difference", "interval"]].values.tolist()
    [[2.0, 0.0]]
    >>> apart = overall(runs, "ERM", "test_loss", shared=False)
    >>> apart[["difference", "interval", "df"]].round(2).values.tolist()
    [[2.0, 3.04, 2.0]]
    """
    pairs = differences(runs, baseline, metric)
    tasks = pairs.index.unique("task")
    means = over_tasks(pairs)
    lacking = pairs.groupby("task").count().eq(0).any()
    for method in means:
        if means[method].isna().all() if shared else lacking[method]:
            raise ValueError(
                f"{method} and {baseline} share no seed that has {metric} on "
                f"{'all' if shared else 'each'} of {', '.join(tasks)}; take tasks "
                f"{'of the same seeds' if shared else 'on which they do'}"
            )
    at_edge = edges(runs, baseline)
    if shared:
        gaps = {(len(tasks), method): means[method] for method in means}
        return tests_of(gaps, "tasks", at_edge)
    rows = {
        (len(tasks), method): _welch([pairs.loc[task, method] for task in tasks])
        for method in pairs
    }
    return _table(rows, "tasks", at_edge)


def over_tasks(pairs: pandas.DataFrame) -> pandas.DataFrame:
    """Of single `differences`, the mean over the tasks for each seed; NaN where some task
    lacks it.

    >>> index = pandas.MultiIndex.from_product([["a", "b"], [0]], names=["task", "seed"])
    >>> over_tasks(pandas.DataFrame({"SAM": [1.0, 3.0]}, index))["SAM"].tolist()
    [2.0]
    """
    count = pairs.index.unique("task").size
    return pairs.groupby("seed").sum(min_count=count) / count


def share_seeds(tasks: Iterable[str]) -> bool:
    """Whether a seed draws the same on all of these tasks, as `overall` needs to know.

    In the plane it draws the initial weights and the orders of batches of one net, and
    the points of a shape. In fine-tuning it draws other examples on each task.

    >>> share_seeds(["plane/spiral-0", "plane/gaussian-0"])
    True
    >>> share_seeds(["finetune/trec-10-shots", "finetune/sst2-20-shots"])
    False
    """
    return not any(task.startswith("finetune") for task in tasks)


def edges(runs: pandas.DataFrame, baseline: str) -> set[tuple[Any, str]]:
    """(task, method) of the runs at_edge, or whose baseline's are there; of the table
    over all tasks, of any of them, (number of tasks, method).

    >>> runs = pandas.DataFrame({"task": "a", "method": ["ERM", "SAM", "NSO"],
    ...                          "at_edge": [False, True, False]})
    >>> sorted(edges(runs, "ERM"), key=str)
    [('a', 'SAM'), (1, 'SAM')]
    """
    if "at_edge" not in runs:
        return set()
    pairs = runs.loc[runs["at_edge"], ["task", "method"]].itertuples(index=False)
    at_edge = set(map(tuple, pairs))
    found: set[tuple[Any, str]] = set()
    methods = runs.groupby("task", sort=False)["method"].unique()
    for task, names in methods.items():
        for name in names:
            if {(task, name), (task, baseline)} & at_edge:
                found |= {(task, name), (len(methods), name)}
    return found


def tests_of(
    gaps: Mapping[tuple[Any, str], pandas.Series],
    key: str,
    at_edge: Collection[tuple[Any, str]] = (),
) -> pandas.DataFrame:
    """A row as in `paired` for each (key, method), from its differences by seed.

    >>> gaps = {("a", "SAM"): pandas.Series([1.0, 3.0])}
    >>> tests_of(gaps, "task")["difference"].tolist()
    [2.0]
    """
    values = [gap.dropna().to_numpy(np.float64) for gap in gaps.values()]
    numbers = np.empty((len(values), len(_NUMBERS)))
    for n in {len(gap) for gap in values}:  # those of n pairs at once
        places = [place for place, gap in enumerate(values) if len(gap) == n]
        numbers[places] = _tests(np.stack([values[i] for i in places], axis=1))
    return _table(dict(zip(gaps, numbers.tolist(), strict=True)), key, at_edge)


_NUMBERS = ["difference", "interval", "n", "df", "p", "trimmed", "p_wilcoxon"]


def _table(
    rows: Mapping[tuple[Any, str], Sequence[float]],
    key: str,
    at_edge: Collection[tuple[Any, str]],
) -> pandas.DataFrame:
    """Rows of _NUMBERS as one family."""
    columns = [key, "method", *_NUMBERS]
    values = [(*names, *row) for names, row in rows.items()]
    table = pandas.DataFrame(values, columns=columns).astype({"n": int})
    table.insert(columns.index("p") + 1, "p_holm", holm(table["p"]))
    return table.assign(at_edge=[names in at_edge for names in rows])


def _tests(gaps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the columns of differences (n, k), of one task or over all: (k, _NUMBERS)."""
    n, count = gaps.shape
    p, trimmed, wilcoxon = np.full((3, count), math.nan)
    if n >= LEAST_SEEDS:
        trimmed = stats.trim_mean(gaps, 0.1)
        some = gaps.any(axis=0)
        wilcoxon = signed_rank(gaps)
        spread = np.ptp(gaps, axis=0) > 0
        p = (~some).astype(float)  # without a spread, of which t is not defined
        if spread.any():
            p[spread] = stats.ttest_1samp(gaps[:, spread], 0.0).pvalue
    sizes = np.full(count, n), np.full(count, n - 1)
    return np.stack([*interval(gaps), *sizes, p, trimmed, wilcoxon], axis=1)


def _welch(tasks: Sequence[pandas.Series]) -> list[float]:
    """_NUMBERS of the mean over tasks of their differences, independent of each other."""
    gaps = [task.dropna().to_numpy(np.float64) for task in tasks]
    n = min(map(len, gaps))
    mean = float(np.mean([gap.mean() for gap in gaps]))
    if n < 2:
        return [mean, math.nan, n, math.nan, math.nan, math.nan, math.nan]
    parts = np.array([gap.var(ddof=1) / len(gap) for gap in gaps])
    error = math.sqrt(parts.sum()) / len(gaps)
    df = math.nan
    half, p = 0.0, float(mean == 0)  # without a spread
    if error > 0:
        freedom = np.array([len(gap) - 1 for gap in gaps])
        df = float(parts.sum() ** 2 / (parts**2 / freedom).sum())
        half = float(stats.t.ppf(0.975, df)) * error
        p = 2 * float(stats.t.sf(abs(mean) / error, df))
    trimmed = float(np.mean([stats.trim_mean(gap, 0.1) for gap in gaps]))
    if n < LEAST_SEEDS:
        p = trimmed = math.nan
    return [mean, half, n, df, p, trimmed, math.nan]


def _check(runs: pandas.DataFrame) -> None:
    """Whether there is one run per task, method, seed and order."""
    orders = ["order"] if "order" in runs else []
    twice = runs.duplicated(["task", "method", "seed", *orders])
    if twice.any():
        run = runs[twice].iloc[0]
        place = f"{run['method']} on {run['task']} with seed {run['seed']}"
        raise ValueError(f"{place} is there twice; select the records of one scale")
