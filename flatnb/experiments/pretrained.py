"""Fine-tuning of a net with ImageNet weights on few examples per class, as in NSO's
paper (Zhang, Li and Ju).

The last layer is replaced, and the method trains the whole net: SGD with momentum 0.9
and a cosine schedule, without weight decay, dropout or augmentation. BatchNorm is in
train mode while training and in eval mode whenever the net is measured; its running
statistics have torch's momentum of 0.1, because at that of ImageNet's training, 0.01,
the few steps here would end in statistics of both. Images are scaled as they were for ImageNet, not
by the mean and deviation of the data set.

A seed draws the validation images, the training images and the new layer, and is that
of the batch order. Test images are the same for all seeds.
"""

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatnb import pretrained
from flatnb.curvature import (
    GaussNewtonOperator,
    HessianOperator,
    top_eigenvalues,
    trace,
)
from flatnb.data import Data, Split
from flatnb.data.folder import read_folder
from flatnb.experiments import finetune, runner
from flatnb.experiments.depthwise import twice_differentiable
from flatnb.experiments.experiment import Cost, Experiment
from flatnb.experiments.images import Plan, methods, study_of
from flatnb.experiments.runner import TUNING_SEED, Training, Value
from flatnb.experiments.tuning import METHODS, Range, Setting

NETS = {"efficientnet_lite0": pretrained.pretrained_efficientnet_lite0}
FLATNESS = ("trace", "trace_error", "top_eigenvalue")
_VALIDATION_SHOTS = 20  # validation images of each class
_TEST_IMAGES = 2000  # at most
# Flatness costs about as much as two or three trainings of one pass.
_TRACE_ERROR = 0.1  # relative standard error; 30 probes mostly reach it
_MOST_PROBES = 40
_TOP_ERROR = 1e-3  # relative
_MOST_PRODUCTS = 60


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A folder of images, a net with ImageNet weights, and how it is fine-tuned."""

    name: str
    data: str  # of a folder in $FLATNB_DATA
    shots: int  # training images of each class
    size: int  # pixels per side, to which images are resized
    epochs: int
    batch: int
    every: int  # epochs from one evaluation to the next
    net: str = "efficientnet_lite0"  # of `NETS`


_SIGNS = Pretrained(
    name="sign-language-digits-10-shots",
    data="sign-language-digits",
    shots=10,
    size=64,
    epochs=30,
    batch=32,
    every=30,
)
_PHOTOS = replace(_SIGNS, name="cifar10-jpeg-10-shots", data="cifar10-jpeg")
# Rates in a range where plain training fits 100 images: at 0.003 not yet, at 0.2 never.
_PLAN = Plan(
    cost=Cost(3, 0.05, 2.0),
    budget=10,
    seeds=range(TUNING_SEED, TUNING_SEED + 2),
    fresh=range(5),
    finalists=2,
    rates=Range(0.005, 0.2, 0.02, ("low", "high")),
    to_ends=True,
)
TASKS = {
    _SIGNS: _PLAN,
    _PHOTOS: _PLAN._replace(cost=Cost(3, 0.05, 2.3)),
    replace(_SIGNS, name="sign-language-digits-5-shots", shots=5): _PLAN._replace(
        cost=Cost(3, 0.05, 0.9)
    ),
}


def experiments() -> Iterator[Experiment]:
    """Each task with each method that images train large nets with."""
    for task, plan in TASKS.items():
        for method in methods(large=True):
            train = f"{__name__}:train_one"
            yield study_of(f"finetune/{task.name}", task, train, method, plan)


@lru_cache(maxsize=2)
def load(task: Pretrained, seed: int) -> Data:
    """The task's images. Of each class 20 training images are for validation, and
    `shots` others are trained on: under one seed, fewer shots are some of the more.

    Raises:
        FileNotFoundError: $FLATNB_DATA has no such folder.
        ValueError: a class has fewer images.
    """
    folder = Path(os.path.expandvars(f"$FLATNB_DATA/{task.data}"))
    pixels = read_folder(folder, task.size)
    each = _VALIDATION_SHOTS + task.shots
    drawn = finetune.shots_of(pixels.train_y, len(pixels.classes), each, seed)
    generator = torch.Generator().manual_seed(0)
    tested = torch.randperm(len(pixels.test_y), generator=generator)[:_TEST_IMAGES]

    def split(x: Tensor, y: Tensor, index: Tensor) -> Split:
        return Split(pretrained.scaled(x[index]), y[index])

    train_x, train_y = pixels.train_x, pixels.train_y
    return Data(
        task.data,
        split(train_x, train_y, drawn[:, _VALIDATION_SHOTS:].flatten()),
        split(train_x, train_y, drawn[:, :_VALIDATION_SHOTS].flatten()),
        split(pixels.test_x, pixels.test_y, tested),
        classes=pixels.classes,
        batch_size=task.batch,
    )


def start(task: Pretrained, classes: int, seed: int) -> nn.Sequential:
    """The net that training starts from, its last layer drawn under a seed."""
    net = finetune.renewed(NETS[task.net](), classes, seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return net


def train_one(
    *,
    task: dict[str, Any],
    method: str,
    setting: Setting,
    seed: int,
    checkpoint: Path | None = None,
) -> Value:
    """Fine-tune once, or go on from a checkpoint: `runner.train_net`, with "flatness",
    {name: [[value]]}, of the net as it ends."""
    stated = Pretrained(**task)
    data = load(stated, seed)
    net = start(stated, len(data.classes), seed)
    training = Training(stated.epochs, stated.every, seed, checkpoint=checkpoint)
    value = runner.train_net(net, data, METHODS[method], setting, training)
    flatness: dict[str, float | None] = dict.fromkeys(FLATNESS)
    if value["metrics"]["train_loss"][0][0][-1] is not None:
        flatness = measured(net, data.train)
    tables = {name: [[number]] for name, number in flatness.items()}
    return runner.result(value["epochs"], value["metrics"], flatness=tables)


def measured(net: nn.Module, split: Split) -> dict[str, float | None]:
    """Trace of the Hessian of the mean cross-entropy, the trace's standard error, and
    the largest eigenvalue: in eval mode and float32, over all parameters. The
    eigenvalue is None where Lanczos did not converge.

    The trace is that of the Gauss-Newton matrix, which has the Hessian's diagonal in a
    net piecewise linear in each parameter tensor, as these are, and entries beside it
    that are smaller: a probe says more.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    >>> nn.init.zeros_(net[1].weight)
    Parameter containing:
    tensor([[0., 0.],
            [0., 0.]], requires_grad=True)
    >>> found = measured(net, Split(torch.eye(2), torch.tensor([0, 1])))
    >>> {name: round(value, 4) for name, value in found.items()}
    {'trace': 0.5, 'trace_error': 0.0, 'top_eigenvalue': 0.25}
    """
    net = twice_differentiable(net)
    given = net, F.cross_entropy, [(split.x.to(runner.device()), split.y)]
    with warnings.catch_warnings():
        # Of too large an error, which is returned, and of no convergence: None.
        warnings.simplefilter("ignore")
        # One after the other, because each holds a graph of gigabytes.
        traced = trace(
            GaussNewtonOperator(*given), relative=_TRACE_ERROR, max_probes=_MOST_PROBES
        )
        top = top_eigenvalues(
            HessianOperator(*given), tol=_TOP_ERROR, max_products=_MOST_PRODUCTS
        )
    value = float(top.values[0]) if top.converged else None
    return dict(zip(FLATNESS, (traced.value, traced.stderr, value), strict=True))
