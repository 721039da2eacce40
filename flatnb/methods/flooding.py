"""Flooding and its per-example relatives: the loss is held at a level above 0."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from flatnb import _checks
from flatnb.methods.method import Hyperparameter, Method, per_member


class Flooding(Method):
    """Flooding: the mean loss L of the batch is reflected at the flood level b.

        objective  |L - b| + b              gradient  sign(L - b) grad L,  sign(0) = 0

    One pass. Batch size matters. b >= 0 is in units of the loss; papers: 0.01 to 0.5.

    Source: Ishida et al., "Do We Need Zero Training Loss After Achieving Zero Training
    Error?", ICML 2020, equation for J~. Their code takes b = 0 for "off"; so does this.

    >>> Flooding(level=1.0).objective(torch.tensor([0.5, 0.0])).item()
    1.75
    """

    level: Hyperparameter = Hyperparameter()

    def objective(self, losses: Tensor) -> Tensor:
        level = per_member("level", self.level, losses)
        return (losses.mean(-1) - level).abs() + level


class IFlood(Flooding):
    """iFlood: each example's loss l_i is reflected at the flood level b.

        objective  mean_i (|l_i - b| + b)
        gradient   mean_i sign(l_i - b) grad l_i,      sign(0) = 0

    One pass. SoftAD as sigma -> 0, and Flooding where the batch is a single example.
    Source: Xie et al., "iFlood: A Stable and Effective Regularizer", ICLR 2022.

    >>> IFlood(level=1.0).objective(torch.tensor([0.5, 1.5])).item()
    1.5
    """

    def objective(self, losses: Tensor) -> Tensor:
        level = per_member("level", self.level, losses, pointwise=True)
        return ((losses - level).abs() + level).mean(-1)


class AdaFlood(Method):
    """AdaFlood: each training example i has a flood level b_i of its own.

        objective  mean_i (|l_i - b_i| + b_i)
        gradient   mean_i sign(l_i - b_i) grad l_i,    sign(0) = 0

    One pass. Equal levels are IFlood. `levels`, from `held_out_losses` and
    `adaflood_levels`, are b_i >= 0 of all training examples, (examples,) or (members,
    examples). Before each `backward`, call `select`; in `compose`, on this part.

    Source: Bae et al., "AdaFlood: Adaptive Flood Regularization", TMLR 2024. Their code
    can also learn a scale and a shift of the auxiliary losses with the net.

    >>> method = AdaFlood(torch.tensor([0.0, 1.0, 2.0]))
    >>> method.select(torch.tensor([2, 0]))  # the batch holds examples 2 and 0
    >>> method.objective(torch.tensor([1.0, 1.0])).item()
    2.0
    """

    def __init__(self, levels: Tensor) -> None:
        self.levels = _nonnegative("levels", levels)
        self._selected = self.levels[..., :0]

    def select(self, indices: Tensor) -> None:
        """Say which training examples the coming batch holds, in its order; (n,)."""
        self.levels = self.levels.to(indices.device)
        self._selected = self.levels[..., indices]

    def objective(self, losses: Tensor) -> Tensor:
        levels = self._selected.to(losses.device, losses.dtype)
        if levels.shape not in (losses.shape, losses.shape[-1:]):
            raise ValueError(
                f"levels selected: {tuple(levels.shape)}, losses: {tuple(losses.shape)}"
                "; call select(indices) before each backward, with the batch's examples"
            )
        return ((losses - levels).abs() + levels).mean(-1)


def adaflood_levels(losses: Tensor, *, gamma: float = 0.5) -> Tensor:
    """AdaFlood's levels b_i, from losses l_i on examples held out of auxiliary models.

        b_i = -log((1 - gamma) exp(-l_i) + gamma)

    The larger gamma in (0, 1), the lower the levels, which never exceed -log gamma; the
    authors' default is 0.5. `losses`, (..., examples), are >= 0 and in nats.

    >>> [round(b, 3) for b in adaflood_levels(torch.tensor([1.0, 4.0])).tolist()]
    [0.38, 0.675]
    """
    _checks.number("gamma", gamma, "a number in (0, 1)", 0.0, 1.0)
    log_p = math.log1p(-gamma) - _nonnegative("losses", losses).double()
    sums = torch.logaddexp(log_p, torch.full_like(log_p, math.log(gamma)))
    # A level is >= 0; rounding would make the smallest ones -1e-17.
    return -sums.clamp_max(0).to(losses.dtype)


def held_out_losses(
    order: Tensor, folds: int, train: Callable[[Tensor], Callable[[Tensor], Tensor]]
) -> Tensor:
    """Each training example's loss under an auxiliary model trained without it.

    `order`, (n,), has all examples' indices, shuffled if those are sorted; its 2 to n
    `folds` are contiguous. For each, `train(indices)` trains a fresh auxiliary model,
    or ensemble, on the others, and returns a function from indices to plain losses,
    (..., indices). Returned are all, (..., n), in the examples' order, on the CPU.

    >>> held_out_losses(torch.arange(4), 2, lambda others: lambda fold: fold + 0.5)
    tensor([0.5000, 1.5000, 2.5000, 3.5000])
    """
    _checks.integer("folds", folds, 2, len(order) + 1)
    losses = []
    for fold in order.tensor_split(folds):
        score = train(order[~torch.isin(order, fold)])
        with torch.no_grad():
            losses.append(score(fold).cpu())
    return torch.cat(losses, -1)[..., order.argsort().cpu()]


def _nonnegative(name: str, values: Tensor) -> Tensor:
    """A floating-point tensor, finite and >= 0, without its graph."""
    allowed = "a floating-point tensor, finite and >= 0"
    _checks.instance(name, values, Tensor, allowed)
    if not values.is_floating_point() or not (values.isfinite() & (values >= 0)).all():
        raise ValueError(f"{name}={_checks.shown(values)}; allowed: {allowed}")
    return values.detach()
