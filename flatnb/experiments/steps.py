"""What an optimizer's hooks add to a step: one learning rate a member, and averages of weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

# t -> how far the average goes to the weights after step t = 0, 1, ...: a number, or
# (members,).
Weight = Callable[[int], float | Tensor]


def member_learning_rates(
    optimizer: torch.optim.Optimizer,
    rates: Sequence[float],
    decays: Sequence[float] | None = None,
) -> None:
    """Give each member of an ensemble a learning rate, and a decoupled weight decay, of
    its own.

        w <- w_old + rate_m / lr * (w_new - w_old) - rate_m decay_m w_old

    after each step, w_new being the optimizer's. That is exactly training with rate_m,
    for an
    optimizer whose update is proportional to its learning rate and which remembers no
        weights: SGD
    with momentum, Adam (with decays, AdamW). Its own rate must be the largest, so that
    no rounding is enlarged; a scheduler may change it, and all members' rates with it.

    Args:
        optimizer: on the parameters of an `Ensemble`, members first, with one learning
            rate.
        rates: one a member.
        decays: one a member.

    Raises:
        ValueError: rates that are not positive, or whose largest is not the
            optimizer's.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    own = {group["lr"] for group in optimizer.param_groups}
    if min(rates) <= 0 or own != {max(rates)}:
        raise ValueError(
            f"learning rates from {min(rates)} to {max(rates)} and the optimizer's {own}; allowed: "
            "rates > 0, the largest of them the optimizer's"
        )
    if min(rates) == max(rates) and decays is None:
        return
    shares = torch.tensor(
        [rate / max(rates) for rate in rates], device=params[0].device
    )
    shrink = (
        None
        if decays is None
        else shares * torch.tensor(decays, device=params[0].device)
    )
    before: list[Tensor] = []

    def keep(*_: Any) -> None:
        before[:] = [p.detach().clone() for p in params]

    @torch.no_grad()
    def scale(*_: Any) -> None:
        lr = optimizer.param_groups[0]["lr"]
        for p, old in zip(params, before, strict=True):
            p.copy_(torch.lerp(old, p, _as(shares, p)))
            if shrink is not None:
                p.sub_(old.mul_(_as(lr * shrink, p)))

    optimizer.register_step_pre_hook(keep)
    optimizer.register_step_post_hook(scale)


def average(model: nn.Module, weight: Weight) -> AveragedModel:
    """A running average of the model's weights, for `flatnb.fit`, which updates it each step."""

    def update(values: Any, current: Any, count: int | Tensor) -> None:
        share = torch.as_tensor(weight(int(count)))
        for value, p in zip(values, current, strict=True):
            value.lerp_(p, _as(share, p) if share.dim() else share.to(p))

    return AveragedModel(model, multi_avg_fn=torch.no_grad()(update))


def swa(steps: int, start: float | Tensor) -> Weight:
    """The mean over all steps from the share `start` of `steps` on; before, the weights."""
    first = torch.as_tensor(start) * steps
    return lambda t: 1 / (t - first.ceil() + 1).clamp(min=1)


def ema(decay: float | Tensor) -> Weight:
    """average <- decay * average + (1 - decay) * weights, which it starts from."""
    return lambda _: 1 - torch.as_tensor(decay)


def _as(shares: Tensor, p: Tensor) -> Tensor:
    """(members,) so that it multiplies a parameter (members, ...)."""
    return shares.to(p).view(-1, *[1] * (p.dim() - 1))
