"""LookSAM: SAM in every k-th step, its turn of the gradient reused in between."""

import torch

from flatnb._nets import along_members
from flatnb.methods._step import TINY
from flatnb.methods.method import Gradient, Hyperparameter, Step, count
from flatnb.methods.remembered import Vector, overwrite
from flatnb.methods.sam import SAM


class LookSAM(SAM):
    """LookSAM: SAM in every k-th step, and its turn of the gradient in between.

        g = grad L(w)
        every k-th step, the first among them:
            g_s = grad L(w + rho g / ||g||),   g_v = g_s - (<g, g_s> / ||g||^2) g
            gradient  g_s
        in between, with the last g_v:
            gradient  g + alpha (||g|| / ||g_v||) g_v

    (k + 1) / k passes on average; k = 1 is SAM. A step is a call of `backward`.
    Products are over all trainable parameters. g_v takes the memory of one more set of
    weights; one that is not finite is not remembered, and where none is, or it is zero,
    the steps in between are plain. Several processes are as in `GSAM`.

    Source: Liu et al., "Towards Efficient and Scalable Sharpness-Aware Minimization",
    CVPR 2022. The defaults of k and alpha are those of public re-implementations.

    >>> LookSAM(rho=0.05, k=5).passes
    1.2
    """

    k: Hyperparameter = Hyperparameter(count, default=5)
    alpha: Hyperparameter = Hyperparameter(default=0.7)

    def __post_init__(self) -> None:
        self._turn = Vector()

    @property
    def passes(self) -> float:  # type: ignore[override]
        """The average over k steps."""
        return (self.k + 1) / self.k

    def rule(self, step: Step) -> None:
        grads = step.gradient()
        if self.calls % self.k == 0:
            self._look(step, grads)
        else:
            turn = self._turn.of(step)
            ratio = step.norm(grads) / step.norm(turn).clamp_min(TINY)
            factor = step.per_member("alpha", self.alpha) * ratio
            for g, v in zip(grads, turn, strict=True):
                if g is not None:
                    g.addcmul_(v, along_members(factor, v))
            step.add_gradient(grads, 1.0)
        step.average()

    def _look(self, step: Step, grads: Gradient) -> None:
        finite = self._ascend(step, grads)
        uphill = step.gradient()
        share = step.dot(grads, uphill) / step.dot(grads, grads).clamp_min(TINY**2)
        sound = torch.isfinite(step.norm(uphill) + step.norm(grads))
        for v, g, u in zip(self._turn.of(step), grads, uphill, strict=True):
            if g is not None and u is not None:
                overwrite(v, u - along_members(share, g) * g, sound)
        step.add_gradient(uphill, finite)
