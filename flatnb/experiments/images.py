"""Images from scratch: every method, tuned over equally many settings.

Two ways. Perceptrons train as ensembles: all settings under each seed, and a setting is
    chosen for
each seed. Convolutional nets train one after another: all settings under one seed that
    is used for
nothing else, then the chosen setting under fresh seeds. A seed is that of the initial
weights, of batch order and augmentation, and of the split into training and validation
images.

SGD with momentum 0.9 and a cosine schedule; the baseline AdamW has its own optimizer,
learning rates and weight decay. Where a task uses part of the images, its name says how
many.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatnb import models
from flatnb.data import Data, images
from flatnb.data.augment import Compose, RandomCrop, RandomFlip
from flatnb.data.images import BUILT_IN
from flatnb.experiments import spaces
from flatnb.experiments.base import METRICS, Experiment, assemble, finished, number
from flatnb.experiments.ensembles import FLATNESS, device_name, train_members
from flatnb.experiments.spaces import Setting
from flatnb.experiments.steps import average, ema, swa
from flatnb.experiments.study import described, each
from flatnb.experiments.study import experiment as study_experiment
from flatnb.experiments.study import run as run_study
from flatnb.results.sweep import Job, Result
from flatnb.train import fit

METHODS = (
    "ERM",
    "Flooding",
    "IFlood",
    "SoftAD",
    "SAM",
    "NSO",
    "WeightNoise",
    "GNP",
    "ASAM",
    "FAM",
    "USAM",
    "RSAM",
    "SWA",
    "EMA",
    "AdamW",
)
OF_PERCEPTRONS = ("AdaFlood",)  # its auxiliary nets are trained as ensembles
LR = {"ERM": 0.1, "AdamW": 1e-3}  # of the published defaults; all but AdamW have ERM's


@dataclass(frozen=True)
class Task:
    """A data set, a net and a training; `None` images: all there are.

    `data` is a name of `flatnb.data.images`, or of a folder in $FLATNB_DATA. `net` is
    "mlp" (its `depth` hidden layers `width` wide), "small_cnn", "resnet18" or
    "resnet34".
    """

    name: str
    data: str
    net: str
    width: int
    epochs: int
    batch: int
    budget: int
    seeds: int
    depth: int = 1
    n_train: int | None = None
    n_val: int | None = None
    n_test: int | None = None
    augment: str = "none"
    weight_decay: float = 0.0
    every: int = 10


def _cifar(
    name: str, net: str, width: int, epochs: int, *, batch: int = 128, **others: Any
) -> Task:
    data, augment = name.rpartition("-n")[0] or name, "crop, flip"
    return Task(
        f"{name}-{net}",
        data,
        net,
        width,
        epochs,
        batch,
        4,
        3,
        augment=augment,
        weight_decay=5e-4,
        **others,
    )


FEW = {"n_train": 4000, "n_val": 1000, "n_test": 2000}
# Task, its value, and minutes of one run of a 1-pass method: on a GPU, on one CPU core.
TASKS: tuple[tuple[Task, int, float, float], ...] = (
    (Task("digits-mlp", "digits", "mlp", 64, 40, 64, 20, 5), 4, 0.02, 0.055),
    (
        Task(
            "MNIST-n5000-mlp",
            "MNIST",
            "mlp",
            64,
            20,
            100,
            12,
            5,
            n_train=5000,
            n_val=2000,
        ),
        4,
        0.1,
        0.2,
    ),
    (_cifar("cifar10-jpeg-n4000", "small_cnn", 16, 15, **FEW), 5, 0.1, 0.8),
    # A CPU's share of the line below it: few images, an eighth of the width, a fifth of
    # the epochs.
    (_cifar("cifar10-jpeg-n4000", "resnet18", 8, 10, batch=64, **FEW), 5, 0.1, 2.3),
    (_cifar("cifar10-jpeg", "resnet18", 64, 50), 5, 2.0, 2800.0),
    (_cifar("CIFAR10", "resnet34", 64, 50), 8, 3.5, 5800.0),
    (_cifar("CIFAR100", "resnet34", 64, 50), 8, 3.5, 5800.0),
    (_cifar("SVHN", "resnet18", 64, 30), 8, 2.0, 2400.0),
    (
        Task("FashionMNIST-mlp", "FashionMNIST", "mlp", 1000, 50, 200, 12, 5),
        7,
        1.0,
        60.0,
    ),
)


def load(task: Task, seed: int) -> Data:
    """The task's images, split into training and validation under a seed.

    Raises:
        FileNotFoundError: a folder of images without $FLATNB_DATA.
    """
    folder = None
    if task.data.lower() not in {name.lower() for name in BUILT_IN}:
        if "FLATNB_DATA" not in os.environ:
            raise FileNotFoundError(
                f"{task.data} is a folder of images: set FLATNB_DATA to the folder that holds it"
            )
        folder = Path(os.environ["FLATNB_DATA"]) / task.data
    data = images(
        task.data,
        folder=folder,
        n_train=task.n_train,
        n_val=task.n_val,
        n_test=task.n_test,
        seed=seed,
        batch_size=task.batch,
    )
    return replace(data, augment=_augmentation(task.augment))


def _augmentation(
    names: str,
) -> Callable[[Tensor, torch.Generator], Tensor] | None:
    if names == "none":
        return None
    steps: dict[str, Any] = {"crop": RandomCrop(4), "flip": RandomFlip()}
    return Compose([steps[name] for name in names.split(", ")])


def make_net(task: Task, data: Data) -> nn.Module:
    """The task's net, for its data."""
    classes, channels = len(data.classes), data.train.x.shape[-3]
    if task.net == "mlp":
        inputs = data.train.x[0].numel()
        return models.mlp(inputs, task.width, task.depth, classes)
    if task.net == "small_cnn":
        return models.small_cnn(channels, classes, width=task.width)
    resnet = {"resnet18": models.resnet18, "resnet34": models.resnet34}[task.net]
    return resnet(classes, channels=channels, width=task.width)


# --- perceptrons --------------------------------------------------------------------


def train_perceptrons(
    *, task: dict[str, Any], method: str, settings: list[Setting], seeds: list[int]
) -> dict[str, Any]:
    """Train a task's perceptron under each setting and seed: one ensemble a seed.

    Returns:
        As `plane.train`.
    """
    what = Task(**task)
    done: list[int] = []
    tables: dict[str, list[list[Any]]] = {m: [[] for _ in settings] for m in METRICS}
    ends: dict[str, list[list[Any]]] = {m: [[] for _ in settings] for m in FLATNESS}
    for seed in seeds:
        data = load(what, seed)
        done, curves, measured = train_members(
            partial(make_net, what, data),
            partial(_shared, data),
            method,
            settings,
            [seed] * len(settings),
            optimizer="sgd",
            epochs=what.epochs,
            every=what.every,
            seed=seed,
            cosine=True,
        )
        for kept, found in ((tables, curves), (ends, measured)):
            for name, values in found.items():
                for row, value in zip(kept[name], values, strict=True):
                    row.append(value)
    return {
        "epochs": done,
        "metrics": tables,
        "flatness": ends,
        "threads": torch.get_num_threads(),
        "device": device_name(),
    }


def _shared(data: Data, _: Sequence[int]) -> Data:
    return data


# --- convolutional nets -------------------------------------------------------------


def train_one(
    *, task: dict[str, Any], method: str, setting: Setting, seed: int
) -> dict[str, Any]:
    """Train a task's net once; on a GPU in bfloat16.

    Returns:
        {"epochs": [...], "metrics": {name: [[[of each epoch]]]}}: a table of one
        setting and seed.
    """
    what = Task(**task)
    data = _loaded(what, seed)
    torch.manual_seed(seed)
    return train_net(
        make_net(what, data),
        data,
        method,
        setting,
        epochs=what.epochs,
        every=what.every,
        seed=seed,
        weight_decay=what.weight_decay,
    )


def train_net(
    model: nn.Module,
    data: Data,
    method: str,
    setting: Setting,
    *,
    epochs: int,
    every: int,
    seed: int,
    weight_decay: float,
) -> dict[str, Any]:
    """`train_one` of a given net, which with SWA and EMA ends as the average."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Channels-last, which GPUs want, saves a quarter of a narrow net's time on a CPU,
    # too.
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    lr = setting["lr"]
    optimizer: torch.optim.Optimizer
    if method == "AdamW":
        decay = setting["weight_decay"]
        optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=decay)
    else:
        optimizer = torch.optim.SGD(
            model.parameters(), lr, momentum=0.9, weight_decay=weight_decay
        )
    averaged = None
    if method == "SWA":
        averaged = average(model, swa(epochs * data.steps, setting["start"]))
    if method == "EMA":
        averaged = average(model, ema(setting["decay"]))
    run = fit(
        model,
        data,
        spaces.build(method, [setting]),
        optimizer,
        epochs=epochs,
        every=every,
        seed=seed,
        average=averaged,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs),
        dtype=torch.bfloat16 if device.type == "cuda" else None,
    )
    if averaged is not None:
        model.load_state_dict(averaged.module.state_dict())
    # A run that stopped before its last epoch has no result: null there.
    shown = [e for e in range(epochs + 1) if e % every == 0 or e == epochs]
    tables: dict[str, Any] = {}
    for metric in METRICS:
        values = [
            entry.get(f"average_{metric}", entry[metric]) for entry in run.history
        ]
        curve = (
            [number(v) for v in values] if run.stopped is None else [None] * len(shown)
        )
        tables[metric] = [[curve]]
    return {"epochs": shown, "metrics": tables}


@lru_cache(maxsize=2)
def _loaded(task: Task, seed: int) -> Data:
    return load(task, seed)


def study(
    *,
    task: dict[str, Any],
    method: str,
    settings: list[Setting],
    seeds: list[int],
    checkpoint: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Tune under one seed, then run under others: `flatnb.experiments.study.run`."""
    return run_study(
        partial(train_one, task=task, method=method), settings, seeds, checkpoint
    )


# --- experiments --------------------------------------------------------------------


def experiment(
    task: Task, method: str, *, value: int, gpu_minutes: float, cpu_minutes: float
) -> Experiment:
    """The experiment of one task and method; the minutes are those of one run of one pass."""
    rates = spaces.RATES["adam" if method == "AdamW" else "sgd"]
    settings = spaces.space(method, task.budget, rates)
    told = {**asdict(task), "name": f"images/{task.name}"}
    if method == "AdaFlood":
        told["note"] = spaces.AUXILIARY
    what = described(told, method, settings, task.seeds, rates)
    given = {"task": asdict(task), "method": method}
    sample = {"task": {**asdict(task), "epochs": 1, "every": 1}, "method": method}
    minutes = {"gpu_minutes": gpu_minutes, "cpu_minutes": cpu_minutes}
    title = f"{method} on {task.name}, {task.epochs} epochs"
    if task.net != "mlp":
        return study_experiment(
            __name__,
            what,
            settings,
            given,
            sample,
            title=title,
            value=value,
            **minutes,
        )

    settings.append(spaces.default(method, LR.get(method, LR["ERM"])))
    call = f"{__name__}:train_perceptrons"
    runs = spaces.work(method, len(settings)) * task.seeds / len(settings)
    tables = {"settings": settings, "seeds": what["seeds"]}
    jobs = [
        Job(call, {**given, **tables}, 60 * cpu_minutes * runs),
        Job(call, {**sample, "settings": settings[:1], "seeds": [0]}),
    ]

    def record(results: list[Result]) -> dict[str, Any]:
        whole, sampled = finished(results)
        return assemble(
            **what,
            settings=settings,
            value=whole,
            sample=jobs[1],
            sampled=sampled,
            seconds=sum(result.seconds for result in results),
        )

    return Experiment(
        name=what["name"],
        title=title,
        value=value,
        jobs=lambda: jobs,
        record=record,
        **{name: each * runs for name, each in minutes.items()},
    )


def experiments() -> list[Experiment]:
    """All of these tasks."""
    perceptrons = [one for one in TASKS if one[0].net == "mlp"]
    return each(experiment, TASKS, METHODS) + each(
        experiment, perceptrons, OF_PERCEPTRONS
    )
