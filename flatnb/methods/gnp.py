"""Penalizing the gradient norm (GNP)."""

from flatnb.methods._step import TINY
from flatnb.methods.method import KW_ONLY, Hyperparameter, Method, Perturb, Step


class GNP(Method):
    """Gradient norm penalty: descends L + alpha r ||grad L||, without Hessians.

        g1 = grad L(w),   g2 = grad L(w + r g1 / ||g1||)
        gradient  (1 - alpha) g1 + alpha g2

    alpha = 0 is plain training, alpha = 1 is SAM(rho=r); alpha > 1 is allowed. All else
    is as in `flatnb.methods.sam`. The warm-ups of the authors' follow-up are schedules:
    `r=Linear(0.0, 0.1, steps=n)`, and `r=lambda calls: 0.1 * (calls >= n)`.

    Source: Zhao, Zhang and Hu, "Penalizing Gradient Norm for Efficiently Improving
    Generalization in Deep Learning", ICML 2022, with r = 0.05 to 0.1, alpha = 0.8. The
    JAX code takes (1 - alpha) g1 / ||g1|| + alpha g2, here `normalize=True`.

    >>> GNP(r=0.1, alpha=0.8)
    GNP(r=0.1, alpha=0.8)
    """

    passes = 2
    r: Hyperparameter = Hyperparameter()
    alpha: Hyperparameter = Hyperparameter()
    _: KW_ONLY
    normalize: bool = False
    perturb: Perturb | None = None

    def rule(self, step: Step) -> None:
        alpha = step.per_member("alpha", self.alpha)
        grads = step.gradient()
        finite = step.ascend(grads, step.per_member("r", self.r), self.perturb)
        length = step.norm(grads).clamp_min(TINY) if self.normalize else 1.0
        # Before the last pass, in which DistributedDataParallel averages both terms.
        step.add_gradient(grads, (1 - alpha) / length)
        del grads
        step.backward(alpha * finite)
