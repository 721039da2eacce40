"""Averages of weights, for `flatnb.fit`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from flatnb._nets import along_members

# t -> how far the average goes to the weights after step t = 0, 1, ...: a number, or
# (members,).
Weight = Callable[[int], float | Tensor]


def average(model: nn.Module, weight: Weight) -> AveragedModel:
    """A running average of the model's weights, for `flatnb.fit`, which updates it each step."""

    def update(values: Any, current: Any, count: int | Tensor) -> None:
        share = torch.as_tensor(weight(int(count)))
        for value, p in zip(values, current, strict=True):
            value.lerp_(p, along_members(share, p) if share.dim() else share.to(p))

    return AveragedModel(model, multi_avg_fn=torch.no_grad()(update))


def swa(steps: int, start: float | Tensor) -> Weight:
    """The mean over all steps from the share `start` of `steps` on; before, the weights."""
    first = torch.as_tensor(start) * steps
    return lambda t: 1 / (t - first.ceil() + 1).clamp(min=1)


def ema(decay: float | Tensor) -> Weight:
    """average <- decay * average + (1 - decay) * weights, which it starts from."""
    return lambda _: 1 - torch.as_tensor(decay)
