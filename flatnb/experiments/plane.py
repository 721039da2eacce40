"""Two classes in the plane: three sets, three shares of flipped labels, every method.

The perceptron, its training and the equal grid are those of M. J. Holland and K.
Nakatani, "Soft ascent-descent as a stable and flexible alternative to flooding",
NeurIPS 2024 (their code: 4 hidden layers of 500, BatchNorm, Adam at 1e-3, batches of
50, 500 epochs, 15 trials with these seeds, 40 values). All settings and seeds of a
method train as one ensemble, or as few as memory allows. All members see the same order
of batches; points, labels and initial weights are each seed's own.

Two designs. "grid" has the paper's learning rate: Flooding, IFlood, SoftAD and SAM the
same 40 values, the others 40 settings of their own space. In "tuned" the learning rate
is one of the hyperparameters, and the number of settings is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from flatnb import models
from flatnb.data import Data, plane, stack
from flatnb.experiments import spaces
from flatnb.experiments.base import Experiment, assemble, finished
from flatnb.experiments.ensembles import device_name, train_members
from flatnb.experiments.spaces import Setting
from flatnb.results.sweep import Job, Result

SETS = ("gaussian", "sinusoid", "spiral")
NOISES = (0.0, 0.05, 0.1)
# numpy.random.default_rng(17264272852322).integers(1, 2**20, 15), as in the paper's
# code.
SEEDS = (
    17716,
    961412,
    457707,
    491380,
    1029701,
    288898,
    594697,
    624232,
    528913,
    756479,
    377024,
    986748,
    876711,
    123711,
    458350,
)
LR = 1e-3


@dataclass(frozen=True)
class Scale:
    """How large: net, training, number of settings and seeds, and minutes of one 1-pass method."""

    name: str
    width: int
    epochs: int
    every: int
    n_test: int
    budget: int
    seeds: int
    gpu_minutes: float
    cpu_minutes: float


PAPER = Scale("paper", 500, 500, 50, 20_000, 40, 15, 0.7, 75.0)
# As many settings and seeds as the paper, in an hour and a quarter of one core for all
# methods and sets: 32 wide, 200 epochs (which bring ERM's training loss as low as 500
# epochs do at 16 wide).
NARROW = Scale("narrow", 32, 200, 50, 2_000, 40, 15, 0.5, 0.6)
# The paper's net on a CPU: every fourth value, 5 seeds.
COARSE = Scale("coarse", 500, 500, 50, 2_000, 10, 5, 0.5, 10.0)


# First the four of the equal grid and what they are measured by. The grids stop before
# SGD: at one learning rate, of Adam, there is nothing that it would be.
METHODS = (
    "ERM",
    "Flooding",
    "IFlood",
    "SoftAD",
    "SAM",
    "NSO",
    "WeightNoise",
    "GNP",
    "ASAM",
    "FAM",
    "AdaFlood",
    "USAM",
    "RSAM",
    "SWA",
    "EMA",
    "AdamW",
    "SGD",
)


def train(
    *,
    data: str,
    noise: float,
    n_test: int,
    width: int,
    epochs: int,
    every: int,
    method: str,
    settings: list[Setting],
    seeds: list[int],
) -> dict[str, Any]:
    """Train the perceptron under each setting and seed, see `flatnb.data.plane`.

    Returns:
        {"epochs": [...], "metrics": {name: [setting][seed][epoch]},
        "flatness": {name: [setting][seed]}, "threads", "device"}.
    """

    @cache
    def of(seed: int) -> Data:
        return plane(data, noise=noise, n_test=n_test, seed=seed)

    members = [(setting, seed) for setting in settings for seed in seeds]
    done, curves, measured = train_members(
        lambda: models.mlp(2, width, 4, 2),
        lambda part: stack([of(members[i][1]) for i in part]),
        method,
        [setting for setting, _ in members],
        [seed for _, seed in members],
        optimizer="adam",
        epochs=epochs,
        every=every,
        seed=0,
    )

    def tables(found: Mapping[str, list[Any]]) -> dict[str, list[list[Any]]]:
        n = len(seeds)
        return {
            m: [rows[k : k + n] for k in range(0, len(rows), n)]
            for m, rows in found.items()
        }

    return {
        "epochs": done,
        "metrics": tables(curves),
        "flatness": tables(measured),
        "threads": torch.get_num_threads(),
        "device": device_name(),
    }


def experiment(
    data: str,
    noise: float,
    method: str,
    scale: Scale,
    design: str,
    *,
    unit: str,
    value: int,
) -> Experiment:
    """The experiment of one set, share of noise, method, scale and design.

    Args:
        design: "grid", one learning rate; or "tuned", the learning rate among the
            hyperparameters.
        unit: "epochs", all methods train for the scale's epochs; or "passes", a method
            of p passes a step trains for 1/p of them.
    """
    end = "-equal-passes" if unit == "passes" else ""
    name = f"plane/{data}-{noise:g}/{method}/{scale.name}-{design}{end}"
    passes = spaces.passes(method)
    epochs = int(scale.epochs // passes) if unit == "passes" else scale.epochs
    if design == "grid":
        settings = spaces.fixed_rate(method, scale.budget, LR)
        space = spaces.described(method, LR)
    else:
        rates = spaces.RATES["sgd" if method == "SGD" else "adam"]
        settings = spaces.space(method, scale.budget, rates)
        space = spaces.described(method, rates)
    budget = len(settings)
    default = spaces.default(method, 0.1 if method == "SGD" else LR)
    settings += [default] if default not in settings else []
    seeds = list(SEEDS[: scale.seeds])
    given = {
        "data": data,
        "noise": noise,
        "n_test": scale.n_test,
        "width": scale.width,
        "epochs": epochs,
        "every": scale.every,
        "method": method,
    }
    share = spaces.work(method, len(settings)) / scale.budget * epochs / scale.epochs
    note = "settings past the budget: the published default"
    if method == "AdaFlood":
        note += f"; {spaces.AUXILIARY}"
    task = {
        **{key: given[key] for key in ("data", "noise", "n_test", "width", "epochs")},
        "name": f"plane/{data}-{noise:g}",
        "scale": scale.name,
        "design": design,
        "budget_unit": unit,
        "hidden": 4,
        "batch": 50,
        "n_train": 100,
        "n_val": 100,
        "optimizer": {"AdamW": "AdamW", "SGD": "SGD, momentum 0.9"}.get(method, "Adam"),
        "schedule": "constant",
        "note": note,
    }
    call = f"{__name__}:train"
    cost = 60 * share * scale.cpu_minutes
    job = Job(call, {**given, "settings": settings, "seeds": seeds}, cost)
    few = {**given, "epochs": 20, "every": 20, "settings": [settings[budget // 2]]}
    sample = Job(call, {**few, "seeds": seeds[:2]}, cost=1.0)

    def record(results: list[Result]) -> dict[str, Any]:
        whole, sampled = finished(results)
        return assemble(
            name=name,
            task=task,
            method=method,
            passes=passes,
            settings=settings,
            seeds=seeds,
            budget=budget,
            space=space,
            value=whole,
            sample=sample,
            sampled=sampled,
            seconds=sum(result.seconds for result in results),
        )

    return Experiment(
        name=name,
        title=f"{method} on {data} with {noise:.0%} flipped labels, {scale.name} {design}",
        value=value,
        gpu_minutes=scale.gpu_minutes * share,
        cpu_minutes=scale.cpu_minutes * share,
        jobs=lambda: [job, sample],
        record=record,
    )


def experiments() -> list[Experiment]:
    """All of this task: narrow first, since a CPU can make them, then the paper's size."""
    found = []
    for value, scale, design, unit, methods in (
        (1, NARROW, "grid", "epochs", METHODS[:11]),
        (2, COARSE, "grid", "epochs", METHODS[:5]),
        (3, PAPER, "grid", "epochs", METHODS[:11]),
        (6, NARROW, "tuned", "epochs", METHODS),
        (7, NARROW, "grid", "passes", METHODS[:11]),
        (7, PAPER, "tuned", "epochs", METHODS),
    ):
        for data in SETS:
            for noise in NOISES:
                # The paper's net on a CPU: one set is what an hour allows.
                if scale is COARSE and (data, noise) != ("gaussian", 0.05):
                    continue
                for method in methods:
                    if unit == "passes" and spaces.passes(method) == 1:
                        continue  # its record for equal epochs is that for equal passes
                    found.append(
                        experiment(
                            data, noise, method, scale, design, unit=unit, value=value
                        )
                    )
    return found
