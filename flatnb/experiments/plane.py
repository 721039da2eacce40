"""Two classes in the plane: three sets, three shares of flipped labels, every method.

The perceptron, its training and the equal grid are those of M. J. Holland and K.
Nakatani, "Soft ascent-descent as a stable and flexible alternative to flooding",
NeurIPS 2024 (their code: 4 hidden layers of 500, BatchNorm, Adam at 1e-3, batches of
50, 500 epochs, 15 trials with these seeds, 40 values). All settings and seeds of a
method train as one ensemble, or as few as memory allows. Points, labels, initial
weights, and the order of batches are each seed's own.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flatnb import models
from flatnb.data import Data, plane, stack
from flatnb.experiments import runner
from flatnb.experiments import study as selection
from flatnb.experiments.experiment import Cost, Experiment
from flatnb.experiments.runner import Member, Training, Value
from flatnb.experiments.tuning import ADAM, METHODS, Design, Setting, Tuned
from flatnb.results.sweep import Job

LR = 1e-3  # of the designs with one learning rate
_FIXED = dict(hidden=4, batch=50, n_train=100, n_val=100, schedule="constant")
# numpy.random.default_rng(17264272852322).integers(1, 2**20, 15), as in their code
SEEDS = [
    *(17716, 961412, 457707, 491380, 1029701, 288898, 594697, 624232),
    *(528913, 756479, 377024, 986748, 876711, 123711, 458350),
]
FRESH = range(30_000, 31_000)  # of the evaluation


@dataclass(frozen=True, kw_only=True)
class Plane:
    """A task: two classes in the plane, see `flatnb.data.plane`, and a perceptron.

    Args:
        data, noise: the set of points, and the share of its labels that are flipped.
        scale: a name for width, epochs, budget and seeds; the record's name has it.
        width: of the four hidden layers.
        epochs: of every run.
        every: epochs from one evaluation to the next.
        n_test: test points.
        budget: settings per method.
        seeds: how many the selection has.
        fresh: how many the fresh runs have.
        repeats: how often selected runs train again, in other orders of batches.
        tuned: whether the learning rate is searched, too; else all have `LR`.
        equal_passes: whether a method of p passes per step has 1/p of the epochs.
        cosine: whether the learning rate falls to zero; else it is constant.
    """

    data: str = "gaussian"
    noise: float = 0.05
    scale: str
    width: int
    epochs: int
    every: int = 100
    n_test: int = 20_000
    budget: int
    seeds: int
    fresh: int
    repeats: int = 0
    tuned: bool = False
    equal_passes: bool = False
    cosine: bool = False


_KINDS = ("gaussian", "sinusoid", "spiral")
_PAPER = Plane(scale="paper", width=500, epochs=500, budget=40, seeds=15, fresh=15)
# As many settings and seeds, in two hours of one core for all methods and sets: 200
# epochs bring ERM's training loss as low as 500 do at a width of 16.
NARROW = replace(_PAPER, scale="narrow", width=32, epochs=200, fresh=60, repeats=2)
# The paper's net on a CPU, an hour of one core per set: every fourth value, 5 seeds, and
# one set of each kind.
_COARSE = replace(_PAPER, scale="coarse", budget=10, seeds=5)
_COARSE_METHODS = ("ERM", "Flooding", "SoftAD", "SAM", "EMA")
_ON_ALL_SETS = (
    (replace(NARROW, tuned=True), Cost(1, 0.05, 1.0)),
    (replace(NARROW, tuned=True, cosine=True), Cost(2, 0.05, 1.0)),
    (replace(NARROW, tuned=True, equal_passes=True), Cost(2, 0.05, 1.0)),
    (replace(NARROW, tuned=True, equal_passes=True, cosine=True), Cost(2, 0.05, 1.0)),
    (NARROW, Cost(3, 0.05, 1.0)),
    (_PAPER, Cost(4, 1.5, 75.0)),
    (replace(_PAPER, tuned=True), Cost(7, 1.5, 75.0)),
)


def experiments() -> Iterator[Experiment]:
    """All experiments in the plane."""
    tasks = [
        (replace(_COARSE, data=data, cosine=cosine), Cost(3, 0.2, 10.0))
        for cosine in (False, True)
        for data in _KINDS
    ]
    for scale, cost in _ON_ALL_SETS:
        sets = itertools.product(_KINDS, (0.0, 0.05, 0.1))
        tasks += [(replace(scale, data=data, noise=p), cost) for data, p in sets]
    for task, cost in tasks:
        for method in methods(task):
            yield experiment(task, method, cost)


def train(
    *,
    settings: list[Setting],
    seeds: list[int],
    checkpoint: Path | None = None,
    **task: Any,
) -> Value:
    """Train the perceptron under each setting and seed: `runner.train_members`, with
    tables [setting][seed]. `task` is as in `study`.

    >>> sizes = dict(data="spiral", noise=0.0, n_test=40, width=4, epochs=2, every=2)
    >>> settings = METHODS["SAM"].settings(3, 0.001)
    >>> value = train(method="SAM", settings=settings, seeds=[0, 1], **sizes)
    >>> [len(row) for row in value["flatness"]["trace"]]
    [2, 2, 2]
    """
    members = [Member(setting, seed) for setting in settings for seed in seeds]
    return selection.tables(_trainer(**task)(members, checkpoint), len(seeds))


def study(
    *,
    settings: list[Setting],
    budget: int,
    seeds: list[int],
    fresh: list[int],
    repeats: int = 0,
    checkpoint: Path | None = None,
    **task: Any,
) -> Value:
    """Select a setting and evaluate it: `flatnb.experiments.study`. `task` is data,
    noise and n_test, of `flatnb.data.plane`; width, epochs, every, the method, and cosine."""
    return selection.study(
        _trainer(**task),
        settings,
        budget=budget,
        seeds=seeds,
        fresh=fresh,
        repeats=repeats,
        checkpoint=checkpoint,
    )


def _trainer(
    *,
    data: str,
    noise: float,
    n_test: int,
    width: int,
    epochs: int,
    every: int,
    method: str,
    cosine: bool = False,
) -> Callable[[Sequence[Member], Path | None], Value]:
    def of(members: Sequence[Member]) -> Data:
        sets = {member.seed: None for member in members}
        made = {s: plane(data, noise=noise, n_test=n_test, seed=s) for s in sets}
        return stack([_in_order(made[member.seed], member) for member in members])

    def run(members: Sequence[Member], checkpoint: Path | None) -> Value:
        return runner.train_members(
            partial(models.mlp, 2, width, 4, 2),
            of,
            METHODS[method],
            members,
            Training(
                epochs, every, 0, optimizer=ADAM, cosine=cosine, checkpoint=checkpoint
            ),
        )

    return run


def _in_order(data: Data, member: Member) -> Data:
    """The training examples in a member's order, so that what an ensemble takes as one
    batch is another one for each of its members. Order k is the k-th permutation that
    the seed draws, from 0: of a larger seed, PyTorch would use the last 32 bits only."""
    generator = torch.Generator().manual_seed(member.seed)
    for _ in range(member.order + 1):
        order = torch.randperm(len(data.train), generator=generator)
    return replace(data, train=data.train[order])


def experiment(task: Plane, method: Tuned, cost: Cost) -> Experiment:
    """The experiment of one task and one method.

    >>> task = replace(NARROW, data="spiral", tuned=True)
    >>> experiment(task, METHODS["SAM"], Cost(1, 0.05, 1.0)).name
    'plane/spiral-0.05/SAM/narrow-tuned'
    """
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
    end = "-equal-passes" * task.equal_passes + "-cosine" * task.cosine
    note = "settings past the budget: the published default"
    runs = {**sizes, "every": task.every, "method": method.name}
    runs |= {"cosine": True} if task.cosine else {}
    short = {"epochs": 20, "every": 20, "settings": [settings[budget // 2]]}
    studied = {"settings": settings, "budget": budget, "seeds": seeds}
    studied |= {"fresh": list(FRESH[: task.fresh]), "repeats": task.repeats}
    count = method.work(len(settings)) / task.budget * epochs / task.epochs
    return Experiment(
        name=f"{name}/{method.name}/{task.scale}-{design}{end}",
        cost=cost.times(count),
        job=Job(f"{__name__}:study", {**runs, **studied}),
        sample=Job(f"{__name__}:train", {**runs, **short, "seeds": seeds[:2]}),
        task={
            **sizes,
            "name": name,
            "scale": task.scale,
            "design": design,
            "budget_unit": "passes" if task.equal_passes else "epochs",
            "optimizer": optimizer.name,
            **_FIXED,
            **({"schedule": "cosine"} if task.cosine else {}),
            "note": f"{note}; {method.note}" if method.note else note,
        },
        method=method.name,
        passes=method.passes,
        settings=settings,
        seeds=seeds,
        space=method.described(rates),
        budget=budget,
        at_edge=partial(method.at_edge, settings[:budget], rates=rates),
        run=lambda setting, seed: Job(
            f"{__name__}:train", {**runs, "settings": [setting], "seeds": [seed]}
        ),
    )


def methods(task: Plane) -> list[Tuned]:
    """Those that take part; at equal passes, one of one pass has its record already. Of
    the coarse scale, plain training alone has the rate that falls, too."""
    if task.scale == "coarse":
        return [METHODS[name] for name in _COARSE_METHODS[: 1 if task.cosine else None]]
    least = Design.TUNED if task.tuned else Design.ONE_RATE
    return [
        method
        for method in METHODS.values()
        if method.design >= least and not (task.equal_passes and method.passes == 1)
    ]
