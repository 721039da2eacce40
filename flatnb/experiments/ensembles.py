"""Many settings of one method, trained as ensembles, with the metrics of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ..data import Data
from ..ensemble import Ensemble, groups
from ..train import fit
from . import spaces
from .base import METRICS, number
from .spaces import Setting
from .steps import average, ema, member_learning_rates, swa

Curves = dict[str, list[list[float | None]]]  # metric -> [member][epoch]


def train_members(
    make_model: Callable[[], nn.Module],
    data: Callable[[range], Data],
    method: str,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    *,
    optimizer: str,
    epochs: int,
    every: int,
    seed: int,
    cosine: bool = False,
) -> tuple[list[int], Curves]:
    """Train one member for each setting and seed, in ensembles that fit the memory.

    Args:
        make_model: the plain net, made under each member's seed.
        data: called with a range of members; their data, stacked or shared by all.
        method: a name of `spaces.METHODS`.
        settings, seeds: one a member.
        optimizer: "adam", or "sgd" with momentum 0.9; the baselines AdamW and SGD have their own.
        epochs, every, seed: of `flatnb.fit`.
        cosine: anneal the learning rates to 0 over the epochs.

    Returns:
        The evaluated epochs, and METRICS for each member and epoch, 6 digits, None where there is
        no number. SWA and EMA have the losses, accuracies and calibration errors of the average.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # A GPU holds all members of the tasks here, and is the faster the more there are.
    parts = [range(len(settings))] if device.type == "cuda" else groups(make_model(), len(settings))
    curves: Curves = {metric: [] for metric in METRICS}
    done: list[int] = []
    for part in parts:
        own = [settings[i] for i in part]
        model = Ensemble(make_model, len(part), [seeds[i] for i in part]).to(device)
        given = data(part).to(device)
        rule = make_optimizer(method if method in ("AdamW", "SGD") else optimizer, model, own)
        averaged = _average(method, model, own, epochs * given.steps)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(rule, epochs) if cosine else None
        run = fit(
            model, given, spaces.build(method, own), rule,
            epochs=epochs, every=every, seed=seed, scheduler=schedule, average=averaged,
        )  # fmt: skip
        done = [entry["epoch"] for entry in run.history]
        for metric, rows in curves.items():
            table = [
                [number(v) for v in entry.get(f"average_{metric}", entry[metric])]
                for entry in run.history
            ]
            rows.extend([list(row) for row in zip(*table, strict=True)])
    return done, curves


def make_optimizer(
    name: str, model: nn.Module, settings: Sequence[Setting]
) -> torch.optim.Optimizer:
    """The optimizer of an ensemble, each member with the learning rate of its setting.

    AdamW's weight decay, too: members of one group share it, so it is applied after the step,
    w <- w - lr_m * decay_m * w_old, which is what AdamW does.

    Raises:
        ValueError: an unknown name.
    """
    rates = [setting["lr"] for setting in settings]
    lr = max(rates)
    made: torch.optim.Optimizer
    if name in ("adam", "AdamW"):
        made = torch.optim.Adam(model.parameters(), lr=lr)
    elif name in ("sgd", "SGD"):
        made = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    else:
        raise ValueError(f"no optimizer {name!r}; allowed: adam, sgd, AdamW, SGD")
    decays = [setting.get("weight_decay", 0.0) for setting in settings]
    member_learning_rates(made, rates, decays if any(decays) else None)
    return made


def _average(
    method: str, model: nn.Module, settings: Sequence[Setting], steps: int
) -> AveragedModel | None:
    if method == "SWA":
        return average(model, swa(steps, torch.tensor([s["start"] for s in settings])))
    if method == "EMA":
        return average(model, ema(torch.tensor([s["decay"] for s in settings])))
    return None


def device_name() -> str:
    """Of the device that `train_members` uses."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
