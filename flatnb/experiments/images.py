"""Images from scratch: every method, tuned over equally many settings.

Perceptrons train as ensembles: all settings under each seed, for which one is chosen.
Convolutional nets train one after another: all settings under one seed that is used for
nothing else, then the chosen one under fresh seeds. A seed is that of initial weights,
batch order, augmentation, and the split into training and validation images. SGD with
momentum 0.9 and a cosine schedule; the baseline AdamW has its own optimizer.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
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
from flatnb.experiments.experiment import Experiment
from flatnb.experiments.runner import Training, Value
from flatnb.experiments.tasks import Facts, FineTuning, Images
from flatnb.experiments.tuning import METHODS, SGD, Design, Setting, Tuned
from flatnb.results.sweep import Job

AUGMENTATIONS: dict[str, Any] = {
    "none": (),
    "crop, flip": (augment.RandomCrop(4), augment.RandomFlip()),
}
_TUNING_NOTE = "tuning_*: every setting under the tuning seed, in the first column"


@lru_cache(maxsize=2)
def load(task: Images, seed: int) -> Data:
    """The task's images, split into training and validation under a seed.

    >>> from flatnb.experiments.tasks import DIGITS
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

    >>> from flatnb.experiments.tasks import DIGITS
    >>> make_net(DIGITS, load(DIGITS, seed=0))[-1]
    Linear(in_features=64, out_features=10, bias=True)
    """
    classes, channels = len(data.classes), data.train.x.shape[-3]
    if task.net == "mlp":
        return models.mlp(data.train.x[0].numel(), task.width, task.depth, classes)
    make = getattr(models, task.net)
    return make(channels=channels, classes=classes, width=task.width)


def train_perceptrons(
    *,
    task: Facts,
    method: str,
    settings: list[Setting],
    seeds: list[int],
    checkpoint: Path | None = None,
) -> Value:
    """Train a task's perceptron, an ensemble per seed: `runner.train_members`.

    >>> from flatnb.experiments.tasks import DIGITS
    >>> job = dict(task=DIGITS.stated() | {"epochs": 1}, method="ERM", seeds=[0, 1])
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

    first, *following = [train(seed) for seed in seeds]
    runner.clear(checkpoint)
    for kind, value in itertools.product(("metrics", "flatness"), following):
        for name, table in first[kind].items():
            for row, column in zip(table, value[kind][name], strict=True):
                row += column
    return first


def train_one(
    *, task: Facts, method: str, setting: Setting, seed: int, resume: Path | None = None
) -> Value:
    """Train a task's net once, or go on from a checkpoint: `runner.train_net`."""
    stated = Images(**task)
    data = load(stated, seed)
    torch.manual_seed(seed)
    net, decay = make_net(stated, data), stated.weight_decay
    training = Training(stated.epochs, stated.every, seed, decay, checkpoint=resume)
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


def experiment(task: Images | FineTuning, method: Tuned) -> Experiment:
    """The experiment of one task and method; the learning rate is tuned, too."""
    facts: dict[str, Any] = {"schedule": "cosine", "budget_unit": "epochs"}
    if isinstance(task, FineTuning):
        module, source = "finetune", task.source
        facts["pretraining"] = "ERM, SGD, momentum 0.9, lr 0.1, cosine"
    else:
        module, source = "images", task
    optimizer, stated = method.optimizer or SGD, task.stated()
    settings = method.settings(source.budget, optimizer.rates)
    seeds, name = list(range(source.seeds)), f"{module}/{task.name}"
    runs: dict[str, Any] = {"task": stated, "method": method.name, "seeds": seeds}
    short = {"task": {**stated, "epochs": 1, "every": 1}, "method": method.name}
    if _together(task):
        settings.append(method.published(optimizer.rates.default))
        count = method.work(len(settings)) / len(settings) * len(seeds)
        call = f"{__name__}:train_perceptrons"
        sample = Job(call, {**short, "settings": settings[:1], "seeds": [0]})
        facts |= {"note": method.note} if method.note else {}
    else:
        count = method.passes * (len(settings) + len(seeds))
        call = f"{runner.__name__}:tune"
        runs["train"] = f"{__package__}.{module}:train_one"
        sample = Job(runs["train"], {**short, "setting": settings[0], "seed": 0})
        facts |= {"tuning_seed": runner.TUNING_SEED, "note": _TUNING_NOTE}
    return Experiment(
        name=f"{name}/{method.name}",
        cost=task.cost.times(count),
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
