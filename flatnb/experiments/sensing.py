"""Matrix sensing: gradient descent, one-sided noise and NSO recover a matrix or do not.

The setting of Zhang, Li and Ju's code, see `flatnb.data.sensing`. Each seed is a
problem, a start and a noise. Nothing is tuned: the published values, and three narrower
noises.
"""

from __future__ import annotations

from typing import Any

from flatnb.data import sensing
from flatnb.experiments.experiment import Experiment
from flatnb.experiments.runner import Curve, Value, device, numbers, result
from flatnb.experiments.tasks import TASKS, Sensing
from flatnb.results.sweep import Job

METRICS = ("distance", "train_error", "val_error")


def train(
    *,
    rules: list[dict[str, Any]],
    seeds: list[int],
    epochs: int,
    every: int,
    d: int,
    rank: int,
    m: int,
) -> Value:
    """Run each rule on each seed's problem, from that seed's start, all rules at once.

    Returns:
        "epochs" and "metrics", {name: [rule][seed][epoch]}.

    >>> rules = [{"lr": 0.0025, "sigma": 0.0, "sides": 1}]
    >>> train(rules=rules, seeds=[0], epochs=4, every=2, d=6, rank=1, m=40)["epochs"]
    [0, 2, 4]
    """
    metrics: dict[str, list[list[Curve]]] = {
        name: [[] for _ in rules] for name in METRICS
    }
    for seed in seeds:
        problem = sensing.problem(d, rank, m, seed=seed, device=device())
        run = sensing.descend(
            problem,
            [sensing.Rule(**rule) for rule in rules],
            epochs=epochs,
            seed=seed,
            every=every,
        )
        for name, table in metrics.items():
            for row, curve in zip(table, getattr(run, name), strict=True):
                row.append(numbers(curve.tolist()))
    return result(run.epochs.tolist(), metrics)


def experiment(task: Sensing, method: str) -> Experiment:
    """The experiment of one algorithm."""
    rules, seeds = task.rules[method], list(range(task.seeds))
    sizes = {"d": task.d, "rank": task.rank, "m": task.m}
    shared = {**sizes, "rules": rules, "seeds": seeds}
    passes = int(rules[0]["sides"])
    minutes = 1.0 + task.cost.cpu_minutes * passes * len(rules)
    call, name = f"{__name__}:train", f"sensing/d{task.d}-r{task.rank}"
    short = {**shared, "rules": rules[:1], "seeds": [0], "epochs": 50, "every": 50}
    whole = {**shared, "epochs": task.epochs, "every": task.interval}
    return Experiment(
        name=f"{name}/{method}",
        title=f"{method} on matrix sensing, d={task.d}, rank {task.rank}, "
        f"{task.epochs} epochs",
        cost=task.cost._replace(cpu_minutes=minutes),
        job=Job(call, whole, 60 * minutes),
        sample=Job(call, short),
        stated={
            "task": {
                **sizes,
                "name": name,
                "epochs": task.epochs,
                "step": "full batch",
                "init_scale": 1.0,
                "dtype": "float32",
                "distance": "squared, relative to the target's",
            },
            "method": method,
            "passes": passes,
            "settings": rules,
            "seeds": seeds,
        },
        space="the published setting first; the others show what the noise does",
        budget=1,
        scope=None,
        sampled=METRICS,
    )


def experiments() -> list[Experiment]:
    """All of matrix sensing."""
    tasks = [task for task in TASKS if isinstance(task, Sensing)]
    return [experiment(task, method) for task in tasks for method in task.rules]
