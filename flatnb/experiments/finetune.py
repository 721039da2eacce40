"""Fine-tuning on few examples: the setting in which NSO was proposed, made to run offline.

A net is trained by plain SGD on all images of the first half of the classes; then its last layer is
made anew, and the whole net is trained by the method on few images of each class of the other half.
Zhang, Li and Ju fine-tune nets trained on ImageNet instead; what they start from is larger, what
they do with it is this. A seed is that of both trainings and of the images taken.
"""

from __future__ import annotations

import copy
import os
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn

from ..data import Data, Split
from . import images, spaces
from . import study as studies
from .base import Experiment
from .spaces import Setting

METHODS = ("ERM", "NSO", "WeightNoise", "SAM", "ASAM", "SoftAD", "Flooding", "IFlood", "GNP", "FAM",
           "USAM", "RSAM", "SWA", "EMA", "AdamW")  # fmt: skip
PRETRAINING = {"lr": 0.1}


@dataclass(frozen=True)
class Task:
    """A task of `images`, the training set of which is first all of one half of the classes.

    Attributes:
        source: data, net, batches and augmentation; its epochs are those of the first training.
        shots: images of each class of the second half that are trained on.
        epochs: of fine-tuning.
    """

    name: str
    source: images.Task
    shots: int
    epochs: int
    every: int = 10


# Task, its value, and minutes of one run of a 1-pass method: on a GPU, on one CPU core.
TASKS: tuple[tuple[Task, int, float, float], ...] = (
    (Task("digits-10-shots", images.Task("digits", "digits", "small_cnn", 16, 20, 64, 8, 5), 10,
          30), 5, 0.05, 0.15),
    (Task("cifar10-jpeg-20-shots",
          images.Task("cifar10-jpeg", "cifar10-jpeg", "resnet18", 64, 30, 128, 4, 3,
                      augment="crop, flip", weight_decay=5e-4), 20, 50), 7, 1.0, 850.0),
)  # fmt: skip


def halves(data: Data, shots: int, seed: int) -> tuple[Data, Data]:
    """The first half of the classes; and the second, numbered from 0, with few training images.

    Raises:
        ValueError: fewer than two classes in a half, or fewer images of a class than `shots`.
    """
    middle = len(data.classes) // 2
    if middle < 2:
        raise ValueError(f"{data.name} has {len(data.classes)} classes; at least 4 are needed")
    parts = {name: getattr(data, name) for name in ("train", "val", "test")}
    first: dict[str, Any] = {name: part[part.y < middle] for name, part in parts.items()}
    second: dict[str, Any] = {
        name: Split(part.x[part.y >= middle], part.y[part.y >= middle] - middle)
        for name, part in parts.items()
    }
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(second["train"]), generator=generator)
    labels = second["train"].y[order]
    taken = []
    for label in range(len(data.classes) - middle):
        of_class = order[labels == label]
        if len(of_class) < shots:
            raise ValueError(f"{len(of_class)} images of class {label}; {shots} shots are wanted")
        taken.append(of_class[:shots])
    second["train"] = second["train"][torch.cat(taken)]
    return (
        replace(data, **first, classes=data.classes[:middle]),
        replace(data, **second, classes=data.classes[middle:]),
    )


def train_one(*, task: dict[str, Any], method: str, setting: Setting, seed: int) -> dict[str, Any]:
    """Fine-tune once.

    Returns:
        As `images.train_one`.
    """
    what = Task(**{**task, "source": images.Task(**task["source"])})
    net, data = _pretrained(what.source, what.shots, seed)
    model = copy.deepcopy(net)
    torch.manual_seed(seed + 1)  # not the stream of the first training's start
    assert isinstance(model, nn.Sequential) and isinstance(model[-1], nn.Linear)
    model[-1] = nn.Linear(model[-1].in_features, len(data.classes))
    return images.train_net(
        model, data, method, setting,
        epochs=what.epochs, every=what.every, seed=seed, weight_decay=what.source.weight_decay,
    )  # fmt: skip


@lru_cache(maxsize=2)
def _pretrained(source: images.Task, shots: int, seed: int) -> tuple[nn.Module, Data]:
    first, second = halves(images.load(source, seed), shots, seed)
    torch.manual_seed(seed)
    net = images.make_net(source, first)
    images.train_net(
        net, first, "ERM", PRETRAINING,
        epochs=source.epochs, every=source.epochs, seed=seed, weight_decay=source.weight_decay,
    )  # fmt: skip
    return net.cpu(), second


def study(
    *,
    task: dict[str, Any],
    method: str,
    settings: list[Setting],
    seeds: list[int],
    checkpoint: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Tune under one seed, then run under others: `flatnb.experiments.study.run`."""
    return studies.run(partial(train_one, task=task, method=method), settings, seeds, checkpoint)


def experiment(
    task: Task, method: str, *, value: int, gpu_minutes: float, cpu_minutes: float
) -> Experiment:
    """The experiment of one task and method; the minutes are those of one run of one pass."""
    # Those of training from scratch: few images make few steps. The search ended at 0.1 at first;
    # ERM's best rate was that end, so it was widened for all, before any record was made.
    rates = spaces.RATES["adam" if method == "AdamW" else "sgd"]
    settings = spaces.space(method, task.source.budget, rates)
    told = {
        **asdict(task), "name": f"finetune/{task.name}",
        "pretraining": "ERM, SGD, momentum 0.9, lr 0.1, cosine",
    }  # fmt: skip
    what = studies.described(told, method, settings, task.source.seeds, rates)
    given = {"task": asdict(task), "method": method}
    sample = {**given, "task": {**asdict(task), "epochs": 1, "every": 1}}
    return studies.experiment(
        __name__, what, settings, given, sample,
        title=f"{method} fine-tuning on {task.name}", value=value,
        gpu_minutes=gpu_minutes, cpu_minutes=cpu_minutes,
    )  # fmt: skip


def experiments() -> list[Experiment]:
    """All of these tasks."""
    return studies.each(experiment, TASKS, METHODS)
