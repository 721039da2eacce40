"""The training loop: `fit` a model to data by a method, and the losses and metrics
around it.

Everything a method needs of the loop is in `train_epoch`; it is the loop of any PyTorch
program with `method.backward(...)` where `loss.backward()` stood. Around it, `fit`
evaluates (`evaluate`, `gradient_norm`), averages weights, and keeps a checkpoint.
"""

from __future__ import annotations

import copy
import itertools
import math
import numbers
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from flatnb._checks import function, instance, integer, number, sequence, shown
from flatnb._nets import in_mode, unwrap
from flatnb.checkpoint import Checkpoint, tensors
from flatnb.ensemble import Ensemble, member_learning_rates
from flatnb.methods import Method
from flatnb.methods._model import distributed
from flatnb.methods._model import members as members_of
from flatnb.methods._tensors import dense, l2_norm, present, wide
from flatnb.methods.method import Real, real

if TYPE_CHECKING:
    import pandas

    from flatnb.data import Data, Split

# What bounds the memory of an evaluation: examples times members, and entries of the
# inputs, at once. Where activations are kept for a backward pass, a quarter of both.
_ROWS = {"cpu": 1 << 16, "cuda": 1 << 19}
_ENTRIES = 1 << 21

_BINS = 15
_GRADIENT_EXAMPLES = 2048
Callback = Callable[["Run", nn.Module], None]


@dataclass
class Run:
    """What `fit` returns: who trained, and the metrics of each evaluated epoch.

    Attributes:
        method: the method as it is written, e.g. "SAM(rho=0.05)".
        seed: the seed of batch order, augmentation and dropout.
        history: one dict an evaluated epoch, epoch 0 (before training) included: epoch,
            seconds (training only, since the start), passes (forward-backward passes so
            far), {train, val, test}_{loss, accuracy, ece} (of `evaluate`), norm (l2,
            all parameters), grad_norm (of `gradient_norm`); with an average, from where
            it begins, the last three of it, too, as average_{train, val, test}_{loss,
            accuracy, ece}, average_norm and average_grad_norm. For an ensemble each
            metric is a list with one entry a member.
        stopped: why training ended early (a gradient that is not finite), or None.
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
    callbacks: Sequence[Callback] = (),
    every: int = 1,
    dtype: torch.dtype | None = None,
    clip: Real | None = None,
    average: AveragedModel | None = None,
    average_from: int = 1,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 60.0,
) -> Run:
    """Train `model` on `data.train`, and evaluate it on all splits.

    Same seed, machine and thread count give the same run bit for bit on a CPU. The
    global random stream is seeded (dropout draws from it); batch order and augmentation
    have their own. On a GPU
    the draws are the same from run to run, but sums need not be: cuDNN may choose
        another
    convolution, and atomic additions (backward of indexing, pooling, upsampling) come
    in any order. `torch.use_deterministic_algorithms(True)` with
    CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment repeats bits there too, slower,
    and raises where it cannot.

    **Not finite.** A plain model stops before the first step whose gradient's norm is
    not finite, with epoch, step and value in `run.stopped`, so its parameters are the
    last finite ones (the running statistics have seen that step's batch). To look at
    the norm makes no GPU wait: there all steps of an epoch are looked at after it, and
        the model goes back, running statistics too,
    to where that epoch began. With float16 the scaler skips such steps; the run stops
    at the end of an epoch that skipped all its steps while the scale was below 1. In an
    ensemble a member is lost alone and the others train on, until no member has a
    finite loss.

    **Several processes** (DistributedDataParallel, started by torchrun): all draw the
        same batches,
    `data.batch_size` examples together, and each trains on its share; what is left of a
    batch that does not divide is left out. Dropout draws from `seed` plus the rank.
    Each evaluates everything; the run to keep is that of rank 0, which alone writes the
    checkpoint. All resume from it, on a file system they share, with new dropout draws
    on the others.

    **A compiled model** is trained compiled and evaluated as the net inside: other
        batch sizes and
    modes would each be compiled anew. A last short batch is: choose a batch size that
        divides.

    Args:
        model: a classifier, or an `Ensemble` of them; it is trained where its
            parameters are. On a GPU, one with 2-d convolutions is laid out
            channels-last.
        data: moved to the model's device if it is not there.
        method: how losses become a gradient. One with `select` is told the examples of
            each batch.
        optimizer: already built on the model's parameters. Choose fused=True with
            float16 on a GPU where there is one: other optimizers wait for the device at
                each step.
        epochs: passes over the training set.
        seed: of batch order, augmentation and dropout. Initialisation is the caller's.
        scheduler: a learning-rate scheduler, stepped once an epoch.
        callbacks: each called as callback(run, model) after each evaluation.
        every: evaluate after every so many epochs, and after the last.
        dtype: torch.bfloat16 or torch.float16 (with a GradScaler) to train under
            autocast. Evaluation stays in the parameters' precision, so that metrics
            measure the model, and losses near zero are not rounded.
        clip: the largest gradient norm of a step, > 0; for an ensemble, of each member,
            or a tensor with one value a member.
        average: of the weights, evaluated beside the model; its BatchNorm statistics
            are first renewed by a pass over the training data. With an averaging
            function (`get_ema_multi_avg_fn(0.999)`: EMA) updated each step, without
            (SWA) each epoch.
        average_from: the first epoch that enters the average.
        checkpoint: a file to resume from if it is there, and to write: at the end of an
            epoch, when `checkpoint_seconds` have passed since it was last written, and
            at the end. Callbacks are not called again for the epochs before. On a CPU
            the resumed run equals the unbroken one bit for bit.
        checkpoint_seconds: at least so long between two writes; 0 for every epoch.

    Returns:
        The run.

    Raises:
        ValueError: an argument out of range, an ensemble of another size than its data,
            float16 with an ensemble, or a checkpoint that is damaged or of another run.
        FileNotFoundError, IsADirectoryError: a checkpoint where no file can lie.
    """
    _check_parts(model, data, method, optimizer, scheduler, callbacks, average)
    epochs, every = integer("epochs", epochs, 0, 1 << 31), integer("every", every)
    average_from, seed = (
        integer("average_from", average_from),
        integer("seed", seed, 0, 1 << 63),
    )
    if not isinstance(checkpoint_seconds, float) or checkpoint_seconds != math.inf:
        number(
            "checkpoint_seconds", checkpoint_seconds, "a number >= 0", 0, closed=True
        )
    _check(model, data, dtype, clip)
    core = unwrap(model)
    device = next(core.parameters()).device
    data = data.to(device)
    if device.type == "cuda" and any(
        isinstance(layer, nn.Conv2d) for layer in core.modules()
    ):
        for net in (core, average or core):
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rank, processes = _place(model)
    torch.manual_seed(seed + rank)
    order = torch.Generator().manual_seed(seed)
    scaler = torch.amp.GradScaler(device.type) if dtype == torch.float16 else None
    each_step = (
        average is not None and (average.avg_fn or average.multi_avg_fn) is not None
    )
    run, epoch, seconds = Run(repr(method), seed), 0, 0.0
    record = partial(_record, run, model, data, method, average, callbacks)

    parts = dict(
        model=core,
        optimizer=optimizer,
        method=method,
        scheduler=scheduler,
        scaler=scaler,
        average=average,
    )
    parts = {name: part for name, part in parts.items() if part is not None}
    settings = dict(
        epochs=epochs,
        every=every,
        dtype=dtype,
        clip=clip,
        average_from=average_from,
        processes=processes,
    )
    kept = Checkpoint(
        checkpoint, _identity(run, data, parts, settings), parts, order, device
    )
    progress, written = kept.load(), time.monotonic()
    if progress is None:
        record(epoch, seconds)
    else:
        epoch, seconds = progress["epoch"], progress["seconds"]
        run.history, run.stopped = progress["history"], progress["stopped"]
        if rank:  # the file has the stream of rank 0
            torch.manual_seed(seed + rank + processes * epoch)

    while epoch < epochs and run.stopped is None:
        epoch += 1
        start = time.perf_counter()
        before = _before(core, average, scaler)
        averaging = average if epoch >= average_from else None
        losses, norms = train_epoch(
            model,
            _shares(data.index_batches(order), rank, processes),
            method,
            optimizer,
            dtype=dtype,
            scaler=scaler,
            clip=clip,
            average=averaging if each_step else None,
        )
        run.stopped = _not_finite(
            epoch, losses, norms, scaler
        )  # waits: the time is honest
        if run.stopped is not None:
            for net, state in before:
                net.load_state_dict(state)
        elif averaging is not None and not each_step:
            averaging.update_parameters(core)
        if scheduler is not None:
            scheduler.step()
        seconds += time.perf_counter() - start
        last = epoch == epochs or run.stopped is not None
        if last or epoch % every == 0:
            record(epoch, seconds)
        due = last or time.monotonic() - written >= checkpoint_seconds
        if checkpoint is not None and rank == 0 and due:
            kept.save(
                {
                    "epoch": epoch,
                    "seconds": seconds,
                    "history": run.history,
                    "stopped": run.stopped,
                }
            )
            written = time.monotonic()
    return run


def fit_grid(
    make_model: Callable[[], nn.Module],
    make_data: Callable[[int], Data],
    method: Method | Callable[..., Method],
    grid: Mapping[str, Sequence[float]] | None = None,
    *,
    seeds: Sequence[int],
    epochs: int,
    every: int | None = None,
    lr: float = 1e-3,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    device: torch.device | str = "cpu",
) -> tuple[pandas.DataFrame, Ensemble]:
    """Train every combination of a grid on every seed, as one `Ensemble`.

    The members are `itertools.product(*grid.values(), seeds)`, in this order: the
    seeds run fastest. Members of one seed share data and initial weights, and all
    members share the order of the batches, so any two are a paired comparison.

    Args:
        make_model: makes the plain net, see `Ensemble`.
        make_data: gives the `Data` of a seed; all of the same sizes.
        method: called with a tensor (members,) for each column of `grid` but "lr",
            by name, such as `flatnb.SAM`. Or a method: then the columns of the grid
            but "lr" only name the members.
        grid: values to try by name, such as {"rho": [0.05, 0.1]}; "lr" holds learning
            rates. None: one member per seed.
        seeds: of data and initial weights.
        epochs: passes over the training set.
        every: evaluate after every so many epochs; only at the end if not given.
        lr: learning rate of all members where the grid has none.
        optimizer: called as optimizer(parameters, lr=...). Where learning rates differ
            it is one that `member_learning_rates` allows.
        seed: of batch order and of augmentation, see `fit`.
        callbacks: see `fit`.
        device: to train on.

    Returns:
        The history of `Run.frame` with a column for each name in the grid, "seed" and
        "member"; and the trained ensemble.

    Raises:
        TypeError, ValueError: an argument of another kind or range.

    >>> import flatnb
    >>> from flatnb import data, models
    >>> table, nets = flatnb.fit_grid(
    ...     lambda: models.mlp(2, 4, 1, 2),
    ...     lambda seed: data.plane("gaussian", n_test=100, seed=seed),
    ...     flatnb.SAM,
    ...     {"rho": [0.05, 0.1]},
    ...     seeds=range(3),
    ...     epochs=2,
    ... )
    >>> table.query("epoch == 2").groupby("rho").test_accuracy.count().to_dict()
    {0.05: 3, 0.1: 3}
    """
    import pandas

    from flatnb.data import stack

    grid = _columns(grid)
    seeds = [integer("seeds", s, 0) for s in sequence("seeds", seeds, object, "seeds")]
    if not seeds:
        raise ValueError("seeds=[]; allowed: at least one integer")
    every = integer("epochs", epochs) if every is None else every
    rows = list(itertools.product(*grid.values(), seeds))
    keys = pandas.DataFrame(rows, columns=[*grid, "seed"])
    keys["member"] = range(len(rows))
    values = dict(zip(grid, zip(*rows, strict=True), strict=False))
    rates = values.pop("lr", (lr,) * len(rows))
    if not isinstance(method, Method):
        function("method", method, "a method, or what makes one, such as flatnb.SAM")
        method = method(**{name: torch.tensor(v) for name, v in values.items()})
    sets = {s: make_data(s) for s in dict.fromkeys(seeds)}
    data = stack([sets[row[-1]] for row in rows])
    nets = Ensemble(make_model, len(rows), [row[-1] for row in rows]).to(device)
    stepper = optimizer(nets.parameters(), lr=max(rates))
    member_learning_rates(stepper, rates)
    run = fit(
        nets,
        data,
        method,
        stepper,
        epochs=epochs,
        every=every,
        seed=seed,
        callbacks=callbacks,
    )
    history = run.frame().drop(columns=["method", "seed"])
    return keys.merge(history, on="member"), nets


def _columns(grid: Any) -> dict[str, list[Any]]:
    """The columns of a grid, checked."""
    allowed = 'lists of numbers by name, such as {"rho": [0.05, 0.1]}'
    columns = {}
    for name, values in instance("grid", grid or {}, Mapping, allowed).items():
        columns[name] = sequence(f"grid[{name!r}]", values, numbers.Real, allowed)
        if not columns[name] or name in ("seed", "member"):
            raise ValueError(f"grid={shown(grid)}; allowed: {allowed}")
    return columns


def train_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    method: Method,
    optimizer: torch.optim.Optimizer,
    *,
    dtype: torch.dtype | None = None,
    scaler: torch.amp.GradScaler | None = None,
    clip: Real | None = None,
    average: AveragedModel | None = None,
) -> tuple[Tensor, Tensor]:
    """One pass over `batches` of (indices of the examples, x, y); arguments as in
    `fit`.

    On a CPU it ends before the step of a plain model whose gradient is not finite;
    `average` is updated each step.

    Returns:
        Of each step the mean training loss, (steps,) or (steps, members), and the
        gradient's norm before clipping, of the same shape; NaN for an ensemble that is
        not clipped, which needs none.
    """
    model.train()
    core = unwrap(model)
    told = [part for part in _joined(method) if hasattr(part, "select")]
    losses: list[Tensor] = []
    norms: list[Tensor] = []
    for index, x, y in batches:
        for part in told:
            part.select(index)
        optimizer.zero_grad()
        loss = method.backward(
            model, partial(_losses, model, x, y, dtype), scaler=scaler
        )
        if scaler is not None:
            scaler.unscale_(optimizer)
        norm = _clip(core, clip, loss)
        losses.append(loss)
        norms.append(norm)
        if scaler is not None:
            scaler.step(optimizer)
            scaler.update()
        elif loss.dim() or _waits(norm.device) or norm.isfinite():
            optimizer.step()
        else:
            break
        if average is not None:
            average.update_parameters(core)
    if not losses:
        raise ValueError("the training data gave no batch: it is empty")
    return torch.stack(losses), torch.stack(norms)


def _place(model: nn.Module) -> tuple[int, int]:
    """Rank and number of the processes that train the model together."""
    wrapper = distributed(model)
    if wrapper is None:
        return 0, 1
    group = wrapper.process_group
    return torch.distributed.get_rank(group), torch.distributed.get_world_size(group)


def _shares(
    batches: Iterable[tuple[Tensor, Tensor, Tensor]], rank: int, processes: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of each batch the examples of one process, equally many for all."""
    for index, x, y in batches:
        axis, whole = y.dim() - 1, len(index) // processes * processes
        if processes == 1:
            yield index, x, y
        elif whole:
            own = torch.arange(rank, whole, processes, device=y.device)
            yield index[own], x.index_select(axis, own), y.index_select(axis, own)


def _losses(
    model: nn.Module, x: Tensor, y: Tensor, dtype: torch.dtype | None
) -> Tensor:
    with nullcontext() if dtype is None else torch.autocast(x.device.type, dtype):
        return cross_entropy(model(x), y)


def _joined(method: Method) -> Sequence[Any]:
    """The parts that `compose` joined, or the method alone."""
    return getattr(method, "parts", (method,))


def _clip(core: Any, clip: Real | None, loss: Tensor) -> Tensor:
    """Clip the gradient, each member's apart; returns its norm before."""
    if loss.dim():
        return (
            torch.full_like(loss, torch.nan)
            if clip is None
            else core.clip_grad_norm_(clip)
        )
    if clip is not None:
        return nn.utils.clip_grad_norm_(core.parameters(), float(clip))
    return nn.utils.get_total_norm(present([dense(p.grad) for p in core.parameters()]))


def _waits(device: torch.device) -> bool:
    """Whether the host would wait for the device if it looked at a value."""
    return device.type != "cpu"


def _before(core: nn.Module, average: AveragedModel | None, scaler: Any) -> list[tuple]:
    """Nets and copies to put them back to, where steps are looked at only after the epoch."""
    alone = members_of(core) is None and scaler is None
    if not alone or not _waits(next(core.parameters()).device):
        return []
    nets = [net for net in (core, average) if net is not None]
    return [(net, copy.deepcopy(net.state_dict())) for net in nets]


def _not_finite(epoch: int, losses: Tensor, norms: Tensor, scaler: Any) -> str | None:
    """Why to stop after these steps, or None; see `fit`."""
    losses, norms = losses.cpu(), norms.cpu()
    if losses.dim() == 2:
        lost = not losses.isfinite().any()
        return f"no member had a finite loss in epoch {epoch}" if lost else None
    if scaler is not None:
        if norms.isfinite().any() or scaler.get_scale() >= 1:
            return None
        return (
            f"no step of epoch {epoch} had a finite gradient at the scale {scaler.get_scale():g}; "
            f"the last loss was {losses[-1]:g}"
        )
    bad = (~norms.isfinite()).nonzero()
    if not len(bad):
        return None
    step = int(bad[0])
    return (
        f"the gradient's norm was {norms[step]:g} in epoch {epoch}, step {step + 1}, where the "
        f"training loss was {losses[step]:g}"
    )


# -- losses and metrics
# ---------------------------------------------------------------------------


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Per-example softmax cross-entropy in nats: logits (..., n, classes), y (n,) or
    (..., n).

    Returns (..., n): one loss an example, as a method's closure must.
    """
    _check_logits(logits, y)
    y = y.expand(logits.shape[:-1])
    return F.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none").view(
        y.shape
    )


def _check_logits(logits: Any, y: Any) -> None:
    instance("logits", logits, Tensor, "a tensor (..., n, classes)")
    instance("y", y, Tensor, "a tensor of class indices, (n,) or (..., n)")
    if logits.dim() < 2 or y.shape not in (logits.shape[:-1], logits.shape[-2:-1]):
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} with y of shape {tuple(y.shape)}; allowed: "
            "logits (..., n, classes) with y (n,) or (..., n)"
        )


def calibration_error(logits: Tensor, y: Tensor, bins: int = _BINS) -> Tensor:
    r"""Expected calibration error of the top label, in [0, 1].

    .. math:: \sum_b \frac{|I_b|}{n} |\mathrm{acc}(I_b) - \mathrm{conf}(I_b)|

    where :math:`I_b` holds the examples whose largest softmax probability lies in
    ((b-1)/bins, b/bins], conf is the mean of that probability, acc the fraction whose
    most probable class is right. Its value depends on the bins, and is biased upwards
    where they hold few examples.

    Source: C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017,
        equation (3).

    Args:
        logits: (..., n, classes).
        y: class indices, (n,) or (..., n).
        bins: of equal width.

    Returns:
        (...), float64 (float32 on MPS).
    """
    _check_logits(logits, y)
    bins = integer("bins", bins, 1, 1 << 31)
    log_p = logits.log_softmax(-1)
    return _gaps(log_p, logits.argmax(-1) == y, bins).abs().sum(-1) / logits.shape[-2]


def _gaps(log_p: Tensor, correct: Tensor, bins: int) -> Tensor:
    """The sum of correct - confidence over the examples of each bin, (..., bins)."""
    confidence = log_p.amax(-1).exp().to(wide(log_p))
    place = confidence.mul(bins).ceil().long().sub(1).clamp(0, bins - 1)
    sums = confidence.new_zeros(*confidence.shape[:-1], bins)
    return sums.scatter_add_(-1, place, correct.to(confidence.dtype) - confidence)


@torch.no_grad()
def evaluate(model: nn.Module, split: Split) -> dict[str, Tensor]:
    """Metrics in eval mode, in one pass, in the parameters' precision whatever they
    train in.

    "loss" is the mean plain cross-entropy (nats), "accuracy" the fraction correct,
    "ece" the `calibration_error`. Shapes () or (members,). Each module's mode is put
    back.
    """
    _check_measured(model, split)
    losses, correct, gaps = [], [], []
    core = unwrap(model)
    with in_mode(core, training=False):
        for part in _parts(core, split):
            logits = core(part.x)
            right = logits.argmax(-1) == part.y
            log_p = logits.log_softmax(-1)
            y = part.y.expand(right.shape).unsqueeze(-1)
            losses.append(-log_p.gather(-1, y).squeeze(-1).sum(-1))
            correct.append(right.sum(-1))
            gaps.append(_gaps(log_p, right, _BINS))
    return {
        "loss": torch.stack(losses).sum(0) / len(split),
        "accuracy": torch.stack(correct).sum(0) / len(split),
        "ece": torch.stack(gaps).sum(0).abs().sum(-1) / len(split),
    }


def gradient_norm(model: nn.Module, split: Split) -> Tensor:
    """The l2 norm of the plain mean loss's gradient, () or (members,), in eval mode.

    Of the first min(n, 2048) examples, over the trainable parameters. `p.grad` is left
    as it is, and so is the mode.
    """
    _check_measured(model, split)
    split = split[:_GRADIENT_EXAMPLES]
    core = unwrap(model)
    params = [p for p in core.parameters() if p.requires_grad]
    sums = [torch.zeros_like(p) for p in params]
    with in_mode(core, training=False):
        for part in _parts(core, split, share=4):
            loss = cross_entropy(core(part.x), part.y).sum() / len(split)
            grads = torch.autograd.grad(loss, params, allow_unused=True)
            for total, grad in zip(sums, grads, strict=True):
                if grad is not None:
                    total += grad
    return l2_norm(sums, members_of(core))


def _check_measured(model: Any, split: Any) -> None:
    from flatnb.data import Split

    _check_model(model)
    instance("split", split, Split, "a flatnb.data.Split")


def _parts(core: nn.Module, split: Split, share: int = 1) -> Iterator[Split]:
    """`split` in parts of bounded memory."""
    members = members_of(core) or 1
    entries = split.x.numel() // split.y.numel()  # of an example
    most = _ROWS.get(split.x.device.type, _ROWS["cpu"])
    rows = max(1, min(most // members, _ENTRIES // entries) // share)
    for first in range(0, len(split), rows):
        yield split[first : first + rows]


def _record(
    run: Run,
    model: nn.Module,
    data: Data,
    method: Method,
    average: AveragedModel | None,
    callbacks: Sequence[Callback],
    epoch: int,
    seconds: float,
) -> None:
    passes = epoch * data.steps * method.passes
    entry: dict[str, Any] = {"epoch": epoch, "seconds": seconds, "passes": passes}
    members = members_of(model)
    nets = {"": model}
    if average is not None and average.n_averaged > 0:
        _renew_statistics(average, data, run.seed)
        nets["average_"] = average.module
    for prefix, net in nets.items():
        for name in ("train", "val", "test"):
            for metric, value in evaluate(net, getattr(data, name)).items():
                entry[f"{prefix}{name}_{metric}"] = value.tolist()
        with torch.no_grad():
            entry[f"{prefix}norm"] = l2_norm(list(net.parameters()), members).tolist()
        entry[f"{prefix}grad_norm"] = gradient_norm(net, data.train).tolist()
    run.history.append(entry)
    for callback in callbacks:
        callback(run, model)


def _renew_statistics(average: AveragedModel, data: Data, seed: int) -> None:
    """BatchNorm statistics of the averaged weights, over one epoch; the run's streams stay."""
    device = data.train.x.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        update_bn(data.batches(torch.Generator().manual_seed(seed)), average.module)


def _identity(
    run: Run, data: Data, parts: dict[str, Any], settings: dict[str, Any]
) -> dict:
    """What tells a run from another, for its checkpoint."""
    method, optimizer = parts["method"], parts["optimizer"]
    groups = [
        {k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups
    ]
    return {
        "method": (run.method, *tensors(_joined(method))),
        "seed": run.seed,
        **settings,
        "model": {k: tuple(v.shape) for k, v in parts["model"].state_dict().items()},
        "optimizer": (type(optimizer).__name__, groups),
        "scheduler": type(parts.get("scheduler")).__name__,
        "average": type(parts.get("average")).__name__,
        "data": (data.name, data.batch_size, data.augment, data.train.x, data.train.y),
    }


def _check_parts(
    model: Any,
    data: Any,
    method: Any,
    optimizer: Any,
    scheduler: Any,
    callbacks: Any,
    average: Any,
) -> None:
    from flatnb.data import Data

    _check_model(model)
    instance("data", data, Data, "a flatnb.data.Data")
    instance("method", method, Method, "a method, such as flatnb.SAM(0.05)")
    instance(
        "optimizer", optimizer, torch.optim.Optimizer, "an optimizer of torch.optim"
    )
    if scheduler is not None:
        allowed = "None, or a scheduler of torch.optim.lr_scheduler"
        if isinstance(scheduler, type) or not callable(
            getattr(scheduler, "step", None)
        ):
            raise TypeError(f"scheduler={shown(scheduler)}; allowed: {allowed}")
    for callback in sequence("callbacks", callbacks, object, "functions (run, model)"):
        function("callbacks", callback, "functions (run, model)")
    if average is not None:
        instance(
            "average",
            average,
            AveragedModel,
            "None, or an AveragedModel of torch.optim",
        )


def _check_model(model: Any) -> None:
    instance("model", model, nn.Module, "a torch.nn.Module")
    if next(iter(model.parameters()), None) is None:
        raise ValueError(
            "model has no parameters; allowed: a network with at least one"
        )


def _check(
    model: nn.Module,
    data: Data,
    dtype: torch.dtype | None,
    clip: Real | None,
) -> None:
    if clip is not None:
        clip = real("clip", clip, open_low=True)
    half = (torch.bfloat16, torch.float16)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in half):
        raise ValueError(
            f"dtype={shown(dtype)}; allowed: None, torch.bfloat16, torch.float16"
        )
    members = members_of(model)
    if dtype == torch.float16 and members is not None:
        raise ValueError(
            "dtype=torch.float16 with an Ensemble: a GradScaler would skip the step of all members "
            "where one overflows; use torch.bfloat16"
        )
    if isinstance(clip, Tensor) and len(clip) != members:
        raise ValueError(
            f"clip has {len(clip)} values, one a member; the model's members: {members}"
        )
    if data.members is not None and data.members != members:
        raise ValueError(
            f"the data holds {data.members} members, the model "
            f"{'is no Ensemble' if members is None else f'{members}'}; they must agree"
        )
