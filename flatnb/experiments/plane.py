"""Two classes in the plane: three sets, three shares of flipped labels, every method.

The perceptron, its training and the equal grid are those of M. J. Holland and K.
Nakatani, "Soft ascent-descent as a stable and flexible alternative to flooding",
NeurIPS 2024 (their code: 4 hidden layers of 500, BatchNorm, Adam at 1e-3, batches of
50, 500 epochs, 15 trials with these seeds, 40 values). All settings and seeds of a
method train as one ensemble, or as few as memory allows, and see the same order of
batches; points, labels and initial weights are each seed's own.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from flatnb import models
from flatnb.data import plane, stack
from flatnb.experiments.experiment import Cost, Experiment
from flatnb.experiments.runner import Training, Value, train_members
from flatnb.experiments.tuning import ADAM, METHODS, Design, Setting, Tuned
from flatnb.results.sweep import Job

LR = 1e-3  # of the designs with one learning rate
_FIXED = dict(hidden=4, batch=50, n_train=100, n_val=100, schedule="constant")
# numpy.random.default_rng(17264272852322).integers(1, 2**20, 15), as in their code
SEEDS = [
    *(17716, 961412, 457707, 491380, 1029701, 288898, 594697, 624232),
    *(528913, 756479, 377024, 986748, 876711, 123711, 458350),
]


@dataclass(frozen=True, kw_only=True)
class Plane:
    """Two classes in the plane, see `flatnb.data.plane`, and a perceptron."""

    data: str = "gaussian"
    noise: float = 0.05
    scale: str  # a name for width, epochs, budget and seeds
    width: int
    epochs: int
    every: int = 50  # epochs from one evaluation to the next
    n_test: int = 2_000
    budget: int  # settings per method
    seeds: int
    tuned: bool = False  # the learning rate, too; else LR for all
    equal_passes: bool = False  # p passes per step: 1/p of the epochs


_PAPER = Plane(scale="paper", width=500, epochs=500, n_test=20_000, budget=40, seeds=15)
# As many settings and seeds, in an hour and a quarter of one core for all methods and
# sets: 200 epochs bring ERM's training loss as low as 500 do at a width of 16.
NARROW = replace(_PAPER, scale="narrow", width=32, epochs=200, n_test=2_000)
# The paper's net on a CPU, for an hour: every fourth value, 5 seeds, and one set.
_COARSE = replace(_PAPER, scale="coarse", n_test=2_000, budget=10, seeds=5)
_ON_ALL_SETS = (
    (NARROW, Cost(1, 0.5, 0.6)),
    (_PAPER, Cost(3, 0.7, 75.0)),
    (replace(NARROW, tuned=True), Cost(6, 0.5, 0.6)),
    (replace(NARROW, equal_passes=True), Cost(7, 0.5, 0.6)),
    (replace(_PAPER, tuned=True), Cost(7, 0.7, 75.0)),
)


def experiments() -> Iterator[Experiment]:
    """All experiments in the plane."""
    tasks = [(_COARSE, Cost(2, 0.5, 10.0))]
    for scale, cost in _ON_ALL_SETS:
        sets = itertools.product(("gaussian", "sinusoid", "spiral"), (0.0, 0.05, 0.1))
        tasks += [(replace(scale, data=data, noise=p), cost) for data, p in sets]
    for task, cost in tasks:
        for method in methods(task):
            yield experiment(task, method, cost)


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
    checkpoint: Path | None = None,
) -> Value:
    """Train the perceptron under each setting and seed: `runner.train_members`.

    >>> sizes = dict(data="spiral", noise=0.0, n_test=40, width=4, epochs=2, every=2)
    >>> settings = METHODS["SAM"].settings(3, 0.001)
    >>> value = train(method="SAM", settings=settings, seeds=[0, 1], **sizes)
    >>> [len(row) for row in value["flatness"]["trace"]]
    [2, 2, 2]
    """
    sets = {s: plane(data, noise=noise, n_test=n_test, seed=s) for s in seeds}
    return train_members(
        lambda: models.mlp(2, width, 4, 2),
        lambda drawn: stack([sets[seed] for seed in drawn]),
        METHODS[method],
        settings,
        seeds,
        Training(epochs, every, 0, optimizer=ADAM, cosine=False, checkpoint=checkpoint),
    )


def experiment(task: Plane, method: Tuned, cost: Cost) -> Experiment:
    """The experiment of one task and method."""
    optimizer = method.optimizer or ADAM
    rates = optimizer.rates if task.tuned else LR
    settings = method.settings(task.budget, rates)
    budget = len(settings)
    default = method.published(optimizer.rates.default)
    if default not in settings:
        settings.append(default)
    epochs = int(task.epochs // (method.passes if task.equal_passes else 1))
    seeds = SEEDS[: task.seeds]
    name = f"plane/{task.data}-{task.noise:g}"
    sizes = {key: getattr(task, key) for key in ("data", "noise", "n_test", "width")}
    sizes["epochs"] = epochs
    design = "tuned" if task.tuned else "grid"
    end = "-equal-passes" if task.equal_passes else ""
    note = "settings past the budget: the published default"
    call = f"{__name__}:train"
    runs = {**sizes, "every": task.every, "method": method.name}
    short = {"epochs": 20, "every": 20, "settings": [settings[budget // 2]]}
    count = method.work(len(settings)) / task.budget * epochs / task.epochs
    return Experiment(
        name=f"{name}/{method.name}/{task.scale}-{design}{end}",
        cost=cost.times(count),
        job=Job(call, {**runs, "settings": settings, "seeds": seeds}),
        sample=Job(call, {**runs, **short, "seeds": seeds[:2]}),
        task={
            **sizes,
            "name": name,
            "scale": task.scale,
            "design": design,
            "budget_unit": "passes" if task.equal_passes else "epochs",
            "optimizer": optimizer.name,
            **_FIXED,
            "note": f"{note}; {method.note}" if method.note else note,
        },
        method=method.name,
        passes=method.passes,
        settings=settings,
        seeds=seeds,
        space=method.described(rates),
        budget=budget,
    )


def methods(task: Plane) -> list[Tuned]:
    """Those that take part; at equal passes, one of one pass has its record already."""
    least = Design.TUNED if task.tuned else Design.ONE_RATE
    if task.scale == "coarse":
        least = Design.PAPER
    return [
        method
        for method in METHODS.values()
        if method.design >= least and not (task.equal_passes and method.passes == 1)
    ]
