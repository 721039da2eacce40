"""The training loop: `fit` a model to data by a method, and the losses and metrics around it.

Everything a method needs of the loop is in `train_epoch`; it is the loop of any PyTorch program
with `method.backward(...)` where `loss.backward()` stood.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .methods import Method
from .methods.base import l2_norm, unwrap

if TYPE_CHECKING:
    import pandas

    from .data import Data, Split

# Entries of an evaluation batch, over examples and members together: bounds its memory.
_EVALUATION_ROWS = 1 << 16


@dataclass
class Run:
    """What `fit` returns: who trained, and the metrics of each evaluated epoch.

    Attributes:
        method: the method as it is written, e.g. "SAM(rho=0.05)".
        seed: the seed of batch order, augmentation and dropout.
        history: one dict an evaluated epoch, epoch 0 (before training) included: epoch, seconds
            (training only, since the start), passes (forward-backward passes so far), {train, val,
            test}_{loss, accuracy} (plain cross-entropy in nats, fraction correct, eval mode), norm
            (l2, all parameters). For an ensemble each metric is a list with one entry a member.
        stopped: why training ended early (a loss that is not finite), or None.
    """

    method: str
    seed: int
    history: list[dict[str, Any]] = field(default_factory=list)
    stopped: str | None = None

    def frame(self) -> pandas.DataFrame:
        """The history as a table: one row an epoch, or an epoch and member."""
        import pandas

        rows = []
        for entry in self.history:
            lists = {k: v for k, v in entry.items() if isinstance(v, list)}
            plain = {k: v for k, v in entry.items() if k not in lists}
            for member in range(len(next(iter(lists.values()), [0]))):
                own = {k: v[member] for k, v in lists.items()}
                rows.append({**plain, **({"member": member} if lists else {}), **own})
        return pandas.DataFrame(rows).assign(method=self.method, seed=self.seed)


def fit(
    model: nn.Module,
    data: Data,
    method: Method,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    seed: int,
    scheduler: Any = None,
    callbacks: Sequence[Callable[[Run, nn.Module], None]] = (),
    every: int = 1,
) -> Run:
    """Train `model` on `data.train`, and evaluate it on all splits.

    Same seed, machine and thread count give the same run bit for bit on a CPU. The global random
    stream is seeded (dropout draws from it); batch order and augmentation have their own.

    Args:
        model: a classifier, or an `Ensemble` of them; it is trained where its parameters are.
        data: moved to the model's device if it is not there.
        method: how losses become a gradient.
        optimizer: already built on the model's parameters.
        epochs: passes over the training set.
        seed: of batch order, augmentation and dropout. Initialisation is the caller's.
        scheduler: a learning-rate scheduler, stepped once an epoch.
        callbacks: each called as callback(run, model) after each evaluation.
        every: evaluate after every so many epochs, and after the last.

    Returns:
        The run. A plain model whose loss is no longer finite stops at the end of that epoch, with
        the reason in `run.stopped`; in an ensemble the other members train on.

    Raises:
        ValueError: epochs or every out of range, or an ensemble of another size than its data.
    """
    _check(model, data, epochs, every)
    device = next(model.parameters()).device
    data = data.to(device)
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    run = Run(repr(method), seed)
    seconds = 0.0
    _record(run, model, data, method, 0, seconds, callbacks)
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        loss = train_epoch(model, data.batches(order), method, optimizer)
        if scheduler is not None:
            scheduler.step()
        finite = bool(torch.isfinite(loss).any())  # waits for the device: the time is honest
        seconds += time.perf_counter() - start
        if not finite:
            run.stopped = f"the training loss was {float(loss.mean())} in epoch {epoch}"
        if epoch % every == 0 or epoch == epochs or run.stopped:
            _record(run, model, data, method, epoch, seconds, callbacks)
        if run.stopped:
            break
    return run


def train_epoch(
    model: nn.Module, batches: Any, method: Method, optimizer: torch.optim.Optimizer
) -> Tensor:
    """One pass over `batches` of (x, y); returns the mean training loss, () or (members,)."""
    model.train()
    total: Tensor | None = None
    steps = 0
    for x, y in batches:
        optimizer.zero_grad()
        loss = method.backward(model, partial(_losses, model, x, y))
        optimizer.step()
        total = loss if total is None else total + loss
        steps += 1
    if total is None:
        raise ValueError("the training data gave no batch: it is empty")
    return total / steps


def _losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x), y)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Per-example softmax cross-entropy in nats: logits (..., n, classes), y (n,) or (..., n).

    Returns (..., n): one loss an example, as a method's closure must.
    """
    y = y.expand(logits.shape[:-1])
    return F.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none").view(y.shape)


@torch.no_grad()
def evaluate(model: nn.Module, split: Split) -> dict[str, Tensor]:
    """Mean plain cross-entropy ("loss", nats) and fraction correct ("accuracy") in eval mode.

    Shapes () or (members,). The model's mode is put back.
    """
    was_training = model.training
    model.eval()
    members = getattr(unwrap(model), "members", None) or 1
    losses, correct = [], []
    for part in torch.arange(len(split)).split(max(1, _EVALUATION_ROWS // members)):
        batch = split[slice(int(part[0]), int(part[-1]) + 1)]
        logits = model(batch.x)
        losses.append(cross_entropy(logits, batch.y).sum(-1))
        correct.append((logits.argmax(-1) == batch.y).sum(-1))
    model.train(was_training)
    return {
        "loss": torch.stack(losses).sum(0) / len(split),
        "accuracy": torch.stack(correct).sum(0) / len(split),
    }


def _record(
    run: Run,
    model: nn.Module,
    data: Data,
    method: Method,
    epoch: int,
    seconds: float,
    callbacks: Sequence[Callable[[Run, nn.Module], None]],
) -> None:
    passes = epoch * data.steps * method.passes
    entry: dict[str, Any] = {"epoch": epoch, "seconds": seconds, "passes": passes}
    for name in ("train", "val", "test"):
        for metric, value in evaluate(model, getattr(data, name)).items():
            entry[f"{name}_{metric}"] = value.tolist()
    members = getattr(unwrap(model), "members", None)
    with torch.no_grad():
        entry["norm"] = l2_norm(list(model.parameters()), members).tolist()
    run.history.append(entry)
    for callback in callbacks:
        callback(run, model)


def _check(model: nn.Module, data: Data, epochs: int, every: int) -> None:
    for name, value, low in (("epochs", epochs, 0), ("every", every, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f"{name}={value!r}; allowed: an integer >= {low}")
    members = getattr(unwrap(model), "members", None)
    if data.members is not None and data.members != members:
        raise ValueError(
            f"the data holds {data.members} members, the model "
            f"{'is no Ensemble' if members is None else f'{members}'}; they must agree"
        )
