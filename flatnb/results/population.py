"""All nets of records, chosen or not: how results depend on hyperparameters, what
choosing on the test set would add, and whether flatness orders the nets.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas

from flatnb.results import records
from flatnb.results.compare import loaded, select, task_of
from flatnb.results.statistics import correlations, summary

LEAST_NETS = 10  # of a seed, for a rank correlation
TARGETS = ("loss_gap", "test_loss", "test_error")  # what flatness may go with


def grid(patterns: Iterable[str], baseline: str, metric: str) -> pandas.DataFrame:
    """Each setting of each other method minus the baseline as chosen, seed by seed.

    Columns task, method, setting (index), its hyperparameters, difference (mean),
    interval, n (seeds that both have), chosen (the share of seeds that chose it).

    >>> names = ["plane/gaussian-0/ERM/narrow-grid", "plane/gaussian-0/SAM/narrow-grid"]
    >>> grid(names, "ERM", "test_loss")["method"].unique().tolist()
    ['SAM']
    """
    runs = select(patterns)
    bases = runs[runs["method"] == baseline].set_index(["task", "seed"])[metric]
    rows = []
    for record in loaded(patterns):
        task, chosen = task_of(record), record["selection"]["chosen"]
        if task not in bases:
            raise ValueError(f"{task} has no run of the baseline {baseline!r}")
        if record["method"] == baseline:
            continue
        final = pandas.DataFrame(record["final"][metric], columns=record["seeds"])
        gaps = final.astype(float) - bases[task].reindex(record["seeds"])
        for index, setting in enumerate(record["settings"]):
            row = {"task": task, "method": record["method"], "setting": index}
            mean, half, n = summary(gaps.loc[index])
            row |= setting | {"difference": mean, "interval": half, "n": n}
            rows.append(row | {"chosen": chosen.count(index) / len(chosen)})
    return pandas.DataFrame(rows)


def optimism(record: Mapping[str, Any]) -> pandas.DataFrame:
    """What choosing on the test set would add to the accuracy of a record, per seed.

    A row per seed: setting, the test accuracy gained if the test set chose the setting;
    epoch, the gain if it chose among the recorded epochs; tied, the share of settings
    that tie for the highest validation accuracy.

    >>> gains = optimism(records.load("plane/gaussian-0/SAM/narrow-grid"))
    >>> bool((gains["setting"] >= 0).all())
    True
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

    Only nets that agree in the columns `within`, and in the seed, are ordered; the
    column `given` is held constant, by partial rank correlation. Columns `within`,
    measure, target, correlation (mean over seeds), interval (its half-width), n
    (seeds), nets (per seed, on average).

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
    rows = []
    for key, group in nets.dropna(subset=columns).groupby([*within], sort=False):
        sizes = group.groupby("seed").size()
        sizes = sizes[sizes >= LEAST_NETS]
        group = group[group["seed"].isin(sizes.index)]
        for measure, target in itertools.product(measures, targets):
            if len(sizes):
                seeds = correlations(group, measure, target, by="seed", given=given)
                rows.append((*key, measure, target, *summary(seeds), sizes.mean()))
    names = [*within, "measure", "target", "correlation", "interval", "n", "nets"]
    return pandas.DataFrame(rows, columns=names)
