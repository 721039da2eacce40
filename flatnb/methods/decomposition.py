"""Variants of SAM that take gradients apart: Friendly-SAM, GSAM and LookSAM.

Products are over all trainable parameters. What a method remembers is as large as the
weights, untouched by gradients that are not finite, and each process's own. GSAM and
LookSAM average over processes outside DistributedDataParallel's communication hooks.
"""

from functools import partial

import torch
from torch import Tensor

from flatnb._nets import along_members
from flatnb.methods.method import TINY, Gradient, Hyperparameter, Step, count, real
from flatnb.methods.sam import SAM


class FriendlySAM(SAM):
    """Friendly-SAM: SAM along the part of the gradient that is this batch's alone.

        g = grad L(w)
        m <- lam m + (1 - lam) g,      0 before the first step
        d = g - sigma m
        gradient  grad L(w + rho d / ||d||)

    The remembered m stands for the gradient of all data. lam is in [0, 1]; sigma = 0 is
    SAM, and so is the first step. A step is a call of `backward`.

    Source: Li et al., "Friendly Sharpness-Aware Minimization", CVPR 2024. The authors'
    code begins with m = g, not with 0; their script has rho = 0.2 and lam = 0.95.

    >>> FriendlySAM(rho=0.2, lam=0.95)
    FriendlySAM(rho=0.2, lam=0.95)
    """

    lam: Hyperparameter = Hyperparameter(partial(real, high=1.0), default=0.9)
    sigma: Hyperparameter = Hyperparameter(default=1.0)

    def __post_init__(self) -> None:
        self._mean = Vector()

    def _ascend(self, step: Step, grads: Gradient) -> Tensor:
        lam = step.per_member("lam", self.lam)
        sigma = step.per_member("sigma", self.sigma)
        size = step.norm(grads)
        for m, g in zip(self._mean.of(step), grads, strict=True):
            if g is None:  # a zero of the gradient
                m.mul_(along_members(lam, m))
                continue
            mean = along_members(lam, m) * m + along_members(1 - lam, m) * g
            # d = g - sigma (lam m + (1 - lam) g), where sigma is 1 without cancellation
            g.mul_(along_members(1 - sigma + sigma * lam, g))
            g.sub_(along_members(sigma * lam, m) * m)
            overwrite(m, mean, size.isfinite())
        super()._ascend(step, grads)
        return step.unless_finite(size)


class GSAM(SAM):
    """GSAM: SAM's gradient minus a part of the gradient at w orthogonal to it.

        g = grad L(w),   g_p = grad L(w + rho g / ||g||)
        g_across = g - (<g, g_p> / ||g_p||^2) g_p
        gradient  g_p - alpha g_across

    Lowers the surrogate gap L_p - L; to first order L_p stays. alpha = 0 is SAM.

    Source: Zhuang et al., "Surrogate Gap Minimization Improves Sharpness-Aware
    Training", ICLR 2022. There rho follows the learning rate: `FollowLR`.

    >>> GSAM(rho=0.05, alpha=0.4)
    GSAM(rho=0.05, alpha=0.4)
    """

    alpha: Hyperparameter = Hyperparameter(default=0.2)

    def rule(self, step: Step) -> None:
        alpha = step.per_member("alpha", self.alpha)
        grads = step.gradient()
        finite = self._ascend(step, grads)
        uphill = step.gradient()
        share = step.dot(grads, uphill) / step.dot(uphill, uphill).clamp_min(TINY**2)
        step.add_gradient(uphill, 1 + alpha * share)
        step.add_gradient(grads, -alpha * finite)
        step.average()


class LookSAM(SAM):
    """LookSAM: SAM in every k-th step, and its turn of the gradient in between.

        g = grad L(w)
        every k-th step, the first among them:
            g_s = grad L(w + rho g / ||g||),   g_v = g_s - (<g, g_s> / ||g||^2) g
            gradient  g_s
        in between, with the last g_v, 0 at first:
            gradient  g + alpha (||g|| / ||g_v||) g_v

    k = 1 is SAM. Steps are calls of `backward`, plain in between while g_v is 0.

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


class Vector:
    """A remembered vector with an entry per weight, 0 at first.

    Kept by parameter name, it survives saving, wrapping and freezing for a while.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def of(self, step: Step) -> list[Tensor]:
        """The tensors of the step's parameters, to be written in place."""
        tensors = []
        for name, p in zip(step.names, step.params, strict=True):
            kept = self._tensors.get(name)
            tensors.append(torch.zeros_like(p) if kept is None else kept.to(p))
            self._tensors[name] = tensors[-1]
        return tensors

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors, by the names of the parameters."""
        return dict(self._tensors)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load what `state_dict` returned."""
        self._tensors = {name: tensor.clone() for name, tensor in state.items()}


def overwrite(tensor: Tensor, value: Tensor, finite: Tensor) -> None:
    """Write `value` into `tensor`, for the members whose step is `finite`."""
    tensor.copy_(torch.where(along_members(finite, tensor).bool(), value, tensor))
