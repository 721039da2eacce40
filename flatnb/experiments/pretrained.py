"""Fine-tuning of nets with published weights on few examples per class, as in NSO's
paper (Zhang, Li and Ju): EfficientNet-Lite0 on images and MiniLM on sentences.

The last layer is replaced, and the method trains the whole net with a cosine schedule:
EfficientNet by SGD with momentum 0.9, MiniLM by Adam, without weight decay, dropout or
augmentation. BatchNorm is in train mode while training and in eval mode whenever the net
is measured; its running statistics have torch's momentum of 0.1, because at that of
ImageNet's training, 0.01, the few steps here would end in statistics of both. Images are
scaled as they were for ImageNet, not by the mean and deviation of the data set.

A seed draws the validation examples, the training examples and the new layer, and is
that of the batch order. Test examples are the same for all seeds.
"""

import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

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
from flatnb.data.sentences import read_sentences
from flatnb.experiments import finetune, runner, study
from flatnb.experiments.depthwise import twice_differentiable
from flatnb.experiments.experiment import Cost, Experiment
from flatnb.experiments.images import Plan, methods, study_of
from flatnb.experiments.runner import TUNING_SEED, Training, Value
from flatnb.experiments.tuning import ADAM, METHODS, SGD, Optimizer, Range, Setting
from flatnb.results.sweep import Job

FLATNESS = ("trace", "trace_error", "top_eigenvalue")
_VALIDATION_SHOTS = 20  # validation examples of each class
_MOST_TESTED = 2000
# Flatness costs about as much as three or four trainings of one pass.
_TRACE_ERROR = 0.1  # relative standard error; 30 probes mostly reach it
_MOST_PROBES = 40
_TOP_ERROR = 1e-3  # relative
_MOST_PRODUCTS = 60


def _tokenized(folder: Path, length: int) -> Any:
    """A folder's sentences as token ids."""
    found = read_sentences(folder)
    x = pretrained.tokens([*found.train_x, *found.test_x], length)
    first = len(found.train_x)
    return found._replace(train_x=x[:first], test_x=x[first:])  # type: ignore


class Net(NamedTuple):
    """A net with published weights, and what follows from it."""

    make: Callable[[], nn.Sequential]  # its last layer is replaced
    read: Callable[[Path, int], Any]  # all examples of a folder, at a size
    inputs: Callable[[Tensor], Tensor]  # from examples as they are read
    optimizer: Optimizer
    curvature: type[HessianOperator]  # whose trace is measured


# The trace of the Gauss-Newton matrix is that of the Hessian in a net piecewise linear in
# each parameter tensor, as EfficientNet-Lite0 is, at a third of the time; MiniLM is not.
NETS = {
    "efficientnet_lite0": Net(
        pretrained.pretrained_efficientnet_lite0,
        read_folder,
        pretrained.scaled,
        SGD,
        GaussNewtonOperator,
    ),
    "minilm": Net(
        pretrained.pretrained_minilm, _tokenized, Tensor.long, ADAM, HessianOperator
    ),
}


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A folder of images or sentences, a pretrained net, and how it is fine-tuned."""

    name: str
    data: str  # of a folder in $FLATNB_DATA
    shots: int  # training examples of each class
    size: int  # pixels per side, to which images are resized; a sentence's most tokens
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
_FEW_SIGNS = replace(_SIGNS, name="sign-language-digits-5-shots", shots=5)
_PHOTOS = replace(_SIGNS, name="cifar10-jpeg-10-shots", data="cifar10-jpeg")
# Of TREC's questions 2 % are longer than 24 tokens, of SST-2's sentences 3 % than 48.
_TREC = replace(_SIGNS, name="trec-10-shots", data="text/trec", size=24, net="minilm")
_SST2 = replace(_TREC, name="sst2-20-shots", data="text/sst2", shots=20, size=48)
# Rates in a range where plain training fits 100 images: at 0.003 not yet, at 0.2 never.
_IMAGES = Plan(
    cost=Cost(3, 0.05, 2.0),
    budget=10,
    seeds=range(TUNING_SEED, TUNING_SEED + 2),
    fresh=range(5),
    finalists=2,
    rates=Range(0.005, 0.2, 0.02, ("low", "high")),
    to_ends=True,
)
# Plain training fits 60 questions from 3e-5, barely, to 1e-3, and nothing at 3e-3.
_SENTENCES = _IMAGES._replace(
    cost=Cost(3, 0.05, 3.0), rates=Range(2e-5, 2e-3, 1e-4, ("low", "high"))
)
TASKS = {
    _SIGNS: _IMAGES,
    _PHOTOS: _IMAGES._replace(cost=Cost(3, 0.05, 2.3)),
    _FEW_SIGNS: _IMAGES._replace(cost=Cost(3, 0.05, 0.9)),
    _TREC: _SENTENCES,
    _SST2: _SENTENCES._replace(cost=Cost(3, 0.05, 4.5)),
}

# Settings that validation chose in `TASKS`, looked at again under new seeds: is a gain
# of NSO the method's, its learning rate's, or that of five seeds?
MORE_SEEDS = range(5, 20)
AGAIN: dict[str, dict[str, list[Setting]]] = {
    "sign-language-digits-5-shots": {
        "ERM": [{"lr": 0.0584804}, {"lr": 0.0516644}],
        "NSO": [{"lr": 0.0516644, "sigma": 0.0339616}],
        "SAM": [{"lr": 0.0516644, "rho": 0.151444}],
        "WeightNoise": [{"lr": 0.0516644, "sigma": 0.0339616}],
        "SWA": [{"lr": 0.0622185, "start": 0.0}],
    },
    "sst2-20-shots": {
        "ERM": [{"lr": 0.00025831}, {"lr": 8.59218e-05}],
        "NSO": [{"lr": 8.59218e-05, "sigma": 0.00214792}],
        "SAM": [{"lr": 8.59218e-05, "rho": 0.0107087}],
        "WeightNoise": [
            {"lr": 0.0017809, "sigma": 0.00526436},
            {"lr": 8.59218e-05, "sigma": 0.00214792},
        ],
        "SWA": [{"lr": 0.000108364, "start": 0.629241}],
    },
}
EQUAL_PASSES = 70  # epochs of one pass that cost what 30 of NSO do


def experiments() -> Iterator[Experiment]:
    """Each task with each method that images train large nets with, and `AGAIN`."""
    for task, plan in TASKS.items():
        plan = plan._replace(optimizer=NETS[task.net].optimizer)
        for method in methods(large=True):
            train = f"{__name__}:train_one"
            yield study_of(f"finetune/{task.name}", task, train, method, plan)
    for task in (_FEW_SIGNS, _SST2):
        for name, settings in AGAIN[task.name].items():
            yield _again(task, name, settings)
        name = f"{task.name}-{EQUAL_PASSES}-epochs"
        longer = replace(task, name=name, epochs=EQUAL_PASSES, every=EQUAL_PASSES)
        yield _again(longer, "ERM", AGAIN[task.name]["ERM"])


def _again(task: Pretrained, method: str, settings: list[Setting]) -> Experiment:
    """Settings under more seeds; nothing is chosen, and flatness is not measured."""
    call, name = f"{__name__}:train_again", f"finetune-again/{task.name}"
    stated = asdict(task)
    given = {"task": stated, "method": method, "settings": settings}
    short = {**stated, "epochs": 1, "every": 1}
    runs = len(settings) * len(MORE_SEEDS)
    return Experiment(
        name=f"{name}/{method}",
        cost=Cost(3, 0.02, 0.5).times(METHODS[method].work(runs)),
        job=Job(call, {**given, "seeds": list(MORE_SEEDS)}),
        sample=Job(
            call,
            {
                **given,
                "task": short,
                "settings": settings[:1],
                "seeds": list(MORE_SEEDS)[:1],
            },
        ),
        task={
            **stated,
            "name": name,
            "budget_unit": "epochs",
            "optimizer": NETS[task.net].optimizer.name,
            "schedule": "cosine",
        },
        method=method,
        passes=METHODS[method].passes,
        settings=settings,
        seeds=list(MORE_SEEDS),
        space="the setting that validation chose; of ERM, then NSO's rate, too",
        budget=1,
        tuned=False,
    )


@lru_cache(maxsize=2)
def load(task: Pretrained, seed: int) -> Data:
    """The task's examples. Of each class 20 training examples are for validation, and
    `shots` others are trained on: under one seed, fewer shots are some of the more.

    Raises:
        FileNotFoundError: $FLATNB_DATA has no such folder.
        ValueError: a class has fewer examples.
    """
    net = NETS[task.net]
    found = net.read(Path(os.path.expandvars(f"$FLATNB_DATA/{task.data}")), task.size)
    each = _VALIDATION_SHOTS + task.shots
    drawn = finetune.shots_of(found.train_y, len(found.classes), each, seed)
    generator = torch.Generator().manual_seed(0)
    tested = torch.randperm(len(found.test_y), generator=generator)[:_MOST_TESTED]

    def split(x: Tensor, y: Tensor, index: Tensor) -> Split:
        return Split(net.inputs(x[index]), y[index])

    train_x, train_y = found.train_x, found.train_y
    return Data(
        task.data,
        split(train_x, train_y, drawn[:, _VALIDATION_SHOTS:].flatten()),
        split(train_x, train_y, drawn[:, :_VALIDATION_SHOTS].flatten()),
        split(found.test_x, found.test_y, tested),
        classes=found.classes,
        batch_size=task.batch,
    )


def start(task: Pretrained, classes: int, seed: int) -> nn.Sequential:
    """The net that training starts from, its last layer drawn under a seed."""
    net = finetune.renewed(NETS[task.net].make(), classes, seed)
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
    net, data, value = _trained(Pretrained(**task), method, setting, seed, checkpoint)
    flatness: dict[str, float | None] = dict.fromkeys(FLATNESS)
    if value["metrics"]["train_loss"][0][0][-1] is not None:
        curvature = NETS[task["net"]].curvature
        flatness = measured(net, data.train, curvature)
    tables = {name: [[number]] for name, number in flatness.items()}
    return runner.result(value["epochs"], value["metrics"], flatness=tables)


def train_again(
    *,
    task: dict[str, Any],
    method: str,
    settings: list[Setting],
    seeds: list[int],
    checkpoint: Path | None = None,
) -> Value:
    """Fine-tune each setting under each seed, with tables [setting][seed]."""
    stated = Pretrained(**task)
    values = []
    for k, (setting, seed) in enumerate(itertools.product(settings, seeds)):
        file = checkpoint and checkpoint.with_suffix(f".{k}.pt")
        *_, value = _trained(stated, method, setting, seed, file)
        values.append(study.flat(value))
    return study.tables(study.joined(values, range(len(values))), len(seeds))


def _trained(
    task: Pretrained, method: str, setting: Setting, seed: int, checkpoint: Path | None
) -> tuple[nn.Module, Data, Value]:
    """The net as it ends, its data, and what `runner.train_net` returns."""
    data = load(task, seed)
    net = start(task, len(data.classes), seed)
    training = Training(
        task.epochs,
        task.every,
        seed,
        optimizer=NETS[task.net].optimizer,
        checkpoint=checkpoint,
    )
    return net, data, runner.train_net(net, data, METHODS[method], setting, training)


def measured(
    net: nn.Module, split: Split, curvature: type[HessianOperator] = HessianOperator
) -> dict[str, float | None]:
    """Trace of the Hessian of the mean cross-entropy, the trace's standard error, and
    the largest eigenvalue: in eval mode and float32, over all parameters. The
    eigenvalue is None where Lanczos did not converge. The trace is of `curvature`, a
    matrix that has the Hessian's diagonal; its smaller off-diagonal entries make a probe
    more precise.

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
            curvature(*given), relative=_TRACE_ERROR, max_probes=_MOST_PROBES
        )
        top = top_eigenvalues(
            HessianOperator(*given), tol=_TOP_ERROR, max_products=_MOST_PRODUCTS
        )
    value = float(top.values[0]) if top.converged else None
    return dict(zip(FLATNESS, (traced.value, traced.stderr, value), strict=True))
