"""Statistics over runs: what was reached, with which spread, and which differences are
significant.

    runs = compare.select(["plane/*/narrow-grid"])          # a row per record and seed
    best = compare.best(tries, by=["method", "seed"])       # chosen on validation data
    tests = compare.paired(runs, "ERM", "test_accuracy")    # per task, seed by seed
    compare.overall(runs, "ERM", "test_accuracy")           # over all tasks together
    compare.tally({"test_accuracy": tests})                 # on how many tasks better
    compare.recommend(tests, "test_accuracy")               # what to use
    compare.ranks(runs, "test_accuracy")                    # mean rank over tasks
    compare.grid(["plane/*/narrow-grid"], "ERM", "test_accuracy")    # every setting
    nets = compare.nets(["plane/*/narrow-tuned"])           # a row per net
    compare.flatness(nets, ["trace"])                       # does it order them?

`runs` is a table with the columns task, method, seed and a column per metric. Intervals
are `statistics.interval`'s, over seeds (of ranks: over tasks). Seeds pair what they
share: points, labels and initial weights.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from scipy import stats

from flatnb._checks import instance, number, sequence, shown
from flatnb.results import records
from flatnb.results.statistics import LEVEL, holm, interval, spearman

LEAST_SEEDS = 5  # for a test; below, differences are shown without
TARGETS = ("loss_gap", "test_loss", "test_error")  # what flatness may go with
LEAST_NETS = 10  # of a seed, for a rank correlation


def sign(metric: str) -> int:
    """1 for a metric of which more is better (an accuracy), -1 for all others.

    >>> sign("test_accuracy"), sign("test_loss")
    (1, -1)
    """
    return 1 if metric.endswith("accuracy") else -1


# --- runs ---------------------------------------------------------------------------


def loaded(patterns: Iterable[str]) -> list[dict[str, Any]]:
    """The records that fit the patterns, not to be changed: each is read only once.

    Raises:
        records.RecordError: a pattern that no record's name fits.
    """
    files = {
        name: records.path_of(name) for name in records.match(patterns, records.names())
    }
    return [_read(name, path, path.stat().st_mtime_ns) for name, path in files.items()]


@functools.lru_cache(maxsize=1024)
def _read(name: str, path: Path, changed: int) -> dict[str, Any]:
    return records.load(name)


def select(patterns: Iterable[str], choice: str = "chosen") -> pandas.DataFrame:
    """A row for each record and seed, at the setting chosen for the seed.

    Args:
        patterns: of record names, such as "plane/*/narrow-grid".
        choice: "chosen"; or "default", the published default (the setting past the
            budget, or the only one); or "otherwise", what the record's other rule would
            have chosen. A record that has no such setting is left out.

    Returns:
        Columns record, task, method, passes, seed, setting (its index), and the final
        metrics, with `loss_gap` = test_loss - train_loss.

    Raises:
        ValueError: another choice.
        records.RecordError: a pattern that no record's name fits.
    """
    if choice not in ("chosen", "default", "otherwise"):
        raise ValueError(
            f"choice={shown(choice)}; allowed: 'chosen', 'default' or 'otherwise'"
        )
    rows = []
    for record in loaded(patterns):
        for place, setting in enumerate(_settings(record, choice)):
            final = {m: table[setting][place] for m, table in record["final"].items()}
            rows.append(
                {
                    "record": record["name"],
                    "task": _task(record),
                    "method": record["method"],
                    "passes": record["passes"],
                    "seed": record["seeds"][place],
                    "setting": setting,
                    **final,
                }
            )
    return _with_gap(pandas.DataFrame(rows))


def _settings(record: Mapping[str, Any], choice: str) -> list[int]:
    """The index of each seed's setting; empty if the record has none of that choice."""
    selection, count = record["selection"], len(record["settings"])
    if choice == "otherwise":
        return selection.get("otherwise", {"chosen": []})["chosen"]
    if choice == "default":
        has_default = count == 1 or selection["budget"] < count
        default = min(selection["budget"], count - 1)
        return [default] * len(record["seeds"]) if has_default else []
    return selection["chosen"]


def _task(record: Mapping[str, Any]) -> str:
    """The task's name; a task whose learning rate is tuned, too, is another task."""
    name = record["task"]["name"]
    return f"{name}, tuned lr" if record["task"].get("design") == "tuned" else name


def _with_gap(runs: pandas.DataFrame) -> pandas.DataFrame:
    if "loss_gap" in runs or not {"train_loss", "test_loss"} <= set(runs):
        return runs
    return runs.assign(
        loss_gap=runs["test_loss"].astype(float) - runs["train_loss"].astype(float)
    )


def best(runs: pandas.DataFrame, by: Sequence[str]) -> pandas.DataFrame:
    """In each group the run with the highest validation accuracy, ties by its loss.

    Args:
        runs: a row for each run tried, with columns val_accuracy and val_loss.
        by: the columns whose values make the groups, such as ["method", "seed"].

    Returns:
        One row per group, sorted by `by`. Of equals it is the first.

    Raises:
        ValueError: columns that are not there.

    >>> runs = pandas.DataFrame({"seed": [0, 0, 1], "rho": [0.1, 0.2, 0.1],
    ...                          "val_accuracy": [0.5, 0.5, 0.7], "val_loss": [2, 1, 3]})
    >>> best(runs, by=["seed"])["rho"].tolist()
    [0.2, 0.1]
    """
    _check_runs(runs)
    by = sequence("by", by, str, "names of columns, such as ['method', 'seed']")
    if not by:
        raise ValueError("by=[]; allowed: names of columns, such as ['method', 'seed']")
    _check_columns(runs, [*by, "val_accuracy", "val_loss"])
    order = runs.sort_values(["val_accuracy", "val_loss"], ascending=[False, True])
    return order.drop_duplicates(by).sort_values(by).reset_index(drop=True)


def common(runs: pandas.DataFrame) -> pandas.DataFrame:
    """The runs on those tasks that have all methods of the task with the most methods.

    Of tasks with equally many methods the first decides; what else ran elsewhere is
    left out.

    >>> runs = pandas.DataFrame({"task": ["a", "b", "b"], "method": ["SAM", "SAM", "GNP"]})
    >>> common(runs)["task"].unique().tolist()
    ['b']
    """
    _check_runs(runs)
    if runs.empty:
        return runs
    present = runs.groupby("task", sort=False)["method"].agg(set)
    wanted = max(present, key=len)
    tasks = [task for task, methods in present.items() if methods >= wanted]
    return runs[runs["task"].isin(tasks) & runs["method"].isin(wanted)]


def same_seeds(runs: pandas.DataFrame) -> pandas.DataFrame:
    """The runs on those tasks that have the same seeds, and the most: `overall` needs it.

    Of sets of equally many seeds the first decides.

    >>> runs = pandas.DataFrame({"task": ["a", "b", "b"], "seed": [0, 0, 1]})
    >>> same_seeds(runs)["task"].unique().tolist()
    ['b']
    """
    _check_runs(runs)
    if runs.empty:
        return runs
    seeds = runs.groupby("task", sort=False)["seed"].agg(frozenset)
    return runs[runs["task"].map(seeds) == max(seeds, key=len)]


# --- differences --------------------------------------------------------------------


def differences(runs: pandas.DataFrame, baseline: str, metric: str) -> pandas.DataFrame:
    """Each method minus the baseline, seed by seed.

    Returns:
        A row for each task and seed (its index), a column for each other method in the
        order of the runs. NaN where a run of the pair is missing.

    Raises:
        ValueError: no such metric, a task and method twice, or a task without the
            baseline.

    >>> runs = pandas.DataFrame({"task": "a", "method": ["ERM", "ERM", "SAM", "SAM"],
    ...                          "seed": [0, 1, 0, 1], "test_loss": [3.0, 4.0, 2.5, 3.0]})
    >>> differences(runs, "ERM", "test_loss")["SAM"].tolist()
    [-0.5, -1.0]
    """
    _check(runs, metric)
    _check_baseline(runs, baseline)
    wide = runs.pivot(index=["task", "seed"], columns="method", values=metric)
    methods = [name for name in runs["method"].unique() if name != baseline]
    wide = wide.astype(float)
    return wide[methods].sub(wide[baseline], axis=0)


def paired(runs: pandas.DataFrame, baseline: str, metric: str) -> pandas.DataFrame:
    """Each method minus the baseline, seed by seed, for each task.

    Returns:
        Columns task, method, difference (mean), interval (half-width), n (seeds that
        both have), p (two-sided paired t-test; NaN below LEAST_SEEDS seeds), p_holm (p
        adjusted by `holm` over all tests of this table).

    Raises:
        ValueError: as `differences`.

    >>> losses = {"ERM": [3.0, 4.0, 3.0, 4.0, 3.0], "SAM": [2.5, 3.0, 2.5, 3.0, 2.5]}
    >>> runs = pandas.DataFrame([("a", method, seed, value)
    ...                          for method, row in losses.items()
    ...                          for seed, value in enumerate(row)],
    ...                         columns=["task", "method", "seed", "test_loss"])
    >>> paired(runs, "ERM", "test_loss")[["method", "n"]].values.tolist()
    [['SAM', 5]]
    """
    wide = differences(runs, baseline, metric)
    rows = [
        {"task": task, "method": method, **_test(wide.loc[task, method])}
        for task, table in runs.groupby("task", sort=False)
        for method in table["method"].unique()
        if method != baseline
    ]
    return _with_holm(rows, ["task", "method", "difference", "interval", "n", "p"])


def overall(runs: pandas.DataFrame, baseline: str, metric: str) -> pandas.DataFrame:
    """Each method minus the baseline over all tasks together: one test per method.

    Within a seed the differences are averaged over the tasks, and the means of the
    seeds are tested as in `paired`. A gain that is small on every task can be
    significant here; it is a gain of the mean over these tasks, and may be absent, or a
    loss, on some.

    Returns:
        Columns method, difference (mean), interval (half-width over seeds), n (seeds
        that the method and the baseline have on all tasks), tasks, p, p_holm (over all
        methods).

    Raises:
        ValueError: as `paired`, or no seed that all tasks have.
    """
    wide = differences(runs, baseline, metric)
    rows = []
    for method in wide:
        table = wide[method].unstack("task")
        complete = table.dropna()
        if complete.empty:
            raise ValueError(
                f"{method} and {baseline} share no seed that has {metric} on all of "
                f"{', '.join(table)}; take tasks of the same seeds"
            )
        test = _test(complete.mean(axis=1))
        rows.append({"method": method, **test, "tasks": table.shape[1]})
    return _with_holm(rows, ["method", "difference", "interval", "n", "tasks", "p"])


def _over_seeds(values: pandas.Series) -> tuple[float, float, int]:
    """Mean, half-width of its interval, and number of the values that are there."""
    present = values.dropna()
    mean, half = interval(present)
    return float(mean), float(half), len(present)


def _test(gaps: pandas.Series) -> dict[str, float]:
    mean, half, n = _over_seeds(gaps)
    gaps = gaps.dropna()
    p = math.nan
    if n >= LEAST_SEEDS:
        if gaps.nunique() == 1:  # no spread, of which t is not defined
            p = float(gaps.iloc[0] == 0)
        else:
            p = float(stats.ttest_1samp(gaps, 0.0).pvalue)
    return {"difference": mean, "interval": half, "n": n, "p": p}


def _with_holm(rows: list[dict[str, Any]], columns: list[str]) -> pandas.DataFrame:
    table = pandas.DataFrame(rows, columns=columns)
    return table.assign(p_holm=holm(table["p"].tolist()))


def tally(
    tests: Mapping[str, pandas.DataFrame], level: float = LEVEL
) -> pandas.DataFrame:
    """On how many tasks each method is significantly better or worse than the baseline.

    Args:
        tests: for each metric its table of `paired`.
        level: a difference is significant if Holm's adjusted p is below it.

    Returns:
        Columns, for each metric, (metric, "better"), (metric, "worse") and (metric,
        "tasks"); indexed by method, in the order of the tests.

    Raises:
        ValueError: no table, or a level outside (0, 1).

    >>> tests = pandas.DataFrame({"method": ["SAM", "SAM"], "task": ["a", "b"],
    ...                           "difference": [-0.1, -0.2], "p_holm": [0.01, 0.3]})
    >>> tally({"test_loss": tests})["test_loss"].loc["SAM"].to_dict()
    {'better': 1, 'worse': 0, 'tasks': 2}
    """
    level = number("level", level, "a number in (0, 1)", 0, 1)
    if not instance("tests", tests, Mapping, "a dict of tables of `paired`"):
        raise ValueError("tests={}; allowed: a dict of at least one table of `paired`")
    counts = {}
    for metric, table in tests.items():
        instance("tests", table, pandas.DataFrame, "a dict of tables of `paired`")
        gain = table["difference"] * sign(metric)
        significant = table["p_holm"] < level  # NaN, of a difference without a test: no
        flags = {
            "method": table["method"],
            "better": significant & (gain > 0),
            "worse": significant & (gain < 0),
            "tasks": True,
        }
        counts[metric] = pandas.DataFrame(flags).groupby("method", sort=False).sum()
    return pandas.concat(counts, axis=1)


def recommend(
    tests: pandas.DataFrame, metric: str, level: float = LEVEL
) -> pandas.DataFrame:
    """What paired tests against the baseline say about using each method.

    - "use": better on more than half of the tasks (and on more than one), never worse;
    - "try": better on some task, never worse;
    - "depends": better on some task and worse on another;
    - "avoid": worse on some task, never better;
    - "no evidence": no significant difference.

    Args:
        tests: the metric's table of `paired`.
        metric: of an accuracy more is better, of all else less.
        level: a difference is significant if Holm's adjusted p is below it.

    Returns:
        Columns better, worse, tasks (counts of tasks), rank (mean over tasks, 1 the
        best of the methods), advice; indexed by method: "use" first, then "try"; within
        one advice the most often better first.

    >>> tests = pandas.DataFrame({"method": ["SAM", "NSO"] * 2, "task": list("aabb"),
    ...                           "difference": [-0.1, 0.1] * 2, "p_holm": [0.01] * 4})
    >>> recommend(tests, "test_loss")["advice"].to_dict()
    {'SAM': 'use', 'NSO': 'avoid'}
    """
    instance("metric", metric, str, "text")
    table = tally({metric: tests}, level)[metric]
    gain = tests.set_index(["method", "task"])["difference"] * sign(metric)
    ranks = gain.groupby("task").rank(ascending=False)
    table["rank"] = ranks.groupby("method").mean()
    advice = [_advice(*row) for row in table[["better", "worse", "tasks"]].to_numpy()]
    table["advice"] = pandas.Series(advice, table.index, dtype=object)
    return table.sort_values(
        ["advice", "better", "rank"], ascending=[False, False, True]
    )


def _advice(better: int, worse: int, tasks: int) -> str:
    if worse:
        return "depends" if better else "avoid"
    if better > max(1, tasks / 2):
        return "use"
    return "try" if better else "no evidence"


def ranks(runs: pandas.DataFrame, metric: str) -> pandas.DataFrame:
    """Mean rank of each method over tasks, 1 the best; indexed by method, best first.

    On each task the methods are ranked by their mean over seeds, ties sharing the mean
    of their ranks.

    Returns:
        Columns rank, interval (half-width over tasks), tasks (how many), and the rank
        on each task.

    Raises:
        ValueError: no such metric, a task and method twice, or a method without a
            number on some task: ranks over different tasks do not compare.

    >>> runs = pandas.DataFrame({"task": "a", "method": ["ERM", "SAM"], "seed": 0,
    ...                          "test_loss": [3.0, 2.0]})
    >>> ranks(runs, "test_loss")["rank"].to_dict()
    {'SAM': 1.0, 'ERM': 2.0}
    """
    _check(runs, metric)
    means = (
        runs.groupby(["task", "method"], sort=False)[metric].mean().unstack("method")
    )
    if means.isna().any(axis=None):
        lacks = means.isna().stack()
        task, method = lacks[lacks].index[0]
        raise ValueError(
            f"{method} has no {metric} on {task}; rank only what ran on all tasks"
        )
    by_task = means.rank(axis=1, ascending=sign(metric) < 0).T
    mean, half = interval(by_task.T)
    summary = {"rank": mean, "interval": half, "tasks": len(means)}
    table = pandas.DataFrame(summary, by_task.index).join(by_task)
    return table.sort_values("rank")


# --- all settings of records --------------------------------------------------------


def grid(patterns: Iterable[str], baseline: str, metric: str) -> pandas.DataFrame:
    """Each setting of each other method minus the baseline as chosen, seed by seed.

    Returns:
        Columns task, method, setting (index), its hyperparameters, difference (mean),
        interval, n (seeds that have both), chosen (the share of seeds that chose the
        setting).

    Raises:
        records.RecordError: a pattern that no record's name fits.
        ValueError: no such metric, or a task without the baseline.
    """
    instance("metric", metric, str, "text")
    instance("baseline", baseline, str, "the name of a method")
    tables = loaded(patterns)
    for record in tables:
        if metric not in record["final"]:
            raise ValueError(
                f"metric={metric!r}: {record['name']} has no {metric}; there are: "
                f"{', '.join(record['final'])}"
            )
    bases = {_task(record): record for record in tables if record["method"] == baseline}
    rows = []
    for record in tables:
        task, chosen = _task(record), record["selection"]["chosen"]
        if record["method"] == baseline:
            continue
        if task not in bases:
            raise ValueError(f"{task} has no run of the baseline {baseline!r}")
        base = pandas.Series(
            records.selected(bases[task])[metric], bases[task]["seeds"], dtype=float
        )
        gaps = pandas.DataFrame(record["final"][metric], columns=record["seeds"])
        gaps = gaps.astype(float) - base.reindex(record["seeds"])  # (setting, seed)
        for index, setting in enumerate(record["settings"]):
            mean, half, n = _over_seeds(gaps.loc[index])
            rows.append(
                {
                    "task": task,
                    "method": record["method"],
                    "setting": index,
                    **setting,
                    "difference": mean,
                    "interval": half,
                    "n": n,
                    "chosen": chosen.count(index) / len(chosen),
                }
            )
    return pandas.DataFrame(rows)


def optimism(record: Mapping[str, Any]) -> pandas.DataFrame:
    """What choosing on the test set would add to the accuracy of a record, per seed.

    Returns:
        A row per seed: setting, the test accuracy gained if the test set chose the
        setting; epoch, the gain if it chose among the recorded epochs; tied, the share
        of settings that tie for the highest validation accuracy.
    """
    budget = record["selection"]["budget"]
    chosen = np.array(records.selected(record)["test_accuracy"], dtype=float)
    test = np.array(record["final"]["test_accuracy"][:budget], dtype=float)
    validation = np.array(record["final"]["val_accuracy"][:budget], dtype=float)
    epochs = np.array(record["curves"]["metrics"]["test_accuracy"], dtype=float)
    columns = {
        "setting": np.nanmax(test, 0) - chosen,
        "epoch": epochs[:, 1:].max(1) - chosen,
        "tied": (validation == np.nanmax(validation, 0)).mean(0),
    }
    return pandas.DataFrame(columns, pandas.Index(record["seeds"], name="seed"))


def nets(patterns: Iterable[str]) -> pandas.DataFrame:
    """A row for each net of the records: all settings under all seeds.

    Returns:
        Columns task, method, seed, the hyperparameters, and the final metrics, with
        `loss_gap` and `test_error` = 1 - test_accuracy.

    Raises:
        records.RecordError: a pattern that no record's name fits.
    """
    tables = [
        records.frame(record).assign(task=_task(record), method=record["method"])
        for record in loaded(patterns)
    ]
    if not tables:
        raise ValueError("patterns=[]; allowed: at least one, such as 'plane/*'")
    table = _with_gap(pandas.concat(tables))
    if "test_accuracy" in table:
        table = table.assign(test_error=1 - table["test_accuracy"])
    return table


def flatness(
    nets: pandas.DataFrame,
    measures: Sequence[str],
    targets: Sequence[str] = TARGETS,
    *,
    within: Sequence[str] = ("task",),
    given: str | None = None,
) -> pandas.DataFrame:
    """Spearman's correlation of measures and targets over nets, per seed.

    Nets that lack a number are left out, so that every measure orders the same nets; so
    are seeds of fewer than LEAST_NETS nets.

    Args:
        nets: of `nets`, or some of its rows.
        measures: columns.
        targets: columns.
        within: columns; only nets that agree in them, and in the seed, are ordered.
        given: a column that is held constant, by partial rank correlation.

    Returns:
        Columns `within`, measure, target, correlation (mean over seeds), interval (its
        half-width), n (seeds), nets (per seed, on average).

    Raises:
        ValueError: no such column, or one that is both to be ordered by and held
            constant.

    >>> nets = pandas.DataFrame({"task": "a", "seed": [0] * 12 + [1] * 12,
    ...                          "trace": range(24), "test_loss": range(24)})
    >>> flatness(nets, ["trace"], ["test_loss"])["correlation"].tolist()
    [1.0]
    """
    _check_runs(nets, "nets")
    measures = sequence("measures", measures, str, "names of columns")
    if given in (*measures, *targets):
        raise ValueError(
            f"given={given!r} is a measure or a target; nothing of it would be left"
        )
    columns = [*measures, *targets, *([] if given is None else [given])]
    _check_columns(nets, [*within, "seed", *columns])
    rows = []
    groups = nets.dropna(subset=columns).groupby([*within, "seed"], sort=False)
    for key, group in groups:
        if len(group) < LEAST_NETS:
            continue
        values = {name: group[name].to_numpy() for name in columns}
        held = None if given is None else values[given]
        for measure in measures:
            for target in targets:
                rank = spearman(values[measure], values[target], held)
                rows.append((*key[:-1], measure, target, rank.value, rank.n))
    names = [*within, "measure", "target"]
    each = pandas.DataFrame(rows, columns=[*names, "value", "nets"])
    summary = [
        (*key, *_over_seeds(group["value"]), group["nets"].mean())
        for key, group in each.groupby(names, sort=False)
    ]
    return pandas.DataFrame(
        summary, columns=[*names, "correlation", "interval", "n", "nets"]
    )


# --- checks -------------------------------------------------------------------------


def _check_runs(runs: object, name: str = "runs") -> None:
    instance(name, runs, pandas.DataFrame, "a table of `select` or `nets`")


def _check(runs: pandas.DataFrame, metric: str) -> None:
    _check_runs(runs)
    instance("metric", metric, str, "text")
    _check_columns(runs, ["task", "method", "seed", metric])
    twice = runs.duplicated(["task", "method", "seed"])
    if twice.any():
        run = runs[twice].iloc[0]
        raise ValueError(
            f"{run['method']} on {run['task']} is there twice with seed {run['seed']}, as "
            "from two scales; select the records of one"
        )


def _check_baseline(runs: pandas.DataFrame, baseline: str) -> None:
    instance("baseline", baseline, str, "the name of a method")
    for task, table in runs.groupby("task", sort=False):
        methods = table["method"].unique()
        if baseline not in methods:
            raise ValueError(
                f"{task} has no run of the baseline {baseline!r}; there are: "
                f"{', '.join(methods)}"
            )


def _check_columns(table: pandas.DataFrame, names: Sequence[str]) -> None:
    lacks = [name for name in names if name not in table]
    if lacks:
        raise ValueError(
            f"no {', '.join(lacks)}; there are: {', '.join(map(str, table))}; ask for a "
            "metric, measure or column of these"
        )
