"""Images from scratch: every method, tuned over equally many settings.

Perceptrons train as ensembles: all settings under each seed, for which one is chosen.
Convolutional nets train one after another: all settings under one seed that is used for
nothing else, then the chosen one under fresh seeds. A seed is that of initial weights,
batch order, augmentation, and the split into training and validation images. SGD with
momentum 0.9 and a cosine schedule; the baseline AdamW has its own optimizer.
"""

import itertools
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flatnb import data as datasets
from flatnb import models
from flatnb.data import Data, Split, augment
from flatnb.data.images import BUILT_IN
from flatnb.experiments import runner
from flatnb.experiments.experiment import Cost, Experiment
from flatnb.experiments.runner import Training, Value
from flatnb.experiments.tuning import METHODS, SGD, Design, Setting, Tuned
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
    budget: int  # settings per method
    seeds: int
    depth: int = 1
    n_train: int | None = None
    n_val: int | None = None
    n_test: int | None = None
    augment: str = "none"  # or names of `AUGMENTATIONS`
    weight_decay: float = 0.0  # of SGD
    every: int = 10  # epochs from one evaluation to the next


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """A net trained on half of the classes, fine-tuned on few images of the others."""

    name: str
    source: Images  # the first training
    shots: int  # images of each class that are fine-tuned on
    epochs: int
    every: int = 10


DIGITS = Images(
    name="digits-mlp",
    data="digits",
    net="mlp",
    width=64,
    epochs=40,
    batch=64,
    budget=20,
    seeds=5,
)
_CNN = Images(
    name="cifar10-jpeg-resnet18",
    data="cifar10-jpeg",
    net="resnet18",
    width=64,
    epochs=50,
    batch=128,
    budget=4,
    seeds=3,
    augment="crop, flip",
    weight_decay=5e-4,
)
_PART = replace(_CNN, n_train=4000, n_val=1000, n_test=2000)
_RESNET34 = replace(_CNN, net="resnet34")
# Each task, and what it costs.
TASKS: dict[Images | FineTuning, Cost] = {
    DIGITS: Cost(4, 0.02, 0.055),
    replace(
        DIGITS,
        name="MNIST-n5000-mlp",
        data="MNIST",
        epochs=20,
        batch=100,
        budget=12,
        n_train=5000,
        n_val=2000,
    ): Cost(4, 0.1, 0.2),
    replace(
        _PART, name="cifar10-jpeg-n4000-small_cnn", net="small_cnn", width=16, epochs=15
    ): Cost(5, 0.1, 0.8),
    # A CPU's share of the next: few images, 1/8 of the width, 1/5 of the epochs.
    replace(
        _PART, name="cifar10-jpeg-n4000-resnet18", width=8, epochs=10, batch=64
    ): Cost(5, 0.1, 2.3),
    _CNN: Cost(5, 2.0, 2800.0),
    replace(_RESNET34, name="CIFAR10-resnet34", data="CIFAR10"): Cost(8, 3.5, 5800.0),
    replace(_RESNET34, name="CIFAR100-resnet34", data="CIFAR100"): Cost(8, 3.5, 5800.0),
    replace(_CNN, name="SVHN-resnet18", data="SVHN", epochs=30): Cost(8, 2.0, 2400.0),
    replace(
        DIGITS,
        name="FashionMNIST-mlp",
        data="FashionMNIST",
        width=1000,
        epochs=50,
        batch=200,
        budget=12,
    ): Cost(7, 1.0, 60.0),
    FineTuning(
        name="digits-10-shots",
        source=replace(
            DIGITS, name="digits", net="small_cnn", width=16, epochs=20, budget=8
        ),
        shots=10,
        epochs=30,
    ): Cost(5, 0.05, 0.15),
    FineTuning(
        name="cifar10-jpeg-20-shots",
        source=replace(_CNN, name="cifar10-jpeg", epochs=30),
        shots=20,
        epochs=50,
    ): Cost(7, 1.0, 850.0),
}


def experiments() -> Iterator[Experiment]:
    """All experiments on images."""
    for task, cost in TASKS.items():
        for method in methods(task):
            yield experiment(task, method, cost)


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
    """Train a task's perceptron, an ensemble per seed: `runner.train_members`.

    >>> job = dict(task=asdict(DIGITS) | {"epochs": 1}, method="ERM", seeds=[0, 1])
    >>> value = train_perceptrons(settings=[{"lr": 0.1}], **job)
    >>> len(value["flatness"]["trace"][0])
    2
    """
    stated = Images(**task)

    def train(seed: int) -> Value:
        data = load(stated, seed)
        return runner.train_members(
            lambda: make_net(stated, data),
            lambda seeds: data,
            METHODS[method],
            settings,
            [seed],
            Training(stated.epochs, stated.every, seed, checkpoint=checkpoint),
        )

    first, *rest = map(train, seeds)
    for kind, value in itertools.product(("metrics", "flatness"), rest):
        for name, table in first[kind].items():
            for row, column in zip(table, value[kind][name], strict=True):
                row += column
    return first


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


def _together(task: Images | FineTuning) -> bool:
    return isinstance(task, Images) and task.net == "mlp"


def methods(task: Images | FineTuning) -> list[Tuned]:
    """Those tuned on images: auxiliary nets need an ensemble; SGD would be ERM."""
    return [
        method
        for method in METHODS.values()
        if method.design >= Design.TUNED
        and method.optimizer is not SGD
        and (_together(task) or not method.auxiliary)
    ]


def experiment(task: Images | FineTuning, method: Tuned, cost: Cost) -> Experiment:
    """The experiment of one task and method; the learning rate is tuned, too."""
    facts: dict[str, Any] = {"schedule": "cosine", "budget_unit": "epochs"}
    if isinstance(task, FineTuning):
        module, source = "finetune", task.source
        facts["pretraining"] = "ERM, SGD, momentum 0.9, lr 0.1, cosine"
    else:
        module, source = "images", task
    optimizer = method.optimizer or SGD
    stated = asdict(task)
    settings = method.settings(source.budget, optimizer.rates)
    seeds = list(range(source.seeds))
    name = f"{module}/{task.name}"
    runs: dict[str, Any] = {"task": stated, "method": method.name, "seeds": seeds}
    short = {"task": {**stated, "epochs": 1, "every": 1}, "method": method.name}
    if _together(task):
        settings.append(method.published(optimizer.rates.default))
        count = method.work(len(settings)) / len(settings) * len(seeds)
        call = f"{__name__}:train_perceptrons"
        sample = Job(call, {**short, "settings": settings[:1], "seeds": [0]})
        note = method.note
    else:
        count = method.passes * (len(settings) + len(seeds))
        call = f"{runner.__name__}:tune"
        runs["train"] = f"{__package__}.{module}:train_one"
        sample = Job(runs["train"], {**short, "setting": settings[0], "seed": 0})
        facts["tuning_seed"] = runner.TUNING_SEED
        note = "tuning_*: every setting under the tuning seed, in the first column"
    if note:
        facts["note"] = note
    return Experiment(
        name=f"{name}/{method.name}",
        cost=cost.times(count),
        job=Job(call, {**runs, "settings": settings}),
        sample=sample,
        task={**stated, "name": name, "optimizer": optimizer.name, **facts},
        method=method.name,
        passes=method.passes,
        settings=settings,
        seeds=seeds,
        space=method.described(optimizer.rates),
        budget=source.budget,
        scope="seed" if _together(task) else "task",
    )
