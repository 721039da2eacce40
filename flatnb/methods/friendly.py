"""Friendly-SAM (F-SAM): SAM's step uphill without what the batch shares with all the others."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from flatnb.methods.base import (
    TINY,
    Hyperparameter,
    Method,
    Perturb,
    Real,
    Step,
    Value,
    aligned,
    real,
    selection,
)
from flatnb.methods.remembered import Vector


class FriendlySAM(Method):
    """Friendly-SAM: SAM along the part of the gradient that is this batch's alone.

        g = grad L(w)
        m <- lam m + (1 - lam) g,      0 before the first step
        d = g - sigma m
        gradient  grad L(w + rho d / ||d||)

    m, a moving average, stands for the gradient of all data. Two passes. sigma = 0 is
    SAM, and so is the first step, where d is along g. With sigma = 1, d = lam (g - m)
    with the m of before the step. ||d|| is the norm over all perturbed parameters
    together, in float64; where d is zero nothing moves. A gradient that is not finite
    does not enter m. BatchNorm, weight decay and momentum are as in SAM. A step is a
    call of `backward`, with accumulation a micro-batch. Under DistributedDataParallel
    each process has its own g, m and d (m-sharpness).

    m is in `state_dict`, and takes the memory of one more set of weights.

    Source: Li, Zhou, He, Cheng and Huang, "Friendly Sharpness-Aware Minimization", CVPR
        2024.
    The authors' code subtracts the m of before the step, which for sigma = 1 gives
    the same direction, and begins with m = g, not with 0, so that later directions
    differ.

        >>> from flatnb import FriendlySAM
        >>> FriendlySAM(rho=0.2, lam=0.95)
        FriendlySAM(rho=0.2, lam=0.95)

    Args:
        rho: radius >= 0, in units of the parameters. The authors' script uses 0.2.
        lam: decay of the moving average, in [0, 1]. The authors' class has 0.9, their
            script 0.95.
        sigma: share of the average that is taken out >= 0. The authors use 1.
        perturb: which parameters are moved, all by default; see
            `flatnb.methods.perturb`.
    """

    passes = 2
    rho = Hyperparameter()
    lam = Hyperparameter(partial(real, high=1.0))
    sigma = Hyperparameter()
    perturb = Hyperparameter(selection, schedule=False)

    def __init__(
        self,
        rho: Value = 0.05,
        lam: Value = 0.9,
        sigma: Value = 1.0,
        *,
        perturb: Perturb | None = None,
    ) -> None:
        self.rho, self.lam, self.sigma, self.perturb = rho, lam, sigma, perturb
        self._mean = Vector("mean")

    def rule(self, step: Step) -> None:
        grads = step.gradient()
        size = step.norm(grads)
        self._take_out(step, grads, torch.isfinite(size))
        norm = step.norm(grads, self.perturb)
        rho = step.per_member("rho", self.rho)
        step.move(grads, rho / norm.clamp_min(TINY), self.perturb)
        del grads
        step.backward(step.unless_finite(size))

    def _take_out(self, step: Step, grads: list[Tensor | None], finite: Tensor) -> None:
        """Turn g into d, and m into the new m of the members whose g is finite."""
        lam, sigma = (
            step.per_member("lam", self.lam),
            step.per_member("sigma", self.sigma),
        )
        for m, g in zip(self._mean.of(step), grads, strict=True):
            if g is None:  # a zero of the gradient
                m.mul_(_along(lam, m))
                continue
            mean = _along(lam, m) * m + _along(1 - lam, m) * g
            # g - sigma (lam m + (1 - lam) g), where sigma is 1 without cancellation
            g.mul_(_along(1 - sigma + sigma * lam, g)).sub_(_along(sigma * lam, m) * m)
            m.copy_(torch.where(aligned(finite, m).bool(), mean, m))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self._mean.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._mean.load_state_dict(self.load_calls(state))


def _along(factor: Real, like: Tensor) -> Real:
    return aligned(factor, like) if isinstance(factor, Tensor) else factor
