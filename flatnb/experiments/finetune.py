"""Fine-tuning on few examples: the setting in which NSO was proposed, offline.

A net is trained by plain SGD on all images of the first half of the classes; then its
last layer is replaced, and the whole net is trained by the method on few images of each
class of the other half. Zhang, Li and Ju fine-tune nets trained on ImageNet instead, as
a task with `weights` does, on few images of each class. A seed is that of both
trainings, of the images taken and of the new layer.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flatnb import models
from flatnb.data import Data, Split
from flatnb.experiments import images
from flatnb.experiments.experiment import Experiment
from flatnb.experiments.runner import Training, Value, train_net, training_file
from flatnb.experiments.tasks import TASKS, FineTuning, Images
from flatnb.experiments.tuning import METHODS, Setting, Tuned

_PRETRAINING = {"lr": 0.1}


def halves(data: Data, shots: int, seed: int) -> tuple[Data, Data]:
    """The first half of the classes; and the second, numbered from 0, `with_shots`.

    Raises:
        ValueError: fewer than two classes in a half.
    """
    middle = len(data.classes) // 2
    if middle < 2:
        raise ValueError(f"classes={data.classes}; allowed: at least 4 of them")

    def part(keep: slice) -> Data:
        splits: dict[str, Any] = {}
        first = keep.start or 0
        for name in ("train", "val", "test"):
            split = getattr(data, name)
            chosen = split[(split.y >= middle) == (first > 0)]
            splits[name] = Split(chosen.x, chosen.y - first)
        return replace(data, **splits, classes=data.classes[keep])

    return part(slice(middle)), with_shots(part(slice(middle, None)), shots, seed)


def with_shots(data: Data, shots: int, seed: int) -> Data:
    """The data with `shots` training images of each class, drawn under a seed.

    Raises:
        ValueError: fewer images of a class than `shots`.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data.train), generator=generator)
    labels, chosen = data.train.y[order], []
    for label in range(len(data.classes)):
        members = order[labels == label]
        if len(members) < shots:
            raise ValueError(
                f"shots={shots}; allowed: at most {len(members)} in class {label}"
            )
        chosen.append(members[:shots])
    return replace(data, train=data.train[torch.cat(chosen)])


def start(
    task: FineTuning, seed: int, checkpoint: Path | None = None
) -> tuple[nn.Sequential, Data, float | None]:
    """What fine-tuning starts from: a net, on the CPU, and its data.

    Third, the first training's accuracy on test images of its half of the classes; None
    with ImageNet's weights.

    Raises:
        FileNotFoundError, ValueError: of `images.load`, `models.pretrained`, `halves`.
    """
    source = task.source
    data = images.load(source, seed)
    if task.weights is not None:
        net = models.pretrained(source.net, len(data.classes), size=task.size)
        return net, with_shots(data, task.shots, seed), None
    first, second = halves(data, task.shots, seed)
    torch.manual_seed(seed)
    net = images.make_net(source, first)
    training = Training(source.epochs, source.epochs, seed, checkpoint=checkpoint)
    trained = train_net(
        net, first, METHODS["ERM"], _PRETRAINING, training, source.weight_decay
    )
    return net.cpu(), second, trained["metrics"]["test_accuracy"][0][0][-1]


def renewed(net: nn.Sequential, classes: int, seed: int) -> nn.Sequential:
    """A copy of the net with a new last layer, drawn under a seed.

    >>> renewed(models.mlp(2, 8, 1, 2), classes=5, seed=0)[-1]
    Linear(in_features=8, out_features=5, bias=True)
    """
    net = copy.deepcopy(net)
    torch.manual_seed(seed + 1)  # not the stream of the first training's start
    last = net[-1]
    assert isinstance(last, nn.Linear)
    net[-1] = nn.Linear(last.in_features, classes)
    return net


_started = lru_cache(maxsize=2)(start)


def train_one(
    *,
    task: dict[str, Any],
    method: str,
    setting: Setting,
    seed: int,
    resume: Path | None = None,
) -> Value:
    """Fine-tune once, or go on from a checkpoint: `runner.train_net`."""
    stated = FineTuning(**{**task, "source": Images(**task["source"])})
    net, data, _ = _started(stated, seed, training_file(resume, f"start-{seed}"))
    return train_net(
        renewed(net, len(data.classes), seed),
        data,
        METHODS[method],
        setting,
        Training(stated.epochs, stated.every, seed, checkpoint=resume),
        stated.source.weight_decay,
    )


def experiment(task: FineTuning, method: Tuned) -> Experiment:
    """The experiment of one task and method."""
    # The rates are those of training from scratch, because few images make few steps.
    # The search first ended at 0.1; ERM's best rate was that end, so it was widened for
    # all methods, before any record was made.
    pretraining = "ERM, SGD, momentum 0.9, lr 0.1, cosine"
    if task.weights is not None:
        pretraining = "torchvision, IMAGENET1K_V1"
    return images.tuned(
        __name__,
        f"finetune/{task.name}",
        task,
        method,
        budget=task.source.budget,
        seeds=task.source.seeds,
        title=f"{method.name} fine-tuning on {task.name}",
        pretraining=pretraining,
    )


def experiments() -> list[Experiment]:
    """All of fine-tuning."""
    tasks = [task for task in TASKS if isinstance(task, FineTuning)]
    return [experiment(t, m) for t in tasks for m in images.methods()]
