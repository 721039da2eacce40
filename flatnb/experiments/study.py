"""Selection and evaluation of a setting, by trainings that share no seed."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flatnb.experiments.runner import Curve, Member, Value
from flatnb.experiments.tuning import Setting

# Trains members, with a path for a checkpoint; the value's tables are [member].
Trainer = Callable[[Sequence[Member], Path | None], Value]
NOT_FINITE = "the loss was not finite"
_KINDS = ("metrics", "flatness")  # of tables


class _Run(NamedTuple):
    setting: int
    seed: int
    order: int = 0


def study(
    train: Trainer,
    settings: Sequence[Setting],
    *,
    budget: int,
    seeds: Sequence[int],
    fresh: Sequence[int],
    finalists: int | None = None,
    repeats: int = 0,
    checkpoint: Path | None = None,
) -> Value:
    """Select a setting, then evaluate it by fresh trainings.

    **Selection** trains the settings under `seeds`. It chooses, of the first `budget`,
    that of the best mean validation accuracy over the seeds, ties by the lower mean
    loss. A setting with a run that has no number is not eligible; if none is, the first
    is taken. With `finalists`, all settings train under the first seed, and only so
    many, the best of the first `budget`, under the other seeds.

    **Evaluation** trains the chosen setting under the `fresh` seeds. A setting past the
    budget, the published default, is evaluated in the same way. With `repeats`, what
    each seed alone would choose trains again, on the same data from the same start, in
    that many other orders of batches.

    Returns:
        "epochs"; "metrics" [setting][seed][epoch] and "flatness" [setting][seed], of
        the selection; "choice", see `choice`; "evaluation", of "chosen", "default" and
        "repeated" the "settings", "seeds" and "orders" of the runs, and "final",
        {metric: [run]}; and the "failures" of both.

    >>> def train(members, checkpoint):
    ...     ends = [[member.setting["lr"]] for member in members]
    ...     names = ("train_loss", "val_loss", "val_accuracy")
    ...     return {"epochs": [1], "metrics": dict.fromkeys(names, ends)}
    >>> settings = [{"lr": 0.1}, {"lr": 0.2}]
    >>> value = study(train, settings, budget=2, seeds=[0, 1], fresh=[2, 3, 4])
    >>> value["choice"]["setting"], value["evaluation"]["chosen"]["seeds"]
    (1, [2, 3, 4])
    """

    def run(runs: Sequence[_Run], name: str) -> Value:
        members = [Member(settings[r.setting], r.seed, r.order) for r in runs]
        return train(members, checkpoint and checkpoint.with_suffix(f".{name}.pt"))

    every = range(len(settings))
    first = seeds if finalists is None else seeds[:1]
    runs = [_Run(i, seed) for i in every for seed in first]
    value = tables(run(runs, "selection"), len(first))
    if finalists is not None:
        best = _ranking(value["metrics"], budget)[:finalists]
        added = [_Run(i, seed) for i in best for seed in seeds[1:]]
        others = tables(run(added, "finalists"), len(seeds) - 1)
        value = _widened(value, best, others)
        runs += added
    chosen = choice(value["metrics"], budget)
    parts: dict[str, list[_Run]] = {}
    parts["chosen"] = [_Run(chosen["setting"], seed) for seed in fresh]
    if budget < len(settings):
        parts["default"] = [_Run(budget, seed) for seed in fresh]
    if repeats:
        pairs = list(zip(chosen["by_seed"], seeds, strict=True))
        orders = range(1, repeats + 1)
        parts["repeated"] = [_Run(*pair, order) for order in orders for pair in pairs]
    evaluated = run([r for part in parts.values() for r in part], "evaluation")
    evaluation = _by_part(parts, evaluated)
    losses = value["metrics"]["train_loss"]
    selected = [losses[r.setting][seeds.index(r.seed)][-1] for r in runs]
    failures = _failures(runs, selected, NOT_FINITE)
    for kind, part in parts.items():
        found = evaluation[kind]["final"]["train_loss"]
        failures += _failures(part, found, f"{kind}: {NOT_FINITE}")
    return {**value, "choice": chosen, "evaluation": evaluation, "failures": failures}


def _by_part(parts: Mapping[str, Sequence[_Run]], value: Value) -> dict[str, Any]:
    """What a record states of the parts of an evaluation. The tables of the value are
    [member], with the runs of one part after those of another."""
    ends = {n: [curve[-1] for curve in t] for n, t in value["metrics"].items()}
    ends |= value.get("flatness", {})
    stated: dict[str, Any] = {}
    first = 0
    for name, runs in parts.items():
        last = first + len(runs)
        stated[name] = {
            "settings": [run.setting for run in runs],
            "seeds": [run.seed for run in runs],
            "orders": [run.order for run in runs],
            "final": {metric: table[first:last] for metric, table in ends.items()},
        }
        first = last
    return stated


def choice(metrics: Mapping[str, Any], budget: int) -> dict[str, Any]:
    """What validation chooses of the first `budget` settings, from curves
    [setting][seed][epoch]: "setting", that of the best mean over the seeds, and
    "by_seed", the best one under each seed.

    >>> curves = [[[0.5], [0.9]], [[0.6], [0.7]]]
    >>> choice({"val_accuracy": curves, "val_loss": curves}, budget=2)
    {'setting': 0, 'by_seed': [1, 0]}
    """
    columns = [list(zip(*ends, strict=True)) for ends in _ends(metrics, budget)]
    by_seed = [_ranked(*pair)[0] for pair in zip(*columns, strict=True)]
    return {"setting": _ranking(metrics, budget)[0], "by_seed": by_seed}


def _ranking(metrics: Mapping[str, Any], budget: int) -> list[int]:
    return _ranked(*[[_mean(row) for row in ends] for ends in _ends(metrics, budget)])


def _ranked(accuracies: Curve, losses: Curve) -> list[int]:
    """Settings by accuracy, ties by lower loss; those that lack one of them last."""

    def key(i: int) -> tuple[float, float]:
        accuracy, loss = accuracies[i], losses[i]
        lacking = accuracy is None or loss is None
        return (math.inf, 0.0) if lacking else (-accuracy, loss)  # type: ignore

    return sorted(range(len(losses)), key=key)


def _ends(metrics: Mapping[str, Any], budget: int) -> list[list[Curve]]:
    """Validation accuracies and losses at the end, [setting][seed]."""
    return [
        [[curve[-1] for curve in row] for row in metrics[name][:budget]]
        for name in ("val_accuracy", "val_loss")
    ]


def _mean(values: Curve) -> float | None:
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return None
    return round(sum(numbers) / len(numbers), 6)  # equal means tie


def _failures(runs: Sequence[_Run], losses: Curve, error: str) -> list[dict[str, Any]]:
    return [
        {"setting": r.setting, "seed": r.seed, "error": error}
        for r, loss in zip(runs, losses, strict=True)
        if loss is None
    ]


def tables(value: Value, count: int) -> Value:
    """A value whose tables are [member], as one of [setting][seed] with `count` seeds.

    >>> tables({"metrics": {"test_loss": [1, 2, 3, 4]}}, count=2)
    {'metrics': {'test_loss': [[1, 2], [3, 4]]}}
    """

    def rows(members: Sequence[Any]) -> list[Any]:
        return [list(members[i : i + count]) for i in range(0, len(members), count)]

    return _mapped([value], lambda parts: rows(*parts))


def flat(value: Value) -> Value:
    """A value whose tables are [setting][seed], as one of [member].

    >>> flat({"metrics": {"test_loss": [[1, 2], [3, 4]]}})
    {'metrics': {'test_loss': [1, 2, 3, 4]}}
    """
    return _mapped([value], lambda parts: [run for row in parts[0] for run in row])


def joined(values: Sequence[Value], order: Sequence[int]) -> Value:
    """Values whose tables are [member], as one. In all of them one after another, what
    is at place k belongs to member `order[k]`.

    >>> parts = [{"metrics": {"test_loss": row}} for row in ([5, 7], [6])]
    >>> joined(parts, order=[0, 2, 1])
    {'metrics': {'test_loss': [5, 6, 7]}}
    """

    def put(parts: Sequence[Any]) -> list[Any]:
        rows = [row for part in parts for row in part]
        places = dict(zip(order, rows, strict=True))
        return [places[i] for i in range(len(rows))]

    return _mapped(values, put)


def _widened(value: Value, places: Sequence[int], others: Value) -> Value:
    """Tables [setting][seed] with further seeds for the settings at `places`."""

    def put(parts: Sequence[Any]) -> list[Any]:
        table, rows = parts
        added = dict(zip(places, rows, strict=True))
        last = rows[0][0]
        nothing = [None] * len(last) if isinstance(last, list) else None
        empty = [nothing] * len(rows[0])
        return [[*row, *added.get(i, empty)] for i, row in enumerate(table)]

    return _mapped([value, others], put)


def _mapped(values: Sequence[Value], change: Callable[[list[Any]], Any]) -> Value:
    """The first value, with what `change` makes of each table of all values."""
    first = dict(values[0])
    for kind in first.keys() & _KINDS:
        names = first[kind]
        first[kind] = {n: change([value[kind][n] for value in values]) for n in names}
    return first
