"""Schedules: a radius, a width or a level that changes during training.

In place of a number, a hyperparameter takes a function of the number of earlier calls
of `backward`: one of these, or any other. Its value, checked at each call, may be a
tensor with one entry per member. A call that raises is not counted; one whose gradient
is not finite is. Micro-batches are calls: for n steps of k of them, `steps=n * k`.

>>> from flatnb import SAM
>>> SAM(rho=Linear(0.0, 0.05, steps=1000))  # rises over the first 1000 calls
SAM(rho=Linear(start=0.0, end=0.05, steps=1000))
>>> SAM(rho=lambda calls: 0.05 if calls >= 500 else 0.0).rho  # starts late
0.0
"""

import math
from dataclasses import dataclass, field

from torch.optim import Optimizer

from flatnb.methods.method import Real, count


@dataclass(frozen=True)
class Linear:
    """A straight line, then constant: (1 - s) start + s end, s = min(1, calls / steps).

    >>> [Linear(0.0, 1.0, steps=4)(calls) for calls in (0, 1, 4, 9)]
    [0.0, 0.25, 1.0, 1.0]
    """

    start: Real
    end: Real
    steps: int

    def __post_init__(self) -> None:
        count("steps", self.steps)

    def share(self, calls: int) -> float:
        """s, how far the value is from `start` to `end`."""
        return min(1.0, calls / self.steps)

    def __call__(self, calls: int) -> Real:
        s = self.share(calls)
        return (1 - s) * self.start + s * self.end


class Cosine(Linear):
    """Half a cosine, then constant: `Linear` with (1 - cos(pi s)) / 2 for s.

    >>> [round(Cosine(0.0, 1.0, steps=2)(calls), 6) for calls in range(3)]
    [0.0, 0.5, 1.0]
    """

    def share(self, calls: int) -> float:
        return (1 - math.cos(math.pi * super().share(calls))) / 2


@dataclass(frozen=True)
class FollowLR:
    """A value that moves with the learning rate eta of an optimizer's first group.

        low + (high - low) (eta - lr_low) / (lr_high - lr_low)

    `lr_low` and `lr_high` are usually the extremes of eta. Source: that of `GSAM`.

    >>> import torch, flatnb
    >>> sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    >>> flatnb.GSAM(rho=FollowLR(sgd, high=0.5, lr_high=0.2)).rho
    0.25
    """

    optimizer: Optimizer = field(repr=False)
    high: Real
    lr_high: float
    low: Real = 0.0
    lr_low: float = 0.0

    def __call__(self, calls: int) -> Real:
        eta = self.optimizer.param_groups[0]["lr"]
        s = (eta - self.lr_low) / (self.lr_high - self.lr_low)
        return (1 - s) * self.low + s * self.high
