"""The runs of a record: those that evaluate what was chosen, and those that chose."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas

from flatnb._checks import choice
from flatnb.results import records

_EVALUATIONS = {"fresh": "chosen", "default": "default", "repeated": "repeated"}
KINDS = (*_EVALUATIONS, "selected")
_TWO = dict.fromkeys(("gaussian", "sinusoid", "spiral", "text/sst2"), 2)
_TEN = ["digits", "MNIST", "FashionMNIST", "SVHN", "CIFAR10", "cifar10-jpeg"]
_TEN += ["sign-language-digits", "MNIST-1D"]
# Of a task's data.
CLASSES = _TWO | dict.fromkeys(_TEN, 10) | {"CIFAR100": 100, "text/trec": 6}


def runs_of(record: Mapping[str, Any], kind: str) -> pandas.DataFrame:
    """A row for each run of a kind of `KINDS`; none, if the record has no such runs.

    Columns setting (its index), the hyperparameters, seed, order, the final metrics,
    and at_edge. `flatnb.results.compare.select` says what the kinds and at_edge are.

    In records of schema 1 a setting chosen for the task was chosen under another seed:
    those runs are fresh. Of a setting chosen for each seed, none are.

    >>> record = records.load("plane/gaussian-0/SAM/narrow-grid")
    >>> len(runs_of(record, "selected"))
    15
    """
    choice("kind", kind, KINDS)
    evaluated = record.get("evaluation", {}).get(_EVALUATIONS.get(kind))
    if evaluated is None:
        seeds = len(record["seeds"])
        places = [i * seeds + j for j, i in enumerate(_settings(record, kind))]
        table = records.frame(record).iloc[places].assign(order=0)
    else:
        columns = records.setting_columns(record["settings"], evaluated["settings"])
        columns |= {"seed": evaluated["seeds"], "order": evaluated["orders"]}
        final = {name: np.array(v, float) for name, v in evaluated["final"].items()}
        table = pandas.DataFrame(columns | final)
    lost = table.filter(["train_loss", "test_loss"]).isna().any(axis=1)
    if lost.any():
        chance = _chance(record, table)
        table.loc[lost, list(chance)] = list(chance.values())
    at_edge = kind == "fresh" and bool(record["selection"].get("at_edge"))
    return table.assign(at_edge=at_edge)


def _settings(record: Mapping[str, Any], kind: str) -> list[int]:
    """The index of each seed's setting, of the runs of the selection; or none."""
    selection = record["selection"]
    if kind == "selected":
        return selection["chosen"]
    apart = record["schema"] == 1 and selection["per"] == "task"
    if kind == "fresh" and (apart or selection["split"] is None):
        return selection["chosen"]
    count = len(record["settings"])
    has_default = count == 1 or selection["budget"] < count
    if kind == "default" and record["schema"] == 1 and has_default:
        return [min(selection["budget"], count - 1)] * len(record["seeds"])
    return []


def _chance(record: Mapping[str, Any], table: pandas.DataFrame) -> dict[str, float]:
    """Accuracies and losses of a guess: what a run that ends without a number has."""
    task = record["task"]
    classes = task.get("classes") or CLASSES.get(str(task.get("data")))
    if classes is None:
        raise ValueError(
            f"{record['name']} has a run without a number, which counts as chance, but "
            f"its task states no classes; allowed without: {', '.join(CLASSES)}"
        )
    values = {"accuracy": 1 / classes, "loss": math.log(classes)}
    ends = {name: name.rpartition("_")[2] for name in table}
    return {name: values[end] for name, end in ends.items() if end in values}
