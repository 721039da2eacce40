"""Matrix sensing: gradient descent, one-sided noise and NSO recover a matrix or do not.

As in Zhang, Li and Ju's code, see `flatnb.data.sensing`. A seed is a problem, a start
and a noise. Nothing is tuned: the published values, and three narrower noises.
"""

from collections.abc import Iterator
from typing import Any

import torch

from flatnb.data import sensing
from flatnb.experiments.experiment import Cost, Experiment
from flatnb.experiments.runner import Value, device, result
from flatnb.results.sweep import Job

SIZES = {"d": 100, "rank": 5, "m": 2500, "epochs": 3000}  # the published ones
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
    chosen = [sensing.Rule(**rule) for rule in rules]
    runs = []
    for seed in seeds:
        problem = sensing.problem(d, rank, m, seed=seed, device=device())
        run = sensing.descend(problem, chosen, epochs=epochs, seed=seed, every=every)
        runs.append(run)
    metrics = {
        name: torch.stack([run[name] for run in runs], dim=1) for name in METRICS
    }
    return result(run["epochs"].tolist(), metrics)


def experiments() -> Iterator[Experiment]:
    """The experiment of each algorithm."""
    for method in RULES:
        yield experiment(method, SIZES)


def experiment(method: str, sizes: dict[str, int]) -> Experiment:
    """The experiment of one algorithm, on problems of one size."""
    rules = RULES[method]
    seeds = [0, 1, 2, 3, 4]
    name = f"sensing/d{sizes['d']}-r{sizes['rank']}"
    call = f"{__name__}:train"
    short = {**sizes, "epochs": 50, "every": 50}
    passes = int(rules[0]["sides"])
    return Experiment(
        name=f"{name}/{method}",
        cost=Cost(2, 0.1, 1.6).times(passes * len(rules)),
        job=Job(call, {**sizes, "every": 100, "rules": rules, "seeds": seeds}),
        sample=Job(call, {**short, "rules": rules[:1], "seeds": [0]}),
        task={
            **sizes,
            "name": name,
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
        tuned=False,
        sampled=METRICS,
    )
