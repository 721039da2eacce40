"""Images from scratch: every method, tuned over equally many settings.

Perceptrons train as ensembles, all settings under each of five seeds. Convolutional
nets train one after another: all settings under one seed, the best two under another.
The chosen setting is evaluated under fresh seeds: see `flatnb.experiments.study`. A
seed is that of initial weights, batch order, augmentation, and the split into training
and validation images. The optimizer is SGD with momentum 0.9 and a cosine schedule;
AdamW and bSAM have their own.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from flatnb import data as datasets
from flatnb import models
from flatnb.data import Data, Split, augment
from flatnb.data.images import BUILT_IN
from flatnb.experiments import runner
from flatnb.experiments import study as selection
from flatnb.experiments.experiment import Cost, Experiment
from flatnb.experiments.runner import TUNING_SEED, Member, Training, Value
from flatnb.experiments.study import Trainer
from flatnb.experiments.tuning import (
    METHODS,
    SGD,
    Design,
    Optimizer,
    Range,
    Setting,
    Tuned,
)
from flatnb.results.sweep import Job

AUGMENTATIONS: dict[str, Any] = {
    "none": (),
    "crop, flip": (augment.RandomCrop(4), augment.RandomFlip()),
}


@dataclass(frozen=True, kw_only=True)
class Images:
    """A data set of images, a net, and a training; `None` images: all there are."""

    name: str
    data: str  # a name of `flatnb.data.images`, or of a folder in $FLATNB_DATA
    net: str  # of `flatnb.models`, `width` wide; "mlp" has `depth` hidden layers
    width: int
    epochs: int
    batch: int
    depth: int = 1
    n_train: int | None = None
    n_val: int | None = None
    n_test: int | None = None
    augment: str = "none"  # or names of `AUGMENTATIONS`
    weight_decay: float = 0.0  # of SGD
    every: int = 10  # epochs from one evaluation to the next


class Plan(NamedTuple):
    """What is run of a task, and what it costs."""

    cost: Cost  # of a run
    budget: int  # settings per method
    seeds: Sequence[int]  # of the selection
    fresh: Sequence[int]  # of the evaluation
    finalists: int | None = None  # see `flatnb.experiments.study`
    rates: Range = SGD.rates  # of the optimizer
    optimizer: Optimizer = SGD  # of methods without one of their own
    to_ends: bool = False  # settings reach both ends of each range


DIGITS = Images(
    name="digits-mlp",
    data="digits",
    net="mlp",
    width=64,
    epochs=40,
    batch=64,
)
_MNIST = replace(
    DIGITS,
    name="MNIST-n5000-mlp",
    data="MNIST",
    epochs=20,
    batch=100,
    n_train=5000,
    n_val=2000,
)
_FASHION = replace(
    _MNIST,
    name="FashionMNIST-mlp",
    data="FashionMNIST",
    width=1000,
    epochs=50,
    batch=200,
    n_train=None,
    n_val=None,
)
_CNN = Images(
    name="cifar10-jpeg-resnet18",
    data="cifar10-jpeg",
    net="resnet18",
    width=64,
    epochs=50,
    batch=128,
    augment="crop, flip",
    weight_decay=5e-4,
)
# No augmentation, and epochs enough: plain training passes 95 % training accuracy.
_PART = replace(
    _CNN,
    name="cifar10-jpeg-n4000-small_cnn",
    net="small_cnn",
    width=32,
    epochs=50,
    batch=256,
    n_train=4000,
    n_val=1000,
    n_test=10_000,
    augment="none",
    every=50,
)
_RESNET34 = replace(_CNN, net="resnet34")
_SELECTION, _FRESH = range(5), range(100, 115)
_NETS = (range(TUNING_SEED, TUNING_SEED + 2), range(5), 2)
TASKS: dict[Images, Plan] = {
    DIGITS: Plan(Cost(2, 0.02, 0.055), 20, _SELECTION, _FRESH),
    _MNIST: Plan(Cost(2, 0.1, 0.2), 12, _SELECTION, _FRESH),
    _PART: Plan(Cost(2, 0.02, 2.6), 10, *_NETS, Range(0.05, 0.8, 0.1, ("low", "high"))),
    _CNN: Plan(Cost(5, 2.0, 2800.0), 8, *_NETS),
    replace(_RESNET34, name="CIFAR10-resnet34", data="CIFAR10"): Plan(
        Cost(8, 3.5, 5800.0), 8, *_NETS
    ),
    replace(_RESNET34, name="CIFAR100-resnet34", data="CIFAR100"): Plan(
        Cost(8, 3.5, 5800.0), 8, *_NETS
    ),
    replace(_CNN, name="SVHN-resnet18", data="SVHN", epochs=30): Plan(
        Cost(8, 2.0, 2400.0), 8, *_NETS
    ),
    _FASHION: Plan(Cost(7, 1.0, 60.0), 12, _SELECTION, _FRESH),
}
# Most methods chose the largest rate that they tried of `_PART`, and plain training that
# of `_MNIST`. Above these rates plain training no longer fits.
_FITS = {
    _PART: Range(0.1, 1.6, 0.2, ("low", "high")),
    _MNIST: Range(0.005, 2.0, SGD.rates.default, ("low", "high")),
    DIGITS: Range(0.005, 2.0, SGD.rates.default, ("low", "high")),
}
LARGER_RATES = {
    task: TASKS[task]._replace(rates=rates, to_ends=True)
    for task, rates in _FITS.items()
}


def experiments() -> Iterator[Experiment]:
    """All experiments on images: each task, some again with larger rates, and plain
    training of MNIST for as many passes as methods of two per step take."""
    for family, plans in {"images": TASKS, "images-larger-rates": LARGER_RATES}.items():
        for task, plan in plans.items():
            for method in methods(large=task.net != "mlp"):
                yield experiment(task, method, plan, family)
    plan = LARGER_RATES[_MNIST]
    plan = plan._replace(cost=plan.cost.times(2))
    longer = replace(_MNIST, epochs=2 * _MNIST.epochs)
    yield experiment(longer, METHODS["ERM"], plan, "twice-the-epochs")


@lru_cache(maxsize=2)
def load(task: Images, seed: int) -> Data:
    """The task's images, split into training and validation under a seed.

    >>> len(load(DIGITS, seed=0).train)
    1149
    """
    folder = os.path.expandvars(f"$FLATNB_DATA/{task.data}")
    data = datasets.images(
        task.data,
        folder=None if task.data in BUILT_IN else folder,
        seed=seed,
        batch_size=task.batch,
        augment=AUGMENTATIONS[task.augment],
    )
    generator = torch.Generator().manual_seed(seed)
    return replace(
        data,
        train=_subset(data.train, task.n_train, generator),
        val=_subset(data.val, task.n_val, generator),
        test=_subset(data.test, task.n_test, torch.Generator().manual_seed(0)),
    )


def _subset(split: Split, n: int | None, generator: torch.Generator) -> Split:
    """At most n examples: more than there are is not refused, as `data.images` does."""
    if n is None or n >= len(split):
        return split
    return split[torch.randperm(len(split), generator=generator)[:n]]


def make_net(task: Images, data: Data) -> nn.Sequential:
    """The task's net, for its data.

    >>> make_net(DIGITS, load(DIGITS, seed=0))[-1]
    Linear(in_features=64, out_features=10, bias=True)
    """
    image = data.train.x[0]
    classes = len(data.classes)
    if task.net == "mlp":
        return models.mlp(image.numel(), task.width, task.depth, classes)
    make = getattr(models, task.net)
    return make(channels=len(image), classes=classes, width=task.width)


def train_perceptrons(
    *,
    task: dict[str, Any],
    method: str,
    settings: list[Setting],
    seeds: list[int],
    checkpoint: Path | None = None,
) -> Value:
    """Train a task's perceptron under each setting and seed, an ensemble per seed, with
    tables [setting][seed].

    >>> job = dict(task=asdict(DIGITS) | {"epochs": 1}, method="ERM", seeds=[0, 1])
    >>> value = train_perceptrons(settings=[{"lr": 0.1}], **job)
    >>> len(value["flatness"]["trace"][0])
    2
    """
    members = [Member(setting, seed) for setting in settings for seed in seeds]
    return selection.tables(_ensembles(task, method)(members, checkpoint), len(seeds))


def study(
    *,
    train: str,
    task: dict[str, Any],
    method: str,
    settings: list[Setting],
    budget: int,
    seeds: list[int],
    fresh: list[int],
    finalists: int | None = None,
    checkpoint: Path | None = None,
) -> Value:
    """Select a setting and evaluate it: `flatnb.experiments.study`. `train` is
    "ensembles", or what trains one net, as "flatnb.experiments.images:train_one"."""
    alone = train != "ensembles"
    return selection.study(
        _one_by_one(train, task, method) if alone else _ensembles(task, method),
        settings,
        budget=budget,
        seeds=seeds,
        fresh=fresh,
        finalists=finalists,
        checkpoint=checkpoint,
    )


def _ensembles(task: dict[str, Any], method: str) -> Trainer:
    stated = Images(**task)

    def train(members: Sequence[Member], seed: int, checkpoint: Path | None) -> Value:
        data = load(stated, seed)
        return runner.train_members(
            lambda: make_net(stated, data),
            lambda members: data,
            METHODS[method],
            members,
            Training(stated.epochs, stated.every, seed, checkpoint=checkpoint),
        )

    def run(members: Sequence[Member], checkpoint: Path | None) -> Value:
        places: dict[int, list[int]] = {}
        for i, member in enumerate(members):
            places.setdefault(member.seed, []).append(i)
        values = [
            train([members[i] for i in part], seed, checkpoint)
            for seed, part in places.items()
        ]
        order = [i for part in places.values() for i in part]
        return selection.joined(values, order)

    return run


def _one_by_one(call: str, task: dict[str, Any], method: str) -> Trainer:
    def run(members: Sequence[Member], checkpoint: Path | None) -> Value:
        values = []
        for k, member in enumerate(members):
            given = {"setting": member.setting, "seed": member.seed}
            job = Job(call, {"task": task, "method": method, **given})
            file = checkpoint and checkpoint.with_suffix(f".{k}.pt")
            values.append(selection.flat(job.run(file)))
        return selection.joined(values, range(len(values)))

    return run


def train_one(
    *,
    task: dict[str, Any],
    method: str,
    setting: Setting,
    seed: int,
    checkpoint: Path | None = None,
) -> Value:
    """Train a task's net once, or go on from a checkpoint: `runner.train_net`."""
    stated = Images(**task)
    data = load(stated, seed)
    torch.manual_seed(seed)
    net = make_net(stated, data)
    decay = stated.weight_decay
    training = Training(stated.epochs, stated.every, seed, decay, checkpoint=checkpoint)
    return runner.train_net(net, data, METHODS[method], setting, training)


def methods(large: bool) -> list[Tuned]:
    """Those tuned on images. SGD would be ERM; with large nets, which take long, only
    the methods of the plane's one learning rate, and averages of the weights; auxiliary
    nets need an ensemble."""
    tuned = [m for m in METHODS.values() if m.design >= Design.TUNED]
    if not large:
        return [method for method in tuned if method.optimizer is not SGD]
    return [
        method
        for method in tuned
        if (method.design >= Design.ONE_RATE or method.average) and not method.auxiliary
    ]


def experiment(
    task: Images, method: Tuned, plan: Plan, family: str = "images"
) -> Experiment:
    """The experiment of one task and method; the learning rate is tuned, too."""
    together = task.net == "mlp"
    train = "ensembles" if together else f"{__name__}:train_one"
    return study_of(f"{family}/{task.name}", task, train, method, plan)


def study_of(
    name: str, task: Any, train: str, method: Tuned, plan: Plan, **facts: Any
) -> Experiment:
    """The experiment of a task, a dataclass; `train` makes its runs, see `study`. The
    record states `facts` of the task as well."""
    optimizer = method.optimizer or plan.optimizer
    rates = plan.rates if optimizer is plan.optimizer else optimizer.rates
    settings = method.settings(plan.budget, rates, plan.to_ends)
    budget = len(settings)
    together = train == "ensembles"
    if together:
        settings.append(method.published(optimizer.rates.default))
        runs = len(settings) * len(plan.seeds) + 2 * len(plan.fresh)
    else:
        finals = (plan.finalists or 0) * (len(plan.seeds) - 1)
        runs = budget + finals + len(plan.fresh)
    stated = asdict(task)
    given = {"task": stated, "method": method.name}

    def run(setting: Setting, seed: int, **changed: int) -> Job:
        job = {**given, "task": {**stated, **changed}}
        if together:
            several = {"settings": [setting], "seeds": [seed]}
            return Job(f"{__name__}:train_perceptrons", {**job, **several})
        return Job(train, {**job, "setting": setting, "seed": seed})

    studied = {
        "train": train,
        "settings": settings,
        "budget": budget,
        "seeds": list(plan.seeds),
        "fresh": list(plan.fresh),
        "finalists": plan.finalists,
    }
    described = {"optimizer": optimizer.name, "schedule": "cosine", **facts}
    described |= {"note": method.note} if method.note else {}
    return Experiment(
        name=f"{name}/{method.name}",
        cost=plan.cost.times(method.work(runs)),
        job=Job(f"{__name__}:study", {**given, **studied}),
        sample=run(settings[0], plan.seeds[0], epochs=1, every=1),
        task={**stated, "name": name, "budget_unit": "epochs", **described},
        method=method.name,
        passes=method.passes,
        settings=settings,
        seeds=list(plan.seeds),
        space=method.described(rates, plan.to_ends),
        budget=budget,
        at_edge=partial(method.at_edge, settings[:budget], rates=rates),
        run=run,
    )
