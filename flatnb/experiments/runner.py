"""Training the settings of a method, all members at once or one net after another."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from flatnb.curvature import FLATNESS, ensemble_flatness
from flatnb.data import Data
from flatnb.ensemble import Ensemble, groups
from flatnb.experiments.tuning import METHODS, SGD, Optimizer, Setting, Tuned
from flatnb.methods import held_out_losses
from flatnb.metrics import cross_entropy
from flatnb.results import form, provenance
from flatnb.train import Run, fit

METRICS = (
    *("train_loss", "train_accuracy", "val_loss", "val_accuracy"),
    *("test_loss", "test_accuracy", "test_ece", "norm", "grad_norm"),
)
_FLATNESS_EXAMPLES = 2048  # as many as the gradient's norm is taken of
# Parameters of an ensemble on a GPU: 5 GB, 20 numbers each, because a member takes 14
# times its parameters, and its activations, while its flatness is measured.
_ON_GPU = 1 << 26

TUNING_SEED = 1000  # for the choice of a setting
# Whether a net, not an ensemble, trains in bfloat16; None: if it is on a GPU.
_HALF: ContextVar[bool | None] = ContextVar("_HALF", default=None)
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
        optimizer = kind.build(model, settings, self.weight_decay, len(data.train))
        schedule = CosineAnnealingLR(optimizer, self.epochs) if self.cosine else None
        half = _HALF.get()
        if half is None:
            half = device().type == "cuda"
        run = fit(
            model,
            data,
            method.build(settings, held_out),
            optimizer,
            epochs=self.epochs,
            seed=self.seed,
            scheduler=schedule,
            every=self.every,
            dtype=torch.bfloat16 if half and not isinstance(model, Ensemble) else None,
            average=average,
            checkpoint=self.checkpoint,
        )
        return run, model if average is None else average.module


@contextmanager
def in_precision_of(device: str) -> Iterator[None]:
    """Train a net, wherever, in the precision of a device by its name in a record:
    "cpu" in float32, a GPU in bfloat16. Even two steps of fine-tuning end differently.

    >>> with in_precision_of("NVIDIA H200"):
    ...     pass
    """
    token = _HALF.set(device != "cpu")
    try:
        yield
    finally:
        _HALF.reset(token)


def device() -> torch.device:
    """The device that the experiments train on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def result(epochs: Sequence[int], metrics: Mapping[str, Any], **tables: Any) -> Value:
    """What a job returns: tables as a record has them, to 6 digits and None where there
    is no number; and the machine that it ran on.

    >>> result([0], {"test_loss": torch.tensor([[[1 / 3]]])})["metrics"]
    {'test_loss': [[[0.333333]]]}
    """
    return {
        "epochs": list(epochs),
        **form.plain({"metrics": metrics, **tables}, "record.final"),
        "machine": provenance.machine(),
    }


def _history(run: Run, metric: str) -> list[Any]:
    """A metric by epoch: of the average of the weights, where there is one."""
    return [entry.get(f"average_{metric}", entry[metric]) for entry in run.history]


class Member(NamedTuple):
    """A net to train. `order` numbers the orders of batches that a seed can have."""

    setting: Setting
    seed: int
    order: int = 0


def train_members(
    make_model: Callable[[], nn.Module],
    data: Callable[[Sequence[Member]], Data],
    method: Tuned,
    members: Sequence[Member],
    training: Training,
) -> Value:
    """Train all members, in ensembles that fit the memory.

    `make_model` makes the plain net, under each member's seed; `data`, called with
    members, is theirs, stacked or shared. Returns "epochs"; "metrics", {name of
    METRICS: [member][epoch]}; and "flatness", {name of FLATNESS: [member]} of the first
    2048 training examples at the end. All are of the weights' average, if any.
    """
    rows: dict[str, list[Any]] = {name: [] for name in (*METRICS, *FLATNESS)}
    epochs: list[int] = []
    checkpoint = training.checkpoint
    losses = None
    if method.auxiliary:
        keys = [(member.seed, member.order) for member in members]
        distinct = dict(zip(keys, members, strict=True))
        examples = data(list(distinct.values())).to(device())
        seeds = [seed for seed, _ in distinct]
        held_out = _held_out(make_model, examples, method.auxiliary, seeds, training)
        losses = held_out[[list(distinct).index(key) for key in keys]]
    limit = {"at_once": _ON_GPU} if device().type == "cuda" else {}
    for k, part in enumerate(groups(make_model(), len(members), **limit)):
        nets = members[part.start : part.stop]
        examples = data(nets).to(device())
        file = checkpoint and checkpoint.with_suffix(f".{training.seed}-{k}.pt")
        run, net = replace(training, checkpoint=file).run(
            Ensemble(make_model, len(nets), [member.seed for member in nets]),
            examples,
            method,
            [member.setting for member in nets],
            None if losses is None else losses[part],
        )
        epochs = [entry["epoch"] for entry in run.history]
        for metric in METRICS:
            rows[metric] += zip(*_history(run, metric), strict=True)
        first = examples.train[:_FLATNESS_EXAMPLES]
        for measure, values in ensemble_flatness(net, first.x, first.y).items():
            rows[measure] += values.tolist()
    metrics = {name: rows[name] for name in METRICS}
    return result(epochs, metrics, flatness={name: rows[name] for name in FLATNESS})


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
