"""Friendly-SAM (F-SAM): SAM's step uphill without what all batches share."""

from functools import partial

from torch import Tensor

from flatnb._nets import along_members
from flatnb.methods.method import Gradient, Hyperparameter, Real, Step, real
from flatnb.methods.remembered import Vector, overwrite
from flatnb.methods.sam import SAM


class FriendlySAM(SAM):
    """Friendly-SAM: SAM along the part of the gradient that is this batch's alone.

        g = grad L(w)
        m <- lam m + (1 - lam) g,      0 before the first step
        d = g - sigma m
        gradient  grad L(w + rho d / ||d||)

    m, as large as the weights, stands for the gradient of all data; a gradient that is
    not finite does not enter it. lam is in [0, 1]; sigma = 0 is SAM, and so is the
    first step. A step is a call of `backward`. Under DistributedDataParallel each
    process has its own g, m and d.

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
                m.mul_(_factor(lam, m))
                continue
            mean = _factor(lam, m) * m + _factor(1 - lam, m) * g
            # d = g - sigma (lam m + (1 - lam) g), where sigma is 1 without cancellation
            g.mul_(_factor(1 - sigma + sigma * lam, g))
            g.sub_(_factor(sigma * lam, m) * m)
            overwrite(m, mean, size.isfinite())
        super()._ascend(step, grads)
        return step.unless_finite(size)


def _factor(value: Real, tensor: Tensor) -> Real:
    return along_members(value, tensor) if isinstance(value, Tensor) else value
