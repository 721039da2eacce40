"""LookSAM: SAM in every k-th step, its turn of the gradient reused in between."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flatnb.methods.base import (
    TINY,
    Hyperparameter,
    Method,
    Perturb,
    Step,
    Value,
    aligned,
    count,
    selection,
)
from flatnb.methods.remembered import Vector


class LookSAM(Method):
    """LookSAM: SAM in every k-th step; in between, the part of its gradient that turned
    it.

        g = grad L(w)
        every k-th step, the first among them:
            g_s = grad L(w + rho g / ||g||),   g_v = g_s - (<g, g_s> / ||g||^2) g
            gradient  g_s
        in between, with the last g_v:
            gradient  g + alpha (||g|| / ||g_v||) g_v

    (k + 1) / k passes on average. k = 1 is SAM. Norms and products are over all
    trainable parameters together, in float64; ||g|| in the perturbation is over the
    perturbed ones. A g_v that is not finite is not remembered; where none has been, or
    it is zero, the steps in between are plain ones. BatchNorm, weight decay and
    momentum are as in SAM. A step is a call of `backward`, with accumulation a
    micro-batch. Under DistributedDataParallel each process has its own g_v, and the
    results are averaged, outside of DDP's communication hooks.

    g_v and the count are in `state_dict`; g_v takes the memory of one more set of
    weights.

    Source: Liu et al., "Towards Efficient and Scalable Sharpness-Aware Minimization",
        CVPR 2022.
    Public re-implementations differ from it, and from each other: some take norms
    and products tensor by tensor.

        >>> from flatnb import LookSAM
        >>> LookSAM(rho=0.05, k=5).passes
        1.2

    Args:
        rho: radius >= 0, in units of the parameters.
        k: number of steps from one look uphill to the next >= 1.
        alpha: weight of the reused part >= 0, no unit. The defaults of k and alpha are
            those of public re-implementations.
        perturb: which parameters are moved, all by default; see
            `flatnb.methods.perturb`.
    """

    rho = Hyperparameter()
    k = Hyperparameter(count)
    alpha = Hyperparameter()
    perturb = Hyperparameter(selection, schedule=False)

    def __init__(
        self,
        rho: Value = 0.05,
        k: int = 5,
        alpha: Value = 0.7,
        *,
        perturb: Perturb | None = None,
    ) -> None:
        self.rho, self.k, self.alpha, self.perturb = rho, k, alpha, perturb
        self._turn = Vector("turn")

    @property
    def passes(self) -> float:  # type: ignore[override]
        return (self.k + 1) / self.k

    def counts(self) -> bool:
        return True

    def rule(self, step: Step) -> None:
        grads = step.gradient()
        if self.calls % self.k == 0:
            self._look(step, grads)
        else:
            self._reuse(step, grads)
        step.average()

    def _reuse(self, step: Step, grads: list[Tensor | None]) -> None:
        turn = self._turn.of(step)
        ratio = step.norm(grads) / step.norm(turn).clamp_min(TINY)
        factor = step.per_member("alpha", self.alpha) * ratio
        for g, v in zip(grads, turn, strict=True):
            if g is not None:
                g.addcmul_(v, aligned(factor, v))
        step.add_gradient(grads, 1.0)

    def _look(self, step: Step, grads: list[Tensor | None]) -> None:
        norm = step.norm(grads, self.perturb)
        rho = step.per_member("rho", self.rho)
        step.move(grads, rho / norm.clamp_min(TINY), self.perturb)
        uphill = step.gradient()
        share = step.dot(grads, uphill) / step.dot(grads, grads).clamp_min(TINY**2)
        finite = torch.isfinite(step.norm(uphill) + step.norm(grads))
        for v, g, u in zip(self._turn.of(step), grads, uphill, strict=True):
            if g is not None and u is not None:
                turn = u - aligned(share, g) * g
                v.copy_(torch.where(aligned(finite, v).bool(), turn, v))
        step.add_gradient(uphill, step.unless_finite(norm))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self._turn.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._turn.load_state_dict(self.load_calls(state))
