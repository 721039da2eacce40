"""Fine-tuning on few examples: the setting in which NSO was proposed, offline.

Plain SGD trains a net on all images of the first half of the classes. Then its last
layer is replaced, and a method trains the whole net on few images of each other class.
(Zhang, Li and Ju start from nets trained on ImageNet.) A seed is that of the first
training, of the images taken, and of the new layer.
"""

import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from flatnb.data import Data, Split
from flatnb.data.base import SPLITS
from flatnb.experiments import images
from flatnb.experiments.images import Images
from flatnb.experiments.runner import Training, train_net
from flatnb.experiments.tuning import METHODS


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """A net trained on half of the classes, fine-tuned on few images of the others."""

    name: str
    source: Images  # the first training
    shots: int  # images of each class that are fine-tuned on
    epochs: int  # of fine-tuning


def _with_classes(data: Data, first: int, last: int) -> Data:
    """The classes from `first` to before `last`, numbered from 0."""
    parts: Any = {}
    for name in SPLITS:
        split = getattr(data, name)
        split = split[(split.y >= first) & (split.y < last)]
        parts[name] = Split(split.x, split.y - first)
    return replace(data, **parts, classes=data.classes[first:last])


def shots_of(y: Tensor, classes: int, shots: int, seed: int) -> Tensor:
    """Indices of `shots` examples of each class, drawn under a seed from the labels y
    (n,): (classes, shots). ValueError: a class has fewer.

    >>> labels = torch.tensor([1, 0, 0, 1, 1])
    >>> labels[shots_of(labels, classes=2, shots=2, seed=0)]
    tensor([[0, 0],
            [1, 1]])
    """
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    labels = y[order]
    chosen = [order[labels == label][:shots] for label in range(classes)]
    fewest = min(map(len, chosen))
    if fewest < shots:
        raise ValueError(f"{shots=}; allowed: at most {fewest} of each class")
    return torch.stack(chosen)


def _with_shots(data: Data, shots: int, seed: int) -> Data:
    """The data with `shots` training images of each class, drawn under a seed."""
    chosen = shots_of(data.train.y, len(data.classes), shots, seed)
    return replace(data, train=data.train[chosen.flatten()])


@lru_cache(maxsize=2)
def start(task: FineTuning, seed: int) -> tuple[nn.Sequential, Data, float | None]:
    """What fine-tuning starts from: a net, on the CPU; the data; the first training's
    test accuracy on its own classes. ValueError: a class has fewer images than `shots`.

    >>> task = FineTuning(name="few", source=images.DIGITS, shots=3, epochs=1)
    >>> net, data, accuracy = start(task, seed=0)
    >>> data.classes, len(data.train)
    (('5', '6', '7', '8', '9'), 15)
    """
    source = task.source
    data = images.load(source, seed)
    classes = len(data.classes)
    first = _with_classes(data, 0, classes // 2)
    second = _with_shots(_with_classes(data, classes // 2, classes), task.shots, seed)
    torch.manual_seed(seed)
    net = images.make_net(source, first)
    training = Training(source.epochs, source.epochs, seed, source.weight_decay)
    trained = train_net(net, first, METHODS["ERM"], {"lr": 0.1}, training)
    accuracy = trained["metrics"]["test_accuracy"][0][0][-1]
    return net.cpu(), second, accuracy


def renewed(net: nn.Sequential, classes: int, seed: int) -> nn.Sequential:
    """A copy of the net with a new last layer, drawn under a seed.

    >>> renewed(nn.Sequential(nn.Linear(8, 2)), classes=5, seed=0)[-1]
    Linear(in_features=8, out_features=5, bias=True)
    """
    net = copy.deepcopy(net)
    torch.manual_seed(seed + 1)  # not the stream of the first training's start
    last = net[-1]
    assert isinstance(last, nn.Linear)
    net[-1] = nn.Linear(last.in_features, classes)
    return net
