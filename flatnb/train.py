"""The training loop, `fit`. Its `train_epoch` is the loop of any PyTorch program, with
`method.backward(...)` in place of `loss.backward()`.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, update_bn

from flatnb._checks import instance, integer, shown
from flatnb._nets import distributed, unwrap
from flatnb._nets import members as members_of
from flatnb._tensors import l2_norm, present
from flatnb.checkpoint import Checkpoint
from flatnb.data import Data
from flatnb.methods import Method
from flatnb.metrics import cross_entropy, evaluate, gradient_norm

if TYPE_CHECKING:
    import pandas

Callback = Callable[["Run", nn.Module], None]


@dataclass
class Run:
    """The result of `fit`: method, seed, and the metrics of each evaluated epoch.

    Attributes:
        history: one dict per evaluated epoch, from 0, before training: epoch; seconds
            of training and passes (forward-backward) so far; {train, val, test}_{loss,
            accuracy, ece} (of `evaluate`); norm (l2, all parameters); grad_norm (of
            `gradient_norm`); with an average its metrics too, as average_train_loss.
            For an ensemble each metric is a list with an entry per member.
        stopped: why training ended early (a gradient that is not finite), or None.
        epoch, seconds: of training so far.
    """

    method: str
    seed: int
    history: list[dict[str, Any]] = field(default_factory=list)
    stopped: str | None = None
    epoch: int = 0
    seconds: float = 0.0

    def frame(self) -> pandas.DataFrame:
        """The history as a table: one row per epoch, or per epoch and member."""
        import pandas

        rows = []
        for entry in self.history:
            lists = {k: v for k, v in entry.items() if isinstance(v, list)}
            shared = {k: v for k, v in entry.items() if k not in lists}
            if not lists:
                rows.append(shared)
            for member, values in enumerate(zip(*lists.values(), strict=True)):
                metrics = dict(zip(lists, values, strict=True))
                rows.append({**shared, "member": member, **metrics})
        return pandas.DataFrame(rows).assign(method=self.method, seed=self.seed)


def fit(
    model: nn.Module,
    data: Data,
    method: Method,
    optimizer: Optimizer,
    *,
    epochs: int,
    seed: int,
    scheduler: LRScheduler | None = None,
    callbacks: Sequence[Callback] = (),
    every: int = 1,
    dtype: torch.dtype | None = None,
    average: AveragedModel | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Run:
    """Train a classifier, or an `Ensemble` of them, on `data.train`; evaluate it.

    Seeds the global random stream: same seed, machine and thread count, same run. A
    model stops before the first step whose gradient is not finite; of an ensemble only
    the member concerned is lost. The page library/training says more: "How fit behaves".

    Args:
        model: any classifier, an `nn.Module` on the device of the data.
        data: a `flatnb.data.Data`.
        method: such as `flatnb.SAM(rho=0.05)`; plain training is `flatnb.ERM()`.
        optimizer: of `torch.optim`, or `flatnb.BSAM`, each of whose two passes takes
            the method's gradient: `flatnb.ERM()` gives bSAM.
        seed: of batch order, augmentation and dropout; not of the initial weights.
        scheduler: of the learning rate, stepped once per epoch.
        callbacks: each called as callback(run, model) after each evaluation.
        every: epochs between two evaluations; the last epoch has one, too.
        dtype: torch.bfloat16 to train under autocast; evaluation is not.
        average: of the weights, updated each step and evaluated next to the model,
            after its BatchNorm statistics are recomputed on the training data.
        checkpoint: a file to resume from if it exists, and to write, once per minute
            and at the end. A resumed run equals the uninterrupted one, on a CPU bit for bit.

    >>> import flatnb
    >>> from flatnb import data, models
    >>> net, plane = models.mlp(2, 4, 1, 2), data.plane("gaussian", n_test=100)
    >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> run = flatnb.fit(net, plane, flatnb.SAM(0.05), sgd, epochs=2, seed=0)
    >>> run.frame()[["epoch", "passes"]].values.tolist()
    [[0, 0], [1, 4], [2, 8]]
    """
    _check(model, data, method, optimizer)
    epochs = integer("epochs", epochs, 0, 1 << 31)
    every = integer("every", every)
    seed = integer("seed", seed, 0, 1 << 63)
    if dtype not in (None, torch.bfloat16):
        raise ValueError(f"dtype={shown(dtype)}; allowed: None, torch.bfloat16")
    net = unwrap(model)
    device = next(net.parameters()).device
    data = data.to(device)
    modules = [net] if average is None else [net, average]
    if device.type == "cuda" and any(isinstance(m, nn.Conv2d) for m in net.modules()):
        for module in modules:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    run = Run(repr(method), seed)
    passes = method.passes * getattr(optimizer, "passes", 1)
    parts: dict[str, Any] = {"model": net, "method": method, "optimizer": optimizer}
    if scheduler is not None:
        parts["scheduler"] = scheduler
    if average is not None:
        parts["average"] = average
    settings = dict(seed=seed, epochs=epochs, every=every, dtype=dtype)
    identity = settings | _identity(data, parts) if checkpoint is not None else {}
    saved = Checkpoint(checkpoint, identity, parts, order, device)
    progress = saved.load()
    vars(run).update(progress or {})
    if progress is None:
        _record(run, model, data, passes, average, callbacks)

    while run.epoch < epochs and run.stopped is None:
        run.epoch += 1
        start = time.perf_counter()
        batches = data.index_batches(order)
        before = []
        if _is_asynchronous(device):  # gradients are checked after the epoch
            before = [(m, copy.deepcopy(m.state_dict())) for m in modules]
        try:
            train_epoch(model, batches, method, optimizer, dtype=dtype, average=average)
        except FloatingPointError as error:
            run.stopped = f"epoch {run.epoch}: {error}"
            for module, state in before:
                module.load_state_dict(state)
        if scheduler is not None:
            scheduler.step()
        run.seconds += time.perf_counter() - start
        last = run.epoch == epochs or run.stopped is not None
        if last or run.epoch % every == 0:
            _record(run, model, data, passes, average, callbacks)
        if last or saved.due():
            saved.save(vars(run))
    return run


def train_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    method: Method,
    optimizer: Optimizer,
    *,
    dtype: torch.dtype | None = None,
    average: AveragedModel | None = None,
) -> Tensor:
    """One pass over `batches`, which are (indices of the examples, x, y) each: the mean
    training loss of each step, (steps,) or (steps, members).

    Raises:
        FloatingPointError: a gradient that is not finite, on a CPU before its step, on
            a GPU after the last one; for an ensemble only if no loss was finite.

    >>> from flatnb import ERM, data, models
    >>> net, plane = models.mlp(2, 4, 1, 2), data.plane("gaussian", n_test=100)
    >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> batches = plane.index_batches(torch.Generator().manual_seed(0))
    >>> train_epoch(net, batches, ERM(), sgd).shape
    torch.Size([2])
    """
    model.train()
    net = unwrap(model)
    losses: list[Tensor] = []
    norms: list[Tensor] = []
    # An optimizer with `passes`, such as BSAM, takes that many gradients in its step, and
    # leaves a net as it was if one of them is not finite.
    passes = getattr(optimizer, "passes", 1)

    def backward(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = method.backward(model, partial(_losses, model, x, y, dtype))
        if loss.dim() == 0:
            grads = present([p.grad for p in net.parameters()])
            norms.append(nn.utils.get_total_norm(grads))
        return loss

    for index, x, y in batches:
        for part in _joined(method):
            if hasattr(part, "select"):
                part.select(index)
        gradient: Any = partial(backward, x, y)
        loss: Any = gradient() if passes == 1 else optimizer.step(gradient)
        losses.append(loss)
        last = norms[-passes:]
        if not (_is_asynchronous(loss.device) or all(n.isfinite() for n in last)):
            break
        if passes == 1:
            optimizer.step()
        if average is not None:
            average.update_parameters(net)
    if not losses:
        raise ValueError("batches gave none; allowed: at least one batch")
    for count, norm in enumerate(torch.stack(norms).tolist() if norms else []):
        if not math.isfinite(norm):
            step = count // passes
            raise FloatingPointError(
                f"the gradient's norm was {norm:g} in step {step + 1}, where the "
                f"training loss was {losses[step]:g}"
            )
    if losses[0].dim() == 1 and not torch.stack(losses).isfinite().any():
        raise FloatingPointError("no member had a finite loss")
    return torch.stack(losses)


def _losses(
    model: nn.Module, x: Tensor, y: Tensor, dtype: torch.dtype | None
) -> Tensor:
    with nullcontext() if dtype is None else torch.autocast(x.device.type, dtype):
        return cross_entropy(model(x), y)


def _is_asynchronous(device: torch.device) -> bool:
    """Whether looking at a value makes the host wait for the device."""
    return device.type != "cpu"


def _joined(method: Method) -> Sequence[Any]:
    """The parts that `compose` joined, or the method alone."""
    return getattr(method, "parts", (method,))


def _record(
    run: Run,
    model: nn.Module,
    data: Data,
    passes: float,
    average: AveragedModel | None,
    callbacks: Sequence[Callback],
) -> None:
    entry: dict[str, Any] = dict(epoch=run.epoch, seconds=run.seconds)
    entry["passes"] = run.epoch * data.steps * passes
    nets = {"": model}
    if average is not None and average.n_averaged > 0:
        device = data.train.x.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            order = torch.Generator().manual_seed(run.seed)
            update_bn(data.batches(order), average.module)
        nets["average_"] = average.module
    for prefix, net in nets.items():
        for name in ("train", "val", "test"):
            for metric, value in evaluate(net, getattr(data, name)).items():
                entry[f"{prefix}{name}_{metric}"] = value.tolist()
        params = [p.detach() for p in net.parameters()]
        entry[f"{prefix}norm"] = l2_norm(params, members_of(model)).tolist()
        entry[f"{prefix}grad_norm"] = gradient_norm(net, data.train).tolist()
    run.history.append(entry)
    for callback in callbacks:
        callback(run, model)


def _identity(data: Data, parts: Mapping[str, Any]) -> dict[str, Any]:
    """What distinguishes a run from another, for its checkpoint."""
    hyperparameters = [
        value
        for part in _joined(parts["method"])
        for name, value in sorted(vars(part).items())
        if isinstance(value, Tensor) and not name.startswith("_")
    ]
    return {
        "method": (repr(parts["method"]), *hyperparameters),
        "model": str(parts["model"]),
        "optimizer": parts["optimizer"].state_dict()["param_groups"],
        "parts": {name: type(part).__name__ for name, part in parts.items()},
        "data": (data.name, data.batch_size, data.augment, data.train.x, data.train.y),
    }


def _check(model: Any, data: Any, method: Any, optimizer: Any) -> None:
    instance("model", model, nn.Module, "a torch.nn.Module")
    if distributed(model) is not None:
        raise ValueError(
            "model is DistributedDataParallel; allowed: a net in one process. For "
            "several, write the loop, with method.backward"
        )
    instance("data", data, Data, "a flatnb.data.Data")
    instance("method", method, Method, "a method, such as flatnb.SAM(0.05)")
    instance("optimizer", optimizer, Optimizer, "an optimizer of torch.optim")
    members = members_of(model)
    if data.train.members not in (None, members):
        raise ValueError(
            f"the data holds {data.train.members} members, the model "
            f"{'is not an Ensemble' if members is None else members}; they must agree"
        )
