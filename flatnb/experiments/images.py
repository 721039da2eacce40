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
from flatnb.experiments.experiment import Experiment
from flatnb.experiments.runner import (
    TUNING_SEED,
    Training,
    Value,
    clear,
    train_members,
    train_net,
    tune,
)
from flatnb.experiments.tasks import TASKS, Cost, FineTuning, Images
from flatnb.experiments.tuning import METHODS, SGD, Design, Setting, Tuned
from flatnb.results.sweep import Job

_TUNING_NOTE = (
    "metrics tuning_*: every setting under the tuning seed, in the first column"
)
AUGMENTATIONS: dict[str, Any] = {
    "crop": augment.RandomCrop(4),
    "flip": augment.RandomFlip(),
}


def load(task: Images, seed: int) -> Data:
    """The task's images, split into training and validation under a seed.

    Raises:
        FileNotFoundError: a folder of images without $FLATNB_DATA.
    """
    folder = None
    if task.data not in BUILT_IN:
        if "FLATNB_DATA" not in os.environ:
            raise FileNotFoundError(
                f"data={task.data!r} is a folder of images; set FLATNB_DATA to the "
                "folder that holds it"
            )
        folder = Path(os.environ["FLATNB_DATA"]) / task.data
    names = [] if task.augment == "none" else task.augment.split(", ")
    data = datasets.images(
        task.data,
        folder=folder,
        seed=seed,
        batch_size=task.batch,
        augment=[AUGMENTATIONS[name] for name in names],
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
    """The task's net, for its data."""
    classes, channels = len(data.classes), data.train.x.shape[-3]
    if task.net == "mlp":
        inputs = data.train.x[0].numel()
        return models.mlp(inputs, task.width, task.depth, classes)
    make = getattr(models, task.net)
    return make(channels=channels, classes=classes, width=task.width)


def train_perceptrons(
    *,
    task: dict[str, Any],
    method: str,
    settings: list[Setting],
    seeds: list[int],
    checkpoint: Path | None = None,
) -> Value:
    """Train a task's perceptron under each setting and seed: one ensemble per seed.

    Returns:
        As `runner.train_members`.
    """
    stated = Images(**task)

    def train(seed: int) -> Value:
        data = load(stated, seed)
        return train_members(
            lambda: make_net(stated, data),
            lambda seeds: data,
            METHODS[method],
            settings,
            [seed],
            SGD,
            Training(stated.epochs, stated.every, seed, checkpoint=checkpoint),
        )

    value, *values = [train(seed) for seed in seeds]
    clear(checkpoint)
    for kind, following in itertools.product(("metrics", "flatness"), values):
        for name, table in value[kind].items():
            for row, column in zip(table, following[kind][name], strict=True):
                row += column
    return value


_loaded = lru_cache(maxsize=2)(load)


def train_one(
    *,
    task: dict[str, Any],
    method: str,
    setting: Setting,
    seed: int,
    resume: Path | None = None,
) -> Value:
    """Train a task's net once, or go on from a checkpoint: `runner.train_net`."""
    stated = Images(**task)
    data = _loaded(stated, seed)
    torch.manual_seed(seed)
    return train_net(
        make_net(stated, data),
        data,
        METHODS[method],
        setting,
        Training(stated.epochs, stated.every, seed, checkpoint=resume),
        stated.weight_decay,
    )


def experiment(task: Images, method: Tuned) -> Experiment:
    """The experiment of one task and method."""
    return tuned(
        __name__,
        f"images/{task.name}",
        task,
        method,
        budget=task.budget,
        seeds=task.seeds,
        title=f"{method.name} on {task.name}, {task.epochs} epochs",
        together=task.net == "mlp",
    )


def tuned(
    module: str,
    name: str,
    task: Images | FineTuning,
    method: Tuned,
    *,
    budget: int,
    seeds: int,
    title: str,
    together: bool = False,
    **stated: Any,
) -> Experiment:
    """The experiment of a method that is tuned over learning rates, too.

    Args:
        module: has `train_one`; or `train_perceptrons`, if the settings train
            `together`.
        stated: more that the record states of the task.
    """
    optimizer = method.optimizer or SGD
    settings = method.settings(budget, optimizer.rates)
    stated = {**task.stated(), "name": name, "optimizer": optimizer.name, **stated}
    job: dict[str, Any] = {"task": task.stated(), "method": method.name}
    short = {**job, "task": {**job["task"], "epochs": 1, "every": 1}}
    if together:
        settings.append(method.published(optimizer.rates.default))
        runs = method.work(len(settings)) * seeds / len(settings)
        call = sampled = f"{module}:train_perceptrons"
        short |= {"settings": settings[:1], "seeds": [0]}
        stated |= {"note": method.note} if method.note else {}
    else:
        runs = method.passes * (len(settings) + seeds)
        call, sampled = f"{tune.__module__}:tune", f"{module}:train_one"
        job["train"] = sampled
        short |= {"setting": settings[0], "seed": 0}
        stated |= {"tuning_seed": TUNING_SEED, "note": _TUNING_NOTE}
    minutes = task.cost.cpu_minutes * runs
    job |= {"settings": settings, "seeds": list(range(seeds))}
    return Experiment(
        name=f"{name}/{method.name}",
        title=title,
        cost=Cost(task.cost.value, task.cost.gpu_minutes * runs, minutes),
        job=Job(call, job, 60 * minutes),
        sample=Job(sampled, short),
        stated={
            "task": {**stated, "schedule": "cosine", "budget_unit": "epochs"},
            "method": method.name,
            "passes": method.passes,
            "settings": settings,
            "seeds": job["seeds"],
        },
        space=method.described(optimizer.rates),
        budget=budget,
        scope="seed" if together else "task",
    )


def methods(*, together: bool = False) -> list[Tuned]:
    """Those tuned on images: auxiliary nets need an ensemble; SGD would be ERM."""
    return [
        method
        for method in METHODS.values()
        if method.design >= Design.TUNED
        and method.optimizer is not SGD
        and (together or not method.auxiliary)
    ]


def experiments() -> list[Experiment]:
    """All of images from scratch."""
    tasks = [task for task in TASKS if isinstance(task, Images)]
    return [experiment(t, m) for t in tasks for m in methods(together=t.net == "mlp")]
