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
from flatnb.experiments.tasks import Sensing
from flatnb.results.sweep import Job

METRICS = ("distance", "train_error", "val_error")
_WIDTHS = (0.08, 0.04, 0.02, 0.01)  # of the noise: the published one, three narrower
RULES: dict[str, list[dict[str, Any]]] = {
    "GD": [{"lr": 0.0025, "sigma": 0.0, "sides": 1}],
    "WeightNoise": [{"lr": 0.0025, "sigma": s, "sides": 1} for s in _WIDTHS],
    "NSO": [{"lr": 0.0025, "sigma": s, "sides": 2} for s in _WIDTHS],
}


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
    """Run all rules on each seed's problem: {"metrics": {name: [rule][seed][epoch]}}.

    >>> sizes = dict(d=6, rank=1, m=40)
    >>> train(rules=RULES["GD"], seeds=[0], epochs=4, every=2, **sizes)["epochs"]
    [0, 2, 4]
    """
    metrics: dict[str, list[list[Curve]]] = {
        name: [[] for _ in rules] for name in METRICS
    }
    chosen = [sensing.Rule(**rule) for rule in rules]
    for seed in seeds:
        problem = sensing.problem(d, rank, m, seed=seed, device=device())
        run = sensing.descend(problem, chosen, epochs=epochs, seed=seed, every=every)
        for name, table in metrics.items():
            for row, curve in zip(table, run[name], strict=True):
                row.append(numbers(curve.tolist()))
    return result(run["epochs"].tolist(), metrics)


def methods(_: Sensing) -> list[str]:
    """The algorithms that are compared."""
    return list(RULES)


def experiment(task: Sensing, method: str) -> Experiment:
    """The experiment of one algorithm."""
    rules, seeds = RULES[method], list(range(task.seeds))
    sizes = {"d": task.d, "rank": task.rank, "m": task.m}
    name, call = f"sensing/d{task.d}-r{task.rank}", f"{__name__}:train"
    runs = {**sizes, "epochs": task.epochs, "every": task.interval}
    short = {**sizes, "epochs": 50, "every": 50}
    passes = int(rules[0]["sides"])
    return Experiment(
        name=f"{name}/{method}",
        cost=task.cost.times(passes * len(rules)),
        job=Job(call, {**runs, "rules": rules, "seeds": seeds}),
        sample=Job(call, {**short, "rules": rules[:1], "seeds": [0]}),
        task={
            **sizes,
            "name": name,
            "epochs": task.epochs,
            "step": "full batch",
            "init_scale": 1.0,
            "dtype": "float32",
            "distance": "squared, relative to the target's",
        },
        method=method,
        passes=passes,
        settings=rules,
        seeds=seeds,
        space="the published setting first; the others show what the noise does",
        budget=1,
        scope=None,
        sampled=METRICS,
    )
