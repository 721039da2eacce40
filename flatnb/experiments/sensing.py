"""Matrix sensing: gradient descent, one-sided noise and NSO recover a matrix or do not.

The setting of Zhang, Li and Ju's code: d = 100, rank 5, 2500 measurements, full-batch
steps of 0.0025, noise of 0.08; see `flatnb.data.sensing`. Each seed is a problem, a
start and a noise.
Nothing is tuned: these are the published values, and three narrower noises beside them.
"""

from __future__ import annotations

from typing import Any

import torch

from flatnb.data import sensing
from flatnb.experiments.base import Experiment, finished, number
from flatnb.results import records
from flatnb.results.sweep import Job, Result

SIZES = {"d": 100, "rank": 5, "m": 2500}
EPOCHS, EVERY, SEEDS = 3000, 100, (0, 1, 2, 3, 4)
# Method -> the settings of `sensing.Rule`; the first is the published one.
RULES: dict[str, list[dict[str, float]]] = {
    "GD": [{"lr": 0.0025, "sigma": 0.0, "sides": 1}],
    "WeightNoise": [
        {"lr": 0.0025, "sigma": s, "sides": 1} for s in (0.08, 0.04, 0.02, 0.01)
    ],
    "NSO": [{"lr": 0.0025, "sigma": s, "sides": 2} for s in (0.08, 0.04, 0.02, 0.01)],
}
METRICS = ("train_error", "val_error", "distance")


def train(
    *,
    rules: list[dict[str, Any]],
    seeds: list[int],
    epochs: int,
    every: int,
    d: int,
    rank: int,
    m: int,
    double: bool = False,
) -> dict[str, Any]:
    """Run each rule on each seed's problem, from that seed's start, all rules at once.

    Args:
        double: in float64 instead of float32.

    Returns:
        {"epochs": [...], "metrics": {name: [rule][seed][epoch]}, "threads", "device"}.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float64 if double else torch.float32
    tables: dict[str, list[list[Any]]] = {
        metric: [[] for _ in rules] for metric in METRICS
    }
    done: list[int] = []
    for seed in seeds:
        problem = sensing.problem(d, rank, m, seed=seed, dtype=dtype, device=device)
        run = sensing.descend(
            problem,
            [sensing.Rule(**rule) for rule in rules],
            epochs=epochs,
            seed=seed,
            every=every,
        )
        done = run.epochs.tolist()
        for metric in METRICS:
            for row, curve in zip(tables[metric], getattr(run, metric), strict=True):
                row.append([number(value) for value in curve.tolist()])
    return {
        "epochs": done,
        "metrics": tables,
        "threads": torch.get_num_threads(),
        "device": device,
    }


def experiment(method: str) -> Experiment:
    """The experiment of one algorithm at the published size."""
    rules, seeds = RULES[method], list(SEEDS)
    name = f"sensing/d100-r5/{method}"
    passes = int(rules[0]["sides"])
    given = {"rules": rules, "seeds": seeds, "epochs": EPOCHS, "every": EVERY, **SIZES}
    call = f"{__name__}:train"
    minutes = 1.0 + 1.5 * passes * len(rules)
    job = Job(call, given, 60 * minutes)
    few = {**given, "rules": rules[:1], "seeds": seeds[:1], "epochs": 50, "every": 50}
    sample = Job(call, few)
    task = {
        **SIZES,
        "name": "sensing/d100-r5",
        "epochs": EPOCHS,
        "step": "full batch",
        "init_scale": 1.0,
        "dtype": "float32",
        "distance": "squared, relative to the target's",
    }

    def record(results: list[Result]) -> dict[str, Any]:
        whole, sampled = finished(results)
        metrics = {
            f"metrics.{m}.0.0.-1": sampled["metrics"][m][0][0][-1] for m in METRICS
        }
        return {
            "schema": 1,
            "name": name,
            "task": task,
            "method": method,
            "passes": passes,
            "settings": rules,
            "seeds": seeds,
            "final": {
                m: [[c[-1] for c in row] for row in t]
                for m, t in whole["metrics"].items()
            },
            "curves": {
                "epochs": whole["epochs"],
                "setting": [0] * len(seeds),
                "metrics": {m: table[0] for m, table in whole["metrics"].items()},
            },
            "selection": {
                "space": "the published setting first; the others show what the noise does",
                "budget": 1,
                "split": None,
                "metric": None,
                "ties": None,
                "per": "task",
                "chosen": [0] * len(seeds),
            },
            "failures": [
                {"setting": i, "seed": seeds[j], "error": "diverged"}
                for i, row in enumerate(whole["metrics"]["distance"])
                for j, curve in enumerate(row)
                if curve[-1] is None
            ],
            "sample": {
                "call": call,
                "settings": few,
                "metrics": metrics,
                "tolerance": {
                    path: 0.02 * abs(v or 0.0) for path, v in metrics.items()
                },
            },
            "provenance": {
                **records.provenance(),
                "threads": whole["threads"],
                "device": whole["device"],
                "seconds": sum(result.seconds for result in results),
            },
        }

    return Experiment(
        name=name,
        title=f"{method} on matrix sensing, d=100, rank 5, {EPOCHS} epochs",
        value=2,
        gpu_minutes=0.5,
        cpu_minutes=minutes,
        jobs=lambda: [job, sample],
        record=record,
    )


def experiments() -> list[Experiment]:
    """All three algorithms."""
    return [experiment(method) for method in RULES]
