"""Surrogate gap minimization (GSAM): SAM that also lowers the rise of the loss."""

from flatnb.methods._step import TINY
from flatnb.methods.method import Hyperparameter, Step
from flatnb.methods.sam import SAM


class GSAM(SAM):
    """GSAM: SAM's gradient, minus what the gradient at w has across it.

        g = grad L(w),   g_p = grad L(w + rho g / ||g||)
        g_across = g - (<g, g_p> / ||g_p||^2) g_p
        gradient  g_p - alpha g_across

    That lowers the surrogate gap L_p - L, and leaves L_p as it is, to first order.
    alpha = 0 is SAM. Products are over all trainable parameters. Under
    DistributedDataParallel each process takes its own gradients apart, and the results
    are averaged, outside of DDP's communication hooks.

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
