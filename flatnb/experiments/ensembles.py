"""Many settings of one method, trained as ensembles, with the metrics of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.swa_utils import AveragedModel

from flatnb.curvature import FLATNESS, ensemble_flatness
from flatnb.data import Data
from flatnb.ensemble import Ensemble, groups, member_learning_rates
from flatnb.experiments import spaces
from flatnb.experiments.base import METRICS, number
from flatnb.experiments.spaces import Setting
from flatnb.experiments.steps import average, ema, swa
from flatnb.methods import ERM
from flatnb.metrics import cross_entropy
from flatnb.train import fit

Curves = dict[str, list[list[float | None]]]  # metric -> [member][epoch]
Flatness = dict[str, list[float | None]]  # measure -> [member]
_FLATNESS_EXAMPLES = 2048  # as many as the gradient's norm is taken of
# Of auxiliary nets, by optimizer: the published defaults of the tasks here.
_AUXILIARY_LR = {"adam": 1e-3, "sgd": 0.1}


def train_members(
    make_model: Callable[[], nn.Module],
    data: Callable[[Sequence[int]], Data],
    method: str,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    *,
    optimizer: str,
    epochs: int,
    every: int,
    seed: int,
    cosine: bool = False,
) -> tuple[list[int], Curves, Flatness]:
    """Train one member for each setting and seed, in ensembles that fit the memory.

    Args:
        make_model: the plain net, made under each member's seed.
        data: called with places of members; their data, stacked or shared by all.
            Members of one seed have the same.
        method: a name of `spaces.METHODS`.
        settings, seeds: one a member.
        optimizer: "adam", or "sgd" with momentum 0.9; the baselines AdamW and SGD have
            their own.
        epochs, every, seed: of `flatnb.fit`. AdaFlood's auxiliary nets train for as
            many epochs.
        cosine: anneal the learning rates to 0 over the epochs.

    Returns:
        The evaluated epochs, METRICS for each member and epoch, and FLATNESS for each
        member at the end, on the first 2048 of its training examples; 6 digits, None
        where there is no number, or no converged eigenvalue. SWA and EMA have all of
        the average.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts = _parts(make_model(), len(settings), device)
    curves: Curves = {metric: [] for metric in METRICS}
    measured: Flatness = {measure: [] for measure in FLATNESS}
    done: list[int] = []
    losses = None
    if method == "AdaFlood":
        alone = sorted(set(seeds))
        losses = held_out_losses(
            make_model,
            data([seeds.index(one) for one in alone]).to(device),
            alone,
            optimizer=optimizer,
            epochs=epochs,
            seed=seed,
            cosine=cosine,
        )[[alone.index(one) for one in seeds]]
    for part in parts:
        own = [settings[i] for i in part]
        model = Ensemble(make_model, len(part), [seeds[i] for i in part]).to(device)
        given = data(part).to(device)
        rule = make_optimizer(
            method if method in ("AdamW", "SGD") else optimizer, model, own
        )
        averaged = _average(method, model, own, epochs * given.steps)
        run = fit(
            model,
            given,
            spaces.build(method, own, None if losses is None else losses[part]),
            rule,
            epochs=epochs,
            every=every,
            seed=seed,
            average=averaged,
            scheduler=CosineAnnealingLR(rule, epochs) if cosine else None,
        )
        done = [entry["epoch"] for entry in run.history]
        for metric, rows in curves.items():
            table = [
                [number(v) for v in entry.get(f"average_{metric}", entry[metric])]
                for entry in run.history
            ]
            rows.extend([list(row) for row in zip(*table, strict=True)])
        net = model if averaged is None else cast(Ensemble, averaged.module)
        shown = given.train[:_FLATNESS_EXAMPLES]
        ends = ensemble_flatness(net, shown.x, shown.y)
        settled = ends.residual <= ends.settings["tol"] * ends.top_eigenvalue.abs()
        ends = replace(
            ends, top_eigenvalue=ends.top_eigenvalue.where(settled, torch.nan)
        )
        for measure, values in measured.items():
            values.extend(number(v) for v in getattr(ends, measure).tolist())
    return done, curves, measured


def _parts(net: nn.Module, members: int, device: torch.device) -> list[range]:
    """Places of the members of each ensemble; on a GPU as few as its free memory allows."""
    if device.type == "cpu":
        return groups(net, members)
    # A member takes most while its flatness is measured: 14 times its parameters,
    # gradients and Adam's averages among them, and its activations.
    each = max(p.element_size() for p in net.parameters())
    return groups(net, members, available_bytes(device) // (20 * each))


def available_bytes(device: torch.device) -> int:
    """Free memory of a GPU, with what PyTorch holds of tensors that are freed."""
    reserved = torch.cuda.memory_reserved(device)
    free, _ = torch.cuda.mem_get_info(device)
    return free + reserved - torch.cuda.memory_allocated(device)


def held_out_losses(
    make_model: Callable[[], nn.Module],
    data: Data,
    seeds: Sequence[int],
    *,
    optimizer: str,
    epochs: int,
    seed: int,
    cosine: bool = False,
) -> Tensor:
    """Losses of all training examples under nets that did not train on them, (seeds,
    examples).

    `flatnb.methods.held_out_losses` for several seeds at once: `spaces.FOLDS` nets a
        seed, trained
    plainly at the published default learning rate. The parts left out are drawn, one
    draw for all seeds, since examples may lie in order.

    Args:
        data: of all seeds, stacked, or shared by them; on the device to train on.
        optimizer, epochs, seed, cosine: of `train_members`.
    """
    n = len(data.train)
    losses = torch.empty(len(seeds), n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for part in order.tensor_split(spaces.FOLDS):
        rest = replace(data, train=data.train[order[~torch.isin(order, part)]])
        model = Ensemble(make_model, len(seeds), seeds).to(data.train.x.device)
        rule = make_optimizer(
            optimizer, model, [{"lr": _AUXILIARY_LR[optimizer]}] * len(seeds)
        )
        schedule = CosineAnnealingLR(rule, epochs) if cosine else None
        fit(
            model,
            rest,
            ERM(),
            rule,
            epochs=epochs,
            every=epochs,
            seed=seed,
            scheduler=schedule,
        )
        held = data.train[part]
        with torch.no_grad():
            losses[:, part] = cross_entropy(model.eval()(held.x), held.y).cpu()
    return losses


def make_optimizer(
    name: str, model: nn.Module, settings: Sequence[Setting]
) -> torch.optim.Optimizer:
    """The optimizer of an ensemble, each member with the learning rate of its setting.

    AdamW's weight decay, too: members of one group share it, so it is applied after the
    step, w <- w - lr_m * decay_m * w_old, which is what AdamW does.

    Raises:
        ValueError: an unknown name.
    """
    rates = [setting["lr"] for setting in settings]
    params = list(model.parameters())
    # What a step of a large ensemble costs a GPU is passes over the weights; fused,
    # there is one.
    given: Any = {"lr": max(rates), "fused": True if params[0].is_cuda else None}
    made: torch.optim.Optimizer
    if name in ("adam", "AdamW"):
        made = torch.optim.Adam(params, **given)
    elif name in ("sgd", "SGD"):
        made = torch.optim.SGD(params, **given, momentum=0.9)
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
