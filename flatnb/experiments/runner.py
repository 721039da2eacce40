"""Training the settings of a method, all members at once or one net after another."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from flatnb.curvature import FLATNESS, ensemble_flatness
from flatnb.data import Data
from flatnb.ensemble import Ensemble, groups
from flatnb.experiments.tuning import METHODS, SGD, Optimizer, Setting, Tuned
from flatnb.methods import held_out_losses
from flatnb.metrics import cross_entropy
from flatnb.results import form
from flatnb.results.sweep import Job
from flatnb.train import Run, fit

METRICS = (
    *("train_loss", "train_accuracy", "val_loss", "val_accuracy"),
    *("test_loss", "test_accuracy", "test_ece", "norm", "grad_norm"),
)
TUNING_SEED = 1000  # used for nothing but the choice of a setting
_FLATNESS_EXAMPLES = 2048  # as many as the gradient's norm is taken of
# Parameters of an ensemble on a GPU: 5 GB, 20 numbers each, because a member takes 14
# times its parameters, and its activations, while its flatness is measured.
_ON_GPU = 1 << 26

Curve = list[float | None]  # a number per epoch
Value = dict[str, Any]


@dataclass(frozen=True)
class Training:
    """How a task trains its nets; a method's own optimizer replaces the task's."""

    epochs: int
    every: int
    seed: int
    weight_decay: float = 0.0
    optimizer: Optimizer = SGD
    cosine: bool = True  # the learning rate is annealed to 0
    checkpoint: Path | None = None  # an interrupted training goes on from there

    def run(
        self,
        model: nn.Module,
        data: Data,
        method: Tuned,
        settings: Sequence[Setting],
        held_out: Tensor | None = None,
    ) -> tuple[Run, Any]:
        """Train an `Ensemble`, a setting per member, or a net, on a GPU in bfloat16.
        Returns the run, and what it measured: the weights' average, where there is one.
        """
        # GPUs want channels-last, which saves a quarter of a narrow net's time on CPUs.
        layout: Any = {"memory_format": torch.channels_last}
        model.to(device(), **layout)
        average = method.averaged(model, settings, self.epochs * data.steps)
        kind = method.optimizer or self.optimizer
        optimizer = kind.build(model, settings, self.weight_decay)
        schedule = CosineAnnealingLR(optimizer, self.epochs) if self.cosine else None
        half = device().type == "cuda" and not isinstance(model, Ensemble)
        run = fit(
            model,
            data,
            method.build(settings, held_out),
            optimizer,
            epochs=self.epochs,
            seed=self.seed,
            scheduler=schedule,
            every=self.every,
            dtype=torch.bfloat16 if half else None,
            average=average,
            checkpoint=self.checkpoint,
        )
        return run, model if average is None else average.module


def device() -> torch.device:
    """The device that the experiments train on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def result(epochs: Sequence[int], metrics: Mapping[str, Any], **tables: Any) -> Value:
    """What a job returns: tables as a record has them, to 6 digits and None where there
    is no number; and the threads and the device that it used.

    >>> result([0], {"test_loss": torch.tensor([[[1 / 3]]])})["metrics"]
    {'test_loss': [[[0.333333]]]}
    """
    on_gpu = device().type == "cuda"
    return {
        "epochs": list(epochs),
        **form.plain({"metrics": metrics, **tables}, "record.final"),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
    }


def _history(run: Run, metric: str) -> list[Any]:
    """A metric by epoch: of the average of the weights, where there is one."""
    return [entry.get(f"average_{metric}", entry[metric]) for entry in run.history]


def train_members(
    make_model: Callable[[], nn.Module],
    data: Callable[[Sequence[int]], Data],
    method: Tuned,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    training: Training,
) -> Value:
    """Train each setting under each seed, in ensembles that fit the memory.

    `make_model` makes the plain net, under each member's seed; `data`, called with the
    seeds of members, is theirs, stacked or shared. Returns "epochs"; "metrics", {name
    of METRICS: [setting][seed][epoch]}; and "flatness", {name of FLATNESS:
    [setting][seed]} of the first 2048 training examples at the end. All are of the
    weights' average, if any.
    """
    members = list(itertools.product(settings, seeds))
    rows: dict[str, list[Any]] = {name: [] for name in (*METRICS, *FLATNESS)}
    epochs: list[int] = []
    checkpoint = training.checkpoint
    losses = None
    if method.auxiliary:
        examples = data(seeds).to(device())
        losses = _held_out(make_model, examples, method.auxiliary, seeds, training)
        losses = losses.repeat(len(settings), 1)
    limit = {"at_once": _ON_GPU} if device().type == "cuda" else {}
    for k, part in enumerate(groups(make_model(), len(members), **limit)):
        tried, drawn = zip(*(members[i] for i in part), strict=True)
        examples = data(drawn).to(device())
        file = checkpoint and checkpoint.with_suffix(f".{training.seed}-{k}.pt")
        run, net = replace(training, checkpoint=file).run(
            Ensemble(make_model, len(part), drawn),
            examples,
            method,
            tried,
            None if losses is None else losses[part],
        )
        epochs = [entry["epoch"] for entry in run.history]
        for metric in METRICS:
            rows[metric] += zip(*_history(run, metric), strict=True)
        first = examples.train[:_FLATNESS_EXAMPLES]
        for measure, values in ensemble_flatness(net, first.x, first.y).items():
            rows[measure] += values.tolist()
    starts = range(0, len(members), len(seeds))
    tables = {n: [row[i : i + len(seeds)] for i in starts] for n, row in rows.items()}
    metrics = {name: tables[name] for name in METRICS}
    return result(epochs, metrics, flatness={name: tables[name] for name in FLATNESS})


def _held_out(
    make_model: Callable[[], nn.Module],
    data: Data,
    folds: int,
    seeds: Sequence[int],
    training: Training,
) -> Tensor:
    """Losses of the training examples under auxiliary nets, (seeds, examples); these
    train plainly at the published learning rate."""
    # One draw for all seeds, because examples may lie in order.
    generator = torch.Generator().manual_seed(training.seed)
    order = torch.randperm(len(data.train), generator=generator)
    settings = [{"lr": training.optimizer.rates.default}] * len(seeds)
    plain = replace(training, every=training.epochs, checkpoint=None)

    def train(indices: Tensor) -> Callable[[Tensor], Tensor]:
        model = Ensemble(make_model, len(seeds), seeds)
        part = replace(data, train=data.train[indices])
        plain.run(model, part, METHODS["ERM"], settings)

        def score(fold: Tensor) -> Tensor:
            split = data.train[fold]
            return cross_entropy(model.eval()(split.x), split.y)

        return score

    return held_out_losses(order, folds, train)


def train_net(
    model: nn.Module, data: Data, method: Tuned, setting: Setting, training: Training
) -> Value:
    """Train a net, which ends as the average of its weights, where there is one.
    Returns "epochs" and "metrics", {name of METRICS: [[curve]]}, a table of one setting
    and seed; the curves of a run that stopped early are None throughout."""
    run, net = training.run(model, data, method, [setting])
    if net is not model:
        model.load_state_dict(net.state_dict())
    last = training.epochs
    epochs = [e for e in range(last + 1) if e % training.every == 0 or e == last]
    curves = {metric: _history(run, metric) for metric in METRICS}
    if run.stopped is not None:
        curves = dict.fromkeys(METRICS, [None] * len(epochs))
    return result(epochs, {metric: [[curve]] for metric, curve in curves.items()})


def tune(
    *,
    train: str,
    task: dict[str, Any],
    method: str,
    settings: list[Setting],
    seeds: list[int],
    checkpoint: Path | None = None,
) -> Value:
    """Train every setting under TUNING_SEED, then the best of them under each seed, by
    calls of `train`, such as "flatnb.experiments.images:train_one". Returns "epochs";
    "metrics", {name: [setting][seed][epoch]}, None where nothing was run; and "tuning",
    {tuning_name: [setting][seed]}, in its first column the ends under TUNING_SEED."""

    def train_at(index: int, seed: int) -> Value:
        run = {"task": task, "method": method, "setting": settings[index], "seed": seed}
        file = checkpoint and checkpoint.with_suffix(f".{index}-{seed}.pt")
        return Job(train, run).run(file)

    tried = [train_at(index, TUNING_SEED) for index in range(len(settings))]
    ends = {m: [value["metrics"][m][0][0][-1] for value in tried] for m in METRICS}
    chosen = choose(ends["val_accuracy"], ends["val_loss"])
    runs = [train_at(chosen, seed) for seed in seeds]
    epochs = runs[0]["epochs"]
    unused: list[Curve] = [[None] * len(epochs)] * len(seeds)
    metrics = {metric: [unused] * len(settings) for metric in METRICS}
    for metric, table in metrics.items():
        table[chosen] = [value["metrics"][metric][0][0] for value in runs]
    empty = [None] * (len(seeds) - 1)
    tuning = {f"tuning_{m}": [[end, *empty] for end in ends[m]] for m in METRICS}
    return result(epochs, metrics, tuning=tuning)


def choose(accuracies: Curve, penalties: Curve) -> int:
    """The setting of best accuracy, ties by lower penalty, of those that have both.

    >>> choose([0.8, 0.9, 0.9, 1.0], [0.1, 0.3, 0.2, None])
    2
    """
    ranks = [(-math.inf, 0.0)] * len(accuracies)
    for i, (accuracy, penalty) in enumerate(zip(accuracies, penalties, strict=True)):
        if accuracy is not None and penalty is not None:
            ranks[i] = (accuracy, -penalty)
    return ranks.index(max(ranks))
