"""Flooding and its per-example relatives: the loss is held at a level instead of driven to zero."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from flatnb.methods.base import Hyperparameter, Method, Value, count, number, per_member


class Flooding(Method):
    """Flooding: the mean loss L of the batch is reflected at the flood level b.

        objective  |L - b| + b              gradient  sign(L - b) grad L,  sign(0) = 0

    One pass. L is the mean over the batch, not over examples: with another batch size
        Flooding is
    another method. BatchNorm, weight decay and momentum are untouched by it.

    Source: Ishida et al., "Do We Need Zero Training Loss After Achieving Zero Training
        Error?",
    ICML 2020, equation for J~. Their code takes b = 0 for "off"; so does this, by the
    formula.

    Args:
        level: flood level b >= 0, in units of the loss. Papers search 0.01 to 0.5.
    """

    level = Hyperparameter()

    def __init__(self, level: Value) -> None:
        self.level = level

    def objective(self, losses: Tensor) -> Tensor:
        level = per_member("level", self.level, losses)
        return (losses.mean(-1) - level).abs() + level


class IFlood(Method):
    """iFlood: each example's loss l_i is reflected at the flood level b.

        objective  mean_i (|l_i - b| + b)   gradient  mean_i sign(l_i - b) grad l_i,
        sign(0) = 0

    One pass. The limit sigma -> 0 of SoftAD, and Flooding when the batch is a single
    example: also where the closure returns a loss that is one number, which knows no
        examples.

    Source: Xie et al., "iFlood: A Stable and Effective Regularizer", ICLR 2022.

    Args:
        level: flood level b >= 0, in units of the loss.
    """

    level = Hyperparameter()

    def __init__(self, level: Value) -> None:
        self.level = level

    def objective(self, losses: Tensor) -> Tensor:
        level = per_member("level", self.level, losses, pointwise=True)
        return ((losses - level).abs() + level).mean(-1)


class AdaFlood(Method):
    """AdaFlood: each training example i has a flood level b_i of its own.

        objective  mean_i (|l_i - b_i| + b_i)   gradient  mean_i sign(l_i - b_i) grad
        l_i, sign(0) = 0

    One pass. Levels come from auxiliary models that did not see the example:
        `held_out_losses`,
    then `adaflood_levels`. The method must be told which examples a batch holds:

        method = AdaFlood(levels)                  # levels[i] belongs to training
        example i for index, x, y in batches:
            method.select(index)
            method.backward(model, lambda: F.cross_entropy(model(x), y,
            reduction="none"))

    In `compose(AdaFlood(levels), SAM(0.05))` the part is told in the same way: keep it
    in a variable. With all levels equal this is IFlood. It needs one loss per example,
    and refuses a loss that is one number. BatchNorm, weight decay and momentum are
    untouched by it.

    Source: Bae et al., "AdaFlood: Adaptive Flood Regularization", TMLR 2024. The
        authors' code can
    also learn alpha and beta of the levels together with the net; here they are fixed.

    Args:
        levels: levels b_i >= 0 of the whole training set, in units of the loss:
            (examples,), or (members, examples) for an ensemble whose members have
            levels of their own.
    """

    def __init__(self, levels: Tensor) -> None:
        allowed = "a tensor of finite levels >= 0, (examples,) or (members, examples)"
        if not isinstance(levels, Tensor) or not levels.is_floating_point():
            kind = levels.dtype if isinstance(levels, Tensor) else type(levels).__name__
            raise TypeError(f"levels is {kind}; allowed: {allowed}, of floating point")
        if levels.dim() not in (1, 2) or levels.numel() == 0:
            raise ValueError(
                f"levels has shape {tuple(levels.shape)}; allowed: {allowed}"
            )
        bad = ~(levels.isfinite() & (levels >= 0))
        if bad.any():
            raise ValueError(
                f"levels has {int(bad.sum())} entries that are negative or not finite, the first "
                f"{levels[bad][0].item()!r}; allowed: {allowed}"
            )
        self.levels = levels.detach()
        self._selected: Tensor | None = None

    def select(self, indices: Tensor) -> None:
        """Say which training examples the coming batch holds, in its order; shape (n,)."""
        if not isinstance(indices, Tensor) or indices.dtype not in (
            torch.int32,
            torch.int64,
        ):
            kind = (
                indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
            )
            raise TypeError(
                f"indices is {kind}; allowed: a 1-D tensor of int64, one an example"
            )
        if indices.dim() != 1:
            raise ValueError(f"indices has shape {tuple(indices.shape)}; allowed: (n,)")
        self.levels = self.levels.to(indices.device)
        self._selected = self.levels[..., indices]

    def objective(self, losses: Tensor) -> Tensor:
        levels = self._selected
        if levels is None:
            raise ValueError(
                "AdaFlood does not know which examples the batch holds; call select(indices) first"
            )
        if levels.shape[-1] != losses.shape[-1] or levels.shape[:-1] not in (
            (),
            losses.shape[:-1],
        ):
            raise ValueError(
                f"the levels selected have shape {tuple(levels.shape)}, but the losses have shape "
                f"{tuple(losses.shape)}; call select with the indices of this batch's examples"
            )
        levels = levels.to(losses.device, losses.dtype)
        return ((losses - levels).abs() + levels).mean(-1)


def adaflood_levels(
    losses: Tensor, *, gamma: float = 0.5, alpha: float = 1.0, beta: float = 0.0
) -> Tensor:
    """AdaFlood's levels b_i from losses l_i of auxiliary models on examples held out
    from them.

        b_i = -log((1 - gamma) exp(-(alpha l_i + beta)) + gamma)

    For cross-entropy, alpha = 1 and beta = 0, exp(-b_i) is the auxiliary probability of
    the true
    class moved towards 1 by gamma: the larger gamma, the lower the levels, which never
        exceed
    -log gamma.

    Args:
        losses: (..., examples), in nats, >= 0.
        gamma: correction in [0, 1]; the authors' default is 0.5.
        alpha: scale of the auxiliary losses >= 0.
        beta: shift of the auxiliary losses >= 0, in nats.

    Returns:
        Levels in the shape of `losses`, computed in float64 and of their dtype.
    """
    g, a, b = (
        number(name, value, high=high)
        for name, value, high in (
            ("gamma", gamma, 1.0),
            ("alpha", alpha, math.inf),
            ("beta", beta, math.inf),
        )
    )
    if not isinstance(losses, Tensor) or not losses.is_floating_point():
        raise TypeError(
            f"losses is {type(losses).__name__}; allowed: a floating-point tensor"
        )
    if not bool((losses.isfinite() & (losses >= 0)).all()):
        raise ValueError(
            "losses has entries that are negative or not finite; allowed: >= 0"
        )
    log_p = -(a * losses.detach().double() + b)
    log_keep = math.log1p(-g) if g < 1 else -math.inf
    log_gamma = torch.full_like(log_p, math.log(g) if g > 0 else -math.inf)
    # A level is >= 0; rounding would make the smallest ones -1e-17.
    return -torch.logaddexp(log_keep + log_p, log_gamma).clamp_max(0).to(losses.dtype)


def held_out_losses(
    examples: int, folds: int, train: Callable[[Tensor], Callable[[Tensor], Tensor]]
) -> Tensor:
    """Each training example's loss under an auxiliary model that was trained without
    it.

    The examples are cut into contiguous folds, as in the authors' code: shuffle data
    that is sorted. For each fold, one auxiliary model is trained on all the others.

    Args:
        examples: size of the training set.
        folds: number of auxiliary models, 2 to `examples`.
        train: `train(indices)` trains a fresh auxiliary model on those examples and
            returns a function that gives the plain per-example losses of the examples
            it is asked for.

    Returns:
        Losses, (examples,), on the CPU: what `adaflood_levels` takes.
    """
    count("examples", examples, low=2)
    count("folds", folds, low=2)
    if folds > examples:
        raise ValueError(
            f"folds={folds}; allowed: 2 to the number of examples, {examples}"
        )
    parts = torch.arange(examples).tensor_split(folds)
    losses = []
    for i, held_out in enumerate(parts):
        score = train(torch.cat([part for j, part in enumerate(parts) if j != i]))
        with torch.no_grad():
            own = score(held_out)
        if not isinstance(own, Tensor) or own.shape != held_out.shape:
            shape = tuple(own.shape) if isinstance(own, Tensor) else type(own).__name__
            raise ValueError(
                f"the auxiliary model of fold {i} returned losses of shape {shape} for "
                f"{len(held_out)} examples; expected ({len(held_out)},), one loss per example"
            )
        losses.append(own.detach().cpu())
    return torch.cat(losses)
