"""Two classes in the plane: three sets, three shares of flipped labels, every method.

The perceptron, its training and the equal grid are those of M. J. Holland and K.
Nakatani, "Soft ascent-descent as a stable and flexible alternative to flooding",
NeurIPS 2024 (their code: 4 hidden layers of 500, BatchNorm, Adam at 1e-3, batches of
50, 500 epochs, 15 trials with these seeds, 40 values). All settings and seeds of a
method train as one ensemble, or as few as memory allows, and see the same order of
batches; points, labels and initial weights are each seed's own.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from flatnb import models
from flatnb.data import Data, plane, stack
from flatnb.experiments.experiment import Experiment
from flatnb.experiments.runner import Training, Value, clear, train_members
from flatnb.experiments.tasks import TASKS, Cost, Plane
from flatnb.experiments.tuning import ADAM, METHODS, Design, Setting, Tuned
from flatnb.results.sweep import Job

LR = 1e-3  # of the designs with one learning rate
# numpy.random.default_rng(17264272852322).integers(1, 2**20, 15), as in their code
SEEDS = [
    *(17716, 961412, 457707, 491380, 1029701, 288898, 594697, 624232),
    *(528913, 756479, 377024, 986748, 876711, 123711, 458350),
]


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
    """Train the perceptron under each setting and seed, see `flatnb.data.plane`.

    Returns:
        As `runner.train_members`.

    >>> sizes = dict(noise=0.0, n_test=40, width=4, epochs=2, every=2)
    >>> settings = METHODS["SAM"].settings(3, 0.001)
    >>> value = train(
    ...     data="spiral", method="SAM", settings=settings, seeds=[0, 1], **sizes
    ... )
    >>> [len(row) for row in value["flatness"]["trace"]]
    [2, 2, 2]
    """

    @cache
    def examples(seed: int) -> Data:
        return plane(data, noise=noise, n_test=n_test, seed=seed)

    value = train_members(
        lambda: models.mlp(2, width, 4, 2),
        lambda seeds: stack([examples(seed) for seed in seeds]),
        METHODS[method],
        settings,
        seeds,
        ADAM,
        Training(epochs, every, 0, cosine=False, checkpoint=checkpoint),
    )
    clear(checkpoint)
    return value


def experiment(task: Plane, method: Tuned) -> Experiment:
    """The experiment of one task and method."""
    optimizer = method.optimizer or ADAM
    rates = optimizer.rates if task.tuned else LR
    settings = method.settings(task.budget, rates)
    budget, default = len(settings), method.published(optimizer.rates.default)
    settings += [default] if default not in settings else []
    epochs = int(task.epochs // (method.passes if task.equal_passes else 1))
    names = ("data", "noise", "n_test", "width")
    sizes = {name: getattr(task, name) for name in names} | {"epochs": epochs}
    design = "tuned" if task.tuned else "grid"
    note = "settings past the budget: the published default"
    about = {
        **sizes,
        "name": f"plane/{task.data}-{task.noise:g}",
        "scale": task.scale,
        "design": design,
        "budget_unit": "passes" if task.equal_passes else "epochs",
        "hidden": 4,
        "batch": 50,
        "n_train": 100,
        "n_val": 100,
        "optimizer": optimizer.name,
        "schedule": "constant",
        "note": f"{note}; {method.note}" if method.note else note,
    }
    sizes |= {"every": task.interval, "method": method.name}
    runs = method.work(len(settings)) / task.budget * epochs / task.epochs
    minutes = task.cost.cpu_minutes * runs
    call, seeds = f"{__name__}:train", SEEDS[: task.seeds]
    whole = {**sizes, "settings": settings, "seeds": seeds}
    short = {"epochs": 20, "every": 20, "settings": [settings[budget // 2]]}
    end = "-equal-passes" if task.equal_passes else ""
    return Experiment(
        name=f"{about['name']}/{method.name}/{task.scale}-{design}{end}",
        title=f"{method.name} on {task.data} with {task.noise:.0%} flipped labels, "
        f"{task.scale} {design}",
        cost=Cost(task.cost.value, task.cost.gpu_minutes * runs, minutes),
        job=Job(call, whole, 60 * minutes),
        sample=Job(call, {**sizes, **short, "seeds": seeds[:2]}),
        stated={
            "task": about,
            "method": method.name,
            "passes": method.passes,
            "settings": settings,
            "seeds": seeds,
        },
        space=method.described(rates),
        budget=budget,
    )


def takes_part(task: Plane, method: Tuned) -> bool:
    """Whether there is an experiment of this task and method."""
    if task.scale == "coarse":
        return method.design >= Design.PAPER
    if task.equal_passes and method.passes == 1:
        return False  # its record for equal epochs is that for equal passes
    return method.design >= (Design.TUNED if task.tuned else Design.ONE_RATE)


def experiments() -> list[Experiment]:
    """All of the plane."""
    tasks = [task for task in TASKS if isinstance(task, Plane)]
    return [
        experiment(task, method)
        for task in tasks
        for method in METHODS.values()
        if takes_part(task, method)
    ]
