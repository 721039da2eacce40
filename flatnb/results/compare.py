"""Statistics over records: what was reached, with which spread, and whether a
difference is one.

    runs = compare.select(["plane/*/narrow-grid"])     # a row for each record and seed
    compare.table(runs)                                # mean, half-width of its
    interval, n
    compare.paired(runs, "ERM", "test_accuracy")       # differences seed by seed,
    Holm-adjusted
    compare.overall(runs, "ERM", "test_accuracy")      # the same over all tasks
    together
    compare.ranks(runs, "test_accuracy")               # mean rank over tasks
    compare.tally({"test_accuracy": tests})            # on how many tasks better, and
    worse
    compare.sensitivity(["plane/*/narrow-grid"], "test_accuracy")     # over the whole
    grid
    compare.grid(["plane/*/narrow-grid"], "ERM", "test_accuracy")     # the same, less
    the baseline
    compare.flatness(["plane/*/narrow-tuned"])         # which measure orders all these
    nets

Intervals are Student's of 95 % over seeds (of ranks: over tasks). Seeds pair what they
share: points, labels and initial weights. A loss gap comes with the test loss beside
    it, since a method
that holds the training loss up makes the gap small without generalising better.
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

from flatnb._checks import flag, instance, number, sequence, shown
from flatnb.results import records

METRICS = ("test_accuracy", "test_loss", "loss_gap")
_METRICS = "a list of metrics, such as ['test_loss']"
LEAST_SEEDS = 5  # for a test; below, differences are shown without
TARGETS = ("loss_gap", "test_loss", "test_error")  # what flatness may go with
LEAST_NETS = 10  # of a seed, for a rank correlation
LEVEL = 0.05  # of Holm's adjusted p, below which a difference counts as one


def loaded(patterns: Iterable[str]) -> list[dict[str, Any]]:
    """The records that fit the patterns; each is read once while its file stays as it
    is.

    They are not to be changed. Raises records.RecordError for a pattern that no
    record's name fits.
    """
    files = {
        name: records.path_of(name) for name in records.match(patterns, records.names())
    }
    return [_read(name, path, path.stat().st_mtime_ns) for name, path in files.items()]


@functools.lru_cache(maxsize=1024)
def _read(name: str, path: Path, changed: int) -> dict[str, Any]:
    return records.load(name)


def select(
    patterns: Iterable[str], *, default: bool = False, otherwise: bool = False
) -> pandas.DataFrame:
    """A row for each record and seed, at the setting chosen for the seed.

    Columns: record, task, method, passes, seed, setting (its index), and the final
        metrics, with
    `loss_gap` = test_loss - train_loss.

    Args:
        patterns: of record names, such as "plane/*/narrow-grid".
        default: at the published default instead, the setting past the budget, or the
            only one; a record that has neither is left out.
        otherwise: at the setting that the record's other rule would have chosen
            instead; a record that has no other rule is left out.

    Raises:
        records.RecordError: a pattern that no record's name fits.
    """
    flag("default", default), flag("otherwise", otherwise)
    rows = []
    for record in loaded(patterns):
        chosen, budget = record["selection"]["chosen"], record["selection"]["budget"]
        if default:
            if budget >= len(record["settings"]) > 1:
                continue
            chosen = [min(budget, len(record["settings"]) - 1)] * len(chosen)
        if otherwise:
            if "otherwise" not in record["selection"]:
                continue
            chosen = record["selection"]["otherwise"]["chosen"]
        for place, (seed, setting) in enumerate(
            zip(record["seeds"], chosen, strict=True)
        ):
            rows.append(
                {
                    "record": record["name"],
                    "task": _task(record),
                    "method": record["method"],
                    "passes": record["passes"],
                    "seed": seed,
                    "setting": setting,
                    **{
                        m: table[setting][place] for m, table in record["final"].items()
                    },
                }
            )
    return _with_gap(pandas.DataFrame(rows))


def _task(record: Mapping[str, Any]) -> str:
    """The task's name; one whose learning rate is tuned, too, is another task."""
    name = record["task"]["name"]
    return f"{name}, tuned lr" if record["task"].get("design") == "tuned" else name


def common(runs: pandas.DataFrame) -> pandas.DataFrame:
    """The runs on those tasks that have all the methods of the task with the most of
    them.

    Of tasks with equally many methods the first decides; what else ran elsewhere is
    left out.
    """
    _check_runs(runs)
    if runs.empty:
        return runs
    own = runs.groupby("task", sort=False)["method"].agg(set)
    wanted = max(own, key=len)
    tasks = [task for task, methods in own.items() if methods >= wanted]
    return runs[runs["task"].isin(tasks) & runs["method"].isin(wanted)]


def same_seeds(runs: pandas.DataFrame) -> pandas.DataFrame:
    """The runs on those tasks that have the same seeds, and the most, as `overall` asks
    for.

    Of sets of equally many seeds the first decides.
    """
    _check_runs(runs)
    if runs.empty:
        return runs
    seeds = runs.groupby("task", sort=False)["seed"].agg(frozenset)
    wanted = max(seeds, key=len)
    return runs[runs["task"].map(seeds) == wanted]


def table(runs: pandas.DataFrame, metrics: Sequence[str] = METRICS) -> pandas.DataFrame:
    """Mean and half-width of its 95 % interval over seeds, for each task and method.

    Columns: for each metric (metric, "mean"), (metric, "interval"), (metric, "n"); n
        counts the
    runs that have the number. With loss_gap, test_loss is always there.

    Raises:
        ValueError: a metric that the runs do not have, or a task and method twice (as
            of two scales): select fewer records.
    """
    metrics = list(dict.fromkeys(sequence("metrics", metrics, str, _METRICS)))
    if not metrics:
        raise ValueError(f"metrics=[]; allowed: {_METRICS}")
    if "loss_gap" in metrics and "test_loss" not in metrics:
        metrics.insert(metrics.index("loss_gap"), "test_loss")
    _check(runs, metrics)
    rows = {}
    for key, own in runs.groupby(["task", "method"], sort=False):
        rows[key] = {
            (metric, part): value
            for metric in metrics
            for part, value in _summary(own[metric]).items()
        }
    found = pandas.DataFrame.from_dict(rows, orient="index")
    found.index = pandas.MultiIndex.from_tuples(rows, names=["task", "method"])
    found.columns = pandas.MultiIndex.from_tuples(found.columns)
    return found


def paired(runs: pandas.DataFrame, baseline: str, metric: str) -> pandas.DataFrame:
    """Each method minus the baseline, seed by seed, for each task.

    Columns: task, method, difference (mean), interval (half-width), n (seeds that both
        have), p
    (two-sided paired t-test; nan below LEAST_SEEDS seeds), p_holm: p adjusted by Holm's
    method over all tests of this table, so that the chance of any false rejection among
    them stays below the level.

    Raises:
        ValueError: no such metric, a task and method twice, or a task without the
            baseline.
    """
    _check(runs, [instance("metric", metric, str, "text")])
    instance("baseline", baseline, str, "the name of a method")
    rows = []
    for task, own in runs.groupby("task", sort=False):
        wide = own.pivot(index="seed", columns="method", values=metric)
        _check_baseline(task, wide, baseline)
        for method in [name for name in own["method"].unique() if name != baseline]:
            difference = (wide[method] - wide[baseline]).dropna()
            summary = _summary(difference)
            rows.append(
                {
                    "task": task,
                    "method": method,
                    "difference": summary["mean"],
                    "interval": summary["interval"],
                    "n": summary["n"],
                    "p": _p_value(difference),
                }
            )
    columns = ["task", "method", "difference", "interval", "n", "p"]
    found = pandas.DataFrame(rows, columns=columns)
    return found.assign(p_holm=holm(found["p"].tolist()))


def overall(runs: pandas.DataFrame, baseline: str, metric: str) -> pandas.DataFrame:
    """Each method minus the baseline over all tasks together: one test a method.

    Within a seed the differences are averaged over the tasks, and the means of the
    seeds are tested as in `paired`. A gain that is small on every task can be told here
    though no task tells it alone; it is one of the mean over these tasks, and may be
    absent, or a loss, on some.

    Columns: method, difference (mean), interval (half-width over seeds), n (seeds that
        the method
    and the baseline have on all tasks), tasks, p, p_holm (over all methods).

    Raises:
        ValueError: as `paired`, or no seed that all tasks have.
    """
    _check(runs, [instance("metric", metric, str, "text")])
    instance("baseline", baseline, str, "the name of a method")
    for task, own in runs.groupby("task", sort=False):
        _check_baseline(task, own["method"].unique(), baseline)
    wide = runs.pivot(index="seed", columns=["method", "task"], values=metric)
    rows = []
    for method in [name for name in runs["method"].unique() if name != baseline]:
        difference = wide[method] - wide[baseline]
        whole = difference.dropna()
        if whole.empty:
            raise ValueError(
                f"{method} and {baseline} share no seed that has {metric} on all of "
                f"{', '.join(difference)}; take tasks of the same seeds"
            )
        summary = _summary(whole.mean(axis=1))
        rows.append(
            {
                "method": method,
                "difference": summary["mean"],
                "interval": summary["interval"],
                "n": summary["n"],
                "tasks": whole.shape[1],
                "p": _p_value(whole.mean(axis=1)),
            }
        )
    found = pandas.DataFrame(
        rows, columns=["method", "difference", "interval", "n", "tasks", "p"]
    )
    return found.assign(p_holm=holm(found["p"].tolist()))


def tally(
    tests: Mapping[str, pandas.DataFrame], level: float = LEVEL
) -> pandas.DataFrame:
    """On how many tasks each method is better than the baseline, and on how many worse.

    Columns, for each metric: (metric, "better"), (metric, "worse"), (metric, "untold"),
        where no
    test could tell, and (metric, "tasks"); indexed by method, in the order of the
    tests.

    Args:
        tests: for each metric its table of `paired`; of an accuracy more is better, of
            all else less.
        level: a difference counts if Holm's adjusted p is below it.
    """
    level = number("level", level, "a number in (0, 1)", 0, 1)
    if not instance("tests", tests, Mapping, "a dict of tables of `paired`"):
        raise ValueError("tests={}; allowed: a dict of at least one table of `paired`")
    found = {}
    for metric, table in tests.items():
        instance("tests", table, pandas.DataFrame, "a dict of tables of `paired`")
        gain = table["difference"] * (1 if metric.endswith("accuracy") else -1)
        told = table["p_holm"] < level  # nan, of a difference without a test, is not
        counts = pandas.DataFrame(
            {
                "method": table["method"],
                "better": told & (gain > 0),
                "worse": told & (gain < 0),
                "untold": ~told,
                "tasks": True,
            }
        )
        found[metric] = counts.groupby("method", sort=False).sum()
    return pandas.concat(found, axis=1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: max over j <= i of min(1, (k - j + 1) p_(j)), k tests
    in order.

    nan stays nan and counts as no test. Source: S. Holm, "A simple sequentially
        rejective multiple
    test procedure", Scandinavian Journal of Statistics 6 (1979).
    """
    allowed = "numbers in [0, 1], or nan"
    p_values = [float(p) for p in sequence("p_values", p_values, (int, float), allowed)]
    for p in p_values:
        if not (0 <= p <= 1 or math.isnan(p)):
            raise ValueError(f"p_values has {p}; allowed: {allowed}")
    there = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted, highest = [math.nan] * len(p_values), 0.0
    for place, (p, i) in enumerate(there):
        highest = max(highest, min(1.0, (len(there) - place) * p))
        adjusted[i] = highest
    return adjusted


def ranks(runs: pandas.DataFrame, metric: str) -> pandas.DataFrame:
    """Mean rank of each method over tasks, 1 the best; indexed by method, best first.

    On each task the methods are ranked by their mean over seeds (accuracy: the highest
    is best;
    any other metric: the lowest), ties sharing the mean of their ranks. Columns: rank,
        interval
    (half-width over tasks), tasks (how many), and the rank on each task.

    Raises:
        ValueError: no such metric, a task and method twice, or a method without a
            number on some task: ranks over different tasks do not compare.
    """
    _check(runs, [instance("metric", metric, str, "text")])
    means = (
        runs.groupby(["task", "method"], sort=False)[metric].mean().unstack("method")
    )
    if means.isna().any(axis=None):
        lacks = means.isna().stack()
        task, method = lacks[lacks].index[0]
        raise ValueError(
            f"{method} has no {metric} on {task}; rank only what ran on all tasks"
        )
    each = means.rank(axis=1, ascending=not metric.endswith("accuracy")).T
    found = pandas.DataFrame(
        [_summary(each.loc[method]) for method in each.index], each.index
    )
    found = found.rename(columns={"mean": "rank", "n": "tasks"})
    return found.join(each).sort_values("rank")


def sensitivity(patterns: Iterable[str], metric: str) -> pandas.DataFrame:
    """How the metric depends on the hyperparameters: a row for each record and setting.

    Columns: record, task, method, setting (index), the hyperparameters, mean, interval,
        n. Where a
    setting was tuned under one seed alone, `tuning_<metric>` has its number.

    Raises:
        records.RecordError: a pattern that no record's name fits. ValueError: a record
            without the metric.
    """
    instance("metric", metric, str, "text")
    rows = []
    for record in loaded(patterns):
        if metric == "loss_gap":
            raise ValueError(
                "metric='loss_gap' is shown with the test loss; take test_loss and train_loss"
            )
        for index, setting in enumerate(record["settings"]):
            rows.append(
                {
                    "record": record["name"],
                    "task": _task(record),
                    "method": record["method"],
                    "setting": index,
                    **setting,
                    **_summary(_metric(record, metric)[index]),
                }
            )
    return pandas.DataFrame(rows)


def grid(patterns: Iterable[str], baseline: str, metric: str) -> pandas.DataFrame:
    """Each setting of each other method minus the baseline as chosen, seed by seed.

    Columns: task, method, setting (index), its hyperparameters, difference (mean),
        interval, n
    (seeds that have both), chosen (the share of seeds that chose the setting).

    Raises:
        records.RecordError: a pattern that no record's name fits. ValueError: no such
            metric, or a task without the baseline.
    """
    instance("metric", metric, str, "text")
    instance("baseline", baseline, str, "the name of a method")
    found = loaded(patterns)
    for record in found:
        _metric(record, metric)
    bases = {_task(one): one for one in found if one["method"] == baseline}
    rows = []
    for record in found:
        task, chosen = _task(record), record["selection"]["chosen"]
        if record["method"] == baseline:
            continue
        if task not in bases:
            raise ValueError(f"{task} has no run of the baseline {baseline!r}")
        base = _chosen(bases[task], metric).reindex(record["seeds"]).to_numpy()
        differences = (
            np.array(_metric(record, metric), dtype=float) - base
        )  # (setting, seed)
        for index, setting in enumerate(record["settings"]):
            summary = _summary(differences[index])
            rows.append(
                {
                    "task": task,
                    "method": record["method"],
                    "setting": index,
                    **setting,
                    "difference": summary["mean"],
                    "interval": summary["interval"],
                    "n": summary["n"],
                    "chosen": chosen.count(index) / len(chosen),
                }
            )
    return pandas.DataFrame(rows)


def _chosen(record: Mapping[str, Any], metric: str) -> pandas.Series:
    table = _metric(record, metric)
    values = [table[i][place] for place, i in enumerate(record["selection"]["chosen"])]
    return pandas.Series(values, record["seeds"], dtype=float)


def _metric(record: Mapping[str, Any], metric: str) -> list[list[float | None]]:
    tables = record["final"]
    if metric not in tables:
        raise ValueError(
            f"metric={metric!r}: {record['name']} has no {metric}; there are: {', '.join(tables)}"
        )
    return tables[metric]


def rank_correlation(
    nets: pandas.DataFrame, measures: Sequence[str], by: str = "task"
) -> pandas.DataFrame:
    """Spearman's correlation of flatness measures with the loss gap and with the test
    loss.

    Columns: the group, measure, target ("loss_gap", "test_loss"), correlation, low,
        high (a 95 %
    interval by Fisher's transform with the variance 1.06 / (n - 3) of E. C. Fieller et
    al., 1957; it takes the nets for independent), n.

    Args:
        nets: a row for each trained net, with train_loss, test_loss, the measures and
            `by`.
        measures: columns.
        by: correlations are within its groups, since tasks differ in both.

    Raises:
        ValueError: columns that are not there.
    """
    instance("nets", nets, pandas.DataFrame, "a table")
    measures = sequence("measures", measures, str, "names of columns")
    instance("by", by, str, "the name of a column")
    nets = _with_gap(nets)
    _check_columns(nets, [*measures, "loss_gap", "test_loss", by])
    rows = []
    for group, own in nets.groupby(by, sort=False):
        for measure in measures:
            for target in ("loss_gap", "test_loss"):
                pairs = own[[measure, target]].dropna()
                n = len(pairs)
                rho = (
                    float(stats.spearmanr(pairs[measure], pairs[target])[0])
                    if n > 2
                    else math.nan
                )
                low, high = _fisher(rho, n)
                rows.append(
                    {
                        by: group,
                        "measure": measure,
                        "target": target,
                        "correlation": rho,
                        "low": low,
                        "high": high,
                        "n": n,
                    }
                )
    return pandas.DataFrame(rows)


def flatness(
    patterns: Iterable[str],
    measures: Sequence[str] = records.FLATNESS,
    targets: Sequence[str] = TARGETS,
    *,
    within: Sequence[str] = ("task",),
    given: str | None = None,
    where: str | None = None,
) -> pandas.DataFrame:
    """Spearman's correlation of measures and targets over all nets of the records, in
    each seed.

    All settings of all methods, not only those chosen. Nets that lack a number are left
    out, so that every measure orders the same nets; so are seeds of fewer than 10 nets.

    Columns: `within`, measure, target, correlation (mean over seeds), interval (its
        half-width),
    n (seeds), nets (a seed, on average).

    Args:
        patterns: of record names.
        measures: final metrics; by default those of the records of ensembles.
        targets: final metrics, "loss_gap" or "test_error" (1 - test_accuracy).
        within: "task", or "task" and "method": only nets of one of these are ordered.
        given: a final metric that is held constant, by partial rank correlation.
        where: of the nets only those for which this holds, as "train_accuracy == 1".

    Raises:
        records.RecordError: a pattern that no record's name fits. ValueError: no such
            metric, or one that is both to be ordered by and held constant.
    """
    measures = sequence("measures", measures, str, "names of metrics")
    targets = sequence("targets", targets, str, "names of metrics")
    within = sequence("within", within, str, "'task', or 'task' and 'method'")
    if not set(within) <= {"task", "method"}:
        raise ValueError(f"within={within}; allowed: 'task', or 'task' and 'method'")
    for label, text in (("given", given), ("where", where)):
        instance(label, text, (str, type(None)), "None, or text")
    if given in (*measures, *targets):
        raise ValueError(
            f"given={given!r} is a measure or a target; nothing of it would be left"
        )
    frames = [
        records.frame(one).assign(task=_task(one), method=one["method"])
        for one in loaded(patterns)
    ]
    if not frames:
        raise ValueError(
            "patterns=[]; allowed: at least one, such as 'plane/*/narrow-tuned'"
        )
    nets = _with_gap(pandas.concat(frames))
    if "test_accuracy" in nets:
        nets = nets.assign(test_error=1 - nets["test_accuracy"])
    names = list(
        dict.fromkeys([*measures, *targets, *([] if given is None else [given])])
    )
    _check_columns(nets, names)
    nets = nets.dropna(subset=names)
    nets = _where(nets, where) if where else nets
    rows = []
    for place, own in nets.groupby([*within, "seed"], sort=False):
        if len(own) < LEAST_NETS:
            continue
        found = own[names].corr("spearman")
        for measure in measures:
            for target in targets:
                value = float(found.loc[measure, target])
                if given is not None:
                    one, two = found.loc[measure, given], found.loc[target, given]
                    rest = (1 - one**2) * (1 - two**2)
                    value = (
                        (value - one * two) / math.sqrt(rest)
                        if rest > 1e-12
                        else math.nan
                    )
                rows.append(
                    {
                        **dict(zip(within, place, strict=False)),
                        "measure": measure,
                        "target": target,
                        "value": value,
                        "nets": len(own),
                    }
                )
    columns = [*within, "measure", "target"]
    each = pandas.DataFrame(rows, columns=[*columns, "value", "nets"]).groupby(
        columns, sort=False
    )
    summary = pandas.DataFrame(
        [{**_summary(own["value"]), "nets": own["nets"].mean()} for _, own in each],
        index=each.first().index,
        columns=["mean", "interval", "n", "nets"],
    )
    return summary.rename(columns={"mean": "correlation"}).reset_index()


def _where(nets: pandas.DataFrame, condition: str) -> pandas.DataFrame:
    try:
        return nets[nets.eval(condition).astype(bool)]
    except Exception as error:  # pandas raises many kinds for what it cannot read
        raise ValueError(
            f"where={shown(condition)} is no condition on {', '.join(map(str, nets))}: {error}"
        ) from error


def _fisher(rho: float, n: int) -> tuple[float, float]:
    if n < 4 or math.isnan(rho):
        return math.nan, math.nan
    if abs(rho) == 1:
        return rho, rho
    half = stats.norm.ppf(0.975) * math.sqrt(1.06 / (n - 3))
    centre = math.atanh(rho)
    return math.tanh(centre - half), math.tanh(centre + half)


def _p_value(differences: pandas.Series) -> float:
    if len(differences) < LEAST_SEEDS:
        return math.nan
    if (
        differences == differences.iloc[0]
    ).all():  # no spread, of which t is not defined
        return 1.0 if differences.iloc[0] == 0 else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _summary(values: Iterable[float | None]) -> dict[str, float]:
    there = [float(v) for v in values if v is not None and not math.isnan(v)]
    mean, half = records.mean_interval(there)
    return {"mean": mean, "interval": half, "n": len(there)}


def _with_gap(runs: pandas.DataFrame) -> pandas.DataFrame:
    if "loss_gap" in runs or not {"train_loss", "test_loss"} <= set(runs):
        return runs
    return runs.assign(
        loss_gap=runs["test_loss"].astype(float) - runs["train_loss"].astype(float)
    )


def _check_baseline(task: object, methods: Iterable[str], baseline: str) -> None:
    if baseline not in (there := list(methods)):
        raise ValueError(
            f"{task} has no run of the baseline {baseline!r}; there are: {', '.join(there)}"
        )


def _check_runs(runs: object) -> None:
    instance("runs", runs, pandas.DataFrame, "a table of `select`")


def _check(runs: pandas.DataFrame, metrics: Sequence[str]) -> None:
    _check_runs(runs)
    _check_columns(runs, ["task", "method", "seed", *metrics])
    twice = runs.duplicated(["task", "method", "seed"])
    if twice.any():
        one = runs[twice].iloc[0]
        raise ValueError(
            f"{one['method']} on {one['task']} is there twice with seed {one['seed']}, as from two "
            "scales; select the records of one"
        )


def _check_columns(frame: pandas.DataFrame, names: Sequence[str]) -> None:
    lacks = [name for name in names if name not in frame]
    if lacks:
        raise ValueError(
            f"no {', '.join(lacks)}; there are: {', '.join(map(str, frame))}; ask for a metric, "
            "measure or column of these"
        )
