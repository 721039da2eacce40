"""Fine-tuning on few examples: the setting in which NSO was proposed, made to run
offline.

A net is trained by plain SGD on all images of the first half of the classes; then its
last layer is made anew, and the whole net is trained by the method on few images of
each class of the other half. Zhang, Li and Ju fine-tune nets trained on ImageNet
instead; what they start from is larger, what they do with it is this. A task with
`weights` starts as they do, from torchvision's ImageNet weights, and trains on few
images of each class. A seed is that of both trainings, of the images taken and of the
new layer.
"""

from __future__ import annotations

import copy
import os
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn

from flatnb import models
from flatnb.data import Data, Split
from flatnb.experiments import images, spaces
from flatnb.experiments import study as studies
from flatnb.experiments.base import Experiment
from flatnb.experiments.spaces import Setting

METHODS = (
    "ERM",
    "NSO",
    "WeightNoise",
    "SAM",
    "ASAM",
    "SoftAD",
    "Flooding",
    "IFlood",
    "GNP",
    "FAM",
    "USAM",
    "RSAM",
    "SWA",
    "EMA",
    "AdamW",
)
PRETRAINING = {"lr": 0.1}
PRETRAINING_TOLD = "ERM, SGD, momentum 0.9, lr 0.1, cosine"


@dataclass(frozen=True)
class Task:
    """A task of `images`, the training set of which is first all of one half of the
    classes.

    Attributes:
        source: data, net, batches and augmentation; its epochs are those of the first
            training.
        shots: images of each class of the second half that are trained on.
        epochs: of fine-tuning.
        weights: "ImageNet" for a net of `models.pretrained`, instead of the first
            training; then all classes are trained on.
        size: pixels that its images are brought to.
    """

    name: str
    source: images.Task
    shots: int
    epochs: int
    every: int = 10
    weights: str | None = None
    size: int = 224

    def __post_init__(self) -> None:
        if self.weights not in (None, "ImageNet"):
            raise ValueError(f"weights={self.weights!r}; allowed: 'ImageNet' or None")


# Task, its value, and minutes of one run of a 1-pass method: on a GPU, on one CPU core.
TASKS: tuple[tuple[Task, int, float, float], ...] = (
    (
        Task(
            "digits-10-shots",
            images.Task("digits", "digits", "small_cnn", 16, 20, 64, 8, 5),
            10,
            30,
        ),
        5,
        0.05,
        0.15,
    ),
    (
        Task(
            "cifar10-jpeg-20-shots",
            images.Task(
                "cifar10-jpeg",
                "cifar10-jpeg",
                "resnet18",
                64,
                30,
                128,
                4,
                3,
                augment="crop, flip",
                weight_decay=5e-4,
            ),
            20,
            50,
        ),
        7,
        1.0,
        850.0,
    ),
    (
        Task(
            "cifar10-jpeg-20-shots-ImageNet",
            images.Task(
                "cifar10-jpeg",
                "cifar10-jpeg",
                "resnet34",
                64,
                0,
                32,
                4,
                3,
                augment="flip",
                weight_decay=1e-4,
                n_val=1000,
                n_test=2000,
            ),
            20,
            30,
            30,
            "ImageNet",
        ),
        7,
        0.5,
        60.0,
    ),
)


def halves(data: Data, shots: int, seed: int) -> tuple[Data, Data]:
    """The first half of the classes; and the second, numbered from 0, with few training
    images.

    Raises:
        ValueError: fewer than two classes in a half, or fewer images of a class than
            `shots`.
    """
    middle = len(data.classes) // 2
    if middle < 2:
        raise ValueError(
            f"{data.name} has {len(data.classes)} classes; at least 4 are needed"
        )
    parts = {name: getattr(data, name) for name in ("train", "val", "test")}
    first: dict[str, Any] = {
        name: part[part.y < middle] for name, part in parts.items()
    }
    second: dict[str, Any] = {
        name: Split(part.x[part.y >= middle], part.y[part.y >= middle] - middle)
        for name, part in parts.items()
    }
    return (
        replace(data, **first, classes=data.classes[:middle]),
        few(replace(data, **second, classes=data.classes[middle:]), shots, seed),
    )


def few(data: Data, shots: int, seed: int) -> Data:
    """The data with `shots` training images of each class, drawn under a seed.

    Raises:
        ValueError: fewer images of a class than `shots`.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data.train), generator=generator)
    labels = data.train.y[order]
    taken = []
    for label in range(len(data.classes)):
        of_class = order[labels == label]
        if len(of_class) < shots:
            raise ValueError(
                f"{len(of_class)} images of class {label}; {shots} shots are wanted"
            )
        taken.append(of_class[:shots])
    return replace(data, train=data.train[torch.cat(taken)])


def start(task: Task, seed: int) -> tuple[nn.Sequential, Data, float | None]:
    """What fine-tuning starts from: a net, on the CPU, its data, and the first
    training's accuracy.

    The accuracy is that on test images of the first half of the classes; None with
    ImageNet's weights. The net ends in a Linear layer, which `renewed` makes anew.

    Raises:
        FileNotFoundError: see `models.pretrained` and `images.load`.
        ValueError: see `halves`, and `models.pretrained` for the net of a task with
            `weights`.
    """
    source = task.source
    data = images.load(source, seed)
    if task.weights is not None:
        net = models.pretrained(source.net, len(data.classes), size=task.size)
        return net, few(data, task.shots, seed), None
    first, second = halves(data, task.shots, seed)
    torch.manual_seed(seed)
    made = images.make_net(source, first)
    assert isinstance(made, nn.Sequential)  # as all nets of `models` are
    done = images.train_net(
        made,
        first,
        "ERM",
        PRETRAINING,
        epochs=source.epochs,
        every=source.epochs,
        seed=seed,
        weight_decay=source.weight_decay,
    )
    return made.cpu(), second, done["metrics"]["test_accuracy"][0][0][-1]


def renewed(net: nn.Sequential, classes: int, seed: int) -> nn.Sequential:
    """A copy of the net with a new last layer, drawn under a seed."""
    net = copy.deepcopy(net)
    torch.manual_seed(seed + 1)  # not the stream of the first training's start
    last = net[-1]
    assert isinstance(last, nn.Linear)
    net[-1] = nn.Linear(last.in_features, classes)
    return net


def train_one(
    *, task: dict[str, Any], method: str, setting: Setting, seed: int
) -> dict[str, Any]:
    """Fine-tune once.

    Returns:
        As `images.train_one`.
    """
    what = Task(**{**task, "source": images.Task(**task["source"])})
    net, data, _ = _started(
        replace(what, epochs=1, every=1), seed
    )  # the same for any epochs
    return images.train_net(
        renewed(net, len(data.classes), seed),
        data,
        method,
        setting,
        epochs=what.epochs,
        every=what.every,
        seed=seed,
        weight_decay=what.source.weight_decay,
    )


_started = lru_cache(maxsize=2)(start)


def study(
    *,
    task: dict[str, Any],
    method: str,
    settings: list[Setting],
    seeds: list[int],
    checkpoint: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Tune under one seed, then run under others: `flatnb.experiments.study.run`."""
    return studies.run(
        partial(train_one, task=task, method=method), settings, seeds, checkpoint
    )


def experiment(
    task: Task, method: str, *, value: int, gpu_minutes: float, cpu_minutes: float
) -> Experiment:
    """The experiment of one task and method; the minutes are those of one run of one pass."""
    # Those of training from scratch: few images make few steps. The search ended at 0.1
    # at first; ERM's best rate was that end, so it was widened for all, before any
    # record was made.
    rates = spaces.RATES["adam" if method == "AdamW" else "sgd"]
    settings = spaces.space(method, task.source.budget, rates)
    pretraining = "torchvision, IMAGENET1K_V1" if task.weights else PRETRAINING_TOLD
    told = {**asdict(task), "name": f"finetune/{task.name}", "pretraining": pretraining}
    what = studies.described(told, method, settings, task.source.seeds, rates)
    given = {"task": asdict(task), "method": method}
    sample = {**given, "task": {**asdict(task), "epochs": 1, "every": 1}}
    return studies.experiment(
        __name__,
        what,
        settings,
        given,
        sample,
        title=f"{method} fine-tuning on {task.name}",
        value=value,
        gpu_minutes=gpu_minutes,
        cpu_minutes=cpu_minutes,
    )


def experiments() -> list[Experiment]:
    """All of these tasks."""
    return studies.each(experiment, TASKS, METHODS)
